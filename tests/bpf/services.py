# SPDX-License-Identifier: Apache-2.0
"""A service of network 1 (or another) with members as backends: its rows, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from datapath.dataplane.layout import ROLE_SERVES
from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import NET1, OBJECTS, Member, Net, Programs

SERVICE_OBJECTS = (*OBJECTS, "to_service")
SERVICE, TABLE, SEED = 900, 70, 0x5EED
PUBLISHED = 8090  # at every address of the host's, of both protocols
TARGET = 80
UP, DRAINING, DOWN = (int(abi.BackendState[f"BACKEND_{name}"]) for name in ("UP", "DRAINING", "DOWN"))
MAGLEV, RANDOM, LEAST = (int(abi.ServiceChoice[f"CHOICE_{name}"]) for name in ("MAGLEV", "RANDOM", "LEAST"))
MAPS = ("services", "slots", "backends", "affinities", "loads", "service_counts")


class Remote(NamedTuple):
    """A backend on another host."""

    ip: IPv4Address
    ip6: IPv6Address
    number: int = int(abi.OtherParty.PARTY_PEER)


def vip(net: Net = NET1) -> IPv4Address:
    return net.gateway + 199


def vip6(net: Net = NET1) -> IPv6Address:
    return net.gateway6 + 199


def at(version: int, net: Net = NET1) -> p.Address:
    return vip(net) if version == 4 else vip6(net)


def backend_of(member: Member | Remote) -> int:
    """Its number in `backends`."""
    return 1000 + (member.number if isinstance(member, Member) else int(member.ip) & 0xFF)


def fill(
    programs: Programs,
    members: Sequence[Member | Remote],
    net: Net = NET1,
    *,
    slots: Sequence[Member | Remote] | None = None,
    **service: int,
) -> None:
    """Writes the rows. `slots`: who is in the table, each once; `service`: other fields of its row."""
    maps = programs.maps
    value = maps["networks"][net.number]
    maps["networks"][net.number] = value._replace(flags=value.flags | abi.NetworkFlag.NETWORK_SERVICES)
    for address in (vip(net), vip6(net)):
        key = abi.endpoint_key(net.number, address)
        maps["endpoints"][key] = abi.endpoint(ifindex=0, number=SERVICE, mac=net.mac)
    for member in members:
        state(programs, member, UP)
        if isinstance(member, Member):
            serves(programs, member)
    in_table = members if slots is None else slots
    numbers = [backend_of(member) for member in in_table]
    for chunk in range(0, len(numbers), 64):
        row = struct.pack(f"={len(numbers[chunk : chunk + 64])}I", *numbers[chunk : chunk + 64])
        maps["slots"][abi.slots_key(TABLE, chunk // 64)] = abi.slots(row)
    size = len(numbers)
    maps["services"][abi.service_key(SERVICE)] = abi.service(
        **{
            "network": net.number,
            "seed": SEED,
            "table4": TABLE,
            "size4": size,
            "table6": TABLE,
            "size6": size,
            **service,
        }
    )
    for every in ("0.0.0.0", "::"):
        for proto in (p.TCP, p.UDP):
            publish(programs, every, proto, net)
            maps["reserved"][abi.reserved_key(PUBLISHED, proto)] = abi.reserved(1)


def publish(programs: Programs, address: str, proto: int, net: Net = NET1, **more: int) -> None:
    host = ip_address(address)
    programs.maps["ports"][abi.port_key(host, PUBLISHED, proto)] = abi.port(
        network=net.number,
        endpoint=SERVICE,
        addr=vip(net) if host.version == 4 else vip6(net),
        port=TARGET,
        **more,
    )


def state(programs: Programs, member: Member | Remote, which: int, *, weight: int = 1) -> None:
    """The backend's row."""
    programs.maps["backends"][abi.backend_key(backend_of(member))] = abi.backend(
        service=SERVICE,
        endpoint=member.number,
        state=which,
        weight=weight,
        addr4=member.ip,
        addr6=member.ip6,
    )


def serves(programs: Programs, member: Member) -> None:
    """The endpoint's rows say that it is a backend."""
    devices, index = programs.maps["devices"], programs.topology.index[member.name]
    key = abi.device_key(index)
    devices[key] = devices[key]._replace(forwarding=ROLE_SERVES)
    endpoints = programs.maps["endpoints"]
    for address in (member.ip, member.ip6):
        key = abi.endpoint_key(member.net.number, address)
        if key in endpoints:
            endpoints[key] = endpoints[key]._replace(forwarding=ROLE_SERVES)


def remove(programs: Programs, net: Net = NET1) -> None:
    """No service any more: its rows go, and what the programs have written about it."""
    maps = programs.maps
    for name in MAPS:
        maps[name].delete_many(list(maps[name]))
    for address in (vip(net), vip6(net)):
        maps["endpoints"].pop(abi.endpoint_key(net.number, address), None)
    value = maps["networks"][net.number]
    maps["networks"][net.number] = value._replace(flags=value.flags & ~abi.NetworkFlag.NETWORK_SERVICES)


def counts(programs: Programs, number: int) -> tuple[int, int]:
    """Opened and failed connections of a service or a backend."""
    copies = dict(programs.maps["service_counts"].read_all()).get(abi.service_count_key(number), ())
    return sum(one.opened for one in copies), sum(one.failed for one in copies)


def hash_of(client: p.Address, sport: int, port: int, proto: int, *, seed: int = SEED) -> int:
    """Of a client, as the programs compute it: over its address, its port and the service's, and the protocol."""
    return _hash(seed, (*_words(client), sport << 16 | port, proto))


def mark_of(asked: p.Address, port: int) -> int:
    """Of what a client has asked, as the backend's host hears it."""
    return _hash(0, (*_words(asked), port)) or 1


def _words(address: p.Address) -> tuple[int, ...]:
    raw = ip_address(address).packed
    return struct.unpack("!4I", raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw)


def _hash(value: int, words: tuple[int, ...]) -> int:
    """MurmurHash3."""
    for word in words:
        word = word * 0xCC9E2D51 & 0xFFFFFFFF
        word = (word << 15 | word >> 17) & 0xFFFFFFFF
        value ^= word * 0x1B873593 & 0xFFFFFFFF
        value = (value << 13 | value >> 19) & 0xFFFFFFFF
        value = (value * 5 + 0xE6546B64) & 0xFFFFFFFF
    value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def slot_of(client: p.Address, sport: int, port: int, proto: int, size: int) -> int:
    """The slot that leads to."""
    return hash_of(client, sport, port, proto) * size >> 32


def reset(frame: bytes) -> bytes:
    """What a service without a backend answers to a SYN: as nobody listens there (RFC 9293, 3.10.7.1)."""
    four = p.ethertype(frame) == p.ETH_IPV4
    at = 34 if four else 54
    sport, dport, seq = struct.unpack("!HHI", frame[at : at + 8])
    carried = p.tcp(dport, sport, p.RST | p.ACK, seq=0, ack=seq + 1)
    body = p.Transport(carried.proto, carried.data[:14] + bytes(2) + carried.data[16:], 16, True)
    if four:
        src, dst = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
        return frame[6:12] + frame[:6] + frame[12:14] + p.ipv4(dst, src, body, ident=0, fragment=0)
    src6, dst6 = IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
    return frame[6:12] + frame[:6] + frame[12:14] + p.ipv6(dst6, src6, body)


def closed(frame: bytes) -> bytes:
    """And to a datagram: port unreachable."""
    four = p.ethertype(frame) == p.ETH_IPV4
    packet = frame[14:]
    length = int.from_bytes(packet[2:4], "big") if four else 40 + int.from_bytes(packet[4:6], "big")
    head = 20 if four else 40
    quote = packet[: p.QUOTE if length >= p.QUOTE else head + 8]
    if four:
        src, dst = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        body = p.ipv4(dst, src, p.icmp(3, 3, 0, quote), ident=0, fragment=0)
    else:
        src6, dst6 = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        body = p.ipv6(dst6, src6, p.icmp6(1, 4, 0, quote))
    return frame[6:12] + frame[:6] + frame[12:14] + body


def opened_with(programs: Programs) -> Any:
    """The server's side of the one connection there is: the tuple of its answers."""
    found = {**programs.table("pending"), **programs.table("conns")}
    (reply,) = (key for key, conn in found.items() if not conn.flags & abi.ConnFlag.CONN_ORIGINAL)
    return reply
