/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The key of what two ends have to do with each other, the same for both directions. */
#pragma once
#include "lib/addr.h"

/* The packet's end of a row, and the other one: true, if `b` sends. Anything that is an order is one. `ports`: it has its
 * own, and not a fragment's none. (A function of its own spares the verifier each order in whatever follows.) */
__noinline int flow_id_of(const struct tuple *t, __u32 ports, __u32 network, struct flow_id *id)
{
	const struct ip_addr *src, *dst;
	__be16 sport, dport;
	bool b_sends;
	__u32 i;

	if (!t || !id)
		return 0;
	src = &t->src;
	dst = &t->dst;
	sport = ports ? t->sport : 0;
	dport = ports ? t->dport : 0;
	b_sends = sport > dport;
#pragma clang loop unroll(full)
	for (i = 0; i < 4; i++)
		if (src->word[i] != dst->word[i])
			b_sends = src->word[i] > dst->word[i];
	id->addr_a = b_sends ? *dst : *src;
	id->addr_b = b_sends ? *src : *dst;
	id->port_a = b_sends ? dport : sport;
	id->port_b = b_sends ? sport : dport;
	id->proto = t->proto;
	id->pad = 0;
	id->network = network;
	return b_sends;
}
