/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Networks by number, and the devices that belong to them. */
#pragma once
#include "lib/addr.h"

#define MAX_NETWORKS 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct device_key);
	__type(value, struct device);
} devices SEC(".maps");

static __always_inline struct network *network_find(__u32 number)
{
	struct network *network = bpf_map_lookup_elem(&networks, &number);

	return network && (network->flags & NETWORK_ACTIVE) ? network : NULL;
}

static __always_inline struct device *device_find(__u32 ifindex, __u32 kind)
{
	struct device_key key = {.ifindex = ifindex};
	struct device *device = bpf_map_lookup_elem(&devices, &key);

	return device && device->kind == kind ? device : NULL;
}

/* A device that leads outside, of whichever kind. */
static __always_inline struct device *uplink_find(__u32 ifindex)
{
	struct device_key key = {.ifindex = ifindex};
	struct device *device = bpf_map_lookup_elem(&devices, &key);

	return device && (device->kind == DEVICE_UPLINK || device->kind == DEVICE_TUNNEL ||
			  device->kind == DEVICE_PARENT)
		       ? device
		       : NULL;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct host);
} host SEC(".maps");

/* What the control plane has observed of the host. */
static __always_inline struct host *host_facts(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&host, &zero);
}

/* The host's own addresses, as of the last refresh. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address_key);
	__type(value, struct address);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct local_prefix_key);
	__type(value, struct address);
} local_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct linklocal_key);
	__type(value, struct address);
} linklocals SEC(".maps");

/* A link-local address is the host's on the link of a device that has it, and on no other (RFC 4007, 5). */
static __always_inline bool linklocal_is_of(__u32 ifindex, const struct ip_addr *addr)
{
	struct linklocal_key key = {.addr = *addr, .ifindex = ifindex};

	return bpf_map_lookup_elem(&linklocals, &key);
}

/* Not for link-local ones. */
static __always_inline bool address_is_known(const struct ip_addr *addr)
{
	struct local_prefix_key prefix = {.prefixlen = 128, .addr = *addr};
	struct address_key key = {.addr = *addr};

	return bpf_map_lookup_elem(&addresses, &key) ||
	       bpf_map_lookup_elem(&local_prefixes, &prefix);
}
