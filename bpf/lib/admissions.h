/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policies about what passes untranslated: between members, here or on two hosts, and with the host itself. A row of
 * `admissions` says who has begun, for answers to pass, and by which policies it was judged. What no policy is about has
 * none. Rows push each other out: a TCP connection goes on then if either end could have begun it, as by links.
 */
#pragma once
#include "lib/flow_ids.h"
#include "lib/icmp.h"
#include "lib/policies.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_id);
	__type(value, struct admission);
} admissions SEC(".maps");

/* No policy is about that end here. */
static __always_inline bool end_is_open(struct judgement *asked, __u32 party)
{
	struct subject *subject;

	if (!is_here(party))
		return true;
	subject = subject_find(asked, party);
	return subject && !subject->directions;
}

/* What a rule says of the gateway's address is about its link-local one, too. */
static __always_inline void name_gateway(struct ip_addr *addr, __u32 network)
{
	struct network *net = addr_is_linklocal(addr) ? network_find(network) : NULL;

	if (net)
		*addr = net->gateway6;
}

/* May what has the tuple in the scratch memory be begun by its sender, or (`turned`) by the other end? */
static __always_inline int judge_tuple(struct scratch *room, __u32 network, __u32 from, __u32 to,
				       bool turned)
{
	struct judgement *asked = &room->judgement;

	asked->from = turned ? to : from;
	asked->to = turned ? from : to;
	if (turned)
		tuple_reverse(&room->probe, &asked->tuple);
	else
		room->probe = asked->tuple;
	opening_is(asked, &room->probe, &room->probe.dst, room->probe.dport);
	if (asked->from == PARTY_HOST)
		name_gateway(&asked->src, network);
	if (asked->to == PARTY_HOST)
		name_gateway(&asked->dst, network);
	return judge();
}

/* As its sender sends it, or of an error what it is about: true. */
static __always_inline bool tuple_of(struct __sk_buff *skb, const struct packet *p,
				     struct scratch *room)
{
	if (icmp_is_error(p)) {
		__builtin_memset(&room->quoted, 0, sizeof(room->quoted));
		if (quoted_parse(skb, p, &room->quoted)) {
			tuple_reverse(&room->judgement.tuple, &room->quoted.tuple);
			return true;
		}
	}
	room->judgement.tuple = p->tuple;
	return false;
}

/*
 * May a packet pass that is translated by nobody? `from`, `to`: who sends and gets it, numbers of endpoints or enum
 * other_party; `network`: in which.
 */
__noinline int admit(struct __sk_buff *skb, const struct packet *p, __u32 network, __u32 from,
		     __u32 to)
{
	bool b_sends, known, syn, error, turned, tcp;
	struct scratch *room = scratch();
	struct judgement *asked;
	struct admission *row;
	int said;

	if (!p || !room)
		return DROP_DEVICE;
	asked = &room->judgement;
	asked->concerned = 0;
	asked->generation = policies_now();
	if (!asked->generation || (end_is_open(asked, from) && end_is_open(asked, to)))
		return 0;
	asked->concerned = 1;
	error = tuple_of(skb, p, room);
	tcp = !error && p->tuple.proto == IPPROTO_TCP;
	syn = tcp && is_tcp_opening(p);
	b_sends = flow_id_of(&asked->tuple, true, network, &asked->id);
	row = bpf_map_lookup_elem(&admissions, &asked->id);
	turned = row && b_sends != row->b_began;
	known = row && row->from == (turned ? to : from) && row->to == (turned ? from : to);
	if (known && syn && (turned || row->finished))
		known = false;
	if (known && row->generation == asked->generation) {
		if (tcp && (p->tcp_flags & (TCP_FIN | TCP_RST)))
			row->finished = 1;
		return 0;
	}
	turned = known && turned;
	asked->row.finished =
		tcp && ((p->tcp_flags & (TCP_FIN | TCP_RST)) || (known && row->finished));
	said = judge_tuple(room, network, from, to, turned);
	if (said && !known && (error || (tcp && !syn))) {
		turned = true;
		said = judge_tuple(room, network, from, to, true);
	}
	said = judged(skb, said, !known && !error && (syn || !tcp));
	if (said || error)
		return said;
	asked->row.generation = asked->generation;
	asked->row.from = asked->from;
	asked->row.to = asked->to;
	asked->row.b_began = turned ? !b_sends : b_sends;
	bpf_map_update_elem(&admissions, &asked->id, &asked->row, BPF_ANY);
	return 0;
}
