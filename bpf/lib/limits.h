/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The bandwidth that an endpoint may use: a token bucket a direction, in the form of one time (the "virtual scheduling" of
 * ITU-T I.371): when all that was let through would have passed at the rate. So a packet on each CPU at once needs no
 * lock. The control plane makes and deletes the rows with the endpoints; who has none is not looked up.
 * The last eighth of a bucket is for small packets: acknowledgements, openings and questions are not lost to a bulk
 * transfer that takes all it gets.
 */
#pragma once
#include "lib/scratch.h"

#define BYTE_TIME 8000000000ULL /* ns, at one bit a second */
#define SMALL	  256		/* bytes on the wire, at the most */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct limit_key);
	__type(value, struct limit);
} limits SEC(".maps");

/* Bytes of a packet on a wire: each segment of a large one will have headers of its own there. */
static __always_inline __u32 wire_length(struct __sk_buff *skb, const struct packet *p)
{
	__u32 headers = p->l4 + p->l4_length, length = skb->len;

	if (!skb->gso_size || length <= headers)
		return length;
	return length + ((length - headers - 1) / skb->gso_size) * headers;
}

/*
 * May the endpoint send or receive so many bytes now? A packet that is larger than the bucket passes when that is
 * full, and the next ones wait for longer.
 */
__noinline int limit_admits(__u32 endpoint, __u32 direction, __u32 length)
{
	struct limit_key key = {.endpoint = endpoint, .direction = direction};
	__u64 now = bpf_ktime_get_ns(), due, time, burst;
	struct limit *limit;

	limit = bpf_map_lookup_elem(&limits, &key);
	if (!limit || !limit->rate)
		return 1;
	time = (length * BYTE_TIME + limit->rate - 1) / limit->rate;
	burst = length <= SMALL ? limit->burst : limit->burst - limit->burst / 8;
	due = *(volatile __u64 *)&limit->due;
	if (due < now) /* if another CPU is quicker it is not in the past any more either */
		__sync_val_compare_and_swap(&limit->due, due, now);
	due = __sync_fetch_and_add(&limit->due, time);
	if (due <= now || due + time <= now + burst)
		return 1;
	__sync_fetch_and_add(&limit->due, -time);
	__sync_fetch_and_add(&limit->packets, 1);
	__sync_fetch_and_add(&limit->bytes, length);
	return 0;
}

/* Does it send no more than it may? What comes once more was counted when it came first. */
static __always_inline bool may_send(struct __sk_buff *skb, const struct packet *p,
				     const struct device *device)
{
	return !(device->limited & LIMIT_EGRESS) || p->again ||
	       limit_admits(device->endpoint, LIMIT_EGRESS, wire_length(skb, p));
}
