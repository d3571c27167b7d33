/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The host's IPsec policies (ip-xfrm): packets that they protect or block must not pass in clear. What the
 * programs send on does not meet them, as the kernel applies them in its own forwarding.
 */
#pragma once
#include "lib/networks.h"

#define XFRM_SELECTORS 8

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct xfrm_key);
	__type(value, struct xfrm_policy);
} xfrm_policies SEC(".maps");

/* In one sum: each branch would be another way for the verifier to go. */
static __always_inline bool selector_matches(const struct xfrm_selector *selector,
					     const struct tuple *t)
{
	__u32 differs = ((t->src.word[0] ^ selector->src.word[0]) & selector->src_mask.word[0]) |
			((t->src.word[1] ^ selector->src.word[1]) & selector->src_mask.word[1]) |
			((t->src.word[2] ^ selector->src.word[2]) & selector->src_mask.word[2]) |
			((t->src.word[3] ^ selector->src.word[3]) & selector->src_mask.word[3]);

	differs |= (t->sport ^ selector->sport) & selector->sport_mask;
	differs |= (t->dport ^ selector->dport) & selector->dport_mask;
	differs |= (t->proto ^ selector->proto) & selector->proto_mask;
	return !differs;
}

/* 1: a packet with these addresses must not pass as it is. */
__noinline int xfrm_closed(__u32 direction, const struct tuple *t)
{
	struct xfrm_key key = {.prefixlen = 160, .direction = direction};
	struct xfrm_policy *policy;
	__u32 i;

	if (!t)
		return 1;
	key.family = addr_is_v4(&t->dst) ? AF_INET : AF_INET6;
	key.addr = t->dst;
	policy = bpf_map_lookup_elem(&xfrm_policies, &key);
	if (!policy)
		return 0;
	for (i = 0; i < XFRM_SELECTORS; i++) {
		if (i >= policy->used)
			break;
		if (selector_matches(&policy->selectors[i], t))
			return policy->selectors[i].closed;
	}
	return policy->closed;
}

/* Are there policies at all about what leaves? */
static __always_inline bool xfrm_is_asked(void)
{
	struct host *facts = host_facts();

	return facts && (facts->flags & HOST_XFRM_OUT);
}

/*
 * What a container sends to the outside, where there are policies. The kernel asks when it forwards a packet, and of one
 * that it then translates once more: `own` is what it is, `outside` what it becomes.
 */
static __always_inline bool xfrm_closed_either(const struct tuple *own, const struct tuple *outside)
{
	return xfrm_closed(XFRM_FWD, own) || xfrm_closed(XFRM_OUT, own) ||
	       xfrm_closed(XFRM_OUT, outside);
}

static __always_inline bool xfrm_closed_out(const struct tuple *own, const struct tuple *outside)
{
	return xfrm_is_asked() && xfrm_closed_either(own, outside);
}

/* And about what is for the host itself? */
static __always_inline bool xfrm_is_asked_in(void)
{
	struct host *facts = host_facts();

	return facts && (facts->flags & HOST_XFRM_IN);
}

/* What is for the host itself, as a published port is to who asks for it. */
static __always_inline bool xfrm_closed_in(const struct tuple *asked)
{
	return xfrm_is_asked_in() && xfrm_closed(XFRM_IN, asked);
}

/* What comes from outside, as it goes into the container. */
static __always_inline bool xfrm_closed_through(const struct tuple *inside)
{
	return xfrm_is_asked() && xfrm_closed(XFRM_FWD, inside);
}
