// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reached by a tail call: what a container sends to its resolver's address. */
#include "lib/names.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int resolve(struct __sk_buff *skb)
{
	struct long_name_key long_name = {};
	struct name_count_key network = {};
	struct subnet_key subnet = {};
	struct name_set_key set = {};
	struct name_key name = {};

	/* A map that no program uses is taken for one of an upgrade that came to nothing. */
	if (!name_room() || !resolver_of(skb->ifindex) || bpf_map_lookup_elem(&names, &name) ||
	    bpf_map_lookup_elem(&long_names, &long_name) || bpf_map_lookup_elem(&name_sets, &set) ||
	    bpf_map_lookup_elem(&subnets, &subnet) || bpf_map_lookup_elem(&name_counts, &network))
		return drop(skb, DROP_TAIL);
	return go_on(skb, TAIL_ASK);
}
