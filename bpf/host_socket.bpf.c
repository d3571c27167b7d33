// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup hooks on the host's own processes: a socket that asks for a published port at one of
 * the host's addresses is pointed at the container when it calls connect() or sendmsg(), and
 * is told the address that it asked for when it looks (recvmsg, getpeername). bind() to a
 * published port fails as it does for any port that is taken.
 *
 * A control group says nothing about network namespaces: every program begins by asking
 * whether the socket is in the host's.
 */
#include "lib/hostports.h"
#include "lib/networks.h"
#include "lib/ports.h"
#include "lib/verdict.h"

#define EADDRINUSE 98

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct socket_key);
	__type(value, struct socket);
} sockets SEC(".maps");

static __always_inline bool of_the_host(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == config.netns_cookie;
}

/* An IPv4 address in an IPv6 socket is mapped already: both families come out the same. */
static __always_inline void read_addr(struct bpf_sock_addr *ctx, bool v6, struct ip_addr *addr)
{
	if (v6) {
		addr->word[0] = ctx->user_ip6[0];
		addr->word[1] = ctx->user_ip6[1];
		addr->word[2] = ctx->user_ip6[2];
		addr->word[3] = ctx->user_ip6[3];
	} else {
		addr_set_v4(addr, ctx->user_ip4);
	}
}

static __always_inline void write_addr(struct bpf_sock_addr *ctx, bool v6,
				       const struct ip_addr *addr)
{
	if (v6) {
		ctx->user_ip6[0] = addr->word[0];
		ctx->user_ip6[1] = addr->word[1];
		ctx->user_ip6[2] = addr->word[2];
		ctx->user_ip6[3] = addr->word[3];
	} else {
		ctx->user_ip4 = addr->word[3];
	}
}

static __always_inline bool is_any(const struct ip_addr *addr)
{
	return addr_is_zero(addr) || (addr_is_v4(addr) && !addr->word[3]);
}

/* Published at an address that is the host's own. */
static __always_inline struct port *published(struct bpf_sock_addr *ctx, bool v6,
					      const struct ip_addr *addr)
{
	__be16 number = ctx->user_port;
	__u8 proto = ctx->protocol;
	struct port *port;

	if (!port_is_reserved(number, proto))
		return NULL;
	port = port_find_exact(addr, number, proto);
	if (!port && (addr_is_loopback(addr) || address_is_known(addr))) {
		port = port_find_any(!addr_is_v4(addr), number, proto);
		/* An IPv6 socket can speak IPv4, by a mapped address, with a container that
		 * has nothing else. */
		if (!port && v6 && !addr_is_v4(addr))
			port = port_find_any(false, number, proto);
	}
	/* An IPv4 socket cannot speak IPv6. */
	return port && (v6 || addr_is_v4(&port->addr)) ? port : NULL;
}

/* Points the socket at the container; `asked`: what it asked for. */
static __always_inline bool redirect(struct bpf_sock_addr *ctx, bool v6, struct ip_addr *asked)
{
	struct socket_key key = {};
	struct socket socket = {};
	struct port *port;

	read_addr(ctx, v6, asked);
	/* Connecting to "any" means this host. */
	if (is_any(asked))
		addr_set_v4(asked, bpf_htonl(0x7f000001));
	port = published(ctx, v6, asked);
	if (!port || !port_admits(port, asked))
		return false;
	socket.addr = *asked;
	socket.port = ctx->user_port;
	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = port->addr;
	key.port = port->port;
	bpf_map_update_elem(&sockets, &key, &socket, BPF_ANY);
	write_addr(ctx, v6, &port->addr);
	ctx->user_port = port->port;
	return true;
}

/* The port that the socket has; 0: none yet. */
static __always_inline __be16 own_port(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_htons(sk->src_port) : 0;
}

/* An address of the host stays the source, as it would be without us; from loopback the
 * server sees the gateway, which the host's table chooses by itself. */
static __always_inline int connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct sockaddr_in source = {.sin_family = AF_INET};
	struct sockaddr_in6 source6 = {.sin6_family = AF_INET6};
	struct ip_addr asked, given;

	if (!of_the_host(ctx))
		return 1;
	if (!redirect(ctx, v6, &asked)) {
		host_port_choose(ctx, v6, &asked, own_port(ctx));
		return 1;
	}
	if (addr_is_loopback(&asked))
		return 1;
	/* The container is of the other family. */
	read_addr(ctx, v6, &given);
	if (addr_is_v4(&given) != addr_is_v4(&asked))
		return 1;
	/* Fails on a socket that is bound already: that keeps its address. */
	if (v6) {
		__builtin_memcpy(&source6.sin6_addr, &asked, sizeof(source6.sin6_addr));
		bpf_bind(ctx, (struct sockaddr *)&source6, sizeof(source6));
	} else {
		source.sin_addr.s_addr = asked.word[3];
		bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
	}
	return 1;
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct ip_addr asked;

	if (!of_the_host(ctx))
		return 1;
	if (!redirect(ctx, v6, &asked))
		host_port_assert(ctx, &asked, own_port(ctx));
	else if (!v6 && !addr_is_loopback(&asked) && !ctx->msg_src_ip4)
		ctx->msg_src_ip4 = asked.word[3];
	return 1;
}

/* The peer is who the socket believes it is. */
static __always_inline int reveal(struct bpf_sock_addr *ctx, bool v6)
{
	struct socket_key key = {};
	struct socket *socket;

	if (!of_the_host(ctx))
		return 1;
	key.cookie = bpf_get_socket_cookie(ctx);
	read_addr(ctx, v6, &key.addr);
	key.port = ctx->user_port;
	socket = bpf_map_lookup_elem(&sockets, &key);
	if (socket) {
		write_addr(ctx, v6, &socket->addr);
		ctx->user_port = socket->port;
	}
	return 1;
}

static __always_inline int bind(struct bpf_sock_addr *ctx, bool v6)
{
	__be16 number = ctx->user_port;
	__u8 proto = ctx->protocol;
	struct ip_addr addr;

	if (!number || !of_the_host(ctx) || !port_is_reserved(number, proto))
		return 1;
	read_addr(ctx, v6, &addr);
	if (!is_any(&addr) && !port_find_exact(&addr, number, proto) &&
	    !port_find_any(!addr_is_v4(&addr), number, proto) &&
	    !(v6 && port_find_any(false, number, proto)))
		return 1;
	bpf_set_retval(-EADDRINUSE);
	return 0;
}

SEC("cgroup/connect4")
int host_connect4(struct bpf_sock_addr *ctx)
{
	return connect(ctx, false);
}

SEC("cgroup/connect6")
int host_connect6(struct bpf_sock_addr *ctx)
{
	return connect(ctx, true);
}

SEC("cgroup/sendmsg4")
int host_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sendmsg(ctx, false);
}

SEC("cgroup/sendmsg6")
int host_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sendmsg(ctx, true);
}

SEC("cgroup/recvmsg4")
int host_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reveal(ctx, false);
}

SEC("cgroup/recvmsg6")
int host_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reveal(ctx, true);
}

SEC("cgroup/getpeername4")
int host_peer4(struct bpf_sock_addr *ctx)
{
	return reveal(ctx, false);
}

SEC("cgroup/getpeername6")
int host_peer6(struct bpf_sock_addr *ctx)
{
	return reveal(ctx, true);
}

SEC("cgroup/bind4")
int host_bind4(struct bpf_sock_addr *ctx)
{
	return bind(ctx, false);
}

SEC("cgroup/bind6")
int host_bind6(struct bpf_sock_addr *ctx)
{
	return bind(ctx, true);
}
