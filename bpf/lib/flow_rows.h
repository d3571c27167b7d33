/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is remembered, a CPU and for a moment, of flows between members of overlay networks on two hosts: how one that
 * leaves goes on, and who gets one that arrives. When the control plane has changed a row that the decision may rest on,
 * it says so in `epoch`, and nothing counts any more that was remembered before.
 */
#pragma once
#include "lib/encap.h"
#include "lib/overlay.h"

#define FLOWS 512 /* a power of two; each CPU has as many each way, and as many wide ones */

/* What is looked at of a packet; what a tunnel puts between that and its own Ethernet header is before it. */
struct flow_head {
	struct iphdr ip;
	__be32 ports;
	__be32 rest; /* so that all of a UDP header is there */
};

struct wide_head {
	struct ipv6hdr ip;
	__be32 ports;
	__be32 rest;
};

struct tx_way {
	__u8 dst[ETH_ALEN], src[ETH_ALEN];
	__u32 mtu; /* bytes of an IP packet, with the tunnel's headers */
	__u64 epoch, until;
	__u32 ifindex;	/* that it leaves by */
	__u32 overhead; /* bytes of the tunnel's headers, 0: there is none */
	struct bpf_redir_neigh hop;
	union {
		struct vxlan_made made;
		struct vxlan_over_v6 made6;
	};
};

struct rx_way {
	__u64 epoch, until;
	__u32 ifindex; /* host end of the recipient's pair */
	__u8 dst[ETH_ALEN], src[ETH_ALEN];
};

struct tx_flow {
	struct flow_key key;
	struct tx_way way;
};

struct tx_wide {
	struct wide_key key;
	struct tx_way way;
};

struct rx_flow {
	struct flow_key key;
	struct rx_way way;
};

struct rx_wide {
	struct wide_key key;
	struct rx_way way;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct tx_flow);
} tx_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct rx_flow);
} rx_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct tx_wide);
} tx_wides SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct rx_wide);
} rx_wides SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct epoch);
} epoch SEC(".maps");

static __always_inline __u64 epoch_now(void)
{
	struct epoch *found;
	__u32 zero = 0;

	found = bpf_map_lookup_elem(&epoch, &zero);
	return found ? *(volatile __u64 *)&found->changed : 0;
}

static __always_inline __u32 flow_place(const struct flow_key *key)
{
	__u32 hash = (key->src ^ key->dst) * 0x9e3779b1 ^ key->ports;

	hash = (hash ^ hash >> 15) * 0x85ebca6b;
	return hash >> 16 & (FLOWS - 1);
}

static __always_inline bool flow_equal(const struct flow_key *a, const struct flow_key *b)
{
	return !((a->src ^ b->src) | (a->dst ^ b->dst) | (a->ports ^ b->ports) |
		 (a->ifindex ^ b->ifindex) | (a->outer ^ b->outer) | (a->vni ^ b->vni) |
		 (a->proto ^ b->proto) | (a->tunnelled ^ b->tunnelled));
}

static __always_inline __u32 wide_place(const struct wide_key *key)
{
	const struct ip_addr *src = &key->tuple.src, *dst = &key->tuple.dst;
	__u32 hash = src->word[1] ^ dst->word[1] ^ (src->word[2] ^ dst->word[2]) * 31;

	hash = (hash ^ src->word[3] ^ dst->word[3]) * 0x9e3779b1;
	hash ^= key->tuple.sport | (__u32)key->tuple.dport << 16;
	hash = (hash ^ hash >> 15) * 0x85ebca6b;
	return hash >> 16 & (FLOWS - 1);
}

static __always_inline bool wide_equal(const struct wide_key *a, const struct wide_key *b)
{
	return tuple_equal(&a->tuple, &b->tuple) && addr_equal(&a->outer, &b->outer) &&
	       !((a->vni ^ b->vni) | (a->ifindex ^ b->ifindex) | (a->ethertype ^ b->ethertype) |
		 (a->tunnelled ^ b->tunnelled));
}

static __always_inline bool way_counts(__u64 began, __u64 until)
{
	return began == epoch_now() && bpf_ktime_get_coarse_ns() < until;
}

/* The key of a packet that is plain. It is in the scratch memory, for who learns what becomes of it. */
static __always_inline struct flow_key *flow_key_new(struct scratch *room, struct __sk_buff *skb,
						     const struct flow_head *head)
{
	struct flow_key *key = &room->flow;

	key->src = head->ip.saddr;
	key->dst = head->ip.daddr;
	key->ports = head->ports;
	key->proto = head->ip.protocol;
	key->ifindex = skb->ifindex;
	key->outer = key->vni = 0;
	key->tunnelled = 0;
	return key;
}

static __always_inline struct wide_key *wide_key_new(struct scratch *room, struct __sk_buff *skb,
						     __u8 proto, __be32 ports, __be16 ethertype)
{
	struct wide_key *key = &room->wide;

	key->tuple.sport = ports;
	key->tuple.dport = ports >> 16;
	key->tuple.proto = proto;
	key->ethertype = ethertype;
	key->ifindex = skb->ifindex;
	key->outer.word[0] = key->outer.word[1] = key->outer.word[2] = key->outer.word[3] = 0;
	key->vni = 0;
	key->tunnelled = 0;
	return key;
}

/* The key of an IPv6 packet that is plain, */
static __always_inline struct wide_key *wide_key_of(struct scratch *room, struct __sk_buff *skb,
						    const struct wide_head *head)
{
	__builtin_memcpy(&room->wide.tuple.src, &head->ip.saddr, sizeof(struct ip_addr));
	__builtin_memcpy(&room->wide.tuple.dst, &head->ip.daddr, sizeof(struct ip_addr));
	return wide_key_new(room, skb, head->ip.nexthdr, head->ports, bpf_htons(ETH_P_IPV6));
}

/* and of one of IPv4, which came over IPv6. */
static __always_inline struct wide_key *wide_key_of_v4(struct scratch *room, struct __sk_buff *skb,
						       const struct flow_head *head)
{
	addr_set_v4(&room->wide.tuple.src, head->ip.saddr);
	addr_set_v4(&room->wide.tuple.dst, head->ip.daddr);
	return wide_key_new(room, skb, head->ip.protocol, head->ports, bpf_htons(ETH_P_IP));
}

/* Nobody has remembered anything: what becomes of the packet is to be, if it can. */
static __always_inline int flow_is_new(struct scratch *room, enum flow_kind kind)
{
	room->epoch = epoch_now();
	room->flow_is_new = kind;
	return NO_VERDICT;
}

/* What is left in the scratch memory may be of another packet. This one has come in no tunnel, */
static __always_inline void flow_check(struct scratch *room)
{
	if (room->flow_is_new == FLOW_WIDE ? room->wide.tunnelled : room->flow.tunnelled)
		room->flow_is_new = FLOW_NONE;
}

/* or in one, with that number; in `p` is what is outside. */
static __always_inline void flow_check_outer(struct scratch *room, const struct packet *p,
					     __be32 vni)
{
	bool same;

	if (room->flow_is_new == FLOW_WIDE)
		same = room->wide.tunnelled == (is_ipv6(p) ? 6 : 4) && room->wide.vni == vni &&
		       addr_equal(&room->wide.outer, &p->tuple.src);
	else
		same = !is_ipv6(p) && room->flow.tunnelled && room->flow.vni == vni &&
		       room->flow.outer == p->tuple.src.word[3];
	if (!same)
		room->flow_is_new = FLOW_NONE;
}

/* A network with another flag than these asks for more than rows that `epoch` is about. */
#define FLOW_NETWORK                                                                     \
	(NETWORK_ACTIVE | NETWORK_IPV4 | NETWORK_IPV6 | NETWORK_ICC | NETWORK_INTERNAL | \
	 NETWORK_MASQUERADE | NETWORK_RESOLVER | NETWORK_BESIDE | NETWORK_HOST_ROUTED |  \
	 NETWORK_OVERLAY)

/* Are flows of the network remembered? Without icc it is for a link to say what passes. */
static __always_inline bool flow_counts_in(const struct network *net)
{
	return (net->flags & NETWORK_ICC) && !(net->flags & ~FLOW_NETWORK);
}

/* Is what became of the packet to be remembered, by which key? */
static __always_inline enum flow_kind
flow_wanted(const struct __sk_buff *skb, const struct scratch *room, const struct packet *p)
{
	const struct flow_key *key = &room->flow;
	const struct wide_key *wide = &room->wide;
	const struct tuple *t = &p->tuple;

	if (p->fragment)
		return FLOW_NONE;
	if (room->flow_is_new == FLOW_WIDE)
		return skb->ifindex == wide->ifindex && p->ethertype == wide->ethertype &&
				       tuple_equal(t, &wide->tuple)
			       ? FLOW_WIDE
			       : FLOW_NONE;
	return room->flow_is_new && !is_ipv6(p) && skb->ifindex == key->ifindex &&
			       t->src.word[3] == key->src && t->dst.word[3] == key->dst &&
			       t->proto == key->proto &&
			       (t->sport | (__u32)t->dport << 16) == key->ports
		       ? FLOW_IPV4
		       : FLOW_NONE;
}

/* The row of the packet's flow, whose key is written; NULL: nothing is to be remembered. */
static __always_inline struct tx_way *tx_way_new(const struct __sk_buff *skb,
						 const struct scratch *room, const struct packet *p)
{
	enum flow_kind kind = flow_wanted(skb, room, p);
	struct tx_flow *flow;
	struct tx_wide *wide;
	__u32 place;

	if (kind == FLOW_WIDE) {
		place = wide_place(&room->wide);
		wide = bpf_map_lookup_elem(&tx_wides, &place);
		if (!wide)
			return NULL;
		wide->key = room->wide;
		return &wide->way;
	}
	if (kind != FLOW_IPV4)
		return NULL;
	place = flow_place(&room->flow);
	flow = bpf_map_lookup_elem(&tx_flows, &place);
	if (!flow)
		return NULL;
	flow->key = room->flow;
	return &flow->way;
}

/* The same of what has arrived. */
static __always_inline struct rx_way *rx_way_new(const struct __sk_buff *skb,
						 const struct scratch *room, const struct packet *p)
{
	enum flow_kind kind = flow_wanted(skb, room, p);
	struct rx_flow *flow;
	struct rx_wide *wide;
	__u32 place;

	if (kind == FLOW_WIDE) {
		place = wide_place(&room->wide);
		wide = bpf_map_lookup_elem(&rx_wides, &place);
		if (!wide)
			return NULL;
		wide->key = room->wide;
		return &wide->way;
	}
	if (kind != FLOW_IPV4)
		return NULL;
	place = flow_place(&room->flow);
	flow = bpf_map_lookup_elem(&rx_flows, &place);
	if (!flow)
		return NULL;
	flow->key = room->flow;
	return &flow->way;
}

/* The packet leaves by room->fib, if it is not larger than `mtu`; so do those that follow it. Where they are to go
 * through a tunnel what is returned takes its headers. NULL: none of that is to be remembered. */
static __always_inline struct tx_way *flow_learn_way(struct __sk_buff *skb, struct scratch *room,
						     const struct packet *p, __u32 mtu)
{
	struct tx_way *way = skb->mark ? NULL : tx_way_new(skb, room, p);

	if (!way)
		return NULL;
	__builtin_memcpy(way->dst, p->dst_mac, ETH_ALEN);
	__builtin_memcpy(way->src, p->src_mac, ETH_ALEN);
	way->mtu = mtu < room->fib.mtu_result ? mtu : room->fib.mtu_result;
	way->epoch = room->epoch;
	way->until = room->until;
	way->ifindex = room->fib.ifindex;
	way->overhead = 0;
	way->hop.nh_family = room->fib.family;
	__builtin_memcpy(way->hop.ipv6_nh, room->fib.ipv6_dst, sizeof(way->hop.ipv6_nh));
	return way;
}

/* The packet goes to that member, with this source MAC; so do those that follow it, until `until` (ns). */
static __always_inline void flow_learn_recipient(const struct __sk_buff *skb, struct scratch *room,
						 const struct packet *p,
						 const struct endpoint *endpoint, const __u8 *mac,
						 __u64 until)
{
	struct rx_way *way = rx_way_new(skb, room, p);

	if (!way)
		return;
	way->epoch = room->epoch;
	way->until = until;
	way->ifindex = endpoint->ifindex;
	__builtin_memcpy(way->dst, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(way->src, mac, ETH_ALEN);
}
