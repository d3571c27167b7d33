/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How an upstream server is reached: over the host's loopback device where it is an address of the host's, straight
 * where it is a container, else by the host's routes; always with an address of the host's as source.
 */
#pragma once
#include "lib/exits.h"
#include "lib/family.h"
#include "lib/lan.h"
#include "lib/nat.h"
#include "lib/routes.h"
#include "lib/upstreams.h"

enum way {
	WAY_NONE = 0,
	WAY_HOST,
	WAY_MEMBER,  /* `recipient` in the scratch memory */
	WAY_OUTSIDE, /* `fib` in the scratch memory */
};

/* Who asks, and who is asked. */
struct asking {
	struct upstream upstream;
	struct question_key key;
	struct question question;
	struct tuple client; /* the question as it arrived, its source as in `pending` */
	__u32 endpoint, network;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct asking);
} askings SEC(".maps");

static __always_inline struct asking *asking_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&askings, &zero);
}

enum question_count {
	QUESTION_FORWARDED,
	QUESTION_FAILED_OVER,
	QUESTION_REFUSED,
};

static __always_inline void count_question(__u32 network, enum question_count what)
{
	struct name_count *found = name_counts_of(network);

	if (!found)
		return;
	if (what == QUESTION_REFUSED) {
		found->refused++;
		return;
	}
	found->forwarded++;
	if (what == QUESTION_FAILED_OVER)
		found->failed_over++;
}

/* A container in a network: whether its members may talk to each other or not, the host may. */
static __always_inline int way_member(struct scratch *room, __u32 network)
{
	struct conn_sides *sides = &room->sides;
	struct network *net = network_find(network);
	struct endpoint *member;
	struct parent *parent;
	struct device *uplink;
	struct ip_addr *gateway;

	if (!net)
		return WAY_NONE;
	gateway = addr_is_v4(&sides->other.src) ? &net->gateway4 : &net->gateway6;
	/* Who is on a link of the host's is asked by its own address there. */
	if (net->flags & NETWORK_LAN) {
		parent = parent_find(network);
		uplink = parent ? uplink_find(parent->ifindex) : NULL;
		if (!uplink)
			return WAY_NONE;
		gateway = addr_is_v4(&sides->other.src) ? &uplink->addr4 : &uplink->addr6;
	}
	member = endpoint_find(network, &sides->other.src);
	if (!member || addr_is_zero(gateway))
		return WAY_NONE;
	room->recipient = *member;
	sides->other.dst = *gateway;
	sides->server_network = network;
	sides->server_endpoint = member->number;
	quota_begins(member->number);
	return WAY_MEMBER;
}

/* An address of the host's: a resolver that listens there, or a port that is published there. */
static __always_inline int way_host(struct scratch *room)
{
	struct conn_sides *sides = &room->sides;
	struct tuple *other = &sides->other;
	struct port *port;

	port = port_find(&other->src, DNS_PORT, other->proto);
	/* The host's own resolvers answer who asks from loopback, and nobody else. */
	other->dst = other->src;
	if (addr_is_v4(&other->src) && addr_is_loopback(&other->src))
		addr_set_v4(&other->dst, bpf_htonl(0x7f000001));
	if (port) {
		if (!port_admits(port, &other->dst))
			return WAY_NONE;
		other->src = port->addr;
		other->sport = port->port;
		return way_member(room, port->network);
	}
	sides->server_endpoint = PARTY_HOST;
	return WAY_HOST;
}

/* The host's route from one of our networks to an upstream, as bpf_fib_lookup() says. The network itself need not have
 * the upstream's family: its device forwards both. */
static __always_inline int way_route(struct __sk_buff *skb, struct scratch *room,
				     const struct network *net, const struct tuple *as, bool source)
{
	struct bpf_fib_lookup *fib = &room->fib;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = addr_is_v4(&as->dst) ? AF_INET : AF_INET6;
	fib->l4_protocol = as->proto;
	fib->sport = as->sport;
	fib->dport = as->dport;
	fib->ifindex = net->ifindex;
	if (fib->family == AF_INET6) {
		__builtin_memcpy(fib->ipv6_src, &as->src, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &as->dst, sizeof(fib->ipv6_dst));
	} else {
		fib->ipv4_src = as->src.word[3];
		fib->ipv4_dst = as->dst.word[3];
	}
	return route_answer(skb, fib, source);
}

/* A link-local one, of which no table tells. */
static __always_inline int way_link(struct scratch *room, __u32 ifindex)
{
	struct device *device = uplink_find(ifindex);

	if (!device || addr_is_zero(&device->linklocal) ||
	    !addr_is_linklocal(&room->sides.other.src))
		return WAY_NONE;
	room->sides.other.dst = device->linklocal;
	__builtin_memset(&room->fib, 0, sizeof(room->fib));
	room->fib.family = AF_INET6;
	room->fib.ifindex = ifindex;
	__builtin_memcpy(room->fib.ipv6_dst, &room->sides.other.src, sizeof(room->fib.ipv6_dst));
	return WAY_OUTSIDE;
}

/* May the packet that the sides name leave by the route that was found? */
static __always_inline int way_leaves(struct scratch *room, int route)
{
	tuple_reverse(&room->leaving, &room->sides.other);
	/* Another network of ours is not to be reached so; nor is one of them by a tunnel of the host's. */
	return route_leads_out(route) && !device_find(room->fib.ifindex, DEVICE_GATEWAY) &&
			       !xfrm_closed_out(&room->leaving, &room->leaving)
		       ? WAY_OUTSIDE
		       : WAY_NONE;
}

static __always_inline int way_outside(struct __sk_buff *skb, struct scratch *room,
				       const struct device *device, __u32 egress)
{
	struct network *net = network_find(egress);
	struct tuple *other = &room->sides.other;
	bool v6 = !addr_is_v4(&other->src);
	struct device *uplink;
	int route;

	if (!net || addr_is_unusable(&other->src))
		return WAY_NONE;
	room->leaving.src = v6 ? device->addr6 : device->addr4;
	room->leaving.dst = other->src;
	room->leaving.sport = 0;
	room->leaving.dport = DNS_PORT;
	room->leaving.proto = other->proto;
	route = way_route(skb, room, net, &room->leaving, true);
	if (!route_leads_out(route))
		return WAY_NONE;
	if (v6)
		__builtin_memcpy(&other->dst, room->fib.ipv6_src, sizeof(other->dst));
	else
		addr_set_v4(&other->dst, room->fib.ipv4_src);
	/* Before Linux 6.7 no lookup tells the source. */
	if (v6 ? addr_is_zero(&other->dst) : !room->fib.ipv4_src) {
		uplink = uplink_find(room->fib.ifindex);
		if (!uplink)
			return WAY_NONE;
		other->dst = v6 ? uplink->addr6 : uplink->addr4;
		if (addr_is_zero(&other->dst))
			return WAY_NONE;
	}
	return way_leaves(room, route);
}

/* The way to the upstream that is asked, which the sides then name. Returns enum way. */
__noinline int way_find(struct __sk_buff *skb, const struct device *device, __u32 egress)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	struct conn_sides *sides;
	struct network *net;
	int way;

	if (!device || !asking || !room)
		return WAY_NONE;
	sides = &room->sides;
	sides->other.src = asking->upstream.addr;
	sides->other.sport = DNS_PORT;
	sides->other.dport = 0;
	sides->other.proto = sides->key.proto;
	sides->server_network = 0;
	sides->server_endpoint = PARTY_OUTSIDE;
	if (asking->upstream.network) {
		way = way_member(room, asking->upstream.network);
		net = network_find(asking->upstream.network);
		/* Else it is another machine on the link. */
		if (way != WAY_NONE || !net || !(net->flags & NETWORK_LAN))
			return way;
	}
	/* Nothing leaves an internal network, not by way of the host's resolver either (CVE-2024-29018). */
	if (!egress)
		return WAY_NONE;
	if (asking->upstream.ifindex)
		return way_link(room, asking->upstream.ifindex);
	if (addr_is_loopback(&sides->other.src) || address_is_known(&sides->other.src))
		return way_host(room);
	return way_outside(skb, room, device, egress);
}

/* The way of a connection that is known: the sides name it. */
__noinline int way_again(struct __sk_buff *skb, const struct conn *conn, __u32 egress)
{
	struct asking *asking = asking_room();
	struct scratch *room = scratch();
	struct network *net;

	if (!conn || !asking || !room)
		return WAY_NONE;
	room->sides.other = conn->other;
	if (conn->to_network)
		return recipient_find(conn->to_network, &room->sides.other.src, conn->to_endpoint)
			       ? WAY_MEMBER
			       : WAY_NONE;
	if (conn->to_endpoint == PARTY_HOST)
		return WAY_HOST;
	if (addr_is_linklocal(&room->sides.other.src))
		return way_link(room, asking->upstream.ifindex);
	net = network_find(egress);
	if (!net)
		return WAY_NONE;
	tuple_reverse(&room->leaving, &room->sides.other);
	return way_leaves(room, way_route(skb, room, net, &room->leaving, false));
}

/* The packet becomes what the sides say, and goes that way. It is the host's own, however far its sender is. */
__noinline int way_go(struct __sk_buff *skb, struct packet *p, int way, __u32 network)
{
	struct scratch *room = scratch();
	struct network *net;

	if (!p || !room)
		return TC_ACT_SHOT;
	tuple_reverse(&room->leaving, &room->sides.other);
	if (is_ipv6(p) == addr_is_v4(&room->leaving.dst) && family_change(skb, p, &room->leaving))
		return drop(skb, DROP_PROTOCOL);
	if (rewrite_tuple(skb, p, &room->leaving, IPDEFTTL))
		return drop(skb, DROP_REWRITE);
	if (way == WAY_HOST)
		return to_loopback(skb);
	if (way == WAY_OUTSIDE)
		return to_outside(skb, &room->fib);
	net = network_find(network);
	if (!net)
		return drop(skb, DROP_STALE);
	return deliver(skb, p, &room->recipient, net->mac);
}
