/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a client outside has asked, the address and port of the host that it came by, said to the host of the backend that it
 * was given: so that one can answer in its place (direct server return). It stands behind the packet's end, where Ethernet
 * has padding, which everybody else passes over; and the frame's source MAC, which no client can choose, says that it is
 * there. It adds nothing to a checksum that a device makes of all that follows a header.
 */
#pragma once
#include "lib/callers.h"
#include "lib/rewrite.h"

/* "DSR" behind the two bits of an address of one's own making (IEEE 802, 8.4.2) */
static __always_inline void asked_mark(__u8 *mac)
{
	mac[0] = 0x02;
	mac[1] = 0x00;
	mac[2] = 0x00;
	mac[3] = 'D';
	mac[4] = 'S';
	mac[5] = 'R';
}

static __always_inline bool asked_is_marked(const __u8 *mac)
{
	__u8 mark[ETH_ALEN];

	asked_mark(mark);
	return mac_equal(mac, mark);
}

/* Where nothing stands behind the packet, the source MAC has the mark of what has been asked: bits that no host's own has,
 * four bytes. */
static __always_inline void mark_write(__u8 *mac, __u32 mark)
{
	mac[0] = 0x06;
	mac[1] = 'M';
	__builtin_memcpy(mac + 2, &mark, sizeof(mark));
}

static __always_inline __u32 mark_read(const __u8 *mac)
{
	__u32 mark;

	__builtin_memcpy(&mark, mac + 2, sizeof(mark));
	return mac[0] == 0x06 && mac[1] == 'M' ? mark : 0;
}

/* Appends what is in room->asked. True: it is there. */
static __always_inline bool asked_append(struct __sk_buff *skb, struct scratch *room)
{
	__u32 length = skb->len;

	room->asked.balance = 0;
	room->asked.balance =
		fold(bpf_csum_diff(NULL, 0, (__be32 *)&room->asked, sizeof(room->asked), 0));
	return !bpf_skb_change_tail(skb, length + sizeof(room->asked), 0) &&
	       !bpf_skb_store_bytes(skb, length, &room->asked, sizeof(room->asked), 0);
}

/* What the other host says of what has been asked is in room->asked, or else no port, and its mark in room->mark. `source`:
 * of the frame in the tunnel. It stays where it is, as padding does: the kernel cuts nothing off what has been in a tunnel. */
static __always_inline void asked_hear(struct __sk_buff *skb, const struct packet *p,
				       struct scratch *room, const __u8 *source)
{
	__u32 end = skb->len - sizeof(room->asked);

	room->mark = mark_read(source);
	if (!asked_is_marked(source) || end < L3 + p->length ||
	    bpf_skb_load_bytes(skb, end, &room->asked, sizeof(room->asked)))
		room->asked.port = 0;
	else
		room->mark = mark_of(&room->asked.addr, room->asked.port);
}
