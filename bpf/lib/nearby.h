/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a container sends to the host itself, and to members that forward: nobody translates it. */
#pragma once
#include "lib/admissions.h"
#include "lib/exits.h"
#include "lib/forward.h"

/* What policies say of a packet that nobody translates; as admit(). */
static __always_inline int may_reach(struct __sk_buff *skb, const struct packet *p,
				     const struct device *device, __u32 to)
{
	return policies_now() ? admit(skb, p, device->network, device->endpoint, to) : 0;
}

/* To the host itself, which is the other end, or whose stack knows who is. */
__noinline int to_own_host(struct __sk_buff *skb, struct packet *p, const struct device *device,
			   const struct network *net)
{
	int said;

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	said = may_reach(skb, p, device, PARTY_HOST);
	if (said)
		return refused(skb, p, net, said);
	p->party = PARTY_HOST;
	return to_host(skb, net);
}

/* Where no route leads: the host's stack, as a rule, says so. */
static __always_inline int to_nowhere(struct __sk_buff *skb, struct packet *p,
				      const struct device *device, const struct network *net,
				      int route, bool translated)
{
	int said = may_reach(skb, p, device, PARTY_HOST);

	return said ? refused(skb, p, net, said) : not_routed(skb, p, net, route, translated);
}

/* What nobody in the network has the address of, by the MAC that it is sent to. */
__noinline int to_router(struct __sk_buff *skb, struct packet *p, const struct network *net,
			 const struct device *device)
{
	struct endpoint *router;
	int said;

	if (!p || !net || !device)
		return TC_ACT_SHOT;
	router = router_at(device->network, p->dst_mac);
	if (!router)
		return drop(skb, DROP_WRONG_MAC);
	if (!(net->flags & NETWORK_ICC))
		return drop(skb, DROP_ICC);
	p->party = router->number;
	said = may_reach(skb, p, device, router->number);
	if (said)
		return refused(skb, p, net, said);
	return deliver(skb, p, router, p->src_mac);
}

/* The host's route leads back into the network: to a member that forwards. */
__noinline int to_next_hop(struct __sk_buff *skb, struct packet *p, const struct network *net,
			   const struct device *device)
{
	struct scratch *room = scratch();
	struct endpoint *router;
	struct ip_addr hop;
	int said;

	if (!p || !net || !device || !room)
		return TC_ACT_SHOT;
	route_hop(&room->fib, &hop);
	router = endpoint_find(device->network, &hop);
	if (!router || !(router->forwarding & ROLE_FORWARDING))
		return drop(skb, DROP_NO_ENDPOINT);
	if (!(net->flags & NETWORK_ICC))
		return drop(skb, DROP_ICC);
	said = may_reach(skb, p, device, router->number);
	if (said)
		return refused(skb, p, net, said);
	if (packet_fit(skb, p, device->endpoint) || rewrite_ttl(skb, p, p->ttl - 1))
		return drop(skb, DROP_REWRITE);
	p->party = router->number;
	return deliver(skb, p, router, net->mac);
}
