/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where the host's routing table leads (bpf_fib_lookup), and which addresses are its own. */
#pragma once
#include "lib/networks.h"
#include "lib/scratch.h"

/* BPF_FIB_LOOKUP_SKIP_NEIGH, as redirect_neigh looks for the neighbour itself, and _SRC, which 6.1's
 * header does not have. */
#define FIB_FLAGS (1U << 2 | 1U << 4)

#define NO_ROUTE_YET (-1) /* none of BPF_FIB_LKUP_RET_*, which are not negative */

static __always_inline void route_ask(const struct packet *p, const struct network *net,
				      const struct ip_addr *dst, struct bpf_fib_lookup *fib)
{
	bool v6 = is_ipv6(p);

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = v6 ? AF_INET6 : AF_INET;
	fib->l4_protocol = p->tuple.proto;
	/* Forwarding is on for this device, whatever the host does for others. */
	fib->ifindex = net->ifindex;
	if (v6) {
		__builtin_memcpy(fib->ipv6_src, &p->tuple.src, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, dst, sizeof(fib->ipv6_dst));
	} else {
		fib->ipv4_src = p->tuple.src.word[3];
		fib->ipv4_dst = dst->word[3];
	}
}

static __always_inline int route_answer(struct __sk_buff *skb, struct bpf_fib_lookup *fib)
{
	int route = bpf_fib_lookup(skb, fib, sizeof(*fib), FIB_FLAGS);

	if (route == -EINVAL) {
		route = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
		__builtin_memset(fib->ipv6_src, 0, sizeof(fib->ipv6_src));
	}
	return route;
}

/*
 * The host's route for a packet that a container sends. Returns BPF_FIB_LKUP_RET_*. The next
 * hop is in the lookup's destination; the address that the host would send from is in its
 * source, or zero where the kernel cannot tell (before 6.7).
 */
static __noinline int route_find(struct __sk_buff *skb, const struct packet *p,
				 const struct network *net, const struct ip_addr *dst,
				 struct bpf_fib_lookup *fib)
{
	__u32 length;

	if (!p || !net || !dst || !fib)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	length = p->length;
	/* What counts for the way's MTU is the segment as it will leave. */
	if (skb->gso_size)
		length = skb->gso_size + (p->l4 - L3) + sizeof(struct tcphdr);
	route_ask(p, net, dst, fib);
	fib->tot_len = length > 0xffff ? 0xffff : length;
	return route_answer(skb, fib);
}

/* The same, of the way back to the sender, whatever the packet's size. */
static __noinline int route_back(struct __sk_buff *skb, const struct packet *p,
				 const struct network *net, struct bpf_fib_lookup *fib)
{
	if (!p || !net || !fib)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	route_ask(p, net, &p->tuple.src, fib);
	return route_answer(skb, fib);
}

/*
 * Is a destination without a route through a device (`route` says so) an address of the host? The host's own table is asked,
 * so that a new address counts at once; but it gives the same answer for what it knows no way to
 * at all. Then the address beside it has none either.
 */
static __noinline int route_is_local(struct __sk_buff *skb, const struct packet *p,
				     const struct network *net, int route)
{
	struct scratch *room = scratch();
	const struct ip_addr *dst;
	struct ip_addr beside;

	if (!p || !net || !room || route != BPF_FIB_LKUP_RET_NOT_FWDED)
		return 0;
	dst = &p->tuple.dst;
	beside = *dst;
	if (address_is_known(dst))
		return 1;
	beside.word[3] ^= bpf_htonl(1);
	if (address_is_known(&beside) ||
	    route_find(skb, p, net, &beside, &room->fib) != BPF_FIB_LKUP_RET_NOT_FWDED)
		return 1;
	/* The one beside may be the host's too: the first of an IPv6 prefix is every router's
	 * (RFC 4291, 2.6.1), the last of an IPv4 one the broadcast. */
	beside.word[3] ^= bpf_htonl(3);
	return route_find(skb, p, net, &beside, &room->fib) != BPF_FIB_LKUP_RET_NOT_FWDED;
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
	uplink = device_find(fib->ifindex, DEVICE_UPLINK);
	if (!uplink)
		return false;
	*source = is_ipv6(p) ? uplink->addr6 : uplink->addr4;
	return !addr_is_zero(source);
}

static __always_inline bool route_leads_out(long route)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS || route == BPF_FIB_LKUP_RET_NO_NEIGH;
}
