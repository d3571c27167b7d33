/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policies about connections that are translated: each is judged when it begins, and by whichever are in force later. */
#pragma once
#include "lib/policies.h"
#include "lib/ports.h"

/* May a socket of the host's that asks for a published port be pointed at the container? Not where policies are about the
 * port: of the container they would not be known to be. */
static __always_inline bool may_be_pointed(const struct port *port, const struct ip_addr *source,
					   const struct ip_addr *asked,
					   const struct bpf_sock_addr *ctx)
{
	struct port_scope_key key;

	return port_admits(port, source) &&
	       !(policies_now() && scope_find(&key, asked, ctx->user_port, ctx->protocol));
}

/*
 * May a connection be opened that is translated? `room->sides` says between whom: what begins it, and what its answer
 * will be. It is remembered there by which policies.
 */
__noinline int judge_sides(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct judgement *asked;
	struct conn_sides *sides;
	int said;

	if (!room)
		return DROP_DEVICE;
	asked = &room->judgement;
	sides = &room->sides;
	asked->from = sides->client_endpoint;
	asked->to = sides->server_endpoint;
	opening_is(asked, &sides->key, &sides->other.src, sides->other.sport);
	opening_by_port(asked, &sides->key);
	opening_by_host(asked, &sides->other.dst);
	said = judged(skb, judge(), true);
	sides->generation = said ? 0 : asked->generation;
	return said;
}

/* What is asked of a connection that is known, in the direction with that key: the opening that it began with. */
__noinline int conn_asks(const struct tuple *key, const struct conn *conn)
{
	struct scratch *room = scratch();
	struct judgement *asked;

	if (!key || !conn || !room)
		return 0;
	asked = &room->judgement;
	if (conn->flags & CONN_ORIGINAL) {
		asked->from = conn->from_endpoint;
		asked->to = conn->to_endpoint;
		opening_is(asked, key, &conn->other.src, conn->other.sport);
		opening_by_port(asked, key);
		opening_by_host(asked, &conn->other.dst);
	} else {
		asked->from = conn->to_endpoint;
		asked->to = conn->from_endpoint;
		opening_is(asked, &conn->other, &key->src, key->sport);
		opening_by_port(asked, &conn->other);
		opening_by_host(asked, &key->dst);
	}
	return 0;
}

/* May a packet of it still pass? `p` NULL: it is an error about it. Questions to upstreams were judged as such. */
static __always_inline int conn_stands(struct __sk_buff *skb, const struct packet *p,
				       const struct tuple *key, struct conn *conn)
{
	__u32 generation = policies_now();
	bool opens;
	int said;

	if (!generation || (conn->flags & CONN_QUESTION))
		return 0;
	/* Its port is used again. */
	opens = p && (conn->flags & CONN_ORIGINAL) && conn->state >= CONN_CLOSING &&
		is_tcp_opening(p);
	if (conn->generation == generation && !opens)
		return 0;
	conn_asks(key, conn);
	said = judged(skb, judge(), opens);
	/* Should others be in force by now, it is judged once more. */
	if (!said)
		conn->generation = generation;
	return said;
}
