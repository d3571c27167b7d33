/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What arrives from no container: on an uplink or on the host's loopback device. A packet of a connection,
 * or for a published port, goes to its container; the host's own pass here as well and continue untouched.
 * The hook finds the published port itself between the steps. `party`: which of enum other_party sends.
 */
#pragma once
#include "lib/forward.h"
#include "lib/fragments.h"
#include "lib/names.h"
#include "lib/nat.h"

/* Dropped, as a frame like any: who reads a report of it looks for its Ethernet header. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p, int reason)
{
	if (p->lacks && rewrite_into_frame(skb, p))
		return drop(skb, DROP_REWRITE);
	return drop(skb, reason);
}

/* The packet is the host's. So are the other fragments of its datagram. */
static __always_inline int disown(struct __sk_buff *skb, const struct packet *p, __u32 party)
{
	if (p->fragment == FRAGMENT_FIRST)
		fragment_disown(p, party, BEGIN_FOREIGN);
	return not_ours(skb);
}

/*
 * A later fragment gets the ports of its first one. Returns NO_VERDICT when it is ours. While the first is
 * not there the host gets the fragment, and a copy is queued.
 */
static __always_inline int inbound_fragment(struct __sk_buff *skb, struct packet *p, __u32 party)
{
	struct fragment *fragment;
	struct fragment_key *key;
	int reason;

	if (cut_arrives(p, party))
		return p->lacks && rewrite_into_frame(skb, p) ? drop(skb, DROP_REWRITE)
							      : NO_VERDICT;
	key = fragment_key_new(p, party);
	if (!key)
		return not_ours(skb);
	fragment = fragment_find(key);
	if (!fragment || !fragment->known) {
		reason = fragment_enqueue(skb, p);
		if (reason == HELD)
			count(skb, HELD);
		if (reason)
			return not_ours(skb);
		fragment = fragment_find(key);
	}
	if (!fragment || fragment->foreign)
		return not_ours(skb);
	reason = fragment_later(skb, p, party);
	return reason ? refuse(skb, p, reason) : NO_VERDICT;
}

/* Before the connection is looked up: errors, later fragments, what has no ports. Returns a verdict or
 * NO_VERDICT. */
static __always_inline int inbound_begin(struct __sk_buff *skb, struct packet *p, __u32 party)
{
	int verdict;

	if (icmp_is_error(p)) {
		verdict = forward_error(skb, p, NULL, party);
		if (verdict == OF_A_QUESTION)
			return go_on(skb, TAIL_ANSWERED);
		return verdict == NO_VERDICT ? not_ours(skb) : forwarded(skb, verdict);
	}
	if (p->fragment == FRAGMENT_LATER) {
		verdict = inbound_fragment(skb, p, party);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	return packet_has_ports(p) ? NO_VERDICT : disown(skb, p, party);
}

/* Dropped; so are the other fragments of its datagram. */
static __always_inline int refuse_datagram(struct __sk_buff *skb, struct packet *p, __u32 party,
					   int reason)
{
	if (p->fragment == FRAGMENT_FIRST)
		fragment_disown(p, party, BEGIN_REFUSED);
	return refuse(skb, p, reason);
}

/* The same for what has been said of an opening. The host's own sockets are told, by its stack, as nobody has the port there
 * either. */
static __always_inline int refuse_opening(struct __sk_buff *skb, struct packet *p, __u32 party,
					  int said)
{
	if (party != PARTY_HOST || !(said & TOLD))
		return refuse_datagram(skb, p, party, said & ~TOLD);
	drop(skb, said & ~TOLD);
	return disown(skb, p, party);
}

/* An IPsec policy is about what comes from outside to an address of the host's: whether it may pass is for the host's
 * stack to say. */
static __always_inline bool is_for_the_stack(const struct packet *p, __u32 party)
{
	return party == PARTY_OUTSIDE && xfrm_closed_in(&p->tuple);
}

/* Opens a connection to a published port; NULL: there is none. `anew`: in the place of one, which stays what it is for
 * what is left to the host. Returns a verdict or NO_VERDICT. */
static __always_inline int inbound_open(struct __sk_buff *skb, struct packet *p,
					const struct port *port, __u32 party, bool anew)
{
	int reason;

	if (!port || p->fragment == FRAGMENT_LATER || is_for_the_stack(p, party) ||
	    host_is_talking(skb, &p->tuple))
		return disown(skb, p, party);
	/* Over TCP to_service knows whether it is to be forgotten. */
	p->reopens = anew && p->tuple.proto == IPPROTO_TCP && port_is_service(port);
	if (anew && !p->reopens)
		conn_forget(&p->tuple);
	if (p->reopens || port_is_service(port))
		return choose_backend(skb, port, 0, party);
	reason = nat_open_published(skb, p, port, 0, party);
	return reason ? refuse_opening(skb, p, party, reason) : NO_VERDICT;
}

/* A packet of a connection. NULL: it was opened, and is not there any more. That is not for the host to
 * answer: the client will try again. */
static __always_inline int inbound_known(struct __sk_buff *skb, struct packet *p, struct conn *conn,
					 __u32 party)
{
	int reason;

	if (!conn)
		return refuse_datagram(skb, p, party, DROP_CONN_TABLE);
	if (conn->from_endpoint != party || !conn->to_network ||
	    ((conn->flags & CONN_ORIGINAL) && is_for_the_stack(p, party)))
		return disown(skb, p, party);
	/* It is a container's, come what may. What is left to the host's stack stays as it came. */
	if (p->lacks && rewrite_into_frame(skb, p))
		return drop(skb, DROP_REWRITE);
	if (conn->flags & CONN_QUESTION)
		return go_on(skb, TAIL_ANSWERED);
	if (p->fragment == FRAGMENT_FIRST) {
		reason = fragment_first(skb, p, party);
		if (reason)
			return drop(skb, reason);
	}
	return forwarded(skb, forward(skb, p, NULL, conn));
}
