/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a socket of the host takes part in a conversation. */
#pragma once
#include "lib/addr.h"

/* The states of BPF_TCP_* in which a socket answers a packet with this tuple; 0: no socket. Two
 * functions, as the two helpers return different types and the compiler would join the reads. */
static __noinline int tcp_socket_state(struct __sk_buff *skb, struct bpf_sock_tuple *key, bool v6)
{
	struct bpf_sock *socket;
	int state;

	if (!key)
		return 0;
	/* The length says which family it is. */
	if (v6)
		socket = bpf_skc_lookup_tcp(skb, key, sizeof(key->ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_skc_lookup_tcp(skb, key, sizeof(key->ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

static __noinline int udp_socket_state(struct __sk_buff *skb, struct bpf_sock_tuple *key, bool v6)
{
	struct bpf_sock *socket;
	int state;

	if (!key)
		return 0;
	if (v6)
		socket = bpf_sk_lookup_udp(skb, key, sizeof(key->ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_sk_lookup_udp(skb, key, sizeof(key->ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	state = socket->state;
	bpf_sk_release(socket);
	return state;
}

__noinline int host_socket_state(struct __sk_buff *skb, const struct tuple *arriving)
{
	struct bpf_sock_tuple key = {};
	bool v6;

	if (!arriving)
		return 0;
	v6 = !addr_is_v4(&arriving->src);
	if (v6) {
		__builtin_memcpy(key.ipv6.saddr, &arriving->src, sizeof(key.ipv6.saddr));
		__builtin_memcpy(key.ipv6.daddr, &arriving->dst, sizeof(key.ipv6.daddr));
		key.ipv6.sport = arriving->sport;
		key.ipv6.dport = arriving->dport;
	} else {
		key.ipv4.saddr = arriving->src.word[3];
		key.ipv4.daddr = arriving->dst.word[3];
		key.ipv4.sport = arriving->sport;
		key.ipv4.dport = arriving->dport;
	}
	switch (arriving->proto) {
	case IPPROTO_TCP:
		return tcp_socket_state(skb, &key, v6);
	case IPPROTO_UDP:
		return udp_socket_state(skb, &key, v6);
	}
	return 0;
}

/* A socket of the host is in this conversation: it had the port before it was published, or the
 * kernel gave it the port for a connection of its own. */
static __always_inline bool host_is_talking(struct __sk_buff *skb, const struct tuple *arriving)
{
	int state = host_socket_state(skb, arriving);

	return state && state != BPF_TCP_LISTEN && state != BPF_TCP_CLOSE;
}
