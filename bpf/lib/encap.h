/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN headers (RFC 7348), written before a packet and taken away again. */
#pragma once
#include "lib/asked.h"

#define VXLAN_HAS_VNI bpf_htonl(0x08000000)
#define VXLAN_LINK    (sizeof(struct udphdr) + sizeof(struct vxlan_header) + ETH_HLEN)
#define VXLAN_PORT_FIRST \
	32768 /* of the outer sources, 2^14 of them: the flows are told apart by it */
#define VXLAN_PORTS 0x3fff
#define CONGESTED   3 /* the two bits of ECN that say so (RFC 3168) */

/* Flags of bpf_skb_adjust_room that 6.1's header does not have: which family a packet has without its outer header. */
#define DECAP_IPV4 (1ULL << 7)
#define DECAP_IPV6 (1ULL << 8)

struct vxlan_over_v4 {
	struct ethhdr outer;
	struct iphdr ip;
	struct vxlan_link link;
} __attribute__((packed));

struct vxlan_over_v6 {
	struct ethhdr outer;
	struct ipv6hdr ip;
	struct vxlan_link link;
} __attribute__((packed));

/* Bytes that a tunnel adds to an IP packet. */
static __always_inline __u32 vxlan_overhead(bool v6)
{
	return VXLAN_LINK + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* The two bits of explicit congestion notification of an IP header. */
static __always_inline __u8 packet_ecn(const struct packet *p)
{
	return (is_ipv6(p) ? bpf_ntohl(p->flowinfo) >> 20 : *(const __u8 *)&p->flowinfo) &
	       CONGESTED;
}

/* A length as a header has it: none states more than 64 KiB, and who cuts the packet writes it anew. */
static __always_inline __be16 stated(__u32 length)
{
	return length > 0xffff ? 0 : bpf_htons(length);
}

/* The outer source port: the same for all of a flow, and so its way. Of a datagram in fragments only the first has ports. */
static __always_inline __be16 vxlan_sport(const struct packet *p)
{
	const struct tuple *t = &p->tuple;
	__u32 hash = t->src.word[3] ^ t->src.word[1] ^ (t->dst.word[3] ^ t->dst.word[1]) * 31;

	if (!p->fragment)
		hash ^= (t->sport | (__u32)t->dport << 16) * 0x9e3779b1;
	hash = (hash ^ t->proto) * 0x85ebca6b;
	hash = (hash ^ hash >> 15) * 0xc2b2ae35;
	return bpf_htons(VXLAN_PORT_FIRST + (hash >> 16 & VXLAN_PORTS));
}

static __always_inline void vxlan_fill(struct vxlan_link *link, const struct packet *p,
				       const struct tuple *outer, __u32 vni, const __u8 *dst,
				       const __u8 *src, __u32 length)
{
	link->udp.source = outer->sport;
	link->udp.dest = outer->dport;
	link->udp.len = stated(length);
	link->udp.check = 0;
	link->vxlan.flags = VXLAN_HAS_VNI;
	link->vxlan.vni = bpf_htonl(vni << 8);
	__builtin_memcpy(link->inner.h_dest, dst, ETH_ALEN);
	__builtin_memcpy(link->inner.h_source, src, ETH_ALEN);
	link->inner.h_proto = p->ethertype;
}

#define ENCAP                                                                                   \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | \
	 BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN))

/* The headers of a flow's packets, but for what differs from one to the next; `sum`: of the IP header as it is here. */
struct vxlan_made {
	__u32 sum;
	struct vxlan_over_v4 headers;
};

/* With the addresses and ports of `outer`. */
static __always_inline void vxlan_make(struct vxlan_made *made, const struct packet *p,
				       const struct tuple *outer, const struct tunnel *own,
				       const struct peer *peer, __u32 vni)
{
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};

	ip.frag_off = IP_DONT_FRAGMENT;
	ip.saddr = outer->src.word[3];
	ip.daddr = outer->dst.word[3];
	made->sum = (__u16)~fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	__builtin_memset(&made->headers.outer, 0, sizeof(made->headers.outer));
	made->headers.outer.h_proto = bpf_htons(ETH_P_IP);
	made->headers.ip = ip;
	vxlan_fill(&made->headers.link, p, outer, vni, peer->mac, own->mac, 0);
}

/*
 * The packet becomes one of a tunnel over IPv4. `ecn`: its own two bits of that. Returns 0, or an error: if it is positive
 * nothing was changed, as it is no packet that a program could encapsulate.
 */
static __always_inline int vxlan_push_made(struct __sk_buff *skb, struct vxlan_made *made, __u8 ecn)
{
	struct vxlan_over_v4 *headers = &made->headers;
	__u32 length;

	if (bpf_skb_adjust_room(skb, sizeof(*headers) - ETH_HLEN, BPF_ADJ_ROOM_MAC,
				ENCAP | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return 1;
	length = skb->len - ETH_HLEN;
	headers->ip.tos = ecn;
	headers->ip.tot_len = stated(length);
	headers->ip.check = fold(made->sum + bpf_htons(ecn) + stated(length));
	headers->link.udp.len = stated(length - sizeof(headers->ip));
	return bpf_skb_store_bytes(skb, 0, headers, sizeof(*headers), 0) ? -1 : 0;
}

/* The source of a frame in a tunnel says what the backend's host is to hear. */
static __always_inline void tell(const struct scratch *room, __u8 *source)
{
	if (room->told == TELLS_ASKED)
		asked_mark(source);
	else if (room->told)
		mark_write(source, mark_of(&room->sides.key.dst, room->sides.key.dport));
}

/* The same of a packet alone, with the addresses and ports of room->leaving. */
__noinline int vxlan_push_v4(struct __sk_buff *skb, const struct packet *p,
			     const struct tunnel *own, const struct peer *peer, __u32 vni)
{
	struct scratch *room = scratch();
	struct vxlan_made made;

	if (!p || !own || !peer || !room)
		return -1;
	vxlan_make(&made, p, &room->leaving, own, peer, vni);
	tell(room, made.headers.link.inner.h_source);
	return vxlan_push_made(skb, &made, packet_ecn(p));
}

/* The same over IPv6, where too no checksum covers the tunnel (RFC 6935). */
static __always_inline void vxlan_make_v6(struct vxlan_over_v6 *headers, const struct packet *p,
					  const struct tuple *outer, const struct tunnel *own,
					  const struct peer *peer, __u32 vni)
{
	struct ipv6hdr ip = {.version = 6, .nexthdr = IPPROTO_UDP, .hop_limit = 64};

	__builtin_memcpy(&ip.saddr, &outer->src, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &outer->dst, sizeof(ip.daddr));
	__builtin_memset(&headers->outer, 0, sizeof(headers->outer));
	headers->outer.h_proto = bpf_htons(ETH_P_IPV6);
	headers->ip = ip;
	vxlan_fill(&headers->link, p, outer, vni, peer->mac, own->mac, 0);
}

static __always_inline int vxlan_push_made_v6(struct __sk_buff *skb, struct vxlan_over_v6 *headers,
					      __u8 ecn)
{
	__u32 length;

	if (bpf_skb_adjust_room(skb, sizeof(*headers) - ETH_HLEN, BPF_ADJ_ROOM_MAC,
				ENCAP | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return 1;
	length = skb->len - ETH_HLEN - sizeof(headers->ip);
	((__u8 *)&headers->ip)[1] = ecn << 4;
	headers->ip.payload_len = stated(length);
	headers->link.udp.len = stated(length);
	return bpf_skb_store_bytes(skb, 0, headers, sizeof(*headers), 0) ? -1 : 0;
}

__noinline int vxlan_push_v6(struct __sk_buff *skb, const struct packet *p,
			     const struct tunnel *own, const struct peer *peer, __u32 vni)
{
	struct scratch *room = scratch();
	struct vxlan_over_v6 headers;

	if (!p || !own || !peer || !room)
		return -1;
	vxlan_make_v6(&headers, p, &room->leaving, own, peer, vni);
	tell(room, headers.link.inner.h_source);
	return vxlan_push_made_v6(skb, &headers, packet_ecn(p));
}

/* Takes so many bytes of headers away, behind the outer Ethernet header. `becomes`: the ethertype of the packet within, if
 * it is not that of the outer one, else 0: before Linux 6.3 a packet's family does not change so. What a device has summed
 * stays known, for one header less. Returns 0, or an error: if it is positive nothing was changed. */
static __always_inline int vxlan_strip(struct __sk_buff *skb, __u32 length, __be16 becomes)
{
	__u64 flags = BPF_F_ADJ_ROOM_NO_CSUM_RESET;

	if (becomes)
		flags |= becomes == bpf_htons(ETH_P_IP) ? DECAP_IPV4 : DECAP_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)length, BPF_ADJ_ROOM_MAC, flags))
		return 1;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return becomes && bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &becomes,
					      sizeof(becomes), 0)
		       ? -1
		       : 0;
}

/* All headers of a tunnel are taken away, but for the outer Ethernet header. Returns the same. */
__noinline int vxlan_pull(struct __sk_buff *skb, const struct packet *p, __u32 ethertype)
{
	__be16 inner = ethertype;

	return p ? vxlan_strip(skb, p->l4 - L3 + VXLAN_LINK, inner == p->ethertype ? 0 : inner) : 1;
}
