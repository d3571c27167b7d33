/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers to a container's ARP requests and neighbour solicitations, so that nothing is ever flooded for them. */
#pragma once
#include "lib/exits.h"
#include "lib/neighbour.h"
#include "lib/source.h"

static __noinline int answer_arp(struct __sk_buff *skb, const struct packet *p,
				 const struct device *device, const struct network *net)
{
	__u8 mac[ETH_ALEN];

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	/* Announcements and probes for its own address: the map knows already. */
	if (p->arp_operation != ARPOP_REQUEST || is_own(device, &p->tuple.dst))
		return consume(skb, ABSORBED);
	if (!neighbour_mac(device->network, net, &p->tuple.dst, mac))
		return drop(skb, DROP_UNKNOWN_ARP);
	return answer(skb, rewrite_arp_reply(skb, p, mac), 0);
}

static __noinline int answer_solicitation(struct __sk_buff *skb, const struct packet *p,
					  const struct device *device, const struct network *net)
{
	struct ip_addr target;
	__u8 mac[ETH_ALEN];

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	if (!solicited(skb, p, &target))
		return drop(skb, DROP_TRUNCATED);
	if (is_own(device, &target))
		return consume(skb, ABSORBED);
	if (addr_is_v4(&target) || !neighbour_mac(device->network, net, &target, mac))
		return drop(skb, DROP_UNKNOWN_ARP);
	return answer(skb, rewrite_advertisement(skb, p, (struct in6_addr *)&target, mac), 0);
}

/* About its own addresses the map knows already; any other address is spoofed. */
static __noinline int absorb_advertisement(struct __sk_buff *skb, const struct packet *p,
					   const struct device *device)
{
	struct ip_addr target;

	if (!p || !device)
		return TC_ACT_SHOT;
	if (!solicited(skb, p, &target))
		return drop(skb, DROP_TRUNCATED);
	if (is_own(device, &target))
		return consume(skb, ABSORBED);
	return drop(skb, DROP_SPOOFED_ARP);
}
