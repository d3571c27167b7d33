/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Fragments of packets that are handled by port (RFC 791, RFC 8200). Only a datagram's first fragment
 * has them: the others get the same from here. One that arrives before its first is queued, and
 * passes the hook again once the first has arrived. Pieces that overlap lose the datagram
 * (RFC 5722; for IPv4 as the kernel does since CVE-2018-5391).
 *
 * Who deletes a queued frame sends it on, so it is sent once. Of a first fragment and a later one on two
 * CPUs either the first one finds the later in the queue, or that finds the first in the table.
 */
#pragma once
#include "lib/cuts.h"

/* Values too large for the stack: 0 is a frame that is to be queued, 1 one that is set aside. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct frag_queue);
} frames SEC(".maps");

static long enqueue_one(__u32 slot, struct queue_walk *walk)
{
	struct frag_queue *kept;
	__u64 flags = BPF_NOEXIST;

	walk->key.slot = slot;
	kept = bpf_map_lookup_elem(&frag_queue, &walk->key);
	if (kept) {
		/* The same piece again, of this datagram or of a newer one, or one that is too old. */
		if ((kept->piece.from != walk->frame->piece.from ||
		     kept->piece.to != walk->frame->piece.to) &&
		    walk->frame->since - kept->since < FRAGMENT_TIMEOUT)
			return 0;
		flags = BPF_EXIST;
	}
	if (bpf_map_update_elem(&frag_queue, &walk->key, walk->frame, flags))
		return 0;
	walk->result = HELD;
	return 1;
}

/*
 * Queues a fragment whose first one has not arrived. Returns HELD, or a drop reason; 0: it has arrived at this
 * very moment, and nothing is queued.
 */
__noinline int fragment_enqueue(struct __sk_buff *skb, const struct packet *p)
{
	struct queue_walk walk = {.result = DROP_FRAGMENT};
	__u32 zero = 0, length = skb->len;
	struct scratch *room = scratch();
	struct fragment *fragment;
	struct fragment_key *key;

	walk.frame = bpf_map_lookup_elem(&frames, &zero);
	if (!p || !room || !walk.frame || length > FRAME_MAX || length < 1 ||
	    bpf_skb_load_bytes(skb, 0, walk.frame->frame, frame_length(length)))
		return DROP_FRAGMENT;
	key = &room->fragment;
	fragment_wait(p, key);
	walk.key.fragment = *key;
	walk.frame->since = bpf_ktime_get_ns();
	walk.frame->length = length | (p->lacks ? FRAME_BARE : 0);
	walk.frame->piece.from = p->fragment_from;
	walk.frame->piece.to = p->fragment_to;
	bpf_loop(QUEUE_SLOTS, enqueue_one, &walk, 0);
	/* As in fragment_begin(): who comes second sees the other. */
	__sync_lock_test_and_set(&walk.frame->length, 0);
	fragment = fragment_find(key);
	if (walk.result == HELD && fragment && fragment->known &&
	    !bpf_map_delete_elem(&frag_queue, &walk.key))
		return 0;
	return walk.result;
}

static long is_queued(__u32 slot, struct queue_walk *walk)
{
	walk->key.slot = slot;
	walk->result = bpf_map_lookup_elem(&frag_queue, &walk->key) != NULL;
	return walk->result;
}

static long release_one(__u32 slot, struct queue_walk *walk)
{
	struct frag_queue *kept;
	bool ours;

	walk->key.slot = slot;
	kept = bpf_map_lookup_elem(&frag_queue, &walk->key);
	if (!kept)
		return 0;
	/* What overlaps the first fragment was queued for an earlier datagram. (The version before has
	 * not written down which piece it is.) */
	ours = bpf_ktime_get_ns() - kept->since < FRAGMENT_TIMEOUT &&
	       (!kept->piece.to || kept->piece.from >= walk->behind);
	ours = ours && !rewrite_frame(walk->skb, kept);
	if (!bpf_map_delete_elem(&frag_queue, &walk->key) && ours)
		bpf_clone_redirect(walk->skb, walk->skb->ifindex, BPF_F_INGRESS);
	return 0;
}

/*
 * The first fragment is there: the queued ones arrive again, behind it. They are sent as copies of
 * this frame with their own contents; then it gets its own back.
 */
__noinline int fragment_release(struct __sk_buff *skb, const struct packet *p)
{
	struct queue_walk walk = {.skb = skb};
	__u32 one = 1, length = skb->len;
	struct scratch *room = scratch();
	struct frag_queue *aside;

	if (!p || !room)
		return 0;
	walk.key.fragment = room->fragment;
	walk.behind = p->fragment_to;
	bpf_loop(QUEUE_SLOTS, is_queued, &walk, 0);
	if (!walk.result)
		return 0;
	aside = bpf_map_lookup_elem(&frames, &one);
	if (!aside || length > FRAME_MAX || length < 1 ||
	    bpf_skb_load_bytes(skb, 0, aside->frame, frame_length(length)))
		return 0;
	aside->length = length;
	bpf_loop(QUEUE_SLOTS, release_one, &walk, 0);
	return rewrite_frame(skb, aside);
}

/*
 * The first fragment of a datagram that is not followed: the host's (BEGIN_FOREIGN), whose fragments are left
 * alone, or one that is dropped (BEGIN_REFUSED). Queued copies of the others are deleted.
 */
__noinline int fragment_disown(const struct packet *p, __u32 endpoint, __u32 how)
{
	struct frag_queue_key queued = {};
	struct fragment_key *key;

	if (!p)
		return 0;
	key = fragment_key_new(p, endpoint);
	if (!key)
		return 0;
	queued.fragment = *key;
	fragment_begin(p, how);
	bpf_loop(QUEUE_SLOTS, forget_one, &queued, 0);
	return 0;
}

/*
 * Takes note of a first fragment, once it is decided what becomes of it: the later ones follow at once, on
 * another CPU too. Returns 0, or a drop reason. `endpoint`: who sends it, as in the key.
 */
__noinline int fragment_first(struct __sk_buff *skb, const struct packet *p, __u32 endpoint)
{
	int reason;

	if (!p || !fragment_key_new(p, endpoint))
		return DROP_FRAGMENT;
	reason = fragment_begin(p, BEGIN_OURS);
	if (reason)
		return reason;
	return fragment_release(skb, p) ? DROP_REWRITE : 0;
}

/* Takes note of a first fragment as it came, also if it is another packet by now. Returns as fragment_first(). */
static __always_inline int first_came(struct __sk_buff *skb, struct packet *p, __u32 endpoint,
				      int verdict)
{
	struct scratch *room = scratch();
	int reason;

	if (!room)
		return DROP_FRAGMENT;
	if (verdict != BY_TUNNEL)
		return fragment_first(skb, p, endpoint);
	p->tuple = room->sides.key;
	reason = fragment_first(skb, p, endpoint);
	p->tuple = room->leaving;
	return reason;
}

/*
 * Takes note of a later fragment, and gives it its ports. Returns 0 to go on, HELD, or a drop
 * reason; NOT_OURS never.
 */
__noinline int fragment_later(struct __sk_buff *skb, struct packet *p, __u32 endpoint)
{
	struct fragment *fragment;
	struct fragment_key *key;
	int reason;

	if (!p)
		return DROP_FRAGMENT;
	if (cut_arrives(p, endpoint))
		return 0;
	key = fragment_key_new(p, endpoint);
	if (!key)
		return DROP_FRAGMENT;
	fragment = fragment_find(key);
	if (!fragment || !fragment->known) {
		reason = fragment_enqueue(skb, p);
		if (reason)
			return reason;
		fragment = fragment_find(key);
	}
	return fragment_follow(fragment, key, p);
}
