// SPDX-License-Identifier: Apache-2.0
/* A test run takes every packet for an Ethernet frame, and one that begins with its IP header for somebody else's. Here it
 * is made the host's, as on a device without Ethernet headers, and handed on. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PACKET_HOST 0
#define TC_ACT_STOLEN 4

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} hooks SEC(".maps");

SEC("tc")
int bare(struct __sk_buff *skb)
{
	if (!bpf_skb_change_type(skb, PACKET_HOST))
		bpf_tail_call(skb, &hooks, 0);
	return TC_ACT_STOLEN;
}
