/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Fragments of packets that are handled by port (RFC 791, RFC 8200). Only a datagram's first fragment
 * has them: the others get the same from here. One that arrives before its first is queued, and
 * passes the hook again once the first has arrived. Pieces that overlap lose the datagram
 * (RFC 5722; for IPv4 as the kernel does since CVE-2018-5391).
 */
#pragma once
#include "lib/rewrite.h"

#define FRAGMENT_TIMEOUT (30 * 1000000000ULL) /* ns, as net.ipv4.ipfrag_time */
#define FRAGMENT_PIECES	 64
#define QUEUE_SLOTS	 8

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

/* Values too large for the stack; index 0 stays zero, 1 is a frame that is set aside. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct frag_queue);
} frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fragment);
} no_fragment SEC(".maps");

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

static __always_inline struct fragment *fragment_open(const struct fragment_key *key)
{
	struct fragment *fragment = bpf_map_lookup_elem(&fragments, key);
	__u64 now = bpf_ktime_get_ns();
	__u32 zero = 0;
	void *blank;

	if (fragment && now - fragment->since > FRAGMENT_TIMEOUT) {
		bpf_map_delete_elem(&fragments, key);
		fragment = NULL;
	}
	if (fragment)
		return fragment;
	blank = bpf_map_lookup_elem(&no_fragment, &zero);
	if (!blank)
		return NULL;
	bpf_map_update_elem(&fragments, key, blank, BPF_NOEXIST);
	fragment = bpf_map_lookup_elem(&fragments, key);
	if (fragment && !fragment->since)
		fragment->since = now;
	return fragment;
}

struct piece_search {
	struct fragment *fragment;
	__u32 from, to;
	__u32 overlaps, doubled;
};

static long piece_compare(__u32 index, struct piece_search *search)
{
	struct piece *piece;

	if (index >= FRAGMENT_PIECES)
		return 1;
	piece = &search->fragment->seen[index];
	/* Networks double packets: what is there already is not needed, and does no harm. */
	if (search->from == piece->from && search->to == piece->to) {
		search->doubled = 1;
		return 1;
	}
	if (search->from >= piece->to || search->to <= piece->from)
		return 0;
	search->overlaps = 1;
	return 1;
}

/* Records the packet's piece. Returns 0, or a drop reason. */
static __always_inline int fragment_record(struct fragment *fragment, const struct packet *p)
{
	struct piece_search search = {
		.fragment = fragment, .from = p->fragment_from, .to = p->fragment_to};
	__u32 count = fragment->pieces;

	if (fragment->refused)
		return DROP_OVERLAP;
	bpf_loop(count, piece_compare, &search, 0);
	if (search.doubled)
		return DROP_OVERLAP;
	if (search.overlaps) {
		fragment->refused = 1;
		return DROP_OVERLAP;
	}
	if (count >= FRAGMENT_PIECES)
		return DROP_FRAGMENT;
	fragment->seen[count].from = p->fragment_from;
	fragment->seen[count].to = p->fragment_to;
	fragment->pieces = count + 1;
	fragment->bytes += p->fragment_to - p->fragment_from;
	if (!p->more_fragments)
		fragment->total = p->fragment_to;
	return 0;
}

/* Walks the queued frames of one datagram, slot after slot. */
struct queue_walk {
	struct frag_queue_key key;
	struct __sk_buff *skb;
	int result;
};

static long enqueue_one(__u32 slot, struct queue_walk *walk)
{
	__u32 zero = 0, length = walk->skb->len;
	struct frag_queue *blank, *frame;

	walk->key.slot = slot;
	blank = bpf_map_lookup_elem(&frames, &zero);
	if (!blank || length > FRAME_MAX || length < 1)
		return 1;
	if (bpf_map_update_elem(&frag_queue, &walk->key, blank, BPF_NOEXIST))
		return 0;
	frame = bpf_map_lookup_elem(&frag_queue, &walk->key);
	if (!frame || bpf_skb_load_bytes(walk->skb, 0, frame->frame, frame_length(length)))
		return 1;
	frame->since = bpf_ktime_get_ns();
	frame->length = length;
	walk->result = HELD;
	return 1;
}

/* Queues a fragment whose first one has not arrived. Returns HELD, or a drop reason. */
__noinline int fragment_enqueue(struct __sk_buff *skb, const struct fragment_key *fragment)
{
	struct queue_walk walk = {.skb = skb, .result = DROP_FRAGMENT};

	if (!fragment)
		return DROP_FRAGMENT;
	walk.key.fragment = *fragment;
	bpf_loop(QUEUE_SLOTS, enqueue_one, &walk, 0);
	return walk.result;
}

static long release_one(__u32 slot, struct queue_walk *walk)
{
	struct frag_queue *kept;
	bool fresh;

	walk->key.slot = slot;
	kept = bpf_map_lookup_elem(&frag_queue, &walk->key);
	if (!kept)
		return 0;
	fresh = bpf_ktime_get_ns() - kept->since < FRAGMENT_TIMEOUT;
	if (fresh && !rewrite_frame(walk->skb, kept))
		bpf_clone_redirect(walk->skb, walk->skb->ifindex, BPF_F_INGRESS);
	bpf_map_delete_elem(&frag_queue, &walk->key);
	return 0;
}

/*
 * The first fragment is there: the queued ones arrive again, behind it. They are sent as copies of
 * this frame with their own contents; then it gets its own back.
 */
__noinline int fragment_release(struct __sk_buff *skb, const struct fragment_key *fragment)
{
	struct queue_walk walk = {.skb = skb};
	__u32 one = 1, length = skb->len;
	struct frag_queue *aside;

	if (!fragment)
		return 0;
	walk.key.fragment = *fragment;
	if (!bpf_map_lookup_elem(&frag_queue, &walk.key))
		return 0;
	aside = bpf_map_lookup_elem(&frames, &one);
	if (!aside || length > FRAME_MAX || length < 1 ||
	    bpf_skb_load_bytes(skb, 0, aside->frame, frame_length(length)))
		return 0;
	aside->length = length;
	bpf_loop(QUEUE_SLOTS, release_one, &walk, 0);
	return rewrite_frame(skb, aside);
}

static long forget_one(__u32 slot, struct queue_walk *walk)
{
	walk->key.slot = slot;
	return bpf_map_delete_elem(&frag_queue, &walk->key) != 0;
}

/* The datagram is the host's: its fragments are left alone, and queued copies of them deleted. */
__noinline int fragment_disown(const struct packet *p, __u32 endpoint)
{
	struct queue_walk walk = {};
	struct fragment *fragment;

	if (!p)
		return 0;
	fragment_key_of(p, endpoint, &walk.key.fragment);
	fragment = fragment_open(&walk.key.fragment);
	if (fragment)
		fragment->known = fragment->foreign = 1;
	bpf_loop(QUEUE_SLOTS, forget_one, &walk, 0);
	return 0;
}

/* What is known of a fragment's datagram; NULL: nothing. */
static __always_inline struct fragment *fragment_find(const struct packet *p, __u32 endpoint)
{
	struct fragment_key key;
	struct fragment *fragment;

	fragment_key_of(p, endpoint, &key);
	fragment = bpf_map_lookup_elem(&fragments, &key);
	if (fragment && bpf_ktime_get_ns() - fragment->since > FRAGMENT_TIMEOUT)
		return NULL;
	return fragment;
}

/*
 * Takes note of a fragment, and gives a later one its ports. Returns 0 to go on, HELD, or a drop
 * reason; NOT_OURS never. `endpoint`: who sends it, as in the key.
 */
static __noinline int fragment_track(struct __sk_buff *skb, struct packet *p, __u32 endpoint)
{
	struct fragment_key key;
	struct fragment *fragment;
	int reason;

	if (!p)
		return DROP_FRAGMENT;
	fragment_key_of(p, endpoint, &key);
	fragment = fragment_open(&key);
	if (!fragment)
		return DROP_FRAGMENT;
	if (p->fragment == FRAGMENT_LATER && !fragment->known)
		return fragment_enqueue(skb, &key);
	/* The identification of a datagram of the host's is used again for one that is not. */
	if (p->fragment == FRAGMENT_FIRST && fragment->foreign) {
		fragment->foreign = fragment->refused = fragment->pieces = 0;
		fragment->bytes = fragment->total = 0;
	}
	reason = fragment_record(fragment, p);
	if (reason)
		return reason;
	if (p->fragment == FRAGMENT_FIRST) {
		fragment->proto = p->tuple.proto;
		fragment->has_ports = p->has_ports;
		fragment->sport = p->tuple.sport;
		fragment->dport = p->tuple.dport;
		fragment->known = 1;
		if (fragment_release(skb, &key))
			return DROP_REWRITE;
	} else {
		p->tuple.sport = fragment->sport;
		p->tuple.dport = fragment->dport;
		p->tuple.proto = fragment->proto;
		p->has_ports = fragment->has_ports;
	}
	/* Nothing overlaps, so the datagram is complete when the lengths add up. */
	if (fragment->total && fragment->bytes == fragment->total)
		bpf_map_delete_elem(&fragments, &key);
	return 0;
}
