/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way of a tunnel's packets by the host's routing table. It is asked again for each flow after a moment, and not for
 * every packet: the answer is most of what a packet to another host costs. A change of routes counts that much later.
 */
#pragma once
#include "lib/overlay.h"
#include "lib/routes.h"

#define WAYS 256 /* a power of two; each CPU has as many */

struct way {
	struct tuple outer; /* of what, sent by */
	__u32 ifindex;	    /* the network with this gateway device */
	__u32 mtu;	    /* bytes of an IP packet */
	__u64 until;	    /* ns, CLOCK_MONOTONIC */
	struct bpf_fib_lookup fib;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WAYS);
	__type(key, __u32);
	__type(value, struct way);
} ways SEC(".maps");

/* The way that is asked for next: of tunnels to a peer, from that port. False: this host has no end of that family. */
static __always_inline bool way_is_to(struct scratch *room, const struct tunnel *own,
				      const struct peer *peer, __be16 sport)
{
	bool v4 = addr_is_v4(&peer->addr);

	room->leaving.src = v4 ? own->addr4 : own->addr6;
	room->leaving.dst = peer->addr;
	room->leaving.sport = sport;
	room->leaving.dport = own->port;
	room->leaving.proto = IPPROTO_UDP;
	room->leaving.pad[0] = room->leaving.pad[1] = room->leaving.pad[2] = 0;
	return !addr_is_zero(&room->leaving.src);
}

/* Asks for the way of room->leaving, of `length` bytes. Forwarding is on for the network's gateway device. */
static __always_inline int way_ask(struct __sk_buff *skb, const struct network *net,
				   struct scratch *room, __u32 length)
{
	const struct tuple *outer = &room->leaving;
	struct bpf_fib_lookup *fib = &room->fib;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->l4_protocol = IPPROTO_UDP;
	fib->sport = outer->sport;
	fib->dport = outer->dport;
	fib->tot_len = length > 0xffff ? 0xffff : length;
	fib->ifindex = net->ifindex;
	if (addr_is_v4(&outer->dst)) {
		fib->family = AF_INET;
		fib->ipv4_src = outer->src.word[3];
		fib->ipv4_dst = outer->dst.word[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &outer->src, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &outer->dst, sizeof(fib->ipv6_dst));
	}
	return route_answer(skb, fib, false);
}

/* The way of room->leaving, of `length` bytes, is in room->fib, and until when it counts in room->until. Returns BPF_FIB_LKUP_RET_*. */
__noinline int way_find(struct __sk_buff *skb, const struct network *net, __u32 length)
{
	struct scratch *room = scratch();
	__u64 now = bpf_ktime_get_coarse_ns();
	struct way *way;
	__u32 place;
	int route;

	if (!net || !room)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	place = (bpf_ntohs(room->leaving.sport) ^ bpf_ntohl(room->leaving.dst.word[3])) &
		(WAYS - 1);
	way = bpf_map_lookup_elem(&ways, &place);
	if (!way)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	if (now < way->until && length <= way->mtu && way->ifindex == net->ifindex && !skb->mark &&
	    tuple_equal(&way->outer, &room->leaving)) {
		room->fib = way->fib;
		room->until = way->until;
		return BPF_FIB_LKUP_RET_SUCCESS;
	}
	room->until = 0;
	route = way_ask(skb, net, room, length);
	if (!route_leads_out(route) || skb->mark)
		return route;
	way->outer = room->leaving;
	way->ifindex = net->ifindex;
	way->mtu = room->fib.mtu_result;
	way->until = room->until = now + WAY_LIFE;
	way->fib = room->fib;
	return route;
}
