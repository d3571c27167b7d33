/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Ports that the kernel chooses for the host's sockets, where a container has kept its own number out of the same range:
 * both towards one server would be one conversation to it. What the host's processes begin does not pass the packet
 * programs, so their sockets are seen to here: one without a port gets one that no container has towards that server;
 * where it has its port already, the container's connection makes way, and begins anew with another one. A TCP
 * connection that is open could not: that stays, and the socket does not come through.
 */
#pragma once
#include "lib/mappings.h"
#include "lib/networks.h"
#include "lib/ports.h"

#define HOST_PORT_TRIES 32

struct host_port_search {
	struct bpf_sock_addr *ctx;
	struct tuple *reply; /* what the server's answer would be */
	__u32 first, span;   /* host order */
	__u32 v6;
};

static __always_inline bool reply_is_known(const struct tuple *reply)
{
	return bpf_map_lookup_elem(&conns, reply) || bpf_map_lookup_elem(&pending, reply);
}

static long host_port_try(__u32 attempt, struct host_port_search *search)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	struct sockaddr_in6 any6 = {.sin6_family = AF_INET6};
	struct tuple *reply = search->reply;

	reply->dport = bpf_htons(search->first + bpf_get_prandom_u32() % search->span);
	if (reply_is_known(reply) || port_is_reserved(reply->dport, reply->proto))
		return 0;
	any.sin_port = any6.sin6_port = reply->dport;
	/* It fails if the port is a socket's, and on a socket that has one. */
	if (search->v6)
		return !bpf_bind(search->ctx, (struct sockaddr *)&any6, sizeof(any6));
	return !bpf_bind(search->ctx, (struct sockaddr *)&any, sizeof(any));
}

/* What a server answers to the host, but for the port; NULL: no container has kept a number towards it. */
static __always_inline struct contact *
host_port_contact(struct bpf_sock_addr *ctx, const struct ip_addr *addr, struct tuple *reply)
{
	struct contact_key key;
	struct contact *contact;

	contact_key_of(addr, ctx->user_port, ctx->protocol, &key);
	contact = bpf_map_lookup_elem(&contacts, &key);
	if (!contact)
		return NULL;
	__builtin_memset(reply, 0, sizeof(*reply));
	reply->src = *addr;
	reply->dst = contact->source;
	reply->sport = key.port;
	reply->proto = key.proto;
	return contact;
}

/* Would the connection not survive another port? A TCP connection that is open. (A hook on a process can be
 * interrupted by one on a packet: the scratch memory is not for it.) */
static __always_inline bool must_stay(const struct conn *reply, __u8 proto)
{
	const struct tuple key = reply->other;
	const struct conn *original = bpf_map_lookup_elem(&conns, &key);

	if (!original)
		original = bpf_map_lookup_elem(&pending, &key);
	return proto == IPPROTO_TCP && original && original->state != CONN_NEW &&
	       original->state != CONN_CLOSED;
}

/* The socket, which has the port, is about to talk to the address. */
static __always_inline void host_port_assert(struct bpf_sock_addr *ctx, const struct ip_addr *addr,
					     __be16 port)
{
	struct tuple reply;
	struct conn *conn;

	if (!port || !host_port_contact(ctx, addr, &reply))
		return;
	reply.dport = port;
	conn = conn_find(&reply);
	if (conn && !(conn->flags & CONN_ORIGINAL) && !must_stay(conn, reply.proto))
		conn_forget(&reply);
}

/* The socket is about to be connected. `port`: its own, 0: the kernel is about to choose one. */
static __always_inline void host_port_choose(struct bpf_sock_addr *ctx, bool v6,
					     const struct ip_addr *addr, __be16 port)
{
	struct host_port_search search = {.ctx = ctx, .v6 = v6};
	struct host *facts = host_facts();
	struct contact *contact;
	struct tuple reply;

	if (port) {
		host_port_assert(ctx, addr, port);
		return;
	}
	contact = host_port_contact(ctx, addr, &reply);
	if (!contact || !contact->ephemeral || !facts || !facts->ephemeral_first)
		return;
	search.reply = &reply;
	search.first = facts->ephemeral_first;
	search.span = facts->ephemeral_last - search.first + 1;
	if (search.span)
		bpf_loop(HOST_PORT_TRIES, host_port_try, &search, 0);
}
