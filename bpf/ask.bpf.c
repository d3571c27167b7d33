// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reached by a tail call: a question for a name that is not ours, which an upstream is to answer. */
#include "lib/names.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int ask(struct __sk_buff *skb)
{
	struct upstream_key server = {.ifindex = skb->ifindex};
	struct question_key question = {.endpoint = skb->ifindex};

	/* A map that no program uses is taken for one of an upgrade that came to nothing. */
	bpf_map_delete_elem(&upstreams, &server);
	bpf_map_delete_elem(&questions, &question);
	return drop(skb, DROP_TAIL);
}
