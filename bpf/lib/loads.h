/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How many connections the backends of services have that are chosen by that. */
#pragma once
#include "lib/quotas.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct load_key);
	__type(value, struct load);
} loads SEC(".maps");

/* Adds to a backend's load, as one more connection is confirmed, or ends. A function of its own, for the key's sake. */
__noinline int load_change(__u32 endpoint, const struct ip_addr *addr, int by)
{
	struct load_key key = {.endpoint = endpoint};
	struct load first = {.conns = 1}, *load;

	if (!addr)
		return 0;
	key.addr = *addr;
	load = bpf_map_lookup_elem(&loads, &key);
	if (!load && by > 0 && bpf_map_update_elem(&loads, &key, &first, BPF_NOEXIST))
		load = bpf_map_lookup_elem(&loads, &key);
	if (load && by > 0)
		__sync_fetch_and_add(&load->conns, 1);
	else if (load)
		quota_less(&load->conns);
	return 0;
}

/* `entry`: that of either direction. */
static __always_inline void load_confirmed(const struct conn *entry)
{
	if (!(entry->flags & CONN_COUNTED))
		return;
	if (entry->flags & CONN_ORIGINAL)
		load_change(entry->to_endpoint, &entry->other.src, 1);
	else
		load_change(entry->from_endpoint, &entry->other.dst, 1);
}

/* `flags`: of the connection, which `endpoint` with that address has served. */
static __always_inline void load_ended(__u8 flags, __u32 endpoint, const struct ip_addr *addr)
{
	if ((flags & CONN_COUNTED) && (flags & CONN_CONFIRMED))
		load_change(endpoint, addr, -1);
}
