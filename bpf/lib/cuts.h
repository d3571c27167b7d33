/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The rest of a packet that was cut (split.h), while it is on its way back to the device: of whom it is, and which ports
 * it has. It is told from other fragments by its piece of the datagram, which nobody else sends, as the whole
 * has been recorded already.
 */
#pragma once
#include "lib/datagrams.h"

#define CUT_TIMEOUT 1000000000ULL /* ns: its next turn at the device is all that it waits for */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct cut_key);
	__type(value, struct cut);
} cuts SEC(".maps");

/* All of the packet from `from` bytes of its data on will arrive again. Returns 0, or an error. */
static __always_inline int cut_expect(const struct packet *p, __u32 party, __be16 id, __u32 from,
				      struct scratch *room)
{
	fragment_key_of(p, party, &room->cut_key.fragment);
	room->cut_key.fragment.id = id;
	room->cut_key.piece.from = p->fragment_from + from;
	room->cut_key.piece.to = p->fragment_from + p->length - (p->l4 - L3);
	room->cut.since = bpf_ktime_get_ns();
	room->cut.sport = p->tuple.sport;
	room->cut.dport = p->tuple.dport;
	room->cut.has_ports = p->has_ports;
	return bpf_map_update_elem(&cuts, &room->cut_key, &room->cut, BPF_ANY);
}

/* Is the later fragment such a rest? Then it has its ports now, and is no longer waited for. */
__noinline int cut_arrives(struct packet *p, __u32 party)
{
	struct scratch *room = scratch();
	struct cut *cut;

	if (!p || !room || is_ipv6(p))
		return 0;
	fragment_key_of(p, party, &room->cut_key.fragment);
	room->cut_key.piece.from = p->fragment_from;
	room->cut_key.piece.to = p->fragment_to;
	cut = bpf_map_lookup_elem(&cuts, &room->cut_key);
	if (!cut)
		return 0;
	room->cut = *cut;
	/* Who deletes it has it, if it has not been waiting for a rest that was lost. */
	if (bpf_map_delete_elem(&cuts, &room->cut_key) ||
	    bpf_ktime_get_ns() - room->cut.since > CUT_TIMEOUT)
		return 0;
	p->tuple.sport = room->cut.sport;
	p->tuple.dport = room->cut.dport;
	p->has_ports = room->cut.has_ports;
	p->again = 1;
	return 1;
}
