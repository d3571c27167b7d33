// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reached by a tail call: what an upstream says to a question of a container's. */
#include "lib/names.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int answered(struct __sk_buff *skb)
{
	return drop(skb, DROP_TAIL);
}
