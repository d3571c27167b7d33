/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A DNS message in a datagram (RFC 1035, 4.1), of which all but its header and its question is taken away, or has been. */
#pragma once
#include "lib/query.h"
#include "lib/rewrite.h"

/* Flags of a message, in host order. */
#define DNS_RESPONSE	    0x8000
#define DNS_OPCODE	    0x7800
#define DNS_TRUNCATED	    0x0200
#define DNS_DESIRED	    0x0100 /* recursion is */
#define DNS_AVAILABLE	    0x0080 /* and it is offered */
#define DNS_UNCHECKED	    0x0010
#define DNS_RCODE	    0x000f
#define RCODE_SERVER_FAILED 2
#define RCODE_REFUSED	    5

struct message_head {
	__be16 id, flags, questions, answers, authorities, additions;
};

/* As it was, and as it becomes; zero behind the end. */
struct message_room {
	union {
		struct message_head header;
		__u8 bytes[MESSAGE_MAX];
	} before, after;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct message_room);
} message_rooms SEC(".maps");

static __always_inline struct message_room *message_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&message_rooms, &zero);
}

/* Reads the header of the message that a datagram holds; false: there is none. */
static __always_inline bool message_header(struct __sk_buff *skb, const struct packet *p,
					   struct message_head *header)
{
	return p->length >= p->l4 - L3 + sizeof(struct udphdr) + sizeof(*header) &&
	       !bpf_skb_load_bytes(skb, p->l4 + sizeof(struct udphdr), header, sizeof(*header));
}

struct name_walk {
	struct message_room *room;
	__u32 end; /* of the name, 0: not found */
};

/* The only zero byte of a name is its last. */
static long name_byte(__u32 index, struct name_walk *walk)
{
	__u32 at = sizeof(struct message_head) + index;

	if (at >= MESSAGE_MAX || walk->room->before.bytes[at])
		return 0;
	walk->end = at + 1;
	return 1;
}

/* The IP header says another length. */
static __always_inline int rewrite_length(struct __sk_buff *skb, struct packet *p, __u32 length)
{
	__be16 before = bpf_htons(p->length), after = bpf_htons(length);

	p->length = length;
	if (is_ipv6(p)) {
		after = bpf_htons(length - sizeof(struct ipv6hdr));
		return bpf_skb_store_bytes(skb, L3 + offsetof(struct ipv6hdr, payload_len), &after,
					   sizeof(after), BPF_F_RECOMPUTE_CSUM);
	}
	if (bpf_l3_csum_replace(skb, IP_CHECK_AT, before, after, sizeof(after)) ||
	    bpf_skb_store_bytes(skb, L3 + offsetof(struct iphdr, tot_len), &after, sizeof(after),
				0))
		return -1;
	return bpf_skb_load_bytes(skb, IP_CHECK_AT, &p->ip_check, sizeof(p->ip_check));
}

/* Of the message at `at`, what the room has after this is its header, with these flags, and its question. Returns their
 * length; 0: it is no such message. */
__noinline int message_question(struct __sk_buff *skb, __u32 at, __u32 length, __u32 flags)
{
	struct message_room *room = message_room();
	struct name_walk walk = {.room = room};
	__u32 end;

	if (!room || length <= sizeof(struct message_head) || length > MESSAGE_MAX)
		return 0;
	__builtin_memset(&room->before, 0, sizeof(room->before));
	__builtin_memset(&room->after, 0, sizeof(room->after));
	if (bpf_skb_load_bytes(skb, at, room->before.bytes, bounded(length)) ||
	    room->before.header.questions != bpf_htons(1))
		return 0;
	bpf_loop(255, name_byte, &walk, 0);
	end = walk.end + 2 * sizeof(__be16); /* type and class */
	if (!walk.end || end > length ||
	    bpf_skb_load_bytes(skb, at, room->after.bytes, bounded(end)))
		return 0;
	room->after.header.flags = bpf_htons(flags);
	room->after.header.answers = 0;
	room->after.header.authorities = 0;
	room->after.header.additions = 0;
	return end;
}

/* Behind the question, which ends there, comes the OPT record that it was asked with, but for the record's options. Returns
 * where the message ends. */
static __always_inline __u32 message_extend(struct message_room *room, __u64 end,
					    const struct question *asked)
{
	struct opt_record *opt;

	asm volatile("" : "+r"(end));
	if (end > MESSAGE_MAX - sizeof(*opt))
		return end;
	opt = (struct opt_record *)(room->after.bytes + end);
	*opt = (struct opt_record){.type = TYPE_OPT, .size = asked->size};
	opt->flags = asked->edns & EDNS_DO ? bpf_htons(0x8000) : 0; /* RFC 3225, 3 */
	room->after.header.additions = bpf_htons(1);
	return end + sizeof(*opt);
}

/* The message becomes its header, with these flags, and its question; `asked`: as that was asked, with its OPT record.
 * Returns 0, or an error: it is no such message, and nothing has changed; or it could not be written. */
__noinline int message_cut(struct __sk_buff *skb, struct packet *p, __u32 flags,
			   const struct question *asked)
{
	struct message_room *room = message_room();
	__u32 at, check, length, end;
	__be16 old_size, size;
	__s64 sum;

	if (!p || !room || p->fragment || p->tuple.proto != IPPROTO_UDP)
		return -1;
	at = p->l4 + sizeof(struct udphdr);
	length = L3 + p->length - at;
	end = message_question(skb, at, length, flags);
	if (!end || end > length || length > MESSAGE_MAX)
		return -1;
	if (asked && asked->edns)
		end = message_extend(room, end, asked);
	/* Where it ended without one, it becomes longer. */
	if (end > length && bpf_skb_change_tail(skb, at + end, 0))
		return -1;
	sum = bpf_csum_diff((__be32 *)room->before.bytes, MESSAGE_MAX, NULL, 0, 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)room->after.bytes, MESSAGE_MAX, sum);
	/* The length counts twice: in the header and in the pseudo header. */
	check = check_at(p->l4, IPPROTO_UDP);
	old_size = bpf_htons(sizeof(struct udphdr) + length);
	size = bpf_htons(sizeof(struct udphdr) + end);
	if (bpf_l4_csum_replace(skb, check, 0, sum, BPF_F_MARK_MANGLED_0) ||
	    bpf_l4_csum_replace(skb, check, old_size, size, BPF_F_MARK_MANGLED_0 | 2) ||
	    bpf_l4_csum_replace(skb, check, old_size, size,
				BPF_F_MARK_MANGLED_0 | BPF_F_PSEUDO_HDR | 2) ||
	    bpf_skb_store_bytes(skb, at, room->after.bytes, bounded(end > length ? end : length),
				0) ||
	    bpf_skb_store_bytes(skb, p->l4 + offsetof(struct udphdr, len), &size, sizeof(size), 0))
		return -1;
	if (rewrite_length(skb, p, p->length - length + end))
		return -1;
	/* From here on no sum of a device's counts. */
	return end < length ? bpf_skb_change_tail(skb, at + end, 0) : 0;
}

/* The header of a new packet, and its share of the transport's checksum. */
static __always_inline __s64 message_header_v6(struct __sk_buff *skb, const struct tuple *as,
					       __u32 payload)
{
	struct ipv6hdr ip = {.version = 6, .nexthdr = IPPROTO_UDP, .hop_limit = IPDEFTTL};

	ip.payload_len = bpf_htons(payload);
	__builtin_memcpy(&ip.saddr, &as->src, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &as->dst, sizeof(ip.daddr));
	if (bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_csum_diff(NULL, 0, (__be32 *)&ip.saddr, 2 * sizeof(ip.saddr), 0);
}

static __always_inline __s64 message_header_v4(struct __sk_buff *skb, const struct tuple *as,
					       __u32 payload)
{
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = IPDEFTTL, .protocol = IPPROTO_UDP};

	ip.tot_len = bpf_htons(sizeof(ip) + payload);
	ip.id = bpf_get_prandom_u32();
	ip.saddr = as->src.word[3];
	ip.daddr = as->dst.word[3];
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	if (bpf_skb_store_bytes(skb, L3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_csum_diff(NULL, 0, (__be32 *)&ip.saddr, 2 * sizeof(ip.saddr), 0);
}

/*
 * The packet, whatever it was, becomes a datagram with these addresses and ports, which holds as much of the message in
 * the room. Its Ethernet addresses stay. Returns 0, or an error. The room's message is zero behind that.
 */
__noinline int message_send(struct __sk_buff *skb, struct packet *p, const struct tuple *as,
			    __u32 length)
{
	struct message_room *room = message_room();
	struct udphdr udp = {};
	__be16 ethertype;
	__be32 pseudo[2];
	__s64 sum;

	if (!p || !as || !room || !length || length > MESSAGE_MAX)
		return -1;
	ethertype = addr_is_v4(&as->dst) ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (ethertype != p->ethertype && (bpf_skb_change_proto(skb, ethertype, 0) ||
					  bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto),
							      &ethertype, sizeof(ethertype), 0)))
		return -1;
	p->ethertype = ethertype;
	p->fragment = FRAGMENT_NONE;
	p->l4 = L3 + (is_ipv6(p) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	p->length = p->l4 - L3 + sizeof(udp) + length;
	p->tuple = *as;
	udp.source = as->sport;
	udp.dest = as->dport;
	udp.len = bpf_htons(sizeof(udp) + length);
	if (bpf_skb_change_tail(skb, L3 + p->length, 0))
		return -1;
	sum = is_ipv6(p) ? message_header_v6(skb, as, sizeof(udp) + length)
			 : message_header_v4(skb, as, sizeof(udp) + length);
	pseudo[0] = bpf_htonl(sizeof(udp) + length);
	pseudo[1] = bpf_htonl(IPPROTO_UDP);
	if (sum < 0)
		return -1;
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&udp, sizeof(udp), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)room->after.bytes, MESSAGE_MAX, sum);
	udp.check = fold(sum);
	if (!udp.check)
		udp.check = 0xffff; /* 0: there is none (RFC 768) */
	if (bpf_skb_store_bytes(skb, p->l4, &udp, sizeof(udp), BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4 + sizeof(udp), room->after.bytes, bounded(length),
				   BPF_F_RECOMPUTE_CSUM);
}

/* Reads a message that lies at `at` into the room. Returns 0, or an error. */
__noinline int message_read(struct __sk_buff *skb, __u32 at, __u32 length)
{
	struct message_room *room = message_room();

	if (!room || length < sizeof(struct message_head) || length > MESSAGE_MAX)
		return -1;
	__builtin_memset(&room->after, 0, sizeof(room->after));
	return bpf_skb_load_bytes(skb, at, room->after.bytes, bounded(length));
}
