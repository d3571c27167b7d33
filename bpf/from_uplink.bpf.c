// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of the host's outside devices: answers to what containers began, and published
 * ports. All else is the host's and continues untouched.
 */
#include "icmp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Is the address one of the host's: asked of its own tables, so that it is never out of date. */
static __always_inline bool is_local(struct __sk_buff *skb, const struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct bpf_fib_lookup fib;

	return net && route_find(skb, p, net, p->tuple.dst.word[3], &fib) ==
			      BPF_FIB_LKUP_RET_NOT_FWDED;
}

/*
 * Can the sender be outside: not the host's own address, not a container's, none that is nobody's.
 * Such packets are for the host's stack to judge; a server must not take them for a neighbour's.
 */
static __noinline int from_outside(struct __sk_buff *skb, const struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct bpf_fib_lookup fib = {.family = AF_INET};
	long route;

	if (!p || !net || v4_is_unusable(p->tuple.src.word[3]) ||
	    v4_is_multicast(p->tuple.src.word[3]))
		return 0;
	fib.ifindex = net->ifindex;
	fib.ipv4_src = p->tuple.dst.word[3];
	fib.ipv4_dst = p->tuple.src.word[3];
	route = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return route != BPF_FIB_LKUP_RET_NOT_FWDED &&
	       !(route_leads_out(route) && device_find(fib.ifindex, DEVICE_GATEWAY));
}

static __always_inline struct port *published(struct __sk_buff *skb, const struct packet *p)
{
	struct port *port;

	if (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP)
		return NULL;
	if (!port_is_reserved(p->tuple.dport, p->tuple.proto))
		return NULL;
	/* A loopback address from outside is nobody's, though a port may be published there. */
	if (v4_is_unusable(p->tuple.dst.word[3]))
		return NULL;
	port = port_find_exact(&p->tuple.dst, p->tuple.dport, p->tuple.proto);
	if (!port) {
		port = port_find_any(p->tuple.dport, p->tuple.proto);
		if (!port || !is_local(skb, p, port->network))
			return NULL;
	}
	return from_outside(skb, p, port->network) ? port : NULL;
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet p = {};
	struct port *port;
	struct conn *conn;
	int verdict;

	if (skb->pkt_type != PACKET_HOST || skb->protocol != bpf_htons(ETH_P_IP))
		return not_ours(skb);
	if (packet_parse(skb, &p) || p.fragment)
		return not_ours(skb);
	if (icmp_is_error(&p)) {
		verdict = forward_error(skb, &p, NULL, 0);
		return verdict == NO_SUCH_CONN ? not_ours(skb) : verdict;
	}
	if (!packet_has_ports(&p))
		return not_ours(skb);
	conn = conn_find(&p.tuple);
	if (!conn) {
		port = published(skb, &p);
		if (!port || host_is_talking(skb, &p.tuple))
			return not_ours(skb);
		verdict = nat_open_published(skb, &p, port, 0, 0);
		if (verdict)
			return drop(skb, verdict);
		conn = conn_find(&p.tuple);
	}
	if (!conn || conn->from_endpoint)
		return not_ours(skb);
	return forward(skb, &p, NULL, conn);
}
