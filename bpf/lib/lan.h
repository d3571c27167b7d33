/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Networks whose members are on the link of one of the host's devices, their parent. As those of ipvlan are: there they
 * all have the parent's MAC address, and each its own IP addresses. Or as those of macvlan, where each has a MAC address,
 * too, and the kernel hands their frames over: by the pair that the programs know they ask for names alone.
 */
#pragma once
#include "lib/neighbour.h"
#include "lib/networks.h"
#include "lib/parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct parent_key);
	__type(value, struct parent);
} parents SEC(".maps");

/* Does a member's frame ask all of the link, whoever is meant? */
static __always_inline bool asks_the_link(const struct packet *p)
{
	return p->ethertype == bpf_htons(ETH_P_ARP) || (is_ipv6(p) && is_solicitation(p)) ||
	       (mac_is_group(p->dst_mac) && !(is_ipv6(p) && is_advertisement(p)));
}

/* NULL: the network's members reach nobody but each other, or the parent is gone. */
static __always_inline struct parent *parent_find(__u32 network)
{
	struct parent_key key = {.network = network};

	return bpf_map_lookup_elem(&parents, &key);
}

/* Is it an address of the host's own, which members reach by the gateway device? */
static __always_inline bool is_the_hosts(const struct network *net, const struct ip_addr *addr)
{
	if (addr_is_linklocal(addr))
		return addr_equal(addr, &net->gateway_linklocal);
	return address_is_known(addr);
}

/* Does a frame of a member, which is for no other member, go to the link? What the host has, or routes, is the host's
 * as on any network. */
static __always_inline bool leads_to_link(const struct packet *p, const struct network *net)
{
	return (net->flags & NETWORK_LAN) &&
	       ((net->flags & NETWORK_QUESTIONS) || !is_the_hosts(net, &p->tuple.dst));
}
