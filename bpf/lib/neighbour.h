/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who has this address: ARP (RFC 826) and neighbour discovery (RFC 4861), from the maps. */
#pragma once
#include "lib/endpoints.h"
#include "lib/overlay.h"
#include "lib/parse.h"

#define ND_ROUTER_ADVERTISEMENT 134
#define ND_SOLICITATION		135
#define ND_ADVERTISEMENT	136
#define ND_REDIRECT		137

/* Copies the MAC that has the address in the network; false: nobody has. */
static __always_inline bool neighbour_mac(__u32 number, const struct network *net,
					  const struct ip_addr *addr, __u8 *mac)
{
	struct endpoint *endpoint = endpoint_find(number, addr);

	if (endpoint) {
		__builtin_memcpy(mac, endpoint->mac, ETH_ALEN);
		return true;
	}
	if (addr_is_zero(addr))
		return false;
	if (addr_equal(addr, &net->gateway4) || addr_equal(addr, &net->gateway6) ||
	    addr_equal(addr, &net->gateway_linklocal)) {
		__builtin_memcpy(mac, net->mac, ETH_ALEN);
		return true;
	}
	/* A member on another host is behind the gateway. */
	if ((net->flags & NETWORK_OVERLAY) && remote_find(number, addr)) {
		__builtin_memcpy(mac, net->mac, ETH_ALEN);
		return true;
	}
	return false;
}

static __always_inline bool is_solicitation(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_ICMPV6 && p->l4 && p->fragment == FRAGMENT_NONE &&
	       p->icmp_type == ND_SOLICITATION;
}

/* Neighbours hear what it says even in a fragment. */
static __always_inline bool is_advertisement(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_ICMPV6 && p->l4 && p->icmp_type == ND_ADVERTISEMENT;
}

/* The target of a solicitation or advertisement; false: cut short, or not from this link. */
static __always_inline bool solicited(struct __sk_buff *skb, const struct packet *p,
				      struct ip_addr *target)
{
	return p->ttl == 255 &&
	       p->l4 - L3 + sizeof(struct icmp6hdr) + sizeof(*target) <= p->length &&
	       !bpf_skb_load_bytes(skb, p->l4 + sizeof(struct icmp6hdr), target, sizeof(*target));
}
