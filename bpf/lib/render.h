/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a message is answered with, as it will be sent, in the room: the header, and what is behind the question. */
#pragma once
#include "lib/lookup.h"

#define EDNS_SIZE 1232 /* bytes of UDP that we would take: as the DNS flag day of 2020 has it */

/* A sum of a few 32-bit words as one of them (RFC 1071). */
static __always_inline __u32 sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* A sum less another one. */
static __always_inline __u32 sum_less(__u32 sum, __u32 other)
{
	return sum_fold((__u64)sum + (__u32)~other);
}

/* The header of a message becomes that of its answer, where it was read to. */
static __always_inline void header_render(struct query *q)
{
	struct dns_header *header = (struct dns_header *)q->message;

	header->flags = FLAG_ANSWER | (q->flags & (FLAG_OPCODE | FLAG_RD));
	header->flags2 = FLAG_RA | (q->flags2 & FLAG_CD) | (q->rcode & 15);
	header->questions = q->end ? bpf_htons(1) : 0;
	header->answers = bpf_htons(q->answers);
	header->authorities = 0;
	header->additional = q->edns ? bpf_htons(1) : 0;
}

/* Copies the records of a set that were chosen into the room. Returns 1, or 0: it is not the one any more that they were
 * chosen from; 2: it was replaced meanwhile, as other rows are (resolver_copy). */
__noinline int set_copy(const struct query *q)
{
	struct name_room *room = name_room();
	struct name_set_key key = {};
	struct name_set *set;
	__u64 from, bytes, i;

	if (!q || !room)
		return 0;
	key.set = q->row.kept[0];
	from = q->records;
	bytes = q->bytes;
	set = bpf_map_lookup_elem(&name_sets, &key);
	if (!set || from > SET_BYTES - MESSAGE_MAX ||
	    from + bytes > (set->count > 1 ? 2 : 1) * set->count * set->size)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < MESSAGE_MAX && i < bytes; i += sizeof(__u64))
		*(__u64 *)(room->tail + i) = *(__u64 *)(set->records + from + i);
	return bpf_map_lookup_elem(&name_sets, &key) == set ? 1 : 2;
}

/* Puts into the room what an answer has behind its question, records and an OPT record, and a few zeros behind that. Returns
 * how many bytes it is; negative: the records are gone. */
static __always_inline __s64 tail_render(const struct query *q, struct name_room *room)
{
	__u64 bytes = q->bytes, from = q->records, i;
	struct opt_record *opt;
	int copied = 1;

	if (bytes && q->row.kept[0]) {
		copied = set_copy(q);
		if (copied == 2)
			copied = set_copy(q);
	} else if (bytes) {
		asm volatile("" : "+r"(from));
		from &= 63;
#pragma clang loop unroll(full)
		for (i = 0; i < OWN_BYTES; i += sizeof(__u64))
			*(__u64 *)(room->tail + i) = *(__u64 *)(q->row.records + from + i);
	}
	if (!copied)
		return -1;
	asm volatile("" : "+r"(bytes));
	bytes &= MESSAGE_MAX - 1;
	if (q->edns) {
		opt = (struct opt_record *)(room->tail + bytes);
		*opt = (struct opt_record){.type = TYPE_OPT, .size = bpf_htons(EDNS_SIZE)};
		opt->rcode = q->rcode >> 4;
		opt->flags = q->edns & EDNS_DO ? bpf_htons(0x8000) : 0; /* RFC 3225, 3 */
		bytes += sizeof(*opt);
	}
	*(__u32 *)(room->tail + bytes) = 0;
	return bytes;
}

#define FEW 64 /* bytes that are summed and written more quickly than a helper is called */

/* The sum of what the room has to be put behind the question; negative: it could not be computed. */
static __always_inline __s64 tail_sum(const struct name_room *room, __u64 bytes)
{
	__u64 sum = 0, i;

	if (bytes > FEW)
		return bpf_csum_diff(NULL, 0, (__be32 *)room->tail, bounded((bytes + 3) & ~3), 0);
#pragma clang loop unroll(disable)
	for (i = 0; i < FEW; i += sizeof(__u32)) /* less than `bytes`, without a branch */
		sum += *(__u32 *)(room->tail + i) & (__u64)((__s64)(i - bytes) >> 63);
	return sum_fold(sum);
}
