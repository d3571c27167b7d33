/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How much passes on connections, and to and from the backends of services. Each packet is counted in the row of its
 * direction, and what a service has led to a backend at once in that backend's row too, which nothing ends: no eviction,
 * time-out or removal of a connection has to hand anything over, and one look is exact. (Only connections to services pay
 * for the second.)
 */
#pragma once
#include "lib/conntrack.h"
#include "lib/edges.h"
#include "lib/measure.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_count_key);
	__type(value, struct service_count);
} service_counts SEC(".maps");

/* `number`: of a service or a backend. */
static __always_inline struct service_count *service_count_find(__u32 number)
{
	struct service_count_key key = {.number = number};

	return bpf_map_lookup_elem(&service_counts, &key);
}

/* Another connection begins in the place of one that is over, with that packet or, NULL, without one this way. */
static __always_inline void conn_count_anew(struct conn *conn, const struct packet *p)
{
	conn->packets = p ? 1 : 0;
	conn->bytes = p ? p->length : 0;
}

/* `in`: to the backend, else from it. */
static __noinline int backend_counted(__u32 number, int in, __u32 packets, __u32 bytes)
{
	struct service_count *count = service_count_find(number);

	if (!count)
		return 0;
	if (in) {
		count->packets_in += packets;
		count->bytes_in += bytes;
	} else {
		count->packets_out += packets;
		count->bytes_out += bytes;
	}
	return 0;
}

/* Counts where nothing ends: for the backend that a service has chosen, and for a watched network. `own`: the key of the
 * direction; `first`: it is the first packet that way. A connection of TCP counts by its SYN. */
__noinline int conn_counted(const struct tuple *own, const struct conn *conn, __u32 packets,
			    __u32 bytes, int first)
{
	struct scratch *room = scratch();
	bool original;

	if (!own || !conn || !room)
		return 0;
	original = conn->flags & CONN_ORIGINAL;
	if (conn->backend)
		backend_counted(conn->backend, original, packets, bytes);
	if (!conn->watched)
		return 0;
	/* Whatever becomes of it now, it is in one total. */
	room->packet.watched = 0;
	if (original)
		edge_of(room, conn->watched, conn->from_endpoint, conn->to_endpoint,
			conn->other.sport, own->proto);
	else
		edge_of(room, conn->watched, conn->to_endpoint, conn->from_endpoint, own->sport,
			own->proto);
	if (own->proto == IPPROTO_TCP)
		first = is_tcp_opening(&room->packet) && (first || conn->state >= CONN_CLOSING);
	room->edge.connections = original && first;
	room->edge.sent_packets = original ? packets : 0;
	room->edge.sent_bytes = original ? bytes : 0;
	room->edge.received_packets = original ? 0 : packets;
	room->edge.received_bytes = original ? 0 : bytes;
	return edge_add();
}

/* A packet of the connection whose direction that is, by the key `own`. What was cut off another one has been counted with
 * it. */
static __always_inline void conn_count(const struct __sk_buff *skb, const struct packet *p,
				       const struct tuple *own, struct conn *conn)
{
	struct measure size;
	__u64 before;

	if (p->again)
		return;
	size = packet_measure(p, skb->gso_size);
	before = __sync_fetch_and_add(&conn->packets, size.packets);
	__sync_fetch_and_add(&conn->bytes, size.bytes);
	if (conn->backend | conn->watched)
		conn_counted(own, conn, size.packets, size.bytes, !before);
}
