// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * How long packets take from one traced device to another. For bcc.
 *
 * A packet is known by the address of its sk_buff: it stays the same over veth pairs, bridges and redirections. Not all
 * ends of packets can be seen, but where new ones come from can: one at the address of another makes that one forgotten.
 */
#include "device.h"

#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86dd

/* Nothing is on its way for so long: this is another packet, whose beginning was not seen. */
#define LONGEST 1000000000ULL

struct device {
	u32 label;
	u32 in_focus;
};

struct start {
	u64 at;
	struct device device;
};

/* Times of [2^power, 2^(power + 1)) ns. */
struct bucket {
	u32 sender;
	u32 receiver;
	u32 power;
};

BPF_HASH(devices, struct place, struct device, DEVICES);
BPF_TABLE("lru_hash", u64, struct start, travelling, 65536);
BPF_PERCPU_HASH(counts, struct bucket, u64, 16384);

static __always_inline bool between_containers(void *device)
{
	void *kind = pointer_at(pointer_at(device, DEVICE_LINK_OPS), LINK_OPS_KIND);
	u32 beginning = number_at(kind, 0);

	return beginning == *(u32 *)"veth" || beginning == *(u32 *)"netkit" ||
	       beginning == *(u32 *)"bridge";
}

/* net_dev_queue(skb): a stack has given a packet to a device. */
int queued(struct bpf_raw_tracepoint_args *ctx)
{
	struct start start = {.at = bpf_ktime_get_ns()};
	u64 packet = ctx->args[0];
	struct place place = {};
	struct device *device;

	place_of(pointer_at((void *)packet, SKB_DEVICE), &place);
	device = devices.lookup(&place);
	if (device) {
		start.device = *device;
		travelling.update(&packet, &start);
	} else if (!number_at((void *)packet, SKB_IIF)) {
		/* It has not come in anywhere: somebody else's new packet. */
		travelling.delete(&packet);
	}
	return 0;
}

/* netif_receive_skb(skb): a device has taken a packet in. */
int received(struct bpf_raw_tracepoint_args *ctx)
{
	u64 packet = ctx->args[0];

	/* Between two containers are pairs of devices and bridges. From other devices come other packets. */
	if (travelling.lookup(&packet) &&
	    !between_containers(pointer_at((void *)packet, SKB_DEVICE)))
		travelling.delete(&packet);
	return 0;
}

/* The filter of a packet socket at a traced device: a packet has come in there. The socket wants none of them. */
int arrived(struct __sk_buff *skb)
{
	u64 now = bpf_ktime_get_ns(), packet = (u64)skb, zero = 0, time, *count;
	struct bucket bucket = {};
	struct place place = {};
	struct device *device;
	struct start *start;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	start = travelling.lookup(&packet);
	if (!start)
		return 0;
	time = now - start->at;
	place_of(pointer_at((void *)packet, SKB_DEVICE), &place);
	device = devices.lookup(&place);
	if (device && time < LONGEST && (device->in_focus || start->device.in_focus)) {
		bucket.sender = start->device.label;
		bucket.receiver = device->label;
		bucket.power = bpf_log2l(time) - 1;
		count = counts.lookup_or_try_init(&bucket, &zero);
		if (count)
			++*count;
	}
	travelling.delete(&packet);
	return 0;
}
