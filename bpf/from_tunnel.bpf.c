// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of those of the host's uplinks whose packets have no Ethernet header: tun, WireGuard, PPP, tunnels. One that
 * is for a container gets a header before anything else of it is changed (rewrite_into_frame).
 */
#include "lib/outside.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* This host's end, if the device is that of encrypted tunnels: who may send out of it is known, but nothing that does is the
 * host's. */
static __always_inline struct tunnel *encrypted(const struct __sk_buff *skb)
{
	struct tunnel *own = tunnel_own();

	return own && own->wireguard == skb->ifindex ? own : NULL;
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct tunnel *own = encrypted(skb);
	struct packet *p = packet_new();

	if (!p || skb->pkt_type != PACKET_HOST || packet_parse_bare(skb, p))
		return own ? drop(skb, DROP_DIRECT) : not_ours(skb);
	if (own && !network_encrypted(p, own))
		return drop(skb, DROP_DIRECT);
	return outside_receive(skb, p, false);
}
