/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet becomes one of the other family (RFC 7915): a container asks over IPv4 and its upstream has an IPv6 address,
 * or the other way about. Whole packets of UDP and TCP only, without options or extension headers.
 */
#pragma once
#include "lib/rewrite.h"

/* Without an IPv4 checksum UDP is not valid in IPv6 (RFC 8200, 8.1). */
static __always_inline bool has_checksum(struct __sk_buff *skb, const struct packet *p)
{
	__sum16 check;

	return p->tuple.proto == IPPROTO_TCP ||
	       (!bpf_skb_load_bytes(skb, check_at(p->l4, IPPROTO_UDP), &check, sizeof(check)) &&
		check);
}

static __always_inline int family_header_v6(struct __sk_buff *skb, const struct packet *p,
					    __u32 payload)
{
	struct ipv6hdr ip = {.version = 6, .nexthdr = p->tuple.proto, .hop_limit = p->ttl};

	ip.payload_len = bpf_htons(payload);
	__builtin_memcpy(&ip.saddr, &p->tuple.src, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &p->tuple.dst, sizeof(ip.daddr));
	return bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int family_header_v4(struct __sk_buff *skb, struct packet *p, __u32 payload)
{
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = p->ttl, .protocol = p->tuple.proto};

	ip.tot_len = bpf_htons(sizeof(ip) + payload);
	/* A datagram may be cut on its way, which no IPv6 sender has ruled out for IPv4. */
	if (p->tuple.proto == IPPROTO_TCP)
		ip.frag_off = IP_DONT_FRAGMENT;
	else
		ip.id = bpf_get_prandom_u32();
	ip.saddr = p->tuple.src.word[3];
	ip.daddr = p->tuple.dst.word[3];
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	p->ip_check = ip.check;
	return bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

/* The packet gets the addresses of `to`, which are of the other family; its ports stay. Returns 0, or an error. */
__noinline int family_change(struct __sk_buff *skb, struct packet *p, const struct tuple *to)
{
	bool v6;
	__be16 ethertype;
	__u32 payload;
	__s64 diff;

	if (!p || !to)
		return -1;
	v6 = !is_ipv6(p);
	if (p->fragment || p->l4 != L3 + (v6 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) ||
	    (p->tuple.proto != IPPROTO_UDP && p->tuple.proto != IPPROTO_TCP) ||
	    (v6 && !has_checksum(skb, p)))
		return -1;
	payload = p->length - (p->l4 - L3);
	/* The mapped form of an IPv4 address has the address's own sum, and the length and the protocol are in either
	 * pseudo header (RFC 8200, 8.1). */
	diff = addrs_diff(&p->tuple, to, true);
	ethertype = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (diff < 0 || bpf_skb_change_proto(skb, ethertype, 0) ||
	    bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &ethertype,
				sizeof(ethertype), 0))
		return -1;
	p->ethertype = ethertype;
	p->tuple.src = to->src;
	p->tuple.dst = to->dst;
	p->l4 = L3 + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	p->length = p->l4 - L3 + payload;
	p->flowinfo = 0;
	/* One of the two headers balances in the sum of a device, so that its share is IPv4's. */
	if (rewrite_pseudo(skb, check_at(p->l4, p->tuple.proto), diff,
			   p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0, false))
		return -1;
	return v6 ? family_header_v6(skb, p, payload) : family_header_v4(skb, p, payload);
}
