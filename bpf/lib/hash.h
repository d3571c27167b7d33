/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A hash of words (MurmurHash3, of Austin Appleby), which is the same on every host. */
#pragma once
#include "lib/addr.h"

/* One word more of what the hash is about. */
static __always_inline __u32 hash_word(__u32 hash, __u32 word)
{
	word *= 0xcc9e2d51;
	word = word << 15 | word >> 17;
	hash ^= word * 0x1b873593;
	hash = hash << 13 | hash >> 19;
	return hash * 5 + 0xe6546b64;
}

static __always_inline __u32 hash_end(__u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

static __always_inline __u32 hash_addr(__u32 hash, const struct ip_addr *addr)
{
	hash = hash_word(hash, bpf_ntohl(addr->word[0]));
	hash = hash_word(hash, bpf_ntohl(addr->word[1]));
	hash = hash_word(hash, bpf_ntohl(addr->word[2]));
	return hash_word(hash, bpf_ntohl(addr->word[3]));
}
