# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about the packet programs: what is pinned, what is attached, and the rows of their maps,
compared with those of `entries`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Any

from datapath.dataplane import (
    entries,
    host_entries,
    layout,
    name_entries,
    name_owners,
    structs,
)
from datapath.dataplane.service_entries import service_of
from datapath.dataplane.wire_names import RECORD, text_of
from datapath.drivers.comparison import Comparison
from datapath.drivers.ebpf import check_services
from datapath.drivers.pairs import check as pairs
from datapath.model.checks import (
    CGROUP,
    DETACHED,
    MISSING,
    OUTDATED,
    PROGRAMS,
    RESOLVER,
    SETTINGS,
    STRAY,
    STRAY_DEVICE,
    STRAY_PIN,
    UNFINISHED,
    UNREADABLE,
    UNSERVED,
    WRONG,
    XFRM,
)
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import linklocal_of
from datapath.model.findings import Finding
from datapath.model.networks import PAIRS, Network, gateway_mac
from datapath.model.observed import Device
from datapath.model.resolv import RESOLVER as ADDRESS_OF_RESOLVER
from datapath.model.rows import Phase

SOCKET_HOOKS = layout.SOCKET_HOOKS.keys()
_UPLINK_HOOKS = (*layout.UPLINK_HOOKS, layout.POLICY_HOOK, layout.XDP_HOOK)
ROOT_GROUP = 1  # the kernel's number of the root control group
LOOPBACK = 1  # the index of every namespace's loopback device
# Rows that are there or not; what the programs count in them is theirs.
_COUNTED = ("quotas", "addresses", "local_prefixes")

Rows = dict[Any, Any]


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about networks of whichever driver that packet programs know; causes before their consequences."""
    yield from _programs(comparison, networks)
    yield from pairs.findings(comparison, [n for n in networks if traits(n).programs])
    yield from _policies(comparison, networks)
    if comparison.observed.programs.loaded:
        rows = desired(comparison, networks)
        yield from _attachments(comparison, networks, rows["networks"])
        yield from of_maps(comparison, rows, _ignored(comparison, networks))
        yield from _resolvers(comparison)
        yield from _orphans(comparison, networks)


def _programs(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    programs = comparison.observed.programs
    if not networks:
        return
    if not programs.mounted:
        yield Finding(PROGRAMS, "packet programs", "no bpffs is mounted where they would be pinned")
    elif programs.missing:
        shown = ", ".join(programs.missing[:3]) + (" …" if len(programs.missing) > 3 else "")
        yield Finding(PROGRAMS, "packet programs", f"{len(programs.missing)} pins are missing: {shown}")
    for pin, why in programs.broken.items():
        yield Finding(UNREADABLE, f"pin {pin}", why, (pin,))
    if programs.upgrading:
        yield Finding(UNFINISHED, "packet programs", "they were being replaced")
    if programs.outdated:
        yield Finding(OUTDATED, "packet programs", "they are of another version")
    if programs.settings:
        yield Finding(SETTINGS, "packet programs", programs.settings)


def _policies(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """IPsec policies keep packets from passing as they are, and the programs do not apply them."""
    xfrm = comparison.observed.network.xfrm
    closed = [policy for policy in xfrm.all if policy.action != "allow" and policy.direction != "socket"]
    if networks and closed:
        yield Finding(XFRM, "the host", f"IPsec policies that protect or block packets: {len(closed)}")
    if networks and xfrm.blocked:
        detail = f"packets that no IPsec policy is about are blocked: {', '.join(sorted(xfrm.blocked))}"
        yield Finding(XFRM, "the host", detail)


# ---- attachments, and what nothing needs --------------------------------------------------------------------


def _wanted_hooks(comparison: Comparison, networks: list[Network]) -> Iterator[tuple[str, str, int]]:
    """(whose, hook, ifindex) of every device that needs a program."""
    observed = comparison.observed
    for network in networks:
        device = comparison.gateway(network)
        if device is not None:
            yield f"network {network.name}", "from_host", device.ifindex
    for endpoint in comparison.of_programs():
        if observed.host.at(endpoint.host_ifindex) is not None:
            yield comparison.name(endpoint), "from_container", endpoint.host_ifindex
    for device, hook in _tunnels(comparison, networks):
        yield f"device {device.name}", hook, device.ifindex
    if comparison.loopback:
        yield "the loopback device", "from_loopback", LOOPBACK
    if networks:
        parents = host_entries.parent_entries(networks, observed.host.devices.get)
        deciding = host_entries.policed(networks, parents)
        for key, value in _uplinks(comparison, networks).items():
            name = observed.network.names.get(key.ifindex, "")
            yield f"uplink {name}", layout.HOOK_OF_KIND[value.kind], key.ifindex
            if key.ifindex in deciding:
                yield f"device {name}", layout.POLICY_HOOK, key.ifindex
        for uplink in observed.uplinks:
            if uplink.unserved:
                continue
            acls = any(m.acl for m in comparison.state.published)
            other = f"other-xdp-{uplink.ifindex}" in observed.programs.pinned.get("programs", ())
            if (acls or observed.programs.flood_rate) and not other and not uplink.bare:
                yield f"uplink {uplink.name}", "xdp_uplink", uplink.ifindex


def _tunnels(comparison: Comparison, networks: list[Network]) -> list[tuple[Device, str]]:
    """The devices by which packets come that have been in a tunnel, as far as they are there, and their programs."""
    hooks = {name: hook for one in networks for name, hook in spec_of(one).shared_devices.items()}
    devices = comparison.observed.host.devices
    return [(devices[name], hook) for name, hook in hooks.items() if name in devices]


def _uplinks(comparison: Comparison, networks: list[Network]) -> dict[structs.DeviceKey, structs.DeviceValue]:
    """The rows of devices that lead outside."""
    observed = comparison.observed
    served = [uplink for uplink in observed.uplinks if not uplink.unserved]
    parents = host_entries.parent_entries(networks, observed.host.devices.get)
    return host_entries.uplink_devices(served, parents)


def _attachments(comparison: Comparison, networks: list[Network], rows: Rows) -> Iterator[Finding]:
    """`rows`: what the map `networks` is to say."""
    programs = comparison.observed.programs
    for subject, hook, ifindex in _wanted_hooks(comparison, networks):
        if (hook, ifindex) not in programs.attached:
            taken = f"{hook}-{ifindex}" in programs.foreign
            detail = (
                f"another program is in the place of {hook}" if taken else f"program {hook} is not attached"
            )
            yield Finding(DETACHED, subject, detail, (hook, ifindex))
    for uplink in comparison.observed.uplinks if networks else ():
        if uplink.unserved:
            yield Finding(UNSERVED, f"uplink {uplink.name}", uplink.unserved)
    if networks and not programs.outdated:
        names = layout.TAILS.keys() & layout.FIRST
        for name in sorted(
            names.union(*(layout.tails_of(row.flags) for row in rows.values())) - programs.tails
        ):
            detail = f"program {name} is not found by those that go on in it"
            subject = "questions for names" if name in names else "packets of networks"
            yield Finding(DETACHED, subject, detail, (name, 0))
    if networks:
        for hook in sorted(SOCKET_HOOKS - programs.sockets):
            yield Finding(DETACHED, "processes of the host", f"program {hook} is not attached", (hook, 0))
    if networks and programs.group not in (0, ROOT_GROUP, comparison.observed.network.whole):
        detail = f"the programs are attached to a control group below the root (id {programs.group})"
        yield Finding(CGROUP, "processes of the host", detail)


def _resolvers(comparison: Comparison) -> Iterator[Finding]:
    """Containers that do not reach the resolver's address; programs of a version before have no resolver."""
    if "resolvers" not in comparison.observed.programs.maps:
        return
    for endpoint in comparison.of_programs():
        inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
        if inside is None or not name_owners.asks(endpoint, comparison.state):
            continue
        device = inside.devices.get(spec_of(comparison.network(endpoint)).resolver_device(endpoint))
        if device is not None and not (device.name in inside.resolver and device.name in inside.localnet):
            lost = "the route" if device.name not in inside.resolver else "route_localnet, and so the way"
            detail = f"the container's device {device.name} has lost {lost} to {ADDRESS_OF_RESOLVER}"
            yield Finding(RESOLVER, comparison.name(endpoint), detail, (endpoint.id,))


def _orphans(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """Devices that the maps know and that no row of the store has; pins that nothing needs."""
    observed, state = comparison.observed, comparison.state
    known = {endpoint.host_ifindex for endpoint in state.endpoints.values()}
    gateways = (spec_of(n).gateway_device(n) for n in state.networks.values())
    known |= {d.ifindex for name in gateways if (d := observed.host.devices.get(name))}
    numbers = {endpoint.number for endpoint in state.endpoints.values()}
    building = {n.number for n in state.networks.values() if n.phase != Phase.READY}
    for key, value in observed.programs.maps.get("devices", {}).items():
        device = observed.host.at(key[0])
        if value.kind in layout.UPLINK_KINDS or key.ifindex in known:
            continue
        if value.endpoint in numbers or value.network in building:
            continue
        if device and device.kind in PAIRS:
            yield Finding(STRAY_DEVICE, f"device {device.name}", "it was ours and nobody has it", (key[0],))
    wanted = {f"{hook}-{ifindex}" for _, hook, ifindex in _wanted_hooks(comparison, networks)} | SOCKET_HOOKS
    uplinks = {uplink.ifindex for uplink in observed.uplinks}
    unsettled = {f"from_container-{endpoint.host_ifindex}" for endpoint in comparison.unsettled}
    for pin in sorted(observed.programs.pinned.get("links", frozenset()) - wanted - unsettled):
        hook, _, number = pin.rpartition("-")
        ignored = not networks and hook in _UPLINK_HOOKS and int(number) in uplinks
        if not ignored and not (building and hook == "from_host"):
            yield Finding(STRAY_PIN, f"pin links/{pin}", "nothing needs it", (pin,))


# ---- the rows of maps ------------------------------------------------------------------------------------------


def of_maps(
    comparison: Comparison, wanted: Mapping[str, Rows], ignored: Mapping[str, Callable[[Any, Any], bool]]
) -> Iterator[Finding]:
    """What the maps say otherwise than is wanted. `ignored`: of a map, whether a row is neither missing nor stray."""
    for name, rows in wanted.items():
        present = comparison.observed.programs.maps.get(name)
        if present is None:
            continue  # it cannot be read, which is a finding of its own
        for key, value in rows.items():
            if ignored[name](key, value):
                continue
            subject = f"map {name}, {_format_row(key)}"
            if key not in present:
                yield Finding(MISSING, subject, f"there is no row: {_format_row(value)}", (name, key, value))
            elif name not in _COUNTED and not _equal(name, present[key], value):
                detail = f"the row says {_format_row(present[key])}, not {_format_row(value)}"
                yield Finding(WRONG, subject, detail, (name, key, value))
        for key in present.keys() - rows.keys():
            if not ignored[name](key, present[key]):
                detail = f"there is a row that nobody needs: {_format_row(present[key])}"
                yield Finding(STRAY, f"map {name}, {_format_row(key)}", detail, (name, key))


def desired(comparison: Comparison, networks: list[Network]) -> dict[str, Rows]:
    """The rows of each map, as far as the devices that they are about are there."""
    state, observed, endpoints = comparison.state, comparison.observed, comparison.of_programs()
    rows: dict[str, Rows] = {
        name: {}
        for name in (
            *("networks", "devices", "endpoints", "members", "ports", "origins", "acls", "reserved"),
            *("links", "quotas", "addresses", "host", "xfrm_policies", "local_prefixes", "routers"),
            *("limits", "bindings", "names", "long_names", "name_sets", "resolvers", "subnets"),
            *("host_routed", "parents", "services", "slots", "backends", *layout.COUNTED_MAPS),
        )
    }
    for network in networks:
        device = comparison.gateway(network)
        if device is not None:
            members = [e for e in endpoints if e.network_id == network.id]
            linklocal = linklocal_of(gateway_mac(network)) if network.subnet6 else None
            mtu = comparison.mtu(network) or device.mtu
            number, value = entries.network_entry(network, members, device.ifindex, mtu, linklocal)
            if any(service.vips for service in state.services_of_network(network.id)):
                value = value._replace(flags=value.flags | {"NETWORK_SERVICES"})
            rows["networks"][(number,)] = value
            key, known = entries.gateway_device(network, device.ifindex)
            rows["devices"][key] = known
        rows["host_routed"] |= entries.host_routed_entries(network)
        rows["links"] |= entries.link_entries(network, state)
    for network in comparison.networks:
        device = comparison.gateway(network)
        if device is not None and not traits(network).told:
            row = structs.DeviceValue(kind="DEVICE_GATEWAY", network=network.number)
            rows["devices"][(device.ifindex,)] = row
    for endpoint in endpoints:
        network = state.networks[endpoint.network_id]
        found = entries.endpoint_entries(network, endpoint)
        rows["devices"][found.device[0]] = found.device[1]
        rows["endpoints"] |= found.endpoints
        rows["routers"] |= found.routers
        rows["limits"] |= found.limits
        rows["members"][found.member[0]] = found.member[1]
        rows["quotas"][(endpoint.number,)] = ()
        if not network.internal:
            rows["ports"] |= entries.port_entries(network, endpoint)
            rows["origins"] |= entries.origin_entries(endpoint)
    check_services.add(rows, comparison, networks)
    for found_device, hook in _tunnels(comparison, networks):
        rows["devices"][(found_device.ifindex,)] = structs.DeviceValue(kind=layout.HOOKS[hook].kind)
    if comparison.loopback:
        rows["devices"][(LOOPBACK,)] = structs.DeviceValue(kind="DEVICE_LOOPBACK")
    mappings = [
        mapping
        for endpoint in state.endpoints.values()
        if traits(comparison.network(endpoint)).acl
        for mapping in endpoint.ports
    ]
    mappings += (mapping for service in state.services.values() for mapping in service.ports)
    rows["acls"] = {_plain(key): (allow,) for key, allow in entries.acl_entries(mappings).items()}
    rows["reserved"] = {key: (count,) for key, count in entries.reserved_entries(state).items()}
    rows["bindings"] = {key: (count,) for key, count in entries.binding_entries(state).items()}
    if networks:
        number, facts = host_entries.host_entry(observed.network)
        rows["host"][(number,)] = facts
        rows["xfrm_policies"] |= host_entries.xfrm_entries(observed.network.xfrm)
        rows["devices"] |= _uplinks(comparison, networks)
        rows["parents"] |= host_entries.parent_entries(networks, observed.host.devices.get)
        rows["local_prefixes"] = dict.fromkeys(host_entries.local_prefix_entries(observed.network), ())
        rows |= name_entries.name_rows(state, observed.names)._asdict()
        rows["subnets"] |= name_entries.subnet_entries(comparison.networks)
        rows["addresses"] = {(address,): () for address in observed.addresses if not address.is_link_local}
    return rows


def _plain(key: structs.AclKey) -> structs.AclKey:
    """As it is read back: an IPv4 address in its mapped form is an IPv4 address."""
    mapped = key.addr.ipv4_mapped if isinstance(key.addr, IPv6Address) else None
    return key._replace(addr=mapped) if mapped is not None else key


def _ignored(comparison: Comparison, networks: list[Network]) -> Mapping[str, Callable[[Any, Any], bool]]:
    """Rows about what is in the middle of something: neither missing nor orphans."""
    state = comparison.state
    known = {endpoint.id for endpoint in comparison.of_programs()}
    unsettled = [e for e in state.endpoints.values() if e.id not in known]
    numbers = {endpoint.number for endpoint in unsettled}
    ports = {key for e in unsettled for key in entries.number_entries(state, e.ports)}
    acls = {m.acl for e in unsettled for m in e.ports}
    settled = {network.id for network in comparison.networks}
    building = {n.number for n in state.networks.values() if n.id not in settled and n.phase != Phase.READY}
    every, none = {network.number for network in state.networks.values()}, not networks
    named = name_entries.touched({e.sandbox_id for e in unsettled}, state)
    elsewhere = [remote for remote in state.remotes.values() if remote.network_id not in settled]
    far = name_entries.touched_elsewhere(elsewhere, state)
    services = check_services.unsettled(state, {e.sandbox_id for e in unsettled})
    keys = named.keys | far.keys | services.named.keys
    sets = named.sets | far.sets | services.named.sets
    ports, acls = ports | services.ports, acls | services.acls
    subnets = name_entries.subnet_entries(n for n in state.networks.values() if n.id not in settled).keys()
    return {
        "networks": lambda key, value: key[0] in building,
        **dict.fromkeys(layout.COUNTED_MAPS, lambda key, value: key[0] in every),
        "devices": lambda key, value: (
            value.endpoint in numbers
            or value.network in building
            or (none and value.kind in layout.UPLINK_KINDS)
        ),
        "endpoints": lambda key, value: value.number in numbers or value.number in services.numbers,
        "routers": lambda key, value: value.number in numbers,
        "limits": lambda key, value: key.endpoint in numbers,
        "members": lambda key, value: value.endpoint in numbers,
        "ports": lambda key, value: value.endpoint in numbers or value.endpoint in services.numbers,
        "origins": lambda key, value: key.endpoint in numbers or key.endpoint in services.numbers,
        "acls": lambda key, value: key.acl in acls,
        "reserved": lambda key, value: key in ports,
        "bindings": lambda key, value: key in ports,
        "links": lambda key, value: bool(numbers & set(value)),
        "quotas": lambda key, value: key[0] in numbers,
        "names": lambda key, value: none or key in keys,
        "long_names": lambda key, value: none or key in keys,
        "name_sets": lambda key, value: none or key in sets,
        "resolvers": lambda key, value: none or key.endpoint in named.endpoints,
        "subnets": lambda key, value: none or key in subnets,
        "host_routed": lambda key, value: key.network in building,
        "services": lambda key, value: key.service in services.numbers,
        "slots": lambda key, value: service_of(key.table) in services.numbers,
        "backends": lambda key, value: value.service in services.numbers,
        "parents": lambda key, value: none or key.network in building,
        **dict.fromkeys(("host", "xfrm_policies"), lambda key, value: none),
        "local_prefixes": lambda key, value: none,
        "addresses": lambda key, value: none or (key[0] is not None and key[0].is_link_local),
    }


def _equal(name: str, present: Any, wanted: Any) -> bool:
    if name == "limits":  # what the programs have counted is theirs
        return bool((present.rate, present.burst) == (wanted.rate, wanted.burst))
    if name in ("devices", "endpoints") and present.forwarding & ~wanted.forwarding == layout.ROLE_SERVES:
        # It has been a backend; connections may be left of that.
        present = present._replace(forwarding=wanted.forwarding)
    if name != "networks":
        return tuple(present) == tuple(wanted)
    # slots only grows while commands come and go; each looks at fewer again when it recovers.
    return bool(present.slots >= wanted.slots and present._replace(slots=wanted.slots) == wanted)


def _format_row(row: Any) -> str:
    """Formats a key or value: its fields that are not zero, separated by blanks."""
    parts = []
    for item in row:
        if isinstance(item, frozenset):
            parts.append("+".join(sorted(item)))
        elif isinstance(item, bytes):
            parts.append(f"{len(item)} bytes" if item.startswith(RECORD) else text_of(item))
        elif item is not None and item != structs.NO_MAC:
            parts.append(str(item))
    return " ".join(parts) or "nothing"
