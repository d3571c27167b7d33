// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Packets that are dropped: where, and why; and whose they were, if a packet program did it. For bcc. */
#include "device.h"

#define IPV4	 0x0008 /* ETH_P_IP as it stands in a packet */
#define ETH_HLEN 14
#define TCP	 6
#define UDP	 17

struct drop {
	struct place place;
	u64 location;
	u32 reason;
	u32 pad;
};

BPF_PERCPU_HASH(drops, struct drop, u64, 10240);

#ifdef COUNTERS /* the pinned map of the packet programs: they are loaded */

struct counted {
	u64 packets;
	u64 bytes;
};

/* What the counters of this processor were when a packet was looked at last. */
struct seen {
	u64 packets[REASON_COUNT];
	u32 grown; /* counters, this time: in memory, or the verifier would look at every combination of them */
	u32 last;
};

/* What was dropped by a packet program, for its reason. Addresses are as in the packet, a port is 0 where there is none. */
struct refused {
	struct place place;
	u32 reason;
	u16 port; /* of the destination, network byte order */
	u8 version;
	u8 protocol;
	u8 source[16];
	u8 destination[16];
};

BPF_TABLE_PINNED("percpu_array", u32, struct counted, counters, REASON_COUNT, COUNTERS);
BPF_PERCPU_ARRAY(seen, struct seen, 1);
BPF_HASH(refused, struct refused, u64, 10240);

/* A program counts a packet and drops it on one processor, so the counter that has grown there tells the reason. 0: none
 * has, the packet was not dropped but used; or several have, as what is dropped before it has a sk_buff does not come by. */
static __always_inline u32 grown(void)
{
	u32 zero = 0;
	struct seen *before = seen.lookup(&zero);

	if (!before)
		return 0;
	before->grown = 0;
	for (u32 reason = FIRST_DROP; reason < REASON_COUNT; reason++) {
		u32 key = reason;
		struct counted *now = counters.lookup(&key);

		if (now && now->packets != before->packets[reason]) {
			before->packets[reason] = now->packets;
			before->last = reason;
			before->grown++;
		}
	}
	return before->grown == 1 ? before->last : 0;
}

/* Whether it has IP at this place. Fills in addresses and port. */
static __always_inline int read_headers(void *ip, u16 protocol, struct refused *refused)
{
	u16 fragment = 0;
	u8 first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), ip);
	refused->version = first >> 4;
	if (refused->version != (protocol == IPV4 ? 4 : 6))
		return 0;
	if (refused->version == 4) {
		bpf_probe_read_kernel(&refused->protocol, 1, ip + 9);
		bpf_probe_read_kernel(refused->source, 4, ip + 12);
		bpf_probe_read_kernel(refused->destination, 4, ip + 16);
		bpf_probe_read_kernel(&fragment, sizeof(fragment), ip + 6);
		ip += (first & 15) * 4;
	} else {
		bpf_probe_read_kernel(&refused->protocol, 1, ip + 6);
		bpf_probe_read_kernel(refused->source, 16, ip + 8);
		bpf_probe_read_kernel(refused->destination, 16, ip + 24);
		ip += 40;
	}
	if ((refused->protocol == TCP || refused->protocol == UDP) && !(fragment & 0xff1f))
		bpf_probe_read_kernel(&refused->port, sizeof(refused->port), ip + 2);
	return 1;
}

static __always_inline void note_refused(void *skb, struct place *place, u16 protocol)
{
	struct refused key;
	void *head = pointer_at(skb, SKB_HEAD);
	u16 offset = 0;

	__builtin_memset(&key, 0, sizeof(key));
	key.reason = grown();
	if (!key.reason)
		return;
	key.place = *place;
	bpf_probe_read_kernel(&offset, sizeof(offset), skb + SKB_NETWORK_HEADER);
	if (!read_headers(head + offset, protocol, &key)) {
		/* At XDP the stack has not yet said where it is. */
		bpf_probe_read_kernel(&offset, sizeof(offset), skb + SKB_MAC_HEADER);
		if (!read_headers(head + offset + ETH_HLEN, protocol, &key))
			key.version = 0;
	}
	refused.atomic_increment(key);
}

#endif

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
#ifdef COUNTERS
	if (drop.reason == BY_TC_INGRESS || drop.reason == BY_TC_EGRESS || drop.reason == BY_XDP ||
	    drop.reason == UNNAMED)
		note_refused(skb, &drop.place, protocol);
#endif
	if (drop.place.netns) {
		count = drops.lookup_or_try_init(&drop, &zero);
		if (count)
			++*count;
	}
	return 0;
}
