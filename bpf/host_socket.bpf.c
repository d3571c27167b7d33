// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cgroup hooks on the host's own processes. Two kinds of calls are pointed at the container itself; the
 * socket is told the address that it asked for when it looks (recvmsg, getpeername):
 *
 * - connect() of a stream to a loopback address, which always is the host's. It saves each packet the way
 *   over the loopback device.
 * - what asks by IPv6 for a port that is published everywhere, of a container that has IPv4 only. There is
 *   no other way: packets are not translated from one to the other.
 *
 * Only a socket that reaches the container as it reaches the host is pointed: it is bound to no address and
 * no device, and has no mark. All else is as the host's own routing decides, and from_loopback serves what
 * comes over the loopback device.
 *
 * bind() to a published port fails as it does for any port that is taken.
 *
 * A control group says nothing about network namespaces: every program begins by asking
 * whether the socket is in the host's.
 */
#include "lib/hostports.h"
#include "lib/judging.h"
#include "lib/kernel.h"
#include "lib/networks.h"
#include "lib/verdict.h"

#define EADDRINUSE	 98
#define SOCK_DGRAM	 2
#define SOL_SOCKET	 1
#define SO_BINDTOIFINDEX 62
#define LOOPBACK	 1 /* its index in every network namespace */
#define LOOPBACK_V4	 0x7f000001

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

/* What the kernel takes the destination for: connecting to "any" means this host. */
static __always_inline void read_destination(struct bpf_sock_addr *ctx, bool v6,
					     struct ip_addr *addr)
{
	read_addr(ctx, v6, addr);
	if (addr_is_zero(addr))
		addr->word[3] = bpf_htonl(1);
	else if (is_any(addr))
		addr_set_v4(addr, bpf_htonl(LOOPBACK_V4));
}

/* Nothing about the socket leads its packets elsewhere than others' to the same address. */
static __always_inline bool is_plain(struct bpf_sock_addr *ctx, bool v6)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || sk->bound_dev_if || sk->mark)
		return false;
	if (v6)
		return !(sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3]);
	return !sk->src_ip4;
}

/* A socket of the host has this address and port, from before they were published. */
static __always_inline bool is_held(struct bpf_sock_addr *ctx, const struct ip_addr *addr, bool tcp)
{
	struct bpf_sock_tuple key = {};
	struct bpf_sock *socket;

	__builtin_memcpy(key.ipv6.saddr, addr, sizeof(key.ipv6.saddr));
	__builtin_memcpy(key.ipv6.daddr, addr, sizeof(key.ipv6.daddr));
	key.ipv6.dport = ctx->user_port;
	if (tcp)
		socket = bpf_sk_lookup_tcp(ctx, &key, sizeof(key.ipv6), BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_sk_lookup_udp(ctx, &key, sizeof(key.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

/*
 * Published everywhere, and the container that answers has no IPv6. `asked` is the host's by what the last
 * command saw, as no table can be asked here. Of a link-local one nobody says here on which link it is meant.
 */
static __always_inline struct port *of_ipv4_only(struct bpf_sock_addr *ctx,
						 const struct ip_addr *asked, __u8 proto)
{
	__be16 number = ctx->user_port;

	if (addr_is_v4(asked) || (!addr_is_loopback(asked) && !address_is_known(asked)))
		return NULL;
	if (!is_bound_everywhere(6, number, proto) || port_find_exact(asked, number, proto) ||
	    port_find_any(true, number, proto))
		return NULL;
	if (!is_plain(ctx, true) || socket_device(ctx) || socket_is_v6only(ctx, proto) ||
	    is_held(ctx, asked, proto == IPPROTO_TCP))
		return NULL;
	return port_find_any(false, number, proto);
}

/* A stream to a loopback address. */
static __always_inline struct port *of_loopback(struct bpf_sock_addr *ctx, bool v6,
						const struct ip_addr *asked)
{
	struct host *facts = host_facts();
	__be16 number = ctx->user_port;
	struct port *port;

	/* By whom or for what a packet is sent may decide where it goes, but never for a loopback address. */
	if (!facts || facts->flags & HOST_STEERED)
		return NULL;
	/* A bound port could be in use with the container already, by way of another published port.
	 * MPTCP asks another socket than this one for its peer. */
	if (!addr_is_loopback(asked) || !is_plain(ctx, v6) || ctx->sk->src_port ||
	    socket_is_mptcp(ctx))
		return NULL;
	port = port_find_exact(asked, number, IPPROTO_TCP);
	return port ? port : port_find_any(!addr_is_v4(asked), number, IPPROTO_TCP);
}

/* The address that the kernel would send from. */
static __always_inline void source_of(const struct ip_addr *asked, struct ip_addr *source)
{
	*source = *asked;
	if (addr_is_v4(asked) && addr_is_loopback(asked))
		addr_set_v4(source, bpf_htonl(LOOPBACK_V4));
}

/* Points the socket at the container; it keeps in mind what was asked for. */
static __always_inline void point(struct bpf_sock_addr *ctx, bool v6, const struct ip_addr *asked,
				  const struct port *port)
{
	struct socket socket = {.addr = *asked, .port = ctx->user_port};
	struct socket_key key = {};
	struct socket *before;

	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = port->addr;
	key.port = port->port;
	/* A socket that asks one container by two published ports could not tell the answers apart. */
	before = ctx->type == SOCK_DGRAM ? bpf_map_lookup_elem(&sockets, &key) : NULL;
	if (before && (!addr_equal(&before->addr, asked) || before->port != socket.port))
		return;
	bpf_map_update_elem(&sockets, &key, &socket, BPF_ANY);
	write_addr(ctx, v6, &port->addr);
	ctx->user_port = port->port;
}

/* The socket goes to this address itself, where it may have been pointed before. */
static __always_inline void forget(struct bpf_sock_addr *ctx, const struct ip_addr *addr)
{
	struct socket_key key = {.addr = *addr};

	key.cookie = bpf_get_socket_cookie(ctx);
	key.port = ctx->user_port;
	bpf_map_delete_elem(&sockets, &key);
}

static __always_inline struct port *published(struct bpf_sock_addr *ctx, bool v6,
					      const struct ip_addr *asked)
{
	struct port *port = NULL;
	struct ip_addr source;
	__u8 proto = ctx->protocol;

	if (!port_is_reserved(ctx->user_port, proto))
		return NULL;
	if (proto == IPPROTO_TCP)
		port = of_loopback(ctx, v6, asked);
	if (!port && v6)
		port = of_ipv4_only(ctx, asked, proto);
	source_of(asked, &source);
	return port && may_be_pointed(port, &source, asked, ctx) ? port : NULL;
}

/*
 * A socket that is bound to a device takes an answer from an address of that device, though it comes over
 * loopback: the kernel's routes say so. Ours has another route, so the socket is bound to the loopback device
 * instead, by which it reaches the address as well. Whether that is the host's, bind() tells: it fails else.
 */
static __always_inline void rebind(struct bpf_sock_addr *ctx, bool v6, const struct ip_addr *asked)
{
	struct sockaddr_in6 source6 = {.sin6_family = AF_INET6};
	struct sockaddr_in source = {.sin_family = AF_INET};
	int loopback = LOOPBACK;
	int failed;

	if (!addr_is_v4(asked) || addr_is_loopback(asked) || !ctx->sk || !ctx->sk->bound_dev_if ||
	    ctx->sk->bound_dev_if == LOOPBACK || !address_is_known(asked) ||
	    !port_find(asked, ctx->user_port, ctx->protocol))
		return;
	if (v6) {
		__builtin_memcpy(&source6.sin6_addr, asked, sizeof(source6.sin6_addr));
		failed = bpf_bind(ctx, (struct sockaddr *)&source6, sizeof(source6));
	} else {
		source.sin_addr.s_addr = asked->word[3];
		failed = bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
	}
	/* Fails for a process that may not bind a socket twice. */
	if (!failed)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &loopback, sizeof(loopback));
}

/* The port that the socket has; 0: none yet. */
static __always_inline __be16 own_port(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_htons(sk->src_port) : 0;
}

static __always_inline int connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct ip_addr asked;
	struct port *port;

	if (!of_the_host(ctx))
		return 1;
	read_destination(ctx, v6, &asked);
	port = published(ctx, v6, &asked);
	if (port) {
		point(ctx, v6, &asked, port);
		return 1;
	}
	forget(ctx, &asked);
	rebind(ctx, v6, &asked);
	host_port_choose(ctx, v6, &asked, own_port(ctx));
	return 1;
}

static __always_inline bool names_source(struct bpf_sock_addr *ctx)
{
	return ctx->msg_src_ip6[0] | ctx->msg_src_ip6[1] | ctx->msg_src_ip6[2] |
	       ctx->msg_src_ip6[3];
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct port *port = NULL;
	struct ip_addr asked;

	if (!of_the_host(ctx))
		return 1;
	read_destination(ctx, v6, &asked);
	if (v6 && addr_is_v4(&asked))
		forget(ctx, &asked);
	else if (v6 && !names_source(ctx))
		port = published(ctx, true, &asked);
	if (port)
		point(ctx, true, &asked, port);
	else
		host_port_assert(ctx, &asked, own_port(ctx));
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

/* Would the kernel refuse it if a socket were bound to each published port? */
static __always_inline bool clashes(struct bpf_sock_addr *ctx, const struct ip_addr *addr)
{
	__be16 number = ctx->user_port;
	__u8 proto = ctx->protocol;
	bool v4 = addr_is_v4(addr);
	struct port *port;

	/* A published port takes nothing that is sent to a group. */
	if (addr_is_group(addr))
		return false;
	if (!is_any(addr)) {
		port = port_find_exact(addr, number, proto);
		return (port && !port->shared) || is_bound_everywhere(v4 ? 4 : 6, number, proto);
	}
	if (!v4 && is_bound(6, number, proto))
		return true;
	return (v4 || !socket_is_v6only(ctx, proto)) && is_bound(4, number, proto);
}

static __always_inline int bind(struct bpf_sock_addr *ctx, bool v6)
{
	struct ip_addr addr;

	if (!ctx->user_port || !of_the_host(ctx) ||
	    !port_is_reserved(ctx->user_port, ctx->protocol))
		return 1;
	read_addr(ctx, v6, &addr);
	if (!clashes(ctx, &addr))
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
