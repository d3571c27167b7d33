// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc ingress of those of the host's uplinks whose packets have an Ethernet header. */
#include "lib/outside.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet *p;

	/* Most of these are for macvlan devices, and wait for nobody. */
	if (skb->pkt_type != PACKET_HOST)
		return not_ours(skb);
	p = packet_new();
	if (!p || packet_parse(skb, p) || p->ethertype == bpf_htons(ETH_P_ARP))
		return not_ours(skb);
	return outside_receive(skb, p);
}
