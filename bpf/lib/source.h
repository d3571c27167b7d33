/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Source validation: a container sends from its own MAC and addresses only. */
#pragma once
#include "lib/neighbour.h"
#include "lib/networks.h"

/* Is it one of the sender's addresses? `device` has the usual ones; the map has those that were asked for beside them,
 * and is looked at only where they do not match. */
static __always_inline bool is_own(const struct device *device, const struct ip_addr *addr)
{
	struct endpoint *endpoint = endpoint_find(device->network, addr);

	return endpoint && endpoint->number == device->endpoint;
}

/* A source that is not a usual one. Beyond its link no link-local one goes (RFC 3927, 2.6.2; of IPv6 ones `leave` sees
 * to it). A function of its own: from_container has not the stack for the keys. */
static __noinline int source_check_more(const struct packet *p, const struct device *device)
{
	if (!p || !device)
		return DROP_DEVICE;
	if (!is_own(device, &p->tuple.src))
		return p->ethertype == bpf_htons(ETH_P_ARP) ? DROP_SPOOFED_ARP : DROP_SPOOFED_ADDR;
	if (p->ethertype == bpf_htons(ETH_P_IP) && !endpoint_find(device->network, &p->tuple.dst))
		return DROP_BAD_ADDR;
	return 0;
}

/* Returns 0 if the frame's source is the container's own, or a drop reason. */
static __always_inline int source_check(const struct packet *p, const struct device *device,
					const struct network *net)
{
	const struct tuple *t = &p->tuple;

	if (!mac_equal(p->src_mac, device->mac) || mac_is_group(p->src_mac))
		return DROP_SPOOFED_MAC;
	switch (p->ethertype) {
	case bpf_htons(ETH_P_ARP):
		/* A probe for a duplicate asks from 0.0.0.0 (RFC 5227, 2.1.1). */
		if (!t->src.word[3] || addr_equal(&t->src, &device->addr4))
			return 0;
		return source_check_more(p, device);
	case bpf_htons(ETH_P_IP):
		if (addr_equal(&t->src, &device->addr4))
			return 0;
		return source_check_more(p, device);
	}
	if (!(net->flags & NETWORK_IPV6))
		return DROP_NO_IPV6;
	if (t->proto == IPPROTO_ICMPV6 &&
	    (p->icmp_type == ND_ROUTER_ADVERTISEMENT || p->icmp_type == ND_REDIRECT))
		return DROP_ROUTER;
	/* From the unspecified address only neighbour discovery and listener reports come. */
	if (addr_is_zero(&t->src))
		return t->proto == IPPROTO_ICMPV6 && mac_is_group(p->dst_mac) ? 0
									      : DROP_SPOOFED_ADDR;
	if (addr_equal(&t->src, &device->addr6) || addr_equal(&t->src, &device->linklocal))
		return 0;
	return source_check_more(p, device);
}
