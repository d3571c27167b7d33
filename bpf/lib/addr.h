/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Addresses and tuples: what kind an address is, without any table. Byte order is the wire's; an IPv4
 * address is in its mapped form wherever it is a struct ip_addr.
 */
#pragma once
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* The C library's headers, which have these, are not for programs. */
#define AF_INET	 2
#define AF_INET6 10
#define EINVAL	 22

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) |
		(a[5] ^ b[5])) == 0;
}

static __always_inline bool mac_is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

static __always_inline bool addr_equal(const struct ip_addr *a, const struct ip_addr *b)
{
	return ((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		(a->word[3] ^ b->word[3])) == 0;
}

static __always_inline bool addr_is_zero(const struct ip_addr *a)
{
	return (a->word[0] | a->word[1] | a->word[2] | a->word[3]) == 0;
}

static __always_inline bool addr_is_v4(const struct ip_addr *a)
{
	return (a->word[0] | a->word[1]) == 0 && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_set_v4(struct ip_addr *a, __be32 v4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

/* 0.0.0.0, 127/8 and the limited broadcast: never a unicast address on a wire. The rest of 0/8 and 240/4 are, as for
 * the kernel (since 5.3 and 2.6.25), though RFC 6890 has other plans for them. */
static __always_inline bool v4_is_unusable(__be32 v4)
{
	return !v4 || v4 == 0xffffffff || (bpf_ntohl(v4) >> 24) == 127;
}

static __always_inline bool addr_is_loopback6(const struct ip_addr *a)
{
	return (a->word[0] | a->word[1] | a->word[2]) == 0 && a->word[3] == bpf_htonl(1);
}

/* The host's own, which nobody else can be asked under. */
static __always_inline bool addr_is_loopback(const struct ip_addr *a)
{
	if (addr_is_v4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return addr_is_loopback6(a);
}

#define RESOLVER_ADDRESS bpf_htonl(0x7f00000b)

/* 127.0.0.11, where each container's resolver is, as Docker has it. */
static __always_inline bool addr_is_resolver(const struct ip_addr *a)
{
	return a->word[3] == RESOLVER_ADDRESS && addr_is_v4(a);
}

static __always_inline bool v4_is_multicast(__be32 v4)
{
	return (bpf_ntohl(v4) >> 28) == 0xe;
}

static __always_inline bool addr_is_group(const struct ip_addr *a)
{
	return addr_is_v4(a) ? v4_is_multicast(a->word[3])
			     : (a->word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* fe80::/10 */
static __always_inline bool addr_is_linklocal(const struct ip_addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Does no packet of one host to one other beyond its link have this address: the unspecified,
 * loopback, groups, and IPv6's link-local ones? */
static __always_inline bool addr_is_unusable(const struct ip_addr *a)
{
	if (addr_is_v4(a))
		return v4_is_unusable(a->word[3]) || v4_is_multicast(a->word[3]);
	if ((a->word[0] | a->word[1] | a->word[2]) == 0 && bpf_ntohl(a->word[3]) < 2)
		return true;
	return (a->word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000) ||
	       addr_is_linklocal(a);
}

/* The original's tuple seen from the other side. */
static __always_inline void tuple_reverse(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
	to->pad[0] = to->pad[1] = to->pad[2] = 0;
}

static __always_inline bool tuple_equal(const struct tuple *a, const struct tuple *b)
{
	return addr_equal(&a->src, &b->src) && addr_equal(&a->dst, &b->dst) &&
	       a->sport == b->sport && a->dport == b->dport && a->proto == b->proto;
}

static __always_inline bool is_icmp(__u8 proto)
{
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}
