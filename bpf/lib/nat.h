/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a translated connection begins: which addresses and ports it gets. */
#pragma once
#include "lib/callers.h"
#include "lib/judging.h"
#include "lib/mappings.h"
#include "lib/networks.h"
#include "lib/services.h"
#include "lib/sockets.h"
#include "lib/xfrm.h"

/* A prime that does not divide the range visits all of its ports, in an order in which those that somebody has taken
 * in a row do not follow each other. */
#define NAT_STRIDE	 911
#define NAT_OTHER_STRIDE 919
#define NAT_TRIES	 512 /* with 19 ports of 20 taken all of them fail once in 10^11 */

/* Identifiers of echoes that leave with an address of the host's. No client's own is among them, unless by chance: the
 * host's own pings and those that the kernel masquerades keep theirs, which are small numbers as a rule. */
#define IDENTIFIER_FIRST 32768
#define IDENTIFIER_LAST	 65535

/* What is tried, in this order. */
enum nat_step {
	NAT_KNOWN = 0, /* the client's own number, which is mapped to it already */
	NAT_MAPPED,    /* another number that is */
	NAT_PUBLISHED, /* that at which it is published */
	NAT_KEPT,      /* its own number */
	NAT_CLAIMED,   /* one to which nobody's is mapped */
	NAT_SHARED = NAT_CLAIMED + NAT_TRIES, /* one that another container has towards others */
	NAT_STEPS = NAT_SHARED + NAT_TRIES,
};

enum nat_result {
	NAT_FAILED = 0,
	NAT_OPENED = 1,
	NAT_JOINED = 2,	 /* another CPU has opened it */
	NAT_REFUSED = 3, /* an IPsec policy keeps the packet back */
};

/* The port of a step; 0: it has none. */
static __always_inline __be16 nat_candidate(struct nat_search *search,
					    const struct conn_sides *sides, __u32 step)
{
	__be16 port = sides->key.sport;

	if (step < NAT_KEPT) {
		if (!search->mapped)
			return 0;
		if (step == NAT_MAPPED)
			return mapping_port(sides);
		if (step == NAT_PUBLISHED)
			return origin_port(sides);
		search->own = external_state(sides, port);
		return search->own == EXTERNAL_OWN ? port : 0;
	}
	if (step == NAT_KEPT) {
		if (!search->keep || search->own != EXTERNAL_FREE)
			return 0;
	} else {
		port = bpf_htons(search->first +
				 (search->start + step * search->stride) % search->span);
		if (search->mapped && step < NAT_SHARED &&
		    external_state(sides, port) == EXTERNAL_OTHERS)
			return 0;
	}
	return !search->foreign && port_is_reserved(port, sides->other.proto) ? 0 : port;
}

/* What the steps share: the rest is too large for the stack. */
struct nat_walk {
	struct __sk_buff *skb;
	struct scratch *room;
};

/* Does an IPsec policy keep back what would become of the packet, so that it takes no port? Between two containers'
 * external ports nothing leaves. */
static __always_inline bool nat_is_refused(struct nat_walk *walk)
{
	struct conn_sides *sides = &walk->room->sides;
	struct tuple *becomes = &walk->room->probe;

	tuple_reverse(becomes, &sides->other);
	if (walk->room->search.mapped)
		return !addr_equal(&sides->other.dst, &sides->key.dst) &&
		       xfrm_closed_out(&sides->key, becomes);
	return sides->client_endpoint == PARTY_OUTSIDE && xfrm_closed_through(becomes);
}

/* Has another host's client the port of the sides in the scratch memory, towards a backend of an overlay network? */
__noinline int nat_is_anothers(void)
{
	struct scratch *room = scratch();
	struct network *net;

	if (!room || !(room->sides.flags & CONN_SERVICE))
		return 0;
	net = network_find(room->sides.server_network);
	return net && (net->flags & NETWORK_OVERLAY) && caller_holds();
}

/* Opens the connection with this port, if none is known by it towards that address. */
static __always_inline int nat_use(struct nat_walk *walk, __be16 port)
{
	struct conn_sides *sides = &walk->room->sides;
	int room, error;

	sides->other.dport = port;
	if (nat_is_refused(walk))
		return NAT_REFUSED;
	room = conn_room();
	if (room == CONN_TAKEN)
		return NAT_FAILED;
	if (room == CONN_OWN && bpf_map_lookup_elem(&conns, &sides->key))
		return NAT_JOINED;
	if (nat_is_anothers())
		return NAT_FAILED;
	if (!walk->room->search.foreign && host_socket_state(walk->skb, &sides->other))
		return NAT_FAILED;
	error = conn_open();
	if (error < 0)
		return NAT_FAILED;
	return error ? NAT_JOINED : NAT_OPENED;
}

static long nat_try(__u32 step, struct nat_walk *walk)
{
	struct nat_search *search = &walk->room->search;
	struct conn_sides *sides = &walk->room->sides;
	__be16 port = nat_candidate(search, sides, step), recorded;
	bool claims = search->mapped && step != NAT_PUBLISHED && step < NAT_SHARED;

	if (!port || (claims && !external_claim(sides, port)))
		return 0;
	if (claims && step >= NAT_CLAIMED) {
		recorded = mapping_record(sides, port);
		if (recorded) {
			external_release(sides, port);
			port = recorded;
		}
	}
	search->result = nat_use(walk, port);
	if (search->result == NAT_OPENED || search->result == NAT_JOINED)
		return 1;
	if (claims && step >= NAT_KEPT)
		external_release(sides, port);
	return search->result == NAT_REFUSED;
}

/* Where to look for another number: below 1024 for a client's below it, as some servers trust those (RFC 4787, REQ-3,
 * and as nf_nat does it), else in the range of which no socket of the host's gets one by chance. An echo's has its own. */
static __always_inline void nat_range(struct nat_search *search, const struct host *facts,
				      __u32 own, bool echo)
{
	__u32 last = facts->nat_port_last;

	search->first = facts->nat_port_first;
	if (search->mapped && echo) {
		search->first = IDENTIFIER_FIRST;
		last = IDENTIFIER_LAST;
	} else if (search->mapped && own && own < 1024) {
		search->first = own < 512 ? 1 : 600;
		last = own < 512 ? 511 : 1023;
	}
	search->span = last - search->first + 1;
	if (!search->span)
		search->span = 1;
	search->start = bpf_get_prandom_u32() & 0xffff;
	search->stride = search->span % NAT_STRIDE ? NAT_STRIDE : NAT_OTHER_STRIDE;
}

static __always_inline bool within(__u32 port, __u32 first, __u32 last)
{
	return port >= first && port <= last;
}

/*
 * Whether the client's own number is tried. One that would stand beside a number that somebody else keeps, who does not
 * ask here, is not: an echo's identifier, and a port where the kernel masquerades, too. Their answers could not be told
 * from those to it. A question's is to be guessed by nobody (RFC 5452, 9.2).
 */
static __always_inline bool nat_keeps(const struct nat_search *search, const struct host *facts,
				      const struct conn_sides *sides, __u32 own)
{
	if (!own || (sides->flags & CONN_QUESTION))
		return false;
	if (search->mapped)
		return !is_icmp(sides->key.proto) && !(facts->flags & HOST_OTHER_NAT);
	/* Another source than the client's is the host's own, with all of its ports. */
	return search->foreign || own - search->first < search->span;
}

/*
 * Opens the connection of the sides in the scratch memory with a source port that nothing else uses towards the same address: not published by
 * somebody else, no socket of the host behind it. `mapped`: for a container that leaves with the host's address
 * all of its connections from one port have one external port, and no other container has that. `foreign`: the
 * sender keeps its address, so that only its connections count. Returns 0, or a drop reason.
 */
__noinline int nat_open(struct __sk_buff *skb, int mapped, int foreign)
{
	struct nat_walk walk = {.skb = skb, .room = scratch()};
	struct host *facts = host_facts();
	struct nat_search *search;
	struct conn_sides *sides;
	__u32 own, port;

	if (!walk.room || !facts || !facts->nat_port_first)
		return DROP_NAT_PORTS;
	sides = &walk.room->sides;
	search = &walk.room->search;
	__builtin_memset(search, 0, sizeof(*search));
	search->mapped = mapped;
	search->foreign = foreign;
	/* An echo has its identifier where the others have a port. */
	own = bpf_ntohs(sides->key.sport);
	nat_range(search, facts, own, is_icmp(sides->key.proto));
	search->keep = nat_keeps(search, facts, sides, own);
	bpf_loop(mapped ? NAT_STEPS : NAT_SHARED, nat_try, &walk, 0);
	if (search->result == NAT_REFUSED && is_container(sides->client_endpoint))
		quota_returns(sides->client_endpoint);
	if (search->result == NAT_REFUSED)
		return DROP_XFRM;
	if (!search->result)
		return DROP_NAT_PORTS;
	port = bpf_ntohs(sides->other.dport);
	if (mapped && !is_icmp(sides->key.proto))
		contact_record(sides,
			       within(port, facts->ephemeral_first, facts->ephemeral_last) &&
				       !within(port, facts->nat_port_first, facts->nat_port_last));
	if (search->result == NAT_JOINED && is_container(sides->client_endpoint))
		quota_returns(sides->client_endpoint);
	return 0;
}

/* The quotas of whoever opens the connection of the sides, once policies let it be. Returns 0, or a drop reason. */
static __always_inline int sides_admit(struct __sk_buff *skb, const struct conn_sides *sides)
{
	int said = policies_now() ? judge_sides(skb) : 0;

	if (said)
		return said;
	if (is_container(sides->client_endpoint) && !quota_admits(sides->client_endpoint))
		return DROP_LIMIT;
	if (sides->server_endpoint)
		quota_begins(sides->server_endpoint);
	return 0;
}

/*
 * A connection to a published port. The server sees the client's own address, unless the
 * answer would then not come back here: a client of the same network, the host's loopback
 * address, and whoever talks to a member whose default route is elsewhere, come from the gateway. A second connection of one client port to one server, by
 * another of the host's addresses, gets another port. `client`: who it is, as in from_endpoint. Returns 0, or a drop
 * reason, with TOLD as of what judges.
 */
__noinline int nat_open_published(struct __sk_buff *skb, const struct packet *p,
				  const struct port *port, __u32 client_network, __u32 client)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;
	bool foreign = false;
	struct network *net;
	int reason;

	if (!p || !port || !room)
		return DROP_CONN_TABLE;
	net = network_find(port->network);
	if (!net)
		return DROP_STALE;
	if (!port_admits(port, &p->tuple.src))
		return DROP_DENIED;
	sides = &room->sides;
	__builtin_memset(sides, 0, sizeof(*sides));
	sides->key = p->tuple;
	sides->other.src = port->addr;
	sides->other.sport = port->port;
	sides->other.dst = p->tuple.src;
	sides->other.dport = p->tuple.sport;
	sides->other.proto = p->tuple.proto;
	sides->client_network = client_network;
	sides->client_endpoint = client;
	sides->server_network = port->network;
	sides->server_endpoint = port->endpoint;
	/* Of the host itself the address stays, but its port must be none that the host needs. */
	if (!(net->flags & NETWORK_BESIDE))
		foreign = client != PARTY_HOST && client_network != port->network;
	if ((net->flags & NETWORK_BESIDE) ||
	    (!foreign && (client != PARTY_HOST || addr_is_loopback(&p->tuple.src))))
		sides->other.dst = is_ipv6(p) ? net->gateway6 : net->gateway4;
	reason = sides_admit(skb, sides);
	return reason ? reason : nat_open(skb, false, foreign);
}

/*
 * A connection to a backend, by its service's address or published port. `sides` in the scratch memory says who the client
 * is, and `published` the service. The server sees the client's own address, as of any published port, and that of a
 * client of its own network as well: what backends send is looked at. Whoever is asked by itself hears the gateway, and
 * so does who would not believe the client's address (`hidden`).
 */
__noinline int nat_open_service(struct __sk_buff *skb, const struct packet *p, __u32 number,
				__u32 flags, int hidden)
{
	struct backend *backend = backend_find(number);
	struct scratch *room = scratch();
	__u32 client, client_network;
	struct conn_sides *sides;
	struct network *net;
	int reason;

	if (!p || !room || !backend)
		return DROP_CONN_TABLE;
	net = network_find(room->published.network);
	if (!net)
		return DROP_STALE;
	sides = &room->sides;
	client = sides->client_endpoint;
	client_network = sides->client_network;
	__builtin_memset(sides, 0, sizeof(*sides));
	sides->key = p->tuple;
	sides->other.src = *backend_addr(backend, is_ipv6(p));
	sides->other.sport = room->published.port;
	sides->other.dst = p->tuple.src;
	sides->other.dport = p->tuple.sport;
	sides->other.proto = p->tuple.proto;
	sides->client_network = client_network;
	sides->client_endpoint = client;
	sides->server_network = room->published.network;
	sides->server_endpoint = backend->endpoint;
	sides->flags = CONN_SERVICE | flags;
	sides->backend = number;
	hidden = hidden || client == backend->endpoint ||
		 (client == PARTY_HOST && addr_is_loopback(&p->tuple.src)) ||
		 ((net->flags & NETWORK_BESIDE) && client_network != room->published.network);
	if (hidden)
		sides->other.dst = is_ipv6(p) ? net->gateway6 : net->gateway4;
	reason = sides_admit(skb, sides);
	return reason ? reason : nat_open(skb, false, !hidden && client != PARTY_HOST);
}

/* A connection from a container to the outside. `source`: the host's address, NULL: keep its own. */
__noinline int nat_open_outside(struct __sk_buff *skb, const struct packet *p,
				const struct device *device, const struct ip_addr *source)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;
	int opened;

	if (!p || !device || !room)
		return DROP_CONN_TABLE;
	sides = &room->sides;
	__builtin_memset(sides, 0, sizeof(*sides));
	sides->key = p->tuple;
	tuple_reverse(&sides->other, &p->tuple);
	sides->client_network = device->network;
	sides->client_endpoint = device->endpoint;
	if (source)
		sides->other.dst = *source;
	opened = sides_admit(skb, sides);
	if (opened)
		return opened;
	if (source)
		return nat_open(skb, true, false);
	conn_find(&sides->other); /* what is left of another endpoint goes */
	opened = conn_open();
	if (opened == CONN_JOINED)
		quota_returns(device->endpoint);
	return opened < 0 ? DROP_CONN_TABLE : 0;
}
