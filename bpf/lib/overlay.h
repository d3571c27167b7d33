/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Overlay networks: which host has a member, and how that host is reached. */
#pragma once
#include "lib/callers.h"
#include "lib/icmp.h"
#include "lib/networks.h"
#include "lib/parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct overlay_key);
	__type(value, struct overlay);
} overlays SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vni_key);
	__type(value, struct vni);
} vnis SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_key);
	__type(value, struct peer);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vtep_key);
	__type(value, struct vtep);
} vteps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct remote_key);
	__type(value, struct remote);
} remote_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct remote_key);
	__type(value, struct remote);
} remote_blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tunnel);
} tunnel SEC(".maps");

/* This host's own end of all tunnels. */
static __always_inline struct tunnel *tunnel_own(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tunnel, &zero);
}

static __always_inline struct overlay *overlay_find(__u32 network)
{
	struct overlay_key key = {.network = network};

	return bpf_map_lookup_elem(&overlays, &key);
}

static __always_inline struct peer *peer_find(__u32 number)
{
	struct peer_key key = {.number = number};

	return bpf_map_lookup_elem(&peers, &key);
}

/* The number of the host that an outer source address is of; 0: of none. */
static __always_inline __u32 vtep_find(const struct ip_addr *addr)
{
	struct vtep_key key = {.addr = *addr};
	struct vtep *vtep = bpf_map_lookup_elem(&vteps, &key);

	return vtep ? vtep->peer : 0;
}

/* The number of the network; 0: none of ours. */
static __always_inline __u32 vni_find(__u32 number)
{
	struct vni_key key = {.vni = number};
	struct vni *vni = bpf_map_lookup_elem(&vnis, &key);

	return vni ? vni->network : 0;
}

static __always_inline void addr_mask(struct ip_addr *to, const struct ip_addr *addr,
				      const struct ip_addr *mask)
{
	to->word[0] = addr->word[0] & mask->word[0];
	to->word[1] = addr->word[1] & mask->word[1];
	to->word[2] = addr->word[2] & mask->word[2];
	to->word[3] = addr->word[3] & mask->word[3];
}

/* Is the address in the network's subnet, whoever has it? */
static __always_inline bool overlay_covers(const struct overlay *overlay,
					   const struct ip_addr *addr)
{
	bool v4 = addr_is_v4(addr);
	const struct ip_addr *subnet = v4 ? &overlay->subnet4 : &overlay->subnet6;
	const struct ip_addr *mask = v4 ? &overlay->mask4 : &overlay->mask6;
	struct ip_addr first;

	addr_mask(&first, addr, mask);
	return addr_equal(&first, subnet) && !addr_is_zero(mask);
}

/* The address in the key becomes the first one of its block. */
static __always_inline void block_key(struct remote_key *key, const struct overlay *overlay)
{
	addr_mask(&key->addr, &key->addr,
		  addr_is_v4(&key->addr) ? &overlay->block_mask4 : &overlay->block_mask6);
}

static __always_inline bool is_gateway(const struct network *net, const struct ip_addr *addr)
{
	return !addr_is_zero(addr) &&
	       (addr_equal(addr, &net->gateway4) || addr_equal(addr, &net->gateway6));
}

/* The number of the other host that a member with this address is at; 0: at none. */
static __always_inline __u32 remote_at(__u32 network, const struct overlay *overlay,
				       const struct ip_addr *addr)
{
	struct remote_key key = {.network = network, .addr = *addr};
	struct remote *remote = bpf_map_lookup_elem(&remote_addrs, &key);

	if (!remote) {
		block_key(&key, overlay);
		remote = bpf_map_lookup_elem(&remote_blocks, &key);
	}
	return remote ? remote->peer : 0;
}

__noinline int remote_find(__u32 network, const struct ip_addr *addr)
{
	struct overlay *overlay = overlay_find(network);

	return addr && overlay ? remote_at(network, overlay, addr) : 0;
}

/* May a host send from this address: has it a member with that, or the block? */
static __always_inline bool remote_may_send(__u32 network, const struct overlay *overlay,
					    const struct ip_addr *addr, __u32 peer)
{
	struct remote_key key = {.network = network, .addr = *addr};
	struct remote *remote;

	block_key(&key, overlay);
	remote = bpf_map_lookup_elem(&remote_blocks, &key);
	if (remote && remote->peer == peer)
		return true;
	key.addr = *addr;
	remote = bpf_map_lookup_elem(&remote_addrs, &key);
	return remote && remote->peer == peer;
}

/*
 * In an encrypted tunnel a packet's addresses say by themselves which hosts it is from and for. The gateway's, in whose
 * name every host asks, do not: there each has one more of its own, which no packet has anywhere else, 0.0.0.N and 100::N
 * (RFC 1122, 3.2.1.3; RFC 6666). N is its number.
 */
#define ALIAS6 bpf_htonl(0x01000000)

static __always_inline void alias_make(struct ip_addr *to, bool v6, __u32 number)
{
	if (!v6) {
		addr_set_v4(to, bpf_htonl(number));
		return;
	}
	to->word[0] = ALIAS6;
	to->word[1] = 0;
	to->word[2] = 0;
	to->word[3] = bpf_htonl(number);
}

/* The number of the host that is called so; 0: it is another address. */
static __always_inline __u32 alias_number(const struct ip_addr *addr)
{
	__u32 last = bpf_ntohl(addr->word[3]);

	if (addr_is_v4(addr))
		return last >> 24 ? 0 : last;
	return addr->word[0] == ALIAS6 && !(addr->word[1] | addr->word[2]) ? last : 0;
}

/* An error is said to whoever has sent what it quotes: that one's answer is in room->probe. False: it is not for him. */
__noinline int error_answers(struct __sk_buff *skb, const struct packet *p)
{
	struct scratch *room = scratch();
	struct quoted *quoted;

	if (!p || !room)
		return 0;
	quoted = &room->quoted;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (!quoted_parse(skb, p, quoted))
		return 0;
	tuple_reverse(&room->probe, &quoted->tuple);
	return addr_equal(&p->tuple.dst, &room->probe.dst);
}

/* The other host that hears an error about what it has asked; NULL: no other one. */
static __always_inline struct caller *caller_told(struct __sk_buff *skb, const struct packet *p)
{
	struct scratch *room = scratch();

	return room && error_answers(skb, p) ? bpf_map_lookup_elem(&callers, &room->probe) : NULL;
}

/* The other host that is answered with this packet, which is for the gateway's address or somebody outside; NULL: no other
 * one. */
static __always_inline struct caller *caller_find(struct __sk_buff *skb, const struct packet *p,
						  __u32 network)
{
	struct caller *caller = NULL;

	if (packet_has_ports(p))
		caller = bpf_map_lookup_elem(&callers, &p->tuple);
	else if (icmp_is_error(p))
		caller = caller_told(skb, p);
	return caller && caller->network == network ? caller : NULL;
}

/* Does what a member sends, and no endpoint here has the address of, go to another host? */
static __always_inline bool leads_to_peer(struct __sk_buff *skb, const struct packet *p,
					  const struct network *net, __u32 number)
{
	struct overlay *overlay;

	if (!(net->flags & NETWORK_OVERLAY))
		return false;
	if (is_gateway(net, &p->tuple.dst))
		return caller_find(skb, p, number);
	overlay = overlay_find(number);
	return overlay && overlay_covers(overlay, &p->tuple.dst);
}

/* May it be an answer to another host, which has asked for itself, or a backend for somebody outside? */
static __always_inline bool answers_caller(struct __sk_buff *skb, const struct packet *p,
					   const struct network *net, const struct device *device)
{
	return (net->flags & NETWORK_OVERLAY) &&
	       ((device->forwarding & ROLE_SERVES) || is_gateway(net, &p->tuple.dst)) &&
	       caller_find(skb, p, device->network);
}
