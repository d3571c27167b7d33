/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Reading messages of the domain name system (RFC 1035, 4.1). A name is not walked label by label: its only zero byte is
 * its last, so that it is found and made lower-case eight bytes at a time. What is malformed is like no key of a map.
 */
#pragma once
#include "lib/names.h"

#define DNS_HEADER 12
#define NAME_SHORT 60  /* bytes that a key of `names` takes */
#define NAME_MAX   255 /* RFC 1035, 2.3.4 */
#define NAME_WORDS 32  /* of eight bytes: room for the longest */
#define CLASS_IN   bpf_htons(1)

#define TYPE_PTR bpf_htons(12)
#define TYPE_OPT bpf_htons(41)

#define FLAG_ANSWER 0x80 /* of the header's third byte: QR, */
#define FLAG_OPCODE 0x78
#define FLAG_CUT    0x02
#define FLAG_RD	    0x01
#define FLAG_RA	    0x80 /* and of its fourth */
#define FLAG_CD	    0x10

#define EDNS_ASKED   1
#define EDNS_VERSION 2 /* one that is not known here */
#define EDNS_DO	     4

enum query_kind {
	QUERY_NONE = 0,	 /* no message, or an answer: nothing is to be said to it */
	QUERY_OTHER = 1, /* nothing that is answered from the maps */
	QUERY_PLAIN = 2, /* one question of class IN */
	QUERY_KNOWN = 3, /* and what it is answered with has been chosen */
};

struct dns_header {
	__be16 id;
	__u8 flags, flags2;
	__be16 questions, answers, authorities, additional;
};

/* A record that says which extensions are understood (RFC 6891, 6.1.2), without options. */
struct opt_record {
	__u8 name;
	__be16 type, size;
	__u8 rcode, version;
	__be16 flags, length;
} __attribute__((packed));

#define ONES  0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte of eight is the lowest");

/* Eight bytes with those of 'A' to 'Z' as small letters. Lengths of labels are at most 63, which is less. */
static __always_inline __u64 lower_case(__u64 word)
{
	__u64 low = word & ~HIGHS;
	__u64 letters =
		(low + (0x80 - 'A') * ONES) & ~(low + (0x80 - 'Z' - 1) * ONES) & ~word & HIGHS;

	return word | letters >> 2;
}

/*
 * Copies the name of a message into the room's key in lower case, and zeros behind it up to so many words. Its length
 * with its zero byte; 0: it ends nowhere in there. In a word no branch depends on what it is, so that it is verified quickly.
 */
static __always_inline __u32 name_copy(const struct query *q, struct name_room *room,
				       const __u32 words)
{
	const __u64 *from = (const __u64 *)(q->message + DNS_HEADER);
	__u64 *to = (__u64 *)room->key.name;
	__u64 zero = 0, first;
	__u32 length = 0, i;

#pragma clang loop unroll(disable)
	for (i = 0; i < words && !zero; i++) {
		zero = (from[i] - ONES) & ~from[i] & HIGHS;
		first = zero & -zero;
		to[i] = lower_case(from[i]) & ((first >> 7) - 1);
		/* How many bytes there are up to the zero one, that included, or eight. */
		length += (((first - 1) & ONES) * ONES) >> 56;
	}
#pragma clang loop unroll(disable)
	for (; i < words; i++) {
		to[i] = 0;
		asm volatile(
			"" ::
				: "memory"); /* else it becomes a call of memset(), which there is not */
	}
	return zero ? length : 0;
}

__noinline int name_copy_long(const struct query *q)
{
	struct name_room *room = name_room();

	return q && room ? name_copy(q, room, NAME_WORDS) : 0;
}

/* Reads the OPT record at the end of a message; false: it has something else there. */
static __always_inline bool opt_read(struct query *q, __u64 at)
{
	struct opt_record *opt = (struct opt_record *)(q->message + (at & (MESSAGE_MAX - 1)));

	if (opt->name || opt->type != TYPE_OPT ||
	    at + sizeof(*opt) + bpf_ntohs(opt->length) != q->length)
		return false;
	q->size = opt->size;
	q->edns = EDNS_ASKED | (opt->version ? EDNS_VERSION : 0) |
		  (opt->flags & bpf_htons(0x8000) ? EDNS_DO : 0);
	return true;
}

/* Reads the message of that many bytes at an offset of the packet, and the name that it asks for into the room's key.
 * Returns enum query_kind. */
static __always_inline int query_read(struct __sk_buff *skb, struct name_room *room,
				      struct query *q, __u32 at, __u32 length)
{
	struct dns_header *header;
	__u64 end;

	if (length < DNS_HEADER)
		return QUERY_NONE;
	q->length = length;
	q->name = q->end = q->bytes = 0;
	q->answers = 0;
	q->rcode = q->edns = 0;
	q->type = 0;
	if (length > MESSAGE_MAX)
		length = DNS_HEADER;
	if (bpf_skb_load_bytes(skb, at, q->message, bounded(length)))
		return QUERY_NONE;
	header = (struct dns_header *)q->message;
	q->flags = header->flags;
	q->flags2 = header->flags2;
	if (header->flags & FLAG_ANSWER)
		return QUERY_NONE;
	if (q->length > MESSAGE_MAX || header->flags & (FLAG_OPCODE | FLAG_CUT) ||
	    header->questions != bpf_htons(1) || header->answers || header->authorities ||
	    header->additional & ~bpf_htons(1))
		return QUERY_OTHER;
	/* Nearly all are short. */
	q->name = name_copy(q, room, (NAME_SHORT + 7) / 8);
	if (!q->name || q->name > NAME_SHORT)
		q->name = name_copy_long(q);
	if (!q->name || q->name > NAME_MAX)
		return QUERY_OTHER;
	end = bounded(DNS_HEADER + q->name);
	q->type = *(__be16 *)(q->message + end);
	if (*(__be16 *)(q->message + end + 2) != CLASS_IN)
		return QUERY_OTHER;
	end += 4;
	if (header->additional ? !opt_read(q, end) : end != q->length)
		return QUERY_OTHER;
	q->end = end;
	return QUERY_PLAIN;
}

struct label_walk {
	const struct query *q;
	__u32 at;
	bool valid;
};

static long label_next(__u32 index, struct label_walk *walk)
{
	__u8 length = walk->q->message[walk->at & (MESSAGE_MAX - 1)];

	walk->valid = !length && walk->at + 1 == DNS_HEADER + walk->q->name;
	walk->at += length + 1;
	return !length || length > 63 || walk->at >= DNS_HEADER + walk->q->name;
}

/* Are the lengths of its labels right? Who has not found the name in a map does not know. */
__noinline int query_is_valid(const struct query *q)
{
	struct label_walk walk = {.q = q, .at = DNS_HEADER};

	if (!q)
		return 0;
	bpf_loop(NAME_MAX, label_next, &walk, 0);
	return walk.valid;
}
