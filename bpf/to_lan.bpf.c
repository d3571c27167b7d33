// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what a container sends whose network is on the link of one of the host's devices (ipvlan), but
 * for what another member, the host or the resolver gets. It leaves by that device with its MAC address, and else as it
 * is: whom it is for the container has found itself. In mode l3 the host's routes say so, and nothing but unicast leaves.
 * Of a network whose members' frames the kernel hands over (macvlan) nothing does.
 */
#include "lib/exits.h"
#include "lib/groups.h"
#include "lib/lan.h"
#include "lib/relay.h"
#include "lib/routes.h"
#include "lib/source.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int out(struct __sk_buff *skb, __u32 ifindex)
{
	count(skb, TO_OUTSIDE);
	return bpf_redirect(ifindex, 0);
}

/* NULL: there is none, or the kernel has another. */
static __always_inline struct parent *way_out(const struct device *device,
					      const struct network *net)
{
	return net->flags & NETWORK_QUESTIONS ? NULL : parent_find(device->network);
}

/* Who has the address as members see it: another one, or the host, which speaks for the link in mode l3. Copies its MAC
 * address; false: it is on the link. */
static __always_inline bool answers_here(const struct device *device, const struct network *net,
					 const struct ip_addr *addr, __u8 *mac)
{
	struct endpoint *endpoint = endpoint_find(device->network, addr);

	if (endpoint && !(net->flags & (NETWORK_VEPA | NETWORK_QUESTIONS))) {
		__builtin_memcpy(mac, endpoint->mac, ETH_ALEN);
		return true;
	}
	__builtin_memcpy(mac, net->mac, ETH_ALEN);
	if (net->flags & NETWORK_QUESTIONS)
		return addr_is_resolver(addr) || addr_equal(addr, &net->gateway_linklocal);
	return endpoint || (net->flags & NETWORK_L3) || addr_is_resolver(addr) ||
	       is_the_hosts(net, addr);
}

/* An announcement of the container's own address is for the link, where another machine may have had it. */
static __noinline int arp_to_lan(struct __sk_buff *skb, const struct packet *p,
				 const struct device *device, const struct network *net)
{
	struct parent *parent;
	__u32 ifindex;
	__u8 mac[ETH_ALEN];
	bool own;

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	own = is_own(device, &p->tuple.dst);
	if (p->arp_operation != ARPOP_REQUEST || (own && (net->flags & NETWORK_L3)))
		return consume(skb, ABSORBED);
	if (!own && answers_here(device, net, &p->tuple.dst, mac))
		return answer(skb, rewrite_arp_reply(skb, p, mac), 0);
	parent = way_out(device, net);
	if (!parent)
		return own ? consume(skb, ABSORBED) : drop(skb, DROP_UNKNOWN_ARP);
	ifindex = parent->ifindex;
	__builtin_memcpy(mac, parent->mac, ETH_ALEN);
	if (relay_sender(skb, p, mac) || relay_arp_sender(skb, mac))
		return drop(skb, DROP_REWRITE);
	return out(skb, ifindex);
}

/* To its own address that is detection of duplicates, which the link hears too. */
static __noinline int solicitation_to_lan(struct __sk_buff *skb, const struct packet *p,
					  const struct device *device, const struct network *net)
{
	struct parent *parent;
	__u32 ifindex;
	struct ip_addr target;
	__u8 mac[ETH_ALEN];
	bool own;

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	if (!solicited(skb, p, &target) || addr_is_v4(&target))
		return drop(skb, DROP_TRUNCATED);
	own = is_own(device, &target);
	if (own && (net->flags & NETWORK_L3))
		return consume(skb, ABSORBED);
	if (!own && answers_here(device, net, &target, mac))
		return answer(skb, rewrite_advertisement(skb, p, (struct in6_addr *)&target, mac),
			      0);
	parent = way_out(device, net);
	if (!parent)
		return own ? consume(skb, ABSORBED) : drop(skb, DROP_UNKNOWN_ARP);
	ifindex = parent->ifindex;
	__builtin_memcpy(mac, parent->mac, ETH_ALEN);
	if (relay_solicitation(skb, p, mac))
		return drop(skb, DROP_SPOOFED_ARP);
	if (relay_sender(skb, p, mac))
		return drop(skb, DROP_REWRITE);
	return out(skb, ifindex);
}

/* Broadcast and multicast: to the members where they may talk, to the host, and to the link. */
static __noinline int group_to_lan(struct __sk_buff *skb, const struct packet *p,
				   const struct device *device, const struct network *net)
{
	struct parent *parent;
	__u8 mac[ETH_ALEN];
	bool solicits;
	__u32 ifindex;
	int reason;

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	reason = net->flags & NETWORK_L3 ? DROP_MULTICAST_OFF : group_check(p, net);
	if (reason)
		return drop(skb, reason);
	solicits = is_ipv6(p) && p->tuple.proto == IPPROTO_ICMPV6 && p->l4 && !p->fragment &&
		   p->icmp_type == ND_ROUTER_SOLICITATION;
	if (solicits && relay_option(skb, p) < 0)
		return drop(skb, DROP_SPOOFED_ARP);
	if ((net->flags & NETWORK_ICC) && !(net->flags & NETWORK_VEPA))
		members_flood(skb, device->network, net, device->endpoint);
	bpf_clone_redirect(skb, net->ifindex, BPF_F_INGRESS);
	parent = way_out(device, net);
	if (!parent)
		return consume(skb, FLOODED);
	ifindex = parent->ifindex;
	__builtin_memcpy(mac, parent->mac, ETH_ALEN);
	if ((solicits && relay_solicitation(skb, p, mac)) || relay_sender(skb, p, mac))
		return drop(skb, DROP_REWRITE);
	count(skb, FLOODED);
	return bpf_redirect(ifindex, 0);
}

/* By the host's routes, as far as they lead over the parent. What they do not know the host says itself. */
static __noinline int route_to_lan(struct __sk_buff *skb, const struct packet *p,
				   const struct network *net, __u32 ifindex)
{
	struct scratch *room = scratch();
	int route;

	if (!p || !net || !room)
		return TC_ACT_SHOT;
	route = route_find(skb, p, net, NULL, &room->fib);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return answer_error(skb, p, &p->tuple.dst, room->fib.mtu_result);
	if (!route_leads_out(route))
		return to_host(skb, net);
	if (room->fib.ifindex != ifindex)
		return drop(skb, DROP_ISOLATED);
	return to_outside(skb, &room->fib);
}

static __noinline int unicast_to_lan(struct __sk_buff *skb, const struct packet *p,
				     const struct device *device, const struct network *net)
{
	struct parent *parent;
	__u32 ifindex;
	__u8 macs[2 * ETH_ALEN];
	bool back;

	if (!p || !device || !net)
		return TC_ACT_SHOT;
	if (addr_is_unusable(&p->tuple.dst) && !addr_is_linklocal(&p->tuple.dst))
		return drop(skb, DROP_BAD_ADDR);
	parent = way_out(device, net);
	if (!parent)
		return drop(skb, net->flags & NETWORK_INTERNAL ? DROP_INTERNAL : DROP_DEVICE);
	ifindex = parent->ifindex;
	if (net->flags & NETWORK_L3)
		return route_to_lan(skb, p, net, ifindex);
	/* To another member, which a switch is to send back; else to the host as a router. */
	back = (net->flags & NETWORK_VEPA) && endpoint_find(device->network, &p->tuple.dst);
	if (mac_equal(p->dst_mac, net->mac) && !back)
		return to_host(skb, net);
	__builtin_memcpy(macs, back ? parent->mac : p->dst_mac, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, parent->mac, ETH_ALEN);
	if (rewrite_macs(skb, macs, macs + ETH_ALEN))
		return drop(skb, DROP_REWRITE);
	return out(skb, ifindex);
}

SEC("tc")
int to_lan(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct device *device;
	struct network *net;
	struct packet *p;

	if (!room)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	device = device_find(skb->ifindex, DEVICE_ENDPOINT);
	if (!device)
		return drop(skb, DROP_DEVICE);
	net = network_find(device->network);
	if (!net)
		return drop(skb, DROP_DEVICE);
	p->limited = device->limited;
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		return arp_to_lan(skb, p, device, net);
	if (is_ipv6(p) && is_solicitation(p))
		return solicitation_to_lan(skb, p, device, net);
	if (net->flags & NETWORK_QUESTIONS)
		return drop(skb, mac_is_group(p->dst_mac) ? DROP_MULTICAST_OFF : DROP_ISOLATED);
	if ((device->limited & LIMIT_EGRESS) &&
	    !limit_admits(device->endpoint, LIMIT_EGRESS, wire_length(skb, p)))
		return drop(skb, DROP_BANDWIDTH);
	return mac_is_group(p->dst_mac) ? group_to_lan(skb, p, device, net)
					: unicast_to_lan(skb, p, device, net);
}
