/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose name it is that a message asks for, and which records it is answered with. */
#pragma once
#include "lib/query.h"

#define SCOPES	    (sizeof(((struct resolver *)0)->networks) / sizeof(__u32))
#define OWN_BYTES   sizeof(((struct name *)0)->records)
#define SET_BYTES   sizeof(((struct name_set *)0)->records)
#define BY_ENDPOINT 254 /* the first byte of keys that are an endpoint's number, */
#define BY_ADDRESS  255 /* and of those that are an address; the rest is at OWNER */
#define OWNER	    4

#define RCODE_FORMAT   1 /* RFC 1035, 4.1.1 */
#define RCODE_NXDOMAIN 3
#define RCODE_NOT_DONE 4
#define RCODE_REFUSED  5
#define RCODE_BADVERS  16

enum name_outcome {
	NAME_FOREIGN = 0, /* none of those that the asker sees */
	NAME_OURS = 1,	  /* the query's `row` says what is known of it */
	NAME_ABSENT = 2,  /* there is none: it would be of an address of a network of ours */
};

/* `is_short` is said where it is compiled: what chooses between two maps calls by a pointer, which costs more than most
 * of what is called. */
static __always_inline struct name *name_in(struct name_room *room, const bool is_short,
					    __u32 scope)
{
	room->key.scope = scope;
	if (is_short)
		return bpf_map_lookup_elem(&names, (struct name_key *)&room->key);
	return bpf_map_lookup_elem(&long_names, &room->key);
}

/* Copies a row that was found; false: it is gone (resolver_copy). */
static __always_inline bool row_copy(struct name_room *room, struct query *q, struct name *row,
				     const bool is_short)
{
	struct name *again;

	q->row = *row;
	again = name_in(room, is_short, room->key.scope);
	if (again && again != row)
		q->row = *again;
	return again;
}

/* Looks for the name in the room's key in what the asker sees: the first scope that has it decides. Returns whether
 * there is one. */
static __always_inline bool name_find(struct name_room *room, struct query *q, const bool is_short)
{
	const struct resolver *resolver = &room->resolver;
	struct name *row = NULL;
	__u32 i;

	if (resolver->private_scope)
		row = name_in(room, is_short, resolver->private_scope);
#pragma clang loop unroll(disable)
	for (i = 0; i < SCOPES && !row && resolver->networks[i]; i++)
		row = name_in(room, is_short, resolver->networks[i]);
	return row && row_copy(room, q, row, is_short);
}

__noinline int name_find_long(struct query *q)
{
	struct name_room *room = name_room();

	return q && room && name_find(room, q, false);
}

/* The number that up to three digits at the beginning of a word are; more than 255: they are none. */
static __always_inline __u32 octet_read(__u32 word, __u32 length)
{
	__u32 missing = 8 * (3 - length), hundreds, tens, ones;

	if (length > 1 && (word & 0xff) == '0')
		return 256;
	word = word << missing | (0x303030 & ((1U << missing) - 1));
	hundreds = (word & 0xff) - '0';
	tens = (word >> 8 & 0xff) - '0';
	ones = (word >> 16 & 0xff) - '0';
	return hundreds > 9 || tens > 9 || ones > 9 ? 256 : hundreds * 100 + tens * 10 + ones;
}

/* That of the label at this place in the room's key. */
__noinline int octet_at(__u32 at)
{
	struct name_room *room = name_room();
	__u32 length;

	if (!room)
		return 256;
	length = room->key.name[at & 31];
	return length - 1 > 2 ? 256
			      : octet_read(*(__u32 *)(room->key.name + (at & 31) + 1), length);
}

/* "D.C.B.A.in-addr.arpa" (RFC 1035, 3.5) in the room's key, of that length: reads the address; false: it is none. */
__noinline int reverse4_read(__u32 length)
{
	struct name_room *room = name_room();
	const __u8 *name;
	__u32 octet, i;
	__u64 at = 0, suffix;

	if (!room || length < 8 + 14 || length > 16 + 14)
		return 0;
	suffix = length - 14;
	asm volatile(""
		     : "+r"(suffix)); /* else the mask, which 6.1's verifier needs, is left out */
	name = room->key.name + (suffix & 31);
	if (*(__u64 *)name != bpf_cpu_to_be64(0x07696e2d61646472ULL) || /* \7in-addr */
	    *(__u32 *)(name + 8) != bpf_htonl(0x04617270) ||		/* \4arp */
	    *(__u16 *)(name + 12) != bpf_htons(0x6100))			/* a\0 */
		return 0;
	addr_set_v4(&room->subnet.addr, 0);
#pragma clang loop unroll(full)
	for (i = 0; i < 4; i++) {
		octet = octet_at(at);
		if (octet > 255)
			return 0;
		((__u8 *)&room->subnet.addr)[15 - i] = octet;
		at += room->key.name[at & 31] + 1;
	}
	return at == length - 14;
}

/* The number that a hexadecimal digit is; more than 15: it is none. */
static __always_inline __u32 digit_read(__u8 c)
{
	__u32 letter = c >> 6;
	__u32 value = letter ? c - 'a' : c - '0';

	return value > (letter ? 5 : 9) ? 16 : value + letter * 10;
}

/* 32 digits, then "ip6.arpa" (RFC 3596, 2.5), likewise. */
__noinline int reverse6_read(__u32 length)
{
	struct name_room *room = name_room();
	__u32 wrong = 0, low, high, i;
	const __u8 *name;

	if (!room || length != 64 + 10)
		return 0;
	name = room->key.name;
	if (*(__u64 *)(name + 64) != bpf_cpu_to_be64(0x0369703604617270ULL) || /* \3ip6\4arp */
	    *(__u16 *)(name + 72) != bpf_htons(0x6100))			       /* a\0 */
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < 16; i++) {
		low = digit_read(name[4 * i + 1]);
		high = digit_read(name[4 * i + 3]);
		wrong |= (name[4 * i] ^ 1) | (name[4 * i + 2] ^ 1) | (low & 16) | (high & 16);
		((__u8 *)&room->subnet.addr)[15 - i] = (high & 15) << 4 | (low & 15);
	}
	return !wrong && !addr_is_v4(&room->subnet.addr);
}

/* The number of the endpoint that has the address on that network; 0: none on this host has it. */
static __always_inline __u32 owner_find(__u32 network, const struct ip_addr *addr)
{
	struct endpoint_key key = {.network = network, .addr = *addr};
	struct endpoint *found = bpf_map_lookup_elem(&endpoints, &key), *again;
	__u32 number;

	if (!found)
		return 0;
	number = found->number;
	again = bpf_map_lookup_elem(&endpoints, &key);
	if (again && again != found)
		number = again->number;
	return again ? number : 0;
}

/* Does the network at this place of the resolver's know who has the room's address? Ends the loop if it does; the
 * row's key is in the room. */
static long reverse_look(__u32 place, void *unused)
{
	struct name_room *room = name_room();
	struct name_key *key;
	struct ip_addr *owner;
	__u32 number;

	if (!room)
		return 1;
	key = &room->address;
	key->scope = room->resolver.networks[place & (SCOPES - 1)];
	if (!key->scope)
		return 1;
	key->name[0] = BY_ADDRESS;
	owner = (struct ip_addr *)(key->name + OWNER);
	*owner = room->subnet.addr;
	number = owner_find(key->scope, owner);
	if (number) {
		key->name[0] = BY_ENDPOINT;
		owner->word[0] = number;
		owner->word[1] = owner->word[2] = owner->word[3] = 0;
	}
	return bpf_map_lookup_elem(&names, key) ? 1 : 0;
}

/* Who has the address that the name in the room's key is about? Returns enum name_outcome. */
__noinline int reverse_find(struct query *q)
{
	struct name_room *room = name_room();
	struct name *row, *again;

	if (!q || !room || !(reverse4_read(q->name) || reverse6_read(q->name)))
		return NAME_FOREIGN;
	bpf_loop(SCOPES, reverse_look, NULL, 0);
	row = bpf_map_lookup_elem(&names, &room->address);
	if (row) {
		q->row = *row;
		again = bpf_map_lookup_elem(&names, &room->address);
		if (again && again != row)
			q->row = *again;
		if (again)
			return NAME_OURS;
	}
	room->subnet.prefixlen = 128;
	return bpf_map_lookup_elem(&subnets, &room->subnet) ? NAME_ABSENT : NAME_FOREIGN;
}

/* How many bytes the answer has. */
static __always_inline __u32 query_size(const struct query *q)
{
	return (q->end ? q->end : DNS_HEADER) + q->bytes +
	       (q->edns ? sizeof(struct opt_record) : 0);
}

/* Chooses the records of the type that is asked for, as many as fit and from any one on. There may be none: the name
 * is known all the same (NODATA). */
static __always_inline void records_choose(struct query *q)
{
	__u32 count, size, first = 0, most;
	struct name_set_key key = {};
	struct rrset *found = NULL;
	struct name_set *set;

	if (q->edns & EDNS_VERSION) {
		q->rcode = RCODE_BADVERS;
		return;
	}
	if (q->row.sets[0].type == q->type) {
		found = &q->row.sets[0];
		key.set = q->row.kept[0];
	} else if (q->row.sets[1].type == q->type) {
		found = &q->row.sets[1];
		key.set = q->row.kept[1];
	}
	if (!found || !q->type)
		return;
	count = found->count;
	size = found->size;
	if (key.set) {
		set = bpf_map_lookup_elem(&name_sets, &key);
		if (!set)
			return;
		count = set->count;
		size = set->size;
	} else if (found == &q->row.sets[1] && !q->row.kept[0]) {
		first = q->row.sets[0].count * q->row.sets[0].size;
		first *= q->row.sets[0].count > 1 ? 2 : 1;
	}
	if (!count || size < DNS_HEADER || count > MESSAGE_MAX || size > MESSAGE_MAX)
		return;
	most = (MESSAGE_MAX - query_size(q)) / size;
	q->answers = count < most ? count : most;
	q->bytes = q->answers * size;
	q->records = first;
	if (count > 1)
		q->records += bpf_get_prandom_u32() % count * size;
	/* What its writer has got wrong is not sent. */
	if (q->records + q->bytes > (key.set ? SET_BYTES : OWN_BYTES))
		q->answers = q->bytes = 0;
	q->row.kept[0] = key.set; /* where reply.h finds them */
}
