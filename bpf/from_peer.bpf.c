// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call from the hooks of uplinks: a datagram to the UDP port of tunnels at this host's own end, or a
 * packet of a network that needs no tunnel, whose number is in the scratch memory then. A tunnel's packet, if it is of a
 * network of ours, from a host of the cluster, is freed of its headers and delivered; what is in no network of ours is
 * left to the host's stack, where another's device may wait for it. So is what a program cannot free of its headers: the
 * device does, and from_vxlan goes on.
 */
#include "lib/peers.h"
#include "lib/ways.h"
#include "lib/xfrm.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The device that is to take a packet which has been admitted; without one nobody can. */
static __always_inline int to_device(struct __sk_buff *skb, const struct tunnel *own)
{
	return own->ifindex ? not_ours(skb) : drop(skb, DROP_NO_TUNNEL);
}

/* Returns 0 for a frame that can be for a member, or a drop reason. `length`: of the outer datagram, bytes. */
static __always_inline int frame_check(const struct vxlan_link *link, __u32 length)
{
	if (mac_is_group(link->inner.h_dest))
		return DROP_TUNNEL_FRAME;
	switch (link->inner.h_proto) {
	case bpf_htons(ETH_P_IP):
		return length < sizeof(*link) + sizeof(struct iphdr) ? DROP_TRUNCATED : 0;
	case bpf_htons(ETH_P_IPV6):
		return length < sizeof(*link) + sizeof(struct ipv6hdr) ? DROP_TRUNCATED : 0;
	case bpf_htons(ETH_P_ARP):
		return DROP_TUNNEL_FRAME;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return DROP_VLAN;
	}
	return DROP_ETHERTYPE;
}

/* What hosts are called in encrypted tunnels becomes the gateway's address. Returns 0, or a drop reason. */
static __always_inline int alias_take_back(struct __sk_buff *skb, struct packet *p,
					   struct scratch *room, const struct network *net)
{
	const struct ip_addr *gateway = is_ipv6(p) ? &net->gateway6 : &net->gateway4;

	room->leaving = p->tuple;
	if (alias_number(&p->tuple.src))
		room->leaving.src = *gateway;
	else if (alias_number(&p->tuple.dst))
		room->leaving.dst = *gateway;
	else
		return is_gateway(net, &p->tuple.src) ? DROP_TUNNEL_SOURCE : 0;
	if (addr_is_zero(gateway) || rewrite_tuple(skb, p, &room->leaving, p->ttl))
		return DROP_REWRITE;
	/* An answer to who has asked a service is translated once more. */
	packet_became(p, &room->leaving, p->ttl);
	return 0;
}

/*
 * A packet that came as it is: does the way to the host that has its source lead over the device that it came by? Out of
 * the device of encrypted tunnels each comes from a host whose key is known, and which has the source (allowed-ips): its
 * number is in room->sides.client_endpoint, if it asks itself, else 0. Returns 0, or a drop reason.
 */
__noinline int direct_check(struct __sk_buff *skb, struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct overlay *overlay = overlay_find(number);
	struct tunnel *own = tunnel_own();
	struct scratch *room = scratch();
	struct peer *peer;
	bool bare;
	__u32 host;

	if (!p || !net || !overlay || !own || !room)
		return DROP_DEVICE;
	bare = p->lacks;
	/* Whatever becomes of it, it is no packet of the host's. */
	if (bare && rewrite_into_frame(skb, p))
		return DROP_REWRITE;
	host = bare ? alias_number(&p->tuple.src) : 0;
	room->sides.client_endpoint = host;
	if (!host)
		host = remote_at(number, overlay, &p->tuple.src);
	peer = host ? peer_find(host) : NULL;
	if (!peer || (!(peer->flags & (bare ? PEER_WIREGUARD : PEER_DIRECT)) &&
		      (bare || !(overlay->flags & OVERLAY_ROUTED))))
		return DROP_DIRECT;
	if (bare)
		return alias_take_back(skb, p, room, net);
	way_is_to(room, own, peer, own->port);
	if (!route_leads_out(way_find(skb, net, 0)) || room->fib.ifindex != skb->ifindex)
		return DROP_TUNNEL_SOURCE;
	return 0;
}

SEC("tc")
int from_peer(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct tunnel *own = tunnel_own();
	struct vxlan_link *link;
	struct packet *p;
	__u32 network, peer;
	bool whole, bare;
	int reason;
	__u8 ecn;

	if (!room || !own)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	link = &room->link;
	network = room->sides.client_network;
	room->asked.port = 0;
	room->mark = 0;
	if (network) {
		flow_check(room);
		bare = p->lacks;
		reason = direct_check(skb, p, network);
		if (reason)
			return drop(skb, reason);
		return peer_receive(skb, p, network, room->sides.client_endpoint, 0,
				    bare ? 0 : room->until);
	}
	if (p->length - (p->l4 - L3) < offsetof(struct vxlan_link, inner))
		return not_ours(skb);
	whole = !bpf_skb_load_bytes(skb, p->l4, link, sizeof(*link));
	if (!whole && bpf_skb_load_bytes(skb, p->l4, link, offsetof(struct vxlan_link, inner)))
		return not_ours(skb);
	network = link->vxlan.flags & VXLAN_HAS_VNI ? vni_find(bpf_ntohl(link->vxlan.vni) >> 8) : 0;
	/* Whether it may pass in clear is for the host's stack to say. */
	if (!network || xfrm_closed_in(&p->tuple))
		return not_ours(skb);
	peer = vtep_find(&p->tuple.src);
	if (!peer)
		return drop(skb, DROP_TUNNEL_SENDER);
	if (!whole)
		return drop(skb, DROP_TRUNCATED);
	reason = frame_check(link, p->length - (p->l4 - L3));
	if (reason)
		return drop(skb, reason);
	/* Segments that have become one packet stay marked as a tunnel's when a program takes the headers away, and who
	 * cuts it up again would look for them. */
	ecn = packet_ecn(p);
	flow_check_outer(room, p, link->vxlan.vni);
	if (skb->gso_size || vxlan_pull(skb, p, link->inner.h_proto))
		return to_device(skb, own);
	__builtin_memset(p, 0, sizeof(*p));
	reason = packet_parse(skb, p);
	if (reason)
		return drop(skb, reason);
	asked_hear(skb, p, room, link->inner.h_source);
	return peer_receive(skb, p, network, peer, ecn, bpf_ktime_get_coarse_ns() + WAY_LIFE);
}
