/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the packet programs and their control plane: every map key, map value, enum and setting. clang
 * compiles this text, cffi parses this text.
 * Rules: fixed-width types, explicit padding (a key is compared byte by byte, so
 * padding is part of it and must be zero), no #include, no #if, no macros.
 * Byte order is in the type: __be16/__be32 are network order, the rest host order.
 */

/* clang-format off: the comments stand in columns */

/* An IPv6 address, or an IPv4 one in its mapped form ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
struct ip_addr {
	__be32 word[4];
};

/* ---- settings, written into .rodata before load ------------------------------- */

struct config {
	__u64 netns_cookie;	    /* the host's network namespace: host_socket acts in no other */
	__u32 timeout_handshake;    /* seconds a connection may live before it is confirmed */
	__u32 timeout_established;  /* seconds without a packet: TCP */
	__u32 timeout_half_closed;  /* seconds without a packet: TCP after FIN one way */
	__u32 timeout_closing;	    /* seconds after FIN both ways, or RST */
	__u32 timeout_udp;	    /* seconds without a packet: UDP that both sides go on with */
	__u32 timeout_udp_exchange; /* and that ended with one exchange */
	__u32 timeout_icmp;	    /* seconds without a packet: ICMP echo */
	__u32 sample;	    /* one drop in so many of its reason is also an event; 0: none */
	__u32 max_conns;    /* confirmed connections of one container, 0: no limit */
	__u32 max_openings; /* unanswered openings of one container, 0: no limit */
	__u32 flood_rate;   /* openings a second from one outside source, 0: no limit */
	__u32 flood_burst;  /* and how many at once */
};

/* ---- networks, devices, endpoints --------------------------------------------- */

enum network_flag {
	NETWORK_ACTIVE = 1,
	NETWORK_IPV4 = 2,
	NETWORK_IPV6 = 4,
	NETWORK_ICC = 8,	   /* members may talk to each other */
	NETWORK_INTERNAL = 16,	   /* nothing but the members and the host */
	NETWORK_MASQUERADE = 32,   /* leaves with the host's address */
	NETWORK_RESOLVER = 64,	   /* port 53 of the gateway is the resolver's alone */
	NETWORK_BESIDE = 128,	   /* default routes are elsewhere: who connects is the gateway */
	NETWORK_HOST_ROUTED = 256, /* has `host_routed`; what the host forwards may come in */
	NETWORK_OVERLAY = 512,	   /* has a row in `overlays`: members on other hosts */
	NETWORK_LAN = 1024,	   /* members are on the link of a device of the host's */
	NETWORK_VEPA = 2048,	   /* what they send each other leaves by it as well */
	NETWORK_L3 = 4096, /* they are routed there: nobody on the link is asked or answered */
	NETWORK_SERVICES = 8192,   /* has services: virtual addresses in front of members */
	NETWORK_QUESTIONS = 16384, /* the kernel hands frames over; only questions pass here */
	NETWORK_FLOWS = 32768,	   /* what members send is counted in `flows` and `edges` */
};

/* networks: ARRAY, index is the network's number (0 is never used) */
struct network {
	__u32 flags;	  /* enum network_flag */
	__u32 ifindex;	  /* the gateway device on the host */
	__u32 slots;	  /* members are at slots 0 … slots-1, holes allowed */
	__u32 mtu;	  /* bytes of IP packet */
	__be32 broadcast; /* the IPv4 subnet's broadcast address, 0: none */
	__u8 mac[6];	  /* of the gateway device */
	__u8 pad[2];
	struct ip_addr gateway4; /* zero: none */
	struct ip_addr gateway6;
	struct ip_addr gateway_linklocal;
};

enum device_kind {
	DEVICE_ENDPOINT = 1, /* host end of a container's pair */
	DEVICE_GATEWAY = 2,  /* gateway device of a network */
	DEVICE_UPLINK = 3,   /* device of the host that leads outside, with an Ethernet header */
	DEVICE_LOOPBACK = 4, /* the host's loopback device, while a port is published */
	DEVICE_TUNNEL = 5,   /* like DEVICE_UPLINK, its packets have no Ethernet header */
	DEVICE_VXLAN = 6,    /* the device of overlay networks' tunnels */
	DEVICE_PARENT =
		7, /* like DEVICE_UPLINK, if it is one; a network's members are on its link */
};

/* What an endpoint does besides sending and receiving for itself. */
enum endpoint_role {
	ROLE_FORWARDING = 1, /* it speaks for others too, as a router does */
	ROLE_SERVES =
		2, /* it is, or has been, a backend of a service: what it sends may be an answer */
};

struct device_key {
	__u32 ifindex;
};
struct device {
	__u32 kind; /* enum device_kind */
	__u32 network; /* number; 0 for an uplink or tunnel; of a parent that whose members are on its link */
	__u32 endpoint;	      /* number; 0 unless an endpoint */
	__u8 mac[6];	      /* endpoint: the container's, the only one it may send from */
	__u8 forwarding;      /* endpoint: enum endpoint_role */
	__u8 limited;	      /* endpoint: enum limit_direction, which it has rows of in `limits` */
	struct ip_addr addr4; /* endpoint: its own; uplink: source for masquerading */
	struct ip_addr addr6;
	struct ip_addr linklocal; /* likewise; uplink: source for name servers on its link */
};

/* parents: the device on whose link the members of a network are; without a row they reach nobody there */
struct parent_key {
	__u32 network; /* number */
};
struct parent {
	__u32 ifindex;
	__u8 mac[6];
	__u8 pad[2];
};

/* endpoints: every address of a network's members, and the virtual ones of its services: `ifindex` 0, `number` the
 * service's, `mac` the gateway's */
struct endpoint_key {
	__u32 network;
	struct ip_addr addr;
};
struct endpoint {
	__u32 ifindex; /* host end of its pair; 0: a service */
	__u32 number;  /* never used twice on one host */
	__u8 mac[6];
	__u8 forwarding; /* as in struct device */
	__u8 limited;	 /* likewise */
};

/* routers: the members that forward, each by its MAC and by its number. The value is a struct endpoint. */
struct router_key {
	__u32 network;
	__u32 endpoint; /* number, 0: by MAC */
	__u8 mac[6];	/* zero: by number */
	__u8 pad[2];
};
struct member_key {
	__u32 network;
	__u32 slot;
};

struct member {
	__u32 ifindex; /* host end of its pair */
	__u32 endpoint;
};

/* As the container sees it. */
enum limit_direction {
	LIMIT_INGRESS = 1, /* what it receives */
	LIMIT_EGRESS = 2,  /* what it sends */
};

/* limits: the bandwidth of endpoints that have not all, a token bucket a direction */
struct limit_key {
	__u32 endpoint;	 /* number */
	__u32 direction; /* enum limit_direction */
};
struct limit {
	__u64 rate;    /* bits a second */
	__u64 burst;   /* ns in which the rate fills the bucket */
	__u64 due;     /* ns, CLOCK_MONOTONIC: when the bucket is full again */
	__u64 packets; /* that were dropped, */
	__u64 bytes;   /* and how long they were on the wire */
};

/* ---- published ports and links ------------------------------------------------ */

struct port_key {
	struct ip_addr addr; /* host address; 0.0.0.0 and ::, all of the host's of that family */
	__be16 port;
	__u8 proto; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;
};
struct port {
	__u32 network;
	__u32 endpoint;	     /* number, or a service's */
	__u32 acl;	     /* number of its ACL in `acls`; 0: everybody may connect */
	struct ip_addr addr; /* the endpoint's, or the service's */
	__be16 port;	     /* the container's */
	__u8 default_deny;   /* 1: a source that matches no rule may not connect */
	__u8 shared;	     /* 1: a socket of the host may be bound to it too */
};

/* acls: LPM trie, the allow= and deny= prefixes of published ports. The ACL's number is matched whole,
 * then the address: prefixlen is 32 + the prefix's length as IPv6, so 32 + 96 + n for an IPv4 /n. */
struct acl_key {
	__u32 prefixlen;
	__u32 acl;
	struct ip_addr addr;
};
struct acl {
	__u32 allow; /* 1: may connect, 0: may not */
};

/* rates: openings of one outside source, a token bucket. IPv6: of its /64. */
struct rate_key {
	struct ip_addr addr;
};
struct rate {
	__u64 refilled; /* ns, CLOCK_MONOTONIC */
	__u64 tokens;
};

/* quotas: what one endpoint uses of the connection tables */
struct quota_key {
	__u32 endpoint;
};
struct quota {
	__u64 since;	/* ns, CLOCK_MONOTONIC: openings are counted from here, */
	__u32 openings; /* less those that were confirmed; `since` 1: there never was one */
	__u32 conns;	/* confirmed connections it takes part in */
};

/* arrivals: how many of the connections in `quotas` somebody else has opened, who is no container. They have a limit
 * of their own. */
struct arrival_key {
	__u32 endpoint;
};
struct arrival {
	__u32 conns;
	__u32 pad;
};

/* reserved: every port published through the programs, whatever its address. Such a port is never a source port for
 * masquerading, and no host process may bind it where that would clash. */
struct reserved_key {
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct reserved {
	__u32 mappings; /* how many published ports use it */
};

/* bindings: the numbers that are published, by family and by whether at every address of the host's or at single
 * ones: bind() to all addresses clashes with either, bind() to another one with the first only */
struct binding_key {
	__be16 port;
	__u8 proto;
	__u8 family; /* 4 or 6, whichever the container has */
	__u8 every;  /* 1: at every address, 0: at single ones */
	__u8 pad[3];
};
struct binding {
	__u32 mappings; /* how many published ports use it */
};

/* links: ports of one member that another may reach in a network without icc (--link) */
struct link_key {
	struct ip_addr client;
	struct ip_addr server;
	__be16 port; /* the server's */
	__u8 proto;
	__u8 pad;
};
struct link {
	__u32 client; /* endpoint numbers */
	__u32 server;
};

/* ---- policies ------------------------------------------------------------------ */

/* Who may open connections to whom, compiled (docs/decisions/0063). Keys begin with a generation: rows of the next are
 * written beside those in force, and one write of `policy_state`, an ARRAY of one, puts them into force. */
struct policy_state {
	__u32 generation; /* that is in force; 0: there are no policies */
	__u32 last;	  /* the highest that ever was: none is used twice */
};
enum policy_direction { /* as the container sees it */
	POLICY_OUT = 1,
	POLICY_IN = 2,
	POLICY_IN_LISTED = 4, /* `in` refuses somebody something: no copies of groups' packets */
};

/* subjects: every endpoint of this host, no row: it is closed. Of endpoint 0 `peer4` is outside name servers' class. */
struct subject_key {
	__u32 generation;
	__u32 endpoint; /* number */
};
struct subject {
	__u32 subject;	    /* in `rulesets`: endpoints that the same policies are about have one */
	__u32 peer4, peer6; /* its classes for others' rules, by its addresses; 0: of none */
	__u8 directions;    /* enum policy_direction: that some policy is about */
	__u8 pad[3];
};

/* peer_classes: LPM trie, of who is no endpoint of this host. prefixlen: 32 + the prefix's length as IPv6, as in `acls`. */
struct peer_class_key {
	__u32 prefixlen;
	__u32 generation;
	struct ip_addr addr;
};
struct peer_class {
	__u32 peer;
};

/* port_scopes: published ports that policies are about, by the host's address and port as in `ports` */
struct port_scope_key {
	__u32 generation;
	struct ip_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct port_scope {
	__u32 published; /* number, in `rulesets` */
};

/* rulesets: what becomes of each port. Of a peer without a set of its own, that of peer 0 counts. */
struct ruleset_key {
	__u32 generation;
	__u32 subject;
	__u32 peer;	 /* class */
	__u16 published; /* number of the port by which it comes; 0: of none that policies are about */
	__u8 direction; /* POLICY_OUT, POLICY_IN */
	__u8 proto;	/* TCP, UDP, ICMP for that of both families, 0: any other */
	__u8 part;	/* of a set that one row does not hold, from 0 */
	__u8 pad[3];
};
struct span {
	__u16 first, last; /* ports, host order */
	__u16 rule;	   /* that decides, 0: none */
	__u16 would;	   /* that would refuse it, were it not in audit mode; 0: none */
	__u8 reason;	   /* enum reason, of what is refused; 0: it may pass */
	__u8 told;	   /* 1: who is refused hears of it, unless he is outside */
	__u8 pad[2];
};
struct ruleset {
	struct span rest;  /* of ports that are in no span */
	__u16 parts, used; /* rows of the set; spans in this one, which are disjoint */
	struct span spans[16];
};

/* rule_hits: rows are made with the rules */
struct rule_hit_key {
	__u32 generation;
	__u32 rule; /* number */
};
struct rule_hit {
	__u64 openings; /* that it has let pass */
	__u64 packets;	/* that it has refused; openings that it would have, in audit mode */
	__u64 last;	/* ns, CLOCK_MONOTONIC, in steps of a few ms: the last of either, 0: none */
};

/* admissions: what was judged and passes untranslated. The key is a struct flow_id, of any network. */
struct admission {
	__u32 generation;
	__u32 from;    /* who has begun: number of an endpoint, or enum other_party; */
	__u32 to;      /* likewise, the other end */
	__u8 b_began;  /* 1: who has begun is the end `b` of the key */
	__u8 finished; /* TCP: 1: FIN or RST was seen, a SYN begins another connection */
	__u8 pad[2];
};

/* ---- services ----------------------------------------------------------------- */

/*
 * A service is a virtual address in front of backends, which are members of its network, here or on other hosts. Its
 * number, and those of its backends, are never used twice on one host, nor for an endpoint.
 */
enum service_choice {
	CHOICE_MAGLEV =
		0, /* by the client's address and port: the same on every host of a cluster */
	CHOICE_RANDOM = 1,
	CHOICE_LEAST = 2, /* of two at random the one with fewer connections, by their weights */
};

enum service_flag {
	SERVICE_DSR =
		1, /* backends on other hosts answer clients outside by their own host (asked.h) */
};

/* services: a table of slots for each family. A table that is replaced gets another number, and goes after that. */
struct service_key {
	__u32 service; /* number */
};
struct service {
	__u32 network;
	__u32 choice; /* enum service_choice */
	__u32 affinity; /* seconds that a client's next connection is for the same backend, 0: none is */
	__u32 seed;   /* of the clients' hashes */
	__u32 table4; /* number of the slots for IPv4, */
	__u32 size4;  /* and how many they are; 0: no backend is up */
	__u32 table6;
	__u32 size6;
	__u32 flags; /* enum service_flag */
};

/* slots: 64 of a table's, from 64 times `chunk` on */
struct slots_key {
	__u32 table;
	__u32 chunk;
};
struct slots {
	__u32 backend[64]; /* numbers; 0: none */
};

enum backend_state {
	BACKEND_UP = 1,
	BACKEND_DRAINING = 2, /* no new connections */
	BACKEND_DOWN = 3, /* and what UDP it has is another's: over TCP a connection cannot be */
};

struct backend_key {
	__u32 backend; /* number */
};
struct backend {
	__u32 service;	      /* number */
	__u32 endpoint;	      /* number, or PARTY_PEER */
	__u32 state;	      /* enum backend_state */
	__u32 weight;	      /* from 1 */
	struct ip_addr addr4; /* zero: it has none of that family */
	struct ip_addr addr6;
};

/* affinities: the backend that a client had last */
struct affinity_key {
	__u32 service; /* number */
	struct ip_addr client;
};
struct affinity {
	__u64 seen;    /* ns, CLOCK_MONOTONIC: when the client opened a connection last */
	__u32 backend; /* number */
	__u32 pad;
};

/* loads: confirmed connections of backends of services with CHOICE_LEAST. The programs make the rows. */
struct load_key {
	__u32 endpoint; /* number, or PARTY_PEER */
	struct ip_addr addr;
};
struct load {
	__u32 conns;
	__u32 pad;
};

enum service_count_flag {
	COUNT_PAST =
		0x80000000, /* in the number: what a service's backends that are gone have had */
};

/* service_counts: PERCPU_HASH, by the number of a service, and of a backend. The programs make the rows, but for those
 * with COUNT_PAST. */
struct service_count_key {
	__u32 number;
};
struct service_count {
	__u64 opened; /* connections */
	__u64 failed; /* none was: a service has no backend that is up, a backend no room for one more */
	/* As in struct conn, of backends alone: what clients sent, and what was answered. */
	__u64 packets_in, bytes_in;
	__u64 packets_out, bytes_out;
};

/* ---- connections -------------------------------------------------------------- */

/* A packet's addresses as a hook sees them arrive. ICMP echo: the identifier is the port of
 * the side that asks, the other side's port is 0. */
struct tuple {
	struct ip_addr src;
	struct ip_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

/* Who takes part in a connection or sends a fragment, where that is no endpoint. */
enum other_party {
	PARTY_OUTSIDE = 0,
	PARTY_HOST = 0xffffffff, /* a socket of the host's, over its loopback device */
	PARTY_PEER = 0xfffffffe, /* a member of an overlay network, on another host */
};

enum conn_flag {
	CONN_ORIGINAL = 1,  /* this direction opened the connection; the other is the reply */
	CONN_CONFIRMED = 2, /* both sides have spoken: lives in `conns`, not in `pending` */
	CONN_QUESTION =
		4, /* to an upstream of a container's resolver: over UDP its reply alone has an entry */
	CONN_SERVICE = 8,  /* to a backend of a service */
	CONN_COUNTED = 16, /* likewise, and it is counted in `loads` */
	CONN_DSR = 32,	   /* likewise; the backend's host sends the client most answers itself */
};

enum conn_state {
	CONN_NEW = 0,	  /* opened, unanswered */
	CONN_REPLIED = 1, /* answered */
	CONN_ESTABLISHED = 2,
	CONN_CLOSING = 3, /* one side has sent FIN */
	CONN_CLOSED = 4,  /* FIN from both, or RST */
};

/*
 * One direction of a connection: original or reply. A packet that arrives as its key leaves as the
 * reverse of `other`, which is also the key of the opposite direction. The connection's state is
 * kept in the original direction. With what the kernel adds a row takes 192 bytes, and its allocator
 * has no size between that and 256.
 */
struct conn {
	struct tuple other;
	__u64 last_seen;     /* ns, CLOCK_MONOTONIC */
	__u32 from_endpoint; /* who may send it: number, or enum other_party */
	__u32 to_network;    /* where it is delivered; 0: to no container */
	__u32 to_endpoint;   /* PARTY_OUTSIDE: routed by the host's table */
	__u32 ack;	     /* TCP: the last acknowledgement in this direction, host order;
			      * a question over UDP: the message's id, and 2^16 times the upstream's place */
	__u8 flags;	     /* enum conn_flag */
	__u8 state;	     /* enum conn_state */
	__u8 fin;	     /* bit 0: original side has sent FIN, bit 1: reply side; bit 2: the
			      * resolver has taken it over from an upstream, which is still to hear of it */
	__u8 uplink;	     /* the device that it left by, if none of a network's: its index modulo
			      * 255, and one; 0: not known. Of masqueraded ones: by which they began */
	__u32 since;	     /* when it was opened, in 2^24 ns of CLOCK_MONOTONIC; 0: not known */
	__u64 packets; /* in this direction, as they came, each segment of a large one by itself, */
	__u64 bytes;   /* and their bytes from the IP header on */
	__u32 backend; /* of the service that chose it, its number; 0: none has, or it is not known */
	__u32 generation; /* of the policies that it was last judged by; 0: of none */
	__u16 watched;	  /* number of the network in whose `edges` it is counted; 0: in none */
	__u8 pad[2];
	__u32 removals; /* what that of `removals` was when both parties were seen to be there */
};

/* removals: ARRAY of one. A connection whose endpoint has no row in `quotas` any more is none; whoever meets one looks, if
 * endpoints have been removed since somebody has. */
struct removals {
	__u32 count; /* of endpoints that had connections */
	__u32 begun; /* the count with which the conntrack GC began to look at all connections */
	__u64 left;  /* how many it is still to look at for that */
};

/* ---- address translation ------------------------------------------------------- */

/* externals: the host's ports (ICMP: identifiers) that containers' ports are mapped to (RFC 4787) */
struct external_key {
	struct ip_addr addr; /* the host's */
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct external {
	struct ip_addr addr; /* the container's */
	__u32 endpoint;	     /* number */
	__be16 port;	     /* the container's */
	__u8 pad[2];
	__u64 seen; /* ns, CLOCK_MONOTONIC: a connection used it */
};

/* mappings: which external port a container's port has, if it is not the same number */
struct mapping_key {
	struct ip_addr addr;	 /* the container's */
	struct ip_addr external; /* the host's */
	__u32 endpoint;		 /* number */
	__be16 port;		 /* the container's */
	__u8 proto;
	__u8 pad;
};
struct mapping {
	__be16 port; /* the host's */
	__u8 pad[2];
};

/* origins: the host's port at which a container's port is published, which is then its external port as well */
struct origin_key {
	struct ip_addr addr; /* the host's; 0.0.0.0 and ::, all of the host's of that family */
	__u32 endpoint;	     /* number */
	__be16 port;	     /* the container's */
	__u8 proto;
	__u8 pad;
};
struct origin {
	__be16 port; /* the host's */
	__u8 pad[2];
};

/* contacts: servers that containers have reached with a port of the host's: its sockets come to no other's
 * conversation with them */
struct contact_key {
	struct ip_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
struct contact {
	struct ip_addr source; /* the host's address that was used last */
	__u32 ephemeral; /* 1: with ports that the kernel could choose for the host's sockets */
};

/* gc_timers: ARRAY of one: the conntrack GC, which deletes confirmed connections that have timed out */
struct gc_timer {
	struct bpf_timer timer;
	__u64 ticked; /* ns, CLOCK_MONOTONIC: when it last ran */
	__u64 queued; /* connections in the queue `confirmed` */
};

/* The mark of a test run of conn_gc */
enum gc_order {
	GC_TAKE_OVER = 1, /* the timer is to run this program from now on, whichever it runs */
	GC_REMOVED = 2,	  /* an endpoint is gone, and its row in `quotas`: so are its connections */
};

/* ---- by way of the host's stack ------------------------------------------------- */

/* host_routed: LPM trie, prefixes beyond a network that its members reach by way of the host's stack, whose packet filter
 * translates them. The network's number is matched whole, then the address: prefixlen is 32 + the prefix's length as
 * IPv6. The value is a struct subnet. */
struct host_routed_key {
	__u32 prefixlen;
	__u32 network;
	struct ip_addr addr;
};

/* detours: what a container sends by way of the host's stack, and may get back by it. The key is the tuple as the
 * container sends it. */
struct detour {
	__u32 endpoint; /* number */
	__u32 answers;	/* 1: the host has forwarded the flow to it, 0: it has begun it */
};

/* ---- fragments ------------------------------------------------------------------ */

/* fragments: datagrams of which the first fragment, which alone has the ports, was seen */
struct fragment_key {
	struct ip_addr src;
	struct ip_addr dst;
	__be32 id;	/* IPv4: the 16-bit identification, as it is */
	__u32 endpoint; /* who sends it: number, or enum other_party */
	__u8 proto;
	__u8 pad[3];
};

/* A piece of a datagram that has been seen, in bytes: first, and behind the last. */
struct piece {
	__u16 from;
	__u16 to;
};

struct fragment {
	__u64 since; /* ns, CLOCK_MONOTONIC */
	__be16 sport;
	__be16 dport;
	__u8 known;	/* the first fragment was seen: the ports are right */
	__u8 foreign;	/* it is the host's: so are the others */
	__u8 refused;	/* 1: pieces overlapped (RFC 5722), DROP_FRAGMENT: the first was dropped */
	__u8 pieces;	/* how many of `seen` are used */
	__u8 proto;	/* of the transport, which IPv6's later fragments need not name */
	__u8 has_ports; /* it has ports, or an echo's identifier */
	__u16 number;	/* of the datagram among those of its source */
	__u32 claimed;	/* places of `seen` that were given out, each to one CPU */
	__u32 bytes;	/* that they make up together */
	__u32 total;	/* bytes of the datagram, 0 until its last fragment was seen */
	struct piece seen[64];
};

/* frag_queue: fragments that arrived before their first one, one a slot */
struct frag_queue_key {
	struct fragment_key fragment;
	__u32 slot;
};
struct frag_queue {
	__u64 since;  /* ns, CLOCK_MONOTONIC */
	__u32 length; /* of the frame, bytes; the highest bit: it has no Ethernet header */
	struct piece piece;
	__u8 frame[2048];
};

/* frag_sources: who sends fragments, and which datagrams it has begun lately */
struct frag_source_key {
	struct ip_addr src; /* zero: of a container, which is one source */
	__u32 endpoint;	    /* number, or enum other_party */
};
struct frag_source {
	__u32 begun;			   /* datagrams, ever */
	struct fragment_key datagrams[64]; /* the latest of them, by number modulo 64 */
};

enum host_flag {
	HOST_XFRM_OUT = 1, /* `xfrm_policies` has rows for packets that leave or are forwarded */
	HOST_XFRM_IN = 2,  /* and for packets to the host itself */
	HOST_STEERED = 4,  /* it has rules of policy routing or IPsec policies: what reaches its own
			    * addresses does not always reach a container */
	HOST_OTHER_NAT =
		8, /* its packet filter masquerades, too, and keeps ports if it can: so they are not kept here */
};

/* host: ARRAY of one, what the host is like as of the last refresh */
struct host {
	__u32 flags;	      /* enum host_flag */
	__u16 nat_port_first; /* source ports for masquerading, inclusive, host order; 0: not known yet */
	__u16 nat_port_last;
	__u16 ephemeral_first; /* ports that the kernel gives to sockets of the host's, inclusive, host order */
	__u16 ephemeral_last;
};

/* Which packets an IPsec policy is about: XFRM_POLICY_* of linux/xfrm.h. */
enum xfrm_direction {
	XFRM_IN = 0,  /* to the host itself */
	XFRM_OUT = 1, /* that leave it, forwarded ones as well */
	XFRM_FWD = 2, /* that are forwarded */
};

/* xfrm_policies: LPM trie, the host's IPsec policies by destination. Direction and family are matched whole, then
 * the address: prefixlen is 32 + the prefix's length as IPv6, as in `acls`. */
struct xfrm_key {
	__u32 prefixlen;
	__u16 direction; /* enum xfrm_direction */
	__u16 family;	 /* AF_INET, AF_INET6 */
	struct ip_addr addr;
};

/* What else of a packet a policy is about; a mask of zero: anything. */
struct xfrm_selector {
	struct ip_addr src;
	struct ip_addr src_mask;
	__be16 sport;
	__be16 sport_mask;
	__be16 dport;
	__be16 dport_mask;
	__u8 proto;
	__u8 proto_mask;
	__u8 closed; /* 1: such a packet is protected or blocked, 0: it passes as it is */
	__u8 pad;
};

/* All policies about a destination, those of shorter prefixes as well, in the kernel's order: the first that
 * a packet matches decides. */
struct xfrm_policy {
	__u32 used; /* how many of `selectors` there are */
	__u32 closed; /* what matches none of them: 1: there are more policies, or the kernel blocks what has none */
	struct xfrm_selector selectors[8];
};

/* addresses: the host's own, but for IPv6's link-local ones; loopback is understood */
struct address_key {
	struct ip_addr addr;
};
struct address {
	__u32 ifindex; /* the device that has it */
};

/* linklocals: the IPv6 link-local addresses of the host's uplinks. Each is the host's on that link only, and another's
 * on another (RFC 4007). The value is a struct address. */
struct linklocal_key {
	struct ip_addr addr;
	__u32 ifindex;
};

/* local_prefixes: LPM trie, prefixes all of whose addresses are the host's though no device has them (routes of type
 * local: "AnyIP"). prefixlen is the prefix's length as IPv6, so 96 + n for an IPv4 /n. */
struct local_prefix_key {
	__u32 prefixlen;
	struct ip_addr addr;
};

/* sockets: what a host process asked for, where connect() or sendmsg() was pointed elsewhere */
struct socket_key {
	__u64 cookie;	     /* bpf_get_socket_cookie() */
	struct ip_addr addr; /* where it really talks to */
	__be16 port;
	__u8 pad[6];
};
struct socket {
	struct ip_addr addr; /* where it believes to talk to */
	__be16 port;
	__u8 pad[2];
};

/* ---- other hosts -------------------------------------------------------------- */

/* How packets get to another host. */
enum transport {
	TRANSPORT_VXLAN = 1,	 /* in a VXLAN tunnel (RFC 7348) */
	TRANSPORT_DIRECT = 2,	 /* as they are, to hosts on one link; to others as above */
	TRANSPORT_WIREGUARD = 3, /* in a WireGuard tunnel, or not at all */
};

enum overlay_flag {
	OVERLAY_CHECKSUM = 1, /* outer UDP datagrams have one, from the tunnels' device */
	OVERLAY_ROUTED =
		2, /* routers know the way to its addresses: also to hosts behind one, and from anybody */
};

/* overlays: networks whose members are on several hosts */
struct overlay_key {
	__u32 network; /* number */
};
struct overlay {
	__u32 vni;	 /* of 24 bits */
	__u32 transport; /* enum transport */
	__u32 flags;	 /* enum overlay_flag */
	__u32 pad;
	struct ip_addr subnet4; /* what its addresses are under the mask; zero: none */
	struct ip_addr mask4;
	struct ip_addr block_mask4; /* of each address the key in `remote_blocks` */
	struct ip_addr subnet6;
	struct ip_addr mask6;
	struct ip_addr block_mask6;
};

/* vnis: which network a frame in a VXLAN tunnel is of */
struct vni_key {
	__u32 vni;
};
struct vni {
	__u32 network; /* number */
};

enum peer_flag {
	PEER_DIRECT = 1,    /* on one link with this host */
	PEER_WIREGUARD = 2, /* a peer of this host's WireGuard device */
};

/* peers: the other hosts of the cluster */
struct peer_key {
	__u32 number; /* in the cluster, from 1 */
};
struct peer {
	struct ip_addr addr; /* its end of each tunnel (VTEP) */
	__u32 flags;	     /* enum peer_flag */
	__u32 mtu;	     /* bytes of an IP packet that its own devices take */
	__u8 mac[6];	     /* that frames in tunnels to it are addressed to */
	__u8 pad[2];
};

/* vteps: the peer that a packet of a tunnel comes from, by its outer source */
struct vtep_key {
	struct ip_addr addr;
};
struct vtep {
	__u32 peer; /* number */
};

/* remote_addrs: the peer that has a member with this address, where it is not in a block of that peer's; and
 * remote_blocks: by the first address of a block, which is the address under the network's mask of blocks */
struct remote_key {
	__u32 network; /* number */
	struct ip_addr addr;
};
struct remote {
	__u32 peer; /* number */
};

enum tunnel_flag {
	TUNNEL_DIRECT = 1, /* there are networks whose packets come as they are: `subnets` */
};

/* tunnel: ARRAY of one: this host's own end */
struct tunnel {
	struct ip_addr addr4; /* zero: it has none of that family */
	struct ip_addr addr6;
	__u32 ifindex;	 /* the device for what the programs cannot do themselves, 0: none */
	__u32 wireguard; /* the device of WireGuard tunnels, 0: none */
	__u32 peer;	 /* this host's own number in the cluster; 0: it has no part in one */
	__u32 flags;	 /* enum tunnel_flag */
	__be16 port;	 /* of UDP, where every host receives */
	__u8 mac[6];	 /* that frames to it are addressed to, and its own come from */
};

/* epoch: ARRAY of one. What the programs remember of rows counts as long as this stays as it is: whoever has written rows
 * of networks, devices, endpoints or overlays writes another number. */
struct epoch {
	__u64 changed; /* ns, CLOCK_MONOTONIC, of the last change */
};

/* callers: other hosts that have asked a member of this one. They ask in the name of the gateway, which every host has. The
 * key is the tuple of the answer, as the container sends it. The port that a client has in it is no other client's: where
 * the member is on another host, which has said that it is, the row says who had it here, until now. */
struct caller {
	__u32 network; /* number */
	__u32 peer;    /* number; 0: the member is on another host */
	/* What a client outside has asked there, for its answers to come from: 0: the other host sends them. */
	struct ip_addr addr;
	__be16 port;
	__u8 over; /* enum caller_over */
	__u8 pad;
	__u32 mark; /* of what a client outside has asked there (callers.h), else the peer; 0: it is not known.
		     * Where the member is on another host, the port that the client has asked from, as it is */
	__u64 told; /* ns, CLOCK_MONOTONIC: when an answer last went by the other host, 0: none has */
	__u64 seen; /* likewise, when it last asked, give or take a second; TCP: when it began */
};

/* How far a TCP connection is that another host has opened. */
enum caller_over {
	OVER_ASKED = 1,	   /* the client has sent FIN, */
	OVER_ANSWERED = 2, /* the member has, */
	OVER_RESET = 4,	   /* or either has RST */
};

/* ---- names -------------------------------------------------------------------- */

/*
 * Names are in wire form (RFC 1035, 3.1), in lower case, zero-padded: the only zero byte of a name is its last, so none
 * is another's beginning. Records are resource records as they are sent, each with the name as a pointer to the
 * question (c0 0c); those of one set have one size.
 */

/* Whose names they are. Below this a scope is a network's number, else an endpoint's and this bit: names that only the
 * sandbox of that endpoint sees (--link). */
enum name_scope {
	SCOPE_ENDPOINT = 0x80000000,
};

/* names: those of up to 60 bytes, and, for PTR questions, what who has an address is called. For an endpoint on this
 * host, which `endpoints` finds by any of its addresses, the name is the byte 254, three zeros and its number; for others
 * the byte 255, three zeros and the struct ip_addr. No name begins with these. */
struct name_key {
	__u32 scope; /* enum name_scope */
	__u8 name[60];
};

/* long_names: the longer ones. The value is a struct name. */
struct long_name_key {
	__u32 scope;
	__u8 name[256];
};

/* The records of one type. */
struct rrset {
	__be16 type; /* A, AAAA or PTR; 0: there is none */
	__u8 count;
	__u8 size; /* bytes of each */
};

/* What is known of a name; of a type that it has no records of there are none at all (NODATA). A set of several records
 * stands in `records` twice over, so that it can be read from any of them on; the second set is behind the first.
 * With what the kernel adds, a row of `names` takes 192 bytes, and its allocator has no size between that and 256. */
struct name {
	__u64 kept[2]; /* the row of `name_sets` that each of `sets` is in, 0: this one */
	struct rrset sets[2];
	__u8 records[48];
};

/* name_sets: sets that do not fit into a name's own row */
struct name_set_key {
	__u64 set;
};
struct name_set {
	__u16 count;
	__u16 size;	    /* bytes of each */
	__u8 records[1020]; /* twice over if there are several */
};

/* The upstream servers of a sandbox that are asked, in this order. */
struct upstream {
	struct ip_addr addr;
	__u32 network; /* it is a member of this one; 0: of none */
	__u32 ifindex; /* of a link-local address its link, else 0 */
};

/* tails: PROG_ARRAY, the programs that others go on in */
enum tail {
	TAIL_RESOLVE = 0,    /* a question to the resolver's address */
	TAIL_ASK = 1,	     /* one that an upstream is to answer */
	TAIL_ANSWERED = 2,   /* what an upstream says to it */
	TAIL_TO_PEER = 3,    /* what is for a member of an overlay network on another host */
	TAIL_FROM_PEER = 4,  /* a tunnel's packet from another host */
	TAIL_TO_LAN = 5,     /* what a container sends to the link of its network's parent */
	TAIL_TO_SERVICE = 6, /* what begins a connection to a service */
	TAIL_BEGIN = 7,	     /* what a container begins another translated connection by */
	TAIL_COUNT = 8,
};

/* resolvers: what one endpoint's questions to 127.0.0.11, and to its gateway's address, are answered with */
struct resolver_key {
	__u32 endpoint; /* number */
};

/* `networks`: whose names its sandbox sees, in the order in which they are looked for; 0: no more. `egress`: the network
 * by whose routes upstreams outside are asked; 0: a name that is not ours does not exist, but for what members in
 * `upstreams` know. */
struct resolver {
	__u32 networks[16];
	__u32 private_scope; /* enum name_scope, looked for first; 0: it has none */
	__u32 egress;
	struct upstream upstreams[3]; /* a zero address: no more */
};

/* subnets: LPM trie, of our networks: who has an address in there is not asked of anybody else. prefixlen is the
 * prefix's length as IPv6, so 96 + n for an IPv4 /n. */
struct subnet_key {
	__u32 prefixlen;
	struct ip_addr addr;
};
struct subnet {
	__u32 network; /* number */
};

/* upstreams: how servers that were asked behave */
struct upstream_key {
	struct ip_addr addr;
	__u32 ifindex;
};
struct upstream_state {
	__u64 asked; /* ns, CLOCK_MONOTONIC: of the first question since its last answer, 0: it owes none */
	__u64 dead_until; /* ns, CLOCK_MONOTONIC: it is passed over */
};

/* questions: those to upstreams that have no answer yet */
struct question_key {
	struct ip_addr src; /* as it was asked */
	__u32 endpoint;	    /* number */
	__be16 port;
	__be16 id; /* of the message */
};
struct question {
	__u64 asked;   /* ns, CLOCK_MONOTONIC */
	__u8 upstream; /* the place in `upstreams` of whom it was sent to last, */
	__u8 tried;    /* and which were asked, a bit each */
	__be16 size;   /* bytes of UDP that its OPT record offers, */
	__u8 edns;     /* and what else that says (query.h); 0: it has none */
	__u8 pad[3];
};

/* name_counts: PERCPU_HASH, questions of a network's members. The programs make the rows. */
struct name_count_key {
	__u32 network; /* number */
};
struct name_count {
	__u64 answered;	   /* with records */
	__u64 nodata;	   /* the name is ours, of that type there is none */
	__u64 nxdomain;	   /* told that there is no such name, by the programs themselves */
	__u64 forwarded;   /* to an upstream */
	__u64 failed_over; /* to another one, as one did not know or did not answer */
	__u64 refused;	   /* nobody could be asked */
};

/* ---- who talks to whom -------------------------------------------------------- */

/*
 * flows: what members of networks with NETWORK_FLOWS have to do with each other and with the host, untranslated: one row
 * for both directions of an address pair, its ports and its protocol. Of the two ends `a` is the lesser, in the order in
 * which the programs compare them. Ports are 0 where packets have none, and of fragments, of which all but one have
 * none; an ICMP echo's identifier is the port of who asks. The GC ends rows, and adds what they counted to `edges`.
 */
struct flow_id {
	struct ip_addr addr_a;
	struct ip_addr addr_b;
	__be16 port_a;
	__be16 port_b;
	__u8 proto;
	__u8 pad;
	__u16 network; /* number */
};

/* What one end has sent. */
struct flow_half {
	__u64 packets;	/* as on a wire: each segment of a large one by itself */
	__u64 bytes;	/* of IP packets */
	__u64 seen;	/* ns, CLOCK_MONOTONIC, in steps of a few ms: the last of them */
	__u64 since;	/* likewise: when the row began */
	__u32 from;	/* number of the endpoint, or enum other_party */
	__u32 to;	/* likewise */
	__u32 ended;	/* 1: what is counted from now on is not for this row any more */
	__u32 openings; /* connections that it has begun: 0, where only the middle of one was seen */
	__u8 opener;	/* 1: it has begun, not the other end */
	__u8 finished;	/* TCP: bit 0: it has sent FIN, bit 1: RST */
	__u8 pad[14];
};

/* Each half is a cache line, so that two CPUs with a direction each have one each. */
struct flow {
	struct flow_half a;
	struct flow_half b;
};

/* edges: totals of all that has ended, by who has begun, whom he has talked to, and at which of that one's ports. What
 * was refused is there at once. */
struct edge_id {
	__u32 network;
	__u32 from; /* number of an endpoint, or enum other_party */
	__u32 to;   /* likewise; of what was refused before that was known, PARTY_OUTSIDE */
	__u32 rule; /* 0 */
	__be16 port;
	__u8 proto;
	__u8 reason; /* enum reason; 0: it was not refused */
};

struct edge {
	__u64 connections;  /* of what was refused: packets that would have opened one */
	__u64 sent_packets; /* by who has begun */
	__u64 sent_bytes;
	__u64 received_packets;
	__u64 received_bytes;
	__u64 first; /* ns, CLOCK_MONOTONIC, in steps of a few ms: when its first packet was counted, */
	__u64 last; /* and its last one */
};

/* parties: what users called endpoints, for totals of those that are gone */
struct party_key {
	__u32 endpoint; /* number */
};
struct party {
	__u8 name[64]; /* UTF-8, zero-padded */
};

/* flow_rest: ARRAY of one */
struct flow_rest {
	__u64 queued;	  /* rows of `flows` that are in the GC's queue */
	struct edge over; /* the totals of all that `edges` has no room for */
};

/* ---- what happened ------------------------------------------------------------ */

/* Every verdict is counted under one of these. From DROP_FIRST on the packet was dropped. */
enum reason {
	NOT_OURS = 0,	 /* left to the host's stack, untouched */
	DELIVERED = 1,	 /* to a container */
	TO_HOST = 2,	 /* to the host's stack, through the gateway device */
	TO_OUTSIDE = 3,	 /* routed to an uplink */
	ANSWERED = 4,	 /* ARP or neighbour solicitation, answered by the program */
	FLOODED = 5,	 /* broadcast or multicast, copied to the members */
	ABSORBED = 6,	 /* needs no action: gratuitous ARP and the like */
	HELD = 7,	 /* a fragment that came before its first one, kept for a moment */
	UNCONFIRMED = 8, /* counted besides the packet's own: both sides of a connection
				  * have spoken, but the table, or its container's share of it,
				  * is full; it goes on, where a flood can evict it */
	TO_PEER = 9,	 /* to a container on another host */
	WOULD_OUT = 10,	 /* counted besides: a policy in audit mode would not let it out, */
	WOULD_IN = 11,	 /* or not let it in */

	DROP_FIRST = 16,
	DROP_DEVICE = 16,	 /* device is not (or no longer) in the map */
	DROP_TRUNCATED = 17,	 /* a header is cut short or lies about its length */
	DROP_VLAN = 18,		 /* tagged frame */
	DROP_ETHERTYPE = 19,	 /* neither ARP, IPv4 nor IPv6 */
	DROP_SPOOFED_MAC = 20,	 /* the source MAC is not the container's own */
	DROP_SPOOFED_ADDR = 21,	 /* the source address is not the container's own */
	DROP_SPOOFED_ARP = 22,	 /* ARP or a neighbour advertisement for somebody else */
	DROP_UNKNOWN_ARP = 23,	 /* nobody has the address that is asked for */
	DROP_NO_IPV6 = 24,	 /* the network has no IPv6 */
	DROP_ROUTER = 25,	 /* router advertisement or redirect from a container */
	DROP_ICC = 26,		 /* members may not talk to each other */
	DROP_ISOLATED = 27,	 /* belongs to another network */
	DROP_INTERNAL = 28,	 /* the network has no outside */
	DROP_NO_ENDPOINT = 29,	 /* no member has the address */
	DROP_WRONG_MAC = 30,	 /* meant for no device of the network */
	DROP_BAD_ADDR = 31,	 /* loopback, zero, multicast source and the like */
	DROP_NO_ROUTE = 32,	 /* no way out for an answer, or no source address for it */
	DROP_PROTOCOL = 33,	 /* cannot be translated */
	DROP_FRAGMENT = 34,	 /* a fragment whose first one is not known */
	DROP_NAT_PORTS = 35,	 /* no free source port */
	DROP_CONN_TABLE = 36,	 /* the table would not take the connection */
	DROP_STALE = 37,	 /* connection of an endpoint that is gone */
	DROP_DIRECT = 38,	 /* from outside straight to a container's address */
	DROP_REWRITE = 39,	 /* a helper refused to change the packet */
	DROP_MULTICAST_OFF = 40, /* multicast that must not leave the container */
	DROP_NO_CONN = 41,	 /* an ICMP error about nothing that is known */
	DROP_TOO_BIG = 42,	 /* larger than the way takes; the sender is told */
	DROP_TTL = 43,		 /* no hop left; the sender is told */
	DROP_OVERLAP = 44,    /* fragment that overlaps another, or of a datagram where some do */
	DROP_DENIED = 45,     /* the published port is not for this source */
	DROP_FLOOD = 46,      /* more openings than one source may make */
	DROP_LIMIT = 47,      /* more connections than one container may have */
	DROP_XFRM = 48,	      /* an IPsec policy of the host's is about it: not in clear */
	DROP_ENCAP = 49,      /* its route encapsulates, which the programs cannot */
	DROP_FORWARDING = 50, /* its gateway device does not forward, or its route is unknown */
	DROP_TAIL = 51, /* a question for a name, and a program that answers those is not loaded */
	DROP_BANDWIDTH = 52,	 /* its container sends or receives more than it may */
	DROP_NO_REMOTE = 53,	 /* no host of the cluster has the address */
	DROP_NO_TUNNEL = 54,	 /* this host has no end of a tunnel, or no device, for it */
	DROP_TUNNEL_SENDER = 55, /* in a tunnel from somebody who is no host of the cluster */
	DROP_TUNNEL_SOURCE = 56, /* in a tunnel from a host that has not the source address */
	DROP_TUNNEL_FRAME = 57,	 /* in a tunnel, and not for one member: broadcast, ARP */
	DROP_CONGESTED = 58,	 /* marked in its tunnel, and its sender does not know marks */
	DROP_VNI = 59,		 /* in a tunnel, of no network that this host takes part in */
	DROP_NO_BACKEND = 60,	 /* its service has no backend that is up; the sender is told */
	DROP_OUT = 61,		 /* a policy of its sender's does not let it out */
	DROP_IN = 62,		 /* a policy of its receiver's does not let it in */
	REASON_COUNT = 64,
};

/* counters: PERCPU_ARRAY of REASON_COUNT */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* events: RINGBUF, sampled drops */
struct event {
	__u64 when;	/* ns, CLOCK_MONOTONIC */
	__u32 reason;	/* enum reason */
	__u32 ifindex;	/* where it was dropped */
	__u32 length;	/* of the whole packet, bytes */
	__u16 captured; /* bytes valid in head */
	__u16 pad;
	__u8 head[64];
};
