/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports. One lookup, however many there are. */
#pragma once
#include "lib/addr.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct reserved_key);
	__type(value, struct reserved);
} reserved SEC(".maps");

static __always_inline bool port_is_reserved(__be16 port, __u8 proto)
{
	struct reserved_key key = {.port = port, .proto = proto};

	return bpf_map_lookup_elem(&reserved, &key);
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct binding_key);
	__type(value, struct binding);
} bindings SEC(".maps");

/* Is the number published at every address of that family, whatever the container has? */
static __always_inline bool is_bound_everywhere(__u8 family, __be16 port, __u8 proto)
{
	struct binding_key key = {.port = port, .proto = proto, .family = family, .every = 1};

	return bpf_map_lookup_elem(&bindings, &key);
}

/* Is it published at any of them? */
static __always_inline bool is_bound(__u8 family, __be16 port, __u8 proto)
{
	struct binding_key key = {.port = port, .proto = proto, .family = family};

	return bpf_map_lookup_elem(&bindings, &key) || is_bound_everywhere(family, port, proto);
}

/* Published at exactly this host address. */
static __always_inline struct port *port_find_exact(const struct ip_addr *addr, __be16 port,
						    __u8 proto)
{
	struct port_key key = {.addr = *addr, .port = port, .proto = proto};

	return bpf_map_lookup_elem(&ports, &key);
}

/* Published at every host address of that family: the caller knows that the address is the host's. */
static __always_inline struct port *port_find_any(bool v6, __be16 port, __u8 proto)
{
	struct port_key key = {.port = port, .proto = proto};

	if (!v6)
		addr_set_v4(&key.addr, 0);
	return bpf_map_lookup_elem(&ports, &key);
}

static __always_inline struct port *port_find(const struct ip_addr *addr, __be16 port, __u8 proto)
{
	struct port *found;

	if (!port_is_reserved(port, proto))
		return NULL;
	found = port_find_exact(addr, port, proto);
	return found ? found : port_find_any(!addr_is_v4(addr), port, proto);
}

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct acl_key);
	__type(value, struct acl);
} acls SEC(".maps");

/* May this source connect to the published port: the ACL's longest prefix decides. */
static __always_inline bool port_admits(const struct port *port, const struct ip_addr *source)
{
	struct acl_key key = {.prefixlen = 160, .acl = port->acl, .addr = *source};
	struct acl *rule;

	if (!port->acl)
		return true;
	rule = bpf_map_lookup_elem(&acls, &key);
	return rule ? rule->allow : !port->default_deny;
}
