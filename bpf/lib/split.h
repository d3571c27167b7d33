/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * An IPv4 packet that may be fragmented and is larger than its way takes (RFC 1812, 5.2.6). It becomes its own
 * first fragment and goes on; the rest arrives once more on the same device, as a later fragment of the
 * same sender, where it is translated like any, and cut again if need be.
 */
#pragma once
#include "lib/fragments.h"

#define IP_HEADER sizeof(struct iphdr) /* packets with options are not cut */
#define MTU_MIN	  68		       /* RFC 791, 3.1 */
#define PIECE_MAX 2040 /* bytes of data in a piece: what `frames` and the helpers take */
#define SUM_STEP  512  /* what bpf_csum_diff takes at once, before 6.12 */

/* In tc_index, as ANSWER_MARK: the rest of a later fragment that was cut. Its piece is recorded already, with
 * the whole. SPLIT_LAST: nothing else of the datagram is to come. */
#define SPLIT_MARK 0x0d48
#define SPLIT_LAST 0x0d49

static __always_inline bool may_split(const struct __sk_buff *skb, const struct packet *p)
{
	return !is_ipv6(p) && !p->dont_fragment && !skb->gso_size && p->ttl > 1 &&
	       packet_has_ports(p);
}

static __always_inline bool is_split(const struct __sk_buff *skb)
{
	return skb->tc_index == SPLIT_MARK || skb->tc_index == SPLIT_LAST;
}

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
static __always_inline int finish_checksum(struct __sk_buff *skb, const struct packet *p,
					   struct frag_queue *room)
{
	struct sum_walk walk = {.skb = skb, .room = room, .at = p->l4, .end = L3 + p->length};
	__u32 check = check_at(p->l4, p->tuple.proto);
	__be32 pseudo[3];
	__sum16 found;

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

static __always_inline int store_header(struct __sk_buff *skb, struct iphdr *ip, __u32 length,
					__u32 offset)
{
	ip->tot_len = bpf_htons(length);
	ip->frag_off = bpf_htons(offset);
	ip->check = 0;
	ip->check = fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
	return bpf_skb_store_bytes(skb, L3, ip, sizeof(*ip), BPF_F_RECOMPUTE_CSUM);
}

/* The rest of a later fragment finds its ports: in its datagram's row, or in one that is made for it, if the datagram
 * was complete. Returns its mark, or 0. */
static __always_inline __u32 split_mark(const struct packet *p, const struct fragment_key *key)
{
	struct fragment *fragment = fragment_find(key);
	__u32 zero = 0;

	if (fragment && fragment->known)
		return SPLIT_MARK;
	fragment = bpf_map_lookup_elem(&new_fragments, &zero);
	if (!fragment)
		return 0;
	__builtin_memset(fragment, 0, sizeof(*fragment));
	fragment->since = bpf_ktime_get_ns();
	fragment->known = 1;
	fragment->refused = DROP_FRAGMENT; /* others: there are none left */
	fragment->proto = p->tuple.proto;
	fragment->has_ports = p->has_ports;
	fragment->sport = p->tuple.sport;
	fragment->dport = p->tuple.dport;
	return bpf_map_update_elem(&fragments, key, fragment, BPF_ANY) ? 0 : SPLIT_LAST;
}

/* Returns 0, and *p is the first piece of what it was; or a drop reason. DROP_TOO_BIG: it cannot be cut, and is as
 * it was. `party`: who sends it, as in fragment_track(). */
__noinline int packet_split(struct __sk_buff *skb, struct packet *p, __u32 party, __u32 mtu)
{
	struct scratch *room = scratch();
	struct frag_queue *aside;
	__u32 one = 1, piece, offset, mark = 0;
	struct iphdr ip;

	if (!p || !room)
		return DROP_REWRITE;
	aside = bpf_map_lookup_elem(&frames, &one);
	piece = mtu < MTU_MIN ? 0 : (mtu - IP_HEADER) & ~7U;
	if (piece > PIECE_MAX)
		piece = PIECE_MAX;
	if (!aside || !piece || p->length <= IP_HEADER + piece ||
	    bpf_skb_load_bytes(skb, L3, &ip, sizeof(ip)) || ip.ihl * 4 != IP_HEADER)
		return DROP_TOO_BIG;
	if (p->fragment == FRAGMENT_NONE && !is_icmp(p->tuple.proto) &&
	    finish_checksum(skb, p, aside))
		return DROP_REWRITE;
	if (p->fragment == FRAGMENT_LATER) {
		fragment_key_of(p, party, &room->fragment);
		mark = split_mark(p, &room->fragment);
		if (!mark)
			return DROP_FRAGMENT;
	}
	/* Without what was only padding. */
	if ((skb->len > L3 + p->length && bpf_skb_change_tail(skb, L3 + p->length, 0)) ||
	    bpf_skb_load_bytes(skb, L3 + IP_HEADER, aside->frame, frame_length(piece)))
		return DROP_REWRITE;
	offset = bpf_ntohs(ip.frag_off);
	/* The helper pulls the piece out from behind the header. Who pulls a transport header out ends what was
	 * left to the device about its checksum. */
	if (bpf_skb_adjust_room(skb, -(__s32)piece, BPF_ADJ_ROOM_NET, 0) ||
	    store_header(skb, &ip, p->length - piece, offset + piece / 8))
		return DROP_REWRITE;
	skb->tc_index = mark;
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	skb->tc_index = 0;
	if (bpf_skb_adjust_room(skb, piece, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_change_tail(skb, L3 + IP_HEADER + piece, 0) ||
	    bpf_skb_store_bytes(skb, L3 + IP_HEADER, aside->frame, frame_length(piece),
				BPF_F_RECOMPUTE_CSUM) ||
	    store_header(skb, &ip, IP_HEADER + piece, offset | bpf_ntohs(IP_MORE_FRAGMENTS)))
		return DROP_REWRITE;
	p->length = IP_HEADER + piece;
	p->ip_check = ip.check;
	/* The hook takes note of it, as of any first fragment. */
	if (p->fragment == FRAGMENT_NONE) {
		p->fragment = FRAGMENT_FIRST;
		p->fragment_id = ip.id;
		p->followed = 1;
	}
	p->more_fragments = 1;
	p->fragment_to = p->fragment_from + piece;
	return 0;
}

/* The rest of a packet that was cut gets its ports. Returns 0, or a drop reason. */
__noinline int split_continue(struct __sk_buff *skb, struct packet *p, __u32 party)
{
	bool last = skb->tc_index == SPLIT_LAST;
	struct fragment *fragment;
	struct fragment_key key;

	if (!p)
		return DROP_FRAGMENT;
	skb->tc_index = 0;
	fragment_key_of(p, party, &key);
	fragment = fragment_find(&key);
	if (!fragment || !fragment->known)
		return DROP_FRAGMENT;
	p->tuple.sport = fragment->sport;
	p->tuple.dport = fragment->dport;
	p->has_ports = fragment->has_ports;
	if (last)
		bpf_map_delete_elem(&fragments, &key);
	return 0;
}
