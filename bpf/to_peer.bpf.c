// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what a container, or the host itself, sends to a member of an overlay network on another host.
 * In the scratch memory are the parsed packet, the network's number, and the sender's, which is 0 for the host; and, if it
 * was translated for a service's backend, what it was (else no protocol).
 */
#include "lib/encap.h"
#include "lib/exits.h"
#include "lib/flow_rows.h"
#include "lib/links.h"
#include "lib/overlay.h"
#include "lib/straight.h"
#include "lib/ways.h"
#include "lib/xfrm.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What the backend's host is to hear with it: enum telling. */
static __always_inline __u32 tells(const struct packet *p, const struct scratch *room)
{
	return room->sides.key.proto && packet_has_ports(p) ? room->tells : TELLS_NOTHING;
}

/* By the device: the kernel routes, cuts and sums as it does for any tunnel. */
__noinline int by_device(struct __sk_buff *skb, const struct packet *p,
			 const struct overlay *overlay, const struct tunnel *own,
			 const struct peer *peer)
{
	struct scratch *room = scratch();
	__u64 flags = BPF_F_ZERO_CSUM_TX;
	struct bpf_tunnel_key key = {};
	__u8 source[ETH_ALEN];

	if (!p || !overlay || !own || !peer || !room)
		return TC_ACT_SHOT;
	if (!own->ifindex)
		return drop(skb, DROP_NO_TUNNEL);
	key.tunnel_id = overlay->vni;
	key.tunnel_ttl = 64;
	if (addr_is_v4(&peer->addr)) {
		key.remote_ipv4 = bpf_ntohl(peer->addr.word[3]);
		key.local_ipv4 = bpf_ntohl(own->addr4.word[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, &peer->addr, sizeof(key.remote_ipv6));
		__builtin_memcpy(key.local_ipv6, &own->addr6, sizeof(key.local_ipv6));
		flags |= BPF_F_TUNINFO_IPV6;
	}
	if (overlay->flags & OVERLAY_CHECKSUM)
		flags &= ~BPF_F_ZERO_CSUM_TX;
	__builtin_memcpy(source, own->mac, ETH_ALEN);
	room->told = tells(p, room) ? TELLS_APART : TELLS_NOTHING;
	tell(room, source);
	if (rewrite_macs(skb, peer->mac, source) ||
	    bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return drop(skb, DROP_REWRITE);
	count(skb, TO_PEER);
	return bpf_redirect(own->ifindex, 0);
}

/* Is what a service was asked for as it was when it came? Its client knows of no backend. */
__noinline int translated_back(struct __sk_buff *skb, struct packet *p)
{
	struct scratch *room = scratch();

	if (!p || !room || rewrite_tuple(skb, p, &room->sides.key, room->sides.id))
		return 0;
	p->tuple = room->sides.key;
	return 1;
}

/* The sender is told that its packet does not fit into the tunnel: a container by its gateway; the host's own stack, which
 * has that address itself, by whom it sends to, and so is who asks a published port. */
static __always_inline int too_big(struct __sk_buff *skb, struct packet *p,
				   const struct network *net, const struct overlay *overlay,
				   __u32 mtu)
{
	const struct ip_addr *gateway = is_ipv6(p) ? &net->gateway6 : &net->gateway4;
	struct scratch *room = scratch();
	__u32 sender;
	int verdict;

	if (!room)
		return TC_ACT_SHOT;
	sender = room->sides.client_endpoint;
	if (room->sides.key.proto && !translated_back(skb, p))
		return drop(skb, DROP_REWRITE);
	if (!sender || (room->sides.key.proto && !overlay_covers(overlay, &p->tuple.dst)))
		gateway = &p->tuple.dst;
	verdict = answer_error(skb, p, gateway, mtu);

	return !sender && verdict == TC_ACT_REDIRECT ? bpf_redirect(net->ifindex, BPF_F_INGRESS)
						     : verdict;
}

/* May the packet go without a tunnel? In the gateway's name it could come from any host. */
static __always_inline bool is_direct(const struct packet *p, const struct network *net,
				      const struct overlay *overlay)
{
	return overlay->transport == TRANSPORT_DIRECT && !is_gateway(net, &p->tuple.src) &&
	       !is_gateway(net, &p->tuple.dst) && overlay_covers(overlay, &p->tuple.src) &&
	       overlay_covers(overlay, &p->tuple.dst);
}

/* Is the peer on the link? Over one with IPv4 addresses no neighbour is found for IPv6. */
static __always_inline bool is_on_link(const struct packet *p, const struct peer *peer)
{
	return (peer->flags & PEER_DIRECT) && !(is_ipv6(p) && addr_is_v4(&peer->addr));
}

/* As it is, to the peer as the next hop. NO_VERDICT: the peer is not on the link, the packet has to be cut, or an IPsec
 * policy is about it; in a tunnel it gets there. */
static __always_inline int by_link(struct __sk_buff *skb, struct packet *p, struct scratch *room,
				   const struct network *net, const struct overlay *overlay,
				   const struct tunnel *own, const struct peer *peer)
{
	__u32 length = segment_length(skb, p), mtu = peer->mtu ? peer->mtu : 0xffff;
	struct ip_addr hop;
	int route;

	if (!way_is_to(room, own, peer, own->port) || xfrm_closed_out(&p->tuple, &p->tuple))
		return NO_VERDICT;
	route = way_find(skb, net, length);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED && room->fib.mtu_result < mtu)
		mtu = room->fib.mtu_result;
	if (length > mtu && (is_ipv6(p) || p->dont_fragment))
		return too_big(skb, p, net, overlay, mtu);
	if (length > mtu || !route_leads_out(route))
		return NO_VERDICT;
	route_hop(&room->fib, &hop);
	if (!addr_equal(&hop, &peer->addr))
		return NO_VERDICT;
	flow_learn_way(skb, room, p, mtu);
	return by_next_hop(skb, &room->fib, TO_PEER);
}

/* As it is, by a route of the host's to the member itself, which others have told it of. NO_VERDICT: it has none but the
 * network's own, the packet has to be cut, or an IPsec policy is about it. */
static __always_inline int by_route(struct __sk_buff *skb, const struct packet *p,
				    struct scratch *room, const struct network *net,
				    const struct tunnel *own, const struct peer *peer)
{
	__u32 length = segment_length(skb, p);

	if ((peer->mtu && length > peer->mtu) || xfrm_closed_out(&p->tuple, &p->tuple))
		return NO_VERDICT;
	room->leaving = p->tuple;
	room->leaving.sport = room->leaving.dport = own->port;
	room->leaving.proto = IPPROTO_UDP;
	if (!route_leads_out(way_find(skb, net, length)) ||
	    device_find(room->fib.ifindex, DEVICE_GATEWAY))
		return NO_VERDICT;
	return by_next_hop(skb, &room->fib, TO_PEER);
}

/* Is the backend's host to hear what its client outside has asked? That is in room->asked then; the client's address and
 * port are what they were. */
static __always_inline bool asks_for_outsider(const struct packet *p, struct scratch *room)
{
	const struct tuple *asked = &room->sides.key;

	if (room->tells != TELLS_ASKED || room->sides.client_endpoint != PARTY_PEER ||
	    !packet_has_ports(p) || p->fragment || addr_is_linklocal(&asked->dst) ||
	    asked->sport != p->tuple.sport || !addr_equal(&asked->src, &p->tuple.src))
		return false;
	room->asked.addr = asked->dst;
	room->asked.port = asked->dport;
	return true;
}

/* What the packet is called in an encrypted tunnel, in room->leaving. False: nobody would believe it there. What a router
 * says of an answer to somebody outside is the gateway's: in that name was asked, and who is not a member has no other. */
static __always_inline bool is_called(const struct packet *p, struct scratch *room,
				      const struct network *net, const struct overlay *overlay,
				      const struct tunnel *own, __u32 host)
{
	bool answers = is_gateway(net, &p->tuple.dst);
	bool asks = is_gateway(net, &p->tuple.src) ||
		    (icmp_is_error(p) && !overlay_covers(overlay, &p->tuple.src));

	room->leaving = p->tuple;
	if (asks)
		alias_make(&room->leaving.src, is_ipv6(p), own->peer);
	else if (answers)
		alias_make(&room->leaving.dst, is_ipv6(p), host);
	return !(asks && answers) && (asks || overlay_covers(overlay, &p->tuple.src)) &&
	       (answers || overlay_covers(overlay, &p->tuple.dst));
}

/* Encrypted, by the device, which finds the peer by the destination. In clear it must not go. `host`: the peer's number. */
static __always_inline int by_wireguard(struct __sk_buff *skb, struct packet *p,
					struct scratch *room, const struct network *net,
					const struct overlay *overlay, const struct tunnel *own,
					const struct peer *peer, __u32 host)
{
	__u32 mtu = 0;

	if (!own->wireguard || !(peer->flags & PEER_WIREGUARD) ||
	    !is_called(p, room, net, overlay, own, host))
		return drop(skb, DROP_NO_TUNNEL);
	if (bpf_check_mtu(skb, own->wireguard, &mtu, 0, 0) < 0)
		return drop(skb, DROP_NO_TUNNEL);
	if (segment_length(skb, p) > mtu && (is_ipv6(p) || p->dont_fragment))
		return too_big(skb, p, net, overlay, mtu);
	if (!(addr_equal(&room->leaving.src, &p->tuple.src) &&
	      addr_equal(&room->leaving.dst, &p->tuple.dst)) &&
	    rewrite_tuple(skb, p, &room->leaving, p->ttl))
		return drop(skb, DROP_REWRITE);
	count(skb, TO_PEER);
	return bpf_redirect(own->wireguard, 0);
}

static __always_inline int by_vxlan(struct __sk_buff *skb, struct packet *p, struct scratch *room,
				    const struct network *net, const struct overlay *overlay,
				    const struct tunnel *own, const struct peer *peer)
{
	bool v6 = !addr_is_v4(&peer->addr);
	__u32 overhead = vxlan_overhead(v6), length = segment_length(skb, p) + overhead, mtu;
	struct tx_way *flow;
	int route, error;

	if (!way_is_to(room, own, peer, vxlan_sport(p)))
		return drop(skb, DROP_NO_TUNNEL);
	route = way_find(skb, net, length);
	mtu = peer->mtu ? peer->mtu : 0xffff;
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED && room->fib.mtu_result < mtu)
		mtu = room->fib.mtu_result;
	if (length > mtu && (is_ipv6(p) || p->dont_fragment))
		return too_big(skb, p, net, overlay, mtu - overhead);
	/* What may be fragmented is, outside of the tunnel's headers. What has another way than a device's, or an
	 * IPsec policy, is for the host's stack. What the host itself sends has a route that leads to the network: if
	 * the next hop's MAC address has to be asked for, the kernel would look for it there. */
	if ((!room->sides.client_endpoint && own->ifindex) || length > mtu ||
	    !route_leads_out(route) || (overlay->flags & OVERLAY_CHECKSUM) ||
	    xfrm_closed_out(&room->leaving, &room->leaving))
		return by_device(skb, p, overlay, own, peer);
	flow = flow_learn_way(skb, room, p, mtu);
	if (flow) {
		flow->overhead = overhead;
		if (v6)
			vxlan_make_v6(&flow->made6, p, &room->leaving, own, peer, overlay->vni);
		else
			vxlan_make(&flow->made, p, &room->leaving, own, peer, overlay->vni);
	}
	room->told = tells(p, room);
	if (room->told == TELLS_ASKED && (skb->gso_size || length + sizeof(room->asked) > mtu ||
					  !asks_for_outsider(p, room) || !asked_append(skb, room)))
		room->told = TELLS_APART;
	error = v6 ? vxlan_push_v6(skb, p, own, peer, overlay->vni)
		   : vxlan_push_v4(skb, p, own, peer, overlay->vni);
	if (error)
		return error > 0 ? by_device(skb, p, overlay, own, peer) : drop(skb, DROP_REWRITE);
	return by_next_hop(skb, &room->fib, TO_PEER);
}

SEC("tc")
int to_peer(struct __sk_buff *skb)
{
	struct tunnel *own = tunnel_own();
	struct scratch *room = scratch();
	struct overlay *overlay;
	struct caller *caller;
	struct network *net;
	struct packet *p;
	struct peer *peer;
	__u32 number, host;
	int verdict;

	if (!room || !own)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	number = room->sides.client_network;
	net = network_find(number);
	overlay = overlay_find(number);
	if (!net || !overlay)
		return drop(skb, DROP_DEVICE);
	if (!flow_counts_in(net))
		room->flow_is_new = 0;
	if (is_gateway(net, &p->tuple.dst) || !overlay_covers(overlay, &p->tuple.dst)) {
		room->flow_is_new = 0; /* who has asked last is answered */
		caller = p->back ? NULL : caller_find(skb, p, number);
		host = caller ? caller->peer : p->back;
		if (caller)
			caller_is_answered(caller, p);
		if (caller && goes_straight(p, caller)) {
			verdict = straight(skb, p, net, caller);
			if (verdict != NO_VERDICT)
				return verdict;
		}
	} else {
		host = remote_at(number, overlay, &p->tuple.dst);
		/* Who asks a service from elsewhere, or in the gateway's name, has been admitted where it
		 * began. */
		if (room->sides.client_endpoint && !is_gateway(net, &p->tuple.src) &&
		    overlay_covers(overlay, &p->tuple.src) && !members_may_talk(net, p))
			return drop(skb, DROP_ICC);
	}
	peer = host ? peer_find(host) : NULL;
	if (!peer)
		return drop(skb, DROP_NO_REMOTE);
	/* Such a source the other host would not believe. */
	if (p->forwarded)
		return drop(skb, DROP_SPOOFED_ADDR);
	if (addr_is_unusable(&p->tuple.src) ||
	    (!is_ipv6(p) && p->tuple.dst.word[3] == net->broadcast))
		return drop(skb, DROP_BAD_ADDR);
	if (overlay->transport == TRANSPORT_WIREGUARD)
		return by_wireguard(skb, p, room, net, overlay, own, peer, host);
	if (room->sides.client_endpoint && is_direct(p, net, overlay)) {
		verdict = NO_VERDICT;
		if (is_on_link(p, peer))
			verdict = by_link(skb, p, room, net, overlay, own, peer);
		else if (overlay->flags & OVERLAY_ROUTED)
			verdict = by_route(skb, p, room, net, own, peer);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	return by_vxlan(skb, p, room, net, overlay, own, peer);
}
