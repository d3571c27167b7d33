/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What an ICMP error quotes: the packet that it is about. */
#pragma once
#include "lib/scratch.h"

/* Reads the quotation of an ICMP error; false: nothing whose connection could be known. */
__noinline int quoted_parse(struct __sk_buff *skb, const struct packet *p, struct quoted *quoted)
{
	struct icmp_header l4;
	struct ipv6hdr ip6;
	struct iphdr ip;
	__u32 lacks;

	if (!p || !quoted)
		return 0;
	lacks = p->lacks;
	quoted->l3 = p->l4 + sizeof(l4);
	if (is_ipv6(p)) {
		if (bpf_skb_load_bytes(skb, quoted->l3 - lacks, &ip6, sizeof(ip6)) ||
		    ip6.version != 6)
			return 0;
		quoted->l4 = quoted->l3 + sizeof(ip6);
		__builtin_memcpy(&quoted->tuple.src, &ip6.saddr, 2 * sizeof(struct ip_addr));
		quoted->tuple.proto = ip6.nexthdr;
		if (addr_is_v4(&quoted->tuple.src) || addr_is_v4(&quoted->tuple.dst))
			return 0;
	} else {
		if (bpf_skb_load_bytes(skb, quoted->l3 - lacks, &ip, sizeof(ip)))
			return 0;
		if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & IP_OFFSET))
			return 0;
		quoted->l4 = quoted->l3 + ip.ihl * 4;
		addr_set_v4(&quoted->tuple.src, ip.saddr);
		addr_set_v4(&quoted->tuple.dst, ip.daddr);
		quoted->tuple.proto = ip.protocol;
	}
	if (quoted->l4 - L3 + sizeof(l4) > p->length ||
	    bpf_skb_load_bytes(skb, quoted->l4 - lacks, &l4, sizeof(l4)))
		return 0;
	switch (quoted->tuple.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		quoted->tuple.sport = ((__be16 *)&l4)[0];
		quoted->tuple.dport = ((__be16 *)&l4)[1];
		return 1;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (quoted->tuple.proto == (is_ipv6(p) ? IPPROTO_ICMP : IPPROTO_ICMPV6))
			return 0;
		if (l4.type == (is_ipv6(p) ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
			quoted->tuple.sport = l4.id;
		else if (l4.type == (is_ipv6(p) ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
			quoted->tuple.dport = l4.id;
		else
			return 0;
		return 1;
	}
	return 0;
}
