// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc egress of a device that macvlan devices of members stand on who may not talk to each other. The kernel, in its mode
 * "private", lets all that they send leave by it and gets nothing from one to another. So what one has for another is
 * decided here: a link (--link) lets it arrive, else it is dropped. All else leaves untouched.
 */
#include "lib/exits.h"
#include "lib/lan.h"
#include "lib/links.h"
#include "lib/rewrite.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Is a member the sender, and another one meant? That one is in the scratch memory then. Who has a member's address and
 * not its MAC address is not taken for it: the kernel keeps it from the others all the same. */
static __always_inline bool is_for_another(const struct packet *p, struct scratch *room,
					   __u32 network, const struct ip_addr *target)
{
	struct endpoint *sender = endpoint_find(network, &p->tuple.src);
	struct endpoint *found = sender ? endpoint_find(network, target) : NULL;

	if (!found || found->number == sender->number || !mac_equal(p->src_mac, sender->mac))
		return false;
	room->recipient = *found;
	return true;
}

/* As if it had come from the link: the kernel hands it to the macvlan device that has its MAC address. */
static __always_inline int arrive(struct __sk_buff *skb, int error, __u32 reason)
{
	if (error)
		return drop(skb, DROP_REWRITE);
	count(skb, reason);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __noinline int arp_to_member(struct __sk_buff *skb, const struct packet *p, __u32 network)
{
	struct scratch *room = scratch();

	if (!p || !room || p->arp_operation != ARPOP_REQUEST ||
	    !is_for_another(p, room, network, &p->tuple.dst))
		return NO_VERDICT;
	return arrive(skb, rewrite_arp_reply(skb, p, room->recipient.mac), ANSWERED);
}

static __noinline int solicitation_to_member(struct __sk_buff *skb, const struct packet *p,
					     __u32 network)
{
	struct scratch *room = scratch();

	if (!p || !room || !solicited(skb, p, &room->probe.dst) ||
	    !is_for_another(p, room, network, &room->probe.dst))
		return NO_VERDICT;
	return arrive(skb,
		      rewrite_advertisement(skb, p, (struct in6_addr *)&room->probe.dst,
					    room->recipient.mac),
		      ANSWERED);
}

static __noinline int unicast_to_member(struct __sk_buff *skb, const struct packet *p,
					const struct network *net, __u32 network)
{
	struct scratch *room = scratch();

	if (!p || !net || !room || !is_for_another(p, room, network, &p->tuple.dst))
		return NO_VERDICT;
	if (!members_may_talk(net, p))
		return drop(skb, DROP_ICC);
	return arrive(skb, rewrite_macs(skb, room->recipient.mac, p->src_mac), DELIVERED);
}

SEC("tc")
int to_parent(struct __sk_buff *skb)
{
	struct packet *p = packet_new();
	struct device *device;
	struct network *net;
	int verdict;

	if (!p || packet_parse(skb, p))
		return not_ours(skb);
	device = device_find(skb->ifindex, DEVICE_PARENT);
	net = device ? network_find(device->network) : NULL;
	if (!device || !net || !(net->flags & NETWORK_QUESTIONS) || (net->flags & NETWORK_ICC))
		return not_ours(skb);
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		verdict = arp_to_member(skb, p, device->network);
	else if (is_ipv6(p) && is_solicitation(p))
		verdict = solicitation_to_member(skb, p, device->network);
	else if (mac_is_group(p->dst_mac))
		verdict = NO_VERDICT;
	else
		verdict = unicast_to_member(skb, p, net, device->network);
	return verdict == NO_VERDICT ? not_ours(skb) : verdict;
}
