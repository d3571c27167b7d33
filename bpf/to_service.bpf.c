// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reached by a tail call: what begins a connection to a service. */
#include "lib/services.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int to_service(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	struct affinity_key affinity = {};
	struct endpoint_key loaded = {};
	struct slots_key slot = {};
	struct service *service;

	if (!room)
		return drop(skb, DROP_DEVICE);
	service = service_find(room->sides.server_endpoint);
	if (!service)
		return drop(skb, DROP_STALE);
	service_counted(room->sides.server_endpoint, false);
	slot.table = service->table4;
	if (!backend_find(0) && !bpf_map_lookup_elem(&slots, &slot) &&
	    !bpf_map_lookup_elem(&loads, &loaded) && !bpf_map_lookup_elem(&affinities, &affinity))
		return drop(skb, DROP_NO_BACKEND);
	return drop(skb, DROP_NO_BACKEND);
}
