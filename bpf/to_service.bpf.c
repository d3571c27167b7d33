// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Reached by a tail call: what begins a connection to a service, by its address or its published port. A backend gets it,
 * here or on another host; if none is up, the sender is told so at once. In the scratch memory are the parsed packet, the
 * service as a published port, the client's network, and who the client is, as in from_endpoint. So is what another host sends
 * back, as the client's port is another's there: then the network's number (taken.h).
 */
#include "lib/inbound.h"
#include "lib/links.h"
#include "lib/overlay.h"
#include "lib/services.h"
#include "lib/tally.h"
#include "lib/taken.h"
#include "lib/virtual.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Back where it came from: what is at a device's egress is the host's, and arrives there. */
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *p)
{
	if (rewrite_macs(skb, p->src_mac, p->dst_mac) || !answer_is_admitted(skb))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, p->at_egress ? BPF_F_INGRESS : 0);
}

/* A later fragment does not say of which kind it is, but an answer's identifier stands elsewhere. */
static __always_inline bool asks_for_echo(const struct packet *p)
{
	if (!is_icmp(p->tuple.proto) || !packet_has_ports(p))
		return false;
	return p->fragment == FRAGMENT_LATER ? !p->tuple.dport : !is_echo_reply(p);
}

/* Any address answers an echo, whoever is behind it. */
static __always_inline int answer_echo(struct __sk_buff *skb, const struct packet *p)
{
	if (rewrite_into_echo_reply(skb, p) || rewrite_macs(skb, p->src_mac, p->dst_mac))
		return drop(skb, DROP_REWRITE);
	if (!answer_is_admitted(skb))
		return drop(skb, DROP_BANDWIDTH);
	count(skb, ANSWERED);
	return bpf_redirect(skb->ifindex, p->at_egress ? BPF_F_INGRESS : 0);
}

/* What came over the loopback device, or without an Ethernet header, the host's own stack answers, in which nobody has the
 * port either. */
static __always_inline int no_backend(struct __sk_buff *skb, struct packet *p, __u32 client)
{
	bool tcp = p->tuple.proto == IPPROTO_TCP;

	drop(skb, DROP_NO_BACKEND);
	if (p->lacks || (client == PARTY_HOST && !p->at_egress))
		return disown(skb, p, client);
	if (client == PARTY_OUTSIDE && p->fragment == FRAGMENT_FIRST)
		fragment_disown(p, client, BEGIN_REFUSED);
	if (tcp ? rewrite_into_reset(skb, p)
		: rewrite_into_error(skb, p, &p->tuple.dst, PORT_CLOSED))
		return TC_ACT_SHOT;
	return send_back(skb, p);
}

/* May a member ask the backend, as by that one's own address? */
static __always_inline bool member_may_ask(struct packet *p, const struct network *net,
					   const struct ip_addr *backend)
{
	struct ip_addr asked = p->tuple.dst;
	bool may;

	p->tuple.dst = *backend;
	may = members_may_talk(net, p);
	p->tuple.dst = asked;
	return may;
}

/*
 * The client's connection from the same port is over, or nobody has answered it. If it led to the same backend it starts
 * over, as one to a published port does: that spares making both of its entries anew. Else it is forgotten: NULL.
 */
static __always_inline struct conn *starts_over(const struct packet *p, const struct scratch *room,
						const struct backend *backend, __u32 number,
						__u32 flags)
{
	const struct port *asked = &room->published;
	struct conn *conn = conn_find(&p->tuple);

	if (conn && backend && conn->from_endpoint == room->sides.client_endpoint &&
	    conn->to_network == asked->network && conn->to_endpoint == backend->endpoint &&
	    conn->other.sport == asked->port &&
	    (conn->flags & (CONN_COUNTED | CONN_DSR)) == flags &&
	    addr_equal(&conn->other.src, backend_addr(backend, is_ipv6(p))) &&
	    conn->backend == number)
		return conn;
	conn_forget(&p->tuple);
	return NULL;
}

/*
 * Is a backend on another host asked in the name of this one? Out of an encrypted tunnel comes what members and hosts send,
 * and nothing else; and where members may not talk to each other the other host takes nothing from one. What is published
 * is for everybody.
 */
static __always_inline bool is_hidden(const struct port *asked, const struct network *net,
				      __u32 network, const struct backend *backend, bool virtual)
{
	struct overlay *overlay;

	if (backend->endpoint != PARTY_PEER)
		return false;
	if (network == asked->network)
		return !virtual && !(net->flags & NETWORK_ICC);
	overlay = overlay_find(asked->network);
	return overlay && overlay->transport == TRANSPORT_WIREGUARD;
}

/* The first packet of the connection, NULL: it has just been opened. The host itself asks a backend now, or somebody outside
 * by this host: an answer is not for another host by which the same has been asked (else nat_open() has seen to that). */
static __always_inline int forward_first(struct __sk_buff *skb, struct packet *p,
					 struct scratch *room, const struct network *net,
					 struct conn *conn, __u32 network, __u32 client)
{
	if (conn && !is_container(client) && (net->flags & NETWORK_OVERLAY)) {
		room->sides.other = conn->other;
		bpf_map_delete_elem(&callers, &room->sides.other);
	}
	if (!conn)
		conn = conn_opened(&p->tuple);
	if (!network)
		return inbound_known(skb, p, conn, client);
	return conn ? forwarded(skb, forward(skb, p, network_find(network), conn))
		    : drop(skb, DROP_CONN_TABLE);
}

static __always_inline int refuse_client(struct __sk_buff *skb, struct packet *p, __u32 network,
					 __u32 client, int reason)
{
	if (network || p->at_egress)
		return refused(skb, p, network ? network_find(network) : NULL, reason);
	return refuse_opening(skb, p, client, reason);
}

static __always_inline int client_asks(struct __sk_buff *skb)
{
	struct scratch *room = scratch();
	__u32 network, client, service, number, flags;
	struct backend *backend;
	struct conn *conn = NULL;
	struct service *asked;
	struct network *net;
	struct packet *p;
	bool virtual, hidden;
	int reason = 0;

	if (!room)
		return drop(skb, DROP_DEVICE);
	p = &room->packet;
	if (p->by_peer)
		return take_another(skb, p, room);
	service = room->published.endpoint;
	network = room->sides.client_network;
	client = room->sides.client_endpoint;
	net = network_find(room->published.network);
	asked = service_find(service);
	if (!net || !asked)
		return refuse_client(skb, p, network, client, DROP_STALE);
	virtual = addr_equal(&p->tuple.dst, &room->published.addr);
	if (virtual && asks_for_echo(p))
		return answer_echo(skb, p);
	if (!packet_has_ports(p) || is_icmp(p->tuple.proto))
		return drop(skb, DROP_PROTOCOL);
	if (p->fragment == FRAGMENT_LATER)
		return drop(skb, DROP_FRAGMENT);
	if (virtual && is_tcp_answer(p))
		return drop(skb, DROP_NO_CONN);
	if (!port_admits(&room->published, &p->tuple.src))
		return refuse_client(skb, p, network, client, DROP_DENIED);
	number = service_choose(p);
	backend = number ? backend_find(number) : NULL;
	service_counted(service, backend);
	flags = asked->choice == CHOICE_LEAST ? CONN_COUNTED : 0;
	hidden = backend && is_hidden(&room->published, net, network, backend, virtual);
	if ((asked->flags & SERVICE_DSR) && client == PARTY_OUTSIDE && backend &&
	    backend->endpoint == PARTY_PEER && !hidden)
		flags |= CONN_DSR;
	if (p->reopens)
		conn = starts_over(p, room, backend, number, flags);
	if (!backend)
		return no_backend(skb, p, client);
	if (virtual && is_container(client) &&
	    !member_may_ask(p, net, backend_addr(backend, is_ipv6(p))))
		return drop(skb, DROP_ICC);
	if (!conn)
		reason = nat_open_service(skb, p, number, flags, hidden);
	service_counted(number, !reason);
	if (reason)
		return refuse_client(skb, p, network, client, reason);
	return forward_first(skb, p, room, net, conn, network, client);
}

SEC("tc")
int to_service(struct __sk_buff *skb)
{
	int verdict = client_asks(skb);
	struct scratch *room = scratch();

	/* What the hook before has parsed: a container's is counted, if it is refused. */
	return room && room->packet.watched ? tally(skb, &room->packet, verdict) : verdict;
}
