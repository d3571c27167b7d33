/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows between members of overlay networks on two hosts. What was decided about a packet is remembered for a moment, a
 * CPU, and counts for those that follow: they need none of the tables. What is asked of each packet is in the key, or
 * asked again here. When the control plane has changed a row that the decision may rest on, it says so in `epoch`, and
 * nothing counts any more that was remembered before. Only the simplest packets are so: IPv4 without options, TCP or UDP,
 * in networks whose members may all talk to each other, without limits. All others, and the first ones, take the long way.
 */
#pragma once
#include "lib/encap.h"
#include "lib/exits.h"
#include "lib/overlay.h"
#include "lib/xfrm.h"

#define FLOWS 512 /* a power of two; each CPU has as many each way */

/* What is looked at of a packet; what a tunnel over IPv4 puts between that and its own Ethernet header is before it. */
struct flow_head {
	struct iphdr ip;
	__be32 ports;
	__be32 rest; /* so that all of a UDP header is there */
};

#define FLOW_INNER (L3 + sizeof(struct iphdr) + VXLAN_LINK)

struct tx_flow {
	struct flow_key key;
	__u8 dst[ETH_ALEN], src[ETH_ALEN];
	__u32 mtu; /* bytes of an IP packet, with the tunnel's headers */
	__u64 epoch, until;
	__u32 ifindex;	/* that it leaves by */
	__u32 overhead; /* bytes of the tunnel's headers, 0: there is none */
	struct bpf_redir_neigh hop;
	struct vxlan_made made;
};

struct rx_flow {
	struct flow_key key;
	__u64 epoch, until;
	__u32 ifindex; /* host end of the recipient's pair */
	__u8 dst[ETH_ALEN], src[ETH_ALEN];
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

/* An IPv4 packet of which nothing but this is to be known. `room`: bytes that there are of it at the most. */
static __always_inline bool flow_is_plain(const struct iphdr *ip, __u32 room)
{
	__u32 length = bpf_ntohs(ip->tot_len);

	if (*(const __u8 *)ip != 0x45 || (ip->frag_off & IP_FRAGMENT) || length > room)
		return false;
	switch (ip->protocol) {
	case IPPROTO_TCP:
		return length >= sizeof(*ip) + sizeof(struct tcphdr);
	case IPPROTO_UDP:
		return length >= sizeof(*ip) + sizeof(struct udphdr);
	}
	return false;
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

/* Nobody has remembered anything: what becomes of the packet is to be. */
static __always_inline int flow_is_new(struct scratch *room)
{
	room->epoch = epoch_now();
	room->flow_is_new = 1;
	return NO_VERDICT;
}

/* What is left in the scratch memory may be of another packet. This one has come in no tunnel, */
static __always_inline void flow_check(struct scratch *room)
{
	if (room->flow.tunnelled)
		room->flow_is_new = 0;
}

/* or in one, with that number; in `p` is what is outside. */
static __always_inline void flow_check_outer(struct scratch *room, const struct packet *p,
					     __be32 vni)
{
	if (is_ipv6(p) || !room->flow.tunnelled || room->flow.outer != p->tuple.src.word[3] ||
	    room->flow.vni != vni)
		room->flow_is_new = 0;
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

/* Is what became of the packet to be remembered, and has its key been made? */
static __always_inline bool flow_is_wanted(const struct __sk_buff *skb, const struct scratch *room,
					   const struct packet *p)
{
	const struct flow_key *key = &room->flow;
	const struct tuple *t = &p->tuple;

	return room->flow_is_new && !is_ipv6(p) && !p->fragment && skb->ifindex == key->ifindex &&
	       t->src.word[3] == key->src && t->dst.word[3] == key->dst && t->proto == key->proto &&
	       (t->sport | (__u32)t->dport << 16) == key->ports;
}

/* Bytes of an IP packet as it will be on a wire, of each segment if it will be cut into some; 0: that cannot be said. */
static __always_inline __u32 flow_length(struct __sk_buff *skb, const struct flow_head *head,
					 const void *end)
{
	const struct tcphdr *tcp = (const void *)&head->ports;

	if (!skb->gso_size)
		return bpf_ntohs(head->ip.tot_len);
	if (head->ip.protocol == IPPROTO_UDP)
		return skb->gso_size + sizeof(struct iphdr) + sizeof(struct udphdr);
	if ((const void *)(tcp + 1) > end)
		return 0;
	return skb->gso_size + sizeof(struct iphdr) + ((const __u8 *)tcp)[12] / 16 * 4;
}

/* What a container sends, if its flow is known. Returns a verdict, or NO_VERDICT. */
__noinline int flow_leaves(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow_head *head = (void *)(eth + 1);
	void *end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct tx_flow *flow;
	struct flow_key *key;
	__u32 place, length;
	int error;
	__u8 ecn;

	if (!room)
		return NO_VERDICT;
	room->flow_is_new = 0;
	if ((void *)(head + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    !flow_is_plain(&head->ip, skb->len - L3) || skb->mark || skb->vlan_present ||
	    xfrm_is_asked())
		return NO_VERDICT;
	key = flow_key_new(room, skb, head);
	place = flow_place(key);
	flow = bpf_map_lookup_elem(&tx_flows, &place);
	if (!flow)
		return NO_VERDICT;
	if (!flow_equal(&flow->key, key) || flow->epoch != epoch_now() ||
	    bpf_ktime_get_coarse_ns() >= flow->until || !mac_equal(flow->dst, eth->h_dest) ||
	    !mac_equal(flow->src, eth->h_source))
		return flow_is_new(room);
	length = flow_length(skb, head, end);
	if (!length || length + flow->overhead > flow->mtu)
		return NO_VERDICT;
	ecn = head->ip.tos & CONGESTED;
	error = flow->overhead ? vxlan_push_made(skb, &flow->made, ecn) : 0;
	if (error)
		return error > 0 ? NO_VERDICT : drop(skb, DROP_REWRITE);
	count(skb, TO_PEER);
	return bpf_redirect_neigh(flow->ifindex, &flow->hop, sizeof(flow->hop), 0);
}

/* The packet leaves by room->fib, if it is not larger than `mtu`; so do those that follow it. Where they are to go
 * through a tunnel what is returned takes its headers. NULL: none of that is to be remembered. */
static __always_inline struct tx_flow *flow_learn_way(struct __sk_buff *skb, struct scratch *room,
						      const struct packet *p, __u32 mtu)
{
	struct tx_flow *flow;
	__u32 place;

	if (!flow_is_wanted(skb, room, p) || skb->mark)
		return NULL;
	place = flow_place(&room->flow);
	flow = bpf_map_lookup_elem(&tx_flows, &place);
	if (!flow)
		return NULL;
	flow->key = room->flow;
	__builtin_memcpy(flow->dst, p->dst_mac, ETH_ALEN);
	__builtin_memcpy(flow->src, p->src_mac, ETH_ALEN);
	flow->mtu = mtu < room->fib.mtu_result ? mtu : room->fib.mtu_result;
	flow->epoch = room->epoch;
	flow->until = room->until;
	flow->ifindex = room->fib.ifindex;
	flow->overhead = 0;
	flow->hop.nh_family = room->fib.family;
	__builtin_memcpy(flow->hop.ipv6_nh, room->fib.ipv6_dst, sizeof(flow->hop.ipv6_nh));
	return flow;
}

/* Is what has come in a tunnel plain, and freed of its headers without a further question? What came joined is not, nor
 * what is to be marked, or lost. `outer`: the IP header, its tunnel's are behind it. */
static __always_inline bool flow_is_wrapped(struct __sk_buff *skb, const struct iphdr *outer,
					    const struct flow_head *inner)
{
	const struct vxlan_header *vxlan = (const void *)(outer + 1) + sizeof(struct udphdr);
	const struct ethhdr *eth = (const void *)(vxlan + 1);
	__u32 length = bpf_ntohs(outer->tot_len), room = skb->len - L3;

	return *(const __u8 *)outer == 0x45 && !(outer->frag_off & IP_FRAGMENT) && length <= room &&
	       length >= vxlan_overhead(false) + sizeof(inner->ip) &&
	       vxlan->flags == VXLAN_HAS_VNI && eth->h_proto == bpf_htons(ETH_P_IP) &&
	       !mac_is_group(eth->h_dest) && (outer->tos & CONGESTED) != CONGESTED &&
	       !skb->gso_size && skb->len >= FLOW_INNER &&
	       flow_is_plain(&inner->ip, skb->len - FLOW_INNER);
}

/* What has come for a known flow, in a tunnel (`tunnelled`) or as it is. */
static __always_inline int flow_deliver(struct __sk_buff *skb, struct scratch *room, bool tunnelled)
{
	__u32 place = flow_place(&room->flow);
	struct rx_flow *flow = bpf_map_lookup_elem(&rx_flows, &place);

	if (!flow)
		return NO_VERDICT;
	if (!flow_equal(&flow->key, &room->flow) || flow->epoch != epoch_now() ||
	    bpf_ktime_get_coarse_ns() >= flow->until)
		return flow_is_new(room);
	if (tunnelled && vxlan_strip(skb, vxlan_overhead(false), 0))
		return NO_VERDICT;
	if (rewrite_macs(skb, flow->dst, flow->src))
		return drop(skb, DROP_REWRITE);
	count(skb, DELIVERED);
	return bpf_redirect_peer(flow->ifindex, 0);
}

/* What arrives on an uplink, if its flow is known. Returns a verdict, or NO_VERDICT. */
__noinline int flow_arrives(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow_head *inner = (void *)(long)skb->data + FLOW_INNER;
	struct flow_head *head = (void *)(eth + 1);
	struct udphdr *udp = (void *)(&head->ip + 1);
	void *end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct tunnel *own = tunnel_own();
	struct vxlan_header *vxlan = (void *)(udp + 1);
	struct flow_key *key;

	if (!room || !own)
		return NO_VERDICT;
	room->flow_is_new = 0;
	if ((void *)(head + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NO_VERDICT;
	if (head->ip.protocol == IPPROTO_UDP && udp->dest == own->port &&
	    head->ip.daddr == own->addr4.word[3]) {
		if ((void *)(inner + 1) > end || !flow_is_wrapped(skb, &head->ip, inner) ||
		    xfrm_is_asked_in())
			return NO_VERDICT;
		key = flow_key_new(room, skb, inner);
		key->outer = head->ip.saddr;
		key->vni = vxlan->vni;
		key->tunnelled = 1;
		return flow_deliver(skb, room, true);
	}
	if (!(own->flags & TUNNEL_DIRECT) || !flow_is_plain(&head->ip, skb->len - L3))
		return NO_VERDICT;
	flow_key_new(room, skb, head);
	return flow_deliver(skb, room, false);
}

/* The packet goes to that member, with this source MAC; so do those that follow it, until `until` (ns). */
static __always_inline void flow_learn_recipient(const struct __sk_buff *skb, struct scratch *room,
						 const struct packet *p,
						 const struct endpoint *endpoint, const __u8 *mac,
						 __u64 until)
{
	struct rx_flow *flow;
	__u32 place;

	if (!flow_is_wanted(skb, room, p))
		return;
	place = flow_place(&room->flow);
	flow = bpf_map_lookup_elem(&rx_flows, &place);
	if (!flow)
		return;
	flow->key = room->flow;
	flow->epoch = room->epoch;
	flow->until = until;
	flow->ifindex = endpoint->ifindex;
	__builtin_memcpy(flow->dst, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(flow->src, mac, ETH_ALEN);
}
