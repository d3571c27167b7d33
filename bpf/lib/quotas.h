/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Each container's quota of the connection tables, so that it cannot starve the others. The
 * control plane makes and deletes the rows with the endpoints. */
#pragma once
#include "lib/verdict.h"

#define NEVER 1 /* `since` of an endpoint that has not taken part in any connection yet */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct quota_key);
	__type(value, struct quota);
} quotas SEC(".maps");

/* The programs make the rows, with the first connection that arrives. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct arrival_key);
	__type(value, struct arrival);
} arrivals SEC(".maps");

static __always_inline struct quota *quota_find(__u32 endpoint)
{
	struct quota_key key = {.endpoint = endpoint};

	return bpf_map_lookup_elem(&quotas, &key);
}

static __always_inline struct arrival *arrival_find(__u32 endpoint)
{
	struct arrival_key key = {.endpoint = endpoint};

	return bpf_map_lookup_elem(&arrivals, &key);
}

/*
 * May one more connection of the endpoint be confirmed? Those that it has opened and those that have arrived
 * (`arrived`) have each the whole limit: what comes from outside does not use up what the container may open.
 */
static __noinline int quota_has_room(__u32 endpoint, int arrived)
{
	struct quota *quota = quota_find(endpoint);
	struct arrival *arrival;
	__u32 used;

	if (!quota)
		return 1;
	arrival = arrival_find(endpoint);
	used = arrival ? arrival->conns : 0;
	if (!arrived)
		used = quota->conns > used ? quota->conns - used : 0;
	return used < config.max_conns;
}

/*
 * May the container open one more? The count of unanswered openings is halved once per
 * handshake time-out: `pending` itself does not say when it has forgotten one.
 */
__noinline int quota_admits(__u32 endpoint)
{
	struct quota_key key = {.endpoint = endpoint};
	struct quota fresh = {}, *quota;
	__u64 now = bpf_ktime_get_ns();

	quota = quota_find(endpoint);
	if (!quota) {
		fresh.since = now;
		bpf_map_update_elem(&quotas, &key, &fresh, BPF_NOEXIST);
		quota = quota_find(endpoint);
		if (!quota)
			return 1;
	}
	if (quota->since <= NEVER || now - quota->since > config.timeout_handshake * SECOND) {
		quota->since = now;
		quota->openings /= 2;
	}
	if (config.max_conns && quota->conns >= config.max_conns && !quota_has_room(endpoint, 0))
		return 0;
	if (config.max_openings && quota->openings >= config.max_openings)
		return 0;
	__sync_fetch_and_add(&quota->openings, 1);
	return 1;
}

/* The endpoint is about to be asked for something: from now on it may have connections. */
static __always_inline void quota_begins(__u32 endpoint)
{
	struct quota *quota = quota_find(endpoint);

	if (quota && quota->since == NEVER)
		quota->since = bpf_ktime_get_ns();
}

/* Not below zero, though another CPU counts at the same moment: that would be more than any limit. */
static __always_inline void quota_less(__u32 *number)
{
	if (*number && (__s32)__sync_fetch_and_add(number, -1) <= 0)
		__sync_fetch_and_add(number, 1);
}

/* An opening that was counted is none: another CPU has made the same one. */
static __always_inline void quota_returns(__u32 endpoint)
{
	struct quota *quota = quota_find(endpoint);

	if (quota)
		quota_less(&quota->openings);
}

static __always_inline void quota_arrived(__u32 endpoint)
{
	struct arrival *arrival = arrival_find(endpoint), first = {.conns = 1};
	struct arrival_key key = {.endpoint = endpoint};

	if (!arrival) {
		if (!bpf_map_update_elem(&arrivals, &key, &first, BPF_NOEXIST))
			return;
		arrival = arrival_find(endpoint);
	}
	if (arrival)
		__sync_fetch_and_add(&arrival->conns, 1);
}

/*
 * A connection that counts for `owner` was confirmed, so that the opening of `client` was answered.
 * 0: not a container; a client outside pays for nothing.
 */
static __always_inline void quota_confirmed(__u32 owner, __u32 client)
{
	struct quota *quota = owner ? quota_find(owner) : NULL;

	if (quota) {
		__sync_fetch_and_add(&quota->conns, 1);
		if (client == owner)
			quota_less(&quota->openings);
		else
			quota_arrived(owner);
	}
}

/* A confirmed connection of the endpoint has ended. 0: not a container. `arrived`: it had not opened it. */
static __always_inline void quota_ended(__u32 endpoint, bool arrived)
{
	struct quota *quota = endpoint ? quota_find(endpoint) : NULL;
	struct arrival *arrival;

	if (!quota)
		return;
	quota_less(&quota->conns);
	arrival = arrived ? arrival_find(endpoint) : NULL;
	if (arrival)
		quota_less(&arrival->conns);
}
