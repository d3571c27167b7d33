/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What one container takes of the connection tables, so that it cannot starve the others. The
 * control plane makes and deletes the rows with the endpoints. */
#pragma once
#include "verdict.h"

#define SECOND 1000000000ULL
#define NEVER  1 /* `since` of an endpoint that has not taken part in any connection yet */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct usage_key);
	__type(value, struct usage);
} usages SEC(".maps");

static __always_inline struct usage *usage_find(__u32 endpoint)
{
	struct usage_key key = {.endpoint = endpoint};

	return bpf_map_lookup_elem(&usages, &key);
}

/*
 * May the container open one more? Openings that nobody answers are forgotten by halves, once
 * per handshake time-out: `pending` itself does not say when it has forgotten one.
 */
__noinline int usage_admits(__u32 endpoint)
{
	struct usage_key key = {.endpoint = endpoint};
	struct usage fresh = {}, *usage;
	__u64 now = bpf_ktime_get_ns();

	usage = usage_find(endpoint);
	if (!usage) {
		fresh.since = now;
		bpf_map_update_elem(&usages, &key, &fresh, BPF_NOEXIST);
		usage = usage_find(endpoint);
		if (!usage)
			return 1;
	}
	if (usage->since <= NEVER || now - usage->since > config.timeout_handshake * SECOND) {
		usage->since = now;
		usage->openings /= 2;
	}
	if (config.max_conns && usage->conns >= config.max_conns)
		return 0;
	if (config.max_openings && usage->openings >= config.max_openings)
		return 0;
	__sync_fetch_and_add(&usage->openings, 1);
	return 1;
}

/* The endpoint is about to be asked for something: from now on it may have connections. */
static __always_inline void usage_begins(__u32 endpoint)
{
	struct usage *usage = usage_find(endpoint);

	if (usage && usage->since == NEVER)
		usage->since = bpf_ktime_get_ns();
}

/* Not below zero, though another CPU counts at the same moment: that would be more than any limit. */
static __always_inline void usage_less(__u32 *number)
{
	if (*number && (__s32)__sync_fetch_and_add(number, -1) <= 0)
		__sync_fetch_and_add(number, 1);
}

/*
 * A connection that counts for `owner` was confirmed, so that the opening of `client` was answered.
 * 0: not a container; a client outside pays for nothing.
 */
static __always_inline void usage_confirmed(__u32 owner, __u32 client)
{
	struct usage *usage = owner ? usage_find(owner) : NULL;

	if (usage)
		__sync_fetch_and_add(&usage->conns, 1);
	if (client != owner)
		usage = client ? usage_find(client) : NULL;
	if (usage)
		usage_less(&usage->openings);
}

/* A confirmed connection of the endpoint has ended. 0: not a container. */
static __always_inline void usage_ended(__u32 endpoint)
{
	struct usage *usage = endpoint ? usage_find(endpoint) : NULL;

	if (usage)
		usage_less(&usage->conns);
}
