// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The end of connections. One timer looks at a bounded number of them ten times a second, in
 * turn, and takes away those whose time is over, both halves at once. (A timer for each would
 * need memory at the moment when a connection is confirmed, in which 6.18 often refuses it.)
 * Run once, by a test run: the timer then goes on without any process.
 */
#include "conntrack.h"

#define CLOCK_MONOTONIC 1
#define TICK		(SECOND / 10)
#define MOST		2048 /* connections a tick: well below a millisecond of this CPU */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct sweep {
	struct sweeper *sweeper;
	__u64 now;
};

/* Is it over? The last packet of either direction counts. */
static __always_inline bool expired(const struct tuple *key, const struct conn *original,
				    const struct conn *reply, __u64 now)
{
	__u64 last = original->last_seen;

	if (!reply)
		return true;
	if (reply->last_seen > last)
		last = reply->last_seen;
	return now > last && now - last >= conn_timeout(key, original);
}

static long sweep_one(__u32 index, struct sweep *sweep)
{
	struct conn *original, *reply;
	struct tuple key, other;

	if (bpf_map_pop_elem(&confirmed, &key))
		return 1;
	original = bpf_map_lookup_elem(&conns, &key);
	if (!original || !(original->flags & CONN_ORIGINAL))
		goto gone; /* flushed, or its endpoint was removed */
	other = original->other;
	reply = bpf_map_lookup_elem(&conns, &other);
	if (!expired(&key, original, reply, sweep->now)) {
		/* It has just been taken out, so there is room, unless another came in between. */
		if (!bpf_map_push_elem(&confirmed, &key, 0))
			return 0;
	}
	usage_count(conn_owner(original), -1);
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&conns, &key);
gone:
	__sync_fetch_and_add(&sweep->sweeper->queued, -1);
	return 0;
}

static int sweep(void *map, __u32 *index, struct sweeper *sweeper)
{
	struct sweep sweep = {.sweeper = sweeper, .now = bpf_ktime_get_ns()};
	__u64 count = sweeper->queued;

	sweeper->ticked = sweep.now;
	bpf_loop(count < MOST ? count : MOST, sweep_one, &sweep, 0);
	bpf_timer_start(&sweeper->timer, TICK, 0);
	return 0;
}

/*
 * Returns 0: the timer runs; 1: it could not be started (for lack of memory: ask again). A timer
 * that runs is left to the program that it has, unless the mark says to take it over.
 */
SEC("tc")
int sweep_conns(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);

	if (!sweeper)
		return 1;
	if (skb->mark != SWEEP_TAKE_OVER && sweeper->ticked &&
	    bpf_ktime_get_ns() - sweeper->ticked < 2 * SECOND)
		return 0;
	/* Fails with EBUSY where it was done before, which is as well. */
	bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC);
	if (bpf_timer_set_callback(&sweeper->timer, sweep) ||
	    bpf_timer_start(&sweeper->timer, TICK, 0))
		return 1;
	sweeper->ticked = bpf_ktime_get_ns();
	return 0;
}
