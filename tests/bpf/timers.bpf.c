// SPDX-License-Identifier: Apache-2.0
/* Takes memory as a timer does, again and again: a run makes as many as its mark says, or until it is refused. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define CLOCK_MONOTONIC 1

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct taken {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 20000);
	__type(key, __u32);
	__type(value, struct taken);
} timers SEC(".maps");

static __u32 next;

static long take(__u32 index, void *ctx)
{
	__u32 key = next;
	struct taken *taken = bpf_map_lookup_elem(&timers, &key);

	if (!taken || bpf_timer_init(&taken->timer, &timers, CLOCK_MONOTONIC))
		return 1;
	next = key + 1;
	return 0;
}

SEC("tc")
int take_timers(struct __sk_buff *skb)
{
	bpf_loop(skb->mark, take, 0, 0);
	return 0;
}
