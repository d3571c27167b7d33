/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Totals of who has talked to whom, on networks with NETWORK_FLOWS. What is translated is counted here at once, packet by
 * packet: its connection's row can go in ways of which nobody is told. What goes on untranslated is added when its row is
 * ended (tally.h).
 */
#pragma once
#include "lib/verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct edge_id);
	__type(value, struct edge);
} edges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_rest);
} flow_rest SEC(".maps");

/* Which total that is, of what is not refused. */
static __always_inline void edge_of(struct scratch *room, __u32 network, __u32 from, __u32 to,
				    __be16 port, __u8 proto)
{
	room->edge_id.network = network;
	room->edge_id.from = from;
	room->edge_id.to = to;
	room->edge_id.rule = 0;
	room->edge_id.port = port;
	room->edge_id.proto = proto;
	room->edge_id.reason = 0;
}

/* Adds room->edge to the total of room->edge_id. A function of its own for the verifier, which looks at it once. */
__noinline int edge_add(void)
{
	struct scratch *room = scratch();
	struct flow_rest *rest;
	struct edge *edge;
	__u32 zero = 0;

	if (!room)
		return 0;
	room->edge.last = bpf_ktime_get_coarse_ns();
	edge = bpf_map_lookup_elem(&edges, &room->edge_id);
	if (!edge) {
		room->edge.first = room->edge.last;
		if (!bpf_map_update_elem(&edges, &room->edge_id, &room->edge, BPF_NOEXIST))
			return 0;
		edge = bpf_map_lookup_elem(&edges, &room->edge_id);
	}
	if (!edge) {
		rest = bpf_map_lookup_elem(&flow_rest, &zero);
		if (!rest)
			return 0;
		edge = &rest->over;
		if (!edge->first)
			edge->first = room->edge.last;
	}
	/* Of one packet most are zero, and others add to the same line of the cache. */
	if (room->edge.connections)
		__sync_fetch_and_add(&edge->connections, room->edge.connections);
	if (room->edge.sent_packets)
		__sync_fetch_and_add(&edge->sent_packets, room->edge.sent_packets);
	if (room->edge.sent_bytes)
		__sync_fetch_and_add(&edge->sent_bytes, room->edge.sent_bytes);
	if (room->edge.received_packets)
		__sync_fetch_and_add(&edge->received_packets, room->edge.received_packets);
	if (room->edge.received_bytes)
		__sync_fetch_and_add(&edge->received_bytes, room->edge.received_bytes);
	if (edge->last != room->edge.last)
		edge->last = room->edge.last;
	return 0;
}
