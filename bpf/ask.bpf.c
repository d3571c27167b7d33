// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what a container sends to its resolver's address and a server upstream is to answer: questions
 * over UDP, each by itself, and connections of TCP.
 */
#include "lib/asking.h"
#include "lib/connstate.h"
#include "lib/message.h"
#include "lib/reply.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define SYN_PATIENCE (SECOND * 9 / 10) /* less than after which it is sent again (RFC 6298, 2) */

/* Nobody can be asked: said at once. */
__noinline int answer_failure(struct __sk_buff *skb, struct packet *p, __u32 rcode)
{
	struct scratch *room = scratch();
	struct message_head header;
	__u32 flags;
	int error;

	if (!p || !room || !message_header(skb, p, &header))
		return drop(skb, DROP_TRUNCATED);
	flags = bpf_ntohs(header.flags) & (DNS_OPCODE | DNS_DESIRED | DNS_UNCHECKED);
	if ((bpf_ntohs(header.flags) & DNS_RESPONSE) ||
	    message_cut(skb, p, flags | DNS_RESPONSE | DNS_AVAILABLE | rcode, NULL))
		return drop(skb, DROP_NO_ROUTE);
	tuple_reverse(&room->leaving, &p->tuple);
	error = rewrite_tuple(skb, p, &room->leaving, IPDEFTTL) ||
		rewrite_macs(skb, p->src_mac, p->dst_mac);
	return answer(skb, error, 0);
}

/* The resolver takes the connection itself, without remembering it (resolve.bpf.c): who asks for a name of ours is
 * answered, whoever else is refused. */
__noinline int answer_syn(struct __sk_buff *skb, const struct packet *p)
{
	struct segment_header header = {.length = sizeof(struct tcphdr) / 4 << 4};

	if (!p)
		return TC_ACT_SHOT;
	header.sport = p->tuple.dport;
	header.dport = p->tuple.sport;
	header.window = bpf_htons(0xffff);
	header.flags = TCP_SYN | TCP_ACK;
	header.seq = bpf_get_prandom_u32();
	header.ack = bpf_htonl(p->seq + 1);
	return answer(skb, reply_segment(skb, p, &header, 0), 0);
}

/* Opens the way to one upstream: what it answers will be known. Returns enum way. */
__noinline int ask_open(struct __sk_buff *skb, const struct device *device, __u32 egress)
{
	int way = way_find(skb, device, egress);

	return way && !nat_open(skb, false, false) ? way : WAY_NONE;
}

/* To the next one that can be asked. `first`: where to begin; `patient`: as in upstream_next(). WAY_NONE: there is none. */
__noinline int ask_next(struct __sk_buff *skb, const struct device *device,
			const struct resolver *resolver, __u32 first, int patient)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	__u64 now = bpf_ktime_get_ns();
	__u32 i, place;
	int found, way;

	if (!device || !resolver || !asking || !room)
		return WAY_NONE;
	for (i = 0; i < UPSTREAMS; i++) {
		found = upstream_next(resolver, first, asking->question.tried, patient);
		if (found == NO_UPSTREAM)
			break;
		place = found;
		/* The compiler knows that, the verifier does not. */
		asm volatile("" : "+r"(place));
		if (place >= UPSTREAMS)
			break;
		asking->upstream = resolver->upstreams[place];
		asking->question.tried |= 1 << place;
		asking->question.upstream = place;
		room->sides.id = bpf_ntohs(asking->key.id) | place << 16;
		way = ask_open(skb, device, resolver->egress);
		if (way == WAY_NONE)
			continue;
		upstream_asked(&asking->upstream, now);
		asking->question.asked = now;
		if (room->sides.key.proto == IPPROTO_UDP)
			bpf_map_update_elem(&questions, &asking->key, &asking->question, BPF_ANY);
		return way;
	}
	return WAY_NONE;
}

/* Do policies let the container ask name servers outside? As judge(). */
__noinline int may_ask(struct __sk_buff *skb, const struct packet *p, __u32 endpoint)
{
	struct scratch *room = scratch();
	struct judgement *asked;

	if (!p || !room)
		return DROP_DEVICE;
	asked = &room->judgement;
	asked->from = endpoint;
	asked->to = PARTY_OUTSIDE;
	opening_is(asked, &p->tuple, &p->tuple.dst, DNS_PORT);
	asked->names = 1;
	return judged(skb, judge(), p->tuple.proto != IPPROTO_TCP || is_tcp_opening(p));
}

/* They do not: said at once, as where nobody can be asked. */
static __always_inline int refuse_question(struct __sk_buff *skb, struct packet *p, __u32 network,
					   int said)
{
	drop(skb, said & ~TOLD);
	count_question(network, QUESTION_REFUSED);
	if (p->tuple.proto == IPPROTO_UDP)
		return answer_failure(skb, p, RCODE_REFUSED);
	return is_tcp_opening(p) ? answer_syn(skb, p) : TC_ACT_SHOT;
}

static __always_inline int ask_datagram(struct __sk_buff *skb, struct packet *p,
					const struct device *device,
					const struct resolver *resolver, struct asking *asking,
					struct scratch *room)
{
	bool again = skb->tc_index == AGAIN_MARK;
	struct name_room *messages = name_room();
	struct question *known;
	struct message_head header;
	__u32 first = 0;
	int way;

	skb->tc_index = 0;
	if (!messages || !message_header(skb, p, &header))
		return drop(skb, DROP_TRUNCATED);
	asking->key.id = header.id;
	known = bpf_map_lookup_elem(&questions, &asking->key);
	if (known && bpf_ktime_get_ns() - known->asked < QUESTION_REPEATED) {
		asking->question = *known;
		first = known->upstream + 1;
	}
	/* The program before this one has read it. An answer need not say it, of which the question may have to be made. */
	asking->question.edns = messages->queries[0].edns;
	asking->question.size = messages->queries[0].size;
	if (!quota_admits(device->endpoint))
		return drop(skb, DROP_LIMIT);
	way = ask_next(skb, device, resolver, first, !again);
	if (way == WAY_NONE && !again && first) {
		/* All have been asked, and the client still waits. */
		asking->question.tried = 0;
		way = ask_next(skb, device, resolver, first, true);
	}
	if (way != WAY_NONE) {
		count_question(device->network, first ? QUESTION_FAILED_OVER : QUESTION_FORWARDED);
		return way_go(skb, p, way, room->sides.server_network);
	}
	quota_returns(device->endpoint);
	count_question(device->network, QUESTION_REFUSED);
	return answer_failure(skb, p, again ? RCODE_SERVER_FAILED : RCODE_REFUSED);
}

/* Where in the list the upstream of a connection is; UPSTREAMS: nowhere any more. */
static __always_inline __u32 upstream_place(const struct resolver *resolver,
					    const struct ip_addr *addr)
{
	__u32 i;

	for (i = 0; i < UPSTREAMS; i++)
		if (addr_equal(&resolver->upstreams[i].addr, addr))
			break;
	return i;
}

/*
 * The resolver has answered on a connection to an upstream, which has heard nothing but its beginning: what the client
 * sends next and has no data becomes the reset of it, with the number that the upstream expects (RFC 5961, 3.2).
 */
__noinline int ask_reset(struct __sk_buff *skb, struct packet *p, struct conn *conn, __u32 egress)
{
	struct scratch *room = scratch();
	struct conn *reply;
	__u32 network;
	__be32 seq;
	int way;

	if (!p || !conn || !room)
		return TC_ACT_SHOT;
	reply = conn_opposite(conn);
	seq = reply ? bpf_htonl(reply->ack) : 0;
	network = conn->to_network;
	way = way_again(skb, conn, egress);
	conn_forget(&room->sides.key);
	if (!seq || way == WAY_NONE)
		return consume(skb, ABSORBED);
	if (segment_into_reset(skb, p, seq))
		return drop(skb, DROP_REWRITE);
	return way_go(skb, p, way, network);
}

static __always_inline int ask_segment(struct __sk_buff *skb, struct packet *p,
				       const struct device *device, const struct resolver *resolver,
				       struct asking *asking, struct scratch *room)
{
	bool opens = (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	struct conn *conn = conn_find(&room->sides.key);
	__u32 place, first = 0;
	int way;

	if (conn && conn->from_endpoint != device->endpoint) {
		conn_forget(&room->sides.key);
		conn = NULL;
	}
	if (conn) {
		place = upstream_place(resolver, &conn->other.src);
		if (opens && conn->state == CONN_NEW &&
		    bpf_ktime_get_ns() - conn->last_seen > SYN_PATIENCE) {
			/* It has not answered: the next one. */
			first = place + 1;
			conn_forget(&room->sides.key);
			conn = NULL;
		} else if (place < UPSTREAMS) {
			asking->upstream = resolver->upstreams[place];
		}
	}
	if (conn && !opens && (conn->fin & FIN_TAKEN_OVER))
		return ask_reset(skb, p, conn, resolver->egress);
	if (!conn) {
		if (!opens)
			return drop(skb, DROP_NO_CONN);
		if (!quota_admits(device->endpoint))
			return drop(skb, DROP_LIMIT);
		way = ask_next(skb, device, resolver, first, true);
		if (way == WAY_NONE) {
			quota_returns(device->endpoint);
			return answer_syn(skb, p);
		}
		count_question(device->network, first ? QUESTION_FAILED_OVER : QUESTION_FORWARDED);
		conn = conn_opened(&room->sides.key);
		if (!conn)
			return drop(skb, DROP_CONN_TABLE);
		/* Another CPU may have opened it with other ports. */
		room->sides.other = conn->other;
		conn_track(skb, p, &room->sides.key, conn);
		return way_go(skb, p, way, conn->to_network);
	}
	conn_track(skb, p, &room->sides.key, conn);
	way = way_again(skb, conn, resolver->egress);
	return way == WAY_NONE ? drop(skb, DROP_NO_ROUTE) : way_go(skb, p, way, conn->to_network);
}

SEC("tc")
int ask(struct __sk_buff *skb)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	struct resolver *resolver;
	struct device *device;
	struct packet *p;
	int said;

	if (!asking || !room)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	device = device_find(skb->ifindex, DEVICE_ENDPOINT);
	resolver = device ? resolver_of(device->endpoint) : NULL;
	if (!resolver)
		return drop(skb, DROP_DEVICE);
	if (p->fragment || !packet_has_ports(p))
		return drop(skb, DROP_FRAGMENT);
	said = policies_now() ? may_ask(skb, p, device->endpoint) : 0;
	if (said)
		return refuse_question(skb, p, device->network, said);
	__builtin_memset(asking, 0, sizeof(*asking));
	__builtin_memset(&room->sides, 0, sizeof(room->sides));
	asked_by(&room->sides.key, p, skb->ifindex);
	room->sides.client_network = device->network;
	room->sides.client_endpoint = device->endpoint;
	room->sides.flags = CONN_QUESTION;
	asking->key.src = room->sides.key.src;
	asking->key.endpoint = device->endpoint;
	asking->key.port = p->tuple.sport;
	if (p->tuple.proto == IPPROTO_UDP)
		return ask_datagram(skb, p, device, resolver, asking, room);
	if (p->tuple.proto == IPPROTO_TCP)
		return ask_segment(skb, p, device, resolver, asking, room);
	return drop(skb, DROP_PROTOCOL);
}
