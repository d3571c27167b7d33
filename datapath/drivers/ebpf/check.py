# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about the packet programs' maps: their rows, compared with those of `entries`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

from datapath.dataplane import entries, layout
from datapath.model.checks import MISSING, STRAY, WRONG
from datapath.model.endpoints import linklocal_of
from datapath.model.findings import Finding
from datapath.model.networks import gateway_mac
from datapath.model.observed import Seen
from datapath.model.state import State

if TYPE_CHECKING:
    from datapath.engine.check import Settled

SOCKET_HOOKS = layout.SOCKET_HOOKS.keys()
LOOPBACK = 1  # the index of every namespace's loopback device
# Rows that are there or not; what the programs count in them is theirs.
_COUNTED = ("quotas", "addresses")

Rows = dict[Any, Any]


def differences(state: State, settled: Settled, seen: Seen) -> Iterator[Finding]:
    """Of every map that says who is where and what is published."""
    wanted, spared = promised(state, settled, seen), _spared(state, settled)
    for name, rows in wanted.items():
        present = seen.programs.maps.get(name)
        if present is None:
            continue  # it cannot be read, which is a finding of its own
        for key, value in rows.items():
            if spared[name](key, value):
                continue
            subject = f"map {name}, {_words(key)}"
            if key not in present:
                yield Finding(MISSING, subject, f"there is no row: {_words(value)}", (name, key, value))
            elif name not in _COUNTED and not _equal(name, present[key], value):
                detail = f"the row says {_words(present[key])}, not {_words(value)}"
                yield Finding(WRONG, subject, detail, (name, key, value))
        for key in present.keys() - rows.keys():
            if not spared[name](key, present[key]):
                detail = f"there is a row that nobody needs: {_words(present[key])}"
                yield Finding(STRAY, f"map {name}, {_words(key)}", detail, (name, key))


def promised(state: State, settled: Settled, seen: Seen) -> dict[str, Rows]:
    """The rows of each map, as far as the devices that they are about are there."""
    rows: dict[str, Rows] = {
        name: {}
        for name in (
            *("networks", "devices", "endpoints", "members", "ports", "acls", "reserved"),
            *("links", "quotas", "addresses"),
        )
    }
    for network in settled.networks:
        device = settled.gateway(network)
        if device is not None:
            members = [e for e in settled.endpoints if e.network_id == network.id]
            linklocal = linklocal_of(gateway_mac(network)) if network.subnet6 else None
            mtu = settled.mtu(network) or device.mtu
            number, value = entries.network_entry(network, members, device.ifindex, mtu, linklocal)
            rows["networks"][(number,)] = value
            key, known = entries.gateway_device(network, device.ifindex)
            rows["devices"][key] = known
        rows["links"] |= entries.link_entries(network, state)
    for network in settled.built:
        bridge = seen.host.devices.get(network.device)
        if network.classic and bridge is not None and bridge.kind == "bridge":
            row = entries.DeviceValue(kind="DEVICE_GATEWAY", network=network.number)
            rows["devices"][(bridge.ifindex,)] = row
    for endpoint in settled.endpoints:
        network = state.networks[endpoint.network_id]
        found = entries.endpoint_entries(network, endpoint)
        rows["devices"][found.device[0]] = found.device[1]
        rows["endpoints"] |= found.endpoints
        rows["members"][found.member[0]] = found.member[1]
        rows["quotas"][(endpoint.number,)] = ()
        if not network.internal:
            rows["ports"] |= entries.port_entries(network, endpoint)
    mappings = [m for e in state.endpoints.values() for m in e.ports]
    classic = [e for e in settled.joined if e not in settled.endpoints]
    if mappings:
        loopback = entries.DeviceValue(kind="DEVICE_LOOPBACK")
        rows["devices"][(LOOPBACK,)] = loopback
    mappings = [m for e in state.endpoints.values() if e not in classic for m in e.ports]
    rows["acls"] = {_plain(key): (allow,) for key, allow in entries.acl_entries(mappings).items()}
    rows["reserved"] = {key: (count,) for key, count in entries.reserved_entries(state).items()}
    if settled.networks:
        for way in seen.ways:
            uplink = entries.DeviceValue(kind="DEVICE_UPLINK", addr4=way.ipv4, addr6=way.ipv6)
            rows["devices"][(way.ifindex,)] = uplink
        rows["addresses"] = {(address,): () for address in seen.addresses if not address.is_link_local}
    return rows


def _plain(key: entries.AclKey) -> entries.AclKey:
    """As it is read back: an IPv4 address in its mapped form is an IPv4 address."""
    mapped = key.addr.ipv4_mapped if isinstance(key.addr, IPv6Address) else None
    return key._replace(addr=mapped) if mapped is not None else key


def _spared(state: State, settled: Settled) -> Mapping[str, Callable[[Any, Any], bool]]:
    """What is in the middle of something: neither missing nor too much."""
    numbers = {endpoint.number for endpoint in settled.unsettled}
    ports = {key for e in settled.unsettled for key in entries.reserved_entries(state, e.ports)}
    filters = {m.filter for e in settled.unsettled for m in e.ports}
    settled_networks = {network.id for network in settled.built}
    networks = {
        n.number for n in state.networks.values() if n.id not in settled_networks and n.phase != "ready"
    }
    none = not settled.networks
    return {
        "networks": lambda key, value: key[0] in networks,
        "devices": lambda key, value: (
            value.endpoint in numbers or value.network in networks or (none and value.kind == "DEVICE_UPLINK")
        ),
        "endpoints": lambda key, value: value.number in numbers,
        "members": lambda key, value: value.endpoint in numbers,
        "ports": lambda key, value: value.endpoint in numbers,
        "acls": lambda key, value: key.filter in filters,
        "reserved": lambda key, value: key in ports,
        "links": lambda key, value: bool(numbers & set(value)),
        "quotas": lambda key, value: key[0] in numbers,
        "addresses": lambda key, value: none or (key[0] is not None and key[0].is_link_local),
    }


def _equal(name: str, present: Any, wanted: Any) -> bool:
    if name != "networks":
        return tuple(present) == tuple(wanted)
    # slots only grows while commands come and go; each looks at fewer again when it recovers.
    return bool(present.slots >= wanted.slots and present._replace(slots=wanted.slots) == wanted)


def _words(row: Any) -> str:
    """A key or value as a reader wants it: what is not zero, separated by blanks."""
    words = []
    for item in row:
        if isinstance(item, frozenset):
            words.append("+".join(sorted(item)))
        elif item is not None and item != entries.NO_MAC:
            words.append(str(item))
    return " ".join(words) or "nothing"
