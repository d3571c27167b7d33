/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What writes into packets, checksums included; but for cutting them (split.h), for the other family (family.h), for what
 * is in a message (message.h), for answers made of questions (reply.h), and for what services say themselves (virtual.h). */
#pragma once
#include "lib/verdict.h"

#define IP_CHECK_AT   (L3 + offsetof(struct iphdr, check))
#define IP_TTL_AT     (L3 + offsetof(struct iphdr, ttl))
#define IP_CHECK_AT   (L3 + offsetof(struct iphdr, check))
#define IP6_TTL_AT    (L3 + offsetof(struct ipv6hdr, hop_limit))
#define IP6_ADDRS_AT  (L3 + offsetof(struct ipv6hdr, saddr))
#define ICMP_CHECK_AT offsetof(struct icmp_header, checksum)
#define ICMP_ID_AT    offsetof(struct icmp_header, id)

/* Since 6.16 (and in stable kernels): the pseudo header is IPv6's, which no header checksum
 * balances. It matters where a device has summed the packet; older kernels refuse it. */
#define F_IPV6 (1ULL << 7)

/* A 32-bit sum as the 16 bits that a header holds (RFC 1071). */
static __always_inline __sum16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * A packet that came without an Ethernet header gets one, and is like any other from here on. It comes before any other
 * change; what goes on to the host's stack needs none. The MACs stay zero: who delivers it writes them.
 */
__noinline int rewrite_into_frame(struct __sk_buff *skb, struct packet *p)
{
	__be16 ethertype;

	if (!p)
		return -1;
	ethertype = p->ethertype;
	p->lacks = 0;
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return -1;
	return bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &ethertype,
				   sizeof(ethertype), 0);
}

static __always_inline int rewrite_macs(struct __sk_buff *skb, const __u8 *dst, const __u8 *src)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, dst, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, src, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

static __always_inline int rewrite_ttl(struct __sk_buff *skb, const struct packet *p, __u8 ttl)
{
	if (is_ipv6(p))
		return bpf_skb_store_bytes(skb, IP6_TTL_AT, &ttl, sizeof(ttl),
					   BPF_F_RECOMPUTE_CSUM);
	/* The checksum covers TTL and protocol as one 16-bit word; only the upper byte changes. */
	if (bpf_l3_csum_replace(skb, IP_CHECK_AT, bpf_htons(p->ttl << 8), bpf_htons(ttl << 8), 2))
		return -1;
	return bpf_skb_store_bytes(skb, IP_TTL_AT, &ttl, sizeof(ttl), 0);
}

/* Where the transport header at l4 has its checksum; 0: it has none that could be updated. */
static __always_inline __u32 check_at(__u32 l4, __u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return l4 + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return l4 + offsetof(struct udphdr, check);
	}
	return l4 + ICMP_CHECK_AT;
}

/* Ports, or the ICMP echo identifier, of the transport header at l4; `icmp`: outer ICMP
 * checksum to update as well, 0: none. Checks of a transport header inside an ICMP error are
 * left alone: nobody verifies them (RFC 5508, 4.2), and a cut-off header has none. */
static __always_inline int rewrite_ports(struct __sk_buff *skb, __u32 l4, __u8 proto,
					 const struct tuple *from, const struct tuple *to,
					 __u32 icmp)
{
	__be32 old = from->sport | (__u32)from->dport << 16;
	__be32 new = to->sport | (__u32)to->dport << 16;
	__be16 id, was;

	if (old == new)
		return 0;
	if (is_icmp(proto)) {
		/* One of the two ports is the identifier, the other is 0 on both sides. */
		id = to->sport | to->dport;
		was = from->sport | from->dport;
		if (bpf_l4_csum_replace(skb, l4 + ICMP_CHECK_AT, was, id, 2))
			return -1;
		/* Inside an error the two changes cancel out: identifier against checksum. */
		return bpf_skb_store_bytes(skb, l4 + ICMP_ID_AT, &id, sizeof(id), 0);
	}
	if (icmp) {
		if (bpf_l4_csum_replace(skb, icmp, old, new, 4))
			return -1;
	} else if (bpf_l4_csum_replace(skb, check_at(l4, proto), old, new,
				       4 | (proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0))) {
		return -1;
	}
	return bpf_skb_store_bytes(skb, l4, &new, sizeof(new), 0);
}

/* The change of both addresses, as a checksum sees it; negative: it could not be computed. */
static __always_inline __s64 addrs_diff(const struct tuple *from, const struct tuple *to, bool v6)
{
	__u64 sum;

	/* Source and destination lie one behind the other in a tuple as in a header. */
	if (v6)
		return bpf_csum_diff((__be32 *)&from->src, 32, (__be32 *)&to->src, 32, 0);
	sum = (__u64)(__u32)~from->src.word[3] + (__u32)~from->dst.word[3] + to->src.word[3] +
	      to->dst.word[3];
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* Addresses of the IP header at l3, whose own checksum, if it has one, is updated. */
static __always_inline int rewrite_addrs(struct __sk_buff *skb, __u32 l3, const struct tuple *to,
					 __s64 diff, bool v6)
{
	__be32 new[2];

	if (v6)
		return bpf_skb_store_bytes(skb, l3 + offsetof(struct ipv6hdr, saddr), &to->src, 32,
					   0);
	new[0] = to->src.word[3];
	new[1] = to->dst.word[3];
	if (bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l3 + offsetof(struct iphdr, saddr), new, sizeof(new), 0);
}

/* From the TTL to the end of an IPv4 header without options: all of it that forwarding changes. */
struct ipv4_rest {
	__u8 ttl, proto;
	__sum16 check;
	__be32 src, dst;
};

/* An IPv4 header's checksum with another TTL (RFC 1624); `diff`: what else changes. */
static __always_inline __sum16 ipv4_check(const struct packet *p, __u8 ttl, __u32 diff)
{
	__u64 sum = (__u64)diff + (__u16)~p->ip_check;

	/* TTL and protocol are one 16-bit word; only the upper byte changes. */
	sum += (__u16)~bpf_htons(p->ttl << 8) + bpf_htons(ttl << 8);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return fold((sum & 0xffff) + (sum >> 16));
}

/* TTL and addresses of a packet; `diff` is what the addresses change. One store, where helpers for sums take four calls. */
static __always_inline int rewrite_ipv4(struct __sk_buff *skb, const struct packet *p,
					const struct tuple *to, __u8 ttl, __u32 diff)
{
	struct ipv4_rest rest = {.ttl = ttl, .proto = p->tuple.proto};

	rest.check = ipv4_check(p, ttl, diff);
	rest.src = to->src.word[3];
	rest.dst = to->dst.word[3];
	return bpf_skb_store_bytes(skb, IP_TTL_AT, &rest, sizeof(rest), 0);
}

/* The same of IPv6, which has no checksum of its own. */
static __always_inline int rewrite_ipv6(struct __sk_buff *skb, const struct packet *p,
					const struct tuple *to, __u8 ttl)
{
	if (ttl != p->ttl &&
	    bpf_skb_store_bytes(skb, IP6_TTL_AT, &ttl, sizeof(ttl), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_store_bytes(skb, IP6_ADDRS_AT, &to->src, 2 * sizeof(to->src), 0);
}

/* The transport checksum's share of new addresses (its pseudo header). */
static __always_inline int rewrite_pseudo(struct __sk_buff *skb, __u32 check, __s64 diff,
					  __u64 flags, bool v6)
{
	long error;

	if (!v6)
		return bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | flags);
	error = bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | F_IPV6 | flags);
	if (error == -EINVAL)
		error = bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | flags);
	return error;
}

/*
 * Addresses, ports and TTL of an ordinary packet: from what it says to what `to` says. The helpers
 * know whether the checksum is finished, left to the device, or summed by it. A later fragment
 * has no transport header; its first one's checksum covers the whole datagram.
 */
__noinline int rewrite_tuple(struct __sk_buff *skb, const struct packet *p, const struct tuple *to,
			     __u8 ttl)
{
	bool v6;
	__s64 diff;

	if (!p || !to)
		return -1;
	v6 = is_ipv6(p);
	diff = addrs_diff(&p->tuple, to, v6);
	if (diff < 0)
		return -1;
	if (p->fragment != FRAGMENT_LATER && sums_addresses(p->tuple.proto, v6) &&
	    rewrite_pseudo(skb, check_at(p->l4, p->tuple.proto), diff,
			   p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0, v6))
		return -1;
	if (v6 ? rewrite_ipv6(skb, p, to, ttl) : rewrite_ipv4(skb, p, to, ttl, diff))
		return -1;
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	return rewrite_ports(skb, p->l4, p->tuple.proto, &p->tuple, to, 0);
}

/*
 * An ICMP error: the quoted packet's tuple becomes `inner`, the error's own addresses what
 * `quoted` says. The outer ICMP checksum covers the quotation, so each change inside is
 * answered there; an IPv4 header's own checksum has cancelled its addresses out already.
 */
__noinline int rewrite_error(struct __sk_buff *skb, const struct packet *p,
			     const struct quoted *quoted, const struct tuple *inner)
{
	__u32 check;
	bool v6;
	__s64 diff;

	if (!p || !quoted || !inner)
		return -1;
	v6 = is_ipv6(p);
	check = p->l4 + ICMP_CHECK_AT;
	diff = addrs_diff(&quoted->tuple, inner, v6);
	if (diff < 0 || (v6 && bpf_l4_csum_replace(skb, check, 0, diff, 0)) ||
	    rewrite_addrs(skb, quoted->l3, inner, diff, v6) ||
	    rewrite_ports(skb, quoted->l4, inner->proto, &quoted->tuple, inner, check))
		return -1;
	diff = addrs_diff(&p->tuple, &quoted->outer, v6);
	if (diff < 0 || (v6 && rewrite_pseudo(skb, check, diff, 0, v6)))
		return -1;
	return rewrite_addrs(skb, L3, &quoted->outer, diff, v6);
}

/*
 * The packet becomes an ICMP error about itself, from `src` back to its sender (RFC 792, RFC
 * 4443). `mtu`: as in error_kind_v4(). Fails for what is not to be
 * answered: fragments but the first, and errors, of which there is no end.
 */
__noinline int rewrite_into_error(struct __sk_buff *skb, const struct packet *p,
				  const struct ip_addr *src, __u32 mtu)
{
	struct scratch *room = scratch();
	struct error_body *icmp;
	__u32 length;
	__s64 sum;

	if (!p || !src || !room || p->fragment == FRAGMENT_LATER || icmp_is_error(p))
		return -1;
	icmp = &room->error;
	__builtin_memset(&icmp->header, 0, sizeof(icmp->header));
	/* At least the IP header and eight bytes, in which the ports are. The mask, which changes
	 * nothing, is how the verifier sees the bound. */
	length = p->length >= QUOTE ? QUOTE : p->l4 - L3 + 8;
	if (!p->l4 || p->length < length || length > QUOTE)
		return -1;
	length &= QUOTE;
	if (length < 8 || bpf_skb_load_bytes(skb, L3, icmp->quote, length))
		return -1;
	length += sizeof(icmp->header);
	if (is_ipv6(p)) {
		struct ipv6hdr ip = {.version = 6, .nexthdr = IPPROTO_ICMPV6, .hop_limit = 64};
		__be32 pseudo[2] = {bpf_htonl(length), bpf_htonl(IPPROTO_ICMPV6)};

		ip.payload_len = bpf_htons(length);
		__builtin_memcpy(&ip.saddr, src, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &p->tuple.src, sizeof(ip.daddr));
		error_kind_v6(&icmp->header, mtu);
		icmp->header.sequence = bpf_htons(mtu);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip.saddr, 2 * sizeof(ip.saddr), 0);
		sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)icmp, length, sum);
		icmp->header.checksum = fold(sum);
		if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + length, 0) ||
		    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
			return -1;
		return bpf_skb_store_bytes(skb, L3 + sizeof(ip), icmp, length, 0);
	}
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_ICMP};

	ip.tot_len = bpf_htons(sizeof(ip) + length);
	ip.saddr = src->word[3];
	ip.daddr = p->tuple.src.word[3];
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	error_kind_v4(&icmp->header, mtu);
	icmp->header.sequence = bpf_htons(mtu);
	icmp->header.checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)icmp, length, 0));
	if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + length, 0) ||
	    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
		return -1;
	return bpf_skb_store_bytes(skb, L3 + sizeof(ip), icmp, length, 0);
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
	nd.header.icmp6_cksum = fold(sum);
	if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + sizeof(nd), 0) ||
	    rewrite_macs(skb, detection ? all_nodes_mac : p->src_mac, mac) ||
	    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
		return -1;
	return bpf_skb_store_bytes(skb, L3 + sizeof(ip), &nd, sizeof(nd), 0);
}

#define FRAME_MAX  2048	      /* bytes of a frame in `frag_queue` */
#define FRAME_BARE 0x80000000 /* in its length: it has no Ethernet header */

/* A frame's length, which the caller has found to be between 1 and FRAME_MAX: said again in a form
 * that 6.1's verifier keeps through the compiler's rearrangements. */
static __always_inline __u32 frame_length(__u32 length)
{
	return ((length - 1) & (FRAME_MAX - 1)) + 1;
}

/* The whole frame becomes one that was queued, but for an Ethernet header that that one lacks. */
static __noinline int rewrite_frame(struct __sk_buff *skb, struct frag_queue *by)
{
	__u32 length, at;

	if (!by)
		return -1;
	length = by->length & ~FRAME_BARE;
	at = by->length & FRAME_BARE ? ETH_HLEN : 0;
	if (length < ETH_HLEN || length > FRAME_MAX || bpf_skb_change_tail(skb, at + length, 0))
		return -1;
	return bpf_skb_store_bytes(skb, at, by->frame, frame_length(length), BPF_F_RECOMPUTE_CSUM);
}
