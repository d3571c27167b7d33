/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Both sides of a connection have spoken: from `pending` it moves to `conns`, and into the queue of the conntrack GC. */
#pragma once
#include "lib/conntrack.h"

/* Keys of the original directions in `conns`, in the order in which the conntrack GC looks at them. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 262144);
	__type(value, struct tuple);
} confirmed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gc_timer);
} gc_timers SEC(".maps");

static __always_inline void conn_copy(struct conn *to, const struct conn *from)
{
	to->other = from->other;
	to->from_endpoint = from->from_endpoint;
	to->to_network = from->to_network;
	to->to_endpoint = from->to_endpoint;
	to->ack = from->ack;
	to->fin = from->fin;
	to->uplink = from->uplink;
	to->since = from->since;
	to->packets = from->packets;
	to->bytes = from->bytes;
	to->backend = from->backend;
	to->watched = from->watched;
	to->generation = from->generation;
	to->removals = from->removals;
	to->flags = from->flags | CONN_CONFIRMED;
	to->state = from->state > CONN_ESTABLISHED ? from->state : CONN_ESTABLISHED;
	to->last_seen = bpf_ktime_get_ns();
}

/* Queues a confirmed connection for the conntrack GC; negative: there is no room. */
static __always_inline long conn_enqueue(const struct tuple *key)
{
	__u32 zero = 0;
	struct gc_timer *timer = bpf_map_lookup_elem(&gc_timers, &zero);
	long error = bpf_map_push_elem(&confirmed, key, 0);

	if (!error && timer)
		__sync_fetch_and_add(&timer->queued, 1);
	return error;
}

/*
 * Both sides have spoken: from `pending` to `conns`. A full table leaves the connection where
 * it is, working, and counts it; a later packet tries again. `key` is that of either direction, in
 * the caller's memory: an element of `pending` can be given to another connection at any moment.
 */
static __noinline int conn_confirm(struct __sk_buff *skb, const struct tuple *key)
{
	struct scratch *room = scratch();
	struct conn *entry, *from;
	struct tuple *own, *other;
	__u32 owner, client;
	long error;

	if (!key || !room)
		return 0;
	own = &room->confirmed;
	other = &room->answer;
	*own = *key;
	entry = &room->conn;
	__builtin_memset(entry, 0, sizeof(*entry));
	from = bpf_map_lookup_elem(&pending, own);
	if (!from)
		return 0;
	*other = from->other;
	owner = from->flags & CONN_ORIGINAL ? conn_owner(from) : conn_answerer(from);
	client = from->flags & CONN_ORIGINAL ? from->from_endpoint : from->to_endpoint;
	if (config.max_conns && !quota_has_room(owner, client != owner))
		goto full;
	conn_copy(entry, from);
	if (bpf_map_update_elem(&conns, own, entry, BPF_NOEXIST))
		goto full;
	from = bpf_map_lookup_elem(&pending, other);
	if (!from)
		goto undo;
	conn_copy(entry, from);
	if (bpf_map_update_elem(&conns, other, entry, BPF_NOEXIST))
		goto undo;
	if (entry->flags & CONN_ORIGINAL)
		error = conn_enqueue(other);
	else
		error = conn_enqueue(own);
	if (error) {
		bpf_map_delete_elem(&conns, other);
		goto undo;
	}
	quota_confirmed(owner, client);
	load_confirmed(entry);
	bpf_map_delete_elem(&pending, own);
	bpf_map_delete_elem(&pending, other);
	return 0;
undo:
	bpf_map_delete_elem(&conns, own);
full:
	count(skb, UNCONFIRMED);
	return 0;
}
