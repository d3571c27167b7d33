/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How often connections were opened, by what their tuples hash to. As long as a number stays as it is, no connection has
 * come to be with a tuple that there was none of.
 */
#pragma once
#include "lib/addr.h"

#define OPENINGS 16384 /* a power of two */

struct opening {
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPENINGS);
	__type(key, __u32);
	__type(value, struct opening);
} openings SEC(".maps");

/* `src`, `dst`: the lower 32 bits of addresses, or more of them in one word; `ports`: as they lie in the header. */
static __always_inline __u32 opening_hash(__u32 src, __u32 dst, __u32 ports, __u8 proto)
{
	__u32 hash = (src + dst * 31) * 0x9e3779b1 ^ ports ^ proto;

	hash = (hash ^ hash >> 15) * 0x85ebca6b;
	return hash ^ hash >> 16;
}

static __always_inline __u32 opening_hash_of(const struct tuple *t)
{
	return opening_hash(t->src.word[3] ^ t->src.word[1], t->dst.word[3] ^ t->dst.word[1],
			    t->sport | (__u32)t->dport << 16, t->proto);
}

static __always_inline __u64 openings_of(__u32 hash)
{
	__u32 place = hash & (OPENINGS - 1);
	struct opening *found = bpf_map_lookup_elem(&openings, &place);

	return found ? *(volatile __u64 *)&found->count : 0;
}

/* There is a connection with that tuple now. (It is said after it has come to be: who has looked for it in vain before
 * has read the number before that.) */
static __noinline int opening_tell(const struct tuple *tuple)
{
	__u32 place = opening_hash_of(tuple) & (OPENINGS - 1);
	struct opening *found = bpf_map_lookup_elem(&openings, &place);

	if (found)
		__sync_fetch_and_add(&found->count, 1);
	return 0;
}
