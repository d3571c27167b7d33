/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a packet means for its connection: TCP's states, time-outs, confirmation. */
#pragma once
#include "lib/confirm.h"
#include "lib/traffic.h"

#define RESET_WINDOW (1 << 20) /* bytes; no window that is in use is larger than its scale allows */

/*
 * A reset is believed if its number lies where the side that it is for expects data: it has
 * acknowledged all before (RFC 5961, 3.2). Others pass, for that side to judge, and change
 * nothing here. `opposite`: the direction in which that side sends.
 */
static __always_inline bool reset_is_theirs(const struct packet *p, const struct conn *opposite)
{
	return !opposite || !opposite->ack || p->seq - opposite->ack < RESET_WINDOW;
}

/*
 * State changes (RFC 9293, 3.3.2, as far as both ends can be seen from the middle). `conn` is
 * the packet's own direction, found by `own`; the state is kept in the original.
 */
__noinline int conn_transition(struct __sk_buff *skb, const struct packet *p,
			       const struct tuple *own, struct conn *conn)
{
	bool from_original;
	struct conn *original;
	__u8 flags;

	if (!p || !own || !conn)
		return 0;
	flags = p->tcp_flags;
	from_original = conn->flags & CONN_ORIGINAL;
	original = from_original ? conn : conn_opposite(conn);
	if (!original)
		return 0;
	if (own->proto != IPPROTO_TCP) {
		if (!from_original)
			conn_confirm(skb, own);
		return 0;
	}
	/* A later fragment says nothing of it. */
	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (flags & TCP_RST) {
		/* What has been acknowledged is not known where the backend's host answers itself. */
		if ((from_original && (conn->flags & CONN_DSR)) ||
		    reset_is_theirs(p, from_original ? conn_opposite(conn) : original))
			original->state = CONN_CLOSED;
		return 0;
	}
	if (from_original && (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		/* The port is used again (RFC 6191): start over, with numbers of its own. */
		if (original->state >= CONN_CLOSING) {
			struct conn *reply = conn_opposite(conn);

			original->state = CONN_NEW;
			original->fin = 0;
			original->ack = 0;
			conn_count_anew(original, p);
			if (reply) {
				reply->ack = 0;
				conn_count_anew(reply, NULL);
			}
		}
		return 0;
	}
	/* It was no valid reset: data goes on. */
	if (original->state == CONN_CLOSED && original->fin != 3)
		original->state = original->flags & CONN_CONFIRMED ? CONN_ESTABLISHED : CONN_NEW;
	if (flags & TCP_FIN) {
		original->fin |= from_original ? 1 : 2;
		if (original->fin == 3)
			original->state = CONN_CLOSED;
		else if (original->state >= CONN_ESTABLISHED)
			original->state = CONN_CLOSING;
	}
	if (!from_original && original->state == CONN_NEW) {
		/* Also the other's SYN, when both open at once. */
		original->state = CONN_REPLIED;
	} else if (from_original && original->state == CONN_REPLIED && (flags & TCP_ACK)) {
		original->state = CONN_ESTABLISHED;
	}
	if (from_original && !(original->flags & CONN_CONFIRMED) &&
	    (original->state == CONN_ESTABLISHED || original->state == CONN_CLOSING))
		conn_confirm(skb, own);
	return 0;
}

/*
 * Every packet of a connection passes here. An established one without SYN, FIN or RST costs
 * the clock, one store, and its count.
 */
static __always_inline void conn_track(struct __sk_buff *skb, const struct packet *p,
				       const struct tuple *own, struct conn *conn)
{
	bool reopening = (conn->flags & CONN_ORIGINAL) &&
			 (conn->state == CONN_REPLIED || conn->state == CONN_CLOSED);

	/* The tick's time, some milliseconds old: the clock itself costs as much as a lookup. */
	conn->last_seen = bpf_ktime_get_coarse_ns();
	conn_count(skb, p, own, conn);
	if (p->tcp_flags & TCP_ACK)
		conn->ack = p->ack;
	if ((conn->flags & CONN_CONFIRMED) && !reopening &&
	    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return;
	conn_transition(skb, p, own, conn);
}
