# SPDX-License-Identifier: Apache-2.0
"""A host of its own for the packet programs: real devices and routes in namespaces without a name, maps in a
bpffs that nobody else sees. Everything goes with the last file descriptor, so a killed test leaves nothing.

Networks: 1 may do everything; 2 is without icc, with links from b1 to b2; 3 is internal; 4 leaves without
masquerading. 1 and 2 have IPv6. Outside is 192.0.2.0/24 and 2001:db8::/64, the default routes go via 192.0.2.2
and 2001:db8::2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from pathlib import Path
from typing import Any, NamedTuple

from datapath.kernel._libbpf import ffi, lib

from datapath.dataplane import timer
from datapath.dataplane.layout import MAPS, TAILS, TAILS_MAP
from datapath.dataplane.pins import watch
from datapath.kernel import abi, bpf_links, bpf_maps, features, libbpf, netns, syscalls
from datapath.kernel.links import Links
from datapath.model.endpoints import linklocal_of
from tests.bpf import packets
from tests.conftest import SLOWNESS
from tests.softirqs import settle

UNSPEC, SHOT, REDIRECT = -1, 2, 7
XDP_DROP, XDP_PASS = 1, 2
Reason: Any = abi.Reason
Flag: Any = abi.NetworkFlag

NAT_FIRST, NAT_LAST = 20000, 20999
IDENTIFIERS = range(32768, 65536)  # of echoes that are masqueraded
IDENTIFIER = 20100  # A1's pings of rows keep this one: `keep_identifier`
OBJECTS = (
    "from_container",
    "begin",
    "from_host",
    "from_uplink",
    "from_tunnel",
    "from_loopback",
    "xdp_uplink",
    "conn_gc",
    "resolve",
    "ask",
    "answered",
    "from_parent",
    "to_parent",
    "to_lan",
)
SIZES = {
    "devices": 256,
    "endpoints": 256,
    "members": 256,
    "links": 256,
    "ports": 256,
    "reserved": 256,
    "pending": 4096,
    "conns": 4096,
    "confirmed": 4096,
    "fragments": 256,
    "frag_queue": 256,
    "frag_sources": 256,
    "acls": 256,
    "xfrm_policies": 256,
    "rates": 256,
    "limits": 256,
    "quotas": 256,
    "arrivals": 256,
    "origins": 256,
    "externals": 4096,
    "mappings": 4096,
    "contacts": 1024,
    "names": 4096,
    "long_names": 256,
    "name_sets": 256,
    "resolvers": 256,
    "subnets": 256,
    "host_routed": 256,
    "detours": 1024,
    "parents": 256,
    "upstreams": 256,
    "questions": 1024,
    "flows": 4096,
    "flow_queue": 4096,
    "edges": 1024,
    "subjects": 256,
    "peer_classes": 1024,
    "port_scopes": 256,
    "rulesets": 4096,
    "rule_hits": 4096,
    "admissions": 1024,
}

FROM_OUTSIDE = "from_uplink"
_QUEUES = ("confirmed", "flow_queue")
_NOT_RESTORED = {"epoch", "config", "gc_timers"}  # it only grows; nobody writes it; see `restore`
_KEPT = 6  # copies of the programs that nobody uses


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """AssertionError if it is not so in time."""
    end = time.monotonic() + seconds * SLOWNESS
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def booted_for(seconds: float) -> None:
    """Waits until the machine has been up for longer than that: its boot is time 0 of the programs' clock, before which
    nothing can have been seen. Only in one of the lab's, which has just booted, is there anything to wait for."""
    while time.monotonic() <= seconds:
        time.sleep(0.1)


class Net(NamedTuple):
    number: int
    device: str
    flags: int

    @property
    def gateway(self) -> IPv4Address:
        return IPv4Address(f"172.{16 + self.number}.0.1")

    @property
    def gateway6(self) -> IPv6Address:
        return IPv6Address(f"fd00:{self.number}::1")

    @property
    def broadcast(self) -> IPv4Address:
        return IPv4Address(f"172.{16 + self.number}.255.255")

    @property
    def mac(self) -> str:
        return "02:42:" + self.gateway.packed.hex(":")

    @property
    def linklocal(self) -> IPv6Address:
        return linklocal_of(self.mac)

    @property
    def ipv6(self) -> bool:
        return bool(self.flags & Flag.NETWORK_IPV6)


class Member(NamedTuple):
    name: str
    net: Net
    number: int
    slot: int

    @property
    def ip(self) -> IPv4Address:
        return self.net.gateway + 1 + self.slot

    @property
    def ip6(self) -> IPv6Address:
        return self.net.gateway6 + 1 + self.slot

    @property
    def mac(self) -> str:
        return "02:42:" + self.ip.packed.hex(":")

    @property
    def linklocal(self) -> IPv6Address:
        return linklocal_of(self.mac)

    def sends(
        self, dst: packets.Address, carried: packets.Transport, *, to: str | None = None, **header: Any
    ) -> bytes:
        """An honest frame of its own, to the gateway's MAC unless `to` says another."""
        mac = to or self.net.mac
        if ip_address(dst).version == 4:
            return packets.ethernet(
                mac, self.mac, packets.ETH_IPV4, packets.ipv4(self.ip, dst, carried, **header)
            )
        body = packets.ipv6(self.ip6, dst, carried, **header)
        return packets.ethernet(mac, self.mac, packets.ETH_IPV6, body)

    def gets(
        self, src: packets.Address, carried: packets.Transport, *, by: str | None = None, **header: Any
    ) -> bytes:
        """A frame as it arrives in the container, from the gateway's MAC unless `by` says another."""
        if ip_address(src).version == 4:
            body = packets.ipv4(src, self.ip, carried, **header)
            return packets.ethernet(self.mac, by or self.net.mac, packets.ETH_IPV4, body)
        body = packets.ipv6(src, self.ip6, carried, **header)
        return packets.ethernet(self.mac, by or self.net.mac, packets.ETH_IPV6, body)

    def leaves(
        self, src: packets.Address, dst: packets.Address, carried: packets.Transport, **header: Any
    ) -> bytes:
        """A frame of its own as it goes to the outside, one hop further: the next hop's MACs come later."""
        if ip_address(dst).version == 4:
            body = packets.ipv4(src, dst, carried, **{"ttl": 63, **header})
            return packets.ethernet(self.net.mac, self.mac, packets.ETH_IPV4, body)
        body = packets.ipv6(src, dst, carried, **{"hops": 63, **header})
        return packets.ethernet(self.net.mac, self.mac, packets.ETH_IPV6, body)


class Loopback(NamedTuple):
    """The host, over its loopback device."""

    ifindex: int = 1


LO = Loopback()
Sender = Member | Net | Loopback | None  # None: the uplink

_BASE = Flag.NETWORK_ACTIVE | Flag.NETWORK_IPV4
NET1 = Net(1, "dp0", _BASE | Flag.NETWORK_IPV6 | Flag.NETWORK_ICC | Flag.NETWORK_MASQUERADE)
NET2 = Net(2, "dp2", _BASE | Flag.NETWORK_IPV6 | Flag.NETWORK_MASQUERADE)
NET3 = Net(3, "dp3", _BASE | Flag.NETWORK_ICC | Flag.NETWORK_INTERNAL | Flag.NETWORK_MASQUERADE)
NET4 = Net(4, "dp4", _BASE | Flag.NETWORK_ICC)
NETS = (NET1, NET2, NET3, NET4)

A1, A2, A3 = Member("a1", NET1, 1, 0), Member("a2", NET1, 2, 1), Member("a3", NET1, 3, 2)
B1, B2 = Member("b1", NET2, 4, 0), Member("b2", NET2, 5, 1)
C1, C2 = Member("c1", NET3, 6, 0), Member("c2", NET3, 7, 1)
D1 = Member("d1", NET4, 8, 0)
MEMBERS = (A1, A2, A3, B1, B2, C1, C2, D1)

UPLINK, UPLINK_MAC, NEXT_HOP_MAC = "up0", "02:00:00:00:00:aa", "02:00:00:00:00:bb"
HOST = IPv4Address("192.0.2.1")
OTHER = IPv4Address("198.51.100.1")  # an address of the host's that is on loopback
ANYWHERE = IPv4Network("198.19.0.0/24")
OUTSIDE = IPv4Address("203.0.113.5")
NEXT_HOP = IPv4Address("192.0.2.2")
HOST6 = IPv6Address("2001:db8::1")
OTHER6 = IPv6Address("2001:db8:1::1")
ANYWHERE6 = IPv6Network("2001:db8:7::/48")
OUTSIDE6 = IPv6Address("2001:db8:5::5")
NEXT_HOP6 = IPv6Address("2001:db8::2")
UNREACHABLE6 = IPv6Address("2001:db8:6::9")
BLACKHOLE, UNREACHABLE = IPv4Address("198.18.0.9"), IPv4Address("198.18.1.9")

# (host address or None for all of both families, port, protocol) -> (member, its port)
PUBLISHED: Mapping[tuple[str | None, int, int], tuple[Member, int]] = {
    (None, 8081, packets.TCP): (A2, 80),
    (None, 8081, packets.UDP): (A2, 53),
    (str(HOST), 8082, packets.TCP): (B2, 80),
    (str(HOST6), 8082, packets.TCP): (B2, 80),
    ("127.0.0.1", 8083, packets.TCP): (A2, 80),
    ("::1", 8083, packets.TCP): (A2, 80),
    (None, 20005, packets.UDP): (A2, 81),
}
LINKED = ((80, packets.TCP), (53, packets.UDP))  # what b1 may reach on b2


def outside_sends(
    dst: packets.Address, carried: packets.Transport, *, src: packets.Address | None = None, **header: Any
) -> bytes:
    """A frame that arrives at the uplink, from OUTSIDE or OUTSIDE6."""
    if ip_address(dst).version == 4:
        body = packets.ipv4(src or OUTSIDE, dst, carried, **header)
        return packets.ethernet(UPLINK_MAC, NEXT_HOP_MAC, packets.ETH_IPV4, body)
    body = packets.ipv6(src or OUTSIDE6, dst, carried, **header)
    return packets.ethernet(UPLINK_MAC, NEXT_HOP_MAC, packets.ETH_IPV6, body)


def host_sends(member: Member, carried: packets.Transport, **header: Any) -> bytes:
    """A frame that the host's stack sends into the gateway device."""
    body = packets.ipv4(member.net.gateway, member.ip, carried, **header)
    return packets.ethernet(member.mac, member.net.mac, packets.ETH_IPV4, body)


def host_says(
    dst: packets.Address, carried: packets.Transport, *, src: packets.Address | None = None, **header: Any
) -> bytes:
    """A frame that the host sends to itself: from the address that it sends to, as a rule."""
    if ip_address(dst).version == 4:
        body = packets.ipv4(src or dst, dst, carried, **header)
        return packets.ethernet(packets.NOBODY, packets.NOBODY, packets.ETH_IPV4, body)
    body = packets.ipv6(src or dst, dst, carried, **header)
    return packets.ethernet(packets.NOBODY, packets.NOBODY, packets.ETH_IPV6, body)


class Outcome(NamedTuple):
    verdict: int
    reasons: dict[str, int]
    packet: bytes


class Row(NamedTuple):
    """One line of a table. `out` None: the packet is as it was. `reason` is a member of enum reason."""

    sentence: str
    sender: Sender
    packet: bytes
    verdict: int
    reason: Any
    out: bytes | None = None


def dropped(sentence: str, sender: Sender, packet: bytes, reason: Any) -> Row:
    return Row(sentence, sender, packet, SHOT, reason)


def redirected(sentence: str, sender: Sender, packet: bytes, reason: Any, out: bytes | None = None) -> Row:
    return Row(sentence, sender, packet, REDIRECT, reason, out)


def untouched(sentence: str, packet: bytes) -> Row:
    return Row(sentence, None, packet, UNSPEC, Reason.NOT_OURS)


class Topology:
    """The devices: the host in one namespace, every container's end in another. Its life is that of two fds."""

    def __init__(self) -> None:
        self.host, self.inside = _new_namespace(), _new_namespace()
        self.index: dict[str, int] = {}
        self._sockets: dict[str, socket.socket] = {}
        try:
            with netns.enter(self.host):
                self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        os.close(self.host)
        os.close(self.inside)

    def _build(self) -> None:
        from pyroute2 import IPRoute

        with Links() as links, IPRoute() as route:
            route.link("set", index=1, state="up")
            route.addr("add", index=1, address=str(OTHER), prefixlen=32)
            route.addr("add", index=1, family=socket.AF_INET6, address=str(OTHER6), prefixlen=128)
            route.link(
                "add",
                kind="veth",
                ifname=UPLINK,
                address=UPLINK_MAC,
                peer={"ifname": "out0", "address": NEXT_HOP_MAC, "net_ns_fd": self.inside},
            )
            self.index[UPLINK] = socket.if_nametoindex(UPLINK)
            route.addr(
                "add", index=self.index[UPLINK], address=str(HOST), prefixlen=24, broadcast="192.0.2.255"
            )
            # Without duplicate detection, which would take a second.
            Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/accept_dad").write_text("0")
            route.link("set", index=self.index[UPLINK], state="up")
            route.addr(
                "add",
                index=self.index[UPLINK],
                family=socket.AF_INET6,
                address=str(HOST6),
                prefixlen=64,
                flags=2,
            )
            links.configure(self.inside, "out0", (), ipv6=False)
            for net in NETS:
                addresses: list[IPv4Interface | IPv6Interface] = [IPv4Interface(f"{net.gateway}/16")]
                if net.ipv6:
                    addresses.append(IPv6Interface(f"{net.gateway6}/64"))
                self.index[net.device] = links.create_gateway(
                    net.device, f"dpx{net.number}", net.mac, addresses, 1500, ipv6=net.ipv6
                )
            for member in MEMBERS:
                self.index[member.name], _ = links.create_endpoint(
                    f"v{member.name}", member.name, self.inside, member.mac, 1500
                )
                links.configure(self.inside, member.name, (), ipv6=False)
            route.route("add", dst="0.0.0.0/0", gateway=str(NEXT_HOP))
            route.route("add", family=socket.AF_INET6, dst="::/0", gateway=str(NEXT_HOP6))
            route.route("add", family=socket.AF_INET6, dst="2001:db8:6::/48", type="unreachable")
            route.route("add", dst="198.18.0.0/24", type="blackhole")
            # As `ip route add local … dev lo`: all of it is the host's (AnyIP).
            for prefix, family in ((ANYWHERE, socket.AF_INET), (ANYWHERE6, socket.AF_INET6)):
                route.route("add", dst=str(prefix), family=family, type="local", oif=1, table=255, scope=254)
            route.route("add", dst="198.18.1.0/24", type="unreachable")

    def tap(self, name: str) -> socket.socket:
        """A packet socket on a container's end or the next hop's (out0), or on a device of the host's."""
        if name not in self._sockets:
            with netns.enter(self.inside if name in {"out0", *(m.name for m in MEMBERS)} else self.host):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                tap.bind((name, 3))
            tap.setblocking(False)
            self._sockets[name] = tap
        return self._sockets[name]

    def received(self, name: str) -> list[bytes]:
        """The frames that have arrived at such a device since the last look, its own ones left out."""
        return [frame for frame, kind in self.received_as(name) if kind != socket.PACKET_OUTGOING]

    def arrives(self, name: str, wanted: Callable[[bytes], bool]) -> bytes:
        """The next such frame, which is on its way to the device; what comes before it is left out."""
        tap, end = self.tap(name), time.monotonic() + 60 * SLOWNESS
        while select.select([tap], [], [], max(end - time.monotonic(), 0))[0]:
            frame, address = tap.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING and wanted(frame):
                return bytes(frame)
        raise AssertionError(f"nothing has arrived at {name}")

    def received_as(self, name: str) -> list[tuple[bytes, int]]:
        """The same with the kind (PACKET_HOST…) that the device gave them."""
        settle()
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self.tap(name).recvfrom(65536)
                frames.append((frame, int(address[2])))
        return frames


def _is_empty(table: bpf_maps.Map) -> bool:
    """Without reading it, for which there would have to be room for thousands of its rows."""
    first = ffi.new("char[]", 512)  # more than any key has
    found = lib.bpf_map_get_next_key(table.fd, ffi.NULL, first)
    assert found in (0, -errno.ENOENT), found
    return bool(found)


def rows_of(table: bpf_maps.RawMap) -> dict[bytes, bytes]:
    """Key -> value, as they lie in memory."""
    found: dict[bytes, bytes] = {}
    for keys, values, count in table.batches():
        if count:
            each = (bpf_maps.cut(packed, len(packed) // count) for packed in (keys, values))
            found.update(zip(*each, strict=True))
    return found


def _rewrite(table: bpf_maps.RawMap, wanted: Mapping[bytes, bytes]) -> None:
    """These are the map's rows, and no others."""
    present = rows_of(table)
    if not table.is_array:
        table.delete_raw(present.keys() - wanted.keys())
    stale = {key: value for key, value in wanted.items() if present.get(key) != value}
    table.update_raw(b"".join(stale), b"".join(stale.values()))


def _new_namespace() -> int:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)


@contextlib.contextmanager
def private_bpffs() -> Iterator[Path]:
    """A bpffs that is mounted nowhere: only this path, through an open fd, leads there."""
    with tempfile.TemporaryDirectory() as folder:
        syscalls.mount("bpf", folder, "bpf", 0, "mode=700")
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            syscalls.umount(folder, syscalls.MNT_DETACH)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _with_header(verdict: int, sent: bytes, out: bytes) -> bytes:
    """What became of a packet that has been sent without the Ethernet header of `sent`, as if it had had it. Left to
    the host's stack it has none, nor if it was dropped at once; otherwise one was made, without MACs until it is
    delivered."""
    if verdict == UNSPEC or (verdict == SHOT and out == sent[14:]):
        return sent[:14] + out
    assert packets.ethertype(out) == packets.ethertype(sent)
    if any(out[:12]):
        return out
    macs = sent[:12] if verdict == SHOT else sent[6:12] + sent[:6]  # it goes back
    return macs + out[12:]


class Programs:
    """One copy of the programs with their maps, filled for the Topology. `objects`: only these of them, as the
    kernel's look at each takes its time. `bare`: the uplink's packets have no Ethernet header."""

    def __init__(
        self,
        topology: Topology,
        *,
        objects: Sequence[str] = OBJECTS,
        sizes: Mapping[str, int] | None = None,
        nat_ports: tuple[int, int] = (NAT_FIRST, NAT_LAST),
        bare: bool = False,
        outside: str = FROM_OUTSIDE,
        **settings: int,
    ) -> None:
        self.topology = topology
        self.fds: dict[str, int] = {}
        self.maps: dict[str, bpf_maps.Map] = {}
        self.events_fd = -1
        self.tails: bpf_maps.RawMap | None = None
        self.ways: bpf_maps.RawMap | None = None
        self.queues: dict[str, bpf_maps.RawMap] = {}
        self.bare, self.outside = bare, outside
        config = abi.config(
            **{
                "timeout_handshake": 60,
                "timeout_established": 3600,
                "timeout_half_closed": 120,
                "timeout_closing": 10,
                "timeout_udp": 180,
                "timeout_udp_exchange": 30,
                "timeout_icmp": 30,
                **settings,
            }
        )
        with private_bpffs() as pins:
            for hook in dict.fromkeys((*objects, *(["begin"] if "from_container" in objects else []))):
                self._load(hook, pins, config, {**SIZES, **(sizes or {})})
        if "epoch" in self.maps:
            for m in self.maps.values():
                watch(m, self.maps["epoch"])
        self.fill_tails()
        if bare:
            self._load_bare()
        if "host" in self.maps:
            self.maps["host"][0] = abi.host(nat_port_first=nat_ports[0], nat_port_last=nat_ports[1])
        self._fill()
        self._seen = self._counts()
        self._filled = {name: self._rows_of(name) for name in self.maps.keys() - _NOT_RESTORED}

    def _rows_of(self, name: str) -> dict[bytes, bytes]:
        return {} if _is_empty(self.maps[name]) else rows_of(self.maps[name])

    def restore(self) -> None:
        """Every map is as it was when this had been made, and the GC does not run: what comes next cannot tell the
        programs from others that have just been loaded. (What is in the maps that are nowhere named here does not last
        longer than a packet; `epoch` only ever grows.)"""
        settle()
        timers, none = self.maps.get("gc_timers"), bytes(ffi.sizeof("struct gc_timer"))
        if timers and timers.lookup_raw(bpf_maps.number(0)) != none:
            timers.set_raw(bpf_maps.number(0), none)  # it cancels the timer that was in the row
            settle()  # and a tick that had begun has ended
        for queue in self.queues.values():
            while queue.pop_raw() is not None:
                pass
        for name, rows in self._filled.items():
            if self._rows_of(name) != rows:
                _rewrite(self.maps[name], rows)
                assert self._rows_of(name) == rows, f"{name} was not restored"
        self.fill_tails()
        if self.events_fd >= 0:
            libbpf.consume_events(self.events_fd, lambda event: None)
        self._seen = self._counts()

    def _load_bare(self) -> None:
        """The program that takes the header off, which the hook for packets without one follows."""
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "bare.bpf.o"
            include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
            source = Path(__file__).parent / "bare.bpf.c"
            command = ("clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", include, "-c", source, "-o", built)
            subprocess.run(command, check=True)
            (program,), maps = libbpf.load_object(built, pins=None, config=None)
        self.fds[program.name] = program.fd
        tested = ffi.new("__u32 *", self.fds["from_tunnel"])
        assert not lib.bpf_map_update_elem(maps["tested"], ffi.new("__u32 *", 0), tested, 0), ffi.errno
        self.fds["tested"] = maps["tested"]  # without it the array would be emptied
        os.close(maps["rooms"])

    def _load(self, hook: str, pins: Path, config: Any, sizes: Mapping[str, int]) -> None:
        loaded, maps = libbpf.load_object(
            abi.OBJECTS / f"{hook}.bpf.o", pins=pins, config=config, sizes=sizes
        )
        self.fds.update((program.name, program.fd) for program in loaded)
        for name, fd in maps.items():
            if name in MAPS and name not in self.maps:
                self.maps[name] = bpf_maps.Map(fd, name, *MAPS[name])
            elif name == "events" and self.events_fd < 0:
                self.events_fd = fd
            elif name == TAILS_MAP and self.tails is None:  # it is emptied when nobody has it
                self.tails = bpf_maps.RawMap(fd, name, 4, 4)
            elif name == "ways" and self.ways is None:
                self.ways = bpf_maps.RawMap(fd, name, 4, bpf_maps.map_info(fd, name).value_size)
            elif name in _QUEUES and name not in self.queues:
                self.queues[name] = bpf_maps.RawMap(fd, name, 0, bpf_maps.map_info(fd, name).value_size)
            elif name == "gc_timers":  # a timer lives as long as somebody has its map
                self.maps[name] = bpf_maps.Map(fd, name, None, "gc_timer")
            else:
                os.close(fd)

    def close(self) -> None:
        for fd in (*self.fds.values(), self.events_fd):
            os.close(fd)
        for m in (*self.maps.values(), *self.queues.values()):
            m.close()
        for own in filter(None, (self.tails, self.ways)):
            own.close()

    def fill_tails(self, programs: Iterable[str] = TAILS) -> None:
        """The programs that others go on in, as far as they are loaded, are these."""
        for name, place in TAILS.items():
            key = bpf_maps.number(abi.Tail[place])
            if self.tails and name in programs and name in self.fds:
                self.tails.set_raw(key, bpf_maps.number(self.fds[name]))
            elif self.tails:
                lib.bpf_map_delete_elem(self.tails.fd, key)

    def _fill(self) -> None:
        index = self.topology.index
        for net in NETS:
            members = [member for member in MEMBERS if member.net is net]
            v6 = {"gateway6": net.gateway6, "gateway_linklocal": net.linklocal} if net.ipv6 else {}
            self.maps["networks"][net.number] = abi.network(
                flags=net.flags,
                ifindex=index[net.device],
                slots=len(members),
                mtu=1500,
                broadcast=net.broadcast,
                mac=net.mac,
                gateway4=net.gateway,
                **v6,
            )
            self.maps["devices"][abi.device_key(index[net.device])] = abi.device(
                kind=abi.DeviceKind.DEVICE_GATEWAY, network=net.number, mac=net.mac
            )
            for member in members:
                self._add(member)
        self.maps["devices"][abi.device_key(index[UPLINK])] = abi.device(
            kind=abi.DeviceKind.DEVICE_UPLINK, addr4=HOST, addr6=HOST6
        )
        # Of the others the host's table is asked, which does not tell of link-local ones.
        own = abi.linklocal_key(linklocal_of(UPLINK_MAC), index[UPLINK])
        self.maps["linklocals"][own] = abi.address(index[UPLINK])
        for prefix, length in ((ANYWHERE, 96 + ANYWHERE.prefixlen), (ANYWHERE6, ANYWHERE6.prefixlen)):
            self.maps["local_prefixes"][abi.local_prefix_key(length, prefix.network_address)] = abi.address()
        for host_address, number, proto in PUBLISHED:
            for address in (host_address,) if host_address else ("0.0.0.0", "::"):
                self.publish(address, number, proto)
            self.maps["reserved"][abi.reserved_key(number, proto)] = abi.reserved(1)
        for number, proto in LINKED:
            for client, server in ((B1.ip, B2.ip), (B1.ip6, B2.ip6)):
                key = abi.link_key(client, server, number, proto)
                self.maps["links"][key] = abi.link(B1.number, B2.number)

    def publish(
        self, address: str, number: int, proto: int, *, filtered: int = 0, refuse: bool = False
    ) -> None:
        """One of PUBLISHED, at one address; `filtered`: the number of its ACL."""
        found = PUBLISHED.get((address, number, proto)) or PUBLISHED[None, number, proto]
        member, inner = found
        at = ip_address(address)
        self.maps["ports"][abi.port_key(at, number, proto)] = abi.port(
            network=member.net.number,
            endpoint=member.number,
            acl=filtered,
            addr=member.ip if at.version == 4 else member.ip6,
            port=inner,
            default_deny=int(refuse),
        )

    def _add(self, member: Member) -> None:
        ifindex, net = self.topology.index[member.name], member.net
        v6 = {"addr6": member.ip6, "linklocal": member.linklocal} if net.ipv6 else {}
        self.maps["devices"][abi.device_key(ifindex)] = abi.device(
            kind=abi.DeviceKind.DEVICE_ENDPOINT,
            network=net.number,
            endpoint=member.number,
            mac=member.mac,
            addr4=member.ip,
            **v6,
        )
        for address in (member.ip, *((member.ip6, member.linklocal) if net.ipv6 else ())):
            key = abi.endpoint_key(net.number, address)
            self.maps["endpoints"][key] = abi.endpoint(ifindex, member.number, member.mac)
        self.maps["members"][abi.member_key(net.number, member.slot)] = abi.member(ifindex, member.number)

    def forget(self) -> None:
        """No connections, and a fresh view of the counters: what came before has no effect. (What is left in
        `frames` and `scratches` is never read, that in the GC's queue names nothing.) A1's pings with IDENTIFIER keep
        it."""
        written = {
            *("pending", "conns", "externals", "mappings", "contacts"),
            *("fragments", "frag_queue", "frag_sources", "quotas", "arrivals", "rates"),
            *("upstreams", "questions", "name_counts", "detours", "flows", "edges", "admissions"),
        }
        for name in written & self.maps.keys():
            if not _is_empty(self.maps[name]):  # as most are
                self.maps[name].delete_many(list(self.maps[name]))
        if "externals" in self.maps:
            self.keep_identifier(A1, IDENTIFIER)
        self._seen = self._counts()

    def forget_ways(self) -> None:
        """What the programs know of the ways between hosts and of the flows that go them begins now."""
        if self.ways:
            places = b"".join(place.to_bytes(4, sys.byteorder) for place in range(self.ways.max_entries))
            self.ways.update_raw(
                places, bytes(self.ways.max_entries * len(self.ways.lookup_raw(bytes(4)) or b""))
            )
        if "vteps" in self.maps and (changed := self.maps["vteps"].changed):
            changed()

    def keep_identifier(self, member: Member, ident: int) -> None:
        """Echoes of the member's with that identifier leave with it, by a mapping that there is: no new one would keep
        it, and which it chose nobody could say before."""
        for host, address, proto in (
            (HOST, member.ip, packets.ICMP),
            (HOST6, member.ip6, packets.ICMPV6),
        ):
            self.maps["externals"][abi.external_key(host, ident, proto)] = abi.external(
                addr=address, endpoint=member.number, port=ident, seen=time.monotonic_ns()
            )

    def _counts(self) -> dict[str, int]:
        """Reason -> packets, by one system call: every row of a table asks three times."""
        counters = self.maps["counters"]
        raw = b"".join(values for _, values, _ in counters.batches())
        packets_only = memoryview(raw).cast("Q")[::2].tolist()  # struct counter: packets, bytes
        each = counters.copies
        return {reason.name: sum(packets_only[reason * each : (reason + 1) * each]) for reason in Reason}

    def counted(self) -> dict[str, int]:
        """Reasons counted since this was asked last, those of frames that are on their way included."""
        settle()
        return self._counted()

    def _counted(self) -> dict[str, int]:
        now = self._counts()
        delta = {name: value - self._seen[name] for name, value in now.items() if value != self._seen[name]}
        self._seen = now
        return delta

    def ifindex(self, sender: Sender) -> int:
        if sender is None:
            return self.topology.index[UPLINK]
        if isinstance(sender, Loopback):
            return sender.ifindex
        return self.topology.index[sender.name if isinstance(sender, Member) else sender.device]

    @contextlib.contextmanager
    def wired(self, member: Member, *, tcx: bool | None = None) -> Iterator[None]:
        """The member's device has from_container: what its container sends runs through it. Unless `tcx` says how,
        it is attached by what this kernel has."""
        program, ifindex = self.fds["from_container"], self.ifindex(member)
        if features.has_tcx() if tcx is None else tcx:
            link = bpf_links.attach_tcx(program, ifindex, bpf_links.TCX_INGRESS)
            try:
                yield
            finally:
                os.close(link)
        else:
            bpf_links.attach_clsact(program, ifindex, bpf_links.BPF_TC_INGRESS, 1, 1)
            try:
                yield
            finally:
                bpf_links.destroy_clsact(ifindex)

    def run(
        self, sender: Sender, packet: bytes, *, ingress: int = 0, gso: int = 0, flags: int = 0
    ) -> Outcome:
        """Runs the hook that the sender's device has. Of a packet from an uplink whose packets have no Ethernet header
        the outcome is given as if it had had that of `packet`."""
        hook = "as_bare" if self.bare else self.outside
        if isinstance(sender, Loopback):
            hook = "from_loopback"
        elif sender is not None:
            hook = "from_container" if isinstance(sender, Member) else "from_host"
        verdict, out, _ = libbpf.test_run(
            self.fds[hook],
            packet,
            ifindex=self.ifindex(sender),
            ingress_ifindex=ingress,
            gso_size=gso,
            flags=flags,
        )
        if hook == "as_bare":
            out = _with_header(verdict, packet, out)
        return Outcome(verdict, self._counted(), out)

    def early(self, packet: bytes) -> Outcome:
        """Runs the uplink's XDP program. The packet cannot have been changed."""
        opts, out = ffi.new("struct bpf_test_run_opts *"), ffi.new("char[]", len(packet) + 512)
        data = ffi.new("char[]", packet)
        opts.sz, opts.repeat = ffi.sizeof("struct bpf_test_run_opts"), 1
        opts.data_in, opts.data_size_in = data, len(packet)
        opts.data_out, opts.data_size_out = out, len(packet) + 512
        assert not lib.bpf_prog_test_run_opts(self.fds["xdp_uplink"], opts), ffi.errno
        outcome = Outcome(opts.retval, self._counted(), bytes(ffi.buffer(out, opts.data_size_out)))
        assert outcome.packet == packet
        return outcome

    def start_gc(self) -> None:
        """The timer goes on until the maps are closed."""
        timer.start(self.fds["conn_gc"])

    def expect(
        self,
        sender: Sender,
        packet: bytes,
        verdict: int,
        reason: Any,
        out: bytes | None = None,
        **how: int,
    ) -> None:
        """Verdict, exactly one reason, and every byte of the packet afterwards (None: as it was)."""
        got = self.run(sender, packet, **how)
        assert (got.verdict, got.reasons) == (verdict, {reason.name: 1})
        difference = packets.difference(got.packet, packet if out is None else out)
        assert not difference, difference

    def check(self, row: Row) -> None:
        self.expect(row.sender, row.packet, row.verdict, row.reason, row.out)

    def table(self, name: str) -> dict[Any, Any]:
        """`pending` or `conns`: key -> conn."""
        return dict(self.maps[name].read_all())


class Copies:
    """Copies of the programs, each of one test or module at a time. The kernel's look at the programs takes most of a
    test's time, and in an emulated machine half a minute: so who wants the same as another before gets that one's
    copy, with every map restored."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._idle: list[tuple[dict[str, Any], Programs]] = []  # how they were made; the latest last

    @contextlib.contextmanager
    def lent(self, **how: Any) -> Iterator[Programs]:
        """A copy that is as `Programs(topology, **how)` would be."""
        how = {"objects": OBJECTS, "bare": False, **how}
        outside = how.pop("outside", FROM_OUTSIDE)  # it only says which of the programs is run
        programs = self._take(how)
        programs.outside = outside
        try:
            yield programs
        finally:
            self._give_back(how, programs)

    def _take(self, how: dict[str, Any]) -> Programs:
        for place, (made, programs) in enumerate(self._idle):
            if made == how:
                del self._idle[place]
                return programs
        return Programs(self._topology, **how)

    def _give_back(self, how: dict[str, Any], programs: Programs) -> None:
        try:
            # Wherever the caller is: frames are waited for over this one's loopback.
            with netns.enter(self._topology.host):
                programs.restore()
        except BaseException:
            programs.close()
            raise
        self._idle.append((how, programs))
        while len(self._idle) > _KEPT:
            self._idle.pop(0)[1].close()

    def close(self) -> None:
        for _, programs in self._idle:
            programs.close()
        self._idle.clear()
