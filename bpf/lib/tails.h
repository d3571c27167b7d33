/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Programs that others go on in, which hand them what they know in the scratch memory. */
#pragma once
#include "lib/verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TAIL_COUNT);
	__type(key, __u32);
	__type(value, __u32);
} tails SEC(".maps");

/* Goes on in another program; returns if that is not there. */
static __always_inline int go_on(struct __sk_buff *skb, __u32 tail)
{
	bpf_tail_call(skb, &tails, tail);
	return drop(skb, DROP_TAIL);
}

/* A verdict of forward.h, or the rest of the packet's way. */
static __always_inline int forwarded(struct __sk_buff *skb, int verdict)
{
	return verdict == BY_TUNNEL ? go_on(skb, TAIL_TO_PEER) : verdict;
}
