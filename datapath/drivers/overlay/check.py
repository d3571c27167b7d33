# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about overlay networks: the device for tunnels, this host's address for the others, and what the
maps say of these. What overlay networks have as bridge networks do is checked there. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.drivers.ebpf.check import Rows, of_maps
from datapath.drivers.overlay import announced, encryption
from datapath.drivers.overlay import rows as tables
from datapath.drivers.overlay.spec import ENCRYPTED_DEVICE, TUNNEL_DEVICE, encrypted
from datapath.model.checks import ANNOUNCED, DOWN, ENCRYPTION, HANDSHAKE, OWED, TUNNEL, UNDERLAY
from datapath.model.findings import Finding
from datapath.model.networks import Network
from datapath.model.rows import Phase
from datapath.model.wireguard import WireGuardDevice

# Seconds: by packets of nothing each session is renewed after 120 to 180. Bytes that have been sent to a host after
# two times without an answer: 148 of each.
_SILENT, _TRIES = 300, 2 * 148
# Addresses that a host has itself: one with no others may have nothing to do with the network yet.
_ALIASES = 2


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about these networks, which are of this driver."""
    if comparison.state.owed:
        keys = sorted(comparison.state.owed)
        shown = ", ".join(keys[:2]) + (" …" if len(keys) > 2 else "")
        yield Finding(OWED, "the cluster store", f"{len(keys)} keys are still to be written: {shown}")
    if networks:
        yield from _device(comparison)
        yield from _encryption(comparison, networks)
        yield from _underlay(comparison)
        yield from _announced(comparison, networks)
    if comparison.observed.programs.loaded:
        wanted = _wanted(comparison, networks)
        building = {n.number for n in comparison.state.networks.values() if n.phase != Phase.READY}
        ignored = {
            name: lambda key, value: (
                getattr(key, "network", 0) in building or getattr(value, "network", 0) in building
            )
            for name in wanted
        }
        yield from of_maps(comparison, wanted, ignored)


def _device(comparison: Comparison) -> Iterator[Finding]:
    observed, subject = comparison.observed, "tunnels"
    if not observed.tunnel_device_port:
        yield Finding(TUNNEL, subject, f"device {TUNNEL_DEVICE} is gone, or another's")
        return
    if observed.tunnel_device_port != observed.tunnel_port:
        detail = f"device {TUNNEL_DEVICE} is for UDP port {observed.tunnel_device_port}, not {observed.tunnel_port}"
        yield Finding(TUNNEL, subject, detail)
    device = observed.host.devices.get(TUNNEL_DEVICE)
    if device is not None and not device.up:
        yield Finding(DOWN, subject, f"device {TUNNEL_DEVICE} is down", ("", TUNNEL_DEVICE))


def _encryption(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """The device of encrypted tunnels, this host's key, and the other hosts that the device is to know."""
    end, own = comparison.observed.encryption, tables.own_peer(comparison.state)
    if end is None or own is None:
        return
    subject = "encryption"
    if not end.key or end.key != own.wireguard_key:
        yield Finding(
            ENCRYPTION, subject, end.why or "the other hosts were told another key than this host's"
        )
    if end.device is None:
        yield Finding(ENCRYPTION, subject, f"device {ENCRYPTED_DEVICE} is gone, or another's")
        return
    if end.device.key != own.wireguard_key:
        yield Finding(
            ENCRYPTION, subject, f"device {ENCRYPTED_DEVICE} has another key than the others were told"
        )
    if (end.device.port, own.wireguard_port) != (end.port, end.port):
        detail = f"device {ENCRYPTED_DEVICE} is for UDP port {end.device.port}, the others were told "
        yield Finding(ENCRYPTION, subject, f"{detail}{own.wireguard_port}, and daemon.json says {end.port}")
    found = comparison.observed.host.devices.get(ENCRYPTED_DEVICE)
    if found is not None and found.mtu != end.mtu:
        yield Finding(ENCRYPTION, subject, f"device {ENCRYPTED_DEVICE} has MTU {found.mtu}, not {end.mtu}")
    if found is not None and not found.up:
        yield Finding(DOWN, subject, f"device {ENCRYPTED_DEVICE} is down", ("", ENCRYPTED_DEVICE))
    yield from _peers(comparison, end.device, networks, end.now)


def _peers(
    comparison: Comparison, device: WireGuardDevice, networks: list[Network], now: float
) -> Iterator[Finding]:
    wanted = encryption.peers(comparison.state, networks)
    names = {peer.wireguard_key: f"host {peer.name}" for peer in comparison.state.peers.values()}
    for key, peer in wanted.items():
        there = device.peers.get(key)
        if there is None:
            yield Finding(ENCRYPTION, names[key], f"device {ENCRYPTED_DEVICE} does not know it")
        elif there.prefixes != peer.prefixes:
            yield Finding(ENCRYPTION, names[key], f"device {ENCRYPTED_DEVICE} has other addresses for it")
        elif there.handshake and now - there.handshake > _SILENT:
            yield Finding(HANDSHAKE, names[key], f"it has not answered for {now - there.handshake:.0f} s")
        elif not there.handshake and there.sent > _TRIES and len(peer.prefixes) > _ALIASES:
            yield Finding(HANDSHAKE, names[key], "it has never answered")
    for key in device.peers.keys() - wanted.keys():
        subject = names.get(key, f"key {key}")
        yield Finding(ENCRYPTION, subject, f"device {ENCRYPTED_DEVICE} knows it, and nothing needs that")


def _underlay(comparison: Comparison) -> Iterator[Finding]:
    """Where other hosts believe this one to be."""
    own, network = tables.own_peer(comparison.state), comparison.observed.network
    if own is None:
        return
    holder = next((one for one in network.addresses if one.interface.ip == own.address), None)
    if holder is None:
        yield Finding(UNDERLAY, "the way to other hosts", f"this host has lost the address {own.address}")
        return
    device = network.devices.get(holder.ifindex)
    if device is not None and device.mtu != own.mtu:
        detail = (
            f"device {device.name} takes packets of {device.mtu} bytes, and the others were told {own.mtu}"
        )
        yield Finding(UNDERLAY, "the way to other hosts", detail)


def _announced(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """The routes by which routing daemons know of this host's blocks."""
    for network in networks:
        if network.phase != Phase.READY or comparison.gateway(network) is None:
            continue
        wanted = announced.blocks(comparison.state, network)
        there = announced.seen(network, comparison.observed.network)
        for found, what in ((wanted - there, "lacks"), (there - wanted, "has a needless")):
            for prefix in sorted(found, key=str):
                detail = f"device {network.device} {what} route to {prefix} of protocol {announced.PROTOCOL}"
                yield Finding(ANNOUNCED, f"network {network.name}", detail)


def _wanted(comparison: Comparison, networks: list[Network]) -> dict[str, Rows]:
    own, observed = tables.own_peer(comparison.state), comparison.observed
    if not networks or own is None:
        return {name: {} for name in tables.MAPS}
    found = tables.wanted(comparison.state, networks, observed.network)
    device = observed.host.devices.get(TUNNEL_DEVICE)
    index = device.ifindex if device else 0
    secret = observed.host.devices.get(ENCRYPTED_DEVICE) if any(map(encrypted, networks)) else None
    end = (index, observed.tunnel_port, secret.ifindex if secret else 0)
    return found | tables.own_end(comparison.state, networks, *end)
