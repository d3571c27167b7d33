/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The only file that writes into packets, checksums included. */
#pragma once
#include "verdict.h"

#define IP_CHECK_AT (L3 + offsetof(struct iphdr, check))
#define IP_TTL_AT (L3 + offsetof(struct iphdr, ttl))
#define IP_ADDRS_AT (L3 + offsetof(struct iphdr, saddr))
#define ICMP_CHECK_AT offsetof(struct icmp_header, checksum)
#define ICMP_ID_AT offsetof(struct icmp_header, id)

static __always_inline int rewrite_macs(struct __sk_buff *skb, const __u8 *dst, const __u8 *src)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, dst, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, src, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/* One hop has been made (RFC 1812, 5.3.1). The caller has seen that there was one left. */
static __always_inline int rewrite_ttl(struct __sk_buff *skb, const struct packet *p)
{
	__u8 ttl = p->ttl - 1;

	/* The checksum covers TTL and protocol as one 16-bit word; only the upper byte changes. */
	if (bpf_l3_csum_replace(skb, IP_CHECK_AT, bpf_htons(p->ttl << 8), bpf_htons(ttl << 8), 2))
		return -1;
	return bpf_skb_store_bytes(skb, IP_TTL_AT, &ttl, sizeof(ttl), 0);
}

/* Ports, or the ICMP echo identifier, of the transport header at l4; `icmp`: outer ICMP
 * checksum to mend as well, 0: none. Checks of a transport header inside an ICMP error are
 * left alone: nobody verifies them (RFC 5508, 4.2), and a cut-off header has none. */
static __always_inline int rewrite_ports(struct __sk_buff *skb, __u32 l4, __u8 proto,
					 const struct tuple *from, const struct tuple *to, __u32 icmp)
{
	__be32 old = from->sport | (__u32)from->dport << 16;
	__be32 new = to->sport | (__u32)to->dport << 16;
	__be16 id;

	if (old == new)
		return 0;
	if (proto == IPPROTO_ICMP) {
		/* One of the two ports is the identifier, the other is 0 on both sides. */
		id = to->sport | to->dport;
		if (bpf_l4_csum_replace(skb, l4 + ICMP_CHECK_AT, from->sport | from->dport, id, 2))
			return -1;
		/* Inside an error the two changes cancel out: identifier against checksum. */
		return bpf_skb_store_bytes(skb, l4 + ICMP_ID_AT, &id, sizeof(id), 0);
	}
	if (icmp) {
		if (bpf_l4_csum_replace(skb, icmp, old, new, 4))
			return -1;
	} else if (proto == IPPROTO_TCP) {
		if (bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), old, new, 4))
			return -1;
	} else if (bpf_l4_csum_replace(skb, l4 + offsetof(struct udphdr, check), old, new,
				       BPF_F_MARK_MANGLED_0 | 4)) {
		return -1;
	}
	return bpf_skb_store_bytes(skb, l4, &new, sizeof(new), 0);
}

/*
 * IPv4 addresses and ports of an ordinary packet: from what it says to what `to` says. The
 * helpers know whether the checksum is finished, left to the device, or summed by it.
 */
static __noinline int rewrite_tuple(struct __sk_buff *skb, const struct packet *p,
				    const struct tuple *to)
{
	__be32 old[2], new[2];
	__s64 diff;

	if (!p || !to)
		return -1;
	old[0] = p->tuple.src.word[3];
	old[1] = p->tuple.dst.word[3];
	new[0] = to->src.word[3];
	new[1] = to->dst.word[3];
	diff = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
	if (diff < 0 || bpf_l3_csum_replace(skb, IP_CHECK_AT, 0, diff, 0))
		return -1;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (bpf_l4_csum_replace(skb, p->l4 + offsetof(struct tcphdr, check), 0, diff,
					BPF_F_PSEUDO_HDR))
			return -1;
	} else if (p->tuple.proto == IPPROTO_UDP) {
		if (bpf_l4_csum_replace(skb, p->l4 + offsetof(struct udphdr, check), 0, diff,
					BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0))
			return -1;
	}
	if (bpf_skb_store_bytes(skb, IP_ADDRS_AT, new, sizeof(new), 0))
		return -1;
	return rewrite_ports(skb, p->l4, p->tuple.proto, &p->tuple, to, 0);
}

/* What an ICMP error quotes, and where. */
struct quoted {
	struct tuple tuple; /* of the quoted packet, as it was sent */
	__u32 l3, l4;
	__be32 src, dst;    /* what the error's own addresses become */
};

/*
 * An ICMP error: the quoted packet's tuple becomes `inner`, the error's own addresses what
 * `quoted` says. The outer ICMP checksum covers the quotation, so each change inside is
 * answered there; a change of the quoted header's addresses is cancelled by its own checksum.
 */
static __noinline int rewrite_error(struct __sk_buff *skb, const struct packet *p,
				    const struct quoted *quoted, const struct tuple *inner)
{
	__u32 check, addrs;
	__be32 old[2], new[2];
	__s64 diff;

	if (!p || !quoted || !inner)
		return -1;
	check = quoted->l3 + offsetof(struct iphdr, check);
	addrs = quoted->l3 + offsetof(struct iphdr, saddr);
	old[0] = quoted->tuple.src.word[3];
	old[1] = quoted->tuple.dst.word[3];
	new[0] = inner->src.word[3];
	new[1] = inner->dst.word[3];
	diff = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
	if (diff < 0 || bpf_l3_csum_replace(skb, check, 0, diff, 0) ||
	    bpf_skb_store_bytes(skb, addrs, new, sizeof(new), 0))
		return -1;
	if (rewrite_ports(skb, quoted->l4, inner->proto, &quoted->tuple, inner, p->l4 + ICMP_CHECK_AT))
		return -1;
	old[0] = p->tuple.src.word[3];
	old[1] = p->tuple.dst.word[3];
	new[0] = quoted->src;
	new[1] = quoted->dst;
	diff = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
	if (diff < 0 || bpf_l3_csum_replace(skb, IP_CHECK_AT, 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, IP_ADDRS_AT, new, sizeof(new), 0);
}

/* An ARP request becomes its answer (RFC 826): `mac` has the address that was asked for. */
static __always_inline int rewrite_arp_reply(struct __sk_buff *skb, const struct packet *p,
					     const __u8 *mac)
{
	struct arp_body arp = {
		.hardware = bpf_htons(ARPHRD_ETHER),
		.protocol = bpf_htons(ETH_P_IP),
		.hardware_len = ETH_ALEN,
		.protocol_len = 4,
		.operation = bpf_htons(ARPOP_REPLY),
		.sender = p->tuple.dst.word[3],
		.target = p->tuple.src.word[3],
	};

	__builtin_memcpy(arp.sender_mac, mac, ETH_ALEN);
	__builtin_memcpy(arp.target_mac, p->src_mac, ETH_ALEN);
	if (rewrite_macs(skb, p->src_mac, mac))
		return -1;
	return bpf_skb_store_bytes(skb, L3, &arp, sizeof(arp), 0);
}

/*
 * A neighbour solicitation becomes the advertisement (RFC 4861, 7.2.4). One from the
 * unspecified address is duplicate address detection: it is answered to all nodes.
 */
static __noinline int rewrite_advertisement(struct __sk_buff *skb, const struct packet *p,
					    const struct in6_addr *target, const __u8 *mac)
{
	static const __u8 all_nodes_mac[ETH_ALEN] = {0x33, 0x33, 0, 0, 0, 1};
	struct ipv6hdr ip = {.version = 6, .nexthdr = IPPROTO_ICMPV6, .hop_limit = 255};
	struct nd_body nd = {.option = 2, .option_len = 1}; /* target link-layer address */
	bool detection;
	__be32 pseudo[2];
	__s64 sum;

	if (!p || !target || !mac)
		return -1;
	detection = addr_is_zero(&p->tuple.src);
	ip.payload_len = bpf_htons(sizeof(nd));
	ip.saddr = *target;
	if (detection) {
		ip.daddr.in6_u.u6_addr32[0] = bpf_htonl(0xff020000);
		ip.daddr.in6_u.u6_addr32[3] = bpf_htonl(1);
	} else {
		__builtin_memcpy(&ip.daddr, &p->tuple.src, sizeof(ip.daddr));
	}
	nd.header.icmp6_type = 136;
	/* Override, and solicited when it answers somebody. */
	nd.header.icmp6_dataun.un_data32[0] = bpf_htonl(detection ? 0x20000000 : 0x60000000);
	nd.target = *target;
	__builtin_memcpy(nd.mac, mac, ETH_ALEN);
	pseudo[0] = bpf_htonl(sizeof(nd));
	pseudo[1] = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip.saddr, 2 * sizeof(ip.saddr), 0);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&nd, sizeof(nd), sum);
	if (sum < 0)
		return -1;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	nd.header.icmp6_cksum = ~sum;
	if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + sizeof(nd), 0) ||
	    rewrite_macs(skb, detection ? all_nodes_mac : p->src_mac, mac) ||
	    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
		return -1;
	return bpf_skb_store_bytes(skb, L3 + sizeof(ip), &nd, sizeof(nd), 0);
}
