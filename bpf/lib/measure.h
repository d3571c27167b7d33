/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How much a packet is, for who counts. */
#pragma once
#include "lib/parse.h"

struct measure {
	__u32 packets, bytes; /* each segment of a large one by itself; from the IP header on */
};

static __always_inline struct measure packet_measure(const struct __sk_buff *skb,
						     const struct packet *p)
{
	__u32 headers = p->l4 - L3 + p->l4_length, bytes = p->length, packets = 1;

	if (skb->gso_size && bytes > headers) {
		packets = (bytes - headers - 1) / skb->gso_size + 1;
		bytes += (packets - 1) * headers;
	}
	return (struct measure){packets, bytes};
}
