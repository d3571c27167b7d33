# SPDX-License-Identifier: Apache-2.0
"""The parts of the dataplane: its maps, its hooks, its object files, and what can be chosen when it is loaded. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Literal, NamedTuple

# Enumerators of abi.h: enum network_flag, enum device_kind, enum host_flag, enum xfrm_direction, enum transport,
# enum overlay_flag, enum peer_flag, enum tunnel_flag, enum service_choice, enum backend_state.
NetworkFlag = Literal[
    "NETWORK_ACTIVE",
    "NETWORK_IPV4",
    "NETWORK_IPV6",
    "NETWORK_ICC",
    "NETWORK_INTERNAL",
    "NETWORK_MASQUERADE",
    "NETWORK_RESOLVER",
    "NETWORK_BESIDE",
    "NETWORK_HOST_ROUTED",
    "NETWORK_OVERLAY",
    "NETWORK_LAN",
    "NETWORK_VEPA",
    "NETWORK_L3",
    "NETWORK_SERVICES",
    "NETWORK_QUESTIONS",
    "NETWORK_FLOWS",
]
DeviceKind = Literal[
    "DEVICE_ENDPOINT",
    "DEVICE_GATEWAY",
    "DEVICE_UPLINK",
    "DEVICE_LOOPBACK",
    "DEVICE_TUNNEL",
    "DEVICE_VXLAN",
    "DEVICE_PARENT",
]
HostFlag = Literal["HOST_XFRM_OUT", "HOST_XFRM_IN", "HOST_STEERED", "HOST_OTHER_NAT"]
XfrmDirection = Literal["XFRM_IN", "XFRM_OUT", "XFRM_FWD"]
Transport = Literal["TRANSPORT_VXLAN", "TRANSPORT_DIRECT", "TRANSPORT_WIREGUARD"]
OverlayFlag = Literal["OVERLAY_CHECKSUM", "OVERLAY_ROUTED"]
PeerFlag = Literal["PEER_DIRECT", "PEER_WIREGUARD"]
TunnelFlag = Literal["TUNNEL_DIRECT"]
ServiceChoice = Literal["CHOICE_MAGLEV", "CHOICE_RANDOM", "CHOICE_LEAST"]
BackendState = Literal["BACKEND_UP", "BACKEND_DRAINING", "BACKEND_DOWN"]
Direction = Literal["ingress", "egress"]
# enum limit_direction.
LIMIT_DIRECTIONS = {"ingress": 1, "egress": 2}
# enum endpoint_role.
ROLE_FORWARDING, ROLE_SERVES = 1, 2
# enum service_flag.
SERVICE_DSR = 1
# Of enum other_party: a member of an overlay network, on another host.
PARTY_PEER = 0xFFFFFFFE
# How many backends a row of `slots` takes.
SLOTS_IN_CHUNK = 64
# How many selectors a row of `xfrm_policies` takes.
XFRM_SELECTORS = 8

# Map -> the structs of its key and value in abi.h; no key: an array.
MAPS: Mapping[str, tuple[str | None, str]] = {
    "networks": (None, "network"),
    "devices": ("device_key", "device"),
    "parents": ("parent_key", "parent"),
    "endpoints": ("endpoint_key", "endpoint"),
    "routers": ("router_key", "endpoint"),
    "members": ("member_key", "member"),
    "ports": ("port_key", "port"),
    "reserved": ("reserved_key", "reserved"),
    "bindings": ("binding_key", "binding"),
    "host": (None, "host"),
    "addresses": ("address_key", "address"),
    "origins": ("origin_key", "origin"),
    "linklocals": ("linklocal_key", "address"),
    "local_prefixes": ("local_prefix_key", "address"),
    "host_routed": ("host_routed_key", "subnet"),
    "acls": ("acl_key", "acl"),
    "xfrm_policies": ("xfrm_key", "xfrm_policy"),
    "detours": ("tuple", "detour"),
    "links": ("link_key", "link"),
    "pending": ("tuple", "conn"),
    "conns": ("tuple", "conn"),
    "removals": (None, "removals"),
    "externals": ("external_key", "external"),
    "mappings": ("mapping_key", "mapping"),
    "contacts": ("contact_key", "contact"),
    "quotas": ("quota_key", "quota"),
    "arrivals": ("arrival_key", "arrival"),
    "limits": ("limit_key", "limit"),
    "rates": ("rate_key", "rate"),
    "fragments": ("fragment_key", "fragment"),
    "frag_queue": ("frag_queue_key", "frag_queue"),
    "frag_sources": ("frag_source_key", "frag_source"),
    "sockets": ("socket_key", "socket"),
    "overlays": ("overlay_key", "overlay"),
    "vnis": ("vni_key", "vni"),
    "peers": ("peer_key", "peer"),
    "vteps": ("vtep_key", "vtep"),
    "remote_addrs": ("remote_key", "remote"),
    "remote_blocks": ("remote_key", "remote"),
    "tunnel": (None, "tunnel"),
    "epoch": (None, "epoch"),
    "callers": ("tuple", "caller"),
    "services": ("service_key", "service"),
    "slots": ("slots_key", "slots"),
    "backends": ("backend_key", "backend"),
    "affinities": ("affinity_key", "affinity"),
    "loads": ("load_key", "load"),
    "service_counts": ("service_count_key", "service_count"),
    "names": ("name_key", "name"),
    "long_names": ("long_name_key", "name"),
    "name_sets": ("name_set_key", "name_set"),
    "resolvers": ("resolver_key", "resolver"),
    "subnets": ("subnet_key", "subnet"),
    "upstreams": ("upstream_key", "upstream_state"),
    "questions": ("question_key", "question"),
    "name_counts": ("name_count_key", "name_count"),
    "flows": ("flow_id", "flow"),
    "edges": ("edge_id", "edge"),
    "flow_rest": (None, "flow_rest"),
    "parties": ("party_key", "party"),
    "policy_state": (None, "policy_state"),
    "subjects": ("subject_key", "subject"),
    "peer_classes": ("peer_class_key", "peer_class"),
    "port_scopes": ("port_scope_key", "port_scope"),
    "rulesets": ("ruleset_key", "ruleset"),
    "rule_hits": ("rule_hit_key", "rule_hit"),
    "admissions": ("flow_id", "admission"),
    "counters": (None, "counter"),
    "config": (None, "config"),
}


# The maps that only the programs use, likewise; without a struct: what is in it does not last longer than a packet.
OWN_MAPS: Mapping[str, tuple[str | None, str | None]] = {
    "confirmed": (None, "tuple"),
    "flow_queue": (None, "flow_id"),
    "gc_timers": (None, "gc_timer"),
    "events": (None, "event"),
    "scratches": (None, None),
    "new_fragments": (None, None),
    "no_sources": (None, None),
    "frames": (None, None),
    "cuts": (None, None),
    "name_rooms": (None, None),
    "askings": (None, None),
    "message_rooms": (None, None),
    "tails": (None, None),
    "ways": (None, None),
    "tx_flows": (None, None),
    "rx_flows": (None, None),
    "tx_wides": (None, None),
    "rx_wides": (None, None),
    "host_flows": (None, None),
    "openings": (None, None),
}
# The maps that belong to one version's programs, and are never shared with another's while one takes the other's place:
# its settings, what lasts no longer than a packet, and the programs that others go on in, as these find in the scratch
# memory what that version has put there.
VERSION_MAPS = frozenset({"config", *(name for name, (_, struct) in OWN_MAPS.items() if struct is None)})
# The maps of policies. Their rows belong together, and to the generation that one of them says is in force.
POLICY_MAPS = frozenset(("policy_state", "subjects", "peer_classes", "port_scopes", "rulesets"))
# The maps whose rows are what the store and the host say, and nothing else.
TOLD_MAPS = frozenset(
    (
        *("networks", "devices", "endpoints", "routers", "members", "ports", "reserved", "bindings", "host"),
        *("addresses", "origins", "local_prefixes", "acls", "xfrm_policies", "links"),
        *("names", "long_names", "name_sets", "resolvers", "subnets", "host_routed", "parents"),
        *("overlays", "vnis", "peers", "vteps", "remote_addrs", "remote_blocks", "tunnel"),
        *("services", "slots", "backends"),
        *POLICY_MAPS,
    )
)
# The maps of what the programs count for networks, whose rows go with them.
COUNTED_MAPS = ("flows", "edges")
# The maps of whose rows programs remember something, until that of `epoch` changes (bpf/lib/flow_rows.h).
EPOCH_MAPS = frozenset(
    (
        *("networks", "devices", "endpoints", "subnets", "reserved"),
        *("overlays", "vnis", "peers", "vteps", "remote_addrs", "remote_blocks", "tunnel"),
        "policy_state",
    )
)


class Setup(NamedTuple):
    """What can be chosen when the programs are loaded: fields of struct config, and how many entries maps have."""

    config: Mapping[str, int]
    sizes: Mapping[str, int]


# No limits, and the sizes that the object files have. Seconds.
DEFAULT_SETUP = Setup(
    {
        "timeout_handshake": 60,
        "timeout_established": 24 * 3600,
        "timeout_half_closed": 120,
        "timeout_closing": 10,
        "timeout_udp": 180,
        "timeout_udp_exchange": 30,
        "timeout_icmp": 60,
    },
    {},
)


class Hook(NamedTuple):
    """Where a tc program is attached: in which direction, to which kind of devices. `own`: these are nobody else's,
    and come and go with their containers. `beside`: to some of them, which have another one, too."""

    direction: Direction
    kind: DeviceKind
    own: bool = False
    beside: bool = False


# Program -> hook. Each has an object file of its own.
HOOKS = {
    "from_container": Hook("ingress", "DEVICE_ENDPOINT", own=True),
    "from_host": Hook("egress", "DEVICE_GATEWAY"),
    "from_uplink": Hook("ingress", "DEVICE_UPLINK"),
    "from_tunnel": Hook("ingress", "DEVICE_TUNNEL"),
    "from_loopback": Hook("ingress", "DEVICE_LOOPBACK"),
    "from_vxlan": Hook("ingress", "DEVICE_VXLAN"),
    "from_parent": Hook("ingress", "DEVICE_PARENT"),
    "to_parent": Hook("egress", "DEVICE_PARENT", beside=True),
}
# Those of devices that lead outside, and the kinds of these.
UPLINK_HOOKS = ("from_uplink", "from_tunnel", "from_parent")
UPLINK_KINDS = tuple(HOOKS[hook].kind for hook in UPLINK_HOOKS)
HOOK_OF_KIND = {hook.kind: name for name, hook in HOOKS.items() if not hook.beside}
# That of parents whose network's members may not talk to each other, though the kernel hands their frames over.
POLICY_HOOK = "to_parent"
XDP_HOOK = "xdp_uplink"
# The program that starts the timer of the conntrack GC; attached to nothing.
CONN_GC = "conn_gc"
# The map of the programs that others go on in, and these: program -> its place there (enum tail). They are attached to
# nothing.
TAILS_MAP = "tails"
TAILS = {
    "resolve": "TAIL_RESOLVE",
    "ask": "TAIL_ASK",
    "answered": "TAIL_ANSWERED",
    "to_peer": "TAIL_TO_PEER",
    "from_peer": "TAIL_FROM_PEER",
    "to_lan": "TAIL_TO_LAN",
    "to_service": "TAIL_TO_SERVICE",
    "begin": "TAIL_BEGIN",
}
# Program -> where it is attached to the control group (enum bpf_attach_type).
SOCKET_HOOKS = {
    "host_bind4": 8,
    "host_bind6": 9,
    "host_connect4": 10,
    "host_connect6": 11,
    "host_sendmsg4": 14,
    "host_sendmsg6": 15,
    "host_recvmsg6": 20,
    "host_peer4": 29,
    "host_peer6": 30,
}
# Object file -> its programs.
OBJECT_FILES = {
    "from_container": ("from_container",),
    "from_host": ("from_host",),
    "from_uplink": ("from_uplink",),
    "from_tunnel": ("from_tunnel",),
    "from_loopback": ("from_loopback",),
    "from_vxlan": ("from_vxlan",),
    "from_parent": ("from_parent",),
    "to_parent": ("to_parent",),
    "xdp_uplink": (XDP_HOOK,),
    "host_socket": tuple(SOCKET_HOOKS),
    "conn_gc": (CONN_GC,),
    **{program: (program,) for program in TAILS},
}
# Those that are loaded with the first network. Each of the others has one program, and is loaded when something first
# needs it: a device that it is attached to, or a network whose packets go on in it.
FIRST = (
    *(CONN_GC, "from_container", "begin", "from_host", "from_uplink", "host_socket"),
    *("resolve", "ask", "answered"),
)
# Of the others, the maps that none of the first has and that are there from the first network on all the same.
LATER_MAPS = {XDP_HOOK: ("rates",)}
# The flag of a network -> the programs that its packets go on in.
TAILS_OF: Mapping[NetworkFlag, tuple[str, ...]] = {
    "NETWORK_OVERLAY": ("to_peer", "from_peer"),
    "NETWORK_LAN": ("to_lan",),
    "NETWORK_QUESTIONS": ("to_lan",),
    "NETWORK_SERVICES": ("to_service",),
}


def tails_of(flags: Container[str]) -> set[str]:
    """The programs that packets of a network with those flags go on in, besides those that are loaded first."""
    return {name for flag, names in TAILS_OF.items() if flag in flags for name in names}
