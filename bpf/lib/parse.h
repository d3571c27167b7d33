/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Parsing. packet_parse() reads a frame once into a struct packet; every later decision is taken from
 * that and never from the frame again. Byte order is the wire's for addresses, ports and the
 * ethertype, host order for the rest.
 */
#pragma once
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmpv6.h>
#include <linux/pkt_cls.h>
#include "lib/addr.h"
#include "lib/headers.h"

#define L3		  ETH_HLEN /* offset of the network header: tagged frames are refused */
#define HEADERS		  (ETH_HLEN + 60 + 20) /* the longest IPv4 header, then a TCP header */
#define IP_FRAGMENT	  bpf_htons(0x3fff)    /* IPv4: more-fragments flag and offset */
#define IP_MORE_FRAGMENTS bpf_htons(0x2000)
#define IP_OFFSET	  bpf_htons(0x1fff)
#define IP_DONT_FRAGMENT  bpf_htons(0x4000)

enum fragment_kind {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2, /* has no ports */
};

struct packet {
	struct tuple tuple; /* ARP: sender and target; ports 0 where there are none */
	__u32 l4;	    /* offset of the transport header, 0: none; see `lacks` */
	__u32 length;	    /* of the IP packet as its header states it */
	__u32 width;	    /* of its way, that it is to be cut for; 0: it fits */
	__u32 seq, ack;	    /* TCP, host order */
	__be32 fragment_id;
	__u16 fragment_from; /* bytes of the datagram before this fragment's, */
	__u16 fragment_to;   /* and up to its end */
	__be32 flowinfo;     /* IPv6: traffic class and flow label; IPv4: TOS, its first byte */
	__be16 ethertype;
	__sum16 ip_check;	  /* IPv4: of the header */
	__u8 fragment;		  /* enum fragment_kind */
	__u8 forwarded, followed; /* its sender speaks for another; its datagram is followed */
	__u8 ttl;		  /* or hop limit */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 dont_fragment;
	__u8 more_fragments;
	__u8 arp_operation;
	__u8 has_ports; /* the connection can be followed: ports, or an echo's identifier */
	__u8 l4_length; /* of a TCP header with its options, or a UDP header, bytes */
	__u8 limited;	/* its sender is a container with a limit: enum limit_direction */
	__u8 at_egress; /* of a device: from here nothing is sent straight into a namespace */
	__u8 reopens;	/* begins anew what its connection to a service has been, see is_left() */
	__u8 by_peer;	/* another host has sent it, by whose tunnel it is told of errors */
	__u8 again;	/* it has passed the hook before, as a part of another packet */
	__u8 lacks;	/* bytes of Ethernet header that it came without. Offsets count them: until
			 * they are put before it, all lies so much earlier */
	__u8 src_mac[6];
	__u8 dst_mac[6];
	__u32 back; /* number of the other host that it goes back to, as it was; 0: to none */
	/* Of a container of a network with NETWORK_FLOWS (tally.h): */
	__u32 watched; /* number of that network, 0: it is not counted */
	__u32 sender;  /* who it is: number, or enum other_party; */
	__u32 party;   /* likewise, who gets it; 0: it is not counted as delivered */
	__u32 reason;  /* why it was dropped, 0: it was not */
	__u32 segment; /* bytes of data in each that it came to be cut into; 0: as a whole */
};

static __always_inline bool is_ipv6(const struct packet *p)
{
	return p->ethertype == bpf_htons(ETH_P_IPV6);
}

static __always_inline bool is_echo_reply(const struct packet *p)
{
	if (is_ipv6(p))
		return p->tuple.proto == IPPROTO_ICMPV6 && p->icmp_type == ICMPV6_ECHO_REPLY;
	return p->tuple.proto == IPPROTO_ICMP && p->icmp_type == ICMP_ECHOREPLY;
}

/* ICMP has no pseudo header, ICMPv6 has; of what else there is nobody knows. */
static __always_inline bool sums_addresses(__u8 proto, bool v6)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || (v6 && proto == IPPROTO_ICMPV6);
}

/* Does it open a TCP connection? What is a reset, too, is that alone (RFC 9293, 3.10.7). */
static __always_inline bool is_tcp_opening(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_TCP && p->fragment != FRAGMENT_LATER &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* A TCP packet that opens a connection, whole. */
static __always_inline bool is_opening(const struct packet *p)
{
	return !p->fragment && is_tcp_opening(p);
}

/* An answer or a reset, which opens no connection. (Under a flood a server keeps repeating them.) */
static __always_inline bool is_tcp_answer(const struct packet *p)
{
	return p->tuple.proto == IPPROTO_TCP &&
	       ((p->tcp_flags & TCP_RST) ||
		(p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK));
}

/* The types below 128 of ICMPv6 are errors (RFC 4443, 2.1). */
static __always_inline bool icmp_is_error(const struct packet *p)
{
	if (p->fragment || !p->l4)
		return false;
	if (p->tuple.proto == IPPROTO_ICMPV6)
		return is_ipv6(p) && p->icmp_type < 128;
	return p->tuple.proto == IPPROTO_ICMP &&
	       (p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		p->icmp_type == ICMP_PARAMETERPROB);
}

/* Can its connection be followed? A later fragment's can once it was looked up (fragments.h). */
static __always_inline bool packet_has_ports(const struct packet *p)
{
	return p->has_ports;
}

static __always_inline int parse_transport(void *l4, void *end, struct packet *p)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;
	struct icmp_header *icmp = l4;
	__u32 used = p->l4 - L3;

	/* The other family's ICMP is a protocol like any that has no ports. */
	if (p->tuple.proto == (is_ipv6(p) ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		p->l4 = 0;
		return 0;
	}
	/* What the IP header leaves out is padding, whatever it looks like. */
	switch (p->tuple.proto) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > end || used + sizeof(*tcp) > p->length)
			return DROP_TRUNCATED;
		p->tuple.sport = tcp->source;
		p->tuple.dport = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->l4_length = ((__u8 *)tcp)[12] / 16 * 4;
		p->seq = bpf_ntohl(tcp->seq);
		p->ack = bpf_ntohl(tcp->ack_seq);
		p->has_ports = 1;
		return 0;
	case IPPROTO_UDP:
		if ((void *)(udp + 1) > end || used + sizeof(*udp) > p->length)
			return DROP_TRUNCATED;
		p->tuple.sport = udp->source;
		p->tuple.dport = udp->dest;
		p->l4_length = sizeof(*udp);
		p->has_ports = 1;
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(icmp + 1) > end || used + sizeof(*icmp) > p->length)
			return DROP_TRUNCATED;
		p->icmp_type = icmp->type;
		if (icmp->type == (is_ipv6(p) ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
			p->tuple.sport = icmp->id;
		else if (is_echo_reply(p))
			p->tuple.dport = icmp->id;
		else
			return 0;
		p->has_ports = 1;
		return 0;
	}
	return 0;
}

/* `big`: a packet beyond 64 KiB may state length 0 (BIG TCP), as the kernel cuts it up. */
static __always_inline int parse_ipv4(struct iphdr *ip, void *end, __u32 room, bool big,
				      struct packet *p)
{
	__u32 header = ip->ihl * 4;

	if (ip->version != 4 || header < sizeof(*ip))
		return DROP_TRUNCATED;
	p->length = bpf_ntohs(ip->tot_len);
	if (!p->length && big)
		p->length = room;
	if (p->length < header || p->length > room)
		return DROP_TRUNCATED;
	addr_set_v4(&p->tuple.src, ip->saddr);
	addr_set_v4(&p->tuple.dst, ip->daddr);
	p->tuple.proto = ip->protocol;
	p->ttl = ip->ttl;
	*(__u8 *)&p->flowinfo = ip->tos;
	p->ip_check = ip->check;
	p->dont_fragment = (ip->frag_off & IP_DONT_FRAGMENT) != 0;
	p->l4 = L3 + header;
	if (ip->frag_off & IP_FRAGMENT) {
		p->fragment = ip->frag_off & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->fragment_id = ip->id;
		p->more_fragments = (ip->frag_off & IP_MORE_FRAGMENTS) != 0;
		p->fragment_from = bpf_ntohs(ip->frag_off & IP_OFFSET) * 8;
		p->fragment_to = p->fragment_from + p->length - header;
		/* Beyond 64 KiB: the ping of death. */
		if (p->fragment_to < p->fragment_from)
			return DROP_TRUNCATED;
	}
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	return parse_transport((void *)ip + header, end, p);
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

/* Extension headers are walked to the transport header, at most four of them (RFC 8200, 4). */
static __always_inline int parse_ipv6(struct ipv6hdr *ip, void *end, __u32 room, bool big,
				      struct packet *p)
{
	__u8 next = ip->nexthdr;
	__u32 at = sizeof(*ip);
	int i;

	if (ip->version != 6)
		return DROP_TRUNCATED;
	p->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (!ip->payload_len && big)
		p->length = room;
	if (p->length > room)
		return DROP_TRUNCATED;
	__builtin_memcpy(&p->tuple.src, &ip->saddr, sizeof(p->tuple.src));
	__builtin_memcpy(&p->tuple.dst, &ip->daddr, sizeof(p->tuple.dst));
	/* In the maps that form is an IPv4 address; on a wire it is invalid (RFC 4942, 2.2). */
	if (addr_is_v4(&p->tuple.src) || addr_is_v4(&p->tuple.dst))
		return DROP_BAD_ADDR;
	p->ttl = ip->hop_limit;
	p->flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
	p->dont_fragment = 1;
	for (i = 0; i < 4; i++) {
		__u8 *extension = (void *)ip + at;

		if (!is_extension(next))
			break;
		if ((void *)(extension + 8) > end)
			return DROP_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 offset = bpf_ntohs(*(__be16 *)(extension + 2));

			if (offset & 0xfff8)
				p->fragment = FRAGMENT_LATER;
			else if (offset & 1)
				p->fragment = FRAGMENT_FIRST;
			p->fragment_id = *(__be32 *)(extension + 4);
			p->more_fragments = offset & 1;
			p->fragment_from = offset & 0xfff8;
			at += 8;
			p->fragment_to = p->fragment_from + p->length - at;
			if (p->fragment_to < p->fragment_from)
				return DROP_TRUNCATED;
		} else {
			at += 8 + extension[1] * 8;
		}
		next = extension[0];
		if (at > p->length)
			return DROP_TRUNCATED;
		if (p->fragment == FRAGMENT_LATER)
			break;
		if (at > HEADERS - L3)
			return DROP_TRUNCATED;
	}
	p->tuple.proto = next;
	p->l4 = L3 + at;
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	/* What is behind it could be anything, a router's advertisement too (RFC 7113). */
	if (is_extension(next))
		return DROP_TRUNCATED;
	return parse_transport((void *)ip + at, end, p);
}

static __always_inline int parse_arp(struct arp_body *arp, void *end, struct packet *p)
{
	if ((void *)(arp + 1) > end)
		return DROP_TRUNCATED;
	if (arp->hardware != bpf_htons(ARPHRD_ETHER) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != ETH_ALEN || arp->protocol_len != 4)
		return DROP_SPOOFED_ARP;
	/* Every operation that is defined fits a byte (RFC 5494); 0 is not defined. */
	p->arp_operation = bpf_ntohs(arp->operation) < 256 ? bpf_ntohs(arp->operation) : 0;
	/* What the frame says of itself inside must be what it says outside. */
	if (!mac_equal(arp->sender_mac, p->src_mac))
		return DROP_SPOOFED_ARP;
	addr_set_v4(&p->tuple.src, arp->sender);
	addr_set_v4(&p->tuple.dst, arp->target);
	return 0;
}

/* From the network header on, whose kind is known. */
static __always_inline int parse_network(void *l3, void *end, __u32 room, bool big,
					 struct packet *p)
{
	switch (p->ethertype) {
	case bpf_htons(ETH_P_IP):
		if (l3 + sizeof(struct iphdr) > end)
			return DROP_TRUNCATED;
		return parse_ipv4(l3, end, room, big, p);
	case bpf_htons(ETH_P_IPV6):
		if (l3 + sizeof(struct ipv6hdr) > end)
			return DROP_TRUNCATED;
		return parse_ipv6(l3, end, room, big, p);
	}
	return DROP_ETHERTYPE;
}

/* A frame from its Ethernet header on, as far as it lies in one piece. */
static __always_inline int parse_frame(void *data, void *end, __u32 room, bool big,
				       struct packet *p)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return DROP_TRUNCATED;
	__builtin_memcpy(p->src_mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(p->dst_mac, eth->h_dest, ETH_ALEN);
	p->ethertype = eth->h_proto;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_ARP):
		return parse_arp((void *)(eth + 1), end, p);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return DROP_VLAN;
	}
	return parse_network(eth + 1, end, room, big, p);
}

static __always_inline int parse_linear(struct __sk_buff *skb, struct packet *p)
{
	int reason = parse_frame((void *)(long)skb->data, (void *)(long)skb->data_end,
				 skb->len - L3, skb->gso_size, p);

	/* The tag of an accelerated VLAN frame is not in the packet. */
	return skb->vlan_present ? DROP_VLAN : reason;
}

/* What it is only the kernel says: bytes of an IP header are never taken for an ethertype. */
static __always_inline int parse_bare(struct __sk_buff *skb, struct packet *p)
{
	p->lacks = ETH_HLEN;
	p->ethertype = skb->protocol;
	return parse_network((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len,
			     skb->gso_size, p);
}

/* Headers may lie outside the linear part: fetch them, once, and only if `reason` can be that. */
static __always_inline bool headers_fetched(struct __sk_buff *skb, int reason)
{
	if (reason != DROP_TRUNCATED || skb->data_end - skb->data >= skb->len ||
	    skb->data_end - skb->data >= HEADERS)
		return false;
	return !bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
}

/* Returns 0, or the reason why the frame is unfit. *p must be zeroed. */
__noinline int packet_parse(struct __sk_buff *skb, struct packet *p)
{
	int reason;

	if (!p)
		return DROP_TRUNCATED;
	reason = parse_linear(skb, p);
	if (!headers_fetched(skb, reason))
		return reason;
	__builtin_memset(p, 0, sizeof(*p));
	return parse_linear(skb, p);
}

/* The same of a packet that came without an Ethernet header. */
__noinline int packet_parse_bare(struct __sk_buff *skb, struct packet *p)
{
	int reason;

	if (!p)
		return DROP_TRUNCATED;
	reason = parse_bare(skb, p);
	if (!headers_fetched(skb, reason))
		return reason;
	__builtin_memset(p, 0, sizeof(*p));
	return parse_bare(skb, p);
}
