/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether members of one network may talk to each other: icc, or a link (--link). */
#pragma once
#include "lib/networks.h"
#include "lib/parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct link_key);
	__type(value, struct link);
} links SEC(".maps");

static __always_inline bool linked(const struct ip_addr *client, const struct ip_addr *server,
				   __be16 port, __u8 proto)
{
	struct link_key key = {.client = *client, .server = *server, .port = port, .proto = proto};

	return bpf_map_lookup_elem(&links, &key);
}

/*
 * A link opens the server's exposed ports to its client, and lets the answers back: no connection is opened
 * towards the client, so a bare SYN is refused.
 */
static __noinline int link_admits(const struct packet *p)
{
	if (!p || !packet_has_ports(p) ||
	    (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP))
		return 0;
	if (linked(&p->tuple.src, &p->tuple.dst, p->tuple.dport, p->tuple.proto))
		return 1;
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return 0;
	return linked(&p->tuple.dst, &p->tuple.src, p->tuple.sport, p->tuple.proto);
}

/* With icc everything, without it what a link admits. */
static __always_inline bool members_may_talk(const struct network *net, const struct packet *p)
{
	return (net->flags & NETWORK_ICC) || link_admits(p);
}
