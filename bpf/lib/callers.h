/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which other hosts have asked a member of this one, and whether what they have asked goes on: a port of a client's towards
 * a member is one connection's alone, whichever host it comes by. Who comes second with the same one gets another.
 */
#pragma once
#include "lib/hash.h"
#include "lib/verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct tuple);
	__type(value, struct caller);
} callers SEC(".maps");

/* What a client has asked, in as many bits as a frame's MAC address has room for; never 0. By another host it is the same
 * if it is one connection, which a router takes now by this host, now by that one. */
static __always_inline __u32 mark_of(const struct ip_addr *addr, __be16 port)
{
	__u32 hash = hash_end(hash_word(hash_addr(0, addr), bpf_ntohs(port)));

	return hash ? hash : 1;
}

/* Can it go on? That a TCP connection has ended is seen; another's port is remembered for as long as one may take to open. */
static __always_inline bool caller_goes_on(const struct caller *caller, __u8 proto)
{
	__u64 age = bpf_ktime_get_coarse_ns() - caller->seen;

	if (!caller->peer)
		return age < config.timeout_handshake * SECOND;
	if (proto != IPPROTO_TCP)
		return age < config.timeout_udp * SECOND;
	return !(caller->over & OVER_RESET) &&
	       (caller->over & (OVER_ASKED | OVER_ANSWERED)) != (OVER_ASKED | OVER_ANSWERED);
}

/* Has the port been another client's before it was the one's with this mark? */
static __always_inline bool caller_is_another(const struct caller *known, __u32 mark, __u8 proto)
{
	return (!known->peer || (mark && known->mark && known->mark != mark)) &&
	       caller_goes_on(known, proto);
}

/* Its client has sent one more packet. `mark`: of what it has asked, 0: this one does not say it. */
static __always_inline void caller_asks(struct caller *caller, const struct packet *p, __u32 mark)
{
	__u64 now;

	if (mark && caller->mark != mark)
		caller->mark = mark;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_RST)
			caller->over |= OVER_RESET;
		else if (p->tcp_flags & TCP_SYN)
			caller->over = 0;
		else if (p->tcp_flags & TCP_FIN)
			caller->over |= OVER_ASKED;
		return;
	}
	/* Its line of the cache stays where it is for most packets. */
	now = bpf_ktime_get_coarse_ns();
	if (now - caller->seen > SECOND)
		caller->seen = now;
}

/* Its member has. */
static __always_inline void caller_is_answered(struct caller *caller, const struct packet *p)
{
	if (p->tcp_flags & TCP_RST)
		caller->over |= OVER_RESET;
	else if (p->tcp_flags & TCP_FIN)
		caller->over |= OVER_ANSWERED;
}

/*
 * Would the answer in the sides in the scratch memory be another host's, whose client has the same port? What is left of one
 * that is over is forgotten, and so is what this very client has asked there: it comes by this host now.
 */
__noinline int caller_holds(void)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;
	struct caller *caller;
	__u32 mark = 0;

	if (!room)
		return 0;
	sides = &room->sides;
	caller = bpf_map_lookup_elem(&callers, &sides->other);
	if (!caller)
		return 0;
	mark = mark_of(&sides->key.dst, sides->key.dport);
	if (caller_is_another(caller, mark, sides->key.proto))
		return 1;
	bpf_map_delete_elem(&callers, &sides->other);
	return 0;
}
