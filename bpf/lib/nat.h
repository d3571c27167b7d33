/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a translated connection begins: which addresses and ports it gets. */
#pragma once
#include "lib/conntrack.h"
#include "lib/networks.h"
#include "lib/ports.h"
#include "lib/sockets.h"

#define NAT_TRIES 32

struct nat_search {
	struct __sk_buff *skb;
	struct conn_sides *sides;
	__u32 first, span;
	__be16 port;   /* 0: none found */
	__be16 wanted; /* tried first */
	bool foreign;  /* the address is not the host's: its ports are not either */
};

static long nat_try(__u32 attempt, struct nat_search *search)
{
	struct conn_sides *sides = search->sides;
	__be16 port = search->wanted;

	if (attempt || !port)
		port = bpf_htons(search->first + bpf_get_prandom_u32() % search->span);
	if (!search->foreign && port_is_reserved(port, sides->other.proto))
		return 0;
	sides->other.dport = port;
	if (!conn_key_free(&sides->other))
		return 0;
	if (!search->foreign && host_socket_state(search->skb, &sides->other))
		return 0;
	if (conn_open(sides))
		return 0;
	search->port = port;
	return 1;
}

/*
 * Opens the connection with a source port of the host's that nothing else uses: outside the
 * host's ephemeral range, not published, no socket of the host behind it. The sender's own port
 * is kept where it qualifies; where the sender keeps its address (`foreign`), wherever it is
 * free. Returns 0, or a drop reason.
 */
static __noinline int nat_open(struct __sk_buff *skb, struct conn_sides *sides, bool foreign)
{
	struct nat_search search = {.skb = skb, .sides = sides, .foreign = foreign};
	struct host *facts = host_facts();
	__u32 own;

	if (!sides || !facts || !facts->nat_port_first)
		return DROP_NAT_PORTS;
	/* An echo has its identifier where the others have a port. */
	own = bpf_ntohs(sides->key.sport);
	search.first = facts->nat_port_first;
	search.span = facts->nat_port_last - search.first + 1;
	if (!search.span)
		search.span = 1;
	if (foreign || (own >= facts->nat_port_first && own <= facts->nat_port_last))
		search.wanted = sides->key.sport;
	bpf_loop(NAT_TRIES, nat_try, &search, 0);
	return search.port ? 0 : DROP_NAT_PORTS;
}

/*
 * A connection to a published port. The server sees the client's own address, unless the
 * answer would then not come back here: a client of the same network, and the host's loopback
 * address, come from the gateway. A second connection of one client port to one server, by
 * another of the host's addresses, gets another port. `client`: who it is, as in from_endpoint.
 */
static __noinline int nat_open_published(struct __sk_buff *skb, const struct packet *p,
					 const struct port *port, __u32 client_network,
					 __u32 client)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;
	struct network *net;

	if (!p || !port || !room)
		return DROP_CONN_TABLE;
	net = network_find(port->network);
	if (!net)
		return DROP_STALE;
	if (!port_admits(port, &p->tuple.src))
		return DROP_DENIED;
	if (is_container(client) && !quota_admits(client))
		return DROP_LIMIT;
	quota_begins(port->endpoint);
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
	/* The host's address stays, but its port must be none that the host needs. */
	if (client == PARTY_HOST && !addr_is_loopback(&p->tuple.src))
		return nat_open(skb, sides, false);
	if (client != PARTY_HOST && client_network != port->network)
		return nat_open(skb, sides, true);
	sides->other.dst = is_ipv6(p) ? net->gateway6 : net->gateway4;
	return nat_open(skb, sides, false);
}

/* A connection from a container to the outside. `source`: the host's address, NULL: keep its own. */
static __noinline int nat_open_outside(struct __sk_buff *skb, const struct packet *p,
				       const struct device *device, const struct ip_addr *source)
{
	struct scratch *room = scratch();
	struct conn_sides *sides;

	if (!p || !device || !room)
		return DROP_CONN_TABLE;
	if (!quota_admits(device->endpoint))
		return DROP_LIMIT;
	sides = &room->sides;
	__builtin_memset(sides, 0, sizeof(*sides));
	sides->key = p->tuple;
	tuple_reverse(&sides->other, &p->tuple);
	sides->client_network = device->network;
	sides->client_endpoint = device->endpoint;
	if (!source)
		return conn_open(sides) ? DROP_CONN_TABLE : 0;
	sides->other.dst = *source;
	return nat_open(skb, sides, false);
}
