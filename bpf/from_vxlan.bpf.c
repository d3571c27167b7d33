// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of the device of tunnels: what from_peer has left to it, without the tunnel's headers. The same is asked
 * again, as not all that arrives here has passed that.
 */
#include "lib/peers.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The outer source; false: it has come in no tunnel. */
static __always_inline bool tunnel_source(struct __sk_buff *skb, struct ip_addr *addr, __u32 *vni)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_set_v4(addr, bpf_htonl(key.remote_ipv4));
		*vni = key.tunnel_id;
		return true;
	}
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		return false;
	__builtin_memcpy(addr, key.remote_ipv6, sizeof(*addr));
	*vni = key.tunnel_id;
	return true;
}

SEC("tc")
int from_vxlan(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct packet *p = packet_new();
	struct ip_addr source;
	__u32 vni, network, peer;
	int reason;

	if (!p || !room)
		return drop(skb, DROP_DEVICE);
	if (!tunnel_source(skb, &source, &vni))
		return drop(skb, DROP_TUNNEL_SENDER);
	network = vni_find(vni);
	if (!network)
		return drop(skb, DROP_VNI);
	peer = vtep_find(&source);
	if (!peer)
		return drop(skb, DROP_TUNNEL_SENDER);
	reason = packet_parse(skb, p);
	if (reason)
		return drop(skb, reason);
	if (mac_is_group(p->dst_mac))
		return drop(skb, DROP_TUNNEL_FRAME);
	asked_hear(skb, p, room, p->src_mac);
	return peer_receive(skb, p, network, peer, 0, 0);
}
