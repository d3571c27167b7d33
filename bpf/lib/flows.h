/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows between members of overlay networks on two hosts. What was decided about a packet counts for those that follow
 * (flow_rows.h): they need none of the tables. What is asked of each packet is in the key, or asked again here. Only the
 * simplest packets are so: without options or extension headers, TCP or UDP, in networks whose members may all talk to
 * each other, without limits. All others, and the first ones, take the long way.
 */
#pragma once
#include "lib/exits.h"
#include "lib/flow_rows.h"
#include "lib/host_flows.h"
#include "lib/xfrm.h"

#define FLOW_INNER  (L3 + sizeof(struct iphdr) + VXLAN_LINK)
#define FLOW_INNER6 (L3 + sizeof(struct ipv6hdr) + VXLAN_LINK)

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

/* The same of an IPv6 packet. */
static __always_inline bool wide_is_plain(const struct ipv6hdr *ip, __u32 room)
{
	__u32 length = bpf_ntohs(ip->payload_len);

	if (*(const __u8 *)ip >> 4 != 6 || length + sizeof(*ip) > room)
		return false;
	switch (ip->nexthdr) {
	case IPPROTO_TCP:
		return length >= sizeof(struct tcphdr);
	case IPPROTO_UDP:
		return length >= sizeof(struct udphdr);
	}
	return false;
}

/* Bytes of an IP packet as it will be on a wire, of each segment if it will be cut into some; 0: that cannot be said.
 * `whole`: as its header states it; `header`: bytes of that; `l4`: what is behind. */
static __always_inline __u32 flow_length(struct __sk_buff *skb, __u32 whole, __u32 header,
					 __u8 proto, const void *l4, const void *end)
{
	const struct tcphdr *tcp = l4;

	if (!skb->gso_size)
		return whole;
	if (proto == IPPROTO_UDP)
		return skb->gso_size + header + sizeof(struct udphdr);
	if ((const void *)(tcp + 1) > end)
		return 0;
	return skb->gso_size + header + ((const __u8 *)tcp)[12] / 16 * 4;
}

/* Sends a packet of a known flow, of so many bytes on a wire. `ecn`: its two bits of congestion notification. */
static __always_inline int flow_send(struct __sk_buff *skb, struct tx_way *way, __u32 length,
				     __u8 ecn)
{
	int error = 0;

	if (!length || length + way->overhead > way->mtu)
		return NO_VERDICT;
	if (way->overhead == vxlan_overhead(false))
		error = vxlan_push_made(skb, &way->made, ecn);
	else if (way->overhead)
		error = vxlan_push_made_v6(skb, &way->made6, ecn);
	if (error)
		return error > 0 ? NO_VERDICT : drop(skb, DROP_REWRITE);
	count(skb, TO_PEER);
	return bpf_redirect_neigh(way->ifindex, &way->hop, sizeof(way->hop), 0);
}

static __always_inline bool tx_way_counts(const struct tx_way *way, const struct ethhdr *eth)
{
	return way_counts(way->epoch, way->until) && mac_equal(way->dst, eth->h_dest) &&
	       mac_equal(way->src, eth->h_source);
}

/* Is there something about the packet that no key has? */
static __always_inline bool flow_is_odd(const struct __sk_buff *skb)
{
	return skb->mark || skb->vlan_present || xfrm_is_asked();
}

/* What a container sends by IPv6, if its flow is known. Returns a verdict, or NO_VERDICT. */
static __always_inline int flow_leaves_v6(struct __sk_buff *skb, struct scratch *room,
					  const struct ethhdr *eth, const void *end)
{
	const struct wide_head *head = (const void *)(eth + 1);
	struct tunnel *own = tunnel_own();
	struct wide_key *key;
	struct tx_wide *flow;
	__u32 place, length;

	if (!own || !own->port || (void *)(head + 1) > end ||
	    eth->h_proto != bpf_htons(ETH_P_IPV6) || !wide_is_plain(&head->ip, skb->len - L3) ||
	    flow_is_odd(skb))
		return NO_VERDICT;
	key = wide_key_of(room, skb, head);
	place = wide_place(key);
	flow = bpf_map_lookup_elem(&tx_wides, &place);
	if (!flow)
		return NO_VERDICT;
	if (!wide_equal(&flow->key, key) || !tx_way_counts(&flow->way, eth))
		return flow_is_new(room, FLOW_WIDE);
	length = flow_length(skb, bpf_ntohs(head->ip.payload_len) + sizeof(head->ip),
			     sizeof(head->ip), head->ip.nexthdr, &head->ports, end);
	return flow_send(skb, &flow->way, length, ((const __u8 *)&head->ip)[1] >> 4 & CONGESTED);
}

/* What a container sends, likewise. */
__noinline int flow_leaves(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow_head *head = (void *)(eth + 1);
	void *end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct tx_flow *flow;
	struct flow_key *key;
	__u32 place, length;

	if (!room)
		return NO_VERDICT;
	room->flow_is_new = FLOW_NONE;
	if ((void *)(head + 1) > end)
		return NO_VERDICT;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return flow_leaves_v6(skb, room, eth, end);
	if (!flow_is_plain(&head->ip, skb->len - L3) || flow_is_odd(skb))
		return NO_VERDICT;
	key = flow_key_new(room, skb, head);
	place = flow_place(key);
	flow = bpf_map_lookup_elem(&tx_flows, &place);
	if (!flow)
		return NO_VERDICT;
	if (!flow_equal(&flow->key, key) || !tx_way_counts(&flow->way, eth))
		return flow_is_new(room, FLOW_IPV4);
	length = flow_length(skb, bpf_ntohs(head->ip.tot_len), sizeof(head->ip), head->ip.protocol,
			     &head->ports, end);
	return flow_send(skb, &flow->way, length, head->ip.tos & CONGESTED);
}

/* Is what lies within an outer IP packet a tunnel's frame, for one, of that family, and freed of its headers without a
 * further question? What came joined is not, nor what is to be marked, or lost. `length`: as the outer header states,
 * bytes; `ecn`: of that. */
static __always_inline bool link_is_plain(const struct __sk_buff *skb,
					  const struct vxlan_link *link, __u32 length, __u8 ecn,
					  bool v6)
{
	return length <= skb->len - L3 && (ecn & CONGESTED) != CONGESTED && !skb->gso_size &&
	       length >= vxlan_overhead(v6) + sizeof(struct iphdr) &&
	       link->vxlan.flags == VXLAN_HAS_VNI && !mac_is_group(link->inner.h_dest);
}

/* Is what has come in a tunnel over IPv4 so? */
static __always_inline bool flow_is_wrapped(const struct __sk_buff *skb, const struct iphdr *outer)
{
	return *(const __u8 *)outer == 0x45 && !(outer->frag_off & IP_FRAGMENT) &&
	       link_is_plain(skb, (const void *)(outer + 1), bpf_ntohs(outer->tot_len), outer->tos,
			     false);
}

/* Has the device to free it of a tunnel's headers, whatever flow it is of? Joined segments a program would leave marked as a
 * tunnel's. Behind the device the same is asked of them. */
static __always_inline bool is_for_device(const struct __sk_buff *skb, const struct tunnel *own)
{
	return skb->gso_size && own->ifindex;
}

/* The packet, freed of so many bytes of headers, goes to who gets its flow. `becomes`: as in vxlan_strip. */
static __always_inline int rx_deliver(struct __sk_buff *skb, const struct rx_way *way,
				      __u32 overhead, __be16 becomes)
{
	int error = overhead ? vxlan_strip(skb, overhead, becomes) : 0;

	if (error > 0)
		return NO_VERDICT;
	if (error || rewrite_macs(skb, way->dst, way->src))
		return drop(skb, DROP_REWRITE);
	count(skb, DELIVERED);
	return bpf_redirect_peer(way->ifindex, 0);
}

/* Who gets the flow whose key has been made; NULL: it is not known, and what becomes of the packet is to be. */
static __always_inline struct rx_way *flow_known(struct scratch *room)
{
	__u32 place = flow_place(&room->flow);
	struct rx_flow *flow = bpf_map_lookup_elem(&rx_flows, &place);

	if (!flow)
		return NULL;
	if (flow_equal(&flow->key, &room->flow) && way_counts(flow->way.epoch, flow->way.until))
		return &flow->way;
	flow_is_new(room, FLOW_IPV4);
	return NULL;
}

static __always_inline struct rx_way *wide_known(struct scratch *room)
{
	__u32 place = wide_place(&room->wide);
	struct rx_wide *flow = bpf_map_lookup_elem(&rx_wides, &place);

	if (!flow)
		return NULL;
	if (wide_equal(&flow->key, &room->wide) && way_counts(flow->way.epoch, flow->way.until))
		return &flow->way;
	flow_is_new(room, FLOW_WIDE);
	return NULL;
}

/* IPv6 in a tunnel over IPv4, which has been found plain. */
__noinline int flow_arrives_within(struct __sk_buff *skb)
{
	struct iphdr *outer = (void *)(long)skb->data + L3;
	struct wide_head *inner = (void *)(long)skb->data + FLOW_INNER;
	struct vxlan_link *link = (void *)(outer + 1);
	void *end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct wide_key *key;
	struct rx_way *way;

	if (!room || (void *)(inner + 1) > end ||
	    bpf_ntohs(outer->tot_len) < vxlan_overhead(false) + sizeof(inner->ip) ||
	    !wide_is_plain(&inner->ip, skb->len - FLOW_INNER))
		return NO_VERDICT;
	key = wide_key_of(room, skb, inner);
	addr_set_v4(&key->outer, outer->saddr);
	key->vni = link->vxlan.vni;
	key->tunnelled = 4;
	way = wide_known(room);
	return way ? rx_deliver(skb, way, vxlan_overhead(false), bpf_htons(ETH_P_IPV6))
		   : NO_VERDICT;
}

/* What arrives on an uplink by IPv6, if its flow is known. Returns a verdict, or NO_VERDICT. */
static __always_inline int flow_arrives_v6(struct __sk_buff *skb, struct scratch *room,
					   const struct tunnel *own)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct wide_head *head = (void *)(eth + 1);
	struct flow_head *inner4 = (void *)(long)skb->data + FLOW_INNER6;
	struct wide_head *inner6 = (void *)inner4;
	struct vxlan_link *link = (void *)(&head->ip + 1);
	void *end = (void *)(long)skb->data_end;
	struct wide_key *key;
	struct rx_way *way;
	__u32 length;
	__be16 becomes = 0;

	if ((void *)(head + 1) > end || eth->h_proto != bpf_htons(ETH_P_IPV6))
		return NO_VERDICT;
	if (head->ip.nexthdr == IPPROTO_UDP && link->udp.dest == own->port &&
	    addr_equal((const struct ip_addr *)&head->ip.daddr, &own->addr6)) {
		if (is_for_device(skb, own))
			return not_ours(skb);
		length = bpf_ntohs(head->ip.payload_len) + sizeof(head->ip);
		if ((void *)(inner4 + 1) > end || !wide_is_plain(&head->ip, skb->len - L3) ||
		    !link_is_plain(skb, link, length, ((const __u8 *)&head->ip)[1] >> 4, true) ||
		    xfrm_is_asked_in())
			return NO_VERDICT;
		switch (link->inner.h_proto) {
		case bpf_htons(ETH_P_IP):
			if (!flow_is_plain(&inner4->ip, skb->len - FLOW_INNER6))
				return NO_VERDICT;
			key = wide_key_of_v4(room, skb, inner4);
			becomes = bpf_htons(ETH_P_IP);
			break;
		case bpf_htons(ETH_P_IPV6):
			if ((void *)(inner6 + 1) > end ||
			    length < vxlan_overhead(true) + sizeof(inner6->ip) ||
			    !wide_is_plain(&inner6->ip, skb->len - FLOW_INNER6))
				return NO_VERDICT;
			key = wide_key_of(room, skb, inner6);
			break;
		default:
			return NO_VERDICT;
		}
		__builtin_memcpy(&key->outer, &head->ip.saddr, sizeof(key->outer));
		key->vni = link->vxlan.vni;
		key->tunnelled = 6;
		way = wide_known(room);
		return way ? rx_deliver(skb, way, vxlan_overhead(true), becomes) : NO_VERDICT;
	}
	if (!wide_is_plain(&head->ip, skb->len - L3))
		return NO_VERDICT;
	key = wide_key_of(room, skb, head);
	if (own->flags & TUNNEL_DIRECT) {
		way = wide_known(room);
		if (way)
			return rx_deliver(skb, way, 0, 0);
	}
	return host_has_wide(room, &key->tuple) ? not_ours(skb) : NO_VERDICT;
}

/* What arrives on an uplink, likewise. */
__noinline int flow_arrives(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow_head *inner = (void *)(long)skb->data + FLOW_INNER;
	struct flow_head *head = (void *)(eth + 1);
	struct vxlan_link *link = (void *)(&head->ip + 1);
	void *end = (void *)(long)skb->data_end;
	struct scratch *room = scratch();
	struct tunnel *own = tunnel_own();
	struct flow_key *key;
	struct rx_way *way;

	if (!room || !own)
		return NO_VERDICT;
	room->flow_is_new = FLOW_NONE;
	room->host_flow_is_new = 0;
	if ((void *)(head + 1) > end || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NO_VERDICT;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return flow_arrives_v6(skb, room, own);
	if (head->ip.protocol == IPPROTO_UDP && link->udp.dest == own->port &&
	    head->ip.daddr == own->addr4.word[3]) {
		if (is_for_device(skb, own) && *(const __u8 *)&head->ip == 0x45 &&
		    !(head->ip.frag_off & IP_FRAGMENT))
			return not_ours(skb);
		if ((void *)(inner + 1) > end || !flow_is_wrapped(skb, &head->ip) ||
		    xfrm_is_asked_in())
			return NO_VERDICT;
		if (link->inner.h_proto == bpf_htons(ETH_P_IPV6))
			return flow_arrives_within(skb);
		if (link->inner.h_proto != bpf_htons(ETH_P_IP) ||
		    !flow_is_plain(&inner->ip, skb->len - FLOW_INNER))
			return NO_VERDICT;
		key = flow_key_new(room, skb, inner);
		key->outer = head->ip.saddr;
		key->vni = link->vxlan.vni;
		key->tunnelled = 4;
		way = flow_known(room);
		return way ? rx_deliver(skb, way, vxlan_overhead(false), 0) : NO_VERDICT;
	}
	if (!flow_is_plain(&head->ip, skb->len - L3))
		return NO_VERDICT;
	if (own->flags & TUNNEL_DIRECT) {
		flow_key_new(room, skb, head);
		way = flow_known(room);
		if (way)
			return rx_deliver(skb, way, 0, 0);
	}
	return host_has_flow(room, &head->ip, head->ports) ? not_ours(skb) : NO_VERDICT;
}
