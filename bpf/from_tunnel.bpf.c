// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of those of the host's uplinks whose packets have no Ethernet header: tun, WireGuard, PPP, tunnels. One that
 * is for a container gets a header before anything else of it is changed (rewrite_into_frame).
 */
#include "lib/outside.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct packet *p = packet_new();

	if (!p || skb->pkt_type != PACKET_HOST || packet_parse_bare(skb, p))
		return not_ours(skb);
	return outside_receive(skb, p);
}
