/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A container that talks to a port of the host's to which another container's is mapped (RFC 4787, REQ-9; RFC 5382,
 * REQ-8): each sees the other as the outside does, by its external address and port. Who may come in is decided as
 * for what comes from outside: whom the other has sent to, from that address and port.
 */
#pragma once
#include "lib/connstate.h"
#include "lib/exits.h"
#include "lib/judging.h"
#include "lib/mappings.h"
#include "lib/routes.h"
#include "lib/split.h"

/* Is a container's port mapped to what the packet is for? */
__noinline int hairpin_leads(const struct tuple *sent)
{
	struct external *external;
	struct external_key key;

	if (!sent || (sent->proto != IPPROTO_TCP && sent->proto != IPPROTO_UDP))
		return 0;
	external_key_of(sent, sent->dport, &key);
	external = bpf_map_lookup_elem(&externals, &key);
	return external && external_is_live(external, bpf_ktime_get_coarse_ns());
}

/*
 * Delivers a packet of a connection to such a port. `conn`: the sender's; in the scratch memory is the packet as its
 * other end is to see it. NO_VERDICT: nobody waits for it, so it is the host's, like one from outside.
 */
__noinline int hairpin(struct __sk_buff *skb, struct packet *p, const struct network *from,
		       struct conn *conn)
{
	struct scratch *room = scratch();
	struct network *net;
	struct conn *peer;
	int said;

	if (!p || !from || !conn || !room)
		return NO_VERDICT;
	peer = conn_find(&room->leaving);
	if (!peer || (peer->flags & CONN_ORIGINAL) || !peer->to_network ||
	    peer->from_endpoint != PARTY_OUTSIDE)
		return NO_VERDICT;
	said = conn_stands(skb, p, &room->leaving, peer);
	if (said)
		return drop(skb, said & ~TOLD);
	tuple_reverse(&room->probe, &peer->other);
	net = network_find(peer->to_network);
	if (!net || !recipient_find(peer->to_network, &room->probe.dst, peer->to_endpoint))
		return drop(skb, DROP_STALE);
	if (segment_length(skb, p) > net->mtu && !packet_narrow(skb, p, net->mtu))
		return answer_error(skb, p, is_ipv6(p) ? &from->gateway6 : &from->gateway4,
				    net->mtu);
	conn_track(skb, p, &p->tuple, conn);
	/* Who talks to its own port has one connection, which may just have come to another table. */
	peer = conn_find(&room->leaving);
	if (peer)
		conn_track(skb, p, &room->leaving, peer);
	if (packet_fit(skb, p, conn->from_endpoint) ||
	    rewrite_tuple(skb, p, &room->probe, p->ttl - 1))
		return drop(skb, DROP_REWRITE);
	return deliver(skb, p, &room->recipient, net->mac);
}
