/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What comes from outside on one of the host's uplinks, parsed: answers to what containers began, and published ports. All
 * else is the host's and continues untouched.
 */
#pragma once
#include "lib/host_flows.h"
#include "lib/inbound.h"
#include "lib/overlay.h"

/* To a link-local address that is none of the device's: another link's, where it may be the host's, or a neighbour's. */
static __always_inline bool is_of_another_link(const struct __sk_buff *skb, const struct packet *p)
{
	return addr_is_linklocal(&p->tuple.dst) && !linklocal_is_of(skb->ifindex, &p->tuple.dst);
}

/* Is the destination one of the host's addresses? Its routing table says so, which is never out of date; but not of
 * link-local ones, of which those of other links do not come here. */
static __always_inline bool is_local(struct __sk_buff *skb, const struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct scratch *room = scratch();

	if (addr_is_linklocal(&p->tuple.dst))
		return true;
	return net && room &&
	       route_is_local(skb, p, net, route_find(skb, p, net, NULL, &room->fib));
}

/*
 * Can the sender be outside: its address is not the host's, not a container's, and usable as a source.
 * Other packets are left to the host's stack; a server must not take them for a neighbour's.
 */
static __noinline int from_outside(struct __sk_buff *skb, const struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct scratch *room = scratch();
	long route;

	if (!p || !net || !room || addr_is_unusable(&p->tuple.src))
		return 0;
	route = route_back(skb, p, net, &room->fib);
	/* An answer must not leave that link. */
	if (addr_is_linklocal(&p->tuple.dst) && room->fib.ifindex != skb->ifindex)
		return 0;
	/* FRAG_NEEDED: it leads somewhere, where the packet would not fit. */
	return route != BPF_FIB_LKUP_RET_NOT_FWDED &&
	       !((route_leads_out(route) || route == BPF_FIB_LKUP_RET_FRAG_NEEDED) &&
		 device_find(room->fib.ifindex, DEVICE_GATEWAY));
}

static __always_inline bool may_be_published(const struct packet *p)
{
	return (p->tuple.proto == IPPROTO_TCP || p->tuple.proto == IPPROTO_UDP) &&
	       port_is_reserved(p->tuple.dport, p->tuple.proto);
}

static __always_inline struct port *published(struct __sk_buff *skb, const struct packet *p)
{
	struct port *port;

	/* A loopback address is invalid from outside, though a port may be published there. A link-local one of
	 * the device is an address like any; whoever asks there from its own has no way to a container
	 * (from_outside). */
	if (addr_is_unusable(&p->tuple.dst) && !addr_is_linklocal(&p->tuple.dst))
		return NULL;
	port = port_find_exact(&p->tuple.dst, p->tuple.dport, p->tuple.proto);
	if (!port) {
		port = port_find_any(is_ipv6(p), p->tuple.dport, p->tuple.proto);
		if (!port || !is_local(skb, p, port->network))
			return NULL;
	}
	return from_outside(skb, p, port->network) ? port : NULL;
}

/* The number of the network that has the address; 0: none. */
static __always_inline __u32 network_at(const struct ip_addr *addr)
{
	struct subnet_key key = {.prefixlen = 128, .addr = *addr};
	struct subnet *subnet = bpf_map_lookup_elem(&subnets, &key);

	return subnet ? subnet->network : 0;
}

/* The encrypted network of what has come out of its tunnels: which has the destination or, where that is this host as it
 * is called there, the source. 0: none. */
static __always_inline __u32 network_encrypted(const struct packet *p, const struct tunnel *own)
{
	bool answers = own->peer && alias_number(&p->tuple.dst) == own->peer;
	__u32 number = network_at(answers ? &p->tuple.src : &p->tuple.dst);
	struct overlay *overlay = number ? overlay_find(number) : NULL;

	return overlay && overlay->transport == TRANSPORT_WIREGUARD ? number : 0;
}

/* The network without tunnels that has the destination; 0: none, or routers know the way to its members, and the source is
 * not in it: that is from outside, as with any network. */
static __always_inline __u32 network_direct(const struct packet *p)
{
	__u32 number = network_at(&p->tuple.dst);
	struct overlay *overlay = number ? overlay_find(number) : NULL;

	if (!overlay || overlay->transport != TRANSPORT_DIRECT)
		return 0;
	return (overlay->flags & OVERLAY_ROUTED) && !overlay_covers(overlay, &p->tuple.src)
		       ? 0
		       : number;
}

/* Is what nobody wants the host's, for as long as no row changes and no connection with its tuple comes to be? */
static __always_inline bool stays_the_hosts(const struct packet *p)
{
	struct tunnel *own = tunnel_own();

	return own && !((own->flags & TUNNEL_DIRECT) && network_at(&p->tuple.dst));
}

/* A member, whom routers know the way to: each of its ports is published, at its own address. False: it is none. */
static __always_inline bool is_routed(struct __sk_buff *skb, const struct packet *p,
				      struct port *as)
{
	struct tunnel *own = tunnel_own();
	struct endpoint *endpoint;
	struct overlay *overlay;
	__u32 number;

	/* An answer to nothing opens nothing. */
	if (!own || !(own->flags & TUNNEL_DIRECT) || is_echo_reply(p))
		return false;
	number = network_at(&p->tuple.dst);
	overlay = number ? overlay_find(number) : NULL;
	if (!overlay || !(overlay->flags & OVERLAY_ROUTED))
		return false;
	endpoint = endpoint_find(number, &p->tuple.dst);
	if (!endpoint || !from_outside(skb, p, number))
		return false;
	as->network = number;
	as->endpoint = endpoint->number;
	as->addr = p->tuple.dst;
	as->port = p->tuple.dport;
	return true;
}

/* Is it a datagram to this host's end of tunnels? What comes in fragments is left to the host's stack and the device. */
static __always_inline bool is_tunnelled(const struct packet *p, const struct tunnel *own)
{
	return p->tuple.proto == IPPROTO_UDP && p->tuple.dport == own->port && own->port &&
	       !p->fragment && addr_equal(&p->tuple.dst, is_ipv6(p) ? &own->addr6 : &own->addr4);
}

/*
 * Has another host sent it: in a tunnel, or as a packet of a network that needs none, or out of the device of encrypted
 * ones, whose packets have no Ethernet header? From_peer finds the network's number, which a tunnel's packet has not yet.
 */
static __always_inline bool is_of_a_peer(const struct __sk_buff *skb, const struct packet *p)
{
	struct tunnel *own = tunnel_own();
	struct scratch *room;
	__u32 network = 0;

	if (!own)
		return false;
	if (p->lacks || !is_tunnelled(p, own)) {
		if (p->lacks && own->wireguard == skb->ifindex)
			network = network_encrypted(p, own);
		else if (!p->lacks && (own->flags & TUNNEL_DIRECT))
			network = network_direct(p);
		if (!network)
			return false;
	}
	room = scratch();
	if (!room)
		return false;
	room->sides.client_network = network;
	return true;
}

/* `asked`: whether its flow is known to be the host's, which is to be remembered then. */
static __always_inline int outside_receive(struct __sk_buff *skb, struct packet *p, bool asked)
{
	struct port *port = NULL, routed = {};
	struct scratch *room = scratch();
	struct conn *conn;
	int verdict;
	bool anew;

	if (!room)
		return not_ours(skb);
	if (is_of_a_peer(skb, p))
		return go_on(skb, TAIL_FROM_PEER);
	if (is_of_another_link(skb, p))
		return not_ours(skb);
	verdict = inbound_begin(skb, p, PARTY_OUTSIDE);
	if (verdict != NO_VERDICT)
		return verdict;
	conn = conn_find(&p->tuple);
	anew = begins_anew(p, conn, PARTY_OUTSIDE);
	if (!conn || anew) {
		if (may_be_published(p))
			port = published(skb, p);
		else if (asked && !conn && room->host_flow_is_new && stays_the_hosts(p))
			host_flow_learn(room, p);
		if (!port && is_routed(skb, p, &routed))
			port = &routed;
		verdict = inbound_open(skb, p, port, PARTY_OUTSIDE, anew);
		if (verdict != NO_VERDICT)
			return verdict;
		conn = conn_opened(&p->tuple);
	}
	return inbound_known(skb, p, conn, PARTY_OUTSIDE);
}
