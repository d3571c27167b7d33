/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of a connection, and errors about it, are translated and sent on. */
#pragma once
#include "lib/connstate.h"
#include "lib/exits.h"
#include "lib/hairpin.h"
#include "lib/icmp.h"
#include "lib/judging.h"
#include "lib/routes.h"
#include "lib/split.h"
#include "lib/xfrm.h"

/*
 * The host's table leads nowhere, or to where the programs cannot send. `translated`: nobody outside must see
 * the packet as it is.
 */
__noinline int not_routed(struct __sk_buff *skb, const struct packet *p, const struct network *net,
			  int route, int translated)
{
	if (!p || !net)
		return TC_ACT_SHOT;
	switch (route) {
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		/* Who has sent it is another host's member, of whom this one's stack knows nothing. */
		if (p->by_peer)
			return drop(skb, DROP_NO_ROUTE);
		/* The host's stack says so, in its own words. If its packet filter sets a mark that a rule is
		 * about, it has a way after all: then no hop is left. */
		if (translated && rewrite_ttl(skb, p, 1))
			return drop(skb, DROP_REWRITE);
		return to_host(skb, net);
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return translated ? drop(skb, DROP_ENCAP) : to_host(skb, net);
	}
	return drop(skb, DROP_FORWARDING);
}

/* The way of a packet that does not fit it, of which pieces will. Returns as route_fit(). */
__noinline int route_narrow(struct __sk_buff *skb, struct packet *p, const struct network *net,
			    const struct tuple *as)
{
	struct scratch *room = scratch();

	if (!p || !net || !room)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	if (!packet_narrow(skb, p, room->fib.mtu_result))
		return BPF_FIB_LKUP_RET_FRAG_NEEDED;
	return route_find(skb, p, net, as, &room->fib);
}

/* The way of a packet as route_find() says; one that is too big for it, and may be fragmented, is to be cut before it
 * is sent (packet_fit). */
static __always_inline int route_fit(struct __sk_buff *skb, struct packet *p,
				     const struct network *net, const struct tuple *as,
				     struct scratch *room)
{
	int route = route_find(skb, p, net, as, &room->fib);

	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED && p->ttl > 1)
		return route_narrow(skb, p, net, as);
	return route;
}

static __always_inline const struct ip_addr *gateway_of(const struct network *net,
							const struct packet *p)
{
	return is_ipv6(p) ? &net->gateway6 : &net->gateway4;
}

/* The host would send from another address than a masqueraded connection has. */
__noinline int source_is_stale(struct __sk_buff *skb, const struct packet *p,
			       const struct network *net, const struct conn *conn)
{
	struct scratch *room = scratch();
	const struct ip_addr *old;

	if (!p || !net || !conn || !room)
		return 0;
	old = &conn->other.dst;
	/* It is not masqueraded; or it has the uplink's address, where the lookup knows none. */
	if (addr_equal(old, &p->tuple.src) ||
	    (route_source(p, &room->fib, &room->source) && addr_equal(old, &room->source)))
		return 0;
	if (conn->uplink && conn->uplink != uplink_mark(room->fib.ifindex))
		return 1;
	return !host_still_has(skb, p, net, old);
}

/*
 * Has a masqueraded connection to begin anew: the host has lost its address, or its way leads over
 * another device, as with the kernel's MASQUERADE? Else it keeps its address: the host has several, or it is a
 * temporary one that is not preferred any more (RFC 8981).
 */
static __always_inline bool source_has_moved(struct __sk_buff *skb, const struct packet *p,
					     const struct network *net, const struct conn *conn,
					     const struct scratch *room)
{
	return (conn->flags & CONN_ORIGINAL) && !addr_is_source(p, &conn->other.dst, &room->fib) &&
	       source_is_stale(skb, p, net, conn);
}

/* Would a link-local address of the host's leave its link (RFC 4291, 2.5.6)? A published port answers from one. */
static __always_inline bool is_beyond_link(const struct ip_addr *source,
					   const struct bpf_fib_lookup *fib)
{
	return addr_is_linklocal(source) && !linklocal_is_of(fib->ifindex, source);
}

/* Does its way lead into a network of ours? Once it is known that it does not, nothing is looked up. */
static __always_inline bool leads_inside(struct conn *conn, const struct bpf_fib_lookup *fib)
{
	__u8 mark = uplink_mark(fib->ifindex);

	if (conn->uplink == mark)
		return false;
	if (device_find(fib->ifindex, DEVICE_GATEWAY))
		return true;
	if (!conn->uplink)
		conn->uplink = mark;
	return false;
}

/* Who answers at a member's own address, to which routers know the way, may still know its client by another one, or by
 * another port. */
static __always_inline bool is_translated(const struct packet *p, const struct scratch *room)
{
	return !tuple_equal(&room->leaving, &p->tuple);
}

/* Is an IPsec policy about what a container sends? Before the kernel asked, it would have put the client in the place of
 * the gateway, in whose name it has come to a member whose default route is elsewhere. */
static __always_inline bool is_closed_out(struct scratch *room, const struct packet *p,
					  const struct tuple *outside)
{
	if (!xfrm_is_asked())
		return false;
	if (addr_equal(&outside->dst, &p->tuple.dst))
		return xfrm_closed_either(&p->tuple, outside);
	room->probe = p->tuple;
	room->probe.dst = outside->dst;
	room->probe.dport = outside->dport;
	return xfrm_closed_either(&room->probe, outside);
}

/* A container's packet to the outside, by the host's table. `route`: what was found (the rest is in the scratch
 * memory), or NO_ROUTE_YET. NO_VERDICT: the connection is forgotten, as it has to begin anew. */
__noinline int forward_out(struct __sk_buff *skb, struct packet *p, const struct network *from,
			   struct conn *conn, int route)
{
	struct scratch *room = scratch();
	int verdict, said;

	if (!p || !from || !conn || !room)
		return TC_ACT_SHOT;
	said = conn_stands(skb, p, &p->tuple, conn);
	if (said)
		return refused(skb, p, from, said);
	if (p->ttl <= 1)
		return answer_error(skb, p, gateway_of(from, p), 0);
	tuple_reverse(&room->leaving, &conn->other);
	/* An answer of a published port is routed with the address that was asked. */
	if (route == NO_ROUTE_YET) {
		route = route_fit(skb, p, from, conn->flags & CONN_ORIGINAL ? NULL : &room->leaving,
				  room);
		if (route_leads_out(route) && source_has_moved(skb, p, from, conn, room)) {
			conn_forget(&p->tuple);
			return NO_VERDICT;
		}
	}
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return answer_error(skb, p, gateway_of(from, p), room->fib.mtu_result);
	if (route == BPF_FIB_LKUP_RET_NOT_FWDED && is_translated(p, room)) {
		verdict = hairpin(skb, p, from, conn);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	/* Into one of our networks: what a container of ours sends there itself is looked at as if it began. */
	if (route_leads_out(route) && leads_inside(conn, &room->fib))
		return conn->flags & CONN_ORIGINAL ? NO_VERDICT : drop(skb, DROP_ISOLATED);
	if (route_leads_out(route) && is_beyond_link(&room->leaving.src, &room->fib))
		return drop(skb, DROP_BAD_ADDR);
	if (route_leads_out(route) && is_closed_out(room, p, &room->leaving)) {
		if (is_translated(p, room))
			return drop(skb, DROP_XFRM);
		route = BPF_FIB_LKUP_RET_UNSUPP_LWT;
	}
	/* By way of the host's stack its answer comes back like any. What is refused says nothing to anybody. What is to
	 * be cut counts as a whole. */
	if (route_leads_out(route) ||
	    (route == BPF_FIB_LKUP_RET_UNSUPP_LWT && !is_translated(p, room)))
		conn_track(skb, p, &p->tuple, conn);
	if (!route_leads_out(route))
		return not_routed(skb, p, from, route, is_translated(p, room));
	if (packet_fit(skb, p, conn->from_endpoint))
		return drop(skb, DROP_REWRITE);
	if (rewrite_tuple(skb, p, &room->leaving, p->ttl - 1))
		return drop(skb, DROP_REWRITE);
	return to_outside(skb, &room->fib);
}

/* What to_peer finds in the scratch memory: whose network it is, who sends, and what the packet was. The host alone is
 * nobody. */
static __always_inline int by_tunnel(struct scratch *room, const struct packet *p,
				     const struct conn *conn)
{
	room->sides.key = p->tuple;
	room->sides.id = p->ttl;
	/* Until it has answered the backend's host is told, as that may not have heard of it yet. */
	room->tells = !(conn->flags & CONN_ORIGINAL) || conn->state >= CONN_ESTABLISHED
			      ? TELLS_NOTHING
		      : conn->flags & CONN_DSR ? TELLS_ASKED
					       : TELLS_APART;
	room->sides.client_network = conn->to_network;
	room->sides.client_endpoint = conn->from_endpoint == PARTY_HOST	     ? 0
				      : conn->from_endpoint == PARTY_OUTSIDE ? PARTY_PEER
									     : conn->from_endpoint;
	return BY_TUNNEL;
}

/* A packet that was translated is what it has become, for who looks at it next. */
static __always_inline void packet_became(struct packet *p, const struct tuple *to, __u8 ttl)
{
	if (!is_ipv6(p))
		p->ip_check = ipv4_check(p, ttl, addrs_diff(&p->tuple, to, false));
	p->ttl = ttl;
	p->tuple = *to;
}

/* Who is asked has no device here: the host itself, by way of a network's gateway, or a member on another host. */
static __always_inline bool is_beyond(__u32 party)
{
	return party == PARTY_HOST || party == PARTY_PEER;
}

/* The packet becomes what a container, or the host's own socket, is to see, and goes there. `from`: the sender's
 * network, NULL: no container has sent it. A verdict, or BY_TUNNEL. */
__noinline int forward(struct __sk_buff *skb, struct packet *p, const struct network *from,
		       struct conn *conn)
{
	struct scratch *room = scratch();
	struct network *net;
	struct tuple *to;
	__u8 ttl;
	int said;

	if (!p || !conn || !room)
		return TC_ACT_SHOT;
	/* Only a container is told: of the host's sockets, those that ask by its loopback device wait. */
	said = conn_stands(skb, p, &p->tuple, conn);
	if (said)
		return refused(skb, p, from, from ? said : said & ~TOLD);
	ttl = p->ttl > 1 ? p->ttl - 1 : p->ttl;
	to = &room->leaving;
	tuple_reverse(to, &conn->other);
	if (!conn->to_network) {
		conn_track(skb, p, &p->tuple, conn);
		/* The host's own sockets are no hop further. */
		if (rewrite_tuple(skb, p, to, p->ttl))
			return drop(skb, DROP_REWRITE);
		return to_loopback(skb);
	}
	net = network_find(conn->to_network);
	if (!net || (!is_beyond(conn->to_endpoint) &&
		     !recipient_find(conn->to_network, &to->dst, conn->to_endpoint)))
		return drop(skb, DROP_STALE);
	if (conn->from_endpoint == PARTY_OUTSIDE && xfrm_closed_through(to))
		return drop(skb, DROP_XFRM);
	/* Inside, a router speaks with the gateway's address; outside this host is what was asked. The
	 * host's own loopback has no smaller way to tell of: nothing is in between but memory. */
	if (segment_length(skb, p) > net->mtu && conn->from_endpoint != PARTY_HOST &&
	    !packet_narrow(skb, p, net->mtu))
		return answer_error(skb, p, from ? gateway_of(from, p) : &p->tuple.dst, net->mtu);
	conn_track(skb, p, &p->tuple, conn);
	if (packet_fit(skb, p, conn->from_endpoint) || rewrite_tuple(skb, p, to, ttl))
		return drop(skb, DROP_REWRITE);
	if (conn->to_endpoint == PARTY_HOST)
		return to_gateway(skb, p, net);
	if (conn->to_endpoint == PARTY_PEER) {
		by_tunnel(room, p, conn);
		packet_became(p, to, ttl);
		return BY_TUNNEL;
	}
	return deliver(skb, p, &room->recipient, net->mac);
}

static __always_inline bool leads_outside(const struct conn *conn)
{
	return !conn->to_network && conn->to_endpoint != PARTY_HOST;
}

/*
 * Translates an ICMP error, outside and inside, and sends it on. `sender`: who it is, as in
 * from_endpoint; `from`: its network, NULL: none. Returns the verdict, or
 * NO_VERDICT when it is about no connection of ours, OF_A_QUESTION when it is about one to an upstream, from there, or
 * BY_TUNNEL.
 */
__noinline int forward_error(struct __sk_buff *skb, struct packet *p, const struct network *from,
			     __u32 sender)
{
	struct scratch *room = scratch();
	const struct tuple *as;
	struct tuple *key, *inner;
	struct quoted *quoted;
	struct network *net;
	struct conn *conn;
	bool translated, hidden;
	int route, said;

	if (!p || !room)
		return NO_VERDICT;
	quoted = &room->quoted;
	key = &room->about;
	inner = &room->inner;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (!quoted_parse(skb, p, quoted))
		return NO_VERDICT;
	/* The error travels as an answer to what it quotes. */
	tuple_reverse(key, &quoted->tuple);
	conn = conn_find(key);
	if (!conn || conn->from_endpoint != sender || !addr_equal(&p->tuple.dst, &key->dst))
		return NO_VERDICT;
	/* Over TCP it is a connection like any, unless its ends are of two families. */
	if (is_question(conn, key->proto) ||
	    ((conn->flags & CONN_QUESTION) &&
	     addr_is_v4(&conn->other.dst) != addr_is_v4(&key->dst)))
		return OF_A_QUESTION;
	said = conn_stands(skb, NULL, key, conn);
	if (said)
		return drop(skb, said & ~TOLD);
	/* Only a container sends to there. What is left to the host's stack stays as it came. */
	if (!from && leads_outside(conn))
		return NO_VERDICT;
	if (p->lacks && rewrite_into_frame(skb, p))
		return drop(skb, DROP_REWRITE);
	*inner = conn->other;
	/* From the other end itself, or from a router on the way, whose address stays. */
	quoted->outer.src = addr_equal(&p->tuple.src, &key->src) ? inner->dst : p->tuple.src;
	quoted->outer.dst = inner->src;
	quoted->outer.proto = p->tuple.proto;
	if (is_beyond(conn->to_endpoint)) {
		net = network_find(conn->to_network);
		if ((conn->to_network && !net) || rewrite_error(skb, p, quoted, inner))
			return drop(skb, DROP_REWRITE);
		if (conn->to_endpoint == PARTY_HOST)
			return net ? to_gateway(skb, p, net) : to_loopback(skb);
		by_tunnel(room, p, conn);
		packet_became(p, &quoted->outer, p->ttl);
		return BY_TUNNEL;
	}
	if (!conn->to_network) {
		/* From a router within: outside it is seen as the other end is. */
		if (!addr_equal(&key->src, &inner->dst))
			quoted->outer.src = inner->dst;
		as = conn->flags & CONN_ORIGINAL ? NULL : &quoted->outer;
		/* To the gateway, in whose name the client came: of that connection the host knows nothing. */
		hidden = p->by_peer || !addr_equal(&quoted->outer.dst, &p->tuple.dst);
		if (!from || p->ttl <= 1)
			return hidden ? drop(skb, DROP_TTL) : NO_VERDICT;
		translated = !addr_equal(&quoted->outer.src, &p->tuple.src);
		route = route_find(skb, p, from, as, &room->fib);
		/* No error is told of by another (RFC 4443, 2.4 (e)). */
		if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
			return drop(skb, DROP_TOO_BIG);
		if (route == BPF_FIB_LKUP_RET_UNSUPP_LWT && !translated)
			return to_host(skb, from);
		if (!route_leads_out(route) || device_find(room->fib.ifindex, DEVICE_GATEWAY))
			return p->by_peer ? drop(skb, DROP_NO_ROUTE)
			       : hidden	  ? drop(skb, DROP_NO_CONN)
					  : NO_VERDICT;
		if (is_beyond_link(&quoted->outer.src, &room->fib))
			return drop(skb, DROP_BAD_ADDR);
		if (is_closed_out(room, p, &quoted->outer))
			return translated ? drop(skb, DROP_XFRM) : to_host(skb, from);
		if (rewrite_error(skb, p, quoted, inner) || rewrite_ttl(skb, p, p->ttl - 1))
			return drop(skb, DROP_REWRITE);
		return to_outside(skb, &room->fib);
	}
	net = network_find(conn->to_network);
	if (!net || !recipient_find(conn->to_network, &inner->src, conn->to_endpoint))
		return drop(skb, DROP_STALE);
	if (p->length > net->mtu && sender != PARTY_HOST)
		return drop(skb, DROP_TOO_BIG);
	if (rewrite_error(skb, p, quoted, inner) || (p->ttl > 1 && rewrite_ttl(skb, p, p->ttl - 1)))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, &room->recipient, net->mac);
}
