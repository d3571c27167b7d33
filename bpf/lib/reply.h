/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet becomes the answer to itself, from whom it was sent to: a message of the domain name system, a segment of
 * TCP, an echo. The third of the files that write into packets. Sums are changed by the difference of what is summed, so
 * that they are right whether they are finished or left to the device.
 */
#pragma once
#include "lib/render.h"
#include "lib/rewrite.h"

#define REPLY_HOPS	 64
#define PORT_UNREACHABLE 3 /* code of ICMP_DEST_UNREACH */
#define CHUNKS		 4
#define L4_MASK		 127 /* of offsets of transport headers, which are less than HEADERS */

/* Sums the transport header and what is behind it, that many bytes in all, into the room; 0: it is done. */
__noinline int transport_sum(struct __sk_buff *skb, __u32 at, __u32 length)
{
	struct name_room *room = name_room();
	__s64 sum = 0;
	__u64 part;
	__u32 i;

	if (!room)
		return -1;
#pragma clang loop unroll(disable)
	for (i = 0; i < CHUNKS && length; i++) {
		part = bounded(length < MESSAGE_MAX ? length : MESSAGE_MAX);
		if (bpf_skb_load_bytes(skb, at, room->chunk, part))
			return -1;
		*(__u32 *)(room->chunk + part) = 0;
		/* At most 512 bytes at a time: Linux 6.1 has room for no more. */
		sum = bpf_csum_diff(NULL, 0, (__be32 *)room->chunk, (part + 3) & ~3, sum);
		if (sum < 0)
			return -1;
		at += part;
		length -= part;
	}
	room->sum = sum;
	return length ? -1 : 0;
}

/*
 * Addresses, length and hops of the IP header; MACs. As both ends change places, no sum of theirs changes. Written
 * straight, as each call of a helper takes longer than all of this.
 */
static __always_inline int reply_headers(struct __sk_buff *skb, const struct packet *p,
					 __u32 length)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	void *end = (void *)(long)skb->data_end;

	if ((void *)(ip + 1) > end)
		return -1;
	__builtin_memcpy(eth->h_dest, p->src_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, p->dst_mac, ETH_ALEN);
	if (!is_ipv6(p)) {
		ip->tot_len = bpf_htons(length);
		ip->ttl = REPLY_HOPS;
		ip->check = ipv4_check(p, REPLY_HOPS, ip->tot_len + (__u16)~bpf_htons(p->length));
		ip->saddr = p->tuple.dst.word[3];
		ip->daddr = p->tuple.src.word[3];
		return 0;
	}
	if ((void *)(ip6 + 1) > end)
		return -1;
	ip6->payload_len = bpf_htons(length - sizeof(*ip6));
	ip6->hop_limit = REPLY_HOPS;
	__builtin_memcpy(&ip6->saddr, &p->tuple.dst, sizeof(ip6->saddr));
	__builtin_memcpy(&ip6->daddr, &p->tuple.src, sizeof(ip6->daddr));
	return 0;
}

/* Before the transport header and what is behind it are written, that many bytes in all. */
static __always_inline int reply_begin(struct __sk_buff *skb, const struct packet *p, __u32 length)
{
	if (transport_sum(skb, p->l4, p->length - (p->l4 - L3)))
		return -1;
	return bpf_skb_change_tail(skb, p->l4 + length, 0);
}

/* Once they are: sums and addresses. The field of the sum is as it was. */
__noinline int reply_end(struct __sk_buff *skb, const struct packet *p, __u32 length)
{
	struct name_room *room = name_room();
	__u32 before, check;
	__u64 zero;

	if (!p || !room)
		return -1;
	zero = p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	check = check_at(p->l4, p->tuple.proto);
	before = room->sum;
	if (transport_sum(skb, p->l4, length) ||
	    bpf_l4_csum_replace(skb, check, 0, sum_less(room->sum, before), zero))
		return -1;
	/* The pseudo header has the length as well. */
	before = bpf_htons(length) + (__u16)~bpf_htons(p->length - (p->l4 - L3));
	if (rewrite_pseudo(skb, check, before, zero, is_ipv6(p)))
		return -1;
	return reply_headers(skb, p, p->l4 - L3 + length);
}

/* Writes what an answer has behind its question to an offset of the packet. */
static __always_inline int tail_write(struct __sk_buff *skb, const struct name_room *room, __u32 at,
				      __u64 bytes)
{
	__u64 place = at, i;
	__u8 *to, *end;

	asm volatile("" : "+r"(place));
	/* Less than that are the longest headers and the longest question. */
	to = (void *)(long)skb->data + (place & (MESSAGE_MAX - 1));
	end = (void *)(long)skb->data_end;
	if (bytes > FEW || bytes % sizeof(__u32))
		return bpf_skb_store_bytes(skb, at, room->tail, bounded(bytes), 0);
#pragma clang loop unroll(disable)
	for (i = 0; i < FEW && i < bytes; i += sizeof(__u32)) {
		if (to + i + sizeof(__u32) > end)
			return bpf_skb_store_bytes(skb, at, room->tail, bounded(bytes), 0);
		*(__u32 *)(to + i) = *(__u32 *)(room->tail + i);
	}
	return 0;
}

/* Writes what answers a message to that offset of the packet. */
__noinline int reply_message(struct __sk_buff *skb, struct query *q, __u32 at)
{
	struct name_room *room = name_room();
	__u64 length;
	__s64 bytes;

	if (!q || !room)
		return -1;
	header_render(q);
	bytes = tail_render(q, room);
	length = bounded(q->end ? q->end : DNS_HEADER);
	if (bytes < 0 || bpf_skb_store_bytes(skb, at, q->message, length, 0))
		return -1;
	return bytes ? bpf_skb_store_bytes(skb, at + length, room->tail, bounded(bytes), 0) : 0;
}

struct udp_message {
	struct udphdr udp;
	__u32 header[3];
} __attribute__((packed));

/*
 * The datagram becomes its answer. The question stays where it is: only what is before it and behind it is written, and
 * summed. Where it can, that is done without helpers; of the transport's sum only they know whether it is finished.
 */
static __always_inline int reply_datagram(struct __sk_buff *skb, const struct packet *p,
					  struct name_room *room, struct query *q)
{
	__u32 at, was, length, check, size, *now;
	struct udp_message *message;
	__s64 bytes, part;
	__u64 sum;

	was = p->length - (p->l4 - L3);
	at = sizeof(struct udphdr) + (q->end ? q->end : DNS_HEADER);
	now = (__u32 *)q->message;
	sum = (__u64)(__u32)~now[0] + (__u32)~now[1] + (__u32)~now[2];
	header_render(q);
	sum += (__u64)now[0] + now[1] + now[2];
	bytes = tail_render(q, room);
	if (bytes < 0)
		return -1;
	length = at + bytes;
	room->sum = 0;
	if (was > at && transport_sum(skb, p->l4 + at, was - at))
		return -1;
	part = tail_sum(room, bytes);
	if (part < 0)
		return -1;
	part = sum_less(part, room->sum);
	/* What begins at an odd place is summed with the halves of its words exchanged (RFC 1071, 2). */
	sum += at & 1 ? (__u32)(part << 8 | part >> 24) : part;
	size = bpf_htons(length) + (__u16)~bpf_htons(was);
	if (skb->len != p->l4 + length && bpf_skb_change_tail(skb, p->l4 + length, 0))
		return -1;
	if (bytes && tail_write(skb, room, p->l4 + at, bytes))
		return -1;
	check = check_at(p->l4, IPPROTO_UDP);
	if (bpf_l4_csum_replace(skb, check, 0, sum_fold(sum + size), BPF_F_MARK_MANGLED_0))
		return -1;
	/* The pseudo header has the length as well. */
	if (length != was && rewrite_pseudo(skb, check, size, BPF_F_MARK_MANGLED_0, is_ipv6(p)))
		return -1;
	/* What is not changed may lie elsewhere yet. */
	if (skb->data_end - skb->data < p->l4 + sizeof(*message) &&
	    bpf_skb_pull_data(skb, p->l4 + sizeof(*message)))
		return -1;
	message = (void *)(long)skb->data + (p->l4 & L4_MASK);
	if ((void *)(message + 1) > (void *)(long)skb->data_end)
		return -1;
	message->udp.source = p->tuple.dport;
	message->udp.dest = p->tuple.sport;
	message->udp.len = bpf_htons(length);
	message->header[0] = now[0];
	message->header[1] = now[1];
	message->header[2] = now[2];
	return reply_headers(skb, p, p->l4 - L3 + length);
}

/* All of a TCP header without options but the sum and what is behind it. */
struct segment_header {
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 length, flags;
	__be16 window;
};

/* The segment becomes another one from its receiver, with the answers to so many of the room's queries, each behind its
 * length (RFC 1035, 4.2.2). */
__noinline int reply_segment(struct __sk_buff *skb, const struct packet *p,
			     const struct segment_header *header, __u32 queries)
{
	__u32 at, length = sizeof(struct tcphdr);
	struct name_room *room = name_room();
	__be16 field;

	if (!p || !header || !room)
		return -1;
	if (queries > 0)
		length += 2 + query_size(&room->queries[0]);
	if (queries > 1)
		length += 2 + query_size(&room->queries[1]);
	if (reply_begin(skb, p, length) ||
	    bpf_skb_store_bytes(skb, p->l4, header, sizeof(*header), 0))
		return -1;
	field = 0;
	if (bpf_skb_store_bytes(skb, p->l4 + offsetof(struct tcphdr, urg_ptr), &field,
				sizeof(field), 0))
		return -1;
	at = p->l4 + sizeof(struct tcphdr);
	if (queries > 0) {
		field = bpf_htons(query_size(&room->queries[0]));
		if (bpf_skb_store_bytes(skb, at, &field, sizeof(field), 0) ||
		    reply_message(skb, &room->queries[0], at + 2))
			return -1;
		at += 2 + query_size(&room->queries[0]);
	}
	if (queries > 1) {
		field = bpf_htons(query_size(&room->queries[1]));
		if (bpf_skb_store_bytes(skb, at, &field, sizeof(field), 0) ||
		    reply_message(skb, &room->queries[1], at + 2))
			return -1;
	}
	return reply_end(skb, p, length);
}

#define TCP_LENGTH_AT 12

/* A segment without data becomes the reset of its connection, with that number. */
__noinline int segment_into_reset(struct __sk_buff *skb, const struct packet *p, __be32 seq)
{
	__be16 said, reset; /* the header's length, and its flags */
	__u32 check;

	if (!p || bpf_skb_load_bytes(skb, p->l4 + TCP_LENGTH_AT, &said, sizeof(said)))
		return -1;
	reset = (said & bpf_htons(0xf000)) | bpf_htons(TCP_RST);
	check = check_at(p->l4, IPPROTO_TCP);
	if (bpf_l4_csum_replace(skb, check, bpf_htonl(p->seq), seq, sizeof(seq)) ||
	    bpf_l4_csum_replace(skb, check, said, reset, sizeof(reset)) ||
	    bpf_skb_store_bytes(skb, p->l4 + offsetof(struct tcphdr, seq), &seq, sizeof(seq), 0))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4 + TCP_LENGTH_AT, &reset, sizeof(reset), 0);
}

/* An IPv4 echo request becomes the reply. */
static __always_inline int reply_echo(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type = ICMP_ECHOREPLY;

	if (bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECK_AT, bpf_htons(ICMP_ECHO << 8),
				bpf_htons(ICMP_ECHOREPLY << 8), 2) ||
	    bpf_skb_store_bytes(skb, p->l4, &type, sizeof(type), 0))
		return -1;
	return reply_headers(skb, p, p->length);
}

/* An IPv4 packet becomes the error that nobody listens at its port. */
static __always_inline int reply_unreachable(struct __sk_buff *skb, const struct packet *p)
{
	struct scratch *room = scratch();
	struct icmp_header header;

	/* It writes another error, and says in the scratch memory which. */
	if (!room || rewrite_into_error(skb, p, &p->tuple.dst, 0))
		return -1;
	header.type = ICMP_DEST_UNREACH;
	header.code = PORT_UNREACHABLE;
	header.checksum = fold((__u16)~room->error.header.checksum +
			       (__u16)~bpf_htons(ICMP_TIME_EXCEEDED << 8) +
			       bpf_htons(ICMP_DEST_UNREACH << 8 | PORT_UNREACHABLE));
	if (bpf_skb_store_bytes(skb, L3 + sizeof(struct iphdr), &header,
				offsetof(struct icmp_header, id), 0))
		return -1;
	return rewrite_macs(skb, p->src_mac, p->dst_mac);
}
