// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* tc ingress of those of the host's uplinks whose packets have an Ethernet header. */
#include "lib/flows.h"
#include "lib/outside.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct packet *p;
	int verdict;

	/* Most of these are for macvlan devices, and wait for nobody. */
	if (skb->pkt_type != PACKET_HOST)
		return not_ours(skb);
	verdict = flow_arrives(skb);
	if (verdict != NO_VERDICT)
		return verdict;
	p = packet_new();
	if (!p || packet_parse(skb, p) || p->ethertype == bpf_htons(ETH_P_ARP))
		return not_ours(skb);
	return outside_receive(skb, p, true);
}
