/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Headers of protocols, as far as the kernel's own files do not have them for programs. */
#pragma once
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/icmpv6.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>

/* linux/if_arp.h and linux/icmp.h drag in the C library: what is needed of them. */
#define ARPHRD_ETHER	   1
#define ARPOP_REQUEST	   1
#define ARPOP_REPLY	   2
#define ICMP_ECHOREPLY	   0
#define ICMP_DEST_UNREACH  3
#define ICMP_REDIRECT	   5
#define ICMP_ECHO	   8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

struct arp_body {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender __attribute__((packed));
	__u8 target_mac[6];
	__be32 target __attribute__((packed));
} __attribute__((packed));

/* The first eight bytes of ICMP and ICMPv6 (RFC 792, RFC 4443); id only in an echo. */
struct icmp_header {
	__u8 type, code;
	__sum16 checksum;
	__be16 id, sequence;
};

/* Why an ICMP error is sent: 0, no hop was left; PORT_CLOSED, nobody listens; PROHIBITED, a
 * policy refuses it; else the packet is larger than that. */
#define PORT_CLOSED 0x10000
#define PROHIBITED  0x20000

static __always_inline void error_kind_v4(struct icmp_header *header, __u32 mtu)
{
	header->type = mtu ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED;
	/* Prohibited (RFC 1812, 5.2.7.1), fragmentation needed, or port unreachable (RFC 792). */
	header->code = mtu == PROHIBITED ? 13 : mtu == PORT_CLOSED ? 3 : mtu ? 4 : 0;
}

/* Destination unreachable, packet too big, time exceeded (RFC 4443). */
static __always_inline void error_kind_v6(struct icmp_header *header, __u32 mtu)
{
	header->type = mtu == PORT_CLOSED || mtu == PROHIBITED ? 1 : mtu ? 2 : 3;
	header->code = mtu == PORT_CLOSED ? 4 : mtu == PROHIBITED ? 1 : 0;
}

/* ICMPv6 neighbour solicitation and advertisement (RFC 4861, 4.3 and 4.4), one option. */
struct nd_body {
	struct icmp6hdr header;
	struct in6_addr target;
	__u8 option, option_len;
	__u8 mac[6];
};

/* Of a VXLAN tunnel (RFC 7348, 5). */
struct vxlan_header {
	__be32 flags;
	__be32 vni; /* and a byte that is reserved */
};

/* What the client of a service has asked, behind a packet in a tunnel (asked.h). Its sum, as of the Internet checksum, is
 * zero. */
struct asked {
	__sum16 balance;
	__be16 port;
	struct ip_addr addr;
};

/* All that is before an inner packet, but for the outer IP header. */
struct vxlan_link {
	struct udphdr udp;
	struct vxlan_header vxlan;
	struct ethhdr inner;
} __attribute__((packed));
