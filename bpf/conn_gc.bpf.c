// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Conntrack GC. One timer looks at a bounded number of connections ten times a second, in turn,
 * and deletes those that have timed out, both directions at once. (A timer for each would need
 * memory at the moment when a connection is confirmed, in which 6.18 often refuses it.) A test
 * run starts the timer; it then goes on without any process. Rows of flows are ended in the same way, and what they have
 * counted is added to the totals.
 */
#include "lib/confirm.h"
#include "lib/mappings.h"
#include "lib/tally.h"

#define CLOCK_MONOTONIC 1
#define TICK		(SECOND / 10)
#define MOST		2048 /* connections a tick: takes well below a millisecond */
#define FEWEST		512
#define ROUND		32 /* ticks in which all are looked at, while MOST is enough for that */
#define HURRY		(TICK / 10) /* until those of a removed endpoint are gone */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct gc_run {
	struct gc_timer *timer;
	struct flow_rest *rest;
	__u64 now;
	bool thorough; /* does every original still have its reply? */
};

static __always_inline bool is_past(__u64 last_seen, __u64 timeout, __u64 now)
{
	return now > last_seen && now - last_seen >= timeout;
}

/* Has the connection timed out? The last packet of either direction counts, and may make it a stream. The reply,
 * which no cache has, is looked at only if the original has been silent for long enough, or in a thorough run. */
static __always_inline bool expired(const struct gc_run *run, const struct tuple *key,
				    const struct conn *original, const struct tuple *other)
{
	__u64 last_seen = original->last_seen;
	bool silent = is_past(last_seen, conn_timeout(key, original, last_seen), run->now);
	struct conn *reply;

	if (!silent && !run->thorough)
		return false;
	reply = bpf_map_lookup_elem(&conns, other);
	if (!reply || !silent)
		return !reply;
	if (reply->last_seen > last_seen)
		last_seen = reply->last_seen;
	return is_past(last_seen, conn_timeout(key, original, last_seen), run->now);
}

static long collect_one(__u32 index, struct gc_run *run)
{
	struct conn *original;
	struct tuple key, other;

	if (bpf_map_pop_elem(&confirmed, &key))
		return 1;
	original = bpf_map_lookup_elem(&conns, &key);
	if (!original || !(original->flags & CONN_ORIGINAL))
		goto gone; /* flushed, or its endpoint was removed */
	other = original->other;
	if (!conn_is_left(original) && !expired(run, &key, original, &other)) {
		mapping_refresh(&key, original, run->now);
		/* Its own place in the queue is free, unless another connection has taken it. */
		if (!bpf_map_push_elem(&confirmed, &key, 0))
			return 0;
	}
	conn_ended(original);
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&conns, &key);
gone:
	__sync_fetch_and_add(&run->timer->queued, -1);
	return 0;
}

/* Are there connections to be looked at for the sake of an endpoint that was removed? */
static __always_inline bool is_hurried(struct removals *row, __u64 queued)
{
	__u32 count;

	if (!row)
		return false;
	count = *(volatile __u32 *)&row->count;
	if (row->begun != count) {
		row->begun = count;
		row->left = queued;
	}
	return row->left;
}

/* How many are looked at in a tick. */
static __always_inline __u32 share(__u64 queued, bool hurried)
{
	__u64 part = hurried ? MOST : queued / ROUND;

	if (part < FEWEST)
		part = queued < FEWEST ? queued : FEWEST;
	return part < MOST ? part : MOST;
}

/* Seconds without a packet, after which a row of a flow is ended. Its total stays; and who goes on later has another. */
static __always_inline __u32 flow_timeout(const struct flow_id *key, const struct flow *flow)
{
	bool both = flow->a.packets && flow->b.packets;

	switch (key->proto) {
	case IPPROTO_TCP:
		if (flow_is_closed(flow))
			return config.timeout_closing;
		return both ? config.timeout_established : config.timeout_handshake;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return config.timeout_icmp;
	}
	return both ? config.timeout_udp : config.timeout_udp_exchange;
}

/* Who had that end of the row is gone, or has another address. */
static __always_inline bool is_left(__u32 network, const struct ip_addr *addr, __u32 number)
{
	return number != PARTY_HOST && !recipient_find(network, addr, number);
}

static long tally_one(__u32 index, struct gc_run *run)
{
	struct scratch *room = scratch();
	struct flow_id *key;
	struct flow *flow;
	__u64 seen;

	if (!room)
		return 1;
	key = &room->flow_id;
	if (bpf_map_pop_elem(&flow_queue, key))
		return 1;
	flow = bpf_map_lookup_elem(&flows, key);
	if (!flow)
		goto gone;
	/* Of a network that is gone there are no totals either. */
	if (network_find(key->network)) {
		seen = flow->a.seen > flow->b.seen ? flow->a.seen : flow->b.seen;
		if (!is_past(seen, flow_timeout(key, flow) * SECOND, run->now) &&
		    !is_left(key->network, &key->addr_a, flow->a.from) &&
		    !is_left(key->network, &key->addr_b, flow->b.from) &&
		    !bpf_map_push_elem(&flow_queue, key, 0))
			return 0;
		__sync_lock_test_and_set(&flow->a.ended, 1);
		__sync_lock_test_and_set(&flow->b.ended, 1);
		flow_fold(flow);
	}
	bpf_map_delete_elem(&flows, key);
gone:
	__sync_fetch_and_add(&run->rest->queued, -1);
	return 0;
}

static int collect(void *map, __u32 *index, struct gc_timer *timer)
{
	struct gc_run run = {.timer = timer, .now = bpf_ktime_get_ns()};
	struct removals *row = bpf_map_lookup_elem(&removals, index);
	bool hurried = is_hurried(row, timer->queued);
	__u32 part = share(timer->queued, hurried);

	/* At random: in a fixed order the turn of some connections might never come. */
	run.thorough = timer->queued <= FEWEST || bpf_get_prandom_u32() % 8 == 0;

	timer->ticked = run.now;
	bpf_loop(part, collect_one, &run, 0);
	if (row)
		row->left = row->left > part ? row->left - part : 0;
	run.rest = bpf_map_lookup_elem(&flow_rest, index);
	if (run.rest)
		bpf_loop(share(run.rest->queued, false), tally_one, &run, 0);
	bpf_timer_start(&timer->timer, hurried ? HURRY : TICK, 0);
	return 0;
}

/*
 * Returns 0: the timer runs; 1: it could not be started (for lack of memory: ask again). A timer
 * that runs keeps its program, unless the mark says to take it over. With that of a removed endpoint it counts that alone.
 */
SEC("tc")
int conn_gc(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct gc_timer *timer = bpf_map_lookup_elem(&gc_timers, &zero);
	struct removals *row;

	if (skb->mark == GC_REMOVED) {
		row = bpf_map_lookup_elem(&removals, &zero);
		if (row)
			__sync_fetch_and_add(&row->count, 1);
		return 0;
	}
	if (!timer)
		return 1;
	if (skb->mark != GC_TAKE_OVER && timer->ticked &&
	    bpf_ktime_get_ns() - timer->ticked < 2 * SECOND)
		return 0;
	/* EBUSY: it has been initialised before. */
	bpf_timer_init(&timer->timer, &gc_timers, CLOCK_MONOTONIC);
	if (bpf_timer_set_callback(&timer->timer, collect) ||
	    bpf_timer_start(&timer->timer, TICK, 0))
		return 1;
	timer->ticked = bpf_ktime_get_ns();
	return 0;
}
