/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of connections to services: what clients send to a service's address, and what backends answer. */
#pragma once
#include "lib/forward.h"
#include "lib/services.h"

/*
 * What is for a service's address, and of a connection, or an error about one, goes on to the backend. `sender`: who it is,
 * as in from_endpoint. A verdict of forward.h, or NO_VERDICT: it begins one.
 */
__noinline int service_known(struct __sk_buff *skb, struct packet *p, const struct network *net,
			     __u32 sender)
{
	struct scratch *room = scratch();
	struct conn *conn;
	int verdict;

	if (!p || !net || !room)
		return TC_ACT_SHOT;
	if (icmp_is_error(p)) {
		verdict = forward_error(skb, p, net, sender);
		return verdict == NO_VERDICT || verdict == OF_A_QUESTION ? drop(skb, DROP_NO_CONN)
									 : verdict;
	}
	if (!packet_has_ports(p))
		return NO_VERDICT;
	/* Before Linux 6.4 what this function was handed is no key of a map. */
	room->probe = p->tuple;
	conn = conn_find(&room->probe);
	if (!conn)
		return NO_VERDICT;
	if (conn->from_endpoint == sender) {
		if (!is_left(p, conn))
			return forward(skb, p, net, conn);
		/* To_service knows whether it is to be forgotten. */
		p->reopens = p->tuple.proto == IPPROTO_TCP;
	}
	if (!p->reopens)
		conn_forget(&room->probe);
	return NO_VERDICT;
}

/*
 * What a backend, or who has been one, sends: is it an answer to who has asked the service, or an error about that? A
 * verdict of forward.h, or NO_VERDICT: it is sent as by anybody.
 */
__noinline int service_answer(struct __sk_buff *skb, struct packet *p, const struct network *net,
			      __u32 sender)
{
	struct scratch *room = scratch();
	struct conn *conn;
	int verdict;

	if (!p || !net || !room)
		return TC_ACT_SHOT;
	if (icmp_is_error(p)) {
		verdict = forward_error(skb, p, net, sender);
		return verdict == OF_A_QUESTION ? NO_VERDICT : verdict;
	}
	if (!packet_has_ports(p))
		return NO_VERDICT;
	room->probe = p->tuple;
	conn = conn_find(&room->probe);
	if (!conn || conn->from_endpoint != sender ||
	    (conn->flags & (CONN_SERVICE | CONN_ORIGINAL)) != CONN_SERVICE)
		return NO_VERDICT;
	return leads_outside(conn) ? forward_out(skb, p, net, conn, NO_ROUTE_YET)
				   : forward(skb, p, net, conn);
}

/* Forgets what was of a service between the two ends of a packet that begins anew, if that is over. */
__noinline int service_forget(const struct packet *p)
{
	struct scratch *room = scratch();
	struct conn *reply, *original;

	if (!p || !room)
		return 0;
	tuple_reverse(&room->probe, &p->tuple);
	reply = conn_find(&room->probe);
	if (!reply || (reply->flags & (CONN_SERVICE | CONN_ORIGINAL)) != CONN_SERVICE)
		return 0;
	original = conn_opposite(reply);
	if (!original || original->state == CONN_CLOSED)
		conn_forget(&room->probe);
	return 0;
}

/*
 * A member begins to ask a backend by its own address, perhaps from a port from which it has asked it by a service. While
 * that lasts the backend sees one connection, and its answers come from the service's address; not once it is over.
 */
static __always_inline void service_yields(const struct packet *p, const struct endpoint *asked)
{
	if ((asked->forwarding & ROLE_SERVES) && !p->fragment && is_tcp_opening(p))
		service_forget(p);
}
