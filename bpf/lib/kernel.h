/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a socket is like that no helper tells: read from the kernel's own structures. Their fields' places come
 * from the running kernel's BTF, when the programs are loaded.
 */
#pragma once
#include "lib/addr.h"
#include <bpf/bpf_core_read.h>

#define KERNEL __attribute__((preserve_access_index))

struct sock_common {
	unsigned char skc_ipv6only : 1;
} KERNEL;

struct tcp_sock {
	bool is_mptcp; /* a subflow of an MPTCP socket; kernels without MPTCP do not have it */
} KERNEL;

struct ipv6_pinfo {
	int ucast_oif;			   /* IPV6_UNICAST_IF */
	struct in6_pktinfo sticky_pktinfo; /* IPV6_PKTINFO as a socket option */
} KERNEL;

struct udp6_sock {
	struct ipv6_pinfo inet6;
} KERNEL;

static __always_inline bool is_v6only(struct sock_common *common)
{
	return BPF_CORE_READ_BITFIELD(common, skc_ipv6only);
}

/* An IPv6 socket that speaks no IPv4. */
static __always_inline bool socket_is_v6only(struct bpf_sock_addr *ctx, __u8 proto)
{
	struct udp6_sock *udp;
	struct tcp_sock *tcp;

	if (!ctx->sk)
		return false;
	if (proto == IPPROTO_TCP) {
		tcp = bpf_skc_to_tcp_sock(ctx->sk);
		return tcp && is_v6only((struct sock_common *)tcp);
	}
	udp = bpf_skc_to_udp6_sock(ctx->sk);
	return udp && is_v6only((struct sock_common *)udp);
}

/* The device that the datagrams of an IPv6 socket go out by, as an option says; 0: any. */
static __always_inline int socket_device(struct bpf_sock_addr *ctx)
{
	struct udp6_sock *udp = ctx->sk ? bpf_skc_to_udp6_sock(ctx->sk) : NULL;

	return udp ? udp->inet6.ucast_oif | (int)udp->inet6.sticky_pktinfo.ipi6_ifindex : 0;
}

static __always_inline bool socket_is_mptcp(struct bpf_sock_addr *ctx)
{
	struct tcp_sock *tcp = ctx->sk ? bpf_skc_to_tcp_sock(ctx->sk) : NULL;

	return tcp && bpf_core_field_exists(tcp->is_mptcp) && tcp->is_mptcp;
}
