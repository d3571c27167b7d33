/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A frame that goes on to another link as it is, but for the MAC address that its sender or receiver has there: in the
 * Ethernet header, and where ARP (RFC 826) and neighbour discovery (RFC 4861) say it once more.
 */
#pragma once
#include "lib/neighbour.h"
#include "lib/rewrite.h"

#define ND_ROUTER_SOLICITATION 133
#define ND_OPTION_SOURCE       1 /* the sender's link-layer address (RFC 4861, 4.6.1) */

struct nd_link_address {
	__u8 kind, length; /* in units of eight bytes */
	__u8 mac[ETH_ALEN];
};

/* Any frame. */
static __always_inline int relay_sender(struct __sk_buff *skb, const struct packet *p,
					const __u8 *mac)
{
	return rewrite_macs(skb, p->dst_mac, mac);
}

/* The sender as an ARP frame says it inside. */
static __always_inline int relay_arp_sender(struct __sk_buff *skb, const __u8 *mac)
{
	return bpf_skb_store_bytes(skb, L3 + offsetof(struct arp_body, sender_mac), mac, ETH_ALEN,
				   0);
}

/* And who is answered. */
static __always_inline int relay_arp_target(struct __sk_buff *skb, const __u8 *mac)
{
	return bpf_skb_store_bytes(skb, L3 + offsetof(struct arp_body, target_mac), mac, ETH_ALEN,
				   0);
}

/* Where a solicitation, of a neighbour or a router, says its sender: in its first option. 0: it has none; negative: it
 * says anything else in a sender's name. */
static __noinline int relay_option(struct __sk_buff *skb, const struct packet *p)
{
	struct nd_link_address option = {};
	__u32 at;

	if (!p)
		return -1;
	at = p->l4 + sizeof(struct icmp6hdr);
	if (p->icmp_type == ND_SOLICITATION)
		at += sizeof(struct in6_addr);
	if (at - L3 + sizeof(option) > p->length)
		return 0;
	if (bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
		return -1;
	if (option.kind != ND_OPTION_SOURCE || option.length != 1)
		return addr_is_zero(&p->tuple.src) ? 0 : -1;
	return at;
}

/* It says another one. */
static __noinline int relay_solicitation(struct __sk_buff *skb, const struct packet *p,
					 const __u8 *mac)
{
	struct nd_link_address was = {}, is;
	int at = relay_option(skb, p);
	__s64 sum;

	if (at <= 0)
		return at;
	if (!p || !mac || bpf_skb_load_bytes(skb, at, &was, sizeof(was)))
		return -1;
	is = was;
	__builtin_memcpy(is.mac, mac, ETH_ALEN);
	sum = bpf_csum_diff((__be32 *)&was, sizeof(was), (__be32 *)&is, sizeof(is), 0);
	if (sum < 0 || bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECK_AT, 0, sum, 0))
		return -1;
	return bpf_skb_store_bytes(skb, at, &is, sizeof(is), 0);
}
