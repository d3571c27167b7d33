/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An IPv4 packet that may be fragmented and is larger than its way takes (RFC 1812, 5.2.6). It becomes its own
 * first fragment and goes on; the rest arrives once more on the same device, as a later fragment of the
 * same sender (cuts.h), where it is translated like any, and cut again if need be.
 */
#pragma once
#include "lib/fragments.h"

#define IP_HEADER   sizeof(struct iphdr) /* without options */
#define MTU_MIN	    68			 /* RFC 791, 3.1 */
#define OPTIONS_MAX 40
#define PIECE_MAX   2008 /* bytes of data in a piece: with options what `frames` takes */
#define SUM_STEP    512	 /* what bpf_csum_diff takes at once, before 6.12 */

struct sum_walk {
	struct __sk_buff *skb;
	struct frag_queue *room;
	__u32 at, end;
	__s64 sum;
};

static long sum_one(__u32 index, struct sum_walk *walk)
{
	__u32 length = walk->end - walk->at;

	if (walk->at >= walk->end)
		return 1;
	if (length > SUM_STEP)
		length = SUM_STEP;
	__builtin_memset(walk->room->frame, 0, SUM_STEP);
	if (bpf_skb_load_bytes(walk->skb, walk->at, walk->room->frame, frame_length(length)))
		walk->sum = -1;
	else
		walk->sum =
			bpf_csum_diff(NULL, 0, (__be32 *)walk->room->frame, SUM_STEP, walk->sum);
	walk->at += length;
	return walk->sum < 0;
}

/*
 * A sender leaves the checksum to its device, as veth claims that it can do it: the header has the sum of
 * the pseudo header only. Once the packet is cut no device can. Returns 0, or an error.
 */
__noinline int finish_checksum(struct __sk_buff *skb, const struct packet *p)
{
	struct sum_walk walk = {.skb = skb};
	__u32 one = 1, check;
	__be32 pseudo[3];
	__sum16 found;

	walk.room = bpf_map_lookup_elem(&frames, &one);
	if (!p || !walk.room)
		return -1;
	if (p->fragment || (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP))
		return 0;
	walk.at = p->l4;
	walk.end = L3 + p->length;
	check = check_at(p->l4, p->tuple.proto);
	pseudo[0] = p->tuple.src.word[3];
	pseudo[1] = p->tuple.dst.word[3];
	pseudo[2] = bpf_htonl(p->tuple.proto << 16 | (L3 + p->length - p->l4));
	if (bpf_skb_load_bytes(skb, check, &found, sizeof(found)))
		return -1;
	if (found != (__sum16)~fold(bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), 0)))
		return 0;
	bpf_loop(128, sum_one, &walk, 0);
	if (walk.sum < 0)
		return -1;
	found = fold(walk.sum);
	if (!found && p->tuple.proto == IPPROTO_UDP)
		found = 0xffff; /* 0: there is none (RFC 768) */
	return bpf_skb_store_bytes(skb, check, &found, sizeof(found), 0);
}

#define OPTION_END    0
#define OPTION_NONE   1
#define OPTION_COPIED 0x80

struct option_walk {
	struct ipv4_header *header;
	__u32 end;  /* of the options, bytes */
	__u32 left; /* bytes of the one at hand */
	bool copied;
};

static long option_one(__u32 at, struct option_walk *walk)
{
	__u8 *options = walk->header->options;

	if (at >= walk->end || at >= OPTIONS_MAX)
		return 1;
	if (!walk->left) {
		if (options[at] == OPTION_END)
			return 1;
		if (options[at] == OPTION_NONE)
			return 0;
		walk->left = options[at + 1];
		if (walk->left < 2 || walk->left > walk->end - at)
			return 1;
		walk->copied = options[at] & OPTION_COPIED;
	}
	walk->left--;
	if (!walk->copied)
		options[at] = OPTION_NONE;
	return 0;
}

/* Options that only the first fragment has (RFC 791, 3.1) become ones without a meaning. */
static __noinline int options_copied(struct ipv4_header *header, __u32 end)
{
	struct option_walk walk = {.header = header, .end = end};

	if (header && end)
		bpf_loop(OPTIONS_MAX, option_one, &walk, 0);
	return 0;
}

/* A header's length, 20 to 60 bytes, in a form that the verifier keeps. */
static __always_inline __u32 header_length(__u32 length)
{
	return ((length - 1) & (sizeof(struct ipv4_header) - 1)) + 1;
}

/* The header of a piece. `size`: its own. */
static __always_inline void piece_header(struct ipv4_header *header, __u32 size, __u32 length,
					 __u32 offset)
{
	header->ip.tot_len = bpf_htons(length);
	header->ip.frag_off = bpf_htons(offset);
	header->ip.check = 0;
	header->ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)header, header_length(size), 0));
}

/* Can a packet that is larger than its way takes be cut for it? Then it will be (packet_fit). The rest of one that has
 * come in a tunnel could not arrive so again. */
__noinline int packet_narrow(struct __sk_buff *skb, struct packet *p, __u32 mtu)
{
	if (!p || is_ipv6(p) || p->dont_fragment || p->by_peer || skb->gso_size || icmp_is_error(p))
		return 0;
	/* The first piece is so long that the transport header is pulled out with it, see below. */
	if (mtu < MTU_MIN || mtu < L3 + 2 * (p->l4 - L3) + 8)
		return 0;
	p->width = mtu;
	return 1;
}

/* Returns 0, and *p is the first piece of what it was, as long as p->width says; or an error. `party`: who sends it, as
 * in struct fragment_key. */
__noinline int packet_split(struct __sk_buff *skb, struct packet *p, __u32 party)
{
	struct scratch *room = scratch();
	__u32 one = 1, size, piece, offset;
	struct ipv4_header *header;
	struct frag_queue *aside;

	if (!p || !room)
		return -1;
	header = &room->header;
	aside = bpf_map_lookup_elem(&frames, &one);
	/* No header is longer than what is read here, and the packet is larger than MTU_MIN. */
	if (!aside || bpf_skb_load_bytes(skb, L3, header, IP_HEADER + OPTIONS_MAX))
		return -1;
	size = header->ip.ihl * 4;
	piece = size < IP_HEADER || p->width < size ? 0 : (p->width - size) & ~7U;
	if (piece > PIECE_MAX)
		piece = PIECE_MAX;
	if (!piece || p->length <= size + piece)
		return -1;
	/* Without what was only padding. */
	if ((skb->len > L3 + p->length && bpf_skb_change_tail(skb, L3 + p->length, 0)) ||
	    bpf_skb_load_bytes(skb, L3 + IP_HEADER, aside->frame,
			       frame_length(size - IP_HEADER + piece)) ||
	    cut_expect(p, party, header->ip.id, piece, room))
		return -1;
	offset = bpf_ntohs(header->ip.frag_off);
	piece_header(header, size, size + piece, offset | bpf_ntohs(IP_MORE_FRAGMENTS));
	room->first = header->ip;
	options_copied(header, size - IP_HEADER);
	piece_header(header, size, p->length - piece, offset + piece / 8);
	/* The helper pulls as much out from behind the header without options. Who pulls a transport header out ends
	 * what was left to the device about its checksum. */
	if (bpf_skb_adjust_room(skb, -(__s32)piece, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(skb, L3, header, header_length(size), BPF_F_RECOMPUTE_CSUM))
		return -1;
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	if (bpf_skb_change_tail(skb, L3 + size, 0) ||
	    bpf_skb_adjust_room(skb, piece, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(skb, L3 + IP_HEADER, aside->frame,
				frame_length(size - IP_HEADER + piece), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, L3, &room->first, IP_HEADER, BPF_F_RECOMPUTE_CSUM))
		return -1;
	/* Of which datagram it is, and up to where, stays: the whole is what has arrived. */
	p->length = size + piece;
	p->ip_check = room->first.check;
	p->width = 0;
	return 0;
}

/* A packet that is to be cut for its way is, at last. Returns 0, or an error. */
static __always_inline int packet_fit(struct __sk_buff *skb, struct packet *p, __u32 party)
{
	return p->width && (finish_checksum(skb, p) || packet_split(skb, p, party));
}
