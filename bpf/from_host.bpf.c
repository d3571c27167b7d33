// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc egress of a network's gateway device: all that the host itself sends to the network's
 * members. Nothing is ever transmitted on the device: its other end is unused.
 */
#include "lib/admissions.h"
#include "lib/detours.h"
#include "lib/exits.h"
#include "lib/neighbour.h"
#include "lib/overlay.h"
#include "lib/served.h"
#include "lib/tails.h"
#include "lib/tally.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Copies the MAC of the member, here or on another host, that has the address; false: none has. */
static __always_inline bool member_mac(__u32 number, const struct ip_addr *addr, __u8 *mac)
{
	struct endpoint *endpoint = endpoint_find(number, addr);
	struct peer *peer;

	if (endpoint) {
		__builtin_memcpy(mac, endpoint->mac, ETH_ALEN);
		return true;
	}
	peer = peer_find(remote_find(number, addr));
	if (peer)
		__builtin_memcpy(mac, peer->mac, ETH_ALEN);
	return peer;
}

static __always_inline int answer_arp(struct __sk_buff *skb, const struct packet *p, __u32 number)
{
	__u8 mac[ETH_ALEN];

	if (p->arp_operation != ARPOP_REQUEST)
		return consume(skb, ABSORBED);
	if (!member_mac(number, &p->tuple.dst, mac))
		return drop(skb, DROP_UNKNOWN_ARP);
	return answer(skb, rewrite_arp_reply(skb, p, mac), BPF_F_INGRESS);
}

static __always_inline int answer_solicitation(struct __sk_buff *skb, const struct packet *p,
					       __u32 number)
{
	struct ip_addr target;
	__u8 mac[ETH_ALEN];

	if (!solicited(skb, p, &target))
		return drop(skb, DROP_TRUNCATED);
	if (addr_is_v4(&target) || !member_mac(number, &target, mac))
		return drop(skb, DROP_UNKNOWN_ARP);
	return answer(skb, rewrite_advertisement(skb, p, (struct in6_addr *)&target, mac),
		      BPF_F_INGRESS);
}

/* To a member on another host, in the gateway's name: the answer finds its way by what that host remembers. */
static __always_inline int to_remote(struct __sk_buff *skb, __u32 number)
{
	struct scratch *room = scratch();

	if (!room)
		return drop(skb, DROP_DEVICE);
	room->sides.client_network = number;
	room->sides.client_endpoint = 0;
	room->sides.key.proto = 0;
	return go_on(skb, TAIL_TO_PEER);
}

/* The host itself asks a member now: an answer is not for another host that has asked with the same port. */
static __always_inline void caller_forget(const struct packet *p)
{
	struct scratch *room = scratch();

	if (!room || !packet_has_ports(p) || is_tcp_answer(p))
		return;
	tuple_reverse(&room->probe, &p->tuple);
	if (bpf_map_lookup_elem(&callers, &room->probe))
		bpf_map_delete_elem(&callers, &room->probe);
}

/* The host's stack tells a member of a shorter way to another one, which it has translated an address to. There is none
 * but by the gateway. */
static __always_inline bool is_redirect(const struct packet *p)
{
	if (is_ipv6(p))
		return p->tuple.proto == IPPROTO_ICMPV6 && p->icmp_type == ND_REDIRECT;
	return p->tuple.proto == IPPROTO_ICMP && p->icmp_type == ICMP_REDIRECT;
}

/* To a service, which answers the host by the gateway. */
static __always_inline int to_its_service(struct __sk_buff *skb, struct packet *p,
					  const struct network *net, __u32 number, __u32 service)
{
	int verdict, reason;

	/* Nobody has cut what is in order from here. */
	reason = p->fragment ? fragment_join(p, PARTY_HOST) : 0;
	if (reason)
		return drop(skb, reason);
	p->at_egress = 1;
	verdict = service_known(skb, p, net, PARTY_HOST);
	return verdict == NO_VERDICT ? choose_at(skb, p, number, service, PARTY_HOST)
				     : forwarded(skb, verdict);
}

/* Is what the host sends to be counted? What it merely forwards for a member was when that has sent it. */
static __always_inline bool is_watched(const struct __sk_buff *skb, const struct packet *p,
				       const struct network *net, __u32 number)
{
	return (net->flags & NETWORK_FLOWS) &&
	       (!skb->ingress_ifindex || !endpoint_find(number, &p->tuple.src));
}

/*
 * Do policies let in what the host sends, or what its stack forwards: for a member of that network, or what others answer?
 * Nobody has cut what is in order from here. As admit().
 */
__noinline int may_come_in(struct __sk_buff *skb, struct packet *p, __u32 number, __u32 to)
{
	struct endpoint *sender;
	__u32 from = PARTY_HOST;
	int said;

	if (!p)
		return DROP_DEVICE;
	said = p->fragment ? fragment_join(p, PARTY_HOST) : 0;
	if (said)
		return said;
	if (skb->ingress_ifindex) {
		sender = endpoint_find(number, &p->tuple.src);
		from = sender ? sender->number : PARTY_HOST;
	}
	said = admit(skb, p, number, from, to);
	p->at_egress = 1;
	/* Who is not the host is not told by it. */
	return skb->ingress_ifindex ? said & ~TOLD : said;
}

static __always_inline int host_sends(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *endpoint;
	struct device *device;
	struct network *net;
	int reason;

	device = device_find(skb->ifindex, DEVICE_GATEWAY);
	if (!device)
		return drop(skb, DROP_DEVICE);
	net = network_find(device->network);
	if (!net)
		return drop(skb, DROP_DEVICE);
	reason = packet_parse(skb, p);
	if (reason)
		return drop(skb, reason);
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, p, device->network);
	/* What the host merely forwards has come from outside: only published ports may, and what it has translated. */
	if (skb->ingress_ifindex && !comes_by_stack(skb, p, net, device->network))
		return drop(skb, DROP_DIRECT);
	if (p->ethertype == bpf_htons(ETH_P_IPV6)) {
		if (!(net->flags & NETWORK_IPV6))
			return drop(skb, DROP_NO_IPV6);
		if (is_solicitation(p))
			return answer_solicitation(skb, p, device->network);
	}
	if (is_redirect(p))
		return consume(skb, ABSORBED);
	if (mac_is_group(p->dst_mac)) {
		members_flood(skb, device->network, net, 0);
		return consume(skb, FLOODED);
	}
	endpoint = endpoint_find(device->network, &p->tuple.dst);
	if (!endpoint && leads_to_peer(skb, p, net, device->network))
		return to_remote(skb, device->network);
	if (endpoint && !endpoint->ifindex)
		return to_its_service(skb, p, net, device->network, endpoint->number);
	if (endpoint && (net->flags & NETWORK_OVERLAY))
		caller_forget(p);
	if (!endpoint) /* what the host routes to one of them */
		endpoint = router_at(device->network, p->dst_mac);
	if (!endpoint)
		return drop(skb, DROP_NO_ENDPOINT);
	if (is_watched(skb, p, net, device->network)) {
		p->watched = device->network;
		p->sender = PARTY_HOST;
		p->party = endpoint->number;
	}
	reason = policies_now() ? may_come_in(skb, p, device->network, endpoint->number) : 0;
	if (reason)
		return refused(skb, p, NULL, reason);
	if ((endpoint->limited & LIMIT_INGRESS) &&
	    !limit_admits(endpoint->number, LIMIT_INGRESS, wire_length(skb, p)))
		return drop(skb, DROP_BANDWIDTH);
	/* The host's own table of neighbours may still name an earlier holder of the address. */
	if (!mac_equal(p->dst_mac, endpoint->mac)) {
		__u8 dst[ETH_ALEN];

		__builtin_memcpy(dst, endpoint->mac, ETH_ALEN);
		if (rewrite_macs(skb, dst, p->src_mac))
			return drop(skb, DROP_REWRITE);
	}
	/* redirect_peer works at ingress only: from here through the host end of the pair. */
	count(skb, DELIVERED);
	return bpf_redirect(endpoint->ifindex, 0);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct packet *p = packet_new();
	int verdict;

	if (!p)
		return drop(skb, DROP_DEVICE);
	verdict = host_sends(skb, p);
	return p->watched ? tally(skb, p, verdict) : verdict;
}
