/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a backend answers to somebody outside who has asked by another host goes straight to him, as from what he has asked
 * (direct server return). By the other host, as without that, go what it has to see of the connection, its beginning and
 * its end, and now and then what is neither: so its own table says what becomes of it, and nobody has to tell it. So does
 * what has no other way.
 */
#pragma once
#include "lib/exits.h"
#include "lib/networks.h"
#include "lib/overlay.h"
#include "lib/quotas.h"
#include "lib/routes.h"
#include "lib/xfrm.h"

/* Has the other host seen enough? All fragments go as the first one does. An error quotes what that host has made of the
 * client's packet, and nobody else knows the way back. */
static __always_inline bool goes_straight(const struct packet *p, struct caller *caller)
{
	__u64 now, quiet;

	if (!caller->port || icmp_is_error(p))
		return false;
	if (p->fragment == FRAGMENT_LATER)
		return caller->told;
	now = bpf_ktime_get_coarse_ns();
	quiet = caller->told ? now - caller->told : 0;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (caller->told && !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			return true;
	} else if (caller->told && quiet < config.timeout_udp_exchange * SECOND / 4) {
		return true;
	} else if (quiet > config.timeout_udp * SECOND) {
		/* There may be another one by now from the same port, which has asked something else. */
		caller->port = 0;
	}
	caller->told = now;
	return false;
}

/* NO_VERDICT: it has no way, or an IPsec policy may be about it, or it has to be cut. */
__noinline int straight(struct __sk_buff *skb, struct packet *p, const struct network *net,
			const struct caller *caller)
{
	struct scratch *room = scratch();
	int route;

	if (!p || !net || !caller || !room)
		return TC_ACT_SHOT;
	if (p->ttl <= 1 || p->forwarded || xfrm_is_asked() || addr_is_unusable(&p->tuple.src))
		return NO_VERDICT;
	room->leaving = p->tuple;
	room->leaving.src = caller->addr;
	room->leaving.sport = caller->port;
	route = route_find(skb, p, net, &room->leaving, &room->fib);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED && (is_ipv6(p) || p->dont_fragment))
		return answer_error(skb, p, is_ipv6(p) ? &net->gateway6 : &net->gateway4,
				    room->fib.mtu_result);
	if (!route_leads_out(route) || device_find(room->fib.ifindex, DEVICE_GATEWAY))
		return NO_VERDICT;
	if (rewrite_tuple(skb, p, &room->leaving, p->ttl - 1))
		return drop(skb, DROP_REWRITE);
	return to_outside(skb, &room->fib);
}
