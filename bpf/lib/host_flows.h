/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows on an uplink that are the host's own. That a packet is none of ours takes looking for its connection, and for a
 * published port, in vain: it counts, a CPU and for a moment, for the plain ones of its flow that follow (flows.h), unless
 * a connection with its tuple may have come to be, or the control plane has changed a row.
 */
#pragma once
#include "lib/flow_rows.h"
#include "lib/openings.h"

#define HOST_FLOWS 1024 /* a power of two; each CPU has as many */

struct host_flow {
	struct tuple tuple;
	__be16 ethertype; /* as in struct wide_key */
	__u16 pad;
	__u32 pad2;
	__u64 opened, epoch, until;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOST_FLOWS);
	__type(key, __u32);
	__type(value, struct host_flow);
} host_flows SEC(".maps");

static __always_inline struct host_flow *host_flow_at(__u32 hash)
{
	__u32 place = hash >> 14 & (HOST_FLOWS - 1);

	return bpf_map_lookup_elem(&host_flows, &place);
}

/* Does it count still? If not what becomes of the packet is to be remembered, if it can. */
static __always_inline bool host_flow_counts(struct scratch *room, const struct host_flow *flow,
					     bool same, __u32 hash)
{
	__u64 opened = openings_of(hash), epoch = epoch_now(), now = bpf_ktime_get_coarse_ns();

	if (same && flow->opened == opened && flow->epoch == epoch && now < flow->until)
		return true;
	room->host_flow_is_new = 1;
	room->host_opened = opened;
	room->epoch = epoch;
	room->until = now + WAY_LIFE;
	return false;
}

/* A plain packet of IPv4: is its flow known to be the host's? */
static __always_inline bool host_has_flow(struct scratch *room, const struct iphdr *ip,
					  __be32 ports)
{
	__u32 hash = opening_hash(ip->saddr, ip->daddr, ports, ip->protocol);
	struct host_flow *flow = host_flow_at(hash);
	const struct tuple *t;

	if (!flow)
		return false;
	t = &flow->tuple;
	return host_flow_counts(room, flow,
				flow->ethertype == bpf_htons(ETH_P_IP) &&
					t->src.word[3] == ip->saddr &&
					t->dst.word[3] == ip->daddr && t->proto == ip->protocol &&
					(t->sport | (__u32)t->dport << 16) == ports,
				hash);
}

/* The same of IPv6, whose tuple has been made. */
static __always_inline bool host_has_wide(struct scratch *room, const struct tuple *tuple)
{
	__u32 hash = opening_hash_of(tuple);
	struct host_flow *flow = host_flow_at(hash);

	return flow && host_flow_counts(room, flow,
					flow->ethertype == bpf_htons(ETH_P_IPV6) &&
						tuple_equal(&flow->tuple, tuple),
					hash);
}

/* The packet is the host's, as there is neither a connection nor a published port. */
static __always_inline void host_flow_learn(struct scratch *room, const struct packet *p)
{
	struct host_flow *flow;

	if (!room->host_flow_is_new || p->fragment)
		return;
	flow = host_flow_at(opening_hash_of(&p->tuple));
	if (!flow)
		return;
	flow->tuple = p->tuple;
	flow->ethertype = p->ethertype;
	flow->opened = room->host_opened;
	flow->epoch = room->epoch;
	flow->until = room->until;
}
