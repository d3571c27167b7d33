/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The actions that end a hook: into a container, to all members, to the host, to the outside, back to the sender. */
#pragma once
#include "lib/endpoints.h"
#include "lib/limits.h"
#include "lib/policies.h"
#include "lib/rewrite.h"

#define LOOPBACK 1 /* its index in every network namespace */

/* In tc_index, which the kernel hands on from device to device and nobody reads. */
#define ANSWER_MARK 0x0d47
/* Likewise: a question that arrives once more, as an upstream did not know (answered.bpf.c). */
#define AGAIN_MARK 0x0d53

/*
 * Straight into the container's namespace: no queue, no second device. The device that
 * received the frame took it for somebody else's (PACKET_OTHERHOST), as its MAC is not the
 * one that was asked for, and nobody looks again after redirect_peer.
 */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p,
				   const struct endpoint *endpoint, const __u8 *src_mac)
{
	__u32 ifindex = endpoint->ifindex;

	if ((endpoint->limited & LIMIT_INGRESS) &&
	    !limit_admits(endpoint->number, LIMIT_INGRESS, wire_length(skb, p)))
		return drop(skb, DROP_BANDWIDTH);
	if (!mac_equal(p->dst_mac, endpoint->mac) || !mac_equal(p->src_mac, src_mac)) {
		__u8 dst[ETH_ALEN];

		__builtin_memcpy(dst, endpoint->mac, ETH_ALEN);
		if (rewrite_macs(skb, dst, src_mac))
			return drop(skb, DROP_REWRITE);
	}
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count(skb, DELIVERED);
	return p->at_egress ? bpf_redirect(ifindex, 0) : bpf_redirect_peer(ifindex, 0);
}

/* May a container get the answer that its own packet has become? Anybody else may. */
static __always_inline bool answer_is_admitted(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct device *device;

	if (!room || !(room->packet.limited & LIMIT_INGRESS))
		return true;
	device = device_find(skb->ifindex, DEVICE_ENDPOINT);
	return !device || limit_admits(device->endpoint, LIMIT_INGRESS, skb->len);
}

/* The sender of a packet that was dropped is told, from `src`, why: `mtu` as in error_kind_v4(). A verdict; BY_TUNNEL, if
 * that is to another host. */
__noinline int tell_sender(struct __sk_buff *skb, const struct packet *p, const struct ip_addr *src,
			   __u32 mtu)
{
	if (!p || !src || addr_is_zero(src) || mac_is_group(p->dst_mac))
		return TC_ACT_SHOT;
	if (rewrite_into_error(skb, p, src, mtu) || rewrite_macs(skb, p->src_mac, p->dst_mac))
		return TC_ACT_SHOT;
	if (p->by_peer)
		return BY_TUNNEL;
	if (!answer_is_admitted(skb))
		return TC_ACT_SHOT;
	/* What is at a device's egress is the host's, and arrives there. */
	return bpf_redirect(skb->ifindex, p->at_egress ? BPF_F_INGRESS : 0);
}

/* Likewise, of one that had no hop left (`mtu` 0) or is larger than its way takes. */
static __always_inline int answer_error(struct __sk_buff *skb, const struct packet *p,
					const struct ip_addr *src, __u32 mtu)
{
	drop(skb, mtu ? DROP_TOO_BIG : DROP_TTL);
	return tell_sender(skb, p, src, mtu);
}

/* Dropped for what a function has said that judges or opens: a drop reason, and TOLD. `net`: the sender's network, by whose
 * gateway a container hears of it; NULL: by whom it has asked. */
__noinline int refused(struct __sk_buff *skb, const struct packet *p, const struct network *net,
		       __u32 said)
{
	const struct ip_addr *gateway;

	if (!p)
		return TC_ACT_SHOT;
	drop(skb, said & ~TOLD);
	if (!(said & TOLD))
		return TC_ACT_SHOT;
	gateway = !net ? NULL : is_ipv6(p) ? &net->gateway6 : &net->gateway4;
	if (!gateway || addr_is_zero(gateway))
		gateway = &p->tuple.dst;
	return tell_sender(skb, p, gateway, PROHIBITED);
}

/* The host's stack sees it arrive on the network's gateway device. */
static __always_inline int to_host(struct __sk_buff *skb, const struct network *net)
{
	count(skb, TO_HOST);
	return bpf_redirect(net->ifindex, BPF_F_INGRESS);
}

/* The same of what a gateway device is not named as the receiver of yet. */
static __always_inline int to_gateway(struct __sk_buff *skb, const struct packet *p,
				      const struct network *net)
{
	if (!mac_equal(p->dst_mac, net->mac) && rewrite_macs(skb, net->mac, p->src_mac))
		return drop(skb, DROP_REWRITE);
	return to_host(skb, net);
}

/*
 * To a socket of the host's that has sent over the loopback device. The answer leaves by that device,
 * with a route as of the host's own sending: without one its stack would refuse addresses that
 * are its own. from_loopback is told not to take it for such a sending.
 */
static __always_inline int to_loopback(struct __sk_buff *skb)
{
	skb->tc_index = ANSWER_MARK;
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count(skb, TO_HOST);
	return bpf_redirect_neigh(LOOPBACK, NULL, 0, 0);
}

/* Through the device and next hop that the host's table gave. */
static __always_inline int by_next_hop(struct __sk_buff *skb, const struct bpf_fib_lookup *fib,
				       __u32 reason)
{
	struct bpf_redir_neigh nexthop = {};

	/* An IPv4 route can lead through an IPv6 router: the lookup says so in its family. */
	nexthop.nh_family = fib->family;
	__builtin_memcpy(nexthop.ipv6_nh, fib->ipv6_dst, sizeof(nexthop.ipv6_nh));
	count(skb, reason);
	return bpf_redirect_neigh(fib->ifindex, &nexthop, sizeof(nexthop), 0);
}

static __always_inline int to_outside(struct __sk_buff *skb, const struct bpf_fib_lookup *fib)
{
	return by_next_hop(skb, fib, TO_OUTSIDE);
}

struct flood {
	struct __sk_buff *skb;
	__u32 network;
	__u32 sender;	  /* endpoint number, gets no copy */
	__u32 generation; /* of policies, 0: there are none */
};

/* Does no policy list whom the member lets in? */
static __always_inline bool group_may_reach(const struct flood *flood, __u32 endpoint)
{
	struct subject_key key = {.generation = flood->generation, .endpoint = endpoint};
	struct subject *subject;

	if (!flood->generation)
		return true;
	subject = bpf_map_lookup_elem(&subjects, &key);
	return subject && !(subject->directions & POLICY_IN_LISTED);
}

static long flood_one(__u32 slot, struct flood *flood)
{
	struct member_key key = {.network = flood->network, .slot = slot};
	struct member *member = bpf_map_lookup_elem(&members, &key);

	if (member && member->endpoint != flood->sender &&
	    group_may_reach(flood, member->endpoint) &&
	    limit_admits(member->endpoint, LIMIT_INGRESS, flood->skb->len))
		bpf_clone_redirect(flood->skb, member->ifindex, 0);
	return 0;
}

/* One copy to every member but the sender. */
static __always_inline void members_flood(struct __sk_buff *skb, __u32 network,
					  const struct network *net, __u32 sender)
{
	struct flood flood = {
		.skb = skb,
		.network = network,
		.sender = sender,
		.generation = policies_now(),
	};

	bpf_loop(net->slots, flood_one, &flood, 0);
}

/*
 * The frame has become its own answer. `flags`: 0, out of the device that it came from;
 * BPF_F_INGRESS, to the host's stack as if it had arrived there. `error`: of rewriting it.
 */
static __always_inline int answer(struct __sk_buff *skb, int error, __u64 flags)
{
	if (error)
		return drop(skb, DROP_REWRITE);
	if (!answer_is_admitted(skb))
		return drop(skb, DROP_BANDWIDTH);
	count(skb, ANSWERED);
	return bpf_redirect(skb->ifindex, flags);
}

/* The same for one of a container's: straight into its namespace, as deliver() does it. */
static __always_inline int answer_straight(struct __sk_buff *skb, int error)
{
	if (error)
		return drop(skb, DROP_REWRITE);
	if (!answer_is_admitted(skb))
		return drop(skb, DROP_BANDWIDTH);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count(skb, ANSWERED);
	return bpf_redirect_peer(skb->ifindex, 0);
}
