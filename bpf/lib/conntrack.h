/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections that are translated. Each has two entries, one per direction: original and reply,
 * keyed by the packet as it arrives. While only one side has spoken both are in `pending`, an LRU
 * in which a flood evicts nothing but other unanswered openings. Once both sides have spoken they
 * move to `conns`, where they stay until they time out (conn_gc.bpf.c) or their endpoint goes. Nobody looks for those of
 * an endpoint that goes: what is found of them by its key is deleted then, and the GC comes by.
 */
#pragma once
#include "lib/loads.h"
#include "lib/networks.h"
#include "lib/openings.h"
#include "lib/questions.h"

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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct removals);
} removals SEC(".maps");

#define FIN_TAKEN_OVER 4 /* in `fin` */

/* A device as struct conn has room for: others have another mark, all but certainly. */
static __always_inline __u8 uplink_mark(__u32 ifindex)
{
	return ifindex % 255 + 1;
}

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

/* `since` of a connection: so coarse that 32 bits take two years. */
static __always_inline __u32 conn_moment(__u64 now)
{
	return now >> 24;
}

/* Did it go on for two seconds after it was opened, as nf_conntrack tells streams from single questions? The clock of
 * `last_seen` may be a little behind. */
static __always_inline bool is_stream(const struct conn *original, __u64 last_seen)
{
	return (__s32)(conn_moment(last_seen) - original->since) >= (__s32)conn_moment(2 * SECOND);
}

/* The client has its answer, and asks the next question from another port (RFC 5452, 9.2). */
static __always_inline bool is_dns(const struct conn *original)
{
	return original->other.sport == bpf_htons(53);
}

/* Of a confirmed connection. `last_seen`: of either direction, the later. */
static __always_inline __u64 conn_timeout(const struct tuple *key, const struct conn *original,
					  __u64 last_seen)
{
	__u64 timeout;

	if (original->state == CONN_CLOSED)
		return config.timeout_closing * SECOND;
	switch (key->proto) {
	case IPPROTO_TCP:
		if (original->state == CONN_CLOSING)
			return config.timeout_half_closed * SECOND;
		return original->state == CONN_ESTABLISHED ? config.timeout_established * SECOND
							   : config.timeout_handshake * SECOND;
	case IPPROTO_UDP:
		if (is_stream(original, last_seen))
			return config.timeout_udp * SECOND;
		timeout = config.timeout_udp_exchange;
		if (timeout > config.timeout_udp)
			timeout = config.timeout_udp;
		if (is_dns(original) && timeout > config.timeout_closing)
			timeout = config.timeout_closing;
		return timeout * SECOND;
	}
	return config.timeout_icmp * SECOND;
}

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

/* Numbers of endpoints are never given twice, and each that may have connections has a row in `quotas`. */
static __always_inline bool party_is_gone(__u32 party)
{
	return is_container(party) && party != PARTY_PEER && !quota_find(party);
}

/* Is one of the parties gone? If not, that is not asked again before the next one goes. */
__noinline int conn_review(struct conn *conn, __u32 count)
{
	if (!conn)
		return 0;
	if (party_is_gone(conn->from_endpoint) || party_is_gone(conn->to_endpoint))
		return 1;
	conn->removals = count;
	return 0;
}

/* Is it left of an endpoint that was removed? */
static __always_inline bool conn_is_left(struct conn *conn)
{
	struct removals *row;
	__u32 zero = 0, count;

	row = bpf_map_lookup_elem(&removals, &zero);
	if (!row)
		return false;
	/* Before the parties are looked for: one that goes meanwhile has another count. */
	count = *(volatile __u32 *)&row->count;
	return conn->removals != count && conn_review(conn, count);
}

__noinline int conn_forget(const struct tuple *key);

static __always_inline struct conn *conn_find(const struct tuple *key)
{
	struct conn *conn = bpf_map_lookup_elem(&conns, key);

	if (!conn) {
		conn = bpf_map_lookup_elem(&pending, key);
		if (!conn || reply_is_lost(conn))
			return NULL;
	}
	if (!conn_is_left(conn))
		return conn;
	conn_forget(key);
	return NULL;
}

/* One that has just been opened; NULL: a flood has evicted it already. Another CPU, which has opened it too, may
 * even have had the answer. */
static __always_inline struct conn *conn_opened(const struct tuple *key)
{
	struct conn *conn = bpf_map_lookup_elem(&pending, key);

	return conn ? conn : bpf_map_lookup_elem(&conns, key);
}

/* The opposite direction of a connection that was found: it is in the same table, unless another CPU is
 * confirming the connection at the moment. */
static __always_inline struct conn *conn_opposite(const struct conn *conn)
{
	struct scratch *room = scratch();
	struct conn *opposite = NULL;
	struct tuple *key;

	if (!room)
		return NULL;
	key = &room->opposite;
	*key = conn->other;
	if (!(conn->flags & CONN_CONFIRMED))
		opposite = bpf_map_lookup_elem(&pending, key);
	if (!opposite)
		opposite = bpf_map_lookup_elem(&conns, key);
	return opposite ? opposite : bpf_map_lookup_elem(&pending, key);
}

/* A connection, of which this is the original direction, ends: it is no longer counted. */
static __always_inline void conn_ended(const struct conn *original)
{
	if (original->flags & CONN_CONFIRMED)
		quota_ended(conn_owner(original), !is_container(original->from_endpoint));
	load_ended(original->flags, original->to_endpoint, &original->other.src);
}

/* Deletes both directions, whichever table they are in. `conn`: found by `key`; `other`: memory for the other key, as
 * an element of `pending` can be given to another connection at any moment. */
static __always_inline void conn_delete(const struct tuple *key, const struct conn *conn,
					struct tuple *other)
{
	*other = conn->other;
	if (conn->flags & CONN_ORIGINAL)
		conn_ended(conn);
	else if (conn->flags & CONN_CONFIRMED)
		quota_ended(conn_answerer(conn), !is_container(conn->to_endpoint));
	if (!(conn->flags & CONN_ORIGINAL))
		load_ended(conn->flags, conn->from_endpoint, &key->src);
	bpf_map_delete_elem(&conns, key);
	bpf_map_delete_elem(&conns, other);
	bpf_map_delete_elem(&pending, key);
	bpf_map_delete_elem(&pending, other);
}

__noinline int conn_forget(const struct tuple *key)
{
	struct tuple own, other;
	struct conn *conn;

	if (!key)
		return 0;
	own = *key;
	conn = bpf_map_lookup_elem(&conns, &own);
	if (!conn)
		conn = bpf_map_lookup_elem(&pending, &own);
	if (conn)
		conn_delete(&own, conn, &other);
	return 0;
}

enum conn_room {
	CONN_TAKEN = 0,
	CONN_FREE = 1,
	CONN_OWN = 2, /* another CPU has opened just this connection */
};

/* Before Linux 6.4 what a global function was handed is no key of a map: what follows takes the sides from the scratch
 * memory, where they are written, and others copy. */

/* Can a new connection have its reply's key: it is free, or its holder is an opening that has timed out, or is left of
 * an earlier endpoint that had the address. */
__noinline int conn_room(void)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;
	const struct tuple *key;
	struct conn *conn;
	__u64 age;

	if (!room)
		return CONN_TAKEN;
	sides = &room->sides;
	key = &sides->other;
	conn = bpf_map_lookup_elem(&conns, key);
	if (!conn)
		conn = bpf_map_lookup_elem(&pending, key);
	if (!conn)
		return CONN_FREE;
	if (conn_is_left(conn)) {
		conn_delete(key, conn, &room->conn.other);
		return CONN_FREE;
	}
	if (is_question(conn, key->proto)) {
		if (bpf_ktime_get_ns() - conn->last_seen < QUESTION_TIMEOUT)
			return CONN_TAKEN;
	} else if (tuple_equal(&conn->other, &sides->key)) {
		if (conn->to_endpoint == sides->client_endpoint &&
		    conn->from_endpoint == sides->server_endpoint)
			return CONN_OWN;
	} else {
		if (conn->flags & CONN_CONFIRMED)
			return CONN_TAKEN;
		age = bpf_ktime_get_ns() - conn->last_seen;
		if (age < config.timeout_handshake * SECOND &&
		    bpf_map_lookup_elem(&pending, &conn->other))
			return CONN_TAKEN;
	}
	conn_delete(key, conn, &room->conn.other);
	return CONN_FREE;
}

#define CONN_JOINED 1

/* Another connection has the original's key. Is it this one, as another CPU has opened it, with this reply or with one
 * of its own? Else it has lost its reply to a flood, and is replaced. */
static __noinline int conn_join(const struct conn_sides *sides, struct conn *entry, int made_reply)
{
	struct conn *held;

	if (!sides || !entry)
		return -1;
	held = bpf_map_lookup_elem(&pending, &sides->key);
	if (held && tuple_equal(&held->other, &sides->other))
		return CONN_JOINED;
	if (held && reply_is_lost(held))
		return bpf_map_update_elem(&pending, &sides->key, entry, BPF_ANY);
	if (made_reply)
		bpf_map_delete_elem(&pending, &sides->other);
	return held ? CONN_JOINED : -1;
}

/* In whose totals is it counted: those of the network of who opens it, else of who is asked; 0: in none. */
static __always_inline __u16 conn_watched(const struct conn_sides *sides)
{
	struct network *net;

	if (sides->flags & CONN_QUESTION)
		return 0;
	net = network_find(sides->client_network);
	if (net && (net->flags & NETWORK_FLOWS))
		return sides->client_network;
	net = network_find(sides->server_network);
	return net && (net->flags & NETWORK_FLOWS) ? sides->server_network : 0;
}

/*
 * Records an opening. Returns 0, CONN_JOINED where another CPU has recorded the same one, maybe with another
 * reply, or a negative errno when the reply's key is taken. Both keys are written only where they are free,
 * the reply's first, so that of two CPUs one connection is left, and it is whole.
 */
__noinline int conn_open(void)
{
	struct scratch *room = scratch();
	struct conn *entry, *held;
	struct conn_sides *sides;
	int made_reply;
	long error;

	if (!room)
		return -1;
	sides = &room->sides;
	entry = &room->conn;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->last_seen = bpf_ktime_get_ns();
	entry->since = conn_moment(entry->last_seen);
	entry->other = sides->key;
	entry->from_endpoint = sides->server_endpoint;
	entry->to_network = sides->client_network;
	entry->to_endpoint = sides->client_endpoint;
	entry->flags = sides->flags;
	entry->ack = sides->id;
	entry->backend = sides->backend;
	entry->watched = conn_watched(sides);
	entry->generation = sides->generation;
	error = bpf_map_update_elem(&pending, &sides->other, entry, BPF_NOEXIST);
	opening_tell(&sides->other);
	if (is_question(entry, sides->key.proto))
		return error;
	made_reply = !error;
	/* Marks it as in use: in a full table the original could otherwise take its place. */
	held = bpf_map_lookup_elem(&pending, &sides->other);
	if (error && (!held || !tuple_equal(&held->other, &sides->key)))
		return error;
	entry->other = sides->other;
	entry->from_endpoint = sides->client_endpoint;
	entry->to_network = sides->server_network;
	entry->to_endpoint = sides->server_endpoint;
	entry->flags = CONN_ORIGINAL | sides->flags;
	error = bpf_map_update_elem(&pending, &sides->key, entry, BPF_NOEXIST);
	opening_tell(&sides->key);
	if (!error)
		return 0;
	return conn_join(sides, entry, made_reply);
}
