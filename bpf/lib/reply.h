/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet becomes the answer to itself, from whom it was sent to: a message of the domain name system, a segment of
 * TCP, an echo. The third of the files that write into packets. Sums are changed by the difference of what is summed, so
 * that they are right whether they are finished or left to the device.
 */
#pragma once
#include "lib/lookup.h"
#include "lib/rewrite.h"

#define EDNS_SIZE	 1232 /* bytes of UDP that we would take: as the DNS flag day of 2020 has it */
#define REPLY_HOPS	 64
#define PORT_UNREACHABLE 3 /* code of ICMP_DEST_UNREACH */
#define CHUNKS		 4

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

/* A sum less another one (RFC 1071). */
static __always_inline __u32 sum_less(__u32 sum, __u32 other)
{
	__u64 wide = (__u64)sum + (__u32)~other;

	wide = (wide & 0xffffffff) + (wide >> 32);
	return (wide & 0xffffffff) + (wide >> 32);
}

/* Addresses, length and hops of the IP header; MACs. */
__noinline int reply_addresses(struct __sk_buff *skb, const struct packet *p, __u32 length)
{
	struct tuple to;
	__be16 field;

	if (!p)
		return -1;
	tuple_reverse(&to, &p->tuple);
	if (rewrite_macs(skb, p->src_mac, p->dst_mac))
		return -1;
	if (is_ipv6(p)) {
		field = bpf_htons(length - sizeof(struct ipv6hdr));
		if (bpf_skb_store_bytes(skb, L3 + offsetof(struct ipv6hdr, payload_len), &field,
					sizeof(field), 0))
			return -1;
		return rewrite_ipv6(skb, p, &to, REPLY_HOPS);
	}
	field = bpf_htons(length);
	if (bpf_skb_store_bytes(skb, L3 + offsetof(struct iphdr, tot_len), &field, sizeof(field),
				0))
		return -1;
	return rewrite_ipv4(skb, p, &to, REPLY_HOPS, field + (__u16)~bpf_htons(p->length));
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
	return reply_addresses(skb, p, p->l4 - L3 + length);
}

/* Writes so many bytes of a set's records, from a place on. Returns 1, or 0: it is not the one any more that they were
 * chosen from; 2: it was replaced meanwhile, as other rows are (resolver_copy). */
__noinline int set_write(struct __sk_buff *skb, __u64 number, __u32 at, __u64 from, __u64 length)
{
	struct name_set_key key = {.set = number};
	struct name_set *set = bpf_map_lookup_elem(&name_sets, &key);

	if (!set || from + length > (set->count > 1 ? 2 : 1) * set->count * set->size)
		return 0;
	length = bounded(length);
	asm volatile("" : "+r"(from));
	if (from > SET_BYTES - MESSAGE_MAX ||
	    bpf_skb_store_bytes(skb, at, set->records + from, length, 0))
		return 0;
	return bpf_map_lookup_elem(&name_sets, &key) == set ? 1 : 2;
}

/* Writes what answers a message to that offset of the packet. */
__noinline int reply_message(struct __sk_buff *skb, struct query *q, __u32 at)
{
	struct opt_record opt = {.type = TYPE_OPT, .size = bpf_htons(EDNS_SIZE)};
	struct dns_header *header;
	__u64 length, from;
	int written;

	if (!q)
		return -1;
	header = (struct dns_header *)q->message;
	header->flags = FLAG_ANSWER | (q->flags & (FLAG_OPCODE | FLAG_RD));
	header->flags2 = FLAG_RA | (q->flags2 & FLAG_CD) | (q->rcode & 15);
	header->questions = q->end ? bpf_htons(1) : 0;
	header->answers = bpf_htons(q->answers);
	header->authorities = 0;
	header->additional = q->edns ? bpf_htons(1) : 0;
	length = bounded(q->end ? q->end : DNS_HEADER);
	if (bpf_skb_store_bytes(skb, at, q->message, length, 0))
		return -1;
	at += length;
	if (q->bytes) {
		length = q->bytes;
		from = q->records;
		asm volatile("" : "+r"(length), "+r"(from));
		if (q->row.kept[0]) {
			written = set_write(skb, q->row.kept[0], at, from, length);
			if (written == 2)
				written = set_write(skb, q->row.kept[0], at, from, length);
			if (!written)
				return -1;
		} else {
			length = ((length - 1) & 63) + 1;
			if (bpf_skb_store_bytes(skb, at, q->row.records + (from & 63), length, 0))
				return -1;
		}
		at += length;
	}
	if (!q->edns)
		return 0;
	opt.rcode = q->rcode >> 4;
	opt.flags = q->edns & EDNS_DO ? bpf_htons(0x8000) : 0; /* RFC 3225, 3 */
	return bpf_skb_store_bytes(skb, at, &opt, sizeof(opt), 0);
}

/* The datagram becomes its answer. */
__noinline int reply_datagram(struct __sk_buff *skb, const struct packet *p, struct query *q)
{
	__be16 header[3];
	__u32 length;

	if (!p || !q)
		return -1;
	length = sizeof(struct udphdr) + query_size(q);
	header[0] = p->tuple.dport;
	header[1] = p->tuple.sport;
	header[2] = bpf_htons(length);
	if (reply_begin(skb, p, length) ||
	    bpf_skb_store_bytes(skb, p->l4, header, sizeof(header), 0) ||
	    reply_message(skb, q, p->l4 + sizeof(struct udphdr)))
		return -1;
	return reply_end(skb, p, length);
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
	return reply_addresses(skb, p, p->length);
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
