/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which of a sandbox's upstream servers is asked next. In the order in which they are given, but for those that are
 * silent: one that has owed an answer for a second is passed over for ten, then it is tried once. A client that
 * repeats its question, as libcs do from the same port with the same id, is sent to the next one.
 */
#pragma once
#include "lib/names.h"
#include "lib/quotas.h"

#define UPSTREAMS	  3
#define UPSTREAM_PATIENCE (1 * SECOND)	/* for which it may owe an answer */
#define UPSTREAM_REST	  (10 * SECOND) /* for which it is passed over then */
#define QUESTION_REPEATED \
	(30 * SECOND) /* until then the same port and id is the same question: glibc's six tries */
#define NO_UPSTREAM (-1)

static __always_inline void upstream_key_of(const struct upstream *upstream,
					    struct upstream_key *key)
{
	key->addr = upstream->addr;
	key->ifindex = upstream->ifindex;
}

/* Is it passed over? Without effect: for who only wants to know whether anybody can be asked. */
static __always_inline bool upstream_is_resting(const struct upstream *upstream, __u64 now)
{
	struct upstream_state *state;
	struct upstream_key key;

	upstream_key_of(upstream, &key);
	state = bpf_map_lookup_elem(&upstreams, &key);
	/* Another CPU may have read the clock later. */
	return state && (__s64)(state->dead_until - now) > 0;
}

/* Is it passed over by this question? One that has rested is tried by one. */
static __always_inline bool upstream_is_silent(const struct upstream *upstream, __u64 now)
{
	struct upstream_state *state;
	struct upstream_key key;
	__u64 until;
	__s64 owed;

	upstream_key_of(upstream, &key);
	state = bpf_map_lookup_elem(&upstreams, &key);
	if (!state || !state->asked)
		return false;
	until = state->dead_until;
	if (until) {
		if ((__s64)(until - now) > 0)
			return true;
		/* Of those that come now one tries it. */
		return __sync_val_compare_and_swap(&state->dead_until, until,
						   now + UPSTREAM_REST) != until;
	}
	/* What was lost long ago says nothing of now. */
	owed = now - state->asked;
	if (owed < (__s64)UPSTREAM_PATIENCE || owed > (__s64)UPSTREAM_REST)
		return false;
	state->dead_until = now + UPSTREAM_REST;
	return true;
}

/* It is asked. */
static __always_inline void upstream_asked(const struct upstream *upstream, __u64 now)
{
	struct upstream_state first = {.asked = now}, *state;
	struct upstream_key key;

	upstream_key_of(upstream, &key);
	state = bpf_map_lookup_elem(&upstreams, &key);
	if (!state)
		bpf_map_update_elem(&upstreams, &key, &first, BPF_NOEXIST);
	else if (!state->asked || now - state->asked > UPSTREAM_REST)
		state->asked = now;
}

/* It has answered, whatever and whomever. */
static __always_inline void upstream_answered(const struct upstream *upstream)
{
	struct upstream_state *state;
	struct upstream_key key;

	upstream_key_of(upstream, &key);
	state = bpf_map_lookup_elem(&upstreams, &key);
	if (state && state->asked) {
		state->asked = 0;
		state->dead_until = 0;
	}
}

/* Nobody listens there, as its host has said. */
static __always_inline void upstream_is_closed(const struct upstream *upstream, __u64 now)
{
	struct upstream_state *state;
	struct upstream_key key;

	upstream_key_of(upstream, &key);
	state = bpf_map_lookup_elem(&upstreams, &key);
	if (state && state->asked)
		state->dead_until = now + UPSTREAM_REST;
}

/* The place of the next one; NO_UPSTREAM: there is none that this question was not sent to. `first`: the place where
 * to begin. `patient`: if all that are left are silent, one of them it is. */
__noinline int upstream_next(const struct resolver *resolver, __u32 first, __u32 tried, int patient)
{
	__u64 now = bpf_ktime_get_ns();
	int silent = NO_UPSTREAM;
	__u32 i, place;

	if (!resolver)
		return NO_UPSTREAM;
	for (i = 0; i < UPSTREAMS; i++) {
		place = first + i;
		if (place >= UPSTREAMS)
			place -= UPSTREAMS;
		if (place >= UPSTREAMS || (tried & 1 << place) ||
		    addr_is_zero(&resolver->upstreams[place].addr))
			continue;
		if (!upstream_is_silent(&resolver->upstreams[place], now))
			return place;
		if (silent == NO_UPSTREAM)
			silent = place;
	}
	return patient ? silent : NO_UPSTREAM;
}
