// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tc ingress of the host end of a container's pair of devices: all that a container sends. A
 * packet with a source that is not the sender's is dropped; the rest goes to a member of its network, to the
 * host, to a published port or to the outside.
 */
#include "lib/answers.h"
#include "lib/detours.h"
#include "lib/flows.h"
#include "lib/forward.h"
#include "lib/fragments.h"
#include "lib/groups.h"
#include "lib/lan.h"
#include "lib/links.h"
#include "lib/names.h"
#include "lib/nearby.h"
#include "lib/nat.h"
#include "lib/overlay.h"
#include "lib/served.h"
#include "lib/source.h"
#include "lib/tally.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* It begins a connection: the program that opens those goes on. */
static __always_inline int hand_over(struct scratch *room, __u32 what, int route)
{
	room->opens = what;
	room->route = route;
	return OPENS;
}

/* To a port of the host's that nobody has published. If a container's is mapped to it, it is meant, unless a socket of
 * the host's has come there since. */
__noinline int to_mapped(struct __sk_buff *skb, struct packet *p, const struct device *device,
			 const struct network *net)
{
	struct scratch *room = scratch();

	if (!p || !device || !net || !room)
		return TC_ACT_SHOT;
	if (!(net->flags & NETWORK_MASQUERADE) || p->fragment == FRAGMENT_LATER ||
	    is_tcp_answer(p) || p->ttl <= 1 || !packet_has_ports(p) || !hairpin_leads(&p->tuple) ||
	    host_socket_state(skb, &p->tuple)) {
		detour_to_host(p, device->endpoint);
		return to_own_host(skb, p, device, net);
	}
	return hand_over(room, OPENS_MAPPED, NO_ROUTE_YET);
}

/* To one of the host's own addresses: a published port, or the host itself. */
static __always_inline int to_local(struct __sk_buff *skb, struct packet *p,
				    const struct device *device, const struct network *net,
				    struct scratch *room)
{
	struct port *port = NULL;

	if (packet_has_ports(p) && !(net->flags & NETWORK_INTERNAL))
		port = port_find(&p->tuple.dst, p->tuple.dport, p->tuple.proto);
	if (!port)
		return to_mapped(skb, p, device, net);
	if (host_is_talking(skb, &p->tuple))
		return to_own_host(skb, p, device, net);
	if (port_is_service(port)) {
		if (p->fragment == FRAGMENT_FIRST && fragment_first(skb, p, device->endpoint))
			return drop(skb, DROP_REWRITE);
		return choose_backend(skb, port, device->network, device->endpoint);
	}
	room->published = *port;
	return hand_over(room, OPENS_PUBLISHED, NO_ROUTE_YET);
}

/* A connection to the outside that is not known yet: where `route` leads. */
static __always_inline int to_new_outside(struct __sk_buff *skb, struct packet *p,
					  const struct network *net, struct scratch *room,
					  int route)
{
	/* The first fragment has opened it, or it is not to be. */
	if (p->fragment == FRAGMENT_LATER)
		return drop(skb, DROP_FRAGMENT);
	/* An error or an answer, to nothing that is known. */
	if (icmp_is_error(p) || is_echo_reply(p) || is_tcp_answer(p))
		return drop(skb, DROP_NO_CONN);
	if (!packet_has_ports(p))
		return drop(skb, DROP_PROTOCOL);
	if ((net->flags & NETWORK_MASQUERADE) && !route_source(p, &room->fib, &room->source))
		return drop(skb, DROP_NO_ROUTE);
	return hand_over(room, OPENS_OUTSIDE, route);
}

/* Where there is no outside: does a container answer another's question, or tell that it does not listen? The question
 * has come from the gateway's address. */
__noinline int is_answer(struct __sk_buff *skb, struct packet *p, const struct network *net,
			 __u32 endpoint)
{
	struct scratch *room = scratch();
	struct conn *conn;

	if (!p || !net || !room)
		return 0;
	if (icmp_is_error(p))
		return forward_error(skb, p, net, endpoint) == OF_A_QUESTION;
	/* Before Linux 6.4 what this function was handed is no key of a map. */
	room->probe = p->tuple;
	conn = packet_has_ports(p) ? conn_find(&room->probe) : NULL;
	return conn && (conn->flags & CONN_QUESTION) && conn->from_endpoint == endpoint;
}

/* Away from the network. */
static __always_inline int leave(struct __sk_buff *skb, struct packet *p,
				 const struct device *device, const struct network *net)
{
	const struct ip_addr *gateway = is_ipv6(p) ? &net->gateway6 : &net->gateway4;
	bool at_gateway = addr_equal(&p->tuple.dst, gateway) ||
			  (is_ipv6(p) && addr_equal(&p->tuple.dst, &net->gateway_linklocal));
	struct scratch *room = scratch();
	bool masquerade = net->flags & NETWORK_MASQUERADE;
	struct device *other;
	struct conn *conn;
	int verdict, route;

	if (!room)
		return drop(skb, DROP_DEVICE);
	if (p->forwarded && !source_is_behind(skb, p, device, net))
		return drop(skb, DROP_SPOOFED_ADDR);
	/* A group's address in a frame for one. */
	if (!at_gateway && (addr_is_unusable(&p->tuple.dst) ||
			    (!is_ipv6(p) && p->tuple.dst.word[3] == net->broadcast)))
		return drop(skb, DROP_BAD_ADDR);
	/* A link-local source does not go beyond its link (RFC 4291, 2.5.6), which ends at the host. */
	if (addr_is_linklocal(&p->tuple.src))
		return at_gateway ? to_own_host(skb, p, device, net) : drop(skb, DROP_BAD_ADDR);
	if ((net->flags & NETWORK_INTERNAL) && !at_gateway)
		return drop(skb, DROP_INTERNAL);
	if (net->flags & NETWORK_INTERNAL)
		return is_answer(skb, p, net, device->endpoint) ? go_on(skb, TAIL_ANSWERED)
								: to_own_host(skb, p, device, net);
	if (packet_has_ports(p)) {
		conn = conn_of_client(p, device->endpoint);
		if (conn && conn->from_endpoint == device->endpoint) {
			if (conn->flags & CONN_QUESTION)
				return go_on(skb, TAIL_ANSWERED);
			verdict = leads_outside(conn) ? forward_out(skb, p, net, conn, NO_ROUTE_YET)
						      : forward(skb, p, net, conn);
			if (verdict != NO_VERDICT)
				return verdict;
		} else if (conn) { /* left over from an earlier holder of the address */
			conn_forget(&p->tuple);
		}
	} else if (icmp_is_error(p)) {
		verdict = forward_error(skb, p, net, device->endpoint);
		if (verdict == OF_A_QUESTION)
			return go_on(skb, TAIL_ANSWERED);
		if (verdict != NO_VERDICT)
			return verdict;
	}
	if ((net->flags & NETWORK_HOST_ROUTED) && leads_by_stack(skb, p, device, false))
		return to_own_host(skb, p, device, net);
	route = at_gateway ? NO_ROUTE_YET : route_fit(skb, p, net, NULL, room);
	if (at_gateway || route_is_local(skb, p, net, route))
		return to_local(skb, p, device, net, room);
	if (p->ttl <= 1)
		return answer_error(skb, p, gateway, 0);
	/* What could be cut, if any of it could leave, has not been refused for its size. */
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED && !p->dont_fragment && !packet_has_ports(p))
		return drop(skb, DROP_PROTOCOL);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return answer_error(skb, p, gateway, room->fib.mtu_result);
	if (route == BPF_FIB_LKUP_RET_UNSUPP_LWT && !masquerade)
		return to_new_outside(skb, p, net, room, route);
	if (!route_leads_out(route))
		return to_nowhere(skb, p, device, net, route, masquerade);
	other = device_find(room->fib.ifindex, DEVICE_GATEWAY);
	if (other && other->network != device->network)
		return drop(skb, DROP_ISOLATED);
	if (other)
		return to_next_hop(skb, p, net, device);
	return to_new_outside(skb, p, net, room, route);
}

/* One of its own network, straight; but what came by way of the host's stack is answered so. */
static __always_inline int to_member(struct __sk_buff *skb, struct packet *p,
				     const struct device *device, const struct network *net,
				     const struct endpoint *endpoint)
{
	int said;

	if ((net->flags & NETWORK_HOST_ROUTED) && leads_by_stack(skb, p, device, true)) {
		said = may_reach(skb, p, device, endpoint->number);
		if (said)
			return refused(skb, p, net, said);
		if (rewrite_macs(skb, net->mac, p->src_mac))
			return drop(skb, DROP_REWRITE);
		p->party = PARTY_HOST;
		return to_host(skb, net);
	}
	p->party = endpoint->number;
	if (!members_may_talk(net, p))
		return drop(skb, DROP_ICC);
	said = may_reach(skb, p, device, endpoint->number);
	if (said)
		return refused(skb, p, net, said);
	service_yields(p, endpoint);
	return deliver(skb, p, endpoint, p->src_mac);
}

/* To a service of its network. A verdict of forward.h, unless it begins something. */
static __always_inline int to_its_service(struct __sk_buff *skb, struct packet *p,
					  const struct device *device, const struct network *net,
					  __u32 service)
{
	int verdict = service_known(skb, p, net, device->endpoint);

	if (verdict != NO_VERDICT)
		return verdict;
	/* It does not come back from there. */
	if (p->fragment == FRAGMENT_FIRST && fragment_first(skb, p, device->endpoint))
		return drop(skb, DROP_REWRITE);
	return choose_at(skb, p, device->network, service, device->endpoint);
}

/* A member on another host. What becomes of a datagram's first fragment is not known here: the later ones meet the same. */
static __always_inline int to_remote(struct __sk_buff *skb, struct packet *p,
				     const struct device *device, const struct network *net)
{
	struct scratch *room = scratch();
	int said;

	if (!room)
		return drop(skb, DROP_DEVICE);
	if (!may_send(skb, p, device))
		return drop(skb, DROP_BANDWIDTH);
	room->judgement.concerned = 0;
	said = may_reach(skb, p, device, PARTY_PEER);
	if (said)
		return refused(skb, p, net, said);
	if (p->followed && p->fragment == FRAGMENT_FIRST &&
	    fragment_first(skb, p, device->endpoint))
		return drop(skb, DROP_REWRITE);
	room->sides.client_network = device->network;
	room->sides.client_endpoint = device->endpoint;
	room->sides.key.proto = 0;
	flow_check(room);
	/* Limits and policies are asked for each packet; and what may be a question is looked at. */
	if (device->limited || room->judgement.concerned || p->tuple.dport == DNS_PORT)
		room->flow_is_new = 0;
	return go_on(skb, TAIL_TO_PEER);
}

static __always_inline int container_sends(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *endpoint;
	struct device *device;
	struct network *net;
	bool remote, serves;
	int reason, verdict;

	device = device_find(skb->ifindex, DEVICE_ENDPOINT);
	net = device ? network_find(device->network) : NULL;
	if (!net)
		return drop(skb, DROP_DEVICE);
	reason = packet_parse(skb, p);
	if (net->flags & NETWORK_FLOWS) {
		p->watched = device->network;
		p->sender = device->endpoint;
		p->segment = skb->gso_size;
	}
	if (!reason)
		reason = source_check(p, device, net);
	if (reason)
		return drop(skb, reason);
	if ((net->flags & NETWORK_LAN) && asks_the_link(p))
		return go_on(skb, TAIL_TO_LAN);
	if (p->ethertype == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, p, device, net);
	if (is_ipv6(p) && is_solicitation(p))
		return answer_solicitation(skb, p, device, net);
	if (is_ipv6(p) && is_advertisement(p))
		return absorb_advertisement(skb, p, device);
	p->limited = device->limited;
	if (mac_is_group(p->dst_mac))
		return may_send(skb, p, device) ? to_group(skb, p, device, net)
						: drop(skb, DROP_BANDWIDTH);
	if ((p->tuple.dport == DNS_PORT || p->tuple.dst.word[3] == RESOLVER_ADDRESS) &&
	    is_for_resolver(p, device, net)) {
		p->again = skb->tc_index == AGAIN_MARK;
		return may_send(skb, p, device) ? go_on(skb, TAIL_RESOLVE)
						: drop(skb, DROP_BANDWIDTH);
	}
	endpoint = endpoint_find(device->network, &p->tuple.dst);
	if (endpoint ? net->flags & (NETWORK_VEPA | NETWORK_QUESTIONS) : leads_to_link(p, net))
		return go_on(skb, TAIL_TO_LAN);
	remote = !endpoint && leads_to_peer(skb, p, net, device->network);
	if (!endpoint && !remote && !mac_equal(p->dst_mac, net->mac))
		return may_send(skb, p, device) ? to_router(skb, p, net, device)
						: drop(skb, DROP_BANDWIDTH);
	serves = device->forwarding & ROLE_SERVES;
	/* Only delivery to a member who may be talked to needs no ports, if nobody asks otherwise than straight, nor for
	 * policies. */
	p->followed =
		p->fragment && ((!endpoint && (!remote || is_gateway(net, &p->tuple.dst))) ||
				!(net->flags & NETWORK_ICC) || (net->flags & NETWORK_HOST_ROUTED) ||
				policies_now() || serves || (endpoint && !endpoint->ifindex));
	if (p->followed && p->fragment == FRAGMENT_LATER) {
		reason = fragment_later(skb, p, device->endpoint);
		if (reason == HELD)
			return consume(skb, HELD);
		if (reason)
			return drop(skb, reason);
	}
	if (remote || (!endpoint && answers_caller(skb, p, net, device)))
		return to_remote(skb, p, device, net);
	verdict = NO_VERDICT;
	if (!may_send(skb, p, device))
		verdict = drop(skb, DROP_BANDWIDTH);
	else if (endpoint && !endpoint->ifindex)
		verdict = to_its_service(skb, p, device, net, endpoint->number);
	else if (serves && !p->forwarded)
		verdict = service_answer(skb, p, net, device->endpoint);
	if (verdict != NO_VERDICT)
		;
	else if (!endpoint)
		verdict = leave(skb, p, device, net);
	else
		verdict = to_member(skb, p, device, net, endpoint);
	if (verdict == OPENS)
		return go_on(skb, TAIL_BEGIN);
	/* Whatever becomes of it: the later ones meet the same. */
	if (p->followed && p->fragment == FRAGMENT_FIRST &&
	    first_came(skb, p, device->endpoint, verdict))
		return drop(skb, DROP_REWRITE);
	return forwarded(skb, verdict);
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	int verdict = flow_leaves(skb);
	struct packet *p;

	if (verdict != NO_VERDICT)
		return verdict;
	p = packet_new();
	if (!p)
		return drop(skb, DROP_DEVICE);
	verdict = container_sends(skb, p);
	return p->watched ? tally(skb, p, verdict) : verdict;
}
