// SPDX-License-Identifier: Apache-2.0
/*
 * A test run of a tc program begins with an Ethernet header. This one takes it off, as devices hand over packets that never
 * had one, and goes on with the program that is to be tested: what kind of packet it is the kernel knows already.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define ROOM 4096

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct room {
	__u8 bytes[ROOM];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct room);
} rooms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tested SEC(".maps");

SEC("tc")
int as_bare(struct __sk_buff *skb)
{
	__u32 zero = 0, length = ((skb->len - ETH_HLEN - 1) & (ROOM - 1)) + 1;
	struct room *room = bpf_map_lookup_elem(&rooms, &zero);

	if (!room || skb->len - ETH_HLEN > ROOM)
		return TC_ACT_STOLEN;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, room->bytes, length) ||
	    bpf_skb_store_bytes(skb, 0, room->bytes, length, 0) ||
	    bpf_skb_change_tail(skb, length, 0))
		return TC_ACT_STOLEN;
	bpf_tail_call(skb, &tested, 0);
	return TC_ACT_STOLEN;
}
