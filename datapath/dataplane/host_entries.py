# SPDX-License-Identifier: Apache-2.0
"""The rows of maps that say what the host is like, as tuples of `structs`, from what was observed of it. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from datapath.dataplane.layout import XFRM_SELECTORS, DeviceKind, HostFlag, XfrmDirection
from datapath.dataplane.structs import (
    DeviceKey,
    DeviceValue,
    HostValue,
    LinklocalKey,
    LocalPrefixKey,
    ParentKey,
    ParentValue,
    XfrmKey,
    XfrmPolicyValue,
    XfrmSelectorValue,
)
from datapath.model.drivers import spec_of, traits
from datapath.model.host import Device, HostNetwork, Uplink, XfrmPolicies, XfrmPolicy
from datapath.model.networks import Network
from datapath.model.parsing import Address, Prefix
from datapath.plan.nat import nat_ports

_XFRM_DIRECTIONS: Mapping[str, XfrmDirection] = {"in": "XFRM_IN", "out": "XFRM_OUT", "fwd": "XFRM_FWD"}
_EVERY: tuple[Prefix, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
_ICMP = (1, 58)
_AF = {4: 2, 6: 10}  # AF_INET, AF_INET6 of linux/socket.h


def host_entry(network: HostNetwork) -> tuple[int, HostValue]:
    """The row of `host`."""
    first, last = nat_ports(network.ephemeral)
    flags: set[HostFlag] = {"HOST_STEERED"} if network.steered else set()
    if network.other_nat:
        flags.add("HOST_OTHER_NAT")
    for key in xfrm_entries(network.xfrm):
        flags.add("HOST_XFRM_IN" if key.direction == "XFRM_IN" else "HOST_XFRM_OUT")
    return 0, HostValue(
        flags=frozenset(flags),
        nat_port_first=first,
        nat_port_last=last,
        ephemeral_first=network.ephemeral[0],
        ephemeral_last=network.ephemeral[1],
    )


def xfrm_entries(xfrm: XfrmPolicies) -> dict[XfrmKey, XfrmPolicyValue]:
    """The rows of `xfrm_policies`: for each destination all policies about it, in the kernel's order. Those of sockets
    are none of a packet's that passes; no packet of a container has a mark, or comes by an xfrm interface."""
    rows = {}
    policies = [p for p in xfrm.all if p.direction in _XFRM_DIRECTIONS and not p.narrowed]
    for (direction, name), every in itertools.product(_XFRM_DIRECTIONS.items(), _EVERY):
        found = [p for p in policies if p.direction == direction and _of_family(p, every.version)]
        default = int(direction in xfrm.blocked)
        destinations: set[Prefix] = {p.destination or every for p in found}
        for destination in destinations | ({every} if default else set()):
            about = [_selector(p) for p in found if _covers(p.destination or every, destination)]
            # What is left out is closed, not open.
            closed = int(default or len(about) > XFRM_SELECTORS)
            chosen = tuple(about[:XFRM_SELECTORS])
            key = XfrmKey(32 + _bits(destination), name, _AF[every.version], _address(destination))
            rows[key] = XfrmPolicyValue(len(chosen), closed, chosen)
    return rows


def _covers(wide: Prefix, narrow: Prefix) -> bool:
    return narrow.prefixlen >= wide.prefixlen and narrow.network_address in wide


def _of_family(policy: XfrmPolicy, version: int) -> bool:
    return all(p is None or p.version == version for p in (policy.source, policy.destination))


def _bits(prefix: Prefix | None) -> int:
    """The prefix's length as IPv6."""
    if prefix is None:
        return 0
    return prefix.prefixlen + (96 if prefix.version == 4 else 0)


def _selector(policy: XfrmPolicy) -> XfrmSelectorValue:
    source = policy.source
    bits = _bits(source)
    mask = IPv6Address((1 << 128) - (1 << (128 - bits))) if bits else None
    # The ports of ICMP are its type and code there.
    ports = (0, 0, 0, 0) if policy.proto in _ICMP else (*policy.sport, *policy.dport)
    return XfrmSelectorValue(
        _address(source) if source else None,
        mask,
        *ports,
        proto=policy.proto,
        proto_mask=0xFF if policy.proto else 0,
        closed=int(policy.action != "allow"),
    )


def _address(prefix: Prefix) -> Address | None:
    """As it is read back: the zero address is none."""
    return prefix.network_address if prefix.version == 4 or int(prefix.network_address) else None


def uplink_devices(
    uplinks: Iterable[Uplink], parents: Mapping[ParentKey, ParentValue]
) -> dict[DeviceKey, DeviceValue]:
    """Devices of the host that lead outside, in `devices`; and those on whose link members of networks are, whether
    they are uplinks or not."""
    rows = {}
    for uplink in uplinks:
        kind: DeviceKind = "DEVICE_TUNNEL" if uplink.bare else "DEVICE_UPLINK"
        value = DeviceValue(kind=kind, addr4=uplink.ipv4, addr6=uplink.ipv6, linklocal=uplink.linklocal)
        rows[DeviceKey(uplink.ifindex)] = value
    for network, parent in parents.items():
        key = DeviceKey(parent.ifindex)
        row = rows.get(key, DeviceValue("DEVICE_PARENT"))
        rows[key] = row._replace(kind="DEVICE_PARENT", network=network.network)
    return rows


def policed(networks: Iterable[Network], parents: Mapping[ParentKey, ParentValue]) -> set[int]:
    """The indexes of those of the devices at which it is decided which members may talk to each other."""
    numbers = {network.number for network in networks if spec_of(network).policed(network)}
    return {parent.ifindex for key, parent in parents.items() if key.network in numbers}


def parent_entries(
    networks: Iterable[Network], find: Callable[[str], Device | None]
) -> dict[ParentKey, ParentValue]:
    """`parents` of those of the networks whose packets the programs hand over, or at least police, as far as they are
    there. `find`: a device by name."""
    found = {}
    for network in networks:
        forwarded = traits(network).lan and traits(network).programs
        name = network.parent if forwarded else spec_of(network).policed(network)
        if name:
            device = find(name)
            if device is not None:
                found[ParentKey(network.number)] = ParentValue(device.ifindex, device.mac)
    return found


def local_prefix_entries(network: HostNetwork) -> frozenset[LocalPrefixKey]:
    """Keys of `local_prefixes`: what is the host's though no device has the address."""
    return frozenset(
        LocalPrefixKey(
            prefixlen=prefix.prefixlen + (96 if prefix.version == 4 else 0),
            addr=None if prefix.network_address == IPv6Address(0) else prefix.network_address,
        )
        for prefix in network.local_prefixes
    )


def is_scoped(address: Address) -> bool:
    """It is one of a link alone: of IPv4 the kernel knows no such thing."""
    return address.version == 6 and address.is_link_local


def linklocal_entries(network: HostNetwork) -> frozenset[LinklocalKey]:
    """Keys of `linklocals`: such addresses of the uplinks."""
    uplinks = {uplink.ifindex for uplink in network.uplinks}
    return frozenset(
        LinklocalKey(one.interface.ip, one.ifindex)
        for one in network.addresses
        if one.ifindex in uplinks and is_scoped(one.interface.ip)
    )
