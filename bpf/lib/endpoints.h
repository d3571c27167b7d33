/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A network's members: by address for unicast, by slot for broadcast and multicast. */
#pragma once
#include "lib/networks.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, struct member);
} members SEC(".maps");

static __always_inline struct endpoint *endpoint_find(__u32 network, const struct ip_addr *addr)
{
	struct endpoint_key key = {.network = network, .addr = *addr};

	return bpf_map_lookup_elem(&endpoints, &key);
}
