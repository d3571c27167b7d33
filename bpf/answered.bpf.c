// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what an upstream says to a container's question. One that does not know, or has nobody
 * listening, is not heard: the question arrives once more at the container's device, and goes to the next.
 */
#include "lib/asking.h"
#include "lib/connstate.h"
#include "lib/message.h"
#include "lib/split.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Who asked: in the scratch memory is the one who gets it, and its address as it knows it becomes the client's.
 * Returns 0: it is gone. */
__noinline int client_find(struct asking *asking)
{
	struct scratch *room = scratch();
	struct device *device;
	__u32 ifindex;

	if (!asking || !room)
		return 0;
	ifindex = asked_from(&asking->client.src);
	if (!ifindex)
		return recipient_find(asking->network, &asking->client.src, asking->endpoint);
	device = device_find(ifindex, DEVICE_ENDPOINT);
	if (!device || device->endpoint != asking->endpoint)
		return 0;
	__builtin_memset(&room->recipient, 0, sizeof(room->recipient));
	room->recipient.ifindex = ifindex;
	room->recipient.number = asking->endpoint;
	room->recipient.limited = device->limited;
	__builtin_memcpy(room->recipient.mac, device->mac, ETH_ALEN);
	return 1;
}

/* Is there another that could be asked? Of those that are silent none. */
static __always_inline bool others_remain(const struct resolver *resolver, __u32 tried)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 i;

	for (i = 0; i < UPSTREAMS; i++)
		if (!(tried & 1 << i) && !addr_is_zero(&resolver->upstreams[i].addr) &&
		    !upstream_is_resting(&resolver->upstreams[i], now))
			return true;
	return false;
}

/* The packet, which has the question's addresses, ports and message, arrives at the container's device. */
static __always_inline int arrive_again(struct __sk_buff *skb, const struct network *net,
					const struct scratch *room)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, net->mac, ETH_ALEN);
	if (rewrite_macs(skb, mac, room->recipient.mac))
		return drop(skb, DROP_REWRITE);
	skb->tc_index = AGAIN_MARK;
	return bpf_redirect(room->recipient.ifindex, BPF_F_INGRESS);
}

/* An answer of which the question is all that is left. */
__noinline int ask_again(struct __sk_buff *skb, struct packet *p, const struct network *net,
			 const struct asking *asking)
{
	struct scratch *room = scratch();

	if (!p || !net || !asking || !room)
		return TC_ACT_SHOT;
	if (is_ipv6(p) == addr_is_v4(&asking->client.dst) && family_change(skb, p, &asking->client))
		return drop(skb, DROP_REWRITE);
	if (rewrite_tuple(skb, p, &asking->client, IPDEFTTL))
		return drop(skb, DROP_REWRITE);
	return arrive_again(skb, net, room);
}

/* Nobody listens there, or there is no way. Of what is too big, or too long on its way, the next may be not. */
static __always_inline bool says_unreachable(const struct packet *p)
{
	return p->icmp_type == (is_ipv6(p) ? ICMPV6_DEST_UNREACH : ICMP_DEST_UNREACH);
}

/* An error: the question, which it quotes, goes to the next at once. */
static __always_inline int of_error(struct __sk_buff *skb, struct packet *p, struct asking *asking,
				    struct scratch *room)
{
	struct message_room *message = message_room();
	struct tuple *key = &room->probe;
	struct resolver *resolver;
	__u32 at, length;
	__u64 place, now;
	struct network *net;
	struct udphdr udp;
	struct conn *conn;

	tuple_reverse(key, &room->quoted.tuple);
	conn = conn_find(key);
	at = room->quoted.l4;
	if (!conn || !message || !is_question(conn, key->proto) || conn->state != CONN_NEW ||
	    !says_unreachable(p) || bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
		return drop(skb, DROP_NO_CONN);
	at += sizeof(udp);
	length = bpf_ntohs(udp.len) - sizeof(udp);
	if (length > MESSAGE_MAX || at + length > L3 + p->length || message_read(skb, at, length) ||
	    bpf_ntohs(message->after.header.id) != (__u16)conn->ack)
		return drop(skb, DROP_NO_CONN);
	asking->client = conn->other;
	asking->endpoint = conn->to_endpoint;
	asking->network = conn->to_network;
	place = conn->ack >> 16;
	bpf_map_delete_elem(&pending, key);
	quota_returns(asking->endpoint);
	resolver = resolver_of(asking->endpoint);
	now = bpf_ktime_get_ns();
	asm volatile("" : "+r"(place)); /* Linux 6.1 forgets bounds of what was put aside */
	if (resolver && place < UPSTREAMS)
		upstream_is_closed(&resolver->upstreams[place], now);
	net = network_find(asking->network);
	if (!net || !client_find(asking))
		return drop(skb, DROP_STALE);
	if (message_send(skb, p, &asking->client, length))
		return drop(skb, DROP_REWRITE);
	return arrive_again(skb, net, room);
}

/* The first piece of an answer of the other family, of which no pieces can be translated: the container is told that
 * there is more, and asks over TCP (RFC 1035, 4.2.1). */
__noinline int hand_over_cut(struct __sk_buff *skb, struct packet *p, const struct network *net)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	struct message_head header;
	__u32 at, length, end;

	if (!p || !net || !asking || !room || p->fragment != FRAGMENT_FIRST ||
	    !message_header(skb, p, &header))
		return drop(skb, DROP_FRAGMENT);
	at = p->l4 + sizeof(struct udphdr);
	length = L3 + p->length - at;
	if (length > MESSAGE_MAX)
		length = MESSAGE_MAX;
	end = message_question(skb, at, length, bpf_ntohs(header.flags) | DNS_TRUNCATED);
	tuple_reverse(&room->leaving, &asking->client);
	if (!end || message_send(skb, p, &room->leaving, end))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, &room->recipient, net->mac);
}

/* The answer, or a segment of a connection, is the container's. `party`: who has sent it. */
__noinline int hand_over(struct __sk_buff *skb, struct packet *p, const struct network *net,
			 __u32 party)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();

	if (!p || !net || !asking || !room)
		return TC_ACT_SHOT;
	tuple_reverse(&room->leaving, &asking->client);
	if (is_ipv6(p) == addr_is_v4(&room->leaving.dst)) {
		if (p->fragment)
			return hand_over_cut(skb, p, net);
		if (family_change(skb, p, &room->leaving))
			return drop(skb, DROP_PROTOCOL);
	}
	if (packet_fit(skb, p, party) ||
	    rewrite_tuple(skb, p, &room->leaving, p->ttl > 1 ? p->ttl - 1 : p->ttl))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, &room->recipient, net->mac);
}

/* Is the datagram what is waited for? Returns 0, and the question is over; a drop reason; or NO_VERDICT: another
 * upstream is to be asked. */
static __always_inline int answer_to(struct __sk_buff *skb, struct packet *p, struct conn *conn,
				     struct asking *asking, const struct resolver *resolver)
{
	__u64 place = conn->ack >> 16;
	struct message_head header;
	struct question *known;
	__u32 rcode;

	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (!message_header(skb, p, &header))
		return DROP_TRUNCATED;
	if (!(header.flags & bpf_htons(DNS_RESPONSE)) || bpf_ntohs(header.id) != (__u16)conn->ack ||
	    conn->state != CONN_NEW)
		return DROP_NO_CONN;
	/* One of two CPUs that have an answer. */
	conn->state = CONN_REPLIED;
	quota_returns(asking->endpoint);
	asm volatile("" : "+r"(place)); /* Linux 6.1 forgets bounds of what was put aside */
	if (!resolver || place >= UPSTREAMS)
		return 0;
	upstream_answered(&resolver->upstreams[place]);
	rcode = bpf_ntohs(header.flags) & DNS_RCODE;
	if ((rcode != RCODE_SERVER_FAILED && rcode != RCODE_REFUSED) || p->fragment)
		return 0;
	asking->key.src = asking->client.src;
	asking->key.endpoint = asking->endpoint;
	asking->key.port = asking->client.sport;
	asking->key.id = header.id;
	known = bpf_map_lookup_elem(&questions, &asking->key);
	/* A late answer: its question has been asked of another already. */
	if (!known || known->upstream != place || !others_remain(resolver, known->tried))
		return 0;
	return message_cut(skb, p,
			   bpf_ntohs(header.flags) & (DNS_OPCODE | DNS_DESIRED | DNS_UNCHECKED),
			   known)
		       ? 0
		       : NO_VERDICT;
}

SEC("tc")
int answered(struct __sk_buff *skb)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	struct network *net;
	struct packet *p;
	struct conn *conn;
	bool whole, goes_on = false;
	__u32 party;
	int reason;

	if (!asking || !room)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	__builtin_memset(asking, 0, sizeof(*asking));
	if (icmp_is_error(p))
		return of_error(skb, p, asking, room);
	conn = conn_find(&p->tuple);
	if (!conn || !(conn->flags & CONN_QUESTION) || (conn->flags & CONN_ORIGINAL))
		return drop(skb, DROP_NO_CONN);
	asking->client = conn->other;
	asking->endpoint = conn->to_endpoint;
	asking->network = conn->to_network;
	party = conn->from_endpoint;
	net = network_find(asking->network);
	if (!net)
		return drop(skb, DROP_STALE);
	/* The later ones find the answer's place as this one does. */
	if (p->fragment == FRAGMENT_FIRST) {
		reason = fragment_first(skb, p, party);
		if (reason)
			return drop(skb, reason);
	}
	if (segment_length(skb, p) > net->mtu && party != PARTY_HOST &&
	    is_ipv6(p) != addr_is_v4(&asking->client.dst))
		packet_narrow(skb, p, net->mtu);
	if (p->tuple.proto == IPPROTO_UDP) {
		reason = answer_to(skb, p, conn, asking, resolver_of(asking->endpoint));
		if (reason && reason != NO_VERDICT)
			return drop(skb, reason);
		goes_on = reason == NO_VERDICT;
		/* What comes in pieces needs it for each of them. */
		whole = !p->fragment && !p->width;
		if (whole)
			bpf_map_delete_elem(&pending, &p->tuple);
	} else {
		conn_track(skb, p, &p->tuple, conn);
	}
	if (!client_find(asking))
		return drop(skb, DROP_STALE);
	return goes_on ? ask_again(skb, p, net, asking) : hand_over(skb, p, net, party);
}
