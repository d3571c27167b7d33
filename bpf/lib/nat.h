/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a translated connection begins: which addresses and ports it gets. */
#pragma once
#include "lib/conntrack.h"
#include "lib/exits.h"
#include "lib/ports.h"

#define NAT_TRIES 32

/* The states of BPF_TCP_* in which a socket answers a packet with this tuple; 0: no socket. Two
 * functions, as the two helpers return different types and the compiler would join the reads. */
static __noinline int tcp_socket_state(struct __sk_buff *skb, struct bpf_sock_tuple *key, bool v6)
{
	struct bpf_sock *socket;
	int state;

	if (!key)
		return 0;
	/* The length says which family it is. */
	if (v6)
		socket = bpf_skc_lookup_tcp(skb, key, sizeof(key->ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_skc_lookup_tcp(skb, key, sizeof(key->ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

static __noinline int udp_socket_state(struct __sk_buff *skb, struct bpf_sock_tuple *key, bool v6)
{
	struct bpf_sock *socket;
	int state;

	if (!key)
		return 0;
	if (v6)
		socket = bpf_sk_lookup_udp(skb, key, sizeof(key->ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_sk_lookup_udp(skb, key, sizeof(key->ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

__noinline int host_socket_state(struct __sk_buff *skb, const struct tuple *arriving)
{
	struct bpf_sock_tuple key = {};
	bool v6;

	if (!arriving)
		return 0;
	v6 = !addr_is_v4(&arriving->src);
	if (v6) {
		__builtin_memcpy(key.ipv6.saddr, &arriving->src, sizeof(key.ipv6.saddr));
		__builtin_memcpy(key.ipv6.daddr, &arriving->dst, sizeof(key.ipv6.daddr));
		key.ipv6.sport = arriving->sport;
		key.ipv6.dport = arriving->dport;
	} else {
		key.ipv4.saddr = arriving->src.word[3];
		key.ipv4.daddr = arriving->dst.word[3];
		key.ipv4.sport = arriving->sport;
		key.ipv4.dport = arriving->dport;
	}
	switch (arriving->proto) {
	case IPPROTO_TCP:
		return tcp_socket_state(skb, &key, v6);
	case IPPROTO_UDP:
		return udp_socket_state(skb, &key, v6);
	}
	return 0;
}

/* A socket of the host is in this conversation: it had the port before it was published, or the
 * kernel gave it the port for a connection of its own. */
static __always_inline bool host_is_talking(struct __sk_buff *skb, const struct tuple *arriving)
{
	int state = host_socket_state(skb, arriving);

	return state && state != BPF_TCP_LISTEN && state != BPF_TCP_CLOSE;
}

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
	__u32 own;

	if (!sides)
		return DROP_NAT_PORTS;
	/* An echo has its identifier where the others have a port. */
	own = bpf_ntohs(sides->key.sport);
	search.first = config.nat_port_first;
	search.span = config.nat_port_last - config.nat_port_first + 1;
	if (!search.span)
		search.span = 1;
	if (foreign || (own >= config.nat_port_first && own <= config.nat_port_last))
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

/* The packet becomes what the other side is to see, and goes there. `from`: the sender's network,
 * NULL: no container has sent it. `route`: what was found to where it goes outside (the rest is in the
 * scratch memory), or NO_ROUTE_YET. */
static __noinline int forward(struct __sk_buff *skb, const struct packet *p,
			      const struct network *from, struct conn *conn, long route)
{
	struct scratch *room = scratch();
	const struct ip_addr *gateway;
	struct endpoint *endpoint;
	struct network *net;
	bool to_host_socket;
	struct tuple to;

	if (!p || !conn || !room)
		return TC_ACT_SHOT;
	gateway = !from ? NULL : is_ipv6(p) ? &from->gateway6 : &from->gateway4;
	tuple_reverse(&to, &conn->other);
	if (!conn->to_network) {
		if (!from)
			return not_ours(skb);
		if (conn->to_endpoint != PARTY_HOST) {
			if (p->ttl <= 1)
				return answer_error(skb, p, gateway, 0);
			if (route == NO_ROUTE_YET)
				route = route_find(skb, p, from, &to.dst, &room->fib);
			if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
				return answer_error(skb, p, gateway, room->fib.mtu_result);
			/* Before anything is changed: the host's stack says what is wrong. */
			if (!route_leads_out(route))
				return to_host(skb, from);
		}
		conn_track(skb, p, conn);
		/* The host's own sockets are no hop further. */
		to_host_socket = conn->to_endpoint == PARTY_HOST;
		if (rewrite_tuple(skb, p, &to, to_host_socket ? p->ttl : p->ttl - 1))
			return drop(skb, DROP_REWRITE);
		return to_host_socket ? to_loopback(skb) : to_outside(skb, &room->fib);
	}
	net = network_find(conn->to_network);
	endpoint = endpoint_find(conn->to_network, &to.dst);
	if (!net || !endpoint || endpoint->number != conn->to_endpoint)
		return drop(skb, DROP_STALE);
	/* Inside, a router speaks with the gateway's address; outside this host is what was asked. The
	 * host's own loopback has no smaller way to tell of: nothing is in between but memory. */
	if (p->dont_fragment && conn->from_endpoint != PARTY_HOST && !fits(skb, p, net->mtu))
		return answer_error(skb, p, from ? gateway : &p->tuple.dst, net->mtu);
	conn_track(skb, p, conn);
	if (rewrite_tuple(skb, p, &to, p->ttl > 1 ? p->ttl - 1 : p->ttl))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, endpoint, net->mac);
}
