/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who talks to whom: packets of members of networks with NETWORK_FLOWS are counted, in a row for both directions of what
 * they belong to. The conntrack GC ends rows (conn_gc.bpf.c) and adds them to totals, the edges; what was refused, and
 * what finds no room for a row, is added at once. So each packet is in one row, or in one total, whoever looks or not.
 *
 * A row is ended while other CPUs may still count in it: it is marked first, then emptied, each counter at once. Who has
 * counted looks at the mark after that; if it is there, what is left in the counters is his to add to the total.
 */
#pragma once
#include "lib/edges.h"
#include "lib/endpoints.h"
#include "lib/flow_ids.h"
#include "lib/measure.h"

#define FINISHED 1 /* in `finished` */
#define RESET	 2

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_id);
	__type(value, struct flow);
} flows SEC(".maps");

/* No program looks at it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct party_key);
	__type(value, struct party);
} parties SEC(".maps");

/* The keys of `flows`, in the order in which the GC looks at them. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 65536);
	__type(value, struct flow_id);
} flow_queue SEC(".maps");

static __always_inline void edge_name(struct scratch *room, __u32 from, __u32 to, __be16 port)
{
	edge_of(room, room->flow_id.network, from, to, port, room->flow_id.proto);
}

/* What a row has counted is taken out of it, and added to the total of who has begun it. Its key is room->flow_id. */
__noinline int flow_fold(struct flow *flow)
{
	struct flow_half *opener, *other;
	struct scratch *room = scratch();
	bool a_began;

	if (!flow || !room)
		return 0;
	a_began = flow->a.opener;
	opener = a_began ? &flow->a : &flow->b;
	other = a_began ? &flow->b : &flow->a;
	edge_name(room, opener->from, opener->to,
		  a_began ? room->flow_id.port_b : room->flow_id.port_a);
	room->edge.connections = __sync_lock_test_and_set(&opener->openings, 0);
	room->edge.sent_packets = __sync_lock_test_and_set(&opener->packets, 0);
	room->edge.sent_bytes = __sync_lock_test_and_set(&opener->bytes, 0);
	room->edge.received_packets = __sync_lock_test_and_set(&other->packets, 0);
	room->edge.received_bytes = __sync_lock_test_and_set(&other->bytes, 0);
	if (room->edge.connections | room->edge.sent_packets | room->edge.received_packets |
	    room->edge.sent_bytes | room->edge.received_bytes)
		edge_add();
	return 0;
}

static __always_inline bool flow_is_closed(const struct flow *flow)
{
	__u8 a = flow->a.finished, b = flow->b.finished;

	return (a & b & FINISHED) || ((a | b) & RESET);
}

static __always_inline bool edge_is_known(struct scratch *room, __u32 from, __u32 to, __be16 port)
{
	edge_name(room, from, to, port);
	return bpf_map_lookup_elem(&edges, &room->edge_id);
}

/* Has the packet's sender begun what it is the first seen packet of? Where it does not say so itself, what is known of
 * earlier ones does: an answer can come after the row of its question was ended. */
static __always_inline bool sender_began(struct scratch *room, const struct packet *p, __u32 from,
					 __be16 sport, __be16 dport)
{
	if (is_opening(p))
		return true;
	if (is_tcp_answer(p) && !(p->tcp_flags & TCP_RST))
		return false;
	if (is_echo_reply(p))
		return false;
	if (edge_is_known(room, from, p->party, dport))
		return true;
	if (edge_is_known(room, p->party, from, sport))
		return false;
	return p->tuple.proto != IPPROTO_TCP || bpf_ntohs(sport) >= bpf_ntohs(dport);
}

/* Does the packet begin something, which counts as a connection? Of what the programs see only the middle of, no. */
static __always_inline bool begins(const struct packet *p, bool sender_is_opener)
{
	return p->tuple.proto == IPPROTO_TCP ? is_opening(p) : sender_is_opener;
}

/* Who is who from now on. */
static __always_inline void flow_label(struct flow_half *sends, struct flow_half *other,
				       const struct packet *p, __u32 from, bool began)
{
	sends->from = other->to = from;
	sends->to = other->from = p->party;
	sends->opener = began;
	other->opener = !began;
	sends->finished = other->finished = 0;
	sends->since = other->since = bpf_ktime_get_coarse_ns();
	sends->openings = began && begins(p, began);
	other->openings = 0;
}

/* A packet that has no row, and gets none. */
static __always_inline void edge_count(struct scratch *room, const struct packet *p, __u32 from,
				       bool began, const struct measure *size)
{
	__be16 sport = p->fragment ? 0 : p->tuple.sport, dport = p->fragment ? 0 : p->tuple.dport;

	if (began)
		edge_name(room, from, p->party, dport);
	else
		edge_name(room, p->party, from, sport);
	/* Of others than TCP each packet would seem to begin something. */
	room->edge.connections = is_opening(p);
	room->edge.sent_packets = began ? size->packets : 0;
	room->edge.sent_bytes = began ? size->bytes : 0;
	room->edge.received_packets = began ? 0 : size->packets;
	room->edge.received_bytes = began ? 0 : size->bytes;
	edge_add();
}

/* A row for what the packet is the first of. Returns it; NULL: there is no room, and the packet has been counted. */
static __noinline struct flow *flow_begin(struct scratch *room, const struct packet *p, __u32 from,
					  bool b_sends, const struct measure *size)
{
	__be16 sport = p->fragment ? 0 : p->tuple.sport, dport = p->fragment ? 0 : p->tuple.dport;
	bool began = sender_began(room, p, from, sport, dport);
	struct flow_rest *rest;
	struct flow *flow;
	__u32 zero = 0;

	rest = bpf_map_lookup_elem(&flow_rest, &zero);
	__builtin_memset(&room->flow_row, 0, sizeof(room->flow_row));
	if (b_sends)
		flow_label(&room->flow_row.b, &room->flow_row.a, p, from, began);
	else
		flow_label(&room->flow_row.a, &room->flow_row.b, p, from, began);
	if (rest && !bpf_map_update_elem(&flows, &room->flow_id, &room->flow_row, BPF_NOEXIST)) {
		if (bpf_map_push_elem(&flow_queue, &room->flow_id, 0)) {
			bpf_map_delete_elem(&flows, &room->flow_id);
			goto full;
		}
		__sync_fetch_and_add(&rest->queued, 1);
	}
	flow = bpf_map_lookup_elem(&flows, &room->flow_id);
	if (flow)
		return flow;
full:
	edge_count(room, p, from, began, size);
	return NULL;
}

/* Counts a packet that p->sender has sent, and p->party gets. */
static __noinline int flow_count(struct __sk_buff *skb, const struct packet *p)
{
	struct measure size = packet_measure(p, skb->gso_size);
	struct flow_half *sends, *other;
	struct scratch *room = scratch();
	__u32 from = p->sender;
	struct flow *flow;
	bool b_sends;
	__u64 now;

	if (!room)
		return 0;
	b_sends = flow_id_of(&p->tuple, !p->fragment, p->watched, &room->flow_id);
	flow = bpf_map_lookup_elem(&flows, &room->flow_id);
	if (!flow)
		flow = flow_begin(room, p, from, b_sends, &size);
	if (!flow)
		return 0;
	sends = b_sends ? &flow->b : &flow->a;
	other = b_sends ? &flow->a : &flow->b;
	/* Another container has the address now, or another connection the ports: also if only the end of the one before
	 * was seen, as there was no room for a row when it began. */
	if (sends->from != from || sends->to != p->party ||
	    (is_opening(p) && (flow_is_closed(flow) || !(sends->openings | other->openings)))) {
		flow_fold(flow);
		flow_label(sends, other, p, from,
			   sender_began(room, p, from, p->fragment ? 0 : p->tuple.sport,
					p->fragment ? 0 : p->tuple.dport));
	}
	now = bpf_ktime_get_coarse_ns();
	if (sends->seen != now)
		sends->seen = now;
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		sends->finished |= p->tcp_flags & TCP_RST ? RESET : FINISHED;
	__sync_fetch_and_add(&sends->packets, size.packets);
	/* With a result it is an order for what follows, on all processors. */
	room->flow_row.a.bytes = __sync_fetch_and_add(&sends->bytes, size.bytes);
	if (*(volatile __u32 *)&sends->ended)
		flow_fold(flow);
	return 0;
}

/* Counts a packet that was refused, as it came: it may have become what its sender is told. One that nobody would have got
 * says little by its port. */
static __noinline int edge_refuse(const struct packet *p)
{
	struct measure size = packet_measure(p, p->segment);
	struct scratch *room = scratch();

	if (!room)
		return 0;
	room->flow_id.network = p->watched;
	room->flow_id.proto = p->tuple.proto;
	edge_name(room, p->sender, p->party, p->party && !p->fragment ? p->tuple.dport : 0);
	room->edge_id.reason = p->reason;
	room->edge.connections = p->tuple.proto != IPPROTO_TCP || is_opening(p);
	room->edge.sent_packets = size.packets;
	room->edge.sent_bytes = size.bytes;
	room->edge.received_packets = room->edge.received_bytes = 0;
	return edge_add();
}

/* Counts a packet of a watched network, once it is decided what becomes of it. What is translated is counted with its
 * connection. Returns the verdict. */
__noinline int tally(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	if (!p)
		return TC_ACT_SHOT;
	if (p->reason)
		edge_refuse(p);
	else if (p->party && verdict == TC_ACT_REDIRECT)
		flow_count(skb, p);
	return verdict;
}
