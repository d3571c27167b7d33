// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of the host's loopback device: published ports for what the host itself sends past
 * the socket hooks: the kernel's own sockets and tunnels, raw sockets, sockets that were
 * connected before; and what the host's own resolvers answer to containers. Attached while a port is published or a
 * container asks one of these. All else is the host's.
 */
#include "lib/inbound.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What arrives here has an address of the host; not each of them can be answered from elsewhere. */
static __always_inline bool is_of_the_host(const struct ip_addr *addr)
{
	return addr_is_loopback(addr) || !addr_is_unusable(addr);
}

/* A source that may not connect gets what it would get if the port were not published. */
static __always_inline struct port *published(const struct packet *p)
{
	struct port *port;

	if (!is_of_the_host(&p->tuple.dst) || !is_of_the_host(&p->tuple.src))
		return NULL;
	port = port_find(&p->tuple.dst, p->tuple.dport, p->tuple.proto);
	return port && port_admits(port, &p->tuple.src) ? port : NULL;
}

/* Could it be the answer to a container's question? Then it goes to a port of those for masquerading, which no socket of
 * the host's gets by chance. */
static __always_inline bool may_be_answer(__be16 sport, __be16 dport)
{
	struct host *facts = sport == DNS_PORT ? host_facts() : NULL;

	return facts && bpf_ntohs(dport) >= facts->nat_port_first &&
	       bpf_ntohs(dport) <= facts->nat_port_last;
}

/*
 * All of the host's loopback traffic passes here. Nearly all of it can be let through without a full
 * parse, which halves its cost.
 * True for a whole TCP or UDP packet, without options, to a number that nobody has published, nor asks from.
 */
static __always_inline bool is_plainly_not_ours(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct udphdr *l4;
	__u8 proto;

	if ((void *)(ip + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (ip->ihl != 5 || (ip->frag_off & IP_FRAGMENT))
			return false;
		proto = ip->protocol;
		l4 = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end)
			return false;
		proto = ip6->nexthdr;
		l4 = (void *)(ip6 + 1);
	} else {
		return false;
	}
	if ((proto != IPPROTO_TCP && proto != IPPROTO_UDP) || (void *)(l4 + 1) > end)
		return false;
	return !port_is_reserved(l4->dest, proto) && !may_be_answer(l4->source, l4->dest);
}

SEC("tc")
int from_loopback(struct __sk_buff *skb)
{
	struct packet *p;
	struct conn *conn;
	bool reserved, anew;
	int verdict;

	if (skb->tc_index == ANSWER_MARK || is_plainly_not_ours(skb))
		return not_ours(skb);
	p = packet_new();
	if (!p || packet_parse(skb, p))
		return not_ours(skb);
	verdict = inbound_begin(skb, p, PARTY_HOST);
	if (verdict != NO_VERDICT)
		return verdict;
	reserved = port_is_reserved(p->tuple.dport, p->tuple.proto);
	if (!reserved && !may_be_answer(p->tuple.sport, p->tuple.dport))
		return disown(skb, p, PARTY_HOST);
	conn = conn_find(&p->tuple);
	anew = begins_anew(p, conn, PARTY_HOST);
	if ((!conn || anew) && !reserved)
		return disown(skb, p, PARTY_HOST);
	if (!conn || anew) {
		verdict = inbound_open(skb, p, published(p), PARTY_HOST, anew);
		if (verdict != NO_VERDICT)
			return verdict;
		conn = conn_opened(&p->tuple);
	}
	return inbound_known(skb, p, conn, PARTY_HOST);
}
