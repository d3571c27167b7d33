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
#define FEWEST		512
#define ROUND		32 /* ticks in which all are looked at, while MOST is enough for that */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct sweep {
	struct sweeper *sweeper;
	__u64 now;
	bool thorough; /* does every original still have its reply? */
};

static __always_inline bool is_past(__u64 last_seen, __u64 timeout, __u64 now)
{
	return now > last_seen && now - last_seen >= timeout;
}

/* Is it over? The last packet of either direction counts. The reply half, which no cache has, is
 * looked at only if the original has been silent for long enough, or now and then. */
static __always_inline bool expired(const struct sweep *sweep, const struct tuple *key,
				    const struct conn *original, const struct tuple *other)
{
	__u64 timeout = conn_timeout(key, original);
	bool silent = is_past(original->last_seen, timeout, sweep->now);
	struct conn *reply;

	if (!silent && !sweep->thorough)
		return false;
	reply = bpf_map_lookup_elem(&conns, other);
	return !reply || (silent && is_past(reply->last_seen, timeout, sweep->now));
}

static long sweep_one(__u32 index, struct sweep *sweep)
{
	struct conn *original;
	struct tuple key, other;

	if (bpf_map_pop_elem(&confirmed, &key))
		return 1;
	original = bpf_map_lookup_elem(&conns, &key);
	if (!original || !(original->flags & CONN_ORIGINAL))
		goto gone; /* flushed, or its endpoint was removed */
	other = original->other;
	if (!expired(sweep, &key, original, &other)) {
		/* It has just been taken out, so there is room, unless another came in between. */
		if (!bpf_map_push_elem(&confirmed, &key, 0))
			return 0;
	}
	usage_ended(conn_owner(original));
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&conns, &key);
gone:
	__sync_fetch_and_add(&sweep->sweeper->queued, -1);
	return 0;
}

/* How many are looked at in a tick. */
static __always_inline __u32 share(__u64 queued)
{
	__u64 part = queued / ROUND;

	if (part < FEWEST)
		part = queued < FEWEST ? queued : FEWEST;
	return part < MOST ? part : MOST;
}

static int sweep(void *map, __u32 *index, struct sweeper *sweeper)
{
	struct sweep sweep = {.sweeper = sweeper, .now = bpf_ktime_get_ns()};

	/* By chance: in a fixed order some connections' turn might never come. */
	sweep.thorough = sweeper->queued <= FEWEST || bpf_get_prandom_u32() % 8 == 0;

	sweeper->ticked = sweep.now;
	bpf_loop(share(sweeper->queued), sweep_one, &sweep, 0);
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
