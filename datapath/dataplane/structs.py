# SPDX-License-Identifier: Apache-2.0
"""The structs of abi.h that this side writes, as tuples with the field names of abi.h. Pure.

Each class is one struct, named in STRUCTS: it has the struct's fields but for padding, in the struct's order, which a
test compares. Numbers are in host order. Enumerators are given by name ("NETWORK_ICC"); no address is None (zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from datapath.dataplane import service_structs
from datapath.dataplane.layout import (
    DeviceKind,
    HostFlag,
    NetworkFlag,
    OverlayFlag,
    PeerFlag,
    Transport,
    TunnelFlag,
    XfrmDirection,
)
from datapath.model.parsing import Address

NO_MAC = "00:00:00:00:00:00"


class HostValue(NamedTuple):
    flags: frozenset[HostFlag] = frozenset()
    nat_port_first: int = 0
    nat_port_last: int = 0
    ephemeral_first: int = 0
    ephemeral_last: int = 0


class NetworkValue(NamedTuple):
    flags: frozenset[NetworkFlag]
    ifindex: int
    slots: int
    mtu: int
    broadcast: IPv4Address | None
    mac: str
    gateway4: Address | None
    gateway6: Address | None
    gateway_linklocal: IPv6Address | None


class DeviceKey(NamedTuple):
    ifindex: int


class DeviceValue(NamedTuple):
    kind: DeviceKind
    network: int = 0
    endpoint: int = 0
    mac: str = NO_MAC
    forwarding: int = 0
    limited: int = 0
    addr4: Address | None = None
    addr6: Address | None = None
    linklocal: IPv6Address | None = None


class ParentKey(NamedTuple):
    network: int


class ParentValue(NamedTuple):
    ifindex: int
    mac: str


class EndpointKey(NamedTuple):
    network: int
    addr: Address


class EndpointValue(NamedTuple):
    ifindex: int
    number: int
    mac: str
    forwarding: int = 0
    limited: int = 0


class RouterKey(NamedTuple):
    network: int
    endpoint: int
    mac: str


class MemberKey(NamedTuple):
    network: int
    slot: int


class MemberValue(NamedTuple):
    ifindex: int
    endpoint: int


class LimitKey(NamedTuple):
    endpoint: int
    direction: int


class LimitValue(NamedTuple):
    """What the programs write in it is zero when it is made."""

    rate: int
    burst: int
    due: int = 0
    packets: int = 0
    bytes: int = 0


class PortKey(NamedTuple):
    addr: Address | None
    port: int
    proto: int


class PortValue(NamedTuple):
    network: int
    endpoint: int
    acl: int
    addr: Address
    port: int
    default_deny: int
    shared: int


class OriginKey(NamedTuple):
    addr: Address | None
    endpoint: int
    port: int
    proto: int


class OriginValue(NamedTuple):
    port: int


class AclKey(NamedTuple):
    prefixlen: int
    acl: int
    addr: Address | None


class XfrmKey(NamedTuple):
    prefixlen: int
    direction: XfrmDirection
    family: int
    addr: Address | None


class XfrmSelectorValue(NamedTuple):
    src: Address | None
    src_mask: IPv6Address | None
    sport: int
    sport_mask: int
    dport: int
    dport_mask: int
    proto: int
    proto_mask: int
    closed: int


class XfrmPolicyValue(NamedTuple):
    used: int
    closed: int
    selectors: tuple[XfrmSelectorValue, ...]


class LinklocalKey(NamedTuple):
    addr: Address
    ifindex: int


class LocalPrefixKey(NamedTuple):
    prefixlen: int
    addr: Address | None


class ReservedKey(NamedTuple):
    port: int
    proto: int


class BindingKey(NamedTuple):
    port: int
    proto: int
    family: int
    every: int


class LinkKey(NamedTuple):
    client: Address
    server: Address
    port: int
    proto: int


class LinkValue(NamedTuple):
    client: int
    server: int


class NameKey(NamedTuple):
    """`name`: in wire form, or the byte 255 and an address (see `abi.h`); without the zeros that fill the field."""

    scope: int
    name: bytes


class LongNameKey(NamedTuple):
    scope: int
    name: bytes


class RrsetValue(NamedTuple):
    type: int
    count: int  # type: ignore[assignment]  # hides a method of tuples that nobody calls
    size: int


class NameValue(NamedTuple):
    """`sets`: one or two. `kept`: of each of them the row of `name_sets` that it is in, 0: this one. `records`: without
    the zeros that fill the field."""

    kept: tuple[int, ...]
    sets: tuple[RrsetValue, ...]
    records: bytes


class NameSetKey(NamedTuple):
    set: int


class NameSetValue(NamedTuple):
    """`records`: without the zeros that fill the field."""

    count: int  # type: ignore[assignment]
    size: int
    records: bytes


class UpstreamValue(NamedTuple):
    addr: Address
    network: int = 0
    ifindex: int = 0


class ResolverKey(NamedTuple):
    endpoint: int


class ResolverValue(NamedTuple):
    networks: tuple[int, ...]
    private_scope: int
    egress: int
    upstreams: tuple[UpstreamValue, ...]


class HostRoutedKey(NamedTuple):
    prefixlen: int
    network: int
    addr: Address | None


class SubnetKey(NamedTuple):
    prefixlen: int
    addr: Address | None


class SubnetValue(NamedTuple):
    network: int


class OverlayKey(NamedTuple):
    network: int


class OverlayValue(NamedTuple):
    """Masks are of the mapped form: the first 96 bits of one for IPv4 are ones, too."""

    vni: int
    transport: Transport
    flags: frozenset[OverlayFlag]
    subnet4: Address | None
    mask4: IPv6Address | None
    block_mask4: IPv6Address | None
    subnet6: Address | None
    mask6: IPv6Address | None
    block_mask6: IPv6Address | None


class VniKey(NamedTuple):
    vni: int


class VniValue(NamedTuple):
    network: int


class PeerKey(NamedTuple):
    number: int


class PeerValue(NamedTuple):
    addr: Address
    flags: frozenset[PeerFlag]
    mtu: int
    mac: str


class VtepKey(NamedTuple):
    addr: Address


class VtepValue(NamedTuple):
    peer: int


class RemoteKey(NamedTuple):
    network: int
    addr: Address | None


class RemoteValue(NamedTuple):
    peer: int


class TunnelValue(NamedTuple):
    addr4: IPv4Address | None = None
    addr6: IPv6Address | None = None
    ifindex: int = 0
    wireguard: int = 0
    peer: int = 0
    flags: frozenset[TunnelFlag] = frozenset()
    port: int = 0
    mac: str = NO_MAC


# The struct of abi.h that each class is.
STRUCTS: Mapping[type[Any], str] = {
    HostValue: "host",
    NetworkValue: "network",
    DeviceKey: "device_key",
    DeviceValue: "device",
    ParentKey: "parent_key",
    ParentValue: "parent",
    EndpointKey: "endpoint_key",
    EndpointValue: "endpoint",
    RouterKey: "router_key",
    MemberKey: "member_key",
    MemberValue: "member",
    LimitKey: "limit_key",
    LimitValue: "limit",
    PortKey: "port_key",
    PortValue: "port",
    OriginKey: "origin_key",
    OriginValue: "origin",
    AclKey: "acl_key",
    XfrmKey: "xfrm_key",
    XfrmSelectorValue: "xfrm_selector",
    XfrmPolicyValue: "xfrm_policy",
    LinklocalKey: "linklocal_key",
    LocalPrefixKey: "local_prefix_key",
    ReservedKey: "reserved_key",
    BindingKey: "binding_key",
    LinkKey: "link_key",
    LinkValue: "link",
    NameKey: "name_key",
    LongNameKey: "long_name_key",
    RrsetValue: "rrset",
    NameValue: "name",
    NameSetKey: "name_set_key",
    NameSetValue: "name_set",
    UpstreamValue: "upstream",
    ResolverKey: "resolver_key",
    ResolverValue: "resolver",
    HostRoutedKey: "host_routed_key",
    SubnetKey: "subnet_key",
    SubnetValue: "subnet",
    OverlayKey: "overlay_key",
    OverlayValue: "overlay",
    VniKey: "vni_key",
    VniValue: "vni",
    PeerKey: "peer_key",
    PeerValue: "peer",
    VtepKey: "vtep_key",
    VtepValue: "vtep",
    RemoteKey: "remote_key",
    RemoteValue: "remote",
    TunnelValue: "tunnel",
    **service_structs.STRUCTS,
}
