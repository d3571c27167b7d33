# SPDX-License-Identifier: Apache-2.0
"""Real devices, addresses, routes and rules in namespaces without a name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple

from datapath.kernel import netns
from datapath.kernel.links import Links
from tests.bpf.fixtures import _new_namespace

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
Interface = IPv4Interface | IPv6Interface
ENCRYPTED = "wg0"  # the device of encrypted tunnels: here one whose packets have no Ethernet header either


@dataclass
class Lan:
    """What a network is on the host, whatever flags a topology gives it."""

    number: int
    subnet4: IPv4Interface  # with the gateway's address
    subnet6: IPv6Interface
    mtu: int
    members: int

    @property
    def mac(self) -> str:
        return "02:42:" + self.subnet4.ip.packed.hex(":")


class Leg(NamedTuple):
    """What an uplink is on the host. `ethernet`: its frames have such a header; else it is a tun device."""

    v4: IPv4Interface
    v6: IPv6Interface | None
    mtu: int
    ethernet: bool = True
    second: IPv4Interface | None = None  # another address, in a subnet of its own

    @property
    def addresses(self) -> tuple[Interface, ...]:
        return tuple(one for one in (self.v4, self.v6, self.second) if one)


class Out(NamedTuple):
    """A route out: to a prefix, by an uplink. `second`: by a next hop in the uplink's second subnet. `source`: what
    the route itself says that is sent from."""

    prefix: str
    leg: int
    second: bool = False
    source: str = ""


class Policy(NamedTuple):
    """A rule, in the words of `ip rule`, and the table that it leads to."""

    table: int
    six: bool = False
    source: str = ""
    proto: int = 0
    sport: int = 0
    dport: int = 0
    tos: int = 0

    @property
    def words(self) -> str:
        selectors = {
            "from": self.source,
            "ipproto": self.proto,
            "sport": self.sport,
            "dport": self.dport,
            "tos": hex(self.tos) if self.tos else "",
        }
        return " ".join(f"{word} {value}" for word, value in selectors.items() if value)


@dataclass
class Plan:
    """The parts of a host that are devices, addresses and routes: made once for many topologies."""

    lans: list[Lan]
    legs: list[Leg]
    extra: list[IPv4Address | IPv6Address]
    outs: list[Out] = field(default_factory=list)
    stops: list[tuple[str, str]] = field(default_factory=list)  # prefix, type
    encapsulated: str = ""  # a prefix
    behind: list[tuple[str, int]] = field(
        default_factory=list
    )  # prefix, lan: its first member is the next hop
    anyip: list[str] = field(default_factory=list)  # prefixes that are the host's as a whole
    tables: dict[int, list[Out]] = field(default_factory=dict)  # beside the main one
    policies: list[Policy] = field(default_factory=list)  # in their order
    ports: tuple[int, int] = (20000, 20999)
    sockets: list[tuple[int, int]] = field(default_factory=list)  # port, protocol
    encrypted: int = 1420  # bytes that the device of encrypted tunnels takes


def uplink_mac(number: int) -> str:
    return f"02:00:00:02:00:{number:02x}"


def family(prefix: str) -> str:
    return "-6" if ":" in prefix else "-4"


class Host:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.space, self.inside = _new_namespace(), _new_namespace()
        self.index: dict[str, int] = {}
        self.taps: dict[str, socket.socket] = {}
        self.tunnels: dict[str, int] = {}  # a tun device lives as long as somebody has it open
        self.sockets: list[socket.socket] = []
        try:
            with netns.enter(self.space):
                self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for sock in (*self.taps.values(), *self.sockets):
            sock.close()
        for fd in self.tunnels.values():
            os.close(fd)
        os.close(self.space)
        os.close(self.inside)

    def _build(self) -> None:
        with Links() as links:
            for i, leg in enumerate(self.plan.legs):
                self._leg(links, i, leg)
            for lan in self.plan.lans:
                self._lan(links, lan)
        self.tunnels[ENCRYPTED] = tunnel(ENCRYPTED)
        self.index[ENCRYPTED] = socket.if_nametoindex(ENCRYPTED)
        self._batch([f"-4 link set {ENCRYPTED} mtu {self.plan.encrypted} up"])
        self._batch([line for line in self._routes() if line])
        self._listen()

    def _leg(self, links: Links, number: int, leg: Leg) -> None:
        name = f"up{number}"
        lines = ["-4 link set lo up"] if not number else []
        if leg.ethernet:
            self._veth(name, f"out{number}", uplink_mac(number))
        else:
            self.tunnels[name] = tunnel(name)
        self.index[name] = socket.if_nametoindex(name)
        with open(f"/proc/sys/net/ipv6/conf/{name}/accept_dad", "w") as knob:
            knob.write("0")
        lines.append(f"-4 link set {name} mtu {leg.mtu} up")
        for one in leg.addresses:
            more = "nodad" if one.version == 6 else ""
            if one.version == 4 and leg.ethernet:
                more = f"broadcast {one.network.broadcast_address}"
            lines.append(f"{family(str(one))} addr add {one} {more} dev {name}")
        self._batch(lines)
        if leg.ethernet:
            links.configure(self.inside, f"out{number}", (), ipv6=False)

    def _veth(self, name: str, outer: str, mac: str) -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            peer = {"ifname": outer, "net_ns_fd": self.inside}
            route.link("add", kind="veth", ifname=name, address=mac, peer=peer)

    def _lan(self, links: Links, lan: Lan) -> None:
        name = f"dp{lan.number}"
        self.index[name] = links.create_gateway(
            name, f"dpx{lan.number}", lan.mac, [lan.subnet4, lan.subnet6], lan.mtu, ipv6=True
        )
        for slot in range(lan.members):
            name = f"m{lan.number}-{slot}"
            self.index[name], _ = links.create_endpoint(
                f"v{name}", name, self.inside, f"02:00:00:01:{lan.number:02x}:{slot:02x}", lan.mtu
            )
            links.configure(self.inside, name, (), ipv6=False)

    def _routes(self) -> list[str]:
        plan = self.plan
        lines = [f"-4 addr add {one} dev lo" for one in plan.extra if one.version == 4]
        lines += [f"-6 addr add {one} nodad dev lo" for one in plan.extra if one.version == 6]
        lines += [f"{family(prefix)} route add local {prefix} dev lo" for prefix in plan.anyip]
        lines += [f"{family(prefix)} route add {kind} {prefix}" for prefix, kind in plan.stops]
        if plan.encapsulated:
            end = plan.legs[0].v4.ip + 1
            lines.append(f"-4 route add {plan.encapsulated} encap ip id 5 dst {end} dev up0")
        for prefix, number in plan.behind:
            lan = next(one for one in plan.lans if one.number == number)
            hop = (lan.subnet6 if ":" in prefix else lan.subnet4).ip + 1
            lines.append(f"{family(prefix)} route add {prefix} via {hop} dev dp{number}")
        for table, outs in {254: plan.outs, **plan.tables}.items():
            lines += [self._out(out, table) for out in outs]
        for number, policy in enumerate(plan.policies):
            version = "-6" if policy.six else "-4"
            lines.append(f"{version} rule add pref {1000 + number} {policy.words} lookup {policy.table}")
        return lines

    def _out(self, out: Out, table: int) -> str:
        leg, six = self.plan.legs[out.leg], ":" in out.prefix
        source = f"src {out.source}" if out.source else ""
        own = leg.v6 if six else leg.second if out.second else leg.v4
        if own is None:
            return ""
        via = f"via {own.ip + 1}" if leg.ethernet else ""
        return f"{family(out.prefix)} route add {out.prefix} {via} dev up{out.leg} {source} table {table}"

    @staticmethod
    def _batch(lines: list[str]) -> None:
        """By one process for all of a family; a line that is refused ends it."""
        for version in ("-4", "-6"):
            own = [line.removeprefix(version) for line in lines if line.startswith(version)]
            if own:
                subprocess.run(["ip", version, "-batch", "-"], input="\n".join(own), text=True, check=True)

    def _listen(self) -> None:
        for port, proto in self.plan.sockets:
            kind = socket.SOCK_STREAM if proto == socket.IPPROTO_TCP else socket.SOCK_DGRAM
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                sock = socket.socket(family, kind)
                self.sockets.append(sock)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((anywhere, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen()

    def tap(self, name: str) -> socket.socket:
        if name not in self.taps:
            with netns.enter(self.space if name[0] in "vuldw" else self.inside):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                tap.bind((name, 3))
            tap.setblocking(False)
            self.taps[name] = tap
        return self.taps[name]

    def received(self, name: str) -> list[bytes]:
        """What has arrived at a device since the last look."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, where = self.tap(name).recvfrom(65536)
                if where[2] != socket.PACKET_OUTGOING:
                    frames.append(frame)
        return frames


def tunnel(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def packed(*addresses: Interface | None) -> list[bytes]:
    return [one.ip.packed for one in addresses if one]
