/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a service's address itself says, as nobody else has it: answers to echoes, and resets. */
#pragma once
#include "lib/rewrite.h"

#define ECHO_TYPE_AT(p) ((p)->l4 + offsetof(struct icmp_header, type))

/* An echo request, or a fragment of one, becomes its answer: nothing that swapped addresses are in sums differently. */
__noinline int rewrite_into_echo_reply(struct __sk_buff *skb, const struct packet *p)
{
	struct scratch *room = scratch();
	__u8 asked, type;
	bool v6;

	if (!p || !room)
		return -1;
	v6 = is_ipv6(p);
	tuple_reverse(&room->leaving, &p->tuple);
	if (v6 ? rewrite_ipv6(skb, p, &room->leaving, 64)
	       : rewrite_ipv4(skb, p, &room->leaving, 64, 0))
		return -1;
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	asked = v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
	type = v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	if (bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECK_AT, bpf_htons(asked << 8),
				bpf_htons(type << 8), 2))
		return -1;
	return bpf_skb_store_bytes(skb, ECHO_TYPE_AT(p), &type, sizeof(type), 0);
}

/* The reset of what a TCP packet would begin (RFC 9293, 3.10.7.1). */
static __always_inline void reset_of(const struct packet *p, struct tcphdr *tcp)
{
	__u32 length = p->length - (p->l4 - L3) - p->l4_length;

	tcp->source = p->tuple.dport;
	tcp->dest = p->tuple.sport;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (p->tcp_flags & TCP_ACK) {
		tcp->seq = bpf_htonl(p->ack);
		return;
	}
	length += (p->tcp_flags & TCP_SYN) ? 1 : 0;
	length += (p->tcp_flags & TCP_FIN) ? 1 : 0;
	tcp->ack = 1;
	tcp->ack_seq = bpf_htonl(p->seq + length);
}

/* A TCP packet becomes the reset that says nobody listens there. */
__noinline int rewrite_into_reset(struct __sk_buff *skb, const struct packet *p)
{
	struct tcphdr tcp = {};
	__be32 pseudo[2] = {bpf_htonl(sizeof(tcp)), bpf_htonl(IPPROTO_TCP)};
	__s64 sum;

	if (!p || p->fragment || !p->l4 || (p->tcp_flags & TCP_RST))
		return -1;
	reset_of(p, &tcp);
	/* IPv4 addresses in their mapped form have the four bytes more that sum to 0xffff each, which is nothing. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&p->tuple.src, 32, 0);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	tcp.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&tcp, sizeof(tcp), sum));
	if (is_ipv6(p)) {
		struct ipv6hdr ip = {.version = 6, .nexthdr = IPPROTO_TCP, .hop_limit = 64};

		ip.payload_len = bpf_htons(sizeof(tcp));
		__builtin_memcpy(&ip.saddr, &p->tuple.dst, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &p->tuple.src, sizeof(ip.daddr));
		if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + sizeof(tcp), 0) ||
		    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
			return -1;
		return bpf_skb_store_bytes(skb, L3 + sizeof(ip), &tcp, sizeof(tcp), 0);
	}
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP};

	ip.tot_len = bpf_htons(sizeof(ip) + sizeof(tcp));
	ip.saddr = p->tuple.dst.word[3];
	ip.daddr = p->tuple.src.word[3];
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	if (bpf_skb_change_tail(skb, L3 + sizeof(ip) + sizeof(tcp), 0) ||
	    bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), 0))
		return -1;
	return bpf_skb_store_bytes(skb, L3 + sizeof(ip), &tcp, sizeof(tcp), 0);
}
