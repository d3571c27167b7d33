/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Broadcast and multicast, as a container sends it. */
#pragma once
#include "lib/exits.h"

/* Returns 0 if what is in a group's frame may go to all of the group, or a drop reason. */
static __always_inline int group_check(const struct packet *p, const struct network *net)
{
	__be32 dst = p->tuple.dst.word[3];

	/* A unicast address in a group frame would reach members without icc. */
	if (p->ethertype == bpf_htons(ETH_P_IP)
		    ? !v4_is_multicast(dst) && dst != 0xffffffff && dst != net->broadcast
		    : (p->tuple.dst.word[0] & bpf_htonl(0xff000000)) != bpf_htonl(0xff000000))
		return DROP_WRONG_MAC;
	/* Scopes 0 and 1 are the sender's own device (RFC 4291, 2.7). */
	if (is_ipv6(p) && bpf_ntohl(p->tuple.dst.word[0] & bpf_htonl(0x000f0000)) <= 0x00010000)
		return DROP_MULTICAST_OFF;
	return 0;
}

/* Do policies let a container send to the group? Nobody answers by the same addresses, so that nothing is remembered. */
__noinline int judge_group(struct __sk_buff *skb, const struct packet *p, __u32 sender)
{
	struct scratch *room = scratch();
	struct judgement *asked;

	if (!p || !room)
		return DROP_DEVICE;
	asked = &room->judgement;
	asked->from = sender;
	asked->to = PARTY_OUTSIDE;
	opening_is(asked, &p->tuple, &p->tuple.dst, p->tuple.dport);
	return judged(skb, judge(), true);
}

/* Broadcast and multicast: to the host, and to the members where they may talk. */
static __always_inline int to_group(struct __sk_buff *skb, const struct packet *p,
				    const struct device *device, const struct network *net)
{
	int reason = group_check(p, net);

	if (reason)
		return drop(skb, reason);
	reason = policies_now() ? judge_group(skb, p, device->endpoint) : 0;
	if (reason)
		return drop(skb, reason & ~TOLD);
	if (net->flags & NETWORK_ICC)
		members_flood(skb, device->network, net, device->endpoint);
	count(skb, FLOODED);
	return bpf_redirect(net->ifindex, BPF_F_INGRESS);
}
