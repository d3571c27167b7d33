/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Source validation: a container sends from its own MAC and addresses only. */
#pragma once
#include "lib/neighbour.h"
#include "lib/networks.h"

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
		if (t->src.word[3] && !addr_equal(&t->src, &device->addr4))
			return DROP_SPOOFED_ARP;
		return 0;
	case bpf_htons(ETH_P_IP):
		return addr_equal(&t->src, &device->addr4) ? 0 : DROP_SPOOFED_ADDR;
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
	return DROP_SPOOFED_ADDR;
}
