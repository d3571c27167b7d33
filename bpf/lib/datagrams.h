/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Datagrams of which fragments are on the way: what is known of each, and which pieces have been seen.
 *
 * Two CPUs can have pieces of one at the same time. A row of `fragments` appears whole, with the first fragment
 * in it; each later piece is written to a place of its own and then compared with all others, so that of two
 * that overlap one at least finds the other.
 */
#pragma once
#include "lib/rewrite.h"

#define FRAGMENT_TIMEOUT (30 * 1000000000ULL) /* ns, as net.ipv4.ipfrag_time */
#define FRAGMENT_PIECES	 64
#define QUEUE_SLOTS	 8 /* frames of one datagram that wait for its first fragment, */
#define QUEUE_DATAGRAMS	 8 /* and datagrams of one source of which some do */

/* Datagrams of one source that are followed at a time: its next one ends the oldest, as
 * net.ipv4.ipfrag_max_dist fragments do in the kernel. So an identification that is used again finds nothing
 * of an earlier datagram, and who floods them forgets its own ones only. */
#define FRAGMENT_DISTANCE 64

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct frag_queue_key);
	__type(value, struct frag_queue);
} frag_queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct frag_source_key);
	__type(value, struct frag_source);
} frag_sources SEC(".maps");

/* Of a datagram that begins. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fragment);
} new_fragments SEC(".maps");

/* Stays zero. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frag_source);
} no_sources SEC(".maps");

static __always_inline void fragment_key_of(const struct packet *p, __u32 endpoint,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->tuple.src;
	key->dst = p->tuple.dst;
	key->id = p->fragment_id;
	key->endpoint = endpoint;
	/* The fragments of an IPv6 datagram may name different protocols (RFC 8200, 4.5). */
	key->proto = is_ipv6(p) ? 0 : p->tuple.proto;
}

/* The key of the packet at hand; NULL: there is no room. */
static __always_inline struct fragment_key *fragment_key_new(const struct packet *p, __u32 endpoint)
{
	struct scratch *room = scratch();

	if (!room)
		return NULL;
	fragment_key_of(p, endpoint, &room->fragment);
	return &room->fragment;
}

static __always_inline __u32 piece_of(const struct packet *p)
{
	struct piece piece = {.from = p->fragment_from, .to = p->fragment_to};

	return *(__u32 *)&piece;
}

/* What is known of a fragment's datagram; NULL: nothing. */
static __always_inline struct fragment *fragment_find(const struct fragment_key *key)
{
	struct fragment *fragment = bpf_map_lookup_elem(&fragments, key);

	if (fragment && bpf_ktime_get_ns() - fragment->since > FRAGMENT_TIMEOUT)
		return NULL;
	return fragment;
}

/* Walks the queued frames of one datagram, slot after slot. */
struct queue_walk {
	struct frag_queue_key key;
	struct __sk_buff *skb;
	struct frag_queue *frame; /* that is to be queued */
	__u32 behind;		  /* the first fragment's end */
	int result;
};

static long forget_one(__u32 slot, struct frag_queue_key *key)
{
	key->slot = slot;
	bpf_map_delete_elem(&frag_queue, key);
	return 0;
}

/* The source's datagram with that number is too old; `waiting`: if its first fragment is not there either. */
static __noinline int fragment_forget(const struct fragment_key *key, __u16 number, bool waiting)
{
	struct frag_queue_key queued = {};
	struct fragment *fragment;

	if (!key)
		return 0;
	queued.fragment = *key;
	fragment = bpf_map_lookup_elem(&fragments, &queued.fragment);
	if (!fragment || fragment->number != number || (waiting && fragment->known))
		return 0;
	if (!fragment->known)
		bpf_loop(QUEUE_SLOTS, forget_one, &queued, 0);
	bpf_map_delete_elem(&fragments, &queued.fragment);
	return 0;
}

/* Another datagram of its source begins. Returns the number that it gets. */
static __noinline int source_count(const struct fragment_key *key)
{
	struct frag_source_key by = {};
	struct frag_source *source;
	__u32 zero = 0, number;
	void *blank;

	if (!key)
		return 0;
	by.endpoint = key->endpoint;
	/* Whichever addresses a container sends from, its share is one. */
	if (by.endpoint == PARTY_OUTSIDE || by.endpoint == PARTY_HOST)
		by.src = key->src;
	source = bpf_map_lookup_elem(&frag_sources, &by);
	if (!source) {
		blank = bpf_map_lookup_elem(&no_sources, &zero);
		if (!blank)
			return 0;
		bpf_map_update_elem(&frag_sources, &by, blank, BPF_NOEXIST);
		source = bpf_map_lookup_elem(&frag_sources, &by);
		if (!source)
			return 0;
	}
	number = __sync_fetch_and_add(&source->begun, 1);
	fragment_forget(&source->datagrams[number % FRAGMENT_DISTANCE], number - FRAGMENT_DISTANCE,
			false);
	fragment_forget(&source->datagrams[(number - QUEUE_DATAGRAMS) % FRAGMENT_DISTANCE],
			number - QUEUE_DATAGRAMS, true);
	source->datagrams[number % FRAGMENT_DISTANCE] = *key;
	return (__u16)number;
}

/* How a datagram begins. */
enum beginning {
	BEGIN_WAITING, /* with a later fragment: nothing is known yet */
	BEGIN_OURS,
	BEGIN_FOREIGN, /* it is the host's */
	BEGIN_REFUSED, /* its first fragment was dropped: so are the others */
};

/*
 * A datagram begins, with its first fragment unless it is waiting for that: the one whose key is in the scratch memory
 * (fragment_key_new; before 6.4 what a global function is handed is no key of a map). What was known under the same
 * identification is of an earlier one. Returns 0, or a drop reason.
 */
__noinline int fragment_begin(const struct packet *p, __u32 how)
{
	struct scratch *room = scratch();
	struct fragment_key *key;
	struct fragment *fragment;
	__u32 zero = 0;

	fragment = bpf_map_lookup_elem(&new_fragments, &zero);
	if (!p || !room || !fragment)
		return DROP_FRAGMENT;
	key = &room->fragment;
	__builtin_memset(fragment, 0, sizeof(*fragment));
	fragment->since = bpf_ktime_get_ns();
	fragment->number = source_count(key);
	if (how != BEGIN_WAITING) {
		fragment->known = 1;
		fragment->foreign = how == BEGIN_FOREIGN;
		fragment->refused = how == BEGIN_REFUSED ? DROP_FRAGMENT : 0;
		fragment->proto = p->tuple.proto;
		fragment->has_ports = p->has_ports;
		fragment->sport = p->tuple.sport;
		fragment->dport = p->tuple.dport;
		fragment->seen[0].from = p->fragment_from;
		fragment->seen[0].to = p->fragment_to;
		fragment->pieces = fragment->claimed = 1;
		fragment->bytes = p->fragment_to;
	}
	if (bpf_map_update_elem(&fragments, key, fragment,
				how == BEGIN_WAITING ? BPF_NOEXIST : BPF_ANY) &&
	    how != BEGIN_WAITING)
		return DROP_FRAGMENT;
	/* The row is there before anybody looks for what is queued: a full barrier. */
	__sync_lock_test_and_set(&fragment->claimed, 0);
	return 0;
}

/* The datagram counts among its source's, though its first fragment has not arrived. */
static __always_inline void fragment_wait(const struct packet *p, const struct fragment_key *key)
{
	struct fragment *fragment = bpf_map_lookup_elem(&fragments, key);
	__u64 now = bpf_ktime_get_ns(), since;

	if (!fragment) {
		fragment_begin(p, BEGIN_WAITING);
		return;
	}
	/* The row of a datagram that has timed out becomes this one's; to delete it could be to delete what
	 * another CPU has put in its place. */
	since = fragment->since;
	if (now - since > FRAGMENT_TIMEOUT &&
	    __sync_val_compare_and_swap(&fragment->since, since, now) == since) {
		fragment->known = 0;
		fragment->number = source_count(key);
	}
}

struct piece_search {
	struct fragment *fragment;
	__u32 own; /* the place of the piece that is compared */
	__u32 from, to;
	__u32 bytes; /* that all make up together */
	bool last;
	bool overlaps, doubled;
};

static long piece_compare(__u32 index, struct piece_search *search)
{
	volatile __u32 *place;
	struct piece piece;
	__u32 both;

	if (index >= FRAGMENT_PIECES)
		return 1;
	place = (volatile __u32 *)&search->fragment->seen[index];
	both = *place;
	piece = *(struct piece *)&both;
	if (index != search->own && search->from == piece.from && search->to == piece.to) {
		/* Networks double packets: what is there already is not needed, and does no harm. Of
		 * two that come at once the one in front counts. */
		if (index > search->own)
			*place = 0;
		else
			search->doubled = true;
		return 0;
	}
	search->bytes += piece.to - piece.from;
	if (index == search->own)
		return 0;
	if (search->from < piece.to && search->to > piece.from)
		search->overlaps = true;
	/* Behind the datagram's end. */
	if (search->last && piece.to > search->to)
		search->overlaps = true;
	return 0;
}

/* Records a later fragment's piece. Returns 0, or a drop reason. */
static __always_inline int fragment_record(struct fragment *fragment, const struct packet *p,
					   bool *complete)
{
	struct piece_search search = {.fragment = fragment,
				      .from = p->fragment_from,
				      .to = p->fragment_to,
				      .last = !p->more_fragments};
	__u64 since = fragment->since;
	__u32 count, total;

	if (fragment->refused)
		return fragment->refused == DROP_FRAGMENT ? DROP_FRAGMENT : DROP_OVERLAP;
	/* A row of the version before, which counted in `pieces` only. */
	if (!fragment->claimed)
		__sync_val_compare_and_swap(&fragment->claimed, 0, fragment->pieces);
	total = fragment->total;
	if (search.last && !total)
		fragment->total = search.to;
	search.own = __sync_fetch_and_add(&fragment->claimed, 1);
	if (search.own >= FRAGMENT_PIECES)
		return DROP_FRAGMENT;
	__sync_lock_test_and_set((__u32 *)&fragment->seen[search.own], piece_of(p));
	count = *(volatile __u32 *)&fragment->claimed;
	bpf_loop(count < FRAGMENT_PIECES ? count : FRAGMENT_PIECES, piece_compare, &search, 0);
	if (search.doubled || fragment->since != since) {
		/* The mask changes nothing: after the loop 6.1's verifier no longer knows the bound. */
		__sync_lock_test_and_set(
			(__u32 *)&fragment->seen[search.own & (FRAGMENT_PIECES - 1)], 0);
		/* If nobody has taken the next one, the place is free again. */
		__sync_val_compare_and_swap(&fragment->claimed, search.own + 1, search.own);
		/* Or the row has been given to another datagram meanwhile. */
		return search.doubled ? DROP_OVERLAP : DROP_FRAGMENT;
	}
	if (search.overlaps || (total && (search.last ? search.to != total : search.to > total))) {
		fragment->refused = 1;
		return DROP_OVERLAP;
	}
	fragment->pieces = search.own + 1;
	fragment->bytes = search.bytes;
	/* Nothing overlaps, so the datagram is complete when the lengths add up. */
	*complete = fragment->total && search.bytes == fragment->total;
	return 0;
}

/*
 * A later fragment of a datagram of which this is known (NULL: nothing) takes part in it: it gets the ports, and the last
 * one ends what is known. `key`: the datagram's, in memory that maps are asked with. Returns 0, or a drop reason.
 */
static __always_inline int fragment_follow(struct fragment *fragment,
					   const struct fragment_key *key, struct packet *p)
{
	bool complete = false;
	int reason;

	if (!fragment || !fragment->known || fragment->foreign)
		return DROP_FRAGMENT;
	reason = fragment_record(fragment, p, &complete);
	if (reason)
		return reason;
	p->tuple.sport = fragment->sport;
	p->tuple.dport = fragment->dport;
	p->tuple.proto = fragment->proto;
	p->has_ports = fragment->has_ports;
	if (complete)
		bpf_map_delete_elem(&fragments, key);
	return 0;
}

/*
 * A fragment gets the ports of its datagram's first one, which has to come before it: where it arrives, what came too
 * early could not be sent once more. `party`: who sends it, as in the key. Returns 0, or a drop reason.
 */
__noinline int fragment_join(struct packet *p, __u32 party)
{
	struct fragment_key *key;

	if (!p)
		return DROP_FRAGMENT;
	key = fragment_key_new(p, party);
	if (!key)
		return DROP_FRAGMENT;
	if (p->fragment == FRAGMENT_FIRST)
		return fragment_begin(p, BEGIN_OURS);
	return fragment_follow(fragment_find(key), key, p);
}
