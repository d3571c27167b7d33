/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where the host's routing table leads (bpf_fib_lookup), and which addresses are its own. */
#pragma once
#include "lib/networks.h"
#include "lib/scratch.h"

/* Flags of bpf_fib_lookup and an answer, which 6.1's header does not have. */
#define FIB_SKIP_NEIGH	(1U << 2) /* redirect_neigh looks for the neighbour itself */
#define FIB_SRC		(1U << 4)
#define FIB_MARK	(1U << 5)
#define FIB_NO_SRC_ADDR 9

#define NO_ROUTE_YET (-1) /* none of BPF_FIB_LKUP_RET_*, which are not negative */

/* The packet's length on a wire: of each segment or piece, if it will be cut into some. */
static __always_inline __u32 segment_length(const struct __sk_buff *skb, const struct packet *p)
{
	if (p->width)
		return p->width;
	return skb->gso_size ? skb->gso_size + (p->l4 - L3) + p->l4_length : p->length;
}

/* Asks for the way of a packet with this tuple: all that rules and multipath routes look at (ip-rule). */
static __always_inline void route_ask(const struct packet *p, const struct network *net,
				      const struct tuple *as, struct bpf_fib_lookup *fib)
{
	bool v6 = is_ipv6(p);

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = v6 ? AF_INET6 : AF_INET;
	fib->l4_protocol = as->proto;
	/* An echo's identifier is no port. */
	if (!is_icmp(as->proto)) {
		fib->sport = as->sport;
		fib->dport = as->dport;
	}
	fib->flowinfo = p->flowinfo;
	/* Forwarding is on for this device, whatever the host does for others. */
	fib->ifindex = net->ifindex;
	if (v6) {
		/* For a link-local one a program gets no answer, and no rule of the host's is about it. */
		if (!addr_is_linklocal(&as->src))
			__builtin_memcpy(fib->ipv6_src, &as->src, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &as->dst, sizeof(fib->ipv6_dst));
	} else {
		fib->ipv4_src = as->src.word[3];
		fib->ipv4_dst = as->dst.word[3];
	}
}

/* `source`: the address that the host would send from is wanted. It is zero where it is not known: before
 * Linux 6.7, and where there is none. */
static __always_inline int route_answer(struct __sk_buff *skb, struct bpf_fib_lookup *fib,
					bool source)
{
	__u32 flags = FIB_SKIP_NEIGH | (source ? FIB_SRC : 0), mark = skb->mark;
	int route;

	if (mark) {
		/* In place of the next hop's MAC address, which nobody asks for. */
		__builtin_memcpy(fib->smac, &mark, sizeof(mark));
		flags |= FIB_MARK;
	}
	route = bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
	if (route == -EINVAL && mark) /* since 6.10 */
		route = bpf_fib_lookup(skb, fib, sizeof(*fib), flags & ~FIB_MARK);
	if (route == -EINVAL)
		route = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	else if (route != FIB_NO_SRC_ADDR)
		return route;
	if (source)
		__builtin_memset(fib->ipv6_src, 0, sizeof(fib->ipv6_src));
	return route == FIB_NO_SRC_ADDR ? BPF_FIB_LKUP_RET_SUCCESS : route;
}

/*
 * The host's route for a packet that a container sends. Returns BPF_FIB_LKUP_RET_*. The next hop is in the
 * lookup's destination. `as`: how it leaves, which the host's rules are about. NULL: it is
 * routed as it came, and the address that the host would masquerade it with is in the lookup's source.
 */
__noinline int route_find(struct __sk_buff *skb, const struct packet *p, const struct network *net,
			  const struct tuple *as, struct bpf_fib_lookup *fib)
{
	__u32 length;

	if (!p || !net || !fib)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	route_ask(p, net, as ? as : &p->tuple, fib);
	length = segment_length(skb, p);
	fib->tot_len = length > 0xffff ? 0xffff : length;
	return route_answer(skb, fib, !as && (net->flags & NETWORK_MASQUERADE));
}

/* The same, of the answer's way back to the sender, whatever the packet's size. */
__noinline int route_back(struct __sk_buff *skb, const struct packet *p, const struct network *net,
			  struct bpf_fib_lookup *fib)
{
	struct scratch *room = scratch();

	if (!p || !net || !fib || !room)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	tuple_reverse(&room->probe, &p->tuple);
	route_ask(p, net, &room->probe, fib);
	return route_answer(skb, fib, false);
}

/* Where the host would send what is for the address `beside` bits away from the probe's. */
static __always_inline int route_beside(struct __sk_buff *skb, const struct packet *p,
					const struct network *net, struct scratch *room,
					__u32 beside)
{
	room->probe.dst.word[3] ^= bpf_htonl(beside);
	return route_find(skb, p, net, &room->probe, &room->probe_fib);
}

/*
 * Is an address without a route through a device one of the host's? Its own table is asked,
 * so that a new address counts at once; but it gives the same answer for what it knows no way to
 * at all. Then the address beside it has none either.
 */
__noinline int host_has(struct __sk_buff *skb, const struct packet *p, const struct network *net,
			const struct ip_addr *addr)
{
	struct scratch *room = scratch();

	if (!p || !net || !addr || !room)
		return 0;
	if (address_is_known(addr))
		return 1;
	room->probe = p->tuple;
	room->probe.dst = *addr;
	room->probe.dst.word[3] ^= bpf_htonl(1);
	if (!address_is_known(&room->probe.dst) &&
	    route_beside(skb, p, net, room, 0) != BPF_FIB_LKUP_RET_NOT_FWDED)
		return 1;
	/* The one beside may be the host's too: the first of an IPv6 prefix is every router's
	 * (RFC 4291, 2.6.1), the last of an IPv4 one the broadcast. Then the next one tells. */
	return route_beside(skb, p, net, room, 3) != BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* Is the destination, which `route` was found to, an address of the host? */
static __always_inline int route_is_local(struct __sk_buff *skb, const struct packet *p,
					  const struct network *net, int route)
{
	/* Its device does not forward: the table was not asked. */
	if (route == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return address_is_known(&p->tuple.dst);
	return route == BPF_FIB_LKUP_RET_NOT_FWDED && host_has(skb, p, net, &p->tuple.dst);
}

/* Is an address that the host had still one of its own? It is asked of the table, as above. */
static __noinline int host_still_has(struct __sk_buff *skb, const struct packet *p,
				     const struct network *net, const struct ip_addr *addr)
{
	struct scratch *room = scratch();

	if (!p || !net || !addr || !room)
		return 0;
	room->probe = p->tuple;
	room->probe.dst = *addr;
	return route_beside(skb, p, net, room, 0) == BPF_FIB_LKUP_RET_NOT_FWDED &&
	       host_has(skb, p, net, addr);
}

/* Is it the source that the lookup gave? */
static __always_inline bool addr_is_source(const struct packet *p, const struct ip_addr *addr,
					   const struct bpf_fib_lookup *fib)
{
	if (is_ipv6(p))
		return addr_equal(addr, (const struct ip_addr *)fib->ipv6_src);
	return addr->word[3] == fib->ipv4_src;
}

/* The address that the host would send from; false: unknown. */
static __always_inline bool route_source(const struct packet *p, const struct bpf_fib_lookup *fib,
					 struct ip_addr *source)
{
	struct device *uplink;

	if (is_ipv6(p))
		__builtin_memcpy(source, fib->ipv6_src, sizeof(*source));
	else
		addr_set_v4(source, fib->ipv4_src);
	if (is_ipv6(p) ? !addr_is_zero(source) : source->word[3])
		return true;
	uplink = uplink_find(fib->ifindex);
	if (!uplink)
		return false;
	*source = is_ipv6(p) ? uplink->addr6 : uplink->addr4;
	return !addr_is_zero(source);
}

/* The next hop that a lookup has found. */
static __always_inline void route_hop(const struct bpf_fib_lookup *fib, struct ip_addr *hop)
{
	if (fib->family == AF_INET6)
		__builtin_memcpy(hop, fib->ipv6_dst, sizeof(*hop));
	else
		addr_set_v4(hop, fib->ipv4_dst);
}

static __always_inline bool route_leads_out(long route)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS || route == BPF_FIB_LKUP_RET_NO_NEIGH;
}
