/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: which backend gets a new connection to a virtual address. */
#pragma once
#include "lib/quotas.h"

#define CHUNK 64 /* slots in a row */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slots_key);
	__type(value, struct slots);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct load);
} loads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_count_key);
	__type(value, struct service_count);
} service_counts SEC(".maps");

static __always_inline struct service *service_find(__u32 number)
{
	struct service_key key = {.service = number};

	return bpf_map_lookup_elem(&services, &key);
}

static __always_inline struct backend *backend_find(__u32 number)
{
	struct backend_key key = {.backend = number};

	return bpf_map_lookup_elem(&backends, &key);
}

/* `number`: of a service or a backend. */
static __always_inline void service_counted(__u32 number, bool opened)
{
	struct service_count_key key = {.number = number};
	struct service_count first = {}, *count = bpf_map_lookup_elem(&service_counts, &key);

	if (!count) {
		bpf_map_update_elem(&service_counts, &key, &first, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&service_counts, &key);
	}
	if (count && opened)
		count->opened++;
	else if (count)
		count->failed++;
}
