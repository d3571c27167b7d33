/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How much a packet is, for who counts. */
#pragma once
#include "lib/parse.h"

struct measure {
	__u32 packets, bytes; /* each segment of a large one by itself; from the IP header on */
};

/* `segment`: bytes of data in each that it is to be cut into; 0: it is not. */
static __always_inline struct measure packet_measure(const struct packet *p, __u32 segment)
{
	__u32 headers = p->l4 - L3 + p->l4_length, bytes = p->length, packets = 1;

	if (segment && bytes > headers) {
		packets = (bytes - headers - 1) / segment + 1;
		bytes += (packets - 1) * headers;
	}
	return (struct measure){packets, bytes};
}
