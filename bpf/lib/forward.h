/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of a connection, and errors about it, are translated and sent on. */
#pragma once
#include "lib/connstate.h"
#include "lib/exits.h"
#include "lib/icmp.h"
#include "lib/routes.h"

/* Does the packet, or each segment that it will be cut into, fit? */
static __always_inline bool fits(const struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	if (skb->gso_size)
		return skb->gso_size + (p->l4 - L3) + sizeof(struct tcphdr) <= mtu;
	return p->length <= mtu;
}

/* The packet becomes what the other side is to see, and goes there. `from`: the sender's network,
 * NULL: no container has sent it. `route`: what was found to where it goes outside (the rest is in the
 * scratch memory), or NO_ROUTE_YET. */
static __noinline int forward(struct __sk_buff *skb, const struct packet *p,
			      const struct network *from, struct conn *conn, long route)
{
	struct scratch *room = scratch();
	const struct ip_addr *gateway;
	struct endpoint *endpoint;
	struct network *net;
	bool to_host_socket;
	struct tuple to;

	if (!p || !conn || !room)
		return TC_ACT_SHOT;
	gateway = !from ? NULL : is_ipv6(p) ? &from->gateway6 : &from->gateway4;
	tuple_reverse(&to, &conn->other);
	if (!conn->to_network) {
		if (!from)
			return not_ours(skb);
		if (conn->to_endpoint != PARTY_HOST) {
			if (p->ttl <= 1)
				return answer_error(skb, p, gateway, 0);
			if (route == NO_ROUTE_YET)
				route = route_find(skb, p, from, &to.dst, &room->fib);
			if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
				return answer_error(skb, p, gateway, room->fib.mtu_result);
			/* Before anything is changed: the host's stack says what is wrong. */
			if (!route_leads_out(route))
				return to_host(skb, from);
		}
		conn_track(skb, p, conn);
		/* The host's own sockets are no hop further. */
		to_host_socket = conn->to_endpoint == PARTY_HOST;
		if (rewrite_tuple(skb, p, &to, to_host_socket ? p->ttl : p->ttl - 1))
			return drop(skb, DROP_REWRITE);
		return to_host_socket ? to_loopback(skb) : to_outside(skb, &room->fib);
	}
	net = network_find(conn->to_network);
	endpoint = endpoint_find(conn->to_network, &to.dst);
	if (!net || !endpoint || endpoint->number != conn->to_endpoint)
		return drop(skb, DROP_STALE);
	/* Inside, a router speaks with the gateway's address; outside this host is what was asked. The
	 * host's own loopback has no smaller way to tell of: nothing is in between but memory. */
	if (p->dont_fragment && conn->from_endpoint != PARTY_HOST && !fits(skb, p, net->mtu))
		return answer_error(skb, p, from ? gateway : &p->tuple.dst, net->mtu);
	conn_track(skb, p, conn);
	if (rewrite_tuple(skb, p, &to, p->ttl > 1 ? p->ttl - 1 : p->ttl))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, endpoint, net->mac);
}

/*
 * Translates an ICMP error, outside and inside, and sends it on. `sender`: who it is, as in
 * from_endpoint; `from`: its network, NULL: none. Returns the verdict, or
 * NO_VERDICT when it is about no connection of ours.
 */
static __noinline int forward_error(struct __sk_buff *skb, const struct packet *p,
				    const struct network *from, __u32 sender)
{
	struct scratch *room = scratch();
	struct endpoint *endpoint;
	struct tuple key, inner;
	struct quoted *quoted;
	struct network *net;
	struct conn *conn;

	if (!p || !room)
		return NO_VERDICT;
	quoted = &room->quoted;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (!quoted_parse(skb, p, quoted))
		return NO_VERDICT;
	/* The error travels as an answer to what it quotes. */
	tuple_reverse(&key, &quoted->tuple);
	conn = conn_find(&key);
	if (!conn || conn->from_endpoint != sender || !addr_equal(&p->tuple.dst, &key.dst))
		return NO_VERDICT;
	inner = conn->other;
	/* From the other end itself, or from a router on the way, whose address stays. */
	quoted->outer.src = addr_equal(&p->tuple.src, &key.src) ? inner.dst : p->tuple.src;
	quoted->outer.dst = inner.src;
	if (conn->to_endpoint == PARTY_HOST) {
		if (rewrite_error(skb, p, quoted, &inner))
			return drop(skb, DROP_REWRITE);
		return to_loopback(skb);
	}
	if (!conn->to_network) {
		if (!from || p->ttl <= 1 ||
		    !route_leads_out(route_find(skb, p, from, &quoted->outer.dst, &room->fib)))
			return NO_VERDICT;
		if (rewrite_error(skb, p, quoted, &inner) || rewrite_ttl(skb, p))
			return drop(skb, DROP_REWRITE);
		return to_outside(skb, &room->fib);
	}
	net = network_find(conn->to_network);
	endpoint = endpoint_find(conn->to_network, &inner.src);
	if (!net || !endpoint || endpoint->number != conn->to_endpoint)
		return drop(skb, DROP_STALE);
	if (rewrite_error(skb, p, quoted, &inner) || (p->ttl > 1 && rewrite_ttl(skb, p)))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, endpoint, net->mac);
}
