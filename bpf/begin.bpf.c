// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call from from_container, as one program has 64 maps at the most: what a container begins a connection
 * by that is translated: with somebody outside, with a published port, or with one that another container's is mapped
 * to. What is known already does not come here. In the scratch memory are the parsed packet, and which of these it is.
 */
#include "lib/forward.h"
#include "lib/fragments.h"
#include "lib/nat.h"
#include "lib/tails.h"
#include "lib/tally.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* To the outside, by the route that was found. */
static __always_inline int begin_outside(struct __sk_buff *skb, struct packet *p,
					 const struct device *device, const struct network *net,
					 struct scratch *room)
{
	bool masquerade = net->flags & NETWORK_MASQUERADE;
	struct conn *conn;
	int reason;

	reason = nat_open_outside(skb, p, device, masquerade ? &room->source : NULL);
	if (reason)
		return refused(skb, p, net, reason);
	conn = conn_opened(&p->tuple);
	if (!conn)
		return drop(skb, DROP_CONN_TABLE);
	if (masquerade)
		conn->uplink = uplink_mark(room->fib.ifindex);
	return forward_out(skb, p, net, conn, room->route);
}

static __always_inline int begin_published(struct __sk_buff *skb, struct packet *p,
					   const struct device *device, const struct network *net,
					   struct scratch *room)
{
	struct conn *conn;
	int reason;

	reason = nat_open_published(skb, p, &room->published, device->network, device->endpoint);
	if (reason)
		return refused(skb, p, net, reason);
	conn = conn_opened(&p->tuple);
	return conn ? forward(skb, p, net, conn) : drop(skb, DROP_CONN_TABLE);
}

static __always_inline int begin_mapped(struct __sk_buff *skb, struct packet *p,
					const struct device *device, const struct network *net,
					struct scratch *room)
{
	struct conn *conn;
	int reason;

	reason = nat_open_outside(skb, p, device, &p->tuple.dst);
	if (reason)
		return refused(skb, p, net, reason);
	/* Its key, where it is one of a map's before Linux 6.4, too. */
	conn = conn_opened(&room->sides.key);
	return conn ? forward_out(skb, p, net, conn, BPF_FIB_LKUP_RET_NOT_FWDED)
		    : drop(skb, DROP_CONN_TABLE);
}

SEC("tc")
int begin(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct device *device;
	struct network *net;
	struct packet *p;
	int verdict;

	device = device_find(skb->ifindex, DEVICE_ENDPOINT);
	net = device ? network_find(device->network) : NULL;
	if (!net || !room)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	switch (room->opens) {
	case OPENS_PUBLISHED:
		verdict = begin_published(skb, p, device, net, room);
		break;
	case OPENS_MAPPED:
		verdict = begin_mapped(skb, p, device, net, room);
		break;
	default:
		verdict = begin_outside(skb, p, device, net, room);
	}
	/* Whatever becomes of it: the later ones meet the same. */
	if (p->followed && p->fragment == FRAGMENT_FIRST &&
	    first_came(skb, p, device->endpoint, verdict))
		return drop(skb, DROP_REWRITE);
	verdict = forwarded(skb, verdict);
	return p->watched ? tally(skb, p, verdict) : verdict;
}
