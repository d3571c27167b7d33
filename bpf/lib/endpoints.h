/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A network's members: by address for unicast, by slot for broadcast and multicast. */
#pragma once
#include "lib/networks.h"
#include "lib/scratch.h"

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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct router_key);
	__type(value, struct endpoint);
} routers SEC(".maps");

static __always_inline struct endpoint *endpoint_find(__u32 network, const struct ip_addr *addr)
{
	struct endpoint_key key = {.network = network, .addr = *addr};

	return bpf_map_lookup_elem(&endpoints, &key);
}

/* The member with this MAC, if it forwards: it gets what is sent to it, whatever the address inside. */
static __always_inline struct endpoint *router_at(__u32 network, const __u8 *mac)
{
	struct router_key key = {.network = network};

	__builtin_memcpy(key.mac, mac, sizeof(key.mac));
	return bpf_map_lookup_elem(&routers, &key);
}

/* Who gets what is for this address in a connection of that endpoint: the endpoint has the address, or the address
 * is behind it. In the scratch memory, as it is of one map or the other; 0: the endpoint is gone. */
__noinline int recipient_find(__u32 network, const struct ip_addr *addr, __u32 number)
{
	struct router_key key = {.network = network, .endpoint = number};
	struct scratch *room = scratch();
	struct endpoint *endpoint;

	if (!addr || !room)
		return 0;
	endpoint = endpoint_find(network, addr);
	if (!endpoint)
		endpoint = bpf_map_lookup_elem(&routers, &key);
	if (!endpoint || endpoint->number != number)
		return 0;
	room->recipient = *endpoint;
	return 1;
}
