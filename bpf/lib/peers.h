/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What another host has sent to a member of this one, out of its tunnel. It is believed only from the host that has the
 * source's address. That a host asks in the name of the gateway, which every host has, is remembered: the answer goes
 * there, and not to this one.
 */
#pragma once
#include "lib/admissions.h"
#include "lib/exits.h"
#include "lib/datagrams.h"
#include "lib/encap.h"
#include "lib/flow_rows.h"
#include "lib/links.h"
#include "lib/neighbour.h"
#include "lib/overlay.h"
#include "lib/rewrite.h"
#include "lib/served.h"
#include "lib/tails.h"

#define ND_FIRST 133 /* the types of neighbour discovery (RFC 4861, 4): all are of one link */
#define ND_LAST	 137
#define ECHO	 7 /* the port of the echo protocol (RFC 862) */

/* Is it for one member? An overlay has no broadcast, and who has an address is known without a question. */
static __always_inline bool is_for_one(const struct packet *p)
{
	if (p->ethertype == bpf_htons(ETH_P_ARP) || addr_is_unusable(&p->tuple.dst) ||
	    addr_is_unusable(&p->tuple.src))
		return false;
	return p->tuple.proto != IPPROTO_ICMPV6 || !p->l4 || p->icmp_type < ND_FIRST ||
	       p->icmp_type > ND_LAST;
}

/* Is all that this packet says of who asks known? What begins anew, and says nothing of what is asked, is not to be
 * answered as what was asked before. */
static __always_inline bool caller_is_known(struct caller *known, const struct packet *p,
					    const struct caller *caller)
{
	if (known->peer != caller->peer || known->network != caller->network)
		return false;
	if (!caller->port)
		return !known->port || !is_tcp_opening(p);
	if (known->port != caller->port || !addr_equal(&known->addr, &caller->addr))
		return false;
	known->told = 0; /* the other host has had no answer yet */
	return true;
}

/* Has it come out of the device of encrypted tunnels? */
static __always_inline bool is_deciphered(const struct __sk_buff *skb)
{
	struct tunnel *own = tunnel_own();

	return own && own->wireguard == skb->ifindex;
}

/* May who asks by another host have another port, if this one is taken? It has begun, as it would have with that, and its
 * host says that it can give one, or is of an encrypted network, where no other ones are. What comes back from there as it
 * was has no hop left: that host cannot. */
static __always_inline bool may_have_another(const struct __sk_buff *skb, const struct packet *p,
					     const struct scratch *room)
{
	if (p->tuple.proto == IPPROTO_TCP ? !is_tcp_opening(p) : p->tuple.proto != IPPROTO_UDP)
		return false;
	return p->ttl && (room->mark || is_deciphered(skb));
}

/* Is the port another's, which a host has asked for before, or this one? The answer is in room->probe; `mark`: of what is asked
 * now. */
__noinline int port_is_anothers(const struct packet *p, __u32 peer, __u32 mark)
{
	struct scratch *room = scratch();
	struct conn *conn, *original;
	struct caller *known;

	if (!p || !room)
		return 0;
	known = bpf_map_lookup_elem(&callers, &room->probe);
	if (known)
		return known->peer != peer && caller_is_another(known, mark, p->tuple.proto);
	conn = conn_find(&room->probe);
	if (!conn || (conn->flags & (CONN_SERVICE | CONN_ORIGINAL)) != CONN_SERVICE)
		return 0;
	original = conn_opposite(conn);
	return original && original->state != CONN_CLOSED &&
	       ((original->flags & CONN_CONFIRMED) ||
		bpf_ktime_get_ns() - original->last_seen < config.timeout_handshake * SECOND) &&
	       mark_of(&conn->other.dst, conn->other.dport) != mark;
}

/* The other host asks a member in the gateway's name, or for somebody outside, and may say what has been asked there. Who has
 * asked a service by this host before asks by that one now, as a router before them may decide: the answers go there. `shared`:
 * the network has services. False: it is to have another port. */
static __always_inline bool caller_remember(const struct __sk_buff *skb, struct scratch *room,
					    const struct packet *p, __u32 network, __u32 peer,
					    bool ingress, bool shared)
{
	struct caller *caller = &room->caller, *known;
	struct conn *conn;

	if (!packet_has_ports(p))
		return true;
	__builtin_memset(caller, 0, sizeof(*caller));
	caller->network = network;
	caller->peer = peer;
	if (ingress && room->asked.port) {
		caller->addr = room->asked.addr;
		caller->port = room->asked.port;
	}
	caller->mark = ingress ? room->mark : peer;
	tuple_reverse(&room->probe, &p->tuple);
	known = bpf_map_lookup_elem(&callers, &room->probe);
	if (known && caller_is_known(known, p, caller)) {
		caller_asks(known, p, caller->mark);
		return true;
	}
	if (shared && may_have_another(skb, p, room) && port_is_anothers(p, peer, caller->mark))
		return p->fragment == FRAGMENT_LATER; /* it says nothing of ports */
	caller->seen = bpf_ktime_get_coarse_ns();
	bpf_map_update_elem(&callers, &room->probe, caller, BPF_ANY);
	conn = conn_find(&room->probe);
	if (conn && (conn->flags & (CONN_SERVICE | CONN_ORIGINAL)) == CONN_SERVICE)
		conn_forget(&room->probe);
	return true;
}

/* Back to the other host, from whom it was sent to; its checksum as it came, which whoever sent it may have left to a device.
 * `ttl`: its hops. */
static __always_inline int go_back(struct __sk_buff *skb, struct packet *p, struct scratch *room,
				   __u32 number, __u32 peer, __u8 ttl)
{
	tuple_reverse(&room->probe, &p->tuple);
	if (rewrite_tuple(skb, p, &room->probe, ttl))
		return drop(skb, DROP_REWRITE);
	packet_became(p, &room->probe, ttl);
	p->back = peer;
	room->sides.client_network = number;
	room->sides.client_endpoint = 0;
	room->sides.key.proto = 0;
	return go_on(skb, TAIL_TO_PEER);
}

/* Does the other host ask whether its packets arrive: `doctor` does, of an address that this host could give to a member? */
static __always_inline bool is_probe(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_UDP && p->tuple.dport == bpf_htons(ECHO) &&
	       packet_has_ports(p);
}

/* An error about what a member on another host has answered, as the gateway tells it. */
static __always_inline int peer_told(struct __sk_buff *skb, struct packet *p, struct scratch *room,
				     __u32 number)
{
	__builtin_memset(p, 0, sizeof(*p));
	if (packet_parse(skb, p))
		return drop(skb, DROP_REWRITE);
	room->flow_is_new = 0;
	room->sides.key.proto = 0;
	room->sides.client_network = number;
	room->sides.client_endpoint = 0;
	return go_on(skb, TAIL_TO_PEER);
}

/* To the host itself, as an answer to what it has asked another host's member. */
static __always_inline int peer_to_host(struct __sk_buff *skb, const struct packet *p,
					const struct network *net)
{
	if (rewrite_macs(skb, net->mac, net->mac))
		return drop(skb, DROP_REWRITE);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return to_host(skb, net);
}

/* What somebody outside has asked a service at another host, for a backend here? */
static __always_inline bool is_ingress(const struct packet *p, const struct network *net,
				       __u32 number)
{
	struct overlay *overlay;

	if (!(net->flags & NETWORK_SERVICES))
		return false;
	overlay = overlay_find(number);
	return overlay && !overlay_covers(overlay, &p->tuple.src);
}

/* Is it believed from this host? What is to come encrypted is not believed otherwise. `calls`: it asks for another. */
static __always_inline bool is_believed(const struct __sk_buff *skb, const struct packet *p,
					__u32 number, __u32 peer, bool calls)
{
	struct overlay *overlay = overlay_find(number);

	return overlay && (overlay->transport != TRANSPORT_WIREGUARD || is_deciphered(skb)) &&
	       (calls || remote_may_send(number, overlay, &p->tuple.src, peer));
}

/* Do policies let it in? A verdict, BY_TUNNEL, or NO_VERDICT: they do. */
__noinline int peer_judge(struct __sk_buff *skb, struct packet *p, __u32 number, __u32 endpoint,
			  int ingress)
{
	int said;

	if (!p)
		return TC_ACT_SHOT;
	said = admit(skb, p, number, PARTY_PEER, endpoint);
	if (!said)
		return NO_VERDICT;
	/* Who is a member hears of it as from the other end, which his host believes from here. */
	p->by_peer = 1;
	return refused(skb, p, NULL, ingress ? said & ~TOLD : said);
}

/* Has the other host sent back what this one has asked there, as its port is another's? No answer is without a hop. */
static __always_inline bool comes_back(const struct packet *p, const struct network *net,
				       __u32 number)
{
	struct overlay *overlay = overlay_find(number);

	if (!packet_has_ports(p) || is_icmp(p->tuple.proto))
		return false;
	return is_gateway(net, &p->tuple.dst) ||
	       (overlay && !overlay_covers(overlay, &p->tuple.dst));
}

/* `number`: of the network, `peer`: of the sending host, 0: it is known to have the source; `ecn`: of the outer header, 0
 * where that has been seen to; `until`: so long what becomes of it counts for its flow, ns, 0: for it alone. */
static __always_inline int peer_receive(struct __sk_buff *skb, struct packet *p, __u32 number,
					__u32 peer, __u8 ecn, __u64 until)
{
	struct network *net = network_find(number);
	struct scratch *room = scratch();
	struct endpoint *endpoint;
	bool calls, ingress;
	int reason = 0, verdict;

	if (!net || !room || !(net->flags & NETWORK_OVERLAY))
		return drop(skb, DROP_DEVICE);
	if (!is_for_one(p))
		return drop(skb, DROP_TUNNEL_FRAME);
	calls = is_gateway(net, &p->tuple.src);
	ingress = peer && !calls && is_ingress(p, net, number);
	if (peer && !is_believed(skb, p, number, peer, calls || ingress))
		return drop(skb, DROP_TUNNEL_SOURCE);
	/* The sender did not know that it may be marked: then it has to be lost (RFC 6040, 4.2). */
	if (ecn == CONGESTED && !bpf_skb_ecn_set_ce(skb))
		return drop(skb, DROP_CONGESTED);
	/* With the mark its header has another checksum, which whoever translates it changes. */
	if (ecn == CONGESTED && !is_ipv6(p) &&
	    bpf_skb_load_bytes(skb, IP_CHECK_AT, &p->ip_check, sizeof(p->ip_check)))
		return drop(skb, DROP_REWRITE);
	room->judgement.concerned = 0;
	p->by_peer = (net->flags & NETWORK_SERVICES) && !calls && !ingress;
	if (p->by_peer && !p->ttl && comes_back(p, net, number)) {
		room->sides.client_network = number;
		return go_on(skb, TAIL_TO_SERVICE);
	}
	if (p->fragment && (policies_now() || (net->flags & NETWORK_SERVICES) ||
			    (!calls && !(net->flags & NETWORK_ICC))))
		reason = fragment_join(p, PARTY_PEER);
	if (p->by_peer) {
		verdict = service_answer(skb, p, net, PARTY_PEER);
		if (verdict == BY_TUNNEL)
			return peer_told(skb, p, room, number);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	if (is_gateway(net, &p->tuple.dst))
		return calls ? drop(skb, DROP_TUNNEL_SOURCE) : peer_to_host(skb, p, net);
	endpoint = endpoint_find(number, &p->tuple.dst);
	if (!endpoint && calls && is_probe(p))
		return go_back(skb, p, room, number, peer, p->ttl);
	if (!endpoint || !endpoint->ifindex)
		return drop(skb, DROP_NO_ENDPOINT);
	if (ingress && !(endpoint->forwarding & ROLE_SERVES))
		return drop(skb, DROP_TUNNEL_SOURCE);
	if (policies_now()) {
		verdict = reason ? drop(skb, reason)
				 : peer_judge(skb, p, number, endpoint->number, ingress);
		if (verdict == BY_TUNNEL)
			return peer_told(skb, p, room, number);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	if (calls || ingress) {
		if (!caller_remember(skb, room, p, number, peer, ingress,
				     net->flags & NETWORK_SERVICES))
			return go_back(skb, p, room, number, peer, 0);
	} else if (!(net->flags & NETWORK_ICC)) {
		if (reason)
			return drop(skb, reason);
		if (!link_admits(p))
			return drop(skb, DROP_ICC);
	} else if (until && !endpoint->limited && !room->judgement.concerned &&
		   flow_counts_in(net)) {
		flow_learn_recipient(skb, room, p, endpoint, net->mac, until);
	}
	return deliver(skb, p, endpoint, net->mac);
}
