/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about translated connections go to the one that sent what they quote. */
#pragma once
#include "lib/nat.h"

/* Reads the quotation of an ICMP error; false: nothing whose connection could be known. */
__noinline int quoted_parse(struct __sk_buff *skb, const struct packet *p, struct quoted *quoted)
{
	struct icmp_header l4;
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (!p || !quoted)
		return 0;
	quoted->l3 = p->l4 + sizeof(l4);
	if (is_ipv6(p)) {
		if (bpf_skb_load_bytes(skb, quoted->l3, &ip6, sizeof(ip6)) || ip6.version != 6)
			return 0;
		quoted->l4 = quoted->l3 + sizeof(ip6);
		__builtin_memcpy(&quoted->tuple.src, &ip6.saddr, 2 * sizeof(struct ip_addr));
		quoted->tuple.proto = ip6.nexthdr;
		if (addr_is_v4(&quoted->tuple.src) || addr_is_v4(&quoted->tuple.dst))
			return 0;
	} else {
		if (bpf_skb_load_bytes(skb, quoted->l3, &ip, sizeof(ip)))
			return 0;
		if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & IP_OFFSET))
			return 0;
		quoted->l4 = quoted->l3 + ip.ihl * 4;
		addr_set_v4(&quoted->tuple.src, ip.saddr);
		addr_set_v4(&quoted->tuple.dst, ip.daddr);
		quoted->tuple.proto = ip.protocol;
	}
	if (quoted->l4 - L3 + sizeof(l4) > p->length ||
	    bpf_skb_load_bytes(skb, quoted->l4, &l4, sizeof(l4)))
		return 0;
	switch (quoted->tuple.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		quoted->tuple.sport = ((__be16 *)&l4)[0];
		quoted->tuple.dport = ((__be16 *)&l4)[1];
		return 1;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (quoted->tuple.proto == (is_ipv6(p) ? IPPROTO_ICMP : IPPROTO_ICMPV6))
			return 0;
		if (l4.type == (is_ipv6(p) ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
			quoted->tuple.sport = l4.id;
		else if (l4.type == (is_ipv6(p) ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
			quoted->tuple.dport = l4.id;
		else
			return 0;
		return 1;
	}
	return 0;
}

/*
 * Translates an ICMP error, outside and inside, and sends it on. `sender`: who it is, as in
 * from_endpoint; `from`: its network, NULL: none. Returns the verdict, or -2 when it is about no connection of ours.
 */
#define NO_SUCH_CONN -2

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
		return NO_SUCH_CONN;
	quoted = &room->quoted;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (!quoted_parse(skb, p, quoted))
		return NO_SUCH_CONN;
	/* The error travels as an answer to what it quotes. */
	tuple_reverse(&key, &quoted->tuple);
	conn = conn_find(&key);
	if (!conn || conn->from_endpoint != sender || !addr_equal(&p->tuple.dst, &key.dst))
		return NO_SUCH_CONN;
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
			return NO_SUCH_CONN;
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
