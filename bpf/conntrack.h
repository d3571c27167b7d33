/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections that are translated. Each has two halves, one per direction, keyed by the
 * packet as it arrives. While only one side has spoken both halves are in `pending`, where a
 * flood pushes out nothing but other unanswered openings; once both have spoken they move to
 * `conns`, from which nothing takes them but the end of their time (sweep_conns.bpf.c), or that
 * of their endpoint.
 */
#pragma once
#include "usage.h"

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

/* The same, asked of the reply half. */
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

/* Keys of original halves in `conns`, in the order in which the sweeper is to look at them. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 262144);
	__type(value, struct tuple);
} confirmed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeper);
} sweepers SEC(".maps");

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

/* One that was opened this moment; NULL: a flood has pushed it out already. */
static __always_inline struct conn *conn_opened(const struct tuple *key)
{
	return bpf_map_lookup_elem(&pending, key);
}

/* The opposite half of one that was found: it is in the same table, unless another CPU is just
 * confirming the connection. */
static __always_inline struct conn *conn_opposite(const struct conn *conn)
{
	struct conn *opposite = NULL;

	if (!(conn->flags & CONN_CONFIRMED))
		opposite = bpf_map_lookup_elem(&pending, &conn->other);
	if (!opposite)
		opposite = bpf_map_lookup_elem(&conns, &conn->other);
	return opposite ? opposite : bpf_map_lookup_elem(&pending, &conn->other);
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
	if (conn->flags & CONN_CONFIRMED)
		usage_ended(conn->flags & CONN_ORIGINAL ? conn_owner(conn) : conn_answerer(conn));
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

/* Records an opening. Returns 0, or a negative errno when another has taken the reply's key. */
static __noinline int conn_open(const struct conn_sides *sides)
{
	struct scratch *room = scratch();
	struct conn *half;
	long error;

	if (!sides || !room)
		return -1;
	half = &room->conn;
	__builtin_memset(half, 0, sizeof(*half));
	half->last_seen = bpf_ktime_get_ns();
	half->other = sides->key;
	half->from_endpoint = sides->server_endpoint;
	half->to_network = sides->client_network;
	half->to_endpoint = sides->client_endpoint;
	error = bpf_map_update_elem(&pending, &sides->other, half, BPF_NOEXIST);
	if (error)
		return error;
	/* Marks it as in use: the second half's room would otherwise be this one's where the table is
	 * full and all else in it is in use. */
	bpf_map_lookup_elem(&pending, &sides->other);
	half->other = sides->other;
	half->from_endpoint = sides->client_endpoint;
	half->to_network = sides->server_network;
	half->to_endpoint = sides->server_endpoint;
	half->flags = CONN_ORIGINAL;
	error = bpf_map_update_elem(&pending, &sides->key, half, BPF_ANY);
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

/* Puts a confirmed connection where the sweeper finds it; negative: there is no room. */
static __always_inline long conn_enqueue(const struct tuple *key)
{
	__u32 zero = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	long error = bpf_map_push_elem(&confirmed, key, 0);

	if (!error && sweeper)
		__sync_fetch_and_add(&sweeper->queued, 1);
	return error;
}

/*
 * Both sides have spoken: from `pending` to `conns`. A full table leaves the connection where
 * it is, working, and counts it; a later packet tries again. `own` is the key of either half, in the caller's memory: an
 * element of `pending` can be given to another connection at any moment.
 */
static __noinline int conn_confirm(struct __sk_buff *skb, const struct tuple *own)
{
	struct scratch *room = scratch();
	struct conn *half, *from;
	struct usage *usage;
	struct tuple other;
	__u32 owner;
	long error;

	if (!own || !room)
		return 0;
	half = &room->conn;
	__builtin_memset(half, 0, sizeof(*half));
	from = bpf_map_lookup_elem(&pending, own);
	if (!from)
		return 0;
	other = from->other;
	owner = from->flags & CONN_ORIGINAL ? conn_owner(from) : conn_answerer(from);
	usage = config.max_conns ? usage_find(owner) : NULL;
	if (usage && usage->conns >= config.max_conns) {
		count(skb, UNCONFIRMED);
		return 0;
	}
	conn_copy(half, from);
	if (bpf_map_update_elem(&conns, own, half, BPF_NOEXIST))
		goto full;
	from = bpf_map_lookup_elem(&pending, &other);
	if (!from)
		goto undo;
	conn_copy(half, from);
	if (bpf_map_update_elem(&conns, &other, half, BPF_NOEXIST))
		goto undo;
	if (half->flags & CONN_ORIGINAL)
		error = conn_enqueue(&other);
	else
		error = conn_enqueue(own);
	if (error) {
		bpf_map_delete_elem(&conns, &other);
		goto undo;
	}
	usage_confirmed(owner,
			half->flags & CONN_ORIGINAL ? half->from_endpoint : half->to_endpoint);
	bpf_map_delete_elem(&pending, own);
	bpf_map_delete_elem(&pending, &other);
	return 0;
undo:
	bpf_map_delete_elem(&conns, own);
full:
	count(skb, UNCONFIRMED);
	return 0;
}

#define RESET_WINDOW (1 << 20) /* bytes; no window that is in use is larger than its scale allows */

/*
 * A reset is believed if its number lies where the side that it is for expects data: it has
 * acknowledged all before (RFC 5961, 3.2). Others pass, for that side to judge, and change
 * nothing here. `opposite`: the half in which that side sends.
 */
static __always_inline bool reset_is_theirs(const struct packet *p, const struct conn *opposite)
{
	return !opposite || !opposite->ack || p->seq - opposite->ack < RESET_WINDOW;
}

/*
 * State changes (RFC 9293, 3.3.2, as far as both ends can be seen from the middle). `conn` is
 * the half that the packet belongs to; the state is that of the original half.
 */
static __noinline int conn_transition(struct __sk_buff *skb, const struct packet *p,
				      struct conn *conn)
{
	const struct tuple *own;
	bool from_original;
	struct conn *original;
	__u8 flags;

	if (!p || !conn)
		return 0;
	own = &p->tuple;
	flags = p->tcp_flags;
	from_original = conn->flags & CONN_ORIGINAL;
	original = from_original ? conn : conn_opposite(conn);
	if (!original)
		return 0;
	if (own->proto != IPPROTO_TCP) {
		if (!from_original)
			conn_confirm(skb, own);
		return 0;
	}
	/* A later fragment says nothing of it. */
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (flags & TCP_RST) {
		if (reset_is_theirs(p, from_original ? conn_opposite(conn) : original))
			original->state = CONN_CLOSED;
		return 0;
	}
	if (from_original && (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		/* The port is used again (RFC 6191): start over, with numbers of its own. */
		if (original->state >= CONN_CLOSING) {
			struct conn *reply = conn_opposite(conn);

			original->state = CONN_NEW;
			original->fin = 0;
			original->ack = 0;
			if (reply)
				reply->ack = 0;
		}
		return 0;
	}
	/* What was taken for a reset was none: data goes on. */
	if (original->state == CONN_CLOSED && original->fin != 3)
		original->state = original->flags & CONN_CONFIRMED ? CONN_ESTABLISHED : CONN_NEW;
	if (flags & TCP_FIN) {
		original->fin |= from_original ? 1 : 2;
		if (original->fin == 3)
			original->state = CONN_CLOSED;
		else if (original->state >= CONN_ESTABLISHED)
			original->state = CONN_CLOSING;
	}
	if (!from_original && original->state == CONN_NEW) {
		/* Also the other's SYN, when both open at once. */
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
	bool reopening = (conn->flags & CONN_ORIGINAL) &&
			 (conn->state == CONN_REPLIED || conn->state == CONN_CLOSED);

	/* The tick's time, some milliseconds old: the clock itself costs as much as a lookup. */
	conn->last_seen = bpf_ktime_get_coarse_ns();
	if (p->tcp_flags & TCP_ACK)
		conn->ack = p->ack;
	if ((conn->flags & CONN_CONFIRMED) && !reopening &&
	    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return;
	conn_transition(skb, p, conn);
}
