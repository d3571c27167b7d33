// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Packets that the kernel drops: where, and why. For bcc. */
#include "device.h"

struct drop {
	struct place place;
	u64 location;
	u32 reason;
	u32 pad;
};

BPF_PERCPU_HASH(drops, struct drop, u64, 10240);

static __always_inline u64 netns_of_socket(void *sk)
{
	return sk ? cookie_of(pointer_at(sk, SOCK_NETNS)) : 0;
}

/* kfree_skb(skb, location, reason, rx_sk): the last argument is younger than the others. */
int dropped(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb = (void *)ctx->args[0];
	struct drop drop = {.location = ctx->args[1], .reason = ctx->args[2]};
	u64 zero = 0, *count;
	u16 protocol = 0;

	bpf_probe_read_kernel(&protocol, sizeof(protocol), skb + SKB_PROTOCOL);
	if (!protocol) /* never was a packet: local sockets, netlink */
		return 0;
	place_of(pointer_at(skb, SKB_DEVICE), &drop.place);
	/* Close to a socket a packet has no device any more, or something else in its place. */
	if (!drop.place.netns)
		drop.place.ifindex = 0;
	if (!drop.place.netns && HAS_RX_SK)
		drop.place.netns = netns_of_socket((void *)ctx->args[3]);
	if (!drop.place.netns)
		drop.place.netns = netns_of_socket(pointer_at(skb, SKB_SOCK));
	if (!drop.place.netns) {
		void *route = (void *)((u64)pointer_at(skb, SKB_ROUTE) & ~7ULL);

		drop.place.netns =
			cookie_of(pointer_at(pointer_at(route, ROUTE_DEVICE), DEVICE_NETNS));
	}
	if (drop.place.netns) {
		count = drops.lookup_or_try_init(&drop, &zero);
		if (count)
			++*count;
	}
	return 0;
}
