/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections that are translated. Each has two halves, one per direction, keyed by the
 * packet as it arrives. While only one side has spoken both halves are in `pending`, where a
 * flood pushes out nothing but other unanswered openings; once both have spoken they move to
 * `conns`, from which nothing but their own timer, or their endpoint's removal, takes them.
 */
#pragma once
#include "verdict.h"

#define SECOND 1000000000ULL
#define CLOCK_MONOTONIC 1

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

static __always_inline __u64 conn_timeout(const struct tuple *key, const struct conn *original)
{
	if (original->state == CONN_CLOSED)
		return config.timeout_closing * SECOND;
	switch (key->proto) {
	case IPPROTO_TCP:
		return original->state >= CONN_ESTABLISHED ? config.timeout_established * SECOND :
							     config.timeout_handshake * SECOND;
	case IPPROTO_UDP:
		return config.timeout_udp * SECOND;
	}
	return config.timeout_icmp * SECOND;
}

/* The timer of a confirmed connection, on its original half. */
static int conn_expire(void *map, struct tuple *key, struct conn *original)
{
	__u64 now = bpf_ktime_get_ns(), last = original->last_seen, lifetime;
	struct tuple other_key = original->other;
	struct conn *other = bpf_map_lookup_elem(&conns, &other_key);

	if (other && other->last_seen > last)
		last = other->last_seen;
	lifetime = conn_timeout(key, original);
	if (other && now < last + lifetime) {
		bpf_timer_start(&original->timer, last + lifetime - now + SECOND / 4, 0);
		return 0;
	}
	bpf_map_delete_elem(&conns, &other_key);
	bpf_map_delete_elem(&conns, key);
	return 0;
}

/*
 * A flood may push one half of a pair out of `pending`. An opening without the answer's half is
 * none: each packet would keep it, and no answer would ever come back. Half confirmed by another
 * CPU this very moment the pair is in `conns` already.
 */
static __noinline int pending_is_torn(const struct conn *conn)
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
	return pending_is_torn(conn) ? NULL : conn;
}

/* Both halves go, whichever table they are in. */
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
	bpf_map_delete_elem(&conns, key);
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&pending, key);
	bpf_map_delete_elem(&pending, &other);
	return 0;
}

/* Can a new connection take this key: it is free, or what holds it is over. */
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

struct conn_sides {
	struct tuple key;   /* the opening packet as it arrived */
	struct tuple other; /* the answer as it will arrive */
	__u32 client_network, client_endpoint; /* 0: not a container */
	__u32 server_network, server_endpoint;
};

/* Records an opening. Returns 0, or a negative errno when another has taken the reply's key. */
static __noinline int conn_open(const struct conn_sides *sides)
{
	struct conn half = {};
	long error;

	if (!sides)
		return -1;
	half.last_seen = bpf_ktime_get_ns();
	half.other = sides->key;
	half.from_endpoint = sides->server_endpoint;
	half.to_network = sides->client_network;
	half.to_endpoint = sides->client_endpoint;
	error = bpf_map_update_elem(&pending, &sides->other, &half, BPF_NOEXIST);
	if (error)
		return error;
	half.other = sides->other;
	half.from_endpoint = sides->client_endpoint;
	half.to_network = sides->server_network;
	half.to_endpoint = sides->server_endpoint;
	half.flags = CONN_ORIGINAL;
	error = bpf_map_update_elem(&pending, &sides->key, &half, BPF_ANY);
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
	to->fin = from->fin;
	to->flags = from->flags | CONN_CONFIRMED;
	to->state = from->state > CONN_ESTABLISHED ? from->state : CONN_ESTABLISHED;
	to->last_seen = bpf_ktime_get_ns();
}

/* Starts the life of a confirmed connection, on its original half. */
static __always_inline long conn_start_timer(const struct tuple *key, __u64 lifetime)
{
	struct conn *original = bpf_map_lookup_elem(&conns, key);
	int i;

	if (!original)
		return -1;
	/* Seen on 6.18 under load: refused with ENOMEM, and granted a moment later. */
	for (i = 0; i < 4; i++)
		if (!bpf_timer_init(&original->timer, &conns, CLOCK_MONOTONIC))
			break;
	if (i == 4 || bpf_timer_set_callback(&original->timer, conn_expire))
		return -1;
	return bpf_timer_start(&original->timer, lifetime, 0);
}

/*
 * Both sides have spoken: from `pending` to `conns`. A full table leaves the connection where
 * it is, working, and counts it; a later packet tries again. `own` is the key of either half, in the caller's memory: an
 * element of `pending` can be given to another connection at any moment.
 */
static __noinline int conn_confirm(struct __sk_buff *skb, const struct tuple *own)
{
	struct conn half = {}, *from;
	struct tuple other;
	__u64 lifetime;
	long error;

	if (!own)
		return 0;
	from = bpf_map_lookup_elem(&pending, own);
	if (!from)
		return 0;
	other = from->other;
	conn_copy(&half, from);
	if (bpf_map_update_elem(&conns, own, &half, BPF_NOEXIST))
		goto full;
	lifetime = conn_timeout(own, &half);
	from = bpf_map_lookup_elem(&pending, &other);
	if (!from)
		goto undo;
	conn_copy(&half, from);
	if (bpf_map_update_elem(&conns, &other, &half, BPF_NOEXIST))
		goto undo;
	if (half.flags & CONN_ORIGINAL)
		error = conn_start_timer(&other, lifetime);
	else
		error = conn_start_timer(own, lifetime);
	if (error) {
		bpf_map_delete_elem(&conns, &other);
		goto undo;
	}
	bpf_map_delete_elem(&pending, own);
	bpf_map_delete_elem(&pending, &other);
	return 0;
undo:
	bpf_map_delete_elem(&conns, own);
full:
	count(skb, DROP_CONN_TABLE);
	return 0;
}

/* A closed connection is remembered only briefly: its timer was set for the long time-out. */
static __always_inline void conn_close(const struct tuple *own, const struct conn *conn)
{
	struct conn *original = conn_find(conn->flags & CONN_ORIGINAL ? own : &conn->other);

	if (!original)
		return;
	original->state = CONN_CLOSED;
	if (!(original->flags & CONN_CONFIRMED))
		return;
	original = bpf_map_lookup_elem(&conns,
				       conn->flags & CONN_ORIGINAL ? own : &conn->other);
	if (original)
		bpf_timer_start(&original->timer, config.timeout_closing * SECOND, 0);
}

/* State changes. `conn` is the half whose key is `own`; the state is that of the original half. */
static __noinline int conn_transition(struct __sk_buff *skb, const struct tuple *own,
				      struct conn *conn, __u8 flags)
{
	bool from_original;
	struct conn *original;

	if (!own || !conn)
		return 0;
	from_original = conn->flags & CONN_ORIGINAL;
	original = from_original ? conn : conn_find(&conn->other);
	if (!original)
		return 0;
	if (own->proto != IPPROTO_TCP) {
		if (!from_original)
			conn_confirm(skb, own);
		return 0;
	}
	if (flags & TCP_RST) {
		conn_close(own, conn);
		return 0;
	}
	if (from_original && (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		/* The port is used again (RFC 6191): start over. */
		if (original->state >= CONN_CLOSING) {
			original->state = CONN_NEW;
			original->fin = 0;
		}
		return 0;
	}
	if (flags & TCP_FIN) {
		original->fin |= from_original ? 1 : 2;
		if (original->fin == 3)
			conn_close(own, conn);
		else if (original->state >= CONN_ESTABLISHED)
			original->state = CONN_CLOSING;
	}
	if (!from_original && original->state == CONN_NEW) {
		original->state = CONN_REPLIED;
	} else if (from_original && original->state == CONN_REPLIED && (flags & TCP_ACK)) {
		original->state = CONN_ESTABLISHED;
	}
	if (from_original && !(original->flags & CONN_CONFIRMED) &&
	    (original->state == CONN_ESTABLISHED || original->state == CONN_CLOSING))
		conn_confirm(skb, own);
	return 0;
}

/*
 * Every packet of a connection passes here. An established one without SYN, FIN or RST costs
 * the clock and one store.
 */
static __always_inline void conn_track(struct __sk_buff *skb, const struct packet *p,
				       struct conn *conn)
{
	bool reopening = (conn->flags & CONN_ORIGINAL) && conn->state == CONN_REPLIED;

	conn->last_seen = bpf_ktime_get_ns();
	if ((conn->flags & CONN_CONFIRMED) && !reopening &&
	    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return;
	conn_transition(skb, &p->tuple, conn, p->tcp_flags);
}
