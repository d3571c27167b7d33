/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The only place that counts, reports and turns a decision into a return value. */
#pragma once
#include "lib/scratch.h"

#define SECOND	 1000000000ULL /* ns */
#define WAY_LIFE (1ULL << 28)  /* ns, a quarter of a second: so long what was found counts */

#define NO_VERDICT    -2 /* none of TC_ACT_*: nothing was decided, the packet goes on */
#define OF_A_QUESTION -3 /* likewise: that is for another program to decide (enum tail) */
#define BY_TUNNEL     -4 /* likewise: it has been translated, and is for a member on another host */
#define OPENS	      -5 /* likewise: it begins a connection, which another program opens (begin.bpf.c) */

/* Set by the loader before the verifier sees the program, so that branches on it are free. */
const volatile struct config config SEC(".rodata.config");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_COUNT);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Returns how often the reason has been seen on this CPU, this time included. */
static __always_inline __u64 count_bytes(__u32 reason, __u32 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &reason);

	if (!counter)
		return 0;
	counter->packets++;
	counter->bytes += bytes;
	return counter->packets;
}

static __always_inline __u64 count(struct __sk_buff *skb, __u32 reason)
{
	return count_bytes(reason, skb->len);
}

static __noinline int report(struct __sk_buff *skb, __u32 reason)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 length;

	if (!event)
		return 0;
	event->when = bpf_ktime_get_ns();
	event->reason = reason;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->pad = 0;
	length = skb->len < sizeof(event->head) ? skb->len : sizeof(event->head);
	__builtin_memset(event->head, 0, sizeof(event->head));
	/* Less than a header there never is; Linux 6.1 draws no conclusion from a comparison with zero. */
	if (length < ETH_HLEN || bpf_skb_load_bytes(skb, 0, event->head, length))
		length = 0;
	event->captured = length;
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline int drop(struct __sk_buff *skb, __u32 reason)
{
	struct scratch *room = scratch();
	__u64 seen = count(skb, reason);

	if (room)
		room->packet.reason = reason;
	if (config.sample && seen % config.sample == 1 % config.sample)
		report(skb, reason);
	return TC_ACT_SHOT;
}

/* The frame has served its purpose: it was answered, copied or needs no action. */
static __always_inline int consume(struct __sk_buff *skb, __u32 reason)
{
	count(skb, reason);
	return TC_ACT_SHOT;
}

/* Not ours: the next program, and then the host's stack, sees it untouched. */
static __always_inline int not_ours(struct __sk_buff *skb)
{
	count(skb, NOT_OURS);
	return TC_ACT_UNSPEC;
}
