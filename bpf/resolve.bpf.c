// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what a container sends to its resolver. Questions for names that it sees are answered from the
 * maps, over UDP and over TCP; there is no process. What is not ours is asked of an upstream, if there is a way to one.
 */
#include "lib/conntrack.h"
#include "lib/exits.h"
#include "lib/reply.h"
#include "lib/sockets.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Can an upstream be asked? `alive`: only those count that have not been silent of late. */
static __always_inline bool has_way(const struct resolver *resolver, bool alive)
{
	struct upstream_key key = {};
	struct upstream_state *state;
	__u32 i;

	for (i = 0; i < 3; i++) {
		const struct upstream *upstream = &resolver->upstreams[i];

		if (addr_is_zero(&upstream->addr))
			return false;
		if (!resolver->egress && !upstream->network)
			continue;
		if (!alive)
			return true;
		key.addr = upstream->addr;
		key.ifindex = upstream->ifindex;
		state = bpf_map_lookup_elem(&upstreams, &key);
		if (!state || state->dead_until <= bpf_ktime_get_ns())
			return true;
	}
	return false;
}

/* What a message is answered with that nobody else is asked about. */
__noinline int refuse(struct query *q, int kind, int internal)
{
	if (!q)
		return 0;
	if (kind == QUERY_PLAIN && query_is_valid(q)) {
		q->rcode = internal ? RCODE_NXDOMAIN : RCODE_REFUSED;
		return 0;
	}
	q->rcode = q->flags & FLAG_OPCODE ? RCODE_NOT_DONE : RCODE_FORMAT;
	q->end = 0;
	q->edns = 0;
	return 0;
}

/* Reads the message that lies there, and chooses what it is answered with if that is known. Returns enum query_kind;
 * QUERY_KNOWN: it is. */
__noinline int look_up(struct __sk_buff *skb, struct query *q, __u32 at, __u32 length)
{
	struct name_room *room = name_room();
	int kind, outcome;
	bool found;

	if (!q || !room)
		return QUERY_NONE;
	kind = query_read(skb, room, q, at, length);
	if (kind != QUERY_PLAIN)
		return kind;
	found = q->name <= NAME_SHORT ? name_find(room, q, true) : name_find_long(q);
	outcome = found ? NAME_OURS : reverse_find(q);
	if (outcome == NAME_FOREIGN)
		return kind;
	if (outcome == NAME_OURS)
		records_choose(q);
	else
		q->rcode = RCODE_NXDOMAIN;
	return QUERY_KNOWN;
}

static __always_inline void count_answer(__u32 network, const struct query *q)
{
	struct name_count *counts = name_counts_of(network);

	if (!counts)
		return;
	if (q->answers)
		counts->answered++;
	else if (!q->rcode || q->rcode == RCODE_BADVERS)
		counts->nodata++;
	else if (q->rcode == RCODE_NXDOMAIN)
		counts->nxdomain++;
	else
		counts->refused++;
}

/* Has the host a socket of its own where the question goes, which is not the resolver's alone: it may be that of a
 * server for names? */
static __always_inline bool host_listens(struct __sk_buff *skb, const struct packet *p,
					 const struct network *net)
{
	return !addr_is_resolver(&p->tuple.dst) && !(net->flags & NETWORK_RESOLVER) &&
	       host_socket_state(skb, &p->tuple);
}

static __always_inline int resolve_datagram(struct __sk_buff *skb, const struct packet *p,
					    const struct network *net, struct name_room *room)
{
	__u32 length = p->length - (p->l4 - L3);
	struct query *q = &room->queries[0];
	struct udphdr *udp;
	int kind;

	/* It has been read already. */
	udp = (void *)(long)skb->data + (p->l4 & L4_MASK);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end ||
	    (bpf_ntohs(udp->len) != length && !skb->gso_size))
		return drop(skb, DROP_TRUNCATED);
	length -= sizeof(*udp);
	kind = look_up(skb, q, p->l4 + sizeof(*udp), length);
	if (kind == QUERY_NONE)
		return drop(skb, DROP_TRUNCATED);
	if (kind != QUERY_KNOWN) {
		if (host_listens(skb, p, net))
			return to_host(skb, net);
		if (has_way(&room->resolver, false))
			return NO_VERDICT;
		refuse(q, kind, !room->resolver.egress);
	}
	count_answer(room->network, q);
	return answer_straight(skb, reply_datagram(skb, p, room, q));
}

/* The segment that answers this one, from its own numbers: nothing is remembered of a connection. `taken`: how many
 * bytes of it are acknowledged; `queries`: how many of the room's it answers. */
__noinline int answer_segment(struct __sk_buff *skb, const struct packet *p, __u32 taken,
			      __u32 queries)
{
	struct segment_header header = {.length = sizeof(struct tcphdr) / 4 << 4};

	if (!p)
		return TC_ACT_SHOT;
	header.sport = p->tuple.dport;
	header.dport = p->tuple.sport;
	header.window = bpf_htons(0xffff);
	header.flags = TCP_ACK | (p->tcp_flags & TCP_FIN) | (queries ? TCP_PSH : 0);
	header.seq = bpf_htonl(p->ack);
	if (p->tcp_flags & (TCP_SYN | TCP_FIN))
		taken++;
	if (p->tcp_flags & TCP_SYN) {
		header.flags = TCP_SYN | TCP_ACK;
		header.seq = bpf_get_prandom_u32();
	}
	header.ack = bpf_htonl(p->seq + taken);
	return answer_straight(skb, reply_segment(skb, p, &header, queries));
}

/* Where nobody listens (RFC 9293, 3.5.2). */
__noinline int answer_reset(struct __sk_buff *skb, const struct packet *p)
{
	struct segment_header header = {.length = sizeof(struct tcphdr) / 4 << 4, .flags = TCP_RST};
	__u32 length;

	if (!p)
		return TC_ACT_SHOT;
	if (p->tcp_flags & TCP_RST)
		return consume(skb, ABSORBED);
	header.sport = p->tuple.dport;
	header.dport = p->tuple.sport;
	if (p->tcp_flags & TCP_ACK) {
		header.seq = bpf_htonl(p->ack);
	} else {
		length = p->length - (p->l4 - L3) - p->l4_length;
		length += p->tcp_flags & (TCP_SYN | TCP_FIN) ? 1 : 0;
		header.flags |= TCP_ACK;
		header.ack = bpf_htonl(p->seq + length);
	}
	return answer(skb, reply_segment(skb, p, &header, 0), 0);
}

/*
 * The one or two messages of a segment, each behind its length; `whole`: they are all of it. Returns how many there
 * are, 0: anything else; `*ours`: none of them has to be asked of anybody else.
 */
__noinline int segment_read(struct __sk_buff *skb, const struct packet *p, __u32 foreign_too)
{
	struct name_room *room = name_room();
	__u32 at, left, i;
	__be16 said;
	int kind;

	if (!p || !room)
		return 0;
	at = p->l4 + p->l4_length;
	left = p->length - (at - L3);
	for (i = 0; i < 2 && left; i++) {
		struct query *q = &room->queries[i];
		__u32 length;

		if (left < 2 || bpf_skb_load_bytes(skb, at, &said, sizeof(said)))
			return 0;
		length = bpf_ntohs(said);
		if (length > left - 2 || length > MESSAGE_MAX)
			return 0;
		kind = look_up(skb, q, at + 2, length);
		if (kind == QUERY_NONE || (kind != QUERY_KNOWN && !foreign_too))
			return 0;
		if (kind != QUERY_KNOWN)
			refuse(q, kind, !room->resolver.egress);
		at += 2 + length;
		left -= 2 + length;
	}
	return left ? 0 : i;
}

/* A connection to the resolver. Where an upstream can be asked it leads there, like any other, until it asks for a name
 * that is ours. */
__noinline int resolve_segment(struct __sk_buff *skb, const struct packet *p,
			       const struct network *net)
{
	struct name_room *room = name_room();
	struct conn *conn;
	__u32 length, queries = 0;
	bool taken;

	if (!p || !net || !room)
		return TC_ACT_SHOT;
	length = p->length - (p->l4 - L3);
	if (p->l4_length < sizeof(struct tcphdr) || p->l4_length > length)
		return drop(skb, DROP_TRUNCATED);
	length -= p->l4_length;
	if (host_listens(skb, p, net))
		return to_host(skb, net);
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN)
		return has_way(&room->resolver, true) ? NO_VERDICT : answer_segment(skb, p, 0, 0);
	asked_by(&room->asked, p, skb->ifindex);
	conn = conn_find(&room->asked);
	taken = conn && (conn->fin & FIN_TAKEN_OVER);
	/* The upstream is told, in the place of what nobody would read. */
	if (taken && !length &&
	    (p->tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST)) != (TCP_ACK | TCP_FIN))
		return NO_VERDICT;
	if (conn && conn->state == CONN_CLOSED)
		conn = NULL;
	if (p->tcp_flags & (TCP_SYN | TCP_RST))
		return conn ? NO_VERDICT : consume(skb, ABSORBED);
	if (length)
		queries = segment_read(skb, p, !conn);
	if (!queries && conn)
		return NO_VERDICT;
	/* A part of a message comes again with the rest behind it, as long as it is not acknowledged. */
	if (!queries && (length || !(p->tcp_flags & TCP_FIN)))
		return consume(skb, ABSORBED);
	if (conn) {
		conn->fin |= FIN_TAKEN_OVER;
		conn->state = CONN_CLOSED;
	}
	if (queries > 0)
		count_answer(room->network, &room->queries[0]);
	if (queries > 1)
		count_answer(room->network, &room->queries[1]);
	return answer_segment(skb, p, length, queries);
}

/* To 127.0.0.11, and nothing that asks for a name. */
static __always_inline int answer_other(struct __sk_buff *skb, const struct packet *p)
{
	switch (p->tuple.proto) {
	case IPPROTO_TCP:
		return answer_reset(skb, p);
	case IPPROTO_UDP:
		return answer(skb, reply_unreachable(skb, p), 0);
	case IPPROTO_ICMP:
		if (p->icmp_type == ICMP_ECHO && p->has_ports)
			return answer(skb, reply_echo(skb, p), 0);
		/* What it says of an answer that nobody has waited for changes nothing. */
		return icmp_is_error(p) ? consume(skb, ABSORBED) : drop(skb, DROP_NO_CONN);
	}
	return drop(skb, DROP_PROTOCOL);
}

SEC("tc")
int resolve(struct __sk_buff *skb)
{
	struct name_room *messages = name_room();
	struct scratch *room = scratch();
	struct network *net;
	struct packet *p;
	int verdict;

	if (!room || !messages)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	net = network_find(messages->network);
	if (!net)
		return drop(skb, DROP_DEVICE);
	if (p->fragment)
		return drop(skb, DROP_FRAGMENT);
	if (p->tuple.dport != DNS_PORT || is_icmp(p->tuple.proto))
		return answer_other(skb, p);
	if (p->tuple.proto == IPPROTO_UDP)
		verdict = resolve_datagram(skb, p, net, messages);
	else
		verdict = resolve_segment(skb, p, net);
	return verdict == NO_VERDICT ? go_on(skb, TAIL_ASK) : verdict;
}
