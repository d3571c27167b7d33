/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: which backend gets a new connection to a virtual address. Once it is opened, only the tables of connections
 * are asked: whatever changes here, it stays where it is.
 */
#pragma once
#include "lib/conntrack.h"
#include "lib/hash.h"
#include "lib/ports.h"
#include "lib/tails.h"
#include "lib/traffic.h"

#define CHUNK 64 /* slots in a row */
#define SLOT_TRIES \
	256 /* slots that are looked at for a backend that is up, until the table is replaced */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slots_key);
	__type(value, struct slots);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

static __always_inline struct service *service_find(__u32 number)
{
	struct service_key key = {.service = number};

	return bpf_map_lookup_elem(&services, &key);
}

static __always_inline struct backend *backend_find(__u32 number)
{
	struct backend_key key = {.backend = number};

	return bpf_map_lookup_elem(&backends, &key);
}

/* `number`: of a service or a backend. */
static __always_inline void service_counted(__u32 number, bool opened)
{
	struct service_count_key key = {.number = number};
	struct service_count first = {}, *count = service_count_find(number);

	if (!count) {
		bpf_map_update_elem(&service_counts, &key, &first, BPF_NOEXIST);
		count = service_count_find(number);
	}
	if (count && opened)
		count->opened++;
	else if (count)
		count->failed++;
}

/* Is it the published port of a service? */
static __always_inline bool port_is_service(const struct port *port)
{
	struct network *net = network_find(port->network);

	return net && (net->flags & NETWORK_SERVICES) && service_find(port->endpoint);
}

/* Goes on in the program that chooses. `port`: in which the service is in the place of an endpoint, or NULL: it is in the
 * scratch memory. `network`, `client`: who begins, as in from_endpoint. */
static __always_inline int choose_backend(struct __sk_buff *skb, const struct port *port,
					  __u32 network, __u32 client)
{
	struct scratch *room = scratch();

	if (!room)
		return drop(skb, DROP_DEVICE);
	if (port)
		room->published = *port;
	room->sides.client_network = network;
	room->sides.client_endpoint = client;
	return go_on(skb, TAIL_TO_SERVICE);
}

/* The same by its address, at which every port is its own. */
static __always_inline int choose_at(struct __sk_buff *skb, const struct packet *p, __u32 network,
				     __u32 service, __u32 client)
{
	struct scratch *room = scratch();

	if (!room)
		return drop(skb, DROP_DEVICE);
	__builtin_memset(&room->published, 0, sizeof(room->published));
	room->published.network = network;
	room->published.endpoint = service;
	room->published.addr = p->tuple.dst;
	room->published.port = p->tuple.dport;
	return choose_backend(skb, NULL, network, client);
}

/*
 * Does the packet begin what its connection has been: over TCP one that is over, or that nobody has answered yet; else a
 * flow whose backend is down? Then a backend is chosen anew.
 */
static __always_inline bool is_left(const struct packet *p, const struct conn *conn)
{
	struct backend *backend;

	if ((conn->flags & (CONN_SERVICE | CONN_ORIGINAL)) != (CONN_SERVICE | CONN_ORIGINAL))
		return false;
	if (p->tuple.proto == IPPROTO_TCP)
		return is_tcp_opening(p) &&
		       (conn->state == CONN_NEW || conn->state >= CONN_CLOSING);
	/* A row of the version before has it in `ack`. */
	backend = backend_find(conn->backend ? conn->backend : conn->ack);
	return !backend || backend->state == BACKEND_DOWN;
}

/* Does its own sender begin it anew? NULL: there is none. `sender`: as in from_endpoint. */
static __always_inline bool begins_anew(const struct packet *p, const struct conn *conn,
					__u32 sender)
{
	return conn && conn->from_endpoint == sender && is_left(p, conn);
}

/* The packet's connection, if it is not to begin anew. `sender`: as in from_endpoint. */
static __always_inline struct conn *conn_of_client(const struct packet *p, __u32 sender)
{
	struct conn *conn = conn_find(&p->tuple);

	if (!begins_anew(p, conn, sender))
		return conn;
	conn_forget(&p->tuple);
	return NULL;
}

/*
 * Of a client, the same on every host, so that each chooses the same backend: neither the address that was asked is in it
 * nor any number of this host's. With affinity all of a client's ports are one.
 */
static __always_inline __u32 client_hash(const struct tuple *asked, __be16 port,
					 const struct service *service)
{
	__u32 hash = hash_addr(service->seed, &asked->src);

	if (!service->affinity) {
		hash = hash_word(hash, (__u32)bpf_ntohs(asked->sport) << 16 | bpf_ntohs(port));
		hash = hash_word(hash, asked->proto);
	}
	return hash_end(hash);
}

static __always_inline const struct ip_addr *backend_addr(const struct backend *backend, bool v6)
{
	return v6 ? &backend->addr6 : &backend->addr4;
}

/* May it get a new connection to the service? */
static __always_inline bool is_up(const struct backend *backend, __u32 service, bool v6)
{
	return backend->service == service && backend->state == BACKEND_UP &&
	       !addr_is_zero(backend_addr(backend, v6));
}

struct slot_walk {
	__u32 service, table, size;
	__u32 first; /* the slot to begin at */
	__u32 v6;
	__u32 found; /* number of a backend, 0: none */
};

static long slot_try(__u32 step, struct slot_walk *walk)
{
	struct slots_key key = {.table = walk->table};
	struct backend *backend;
	struct slots *row;
	__u32 at;

	if (!walk->size || step >= walk->size)
		return 1;
	at = (walk->first + step) % walk->size;
	key.chunk = at / CHUNK;
	row = bpf_map_lookup_elem(&slots, &key);
	if (!row)
		return 0;
	at = row->backend[at & (CHUNK - 1)];
	backend = at ? backend_find(at) : NULL;
	if (!backend || !is_up(backend, walk->service, walk->v6))
		return 0;
	walk->found = at;
	return 1;
}

/* The backend that is up of the slot that the number leads to, or of the next one that has any. */
static __always_inline __u32 slot_pick(struct slot_walk *walk, __u32 number)
{
	walk->first = (__u64)number * walk->size >> 32;
	walk->found = 0;
	bpf_loop(SLOT_TRIES, slot_try, walk, 0);
	return walk->found;
}

/* Connections for each unit of weight, times 256. */
static __always_inline __u64 backend_load(__u32 number, bool v6)
{
	struct backend *backend = backend_find(number);
	struct load_key key = {};
	struct load *load;

	if (!backend)
		return 0;
	key.endpoint = backend->endpoint;
	key.addr = *backend_addr(backend, v6);
	load = bpf_map_lookup_elem(&loads, &key);
	return (load ? (__u64)load->conns << 8 : 0) / (backend->weight ? backend->weight : 1);
}

/* Of two at random the one with fewer connections. */
static __noinline int slot_pick_least(struct slot_walk *walk)
{
	__u32 one, other;

	if (!walk)
		return 0;
	one = slot_pick(walk, bpf_get_prandom_u32());
	other = slot_pick(walk, bpf_get_prandom_u32());
	if (one == other)
		return one;
	return backend_load(other, walk->v6) < backend_load(one, walk->v6) ? other : one;
}

/* The backend that the client had last, if that is not too long ago and it is up; 0: none. */
static __always_inline __u32 affinity_find(const struct affinity_key *key, __u32 seconds, bool v6)
{
	struct affinity *known = bpf_map_lookup_elem(&affinities, key);
	struct backend *backend;

	if (!known || bpf_ktime_get_ns() - known->seen >= seconds * SECOND)
		return 0;
	backend = backend_find(known->backend);
	return backend && is_up(backend, key->service, v6) ? known->backend : 0;
}

/*
 * The number of the backend that gets the new connection, which the packet begins, to the service in the scratch memory;
 * 0: none is up.
 */
__noinline int service_choose(const struct packet *p)
{
	struct affinity_key key = {};
	struct affinity affinity = {};
	struct scratch *room = scratch();
	struct slot_walk walk = {};
	struct service *service;
	__u32 found = 0;

	if (!p || !room)
		return 0;
	service = service_find(room->published.endpoint);
	if (!service)
		return 0;
	walk.service = key.service = room->published.endpoint;
	walk.v6 = is_ipv6(p);
	walk.table = walk.v6 ? service->table6 : service->table4;
	walk.size = walk.v6 ? service->size6 : service->size4;
	if (!walk.size)
		return 0;
	key.client = p->tuple.src;
	if (service->affinity)
		found = affinity_find(&key, service->affinity, walk.v6);
	if (!found) {
		if (service->choice == CHOICE_LEAST)
			found = slot_pick_least(&walk);
		else if (service->choice == CHOICE_RANDOM)
			found = slot_pick(&walk, bpf_get_prandom_u32());
		else
			found = slot_pick(&walk,
					  client_hash(&p->tuple, room->published.port, service));
	}
	if (service->affinity && found) {
		affinity.seen = bpf_ktime_get_ns();
		affinity.backend = found;
		bpf_map_update_elem(&affinities, &key, &affinity, BPF_ANY);
	}
	return found;
}
