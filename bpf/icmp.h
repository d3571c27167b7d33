/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about translated connections go to the one that sent what they quote. */
#pragma once
#include "nat.h"

/* Reads the quotation of an ICMP error; false: nothing whose connection could be known. */
static __noinline int quoted_parse(struct __sk_buff *skb, const struct packet *p,
				   struct quoted *quoted)
{
	struct icmp_header icmp;
	struct iphdr ip;

	if (!p || !quoted)
		return 0;
	quoted->l3 = p->l4 + sizeof(icmp);
	if (bpf_skb_load_bytes(skb, quoted->l3, &ip, sizeof(ip)))
		return 0;
	if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & IP_OFFSET))
		return 0;
	quoted->l4 = quoted->l3 + ip.ihl * 4;
	if (bpf_skb_load_bytes(skb, quoted->l4, &icmp, sizeof(icmp)))
		return 0;
	addr_set_v4(&quoted->tuple.src, ip.saddr);
	addr_set_v4(&quoted->tuple.dst, ip.daddr);
	quoted->tuple.proto = ip.protocol;
	switch (ip.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		quoted->tuple.sport = ((__be16 *)&icmp)[0];
		quoted->tuple.dport = ((__be16 *)&icmp)[1];
		return 1;
	case IPPROTO_ICMP:
		if (icmp.type == ICMP_ECHO)
			quoted->tuple.sport = icmp.id;
		else if (icmp.type == ICMP_ECHOREPLY)
			quoted->tuple.dport = icmp.id;
		else
			return 0;
		return 1;
	}
	return 0;
}

/*
 * Translates an ICMP error, outside and inside, and sends it on. `endpoint`: who sends it, 0:
 * not a container. Returns the verdict, or -2 when it is about no connection of ours.
 */
#define NO_SUCH_CONN -2

static __noinline int forward_error(struct __sk_buff *skb, const struct packet *p,
				    const struct network *from, __u32 sender)
{
	struct quoted quoted = {};
	struct endpoint *endpoint;
	struct bpf_fib_lookup fib;
	struct tuple key, inner;
	struct network *net;
	struct conn *conn;

	if (!p || p->fragment || !quoted_parse(skb, p, &quoted))
		return NO_SUCH_CONN;
	/* The error travels as an answer to what it quotes. */
	tuple_reverse(&key, &quoted.tuple);
	conn = conn_find(&key);
	if (!conn || conn->from_endpoint != sender || p->tuple.dst.word[3] != key.dst.word[3])
		return NO_SUCH_CONN;
	inner = conn->other;
	quoted.dst = inner.src.word[3];
	/* From the other end itself, or from a router on the way, whose address stays. */
	quoted.src = p->tuple.src.word[3];
	if (quoted.src == key.src.word[3])
		quoted.src = inner.dst.word[3];
	if (!conn->to_network) {
		if (!from || p->ttl <= 1 || !route_leads_out(route_find(skb, p, from, quoted.dst, &fib)))
			return NO_SUCH_CONN;
		if (rewrite_error(skb, p, &quoted, &inner))
			return drop(skb, DROP_REWRITE);
		return to_outside(skb, p, &fib);
	}
	net = network_find(conn->to_network);
	endpoint = endpoint_find(conn->to_network, &inner.src);
	if (!net || !endpoint || endpoint->number != conn->to_endpoint)
		return drop(skb, DROP_STALE);
	if (rewrite_error(skb, p, &quoted, &inner) || (p->ttl > 1 && rewrite_ttl(skb, p)))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, endpoint, net->mac);
}
