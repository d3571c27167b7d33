/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows of containers that pass the host's own stack, whose packet filter may translate them: to ports of the host's
 * that somebody else's rules lead elsewhere (docker -p, portmap, NodePorts), to prefixes that a network leaves to the
 * host (ClusterIPs), and what the host forwards to such a network. The connection is the kernel's, which tracks it; a
 * row here only says that the other direction goes the same way. It lasts until others push it out, or who has it ends.
 */
#pragma once
#include "lib/endpoints.h"
#include "lib/icmp.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct tuple);
	__type(value, struct detour);
} detours SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct host_routed_key);
	__type(value, struct subnet);
} host_routed SEC(".maps");

static __always_inline bool is_host_routed(__u32 network, const struct ip_addr *addr)
{
	struct host_routed_key key = {.prefixlen = 32 + 128, .network = network, .addr = *addr};

	return bpf_map_lookup_elem(&host_routed, &key);
}

/* Does the endpoint send the flow in room->probe by way of the host's stack? `answers`: only if it was asked so. */
static __always_inline bool is_detour(struct scratch *room, __u32 endpoint, bool answers)
{
	struct detour *detour = bpf_map_lookup_elem(&detours, &room->probe);

	return detour && detour->endpoint == endpoint && (detour->answers || !answers);
}

/* It does from now on. */
static __always_inline void detour_begins(struct scratch *room, __u32 endpoint, bool answers)
{
	struct detour detour = {.endpoint = endpoint, .answers = answers};

	if (!is_detour(room, endpoint, answers))
		bpf_map_update_elem(&detours, &room->probe, &detour, BPF_ANY);
}

/* What a container sends to a port of the host's may be translated there. */
__noinline int detour_to_host(const struct packet *p, __u32 endpoint)
{
	struct scratch *room = scratch();

	if (!p || !room || !packet_has_ports(p) || is_icmp(p->tuple.proto))
		return 0;
	room->probe = p->tuple;
	detour_begins(room, endpoint, false);
	return 0;
}

/*
 * Does a container of a network with prefixes of the host's send this by way of the host's stack: to one of those, or in
 * answer to what came so, or in error about it? `member`: it is for one of its own network, who is asked without that
 * if it begins anew.
 */
__noinline int leads_by_stack(struct __sk_buff *skb, const struct packet *p,
			      const struct device *device, int member)
{
	struct scratch *room = scratch();

	if (!p || !device || !room)
		return 0;
	if (icmp_is_error(p)) {
		__builtin_memset(&room->quoted, 0, sizeof(room->quoted));
		if (!quoted_parse(skb, p, &room->quoted))
			return 0;
		tuple_reverse(&room->probe, &room->quoted.tuple);
		return is_detour(room, device->endpoint, true);
	}
	room->probe = p->tuple;
	if (packet_has_ports(p) && is_detour(room, device->endpoint, true))
		return 1;
	if (!member) {
		if (!is_host_routed(device->network, &p->tuple.dst))
			return 0;
		if (packet_has_ports(p))
			detour_begins(room, device->endpoint, false);
		return 1;
	}
	if (p->tuple.proto == IPPROTO_TCP ? is_tcp_opening(p) : p->tuple.proto == IPPROTO_UDP) {
		tuple_reverse(&room->probe, &p->tuple);
		if (bpf_map_lookup_elem(&detours, &room->probe))
			bpf_map_delete_elem(&detours, &room->probe);
	}
	return 0;
}

/*
 * May what the host forwards come to a container? It may as the answer to what that has sent by way of the host's
 * stack, or as an error about it; and if the network is open to what the host's packet filter lets through.
 */
__noinline int comes_by_stack(struct __sk_buff *skb, const struct packet *p,
			      const struct network *net, __u32 number)
{
	struct scratch *room = scratch();
	struct endpoint *endpoint;

	if (!p || !net || !room || mac_is_group(p->dst_mac))
		return 0;
	endpoint = endpoint_find(number, &p->tuple.dst);
	if (!endpoint)
		return 0;
	if (icmp_is_error(p)) {
		__builtin_memset(&room->quoted, 0, sizeof(room->quoted));
		if (quoted_parse(skb, p, &room->quoted)) {
			room->probe = room->quoted.tuple;
			if (is_detour(room, endpoint->number, false))
				return 1;
		}
		return net->flags & NETWORK_HOST_ROUTED;
	}
	/* A later fragment has no ports, and alone is worth nothing. What was translated comes from an address of the
	 * host's, as which nobody else gets a packet through its stack. */
	if (!packet_has_ports(p))
		return (net->flags & NETWORK_HOST_ROUTED) ||
		       (p->fragment == FRAGMENT_LATER && address_is_known(&p->tuple.src));
	tuple_reverse(&room->probe, &p->tuple);
	if (is_detour(room, endpoint->number, false))
		return 1;
	if (!(net->flags & NETWORK_HOST_ROUTED))
		return 0;
	detour_begins(room, endpoint->number, true);
	return 1;
}
