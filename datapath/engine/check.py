# SPDX-License-Identifier: Apache-2.0
"""`doctor`: what was promised, compared with what is there. Pure: whoever calls has looked.

Compared is what is settled. An object whose row is unfinished is one finding; what there is of it is neither
missing nor left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from datapath.drivers.ebpf import check as maps
from datapath.drivers.linuxbridge import check as filters
from datapath.model.checks import (
    ADDRESS,
    DETACHED,
    DOWN,
    ENDED,
    FILES,
    FOREIGN_DEVICE,
    GATEWAY,
    MAC,
    MTU,
    OUTDATED,
    PAIR,
    PROGRAMS,
    RENAMED,
    RESERVED,
    ROUTE,
    SETTINGS,
    STRAY_DEVICE,
    STRAY_FILES,
    STRAY_PIN,
    SYSCTL,
    UNFINISHED,
    UNREADABLE,
)
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import PAIRS, VETH, Network, gateway_mac
from datapath.model.observed import Device, Seen, Stack
from datapath.model.rows import CHANGING, READY, short
from datapath.model.state import State
from datapath.plan.ports import ephemeral_ports, parse_reserved, reserved_text


def diagnose(state: State, seen: Seen) -> list[Finding]:
    """Everything that is not as promised; causes before what follows from them."""
    settled = Settled(state, seen)
    findings = [*_rows(state, seen), *_programs(settled)]
    for network in settled.built:
        findings += _gateway(network, settled)
    for endpoint in settled.joined:
        findings += _pair(endpoint, settled)
    findings += filters.findings(settled)
    if seen.programs.loaded:
        findings += _attachments(settled)
        findings += maps.differences(settled.state, settled, seen)
        findings += _strays(settled)
    return [*findings, *_host(settled)]


class Settled:
    """What is to be compared: networks that are built, endpoints whose device has to be there.

    `networks` and `endpoints` are those of packet programs; `built` and `joined` also have those of classic
    networks.
    """

    def __init__(self, state: State, seen: Seen) -> None:
        self.state, self.seen = state, seen
        self.built = [
            n for n in state.networks.values() if n.driver == "bridge" and n.realised and n.phase == READY
        ]
        self.networks = [network for network in self.built if not network.classic]
        ids = {network.id for network in self.built}
        self.joined = [
            e
            for e in state.endpoints.values()
            if e.phase == READY and e.network_id in ids and e.sandbox_id in seen.sandboxes
        ]
        self.endpoints = [e for e in self.joined if not state.networks[e.network_id].classic]
        self.unjoined = [e for e in state.endpoints.values() if e not in self.joined]
        self.unsettled = [e for e in state.endpoints.values() if e not in self.endpoints]

    def gateway(self, network: Network) -> Device | None:
        """The network's device, if it can be the one that was built."""
        device = self.seen.host.devices.get(network.device)
        return device if device and device.kind == VETH else None

    def mtu(self, network: Network) -> int | None:
        """None: whatever it was, as there is no way out that would say."""
        if network.mtu:
            return network.mtu
        return self.seen.default_mtu if self.seen.default_route else None

    def name(self, endpoint: Endpoint) -> str:
        holder = self.state.holder(endpoint)
        who = f"container {holder.name}" if holder else f"endpoint {short(endpoint.id)}"
        return f"{who} on network {self.state.networks[endpoint.network_id].name}"


def _rows(state: State, seen: Seen) -> Iterator[Finding]:
    for row in state.unfinished:
        name = getattr(row, "name", short(row.id))
        if isinstance(row, Endpoint) and row.phase != CHANGING:
            name = short(row.id)
        yield Finding(UNFINISHED, f"{type(row).__name__.lower()} {name}", f'its row says "{row.phase}"')
    for container in state.containers.values():
        if container.phase == READY and container.running and container.id not in seen.alive:
            yield Finding(
                ENDED, f"container {container.name}", "it is recorded as running, its process is gone"
            )


def _programs(settled: Settled) -> Iterator[Finding]:
    programs = settled.seen.programs
    if not settled.networks:
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


# ---- devices ------------------------------------------------------------------------------------------


def _gateway(network: Network, settled: Settled) -> Iterator[Finding]:
    subject = f"network {network.name}"
    stack, device = settled.seen.host, settled.seen.host.devices.get(network.device)
    if device is None:
        yield Finding(GATEWAY, subject, f"its gateway device {network.device} is gone", (network.id,))
        return
    if device.kind != ("bridge" if network.classic else VETH):
        yield Finding(
            FOREIGN_DEVICE, subject, f"{device.name} is another's device ({device.kind or 'hardware'})"
        )
        return
    addresses = frozenset(ip_interface((s.gateway, s.prefix.prefixlen)) for s in network.subnets if s.gateway)
    yield from _device(subject, "", stack, device, gateway_mac(network), settled.mtu(network))
    for address in sorted(addresses - stack.addresses.get(device.name, frozenset()), key=str):
        detail = f"its gateway device {device.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, ("", device.name, (address,)))
    for path, value in sysctls(network).items():
        if settled.seen.sysctls.get(path, value) != value:
            detail = f"{path.replace('/', '.')} is {settled.seen.sysctls[path]}, not {value}"
            yield Finding(SYSCTL, subject, detail, (path, value))


def sysctls(network: Network) -> dict[str, str]:
    """Settings of the network's gateway device that have to be so."""
    name, ipv6 = network.device, network.subnet6 is not None
    found = {
        f"net/ipv4/conf/{name}/forwarding": "1",
        f"net/ipv6/conf/{name}/disable_ipv6": str(int(not ipv6)),
    }
    if network.classic:
        found[f"net/ipv4/conf/{name}/route_localnet"] = "1"
    return found | ({f"net/ipv6/conf/{name}/forwarding": "1"} if ipv6 else {})


def endpoint_sysctls(endpoint: Endpoint) -> dict[str, str]:
    """The same of the host end of a container's pair: it speaks no IPv6 of its own."""
    return {f"net/ipv6/conf/{endpoint.host_ifname}/disable_ipv6": "1"}


def _device(
    subject: str, sandbox: str, stack: Stack, device: Device, mac: str, mtu: int | None
) -> Iterator[Finding]:
    where = (sandbox, device.name)
    if not device.up:
        yield Finding(DOWN, subject, f"device {device.name} is down", where)
    if mac and device.mac != mac:
        yield Finding(
            MAC, subject, f"device {device.name} has the MAC address {device.mac}, not {mac}", (*where, mac)
        )
    if mtu and device.mtu != mtu:
        yield Finding(
            MTU, subject, f"device {device.name} has the MTU {device.mtu}, not {mtu}", (*where, mtu)
        )


def _pair(endpoint: Endpoint, settled: Settled) -> Iterator[Finding]:
    subject, host = settled.name(endpoint), settled.seen.host
    inside = settled.seen.sandboxes[endpoint.sandbox_id]
    network = settled.state.networks[endpoint.network_id]
    outer = host.at(endpoint.host_ifindex)
    if outer is None or outer.kind != network.pair:
        yield Finding(PAIR, subject, f"its device {endpoint.host_ifname} is gone", (endpoint.id,))
        return
    mtu = settled.mtu(network)
    if outer.name != endpoint.host_ifname:
        detail = f"its device {endpoint.host_ifname} is called {outer.name}"
        yield Finding(RENAMED, subject, detail, ("", outer.ifindex, endpoint.host_ifname))
    else:
        yield from _device(subject, "", host, outer, "", mtu)
    inner = inside.devices.get(endpoint.ifname)
    if inner is None:
        same = (d for d in inside.devices.values() if d.mac == endpoint.mac and d.kind == network.pair)
        other = next(same, None)
        if other is None:
            yield Finding(PAIR, subject, f"the container's end {endpoint.ifname} is gone", (endpoint.id,))
        else:
            detail = f"the container's device {endpoint.ifname} is called {other.name}"
            yield Finding(RENAMED, subject, detail, (endpoint.sandbox_id, other.ifindex, endpoint.ifname))
        return
    yield from _device(subject, endpoint.sandbox_id, inside, inner, endpoint.mac, mtu)
    wanted = {address for address in (endpoint.ipv4, endpoint.ipv6) if address}
    for address in sorted(wanted - inside.addresses.get(inner.name, frozenset()), key=str):
        detail = f"the container's device {inner.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, (endpoint.sandbox_id, inner.name, (address,)))
    for version, wanted_here in ((4, endpoint.gateway4), (6, endpoint.gateway6)):
        subnet = network.subnet4 if version == 4 else network.subnet6
        here = (inner.name, subnet.gateway) in inside.defaults if subnet and subnet.gateway else False
        if wanted_here and not here:
            detail = f"the container has lost its IPv{version} default route"
            yield Finding(ROUTE, subject, detail, (endpoint.id,))


# ---- attachments, and what nobody was promised -------------------------------------------------------------


def _wanted_hooks(settled: Settled) -> Iterator[tuple[str, str, int]]:
    """(whose, hook, ifindex) of every device that needs a program."""
    for network in settled.networks:
        device = settled.gateway(network)
        if device is not None:
            yield f"network {network.name}", "from_host", device.ifindex
    for endpoint in settled.endpoints:
        if settled.seen.host.at(endpoint.host_ifindex) is not None:
            yield settled.name(endpoint), "from_container", endpoint.host_ifindex
    if any(endpoint.ports for endpoint in settled.state.endpoints.values()):
        yield "the loopback device", "from_loopback", maps.LOOPBACK
    if settled.networks:
        for way in settled.seen.ways:
            yield f"outside device {way.name}", "from_uplink", way.ifindex
            rules = any(m.filter for e in settled.state.endpoints.values() for m in e.ports)
            other = f"other-xdp-{way.ifindex}" in settled.seen.programs.pinned.get("programs", ())
            if (rules or settled.seen.programs.flood_rate) and not other:
                yield f"outside device {way.name}", "xdp_uplink", way.ifindex


def _attachments(settled: Settled) -> Iterator[Finding]:
    programs = settled.seen.programs
    for subject, hook, ifindex in _wanted_hooks(settled):
        if (hook, ifindex) not in programs.attached:
            taken = f"{hook}-{ifindex}" in programs.foreign
            detail = (
                f"another program is in the place of {hook}" if taken else f"program {hook} is not attached"
            )
            yield Finding(DETACHED, subject, detail, (hook, ifindex))
    if settled.networks:
        for hook in sorted(maps.SOCKET_HOOKS - programs.sockets):
            yield Finding(DETACHED, "processes of the host", f"program {hook} is not attached", (hook, 0))


def _strays(settled: Settled) -> Iterator[Finding]:
    """Devices that the maps know and nobody was promised; pins of nothing."""
    seen = settled.seen
    known = {endpoint.host_ifindex for endpoint in settled.state.endpoints.values()}
    known |= {d.ifindex for n in settled.state.networks.values() if (d := seen.host.devices.get(n.device))}
    numbers = {endpoint.number for endpoint in settled.state.endpoints.values()}
    building = {n.number for n in settled.state.networks.values() if n.phase != READY}
    for key, value in seen.programs.maps.get("devices", {}).items():
        device = seen.host.at(key[0])
        if value.kind == "DEVICE_UPLINK" or key.ifindex in known:
            continue
        if value.endpoint in numbers or value.network in building:
            continue
        if device and device.kind in PAIRS:
            yield Finding(STRAY_DEVICE, f"device {device.name}", "it was ours and nobody has it", (key[0],))
    wanted = {f"{hook}-{ifindex}" for _, hook, ifindex in _wanted_hooks(settled)} | maps.SOCKET_HOOKS
    ways = {way.ifindex for way in seen.ways}
    unsettled = {f"from_container-{endpoint.host_ifindex}" for endpoint in settled.unsettled}
    for pin in sorted(seen.programs.pinned.get("links", frozenset()) - wanted - unsettled):
        hook, _, number = pin.rpartition("-")
        spare = not settled.networks and hook in ("from_uplink", "xdp_uplink") and int(number) in ways
        if not spare and not (building and hook == "from_host"):
            yield Finding(STRAY_PIN, f"pin links/{pin}", "nothing needs it", (pin,))


# ---- the host ----------------------------------------------------------------------------------------------


def _host(settled: Settled) -> Iterator[Finding]:
    seen, state = settled.seen, settled.state
    for endpoint in settled.joined:
        for path, value in endpoint_sysctls(endpoint).items():
            if seen.sysctls.get(path, value) != value:
                detail = f"{path.replace('/', '.')} is {seen.sysctls[path]}, not {value}"
                yield Finding(SYSCTL, settled.name(endpoint), detail, (path, value))
    ours = ephemeral_ports(state, seen.ephemeral)
    if ours or seen.reserved_before is not None:
        wanted = parse_reserved(seen.reserved_before or "") | ours
        lost = wanted - parse_reserved(seen.reserved)
        if seen.reserved_before is None:
            lost = ours - parse_reserved(seen.reserved)
        if lost:
            detail = f"net.ipv4.ip_local_reserved_ports lacks {reserved_text(lost)}"
            yield Finding(RESERVED, "the host", detail)
        elif (more := parse_reserved(seen.reserved) - wanted) and seen.reserved_before is not None:
            detail = f"net.ipv4.ip_local_reserved_ports has {reserved_text(more)} too much"
            yield Finding(RESERVED, "the host", detail)
    for name in sorted(seen.folders - state.containers.keys()):
        yield Finding(STRAY_FILES, f"folder {short(name)}", "it is of a container that is forgotten", (name,))
    for container in state.containers.values():
        if _runs(container, seen) and container.id not in seen.folders:
            yield Finding(FILES, f"container {container.name}", "its folder is gone", (container.id,))


def _runs(container: Container, seen: Seen) -> bool:
    return container.phase == READY and container.id in seen.alive
