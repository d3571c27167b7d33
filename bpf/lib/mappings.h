/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which port of the host's a container's port is mapped to, whatever it talks to (endpoint-independent mapping,
 * RFC 4787, 4.1; RFC 5382, 4.1). ICMP: identifiers (RFC 5508, 3.1). A mapping lives as long as connections use it,
 * and two minutes more: opening one refreshes it, and so does the GC for each that lives.
 */
#pragma once
#include "lib/conntrack.h"
#include "lib/ports.h"

#define MAPPING_TIMEOUT (120 * SECOND) /* RFC 4787, REQ-5 */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct external_key);
	__type(value, struct external);
} externals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct mapping_key);
	__type(value, struct mapping);
} mappings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct origin_key);
	__type(value, struct origin);
} origins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct contact_key);
	__type(value, struct contact);
} contacts SEC(".maps");

static __always_inline void external_key_of(const struct tuple *reply, __be16 port,
					    struct external_key *key)
{
	key->addr = reply->dst;
	key->port = port;
	key->proto = reply->proto;
	key->pad = 0;
}

static __always_inline bool external_is_live(const struct external *external, __u64 now)
{
	/* Another CPU may have read the clock later. */
	return (__s64)(now - external->seen) < (__s64)MAPPING_TIMEOUT &&
	       !party_is_gone(external->endpoint);
}

static __always_inline bool external_is_of(const struct external *external, __u32 endpoint,
					   const struct tuple *original)
{
	return external->endpoint == endpoint && external->port == original->sport &&
	       addr_equal(&external->addr, &original->src);
}

enum external_state {
	EXTERNAL_FREE = 0,
	EXTERNAL_OWN = 1, /* the connection's client has it */
	EXTERNAL_OTHERS = 2,
};

/* Whose the port is, as far as mappings go. */
__noinline int external_state(const struct conn_sides *sides, __be16 port)
{
	struct external *external;
	struct external_key key;

	if (!sides)
		return EXTERNAL_OTHERS;
	external_key_of(&sides->other, port, &key);
	external = bpf_map_lookup_elem(&externals, &key);
	if (!external || !external_is_live(external, bpf_ktime_get_coarse_ns()))
		return EXTERNAL_FREE;
	return external_is_of(external, sides->client_endpoint, &sides->key) ? EXTERNAL_OWN
									     : EXTERNAL_OTHERS;
}

/* Makes the port the client's, or refreshes that it is; false: another has it. */
__noinline int external_claim(const struct conn_sides *sides, __be16 port)
{
	__u64 now = bpf_ktime_get_coarse_ns(), seen;
	struct external mine = {}, *external;
	struct external_key key;

	if (!sides)
		return 0;
	external_key_of(&sides->other, port, &key);
	external = bpf_map_lookup_elem(&externals, &key);
	if (!external) {
		mine.addr = sides->key.src;
		mine.endpoint = sides->client_endpoint;
		mine.port = sides->key.sport;
		mine.seen = now;
		if (!bpf_map_update_elem(&externals, &key, &mine, BPF_NOEXIST))
			return 1;
		external = bpf_map_lookup_elem(&externals, &key);
		if (!external)
			return 0;
	}
	seen = external->seen;
	if (external_is_of(external, sides->client_endpoint, &sides->key)) {
		external->seen = now;
		return 1;
	}
	/* Of those that want one that is over, one gets it. */
	if (external_is_live(external, now) ||
	    __sync_val_compare_and_swap(&external->seen, seen, now) != seen)
		return 0;
	external->endpoint = sides->client_endpoint;
	external->addr = sides->key.src;
	external->port = sides->key.sport;
	return 1;
}

/* The client does not use the port after all. */
__noinline int external_release(const struct conn_sides *sides, __be16 port)
{
	struct external_key key;

	if (!sides)
		return 0;
	external_key_of(&sides->other, port, &key);
	return bpf_map_delete_elem(&externals, &key);
}

static __always_inline void mapping_key_of(const struct conn_sides *sides, struct mapping_key *key)
{
	key->addr = sides->key.src;
	key->external = sides->other.dst;
	key->endpoint = sides->client_endpoint;
	key->port = sides->key.sport;
	key->proto = sides->key.proto;
	key->pad = 0;
}

/* The external port that the client's port has, where that is another number; 0: none. */
__noinline int mapping_port(const struct conn_sides *sides)
{
	struct mapping *mapping;
	struct mapping_key key;

	if (!sides)
		return 0;
	mapping_key_of(sides, &key);
	mapping = bpf_map_lookup_elem(&mappings, &key);
	return mapping && external_state(sides, mapping->port) == EXTERNAL_OWN ? mapping->port : 0;
}

/* Records it. Returns the port that another CPU has recorded meanwhile, which counts; 0: none. */
__noinline int mapping_record(const struct conn_sides *sides, __be16 port)
{
	struct mapping mapping = {.port = port}, *before;
	struct mapping_key key;

	if (!sides)
		return 0;
	mapping_key_of(sides, &key);
	if (!bpf_map_update_elem(&mappings, &key, &mapping, BPF_NOEXIST))
		return 0;
	before = bpf_map_lookup_elem(&mappings, &key);
	if (before && external_state(sides, before->port) == EXTERNAL_OWN)
		return before->port == port ? 0 : before->port;
	bpf_map_update_elem(&mappings, &key, &mapping, BPF_ANY);
	return 0;
}

/* The host's port, at the address that the client gets, where its own port is published; 0: it is not. */
__noinline int origin_port(const struct conn_sides *sides)
{
	struct origin_key key = {};
	struct origin *origin;
	struct port *port;

	if (!sides)
		return 0;
	key.addr = sides->other.dst;
	key.endpoint = sides->client_endpoint;
	key.port = sides->key.sport;
	key.proto = sides->key.proto;
	origin = bpf_map_lookup_elem(&origins, &key);
	if (!origin) {
		if (addr_is_v4(&key.addr))
			addr_set_v4(&key.addr, 0);
		else
			__builtin_memset(&key.addr, 0, sizeof(key.addr));
		origin = bpf_map_lookup_elem(&origins, &key);
		if (!origin)
			return 0;
	}
	/* At this very address it can be another's; and a port of who is behind the endpoint is not the endpoint's. */
	port = port_find(&sides->other.dst, origin->port, sides->key.proto);
	return port && port->endpoint == sides->client_endpoint &&
			       addr_equal(&port->addr, &sides->key.src)
		       ? origin->port
		       : 0;
}

/* A connection lives, and its mapping with it. */
static __always_inline void mapping_refresh(const struct tuple *key, const struct conn *original,
					    __u64 now)
{
	struct external *external;
	struct external_key at;

	if (original->to_network || original->state == CONN_CLOSED ||
	    addr_equal(&key->src, &original->other.dst))
		return;
	external_key_of(&original->other, original->other.dport, &at);
	external = bpf_map_lookup_elem(&externals, &at);
	if (external && external_is_of(external, original->from_endpoint, key))
		external->seen = now;
}

static __always_inline void contact_key_of(const struct ip_addr *addr, __be16 port, __u8 proto,
					   struct contact_key *key)
{
	key->addr = *addr;
	key->port = port;
	key->proto = proto;
	key->pad = 0;
}

/* The client reaches the server. `ephemeral`: with a port that the kernel could choose for a socket of the host's. */
__noinline int contact_record(const struct conn_sides *sides, __u32 ephemeral)
{
	struct contact contact = {.ephemeral = ephemeral}, *known;
	struct contact_key key;

	if (!sides)
		return 0;
	contact_key_of(&sides->key.dst, sides->key.dport, sides->key.proto, &key);
	contact.source = sides->other.dst;
	known = bpf_map_lookup_elem(&contacts, &key);
	if (known && addr_equal(&known->source, &contact.source)) {
		if (ephemeral)
			known->ephemeral = 1;
		return 0;
	}
	return bpf_map_update_elem(&contacts, &key, &contact, BPF_ANY);
}
