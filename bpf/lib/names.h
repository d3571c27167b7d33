/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What questions for names are answered with: whose resolver a packet is sent to, what is known of names, who else is
 * asked. The programs that do it are reached by tail calls only (enum tail); they find the parsed packet in the scratch
 * memory.
 */
#pragma once
#include "lib/endpoints.h"
#include "lib/networks.h"
#include "lib/ports.h"
#include "lib/tails.h"

#define DNS_PORT bpf_htons(53)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct long_name_key);
	__type(value, struct name);
} long_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_set_key);
	__type(value, struct name_set);
} name_sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct resolver_key);
	__type(value, struct resolver);
} resolvers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct subnet_key);
	__type(value, struct subnet);
} subnets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct upstream_key);
	__type(value, struct upstream_state);
} upstreams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct question_key);
	__type(value, struct question);
} questions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_count_key);
	__type(value, struct name_count);
} name_counts SEC(".maps");

#define MESSAGE_MAX 512 /* bytes: what is longer is not answered here, nor longer than that */

/* A message that asks something, and what it is answered with (query.h, lookup.h, reply.h). */
struct query {
	struct name row; /* what is known of the name */
	__u32 length;	 /* of the message, bytes */
	__u32 name;	 /* length of the name with its zero byte; 0: there is none */
	__u32 end;	 /* of the question in the message */
	__u32 records;	 /* where the records to be sent begin in their row, */
	__u32 bytes;	 /* and how long they are */
	__u16 answers;	 /* how many that is */
	__be16 type;
	__u8 rcode;  /* extended: 16 is BADVERS (RFC 6891, 6.1.3) */
	__u8 edns;   /* bit 0: it has an OPT record; bit 1: of a version that is not 0; bit 2: DO */
	__u8 flags;  /* the header's third byte: RD is its lowest bit */
	__u8 flags2; /* and its fourth: CD is 0x10 */
	__be16 size; /* of UDP that its OPT record offers */
	__u8 pad[2];
	__u8 aligned[4]; /* so that the name begins at a multiple of eight */
	__u8 message[MESSAGE_MAX + 20];
};

/* Room for messages, as struct scratch is for all else. */
struct name_room {
	struct resolver resolver;    /* the asker's, */
	__u32 network;		     /* and the number of the network that it asks from */
	struct query queries[2];     /* one segment of TCP can have two */
	__u8 tail[MESSAGE_MAX + 64]; /* what is behind the question of an answer */
	struct name_key address;     /* of who has an address: see BY_ENDPOINT, */
	struct subnet_key subnet;    /* and of what that is in */
	struct long_name_key key;    /* in lower case. A shorter name's is its beginning */
	__u32 sum;		     /* of the transport header and what is behind it, as it was */
	__u8 chunk[MESSAGE_MAX + 8]; /* of what is summed */
	struct tuple asked;	     /* the key of a connection to the resolver */
};

_Static_assert(offsetof(struct query, message) % 8 == 4, "a name begins 12 bytes behind");
_Static_assert(offsetof(struct name_room, key) % 8 == 4, "a key's name begins 4 bytes behind");
_Static_assert(sizeof(struct query) % 8 == 0, "the second is aligned like the first");

/* A length that is between 1 and MESSAGE_MAX, said so that the verifier of every kernel keeps the bounds: 6.1's forgets
 * those of a number of 32 bits that is put on the stack. */
static __always_inline __u64 bounded(__u64 length)
{
	asm volatile("" : "+r"(length));
	return ((length - 1) & (MESSAGE_MAX - 1)) + 1;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_room);
} name_rooms SEC(".maps");

static __always_inline struct name_room *name_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&name_rooms, &zero);
}

static __always_inline struct resolver *resolver_of(__u32 endpoint)
{
	struct resolver_key key = {.endpoint = endpoint};

	return bpf_map_lookup_elem(&resolvers, &key);
}

/*
 * The same in the room, for the programs that go on; false: it has none. A row that is replaced is another one's as soon as
 * somebody needs the memory: what was copied counts if the row is still there afterwards. So it is with all rows here that
 * a question is answered from.
 */
static __always_inline bool resolver_copy(__u32 network, __u32 endpoint)
{
	struct resolver *found = resolver_of(endpoint), *again;
	struct name_room *room = name_room();

	if (!found || !room)
		return false;
	room->resolver = *found;
	room->network = network;
	again = resolver_of(endpoint);
	if (again && again != found)
		room->resolver = *again;
	return again;
}

static __noinline struct name_count *name_counts_new(__u32 network)
{
	struct name_count_key key = {.network = network};
	struct name_count none = {};

	bpf_map_update_elem(&name_counts, &key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&name_counts, &key);
}

/* The counters of a network, of this CPU; NULL: there is no room for more. */
static __always_inline struct name_count *name_counts_of(__u32 network)
{
	struct name_count_key key = {.network = network};
	struct name_count *found = bpf_map_lookup_elem(&name_counts, &key);

	return found ? found : name_counts_new(network);
}

/*
 * Is the packet for the sender's resolver: anything to 127.0.0.11, questions to the gateway's address where no
 * container's port is published or members are told to ask? From others than itself it takes none. If it is, the
 * resolver is in the room.
 */
__noinline int is_for_resolver(const struct packet *p, const struct device *device,
			       const struct network *net)
{
	if (!p || !device || !net || p->forwarded || !mac_equal(p->dst_mac, net->mac))
		return 0;
	if (!addr_is_resolver(&p->tuple.dst)) {
		/* No address is that of a gateway which is not there. */
		if (p->tuple.dport != DNS_PORT || p->fragment || is_icmp(p->tuple.proto) ||
		    addr_is_zero(&p->tuple.dst) ||
		    !addr_equal(&p->tuple.dst, is_ipv6(p) ? &net->gateway6 : &net->gateway4) ||
		    (!(net->flags & NETWORK_RESOLVER) &&
		     port_find(&p->tuple.dst, DNS_PORT, p->tuple.proto)))
			return 0;
	}
	return resolver_copy(device->network, device->endpoint);
}

/*
 * The key of a connection to the resolver. A loopback source is the same in every container: for that the key has an
 * address of the discard prefix 100::/64 (RFC 6666), which comes from no wire, with the index of the asker's device.
 */
#define SURROGATE bpf_htonl(0x01000000)

static __always_inline void asked_by(struct tuple *key, const struct packet *p, __u32 ifindex)
{
	*key = p->tuple;
	if (!addr_is_v4(&key->src) || !addr_is_loopback(&key->src))
		return;
	key->src.word[0] = SURROGATE;
	key->src.word[1] = 0;
	key->src.word[2] = bpf_htonl(ifindex);
}

/* The address as the container knows it. Returns the device that it has asked by; 0: it has an address of its own. */
static __always_inline __u32 asked_from(struct ip_addr *addr)
{
	__u32 ifindex;

	if (addr->word[0] != SURROGATE || addr->word[1])
		return 0;
	ifindex = bpf_ntohl(addr->word[2]);
	addr_set_v4(addr, addr->word[3]);
	return ifindex;
}
