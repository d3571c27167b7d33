/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Source validation: a container sends from its own MAC and addresses only. One that forwards (a router, a VPN's end)
 * also sends from addresses that nobody else has in its network; beyond the network's members, to the host and
 * the outside, only from those that the host routes to it: strict reverse path forwarding (RFC 3704).
 */
#pragma once
#include "lib/neighbour.h"
#include "lib/networks.h"
#include "lib/routes.h"

#define DHCP_SERVER bpf_htons(67)
#define DHCP_CLIENT bpf_htons(68)

/* Who has no address yet asks for one by DHCP (RFC 2131, 4.1), or tells which groups it listens to (RFC 3376, 4.2.13). */
static __always_inline bool is_without_address(const struct packet *p)
{
	if (p->tuple.src.word[3] || !mac_is_group(p->dst_mac))
		return false;
	if (p->tuple.proto == IPPROTO_IGMP)
		return v4_is_multicast(p->tuple.dst.word[3]);
	return p->tuple.proto == IPPROTO_UDP && p->tuple.dst.word[3] == 0xffffffff &&
	       p->tuple.sport == DHCP_CLIENT && p->tuple.dport == DHCP_SERVER;
}

/* Does the host's route to the packet's source lead to its sender? */
__noinline int source_is_behind(struct __sk_buff *skb, const struct packet *p,
				const struct device *device, const struct network *net)
{
	struct scratch *room = scratch();
	struct ip_addr hop;

	if (!p || !device || !net || !room)
		return 0;
	if (!route_leads_out(route_back(skb, p, net, &room->fib)) ||
	    room->fib.ifindex != net->ifindex)
		return 0;
	route_hop(&room->fib, &hop);
	return addr_equal(&hop, &device->addr4) || addr_equal(&hop, &device->addr6) ||
	       addr_equal(&hop, &device->linklocal);
}

/* Is it one of the sender's addresses? `device` has the usual ones; the map has those that were asked for beside them,
 * and is looked at only where they do not match. */
static __always_inline bool is_own(const struct device *device, const struct ip_addr *addr)
{
	struct endpoint *endpoint = endpoint_find(device->network, addr);

	return endpoint && endpoint->number == device->endpoint;
}

/*
 * A source that is not a usual one: an address that was asked for, or another's that the sender speaks for. Returns 0 if
 * it may be, or a drop reason. Beyond its link no link-local one goes (RFC 3927, 2.6.2; of IPv6 ones `leave` sees to it).
 * A function of its own: from_container has not the stack for the keys.
 */
__noinline int source_check_more(struct packet *p, const struct device *device,
				 const struct network *net)
{
	if (!p || !device || !net)
		return DROP_SPOOFED_ADDR;
	/* A socket that is bound to 127.0.0.1 asks the resolver from there. It goes no further: what is no question to
	 * a resolver is dropped for its destination. */
	if (p->ethertype == bpf_htons(ETH_P_IP) && addr_is_loopback(&p->tuple.src))
		return addr_is_resolver(&p->tuple.dst) && mac_equal(p->dst_mac, net->mac)
			       ? 0
			       : DROP_SPOOFED_ADDR;
	if (is_own(device, &p->tuple.src)) {
		if (p->ethertype == bpf_htons(ETH_P_IP) &&
		    !endpoint_find(device->network, &p->tuple.dst))
			return DROP_BAD_ADDR;
		return 0;
	}
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		return DROP_SPOOFED_ARP;
	if (!is_ipv6(p) && is_without_address(p))
		return 0;
	if (!(device->forwarding & ROLE_FORWARDING) || addr_is_unusable(&p->tuple.src) ||
	    addr_equal(&p->tuple.src, &net->gateway4) ||
	    addr_equal(&p->tuple.src, &net->gateway6) ||
	    (!is_ipv6(p) && p->tuple.src.word[3] == net->broadcast) ||
	    endpoint_find(device->network, &p->tuple.src))
		return DROP_SPOOFED_ADDR;
	p->forwarded = 1;
	return 0;
}

/* Returns 0 if the frame's source is the container's own, or a drop reason. */
static __always_inline int source_check(struct packet *p, const struct device *device,
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
		return source_check_more(p, device, net);
	case bpf_htons(ETH_P_IP):
		return addr_equal(&t->src, &device->addr4) ? 0 : source_check_more(p, device, net);
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
	return source_check_more(p, device, net);
}
