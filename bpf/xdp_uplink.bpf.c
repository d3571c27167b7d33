// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * XDP on the host's uplinks: sources that a published port's ACL denies, and sources that
 * open too many connections, are dropped before they cost a socket buffer. All that
 * it refuses because of a rule from_uplink would refuse too; so where there is no XDP nothing
 * else changes.
 */
#include "lib/conntrack.h"
#include "lib/networks.h"
#include "lib/ports.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct rate_key);
	__type(value, struct rate);
} rates SEC(".maps");

/* One of the host's own addresses, though it may not be listed yet. */
static __always_inline bool is_local(struct xdp_md *ctx, const struct packet *p, __u32 number)
{
	struct network *net = network_find(number);
	struct bpf_fib_lookup fib = {};

	if (addr_is_linklocal(&p->tuple.dst))
		return linklocal_is_of(ctx->ingress_ifindex, &p->tuple.dst);
	if (address_is_known(&p->tuple.dst))
		return true;
	if (!net)
		return false;
	fib.ifindex = net->ifindex;
	if (is_ipv6(p)) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->tuple.src, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &p->tuple.dst, sizeof(fib.ipv6_dst));
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->tuple.src.word[3];
		fib.ipv4_dst = p->tuple.dst.word[3];
	}
	return bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* May the packet open a connection? An unanswered one, of a logger for example, is open already. */
static __always_inline bool opens(const struct packet *p)
{
	if (p->tuple.proto == IPPROTO_TCP)
		return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return !bpf_map_lookup_elem(&conns, &p->tuple) && !bpf_map_lookup_elem(&pending, &p->tuple);
}

/* Takes a token of the source's bucket; false: there is none. */
static __always_inline bool within_rate(const struct packet *p)
{
	struct rate_key key = {.addr = p->tuple.src};
	struct rate fresh = {}, *rate;
	__u64 now = bpf_ktime_get_ns(), due;

	if (is_ipv6(p)) /* a customer has a /64 at least */
		key.addr.word[2] = key.addr.word[3] = 0;
	rate = bpf_map_lookup_elem(&rates, &key);
	if (!rate) {
		fresh.refilled = now;
		fresh.tokens = config.flood_burst ? config.flood_burst - 1 : 0;
		bpf_map_update_elem(&rates, &key, &fresh, BPF_NOEXIST);
		return true;
	}
	/* After a quiet minute the bucket is as good as full, and the product cannot overflow. */
	due = now - rate->refilled < 60 * SECOND
		      ? (now - rate->refilled) * config.flood_rate / SECOND
		      : config.flood_burst;
	if (due) {
		rate->refilled = now;
		rate->tokens += due;
		if ((__s64)rate->tokens > config.flood_burst)
			rate->tokens = config.flood_burst;
	}
	if (!rate->tokens)
		return false;
	/* Another CPU may have taken the last one since. */
	if ((__s64)__sync_fetch_and_add(&rate->tokens, -1) > 0)
		return true;
	__sync_fetch_and_add(&rate->tokens, 1);
	return false;
}

SEC("xdp")
int xdp_uplink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct packet p = {};
	struct port *port;
	__u32 reason;
	bool denied;

	if (parse_frame(data, end, end - data - L3, false, &p) || p.fragment == FRAGMENT_LATER)
		return XDP_PASS;
	if (p.tuple.proto != IPPROTO_TCP && p.tuple.proto != IPPROTO_UDP)
		return XDP_PASS;
	port = port_find(&p.tuple.dst, p.tuple.dport, p.tuple.proto);
	if (!port)
		return XDP_PASS;
	denied = !port_admits(port, &p.tuple.src);
	if (!denied && (!config.flood_rate || !opens(&p)))
		return XDP_PASS;
	/* A packet that this host merely forwards is neither refused nor counted. */
	if (!is_local(ctx, &p, port->network))
		return XDP_PASS;
	if (denied)
		reason = DROP_DENIED;
	else if (!within_rate(&p))
		reason = DROP_FLOOD;
	else
		return XDP_PASS;
	count_bytes(reason, end - data);
	return XDP_DROP;
}
