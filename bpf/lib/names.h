/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What questions for names are answered with: whose resolver a packet is sent to, what is known of names, who else is
 * asked. The programs that do it are reached by tail calls only (enum tail).
 */
#pragma once
#include "lib/networks.h"
#include "lib/verdict.h"

#define RESOLVER_ADDRESS bpf_htonl(0x7f00000b) /* 127.0.0.11 */
#define DNS_PORT	 bpf_htons(53)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct long_name_key);
	__type(value, struct name);
} long_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_set_key);
	__type(value, struct name_set);
} name_sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct resolver_key);
	__type(value, struct resolver);
} resolvers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, struct subnet);
} subnets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct upstream_key);
	__type(value, struct upstream_state);
} upstreams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct question_key);
	__type(value, struct question);
} questions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_count_key);
	__type(value, struct name_count);
} name_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TAIL_COUNT);
	__type(key, __u32);
	__type(value, __u32);
} tails SEC(".maps");

/* Room for a message, as struct scratch is for all else. */
struct name_room {
	__u32 endpoint; /* who asks: number */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_room);
} name_rooms SEC(".maps");

static __always_inline struct name_room *name_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&name_rooms, &zero);
}

static __always_inline struct resolver *resolver_of(__u32 endpoint)
{
	struct resolver_key key = {.endpoint = endpoint};

	return bpf_map_lookup_elem(&resolvers, &key);
}

/* Goes on in another program, which finds the parsed packet in the scratch memory; returns if it is not there. */
static __always_inline int go_on(struct __sk_buff *skb, __u32 tail)
{
	bpf_tail_call(skb, &tails, tail);
	return drop(skb, DROP_TAIL);
}
