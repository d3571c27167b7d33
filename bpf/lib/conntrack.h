/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections that are translated. Each has two entries, one per direction: original and reply,
 * keyed by the packet as it arrives. While only one side has spoken both are in `pending`, an LRU
 * in which a flood evicts nothing but other unanswered openings. Once both sides have spoken they
 * move to `conns`, where they stay until they time out (conn_gc.bpf.c) or their endpoint goes.
 */
#pragma once
#include "lib/quotas.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, struct conn);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct conn);
} conns SEC(".maps");

static __always_inline bool is_container(__u32 party)
{
	return party != PARTY_OUTSIDE && party != PARTY_HOST;
}

/* Which container a connection counts for: the one that opened it, else the one it goes to. */
static __always_inline __u32 conn_owner(const struct conn *original)
{
	return is_container(original->from_endpoint) ? original->from_endpoint
						     : original->to_endpoint;
}

/* The same, from the reply's entry. */
static __always_inline __u32 conn_answerer(const struct conn *reply)
{
	return is_container(reply->to_endpoint) ? reply->to_endpoint : reply->from_endpoint;
}

static __always_inline __u64 conn_timeout(const struct tuple *key, const struct conn *original)
{
	if (original->state == CONN_CLOSED)
		return config.timeout_closing * SECOND;
	switch (key->proto) {
	case IPPROTO_TCP:
		return original->state >= CONN_ESTABLISHED ? config.timeout_established * SECOND
							   : config.timeout_handshake * SECOND;
	case IPPROTO_UDP:
		return config.timeout_udp * SECOND;
	}
	return config.timeout_icmp * SECOND;
}

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

/*
 * A flood may evict one direction of a connection from `pending`. An original without its reply is
 * unusable: each packet would keep it alive, and no answer could be translated. While another CPU
 * confirms the connection the reply may be in `conns` already.
 */
static __noinline int reply_is_lost(const struct conn *conn)
{
	return conn && (conn->flags & CONN_ORIGINAL) &&
	       !bpf_map_lookup_elem(&pending, &conn->other) &&
	       !bpf_map_lookup_elem(&conns, &conn->other);
}

static __always_inline struct conn *conn_find(const struct tuple *key)
{
	struct conn *conn = bpf_map_lookup_elem(&conns, key);

	if (conn)
		return conn;
	conn = bpf_map_lookup_elem(&pending, key);
	return reply_is_lost(conn) ? NULL : conn;
}

/* One that has just been opened; NULL: a flood has evicted it already. */
static __always_inline struct conn *conn_opened(const struct tuple *key)
{
	return bpf_map_lookup_elem(&pending, key);
}

/* The opposite direction of a connection that was found: it is in the same table, unless another CPU is
 * confirming the connection at the moment. */
static __always_inline struct conn *conn_opposite(const struct conn *conn)
{
	struct conn *opposite = NULL;

	if (!(conn->flags & CONN_CONFIRMED))
		opposite = bpf_map_lookup_elem(&pending, &conn->other);
	if (!opposite)
		opposite = bpf_map_lookup_elem(&conns, &conn->other);
	return opposite ? opposite : bpf_map_lookup_elem(&pending, &conn->other);
}

/* Deletes both directions, whichever table they are in. */
static __noinline int conn_forget(const struct tuple *key)
{
	struct conn *conn;
	struct tuple other;

	if (!key)
		return 0;
	conn = conn_find(key);
	if (!conn)
		return 0;
	other = conn->other;
	if (conn->flags & CONN_CONFIRMED)
		quota_ended(conn->flags & CONN_ORIGINAL ? conn_owner(conn) : conn_answerer(conn));
	bpf_map_delete_elem(&conns, key);
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&pending, key);
	bpf_map_delete_elem(&pending, &other);
	return 0;
}

/* Can a new connection take this key: it is free, or its holder is an opening that has timed out. */
static __noinline int conn_key_free(const struct tuple *key)
{
	struct conn *conn;
	__u64 age;

	if (!key)
		return 0;
	if (bpf_map_lookup_elem(&conns, key))
		return 0;
	conn = bpf_map_lookup_elem(&pending, key);
	if (!conn)
		return 1;
	age = bpf_ktime_get_ns() - conn->last_seen;
	if (age < config.timeout_handshake * SECOND && bpf_map_lookup_elem(&pending, &conn->other))
		return 0;
	conn_forget(key);
	return 1;
}

/* Records an opening. Returns 0, or a negative errno when the reply's key is taken. */
static __noinline int conn_open(const struct conn_sides *sides)
{
	struct scratch *room = scratch();
	struct conn *entry;
	long error;

	if (!sides || !room)
		return -1;
	entry = &room->conn;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->last_seen = bpf_ktime_get_ns();
	entry->other = sides->key;
	entry->from_endpoint = sides->server_endpoint;
	entry->to_network = sides->client_network;
	entry->to_endpoint = sides->client_endpoint;
	error = bpf_map_update_elem(&pending, &sides->other, entry, BPF_NOEXIST);
	if (error)
		return error;
	/* Marks it as in use: in a full table the original could otherwise take its place. */
	bpf_map_lookup_elem(&pending, &sides->other);
	entry->other = sides->other;
	entry->from_endpoint = sides->client_endpoint;
	entry->to_network = sides->server_network;
	entry->to_endpoint = sides->server_endpoint;
	entry->flags = CONN_ORIGINAL;
	error = bpf_map_update_elem(&pending, &sides->key, entry, BPF_ANY);
	if (error)
		bpf_map_delete_elem(&pending, &sides->other);
	return error;
}

static __always_inline void conn_copy(struct conn *to, const struct conn *from)
{
	to->other = from->other;
	to->from_endpoint = from->from_endpoint;
	to->to_network = from->to_network;
	to->to_endpoint = from->to_endpoint;
	to->ack = from->ack;
	to->fin = from->fin;
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
 * it is, working, and counts it; a later packet tries again. `own` is the key of either direction, in
 * the caller's memory: an element of `pending` can be given to another connection at any moment.
 */
static __noinline int conn_confirm(struct __sk_buff *skb, const struct tuple *own)
{
	struct scratch *room = scratch();
	struct conn *entry, *from;
	struct quota *quota;
	struct tuple other;
	__u32 owner;
	long error;

	if (!own || !room)
		return 0;
	entry = &room->conn;
	__builtin_memset(entry, 0, sizeof(*entry));
	from = bpf_map_lookup_elem(&pending, own);
	if (!from)
		return 0;
	other = from->other;
	owner = from->flags & CONN_ORIGINAL ? conn_owner(from) : conn_answerer(from);
	quota = config.max_conns ? quota_find(owner) : NULL;
	if (quota && quota->conns >= config.max_conns) {
		count(skb, UNCONFIRMED);
		return 0;
	}
	conn_copy(entry, from);
	if (bpf_map_update_elem(&conns, own, entry, BPF_NOEXIST))
		goto full;
	from = bpf_map_lookup_elem(&pending, &other);
	if (!from)
		goto undo;
	conn_copy(entry, from);
	if (bpf_map_update_elem(&conns, &other, entry, BPF_NOEXIST))
		goto undo;
	if (entry->flags & CONN_ORIGINAL)
		error = conn_enqueue(&other);
	else
		error = conn_enqueue(own);
	if (error) {
		bpf_map_delete_elem(&conns, &other);
		goto undo;
	}
	quota_confirmed(owner,
			entry->flags & CONN_ORIGINAL ? entry->from_endpoint : entry->to_endpoint);
	bpf_map_delete_elem(&pending, own);
	bpf_map_delete_elem(&pending, &other);
	return 0;
undo:
	bpf_map_delete_elem(&conns, own);
full:
	count(skb, UNCONFIRMED);
	return 0;
}
