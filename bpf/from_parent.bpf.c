// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of those of the host's devices that a network's members are on the link of: what is for a member goes there,
 * and who asks for a member's address is told the device's own. All else is the host's, as on any uplink.
 */
#include "lib/lan.h"
#include "lib/outside.h"
#include "lib/relay.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What a network is told of this device. NULL: its members are on another's link. The number of a network that is gone may
 * be another one's. */
static __always_inline struct parent *parent_here(const struct __sk_buff *skb, __u32 number)
{
	struct parent *parent = parent_find(number);

	return parent && parent->ifindex == skb->ifindex ? parent : NULL;
}

/* Another machine that says it has a member's address is heard by the host and by nobody else. */
static __noinline int arp_from_lan(struct __sk_buff *skb, const struct packet *p,
				   const struct network *net, __u32 number)
{
	struct endpoint *endpoint;
	struct parent *parent;
	__u8 mac[ETH_ALEN];

	parent = parent_here(skb, number);
	if (!p || !parent || !net)
		return NO_VERDICT;
	endpoint = endpoint_find(number, &p->tuple.dst);
	if (!endpoint) {
		if (mac_is_group(p->dst_mac))
			members_flood(skb, number, net, 0);
		return NO_VERDICT;
	}
	if (addr_equal(&p->tuple.src, &p->tuple.dst))
		return NO_VERDICT;
	if (p->arp_operation == ARPOP_REQUEST) {
		__builtin_memcpy(mac, parent->mac, ETH_ALEN);
		return answer(skb, rewrite_arp_reply(skb, p, mac), 0);
	}
	__builtin_memcpy(mac, endpoint->mac, ETH_ALEN);
	if (relay_arp_target(skb, mac))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, endpoint, p->src_mac);
}

static __noinline int solicitation_from_lan(struct __sk_buff *skb, const struct packet *p,
					    __u32 number)
{
	struct ip_addr target;
	struct parent *parent;
	__u8 mac[ETH_ALEN];

	parent = parent_here(skb, number);
	if (!p || !parent)
		return NO_VERDICT;
	if (!solicited(skb, p, &target) || addr_is_v4(&target) || !endpoint_find(number, &target))
		return NO_VERDICT;
	__builtin_memcpy(mac, parent->mac, ETH_ALEN);
	return answer(skb, rewrite_advertisement(skb, p, (struct in6_addr *)&target, mac), 0);
}

/* NO_VERDICT: the host gets it, too, or alone. */
static __always_inline int from_lan(struct __sk_buff *skb, const struct packet *p,
				    const struct network *net, __u32 number)
{
	struct endpoint *endpoint;

	if (!(net->flags & NETWORK_L3)) {
		if (p->ethertype == bpf_htons(ETH_P_ARP))
			return arp_from_lan(skb, p, net, number);
		if (is_ipv6(p) && is_solicitation(p))
			return solicitation_from_lan(skb, p, number);
		if (mac_is_group(p->dst_mac) && parent_here(skb, number))
			members_flood(skb, number, net, 0);
	}
	if (p->ethertype == bpf_htons(ETH_P_ARP) || mac_is_group(p->dst_mac))
		return NO_VERDICT;
	endpoint = endpoint_find(number, &p->tuple.dst);
	if (!endpoint || !parent_here(skb, number))
		return NO_VERDICT;
	return deliver(skb, p, endpoint, net->flags & NETWORK_L3 ? net->mac : p->src_mac);
}

SEC("tc")
int from_parent(struct __sk_buff *skb)
{
	struct device *device;
	struct network *net;
	struct packet *p;
	int verdict;

	/* For other machines, and for macvlan devices. */
	if (skb->pkt_type == PACKET_OTHERHOST)
		return not_ours(skb);
	p = packet_new();
	if (!p || packet_parse(skb, p))
		return not_ours(skb);
	device = device_find(skb->ifindex, DEVICE_PARENT);
	net = device ? network_find(device->network) : NULL;
	if (device && net && (net->flags & NETWORK_LAN) && !(net->flags & NETWORK_QUESTIONS)) {
		verdict = from_lan(skb, p, net, device->network);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	if (skb->pkt_type != PACKET_HOST || p->ethertype == bpf_htons(ETH_P_ARP))
		return not_ours(skb);
	return outside_receive(skb, p, false);
}
