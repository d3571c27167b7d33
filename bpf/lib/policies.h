/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policies: may a container open a connection, or be opened one to? What is looked up was compiled from what users say
 * (docs/decisions/0063). A connection that is known was judged, and is judged again once other policies are in force:
 * of a translated one its entry says by which it was, of another one a row of `admissions`.
 *
 * What judges answers with 0, it may be, or with a drop reason, and TOLD if its sender is to hear of that. Rows of a
 * generation go when another one has been put into force: whoever does not find one looks whether that is why.
 */
#pragma once
#include "lib/endpoints.h"
#include "lib/verdict.h"

#define TOLD  0x100
#define SPANS 16 /* in a row of a set, */
#define PARTS 4	 /* which has so many at the most */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct policy_state);
} policy_state SEC(".maps");

/* There is room for what is in force and for what takes its place. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subject_key);
	__type(value, struct subject);
} subjects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_class_key);
	__type(value, struct peer_class);
} peer_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_scope_key);
	__type(value, struct port_scope);
} port_scopes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ruleset_key);
	__type(value, struct ruleset);
} rulesets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_hit_key);
	__type(value, struct rule_hit);
} rule_hits SEC(".maps");

/* The generation that is in force; 0: there are no policies. */
static __always_inline __u32 policies_now(void)
{
	struct policy_state *state;
	__u32 zero = 0;

	state = bpf_map_lookup_elem(&policy_state, &zero);
	return state ? *(volatile __u32 *)&state->generation : 0;
}

/* An endpoint of this host, of which policies are asked here. */
static __always_inline bool is_here(__u32 party)
{
	return party && party < PARTY_PEER;
}

static __always_inline struct subject *subject_find(struct judgement *asked, __u32 endpoint)
{
	asked->subject.generation = asked->generation;
	asked->subject.endpoint = endpoint;
	return bpf_map_lookup_elem(&subjects, &asked->subject);
}

/* The class of one end as a peer; 0: of none. */
static __always_inline __u32 class_find(struct judgement *asked, __u32 party,
					const struct ip_addr *addr)
{
	struct subject *row;
	struct peer_class *class;

	if (is_here(party)) {
		row = subject_find(asked, party);
		return !row ? 0 : addr_is_v4(addr) ? row->peer4 : row->peer6;
	}
	asked->peer.prefixlen = 160;
	asked->peer.generation = asked->generation;
	asked->peer.addr = *addr;
	class = bpf_map_lookup_elem(&peer_classes, &asked->peer);
	return class ? class->peer : 0;
}

/* The number by which policies are about a port that is published; 0: none is. `key`: memory for one. */
static __always_inline __u32 scope_find(struct port_scope_key *key, const struct ip_addr *addr,
					__be16 port, __u8 proto)
{
	struct port_scope *scope;

	key->generation = policies_now();
	key->addr = *addr;
	key->port = port;
	key->proto = proto;
	key->pad = 0;
	scope = bpf_map_lookup_elem(&port_scopes, key);
	if (!scope) { /* published at every address of that family */
		__builtin_memset(&key->addr, 0, sizeof(key->addr));
		if (addr_is_v4(addr))
			addr_set_v4(&key->addr, 0);
		scope = bpf_map_lookup_elem(&port_scopes, key);
	}
	return scope ? scope->published : 0;
}

/* Its place among a row's spans; -1: the port is in none of them. */
__noinline int span_find(const struct ruleset *set, __u32 port)
{
	__u32 i;

	if (!set)
		return -1;
	for (i = 0; i < SPANS; i++) {
		if (i >= set->used)
			break;
		if (port >= set->spans[i].first && port <= set->spans[i].last)
			return i;
	}
	return -1;
}

static __always_inline int span_says(struct judgement *asked, const struct span *span)
{
	asked->rule = span->rule;
	asked->would = span->would;
	return span->reason | (span->reason && span->told ? TOLD : 0);
}

/* What the policies about one end say: of the sender's `out`, or of the receiver's `in`. */
__noinline int judge_side(__u32 direction)
{
	bool out = direction == POLICY_OUT;
	struct scratch *room = scratch();
	struct judgement *asked;
	struct subject *subject;
	struct ruleset *set;
	int found, closed = (out ? DROP_OUT : DROP_IN) | TOLD;
	__u32 part, number;

	if (!room)
		return DROP_DEVICE;
	asked = &room->judgement;
	asked->rule = asked->would = 0;
	subject = subject_find(asked, out ? asked->from : asked->to);
	if (!subject)
		return closed;
	if (!(subject->directions & direction))
		return 0;
	number = subject->subject;
	asked->ruleset.generation = asked->generation;
	asked->ruleset.subject = number;
	asked->ruleset.published = out ? 0 : asked->published;
	asked->ruleset.direction = direction;
	asked->ruleset.proto = asked->proto;
	asked->ruleset.part = 0;
	if (out && asked->names) {
		subject = subject_find(asked, 0);
		asked->ruleset.peer = subject ? subject->peer4 : 0;
	} else {
		asked->ruleset.peer = out ? class_find(asked, asked->to, &asked->dst)
					  : class_find(asked, asked->from, &asked->src);
	}
	set = bpf_map_lookup_elem(&rulesets, &asked->ruleset);
	if (!set) {
		asked->ruleset.peer = 0;
		set = bpf_map_lookup_elem(&rulesets, &asked->ruleset);
	}
	for (part = 0; part < PARTS; part++) {
		if (!set)
			return closed;
		found = span_find(set, asked->port);
		if (found >= 0)
			return span_says(asked, &set->spans[found & (SPANS - 1)]);
		if (part + 1 >= set->parts)
			return span_says(asked, &set->rest);
		asked->ruleset.part = part + 1;
		set = bpf_map_lookup_elem(&rulesets, &asked->ruleset);
	}
	return closed;
}

/* Both ends are asked; who opens something to itself needs nobody's leave. */
static __always_inline int judge_ends(struct judgement *asked)
{
	int said = 0;

	asked->out = asked->would_out = asked->rule = asked->would = 0;
	if (is_here(asked->from) && asked->from == asked->to)
		return 0;
	if (is_here(asked->from)) {
		said = judge_side(POLICY_OUT);
		asked->out = asked->rule;
		asked->would_out = asked->would;
		if (said)
			return said;
		asked->rule = asked->would = 0;
	}
	return is_here(asked->to) ? judge_side(POLICY_IN) : 0;
}

/* May the opening in the scratch memory be? Nothing is counted. */
__noinline int judge(void)
{
	struct scratch *room = scratch();
	struct judgement *asked;
	__u32 generation;
	int said;

	if (!room)
		return DROP_DEVICE;
	asked = &room->judgement;
	asked->generation = policies_now();
	if (!asked->generation)
		return 0;
	said = judge_ends(asked);
	generation = policies_now();
	if (said && generation != asked->generation) {
		asked->generation = generation;
		said = generation ? judge_ends(asked) : 0;
	}
	/* Nobody outside learns what is here. */
	return asked->from == PARTY_OUTSIDE ? said & ~TOLD : said;
}

static __always_inline void hit_add(struct judgement *asked, __u32 rule, bool opening)
{
	struct rule_hit *hit;

	if (!rule)
		return;
	asked->hit.generation = asked->generation;
	asked->hit.rule = rule;
	hit = bpf_map_lookup_elem(&rule_hits, &asked->hit);
	if (!hit)
		return;
	__sync_fetch_and_add(opening ? &hit->openings : &hit->packets, 1);
	hit->last = bpf_ktime_get_coarse_ns();
}

/* Counts what judge() has said: rules that have let an opening pass (`opens`), or would not have, or that have refused a
 * packet. Returns `said`. */
__noinline int judged(struct __sk_buff *skb, int said, int opens)
{
	struct scratch *room = scratch();
	struct judgement *asked;

	if (!room)
		return DROP_DEVICE;
	asked = &room->judgement;
	if (said) {
		hit_add(asked, asked->rule, false);
		return said;
	}
	if (asked->would_out) {
		hit_add(asked, asked->would_out, false);
		count(skb, WOULD_OUT);
	}
	if (asked->would) {
		hit_add(asked, asked->would, false);
		count(skb, WOULD_IN);
	}
	if (opens) {
		hit_add(asked, asked->out, true);
		hit_add(asked, asked->rule, true);
	}
	return 0;
}

/* `key`: what begins it, as it arrived; `dst`, `port`: who gets it, and where. */
static __always_inline void opening_is(struct judgement *asked, const struct tuple *key,
				       const struct ip_addr *dst, __be16 port)
{
	__u8 proto = key->proto == IPPROTO_ICMPV6 ? IPPROTO_ICMP : key->proto;
	bool ports = proto == IPPROTO_TCP || proto == IPPROTO_UDP;

	asked->src = key->src;
	asked->dst = *dst;
	asked->port = ports ? bpf_ntohs(port) : 0;
	asked->proto = ports || proto == IPPROTO_ICMP ? proto : 0;
	asked->names = asked->published = 0;
}

/* The number of the published port that is asked, if that is what the packet is for. */
static __always_inline void opening_by_port(struct judgement *asked, const struct tuple *key)
{
	if (!is_here(asked->to) || addr_equal(&key->dst, &asked->dst))
		return;
	asked->published = scope_find(&asked->scope, &key->dst, key->dport, key->proto);
}

/* The host's sockets speak with containers in the name of a gateway, where they have a loopback address. */
static __always_inline void opening_by_host(struct judgement *asked, const struct ip_addr *seen)
{
	if (asked->from == PARTY_HOST && addr_is_loopback(&asked->src))
		asked->src = *seen;
}
