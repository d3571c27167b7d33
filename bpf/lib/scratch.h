/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Room for what does not fit on the 512 bytes of stack that all functions of a call chain
 * share. One per CPU: the hooks run with bottom halves off, and none of them inside another.
 * A function that uses a part is done with it before it calls another that uses the same part.
 */
#pragma once
#include "lib/parse.h"

#define QUOTE 124 /* bytes of a packet that an ICMP error of ours quotes at the most */

struct error_body {
	struct icmp_header header;
	__u8 quote[QUOTE];
};

/* What an ICMP error quotes, and where. */
struct quoted {
	struct tuple tuple; /* of the quoted packet, as it was sent */
	struct tuple outer; /* what the error's own addresses become */
	__u32 l3, l4;
};

/* Both ends of a connection that is about to be opened. */
struct conn_sides {
	struct tuple key;		       /* the opening packet as it arrived */
	struct tuple other;		       /* the answer as it will arrive */
	__u32 client_network, client_endpoint; /* 0: not a container */
	__u32 server_network, server_endpoint;
	__u32 flags;   /* which of CONN_QUESTION, CONN_SERVICE, CONN_COUNTED and CONN_DSR it has, */
	__u32 id;      /* and which question of UDP; what goes to another host: its hops */
	__u32 backend; /* of the service that has chosen it, its number */
	__u32 generation; /* of the policies that let it be */
};

/* What a backend's host is to hear with a client's packet. */
enum telling {
	TELLS_NOTHING = 0,
	TELLS_APART = 1, /* that what has been asked may be another's, and can have another port */
	TELLS_ASKED = 2, /* and what it is, so that it can answer itself */
};

/* How a source port is chosen (nat.h). */
struct nat_search {
	__u32 first, span;   /* ports to choose from, host order */
	__u32 start, stride; /* in which order */
	int own;	     /* enum external_state of the client's own number */
	int result;	     /* enum nat_result */
	bool mapped;  /* to an address of the host's, so that its mapping counts, and is made */
	bool foreign; /* the address is not the host's: its ports are not either */
	bool keep;    /* the client's own number is tried */
};

/* The rest of a packet that was cut (cuts.h): its datagram's key, its piece of that, and what is known of it. */
struct cut_key {
	struct fragment_key fragment;
	struct piece piece;
};

struct cut {
	__u64 since; /* ns, CLOCK_MONOTONIC */
	__be16 sport, dport;
	__u8 has_ports;
	__u8 pad[3];
};

/* Whose key is looked for. */
enum flow_kind {
	FLOW_NONE = 0,
	FLOW_IPV4 = 1, /* IPv4, over IPv4 or as it is */
	FLOW_WIDE = 2, /* with IPv6 inside or outside */
};

/* Of which flow a packet is between members on two hosts (flow_rows.h). */
struct flow_key {
	__u32 ifindex; /* that it came by */
	__be32 outer,
		vni; /* source of the tunnel, and the number as it is in the header; 0: it came in none */
	__be32 src, dst;
	__be32 ports;		/* source and destination, as they lie in the header */
	__u16 proto, tunnelled; /* the version of IP of the tunnel that it came in, 0: none */
};

/* The same where IPv6 is inside or outside. An IPv4 address is in its mapped form. */
struct wide_key {
	struct tuple tuple;
	struct ip_addr outer; /* likewise */
	__be32 vni;
	__u32 ifindex;
	__be16 ethertype; /* of what is inside: that may have addresses that look mapped, */
	__u16 tunnelled;  /* and so may what is outside */
};

/* An IPv4 header with its options, and a little beyond the longest. */
struct ipv4_header {
	struct iphdr ip;
	__u8 options[44];
};

/* What policies are asked: the ends of an opening, and whether it may be (policies.h). */
struct judgement {
	__u32 generation; /* of the policies that were asked */
	__u32 from, to;	  /* who begins with whom: number of an endpoint, or enum other_party */
	struct ip_addr src, dst;
	__u32 port; /* the receiver's own, host order */
	__u32 published; /* number of the host's port by which it comes, 0: of none that policies are about */
	__u8 proto;	      /* as in struct ruleset_key */
	__u8 names;	      /* it is a question to name servers outside */
	__u8 concerned;	      /* of what passes untranslated: policies are about an end of it */
	__u32 rule, would;    /* of the direction that was asked last: struct span, */
	__u32 out, would_out; /* and of the sender's */
	struct subject_key subject;
	struct peer_class_key peer;
	struct port_scope_key scope;
	struct ruleset_key ruleset;
	struct rule_hit_key hit;
	struct tuple tuple; /* of what passes untranslated: as its sender sends it, */
	struct flow_id id;  /* and its row */
	struct admission row;
};

/* What a container begins, for the program that opens it (begin.bpf.c). */
enum conn_opening {
	OPENS_PUBLISHED = 0, /* the port in `published` is asked */
	OPENS_MAPPED = 1,    /* a port that another container's is mapped to */
	OPENS_OUTSIDE =
		2, /* somebody outside, by `route` and what else the lookup in `fib` has found */
};

struct scratch {
	struct packet packet;
	struct conn_sides sides;
	struct quoted quoted;
	struct bpf_fib_lookup fib;
	struct bpf_fib_lookup
		probe_fib; /* what is asked besides, and the tuple that is asked about */
	struct tuple probe;
	struct tuple leaving; /* what a packet that is forwarded becomes */
	struct tuple about,
		inner;	       /* of an error: its connection's key, and what its quote becomes */
	struct ip_addr source; /* what it is masqueraded with */
	struct endpoint recipient; /* who gets it */
	struct error_body error;
	struct conn conn;
	struct tuple opposite;		/* the key of a connection's other direction */
	struct tuple confirmed, answer; /* keys of a connection that both sides have spoken on */
	struct fragment_key fragment;
	struct cut_key cut_key;
	struct cut cut;
	struct ipv4_header header; /* of the rest of a packet that is cut, */
	struct iphdr first;	   /* and of its first piece, without options */
	struct nat_search search;
	struct port published;	/* of a service, which is in the place of its endpoint */
	struct vxlan_link link; /* headers of the tunnel that a packet came in */
	struct caller caller;	/* who asks by another host, or what becomes of its row, */
	struct asked asked; /* what its client has asked, if the other host says so, else no port */
	__u32 mark;	    /* of that, if the other host says it, else 0 (callers.h) */
	__u32 tells;	    /* the backend's host is to hear it: enum telling, */
	__u32 told;	    /* and does by this packet */
	struct flow_key flow;
	struct wide_key wide;
	__u32 flow_is_new; /* what becomes of the packet with that key is to be remembered: enum flow_kind */
	__u32 host_flow_is_new; /* it is to be, if it is the host's (host_flows.h) */
	__u64 host_opened; /* how often its tuple may have been opened before that was looked for */
	__u64 epoch;	   /* of before anything was looked up for it */
	__u64 until;	   /* ns, CLOCK_MONOTONIC: so long the route counts that was found */
	struct flow_id flow_id; /* of a packet that is counted (tally.h), */
	struct flow flow_row;	/* what its row begins with, */
	struct edge_id edge_id; /* and what is added to which total */
	struct edge edge;
	struct judgement judgement;
	__u32 opens; /* enum conn_opening */
	int route;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* The packet that the hook looks at, blank. */
static __always_inline struct packet *packet_new(void)
{
	struct scratch *room = scratch();

	if (!room)
		return NULL;
	__builtin_memset(&room->packet, 0, sizeof(room->packet));
	return &room->packet;
}
