/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A client's port that is another one's at the host of its backend, where both have come by other hosts: that host knows,
 * and sends the packet back with which this one's connection begins, as an answer without a hop left. The connection gets
 * another port, and the packet goes there once more. What has none here, as a socket of the host's own, keeps its port: it
 * is the one that is answered then.
 */
#pragma once
#include "lib/forward.h"
#include "lib/nat.h"
#include "lib/tails.h"

/* The connection that the answer in room->probe would be of begins again, with another port; its packets that are under way
 * come back as well. Its key is in room->sides. Returns 0, or a drop reason. */
__noinline int change_port(struct __sk_buff *skb, __u32 network)
{
	struct scratch *room = scratch();
	struct conn *reply, *original;
	struct conn_sides *sides;
	struct caller *taken;
	__u64 packets, bytes;
	bool hidden;
	int reason;

	if (!room)
		return DROP_CONN_TABLE;
	reply = conn_find(&room->probe);
	original = reply ? conn_opposite(reply) : NULL;
	if (!original)
		return DROP_NO_CONN;
	sides = &room->sides;
	__builtin_memset(sides, 0, sizeof(*sides));
	sides->key = reply->other;
	sides->other = room->probe;
	sides->client_network = reply->to_network;
	sides->client_endpoint = reply->to_endpoint;
	sides->server_network = original->to_network;
	sides->server_endpoint = original->to_endpoint;
	sides->flags = original->flags & (CONN_SERVICE | CONN_COUNTED | CONN_DSR);
	sides->backend = original->backend;
	packets = original->packets;
	bytes = original->bytes;
	hidden = !addr_equal(&sides->key.src, &sides->other.dst);
	taken = &room->caller;
	__builtin_memset(taken, 0, sizeof(*taken));
	taken->network = network;
	taken->seen = bpf_ktime_get_coarse_ns();
	if (!hidden) {
		taken->addr = sides->key.dst;
		taken->port = sides->key.dport;
		taken->mark = sides->key.sport;
	}
	bpf_map_update_elem(&callers, &room->probe, taken, BPF_ANY);
	conn_forget(&room->probe);
	reason = nat_open(skb, false, !hidden && sides->client_endpoint != PARTY_HOST);
	if (reason)
		return reason;
	original = conn_opened(&sides->key);
	if (original && !original->packets) {
		original->packets = packets;
		original->bytes = bytes;
	}
	return 0;
}

/* Has it just begun, so that its port can be another one? Over TCP also in the place of one that is over. */
static __always_inline bool has_begun(const struct conn *reply, __u8 proto)
{
	const struct conn *original;

	if (proto != IPPROTO_TCP)
		return !(reply->flags & CONN_CONFIRMED);
	original = conn_opposite(reply);
	return original && original->state == CONN_NEW;
}

/* The key, in room->sides, of the connection whose packet has come back, the one of the answer in room->probe. Returns 0, a
 * drop reason, or NO_VERDICT: it can have no other port. */
__noinline int taken_find(struct __sk_buff *skb, __u32 network)
{
	struct scratch *room = scratch();
	struct caller *taken;
	struct conn *reply;

	if (!room)
		return DROP_CONN_TABLE;
	reply = conn_find(&room->probe);
	if (reply) {
		if ((reply->flags & (CONN_SERVICE | CONN_ORIGINAL)) != CONN_SERVICE ||
		    reply->from_endpoint != PARTY_PEER)
			return DROP_NO_CONN;
		return has_begun(reply, room->probe.proto) ? change_port(skb, network) : NO_VERDICT;
	}
	taken = bpf_map_lookup_elem(&callers, &room->probe);
	if (!taken || taken->peer)
		return NO_VERDICT;
	/* It has another port by now; who has asked in this host's name is not known any more. */
	if (!taken->port)
		return DROP_NO_CONN;
	__builtin_memset(&room->sides, 0, sizeof(room->sides));
	room->sides.key.src = room->probe.dst;
	room->sides.key.sport = taken->mark;
	room->sides.key.dst = taken->addr;
	room->sides.key.dport = taken->port;
	room->sides.key.proto = room->probe.proto;
	return 0;
}

/* `room->sides.client_network`: the number of the network. */
static __always_inline int take_another(struct __sk_buff *skb, struct packet *p,
					struct scratch *room)
{
	__u32 number = room->sides.client_network;
	struct conn *conn = NULL;
	__u8 ttl = 0;
	int reason;

	room->probe = p->tuple;
	reason = taken_find(skb, number);
	if (reason && reason != NO_VERDICT)
		return drop(skb, reason);
	tuple_reverse(&room->leaving, &p->tuple);
	if (!reason) {
		conn = conn_opened(&room->sides.key);
		if (!conn || !(conn->flags & CONN_ORIGINAL) || conn->to_endpoint != PARTY_PEER)
			return drop(skb, DROP_CONN_TABLE);
		tuple_reverse(&room->leaving, &conn->other);
		ttl = IPDEFTTL;
	}
	if (rewrite_tuple(skb, p, &room->leaving, ttl))
		return drop(skb, DROP_REWRITE);
	packet_became(p, &room->leaving, ttl);
	p->by_peer = 0;
	if (conn) {
		room->probe = room->sides.key;
		by_tunnel(room, p, conn);
		room->sides.key = room->probe;
		return go_on(skb, TAIL_TO_PEER);
	}
	room->sides.client_network = number;
	room->sides.client_endpoint = 0;
	room->sides.key.proto = 0;
	return go_on(skb, TAIL_TO_PEER);
}
