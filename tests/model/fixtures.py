# SPDX-License-Identifier: Apache-2.0
"""The programs' side of the comparison: real devices, addresses and routes in namespaces without a name, maps
written from a `Topology`, and a test run that costs a few microseconds."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any

from datapath.kernel._libbpf import ffi, lib

from datapath.dataplane.layout import MAPS
from datapath.kernel import abi, bpf_maps, libbpf, netns
from datapath.kernel.links import Links
from datapath.model.endpoints import linklocal_of
from tests.bpf.fixtures import _new_namespace, private_bpffs
from tests.model.topology import Member, Network, Published, Topology, Uplink

HOOKS = ("from_container", "from_host", "from_uplink", "from_loopback")
EXTRA = {
    "acls": ("acl_key", "acl"),
    "rates": ("rate_key", "rate"),
    "quotas": ("quota_key", "quota"),
    "fragments": ("fragment_key", "fragment"),
    "frag_queue": ("frag_queue_key", "frag_queue"),
    "frag_sources": ("frag_source_key", "frag_source"),
}
LAYOUT = {**EXTRA, **MAPS}
SIZES = {
    "devices": 256,
    "endpoints": 512,
    "members": 512,
    "links": 512,
    "ports": 512,
    "reserved": 512,
    "pending": 1 << 16,
    "conns": 1 << 16,
    "fragments": 1 << 14,
    "frag_queue": 1 << 12,
}
FLAG: Any = abi.NetworkFlag
REASONS: dict[str, int] = {reason.name: int(reason) for reason in abi.Reason}
NAMES = {number: name for name, number in REASONS.items()}


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def address(raw: bytes) -> IPv4Address | IPv6Address | None:
    return ip_address(raw) if raw else None


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


@dataclass
class Plan:
    """The parts of a host that are devices, addresses and routes: made once for many topologies."""

    lans: list[Lan]
    uplinks: list[tuple[IPv4Interface, IPv6Interface, int]]
    extra: list[IPv4Address | IPv6Address]
    outs: list[tuple[str, int]] = field(default_factory=list)  # prefix, uplink
    stops: list[tuple[str, str]] = field(default_factory=list)  # prefix, type
    ports: tuple[int, int] = (20000, 20999)
    sockets: list[tuple[int, int]] = field(default_factory=list)  # port, protocol


def next_hop(own: IPv4Interface | IPv6Interface) -> IPv4Address | IPv6Address:
    return own.ip + 1


class Host:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.space, self.inside = _new_namespace(), _new_namespace()
        self.index: dict[str, int] = {}
        self.taps: dict[str, socket.socket] = {}
        self.sockets: list[socket.socket] = []
        self.linklocals: set[bytes] = set()
        try:
            with netns.enter(self.space):
                self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for sock in (*self.taps.values(), *self.sockets):
            sock.close()
        os.close(self.space)
        os.close(self.inside)

    def _build(self) -> None:
        from pyroute2 import IPRoute

        with Links() as links, IPRoute() as route:
            route.link("set", index=1, state="up")
            for extra in self.plan.extra:
                route.addr("add", index=1, address=str(extra), prefixlen=extra.max_prefixlen)
            for i, (v4, v6, mtu) in enumerate(self.plan.uplinks):
                name = f"up{i}"
                route.link(
                    "add",
                    kind="veth",
                    ifname=name,
                    mtu=mtu,
                    address=uplink_mac(i),
                    peer={"ifname": f"out{i}", "net_ns_fd": self.inside},
                )
                index = self.index[name] = socket.if_nametoindex(name)
                with open(f"/proc/sys/net/ipv6/conf/{name}/accept_dad", "w") as knob:
                    knob.write("0")
                route.addr(
                    "add",
                    index=index,
                    address=str(v4.ip),
                    prefixlen=v4.network.prefixlen,
                    broadcast=str(v4.network.broadcast_address),
                )
                route.link("set", index=index, state="up")
                route.addr(
                    "add",
                    index=index,
                    family=socket.AF_INET6,
                    address=str(v6.ip),
                    prefixlen=v6.network.prefixlen,
                    flags=2,
                )
                links.configure(self.inside, f"out{i}", (), ipv6=False)
            for lan in self.plan.lans:
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
            for prefix, uplink in self.plan.outs:
                v4, v6, _ = self.plan.uplinks[uplink]
                hop = next_hop(v6 if ":" in prefix else v4)
                route.route("add", dst=prefix, gateway=str(hop), oif=self.index[f"up{uplink}"])
            for prefix, kind in self.plan.stops:
                family = socket.AF_INET6 if ":" in prefix else socket.AF_INET
                route.route("add", family=family, dst=prefix, type=kind)
            self._listen()
            for message in route.get_addr(family=socket.AF_INET6):
                found = ip_address(dict(message["attrs"])["IFA_ADDRESS"])
                if found.is_link_local:
                    self.linklocals.add(found.packed)

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
            with netns.enter(self.space if name[0] in "vul" else self.inside):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                tap.bind((name, 3))
            tap.setblocking(False)
            self.taps[name] = tap
        return self.taps[name]

    def received(self, name: str) -> list[bytes]:
        """What has arrived at a container's end since the last look."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, where = self.tap(name).recvfrom(65536)
                if where[2] != socket.PACKET_OUTGOING:
                    frames.append(frame)
        return frames


def uplink_mac(number: int) -> str:
    return f"02:00:00:02:00:{number:02x}"


class Programs:
    """One copy of the tc programs with maps of their own."""

    def __init__(self, host: Host, **settings: int) -> None:
        self.host = host
        self.programs: dict[str, int] = {}
        self.maps: dict[str, bpf_maps.Map] = {}
        config = abi.config(
            **{
                "timeout_handshake": 3600,
                "timeout_established": 3600,
                "timeout_closing": 3600,
                "timeout_udp": 3600,
                "timeout_icmp": 3600,
                **settings,
            }
        )
        with private_bpffs() as pins:
            for hook in HOOKS:
                programs, maps = libbpf.load_object(
                    abi.OBJECTS / f"{hook}.bpf.o", pins=pins, config=config, sizes=SIZES
                )
                self.programs.update((program.name, program.fd) for program in programs)
                for name, fd in maps.items():
                    if name in LAYOUT and name not in self.maps:
                        self.maps[name] = bpf_maps.Map(fd, name, *LAYOUT[name])
                    else:
                        os.close(fd)
        first, last = host.plan.ports
        self.maps["host"][0] = abi.host(nat_port_first=first, nat_port_last=last)
        self.runner = Runner(self.maps["counters"].fd)

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)
        for m in self.maps.values():
            m.close()

    def fill(self, topology: Topology) -> None:
        """The maps as the control plane would leave them, without any connection."""
        for name, m in self.maps.items():
            if name == "networks":
                for number in range(1, 16):
                    m[number] = abi.network()
            elif name != "counters" and LAYOUT[name][0]:
                m.delete_many(list(m))
        for net in topology.networks:
            self._network(net)
        for i, uplink in enumerate(topology.uplinks):
            self.maps["devices"][abi.device_key(self.host.index[uplink.name])] = abi.device(
                kind=abi.DeviceKind.DEVICE_UPLINK,
                mac=uplink_mac(i),
                addr4=address(uplink.addr4),
                addr6=address(uplink.addr6),
            )
        for number, (where, published) in enumerate(topology.ports.items(), 1):
            self._port(number, where, published)
        for raw in topology.host:
            self.maps["addresses"][abi.address_key(address(raw))] = abi.address(1)
        numbers = {a: m.number for net in topology.networks for a, m in net.members.items()}
        for client, server, port, proto in topology.links:
            key = abi.link_key(address(client), address(server), port, proto)
            self.maps["links"][key] = abi.link(numbers[client], numbers[server])

    def replace(self, topology: Topology, member: Member) -> None:
        """The member's endpoint is removed and another one made with its addresses; connections are forgotten about."""
        net = member.network
        slot = list({id(m): m for m in net.members.values()}).index(id(member))
        self._member(net, slot, member)
        for number, (where, published) in enumerate(topology.ports.items(), 1):
            if published.member is member:
                self._port(number, where, published)

    def keys(self, name: str) -> set[bytes]:
        """All keys of a map as they lie in memory."""
        size = abi.layout("tuple").size
        found: set[bytes] = set()
        for keys, _, count in self.maps[name].batches():
            found.update(keys[i * size : (i + 1) * size] for i in range(count))
        return found

    def _network(self, net: Network) -> None:
        index = self.host.index[f"dp{net.number}"]
        flags = FLAG.NETWORK_ACTIVE
        for wanted, flag in (
            (net.ipv4, FLAG.NETWORK_IPV4),
            (net.ipv6, FLAG.NETWORK_IPV6),
            (net.icc, FLAG.NETWORK_ICC),
            (net.internal, FLAG.NETWORK_INTERNAL),
            (net.masquerade, FLAG.NETWORK_MASQUERADE),
        ):
            if wanted:
                flags |= flag
        members = list({id(m): m for m in net.members.values()}.values())
        self.maps["networks"][net.number] = abi.network(
            flags=flags,
            ifindex=index,
            slots=len(members),
            mtu=net.mtu,
            broadcast=address(net.broadcast) if net.broadcast != bytes(4) else None,
            mac=mac_text(net.mac),
            gateway4=address(net.gateway4),
            gateway6=address(net.gateway6),
            gateway_linklocal=address(net.linklocal),
        )
        self.maps["devices"][abi.device_key(index)] = abi.device(
            kind=abi.DeviceKind.DEVICE_GATEWAY, network=net.number, mac=mac_text(net.mac)
        )
        for slot, member in enumerate(members):
            self._member(net, slot, member)

    def _member(self, net: Network, slot: int, member: Member) -> None:
        index = self.host.index[member.name]
        self.maps["devices"][abi.device_key(index)] = abi.device(
            kind=abi.DeviceKind.DEVICE_ENDPOINT,
            network=net.number,
            endpoint=member.number,
            mac=mac_text(member.mac),
            addr4=address(member.addr4),
            addr6=address(member.addr6),
            linklocal=address(member.linklocal),
        )
        for raw in (member.addr4, member.addr6, member.linklocal):
            if raw:
                key = abi.endpoint_key(net.number, address(raw))
                self.maps["endpoints"][key] = abi.endpoint(index, member.number, mac_text(member.mac))
        self.maps["members"][abi.member_key(net.number, slot)] = abi.member(index, member.number)

    def _port(self, number: int, where: tuple[bytes, int, int], published: Published) -> None:
        host, port, proto = where
        self.maps["ports"][abi.port_key(address(host), port, proto)] = abi.port(
            network=published.member.network.number,
            endpoint=published.member.number,
            acl=number if published.filtered else 0,
            addr=address(published.addr),
            port=published.port,
            default_deny=int(published.refuse),
        )
        reserved, key = self.maps["reserved"], abi.reserved_key(port, proto)
        reserved[key] = abi.reserved(reserved.get(key, abi.reserved(0)).mappings + 1)
        acl_key, acl = abi.layout("acl_key").type, abi.layout("acl").type
        for prefix, length, allow in published.rules if published.filtered else ():
            whole = 32 + length + (96 if len(prefix) == 4 else 0)
            rule = acl_key(prefixlen=whole, acl=number, addr=address(prefix))
            self.maps["acls"][rule] = acl(int(allow))


class Runner:
    """A test run with everything allocated before. The caller stays on one CPU: counters are read of one only."""

    def __init__(self, counters: int) -> None:
        self._ctx = ffi.new("struct __sk_buff *")
        self._opts = opts = ffi.new("struct bpf_test_run_opts *")
        opts.sz = ffi.sizeof("struct bpf_test_run_opts")
        self._in, self._out = ffi.new("char[4096]"), ffi.new("char[8192]")
        opts.data_in, opts.data_out = self._in, self._out
        opts.ctx_in, opts.ctx_size_in = self._ctx, ffi.sizeof("struct __sk_buff")
        opts.repeat = 1
        self._view = ffi.buffer(self._out)
        self._counters = counters
        self._key = ffi.new("__u32 *")
        self._values = ffi.new("__u64[]", 2 * lib.libbpf_num_possible_cpus())
        self._at = 2 * next(iter(os.sched_getaffinity(0)))
        self.seen = [self.count(i) for i in range(64)]

    def count(self, reason: int) -> int:
        self._key[0] = reason
        if lib.bpf_map_lookup_elem(self._counters, self._key, self._values):
            raise OSError("read counters")
        return int(self._values[self._at])

    def run(
        self, program: int, ifindex: int, frame: bytes, ingress: int = 0, gso: int = 0
    ) -> tuple[int, bytes] | None:
        """Verdict and frame; None: the kernel will not test-run this frame."""
        opts, size = self._opts, len(frame)
        ffi.memmove(self._in, frame, size)
        opts.data_size_in, opts.data_size_out = size, 8192
        self._ctx.ifindex, self._ctx.ingress_ifindex, self._ctx.gso_size = ifindex, ingress, gso
        if lib.bpf_prog_test_run_opts(program, opts):
            return None
        verdict = opts.retval
        return (verdict if verdict < 1 << 31 else verdict - (1 << 32)), self._view[: opts.data_size_out]

    def moved(self, reasons: tuple[int, ...]) -> int | None:
        """Which of these reasons has been counted once more; None: none of them."""
        seen = self.seen
        found = None
        for reason in reasons:
            value = self.count(reason)
            if value != seen[reason]:
                if value != seen[reason] + 1:
                    found = None
                    break
                seen[reason] = value
                found = reason
        return found

    def all_moved(self) -> list[tuple[int, int]]:
        """What was counted since `seen` was last right: reason and number. For the books, and for failures."""
        moved = []
        for reason in range(64):
            value = self.count(reason)
            if value != self.seen[reason]:
                moved.append((reason, value - self.seen[reason]))
                self.seen[reason] = value
        return moved


@contextlib.contextmanager
def pinned_to_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {os.sched_getcpu() if hasattr(os, "sched_getcpu") else min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def linklocal(mac: str) -> bytes:
    return linklocal_of(mac).packed


__all__ = ["Host", "Lan", "Plan", "Programs", "Runner", "Uplink", "pinned_to_one_cpu"]
