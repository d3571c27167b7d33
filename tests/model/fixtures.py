# SPDX-License-Identifier: Apache-2.0
"""The programs' side of the comparison: maps written from a `Topology`, and a test run that costs a few
microseconds."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from datapath.kernel._libbpf import ffi, lib

from datapath.dataplane.convert import to_abi
from datapath.dataplane.host_entries import xfrm_entries
from datapath.dataplane.layout import MAPS, ROLE_SERVES, TAILS, TAILS_MAP
from datapath.dataplane.pins import watch
from datapath.dataplane.policies import Policies
from datapath.dataplane.structs import UpstreamValue
from datapath.kernel import abi, bpf_maps, libbpf
from datapath.model.host import XfrmPolicies, XfrmPolicy
from datapath.plan.policies.rows import Rows
from tests import bpf
from tests.bpf.fixtures import private_bpffs
from tests.bpf.names import add_name, add_resolver, address_record, pointer_record
from tests.model.devices import Host, uplink_mac
from tests.model.plans import PROTECTED
from tests.model.questions import UPSTREAM
from tests.model.services import Service
from tests.model.topology import Member, Network, Published, Topology
from tests.model.tunnels import Overlay

HOOKS = ("from_container", "from_host", "from_uplink", "from_tunnel", "from_loopback", "from_parent")
# What the programs keep for themselves, and is emptied with the rest: map, its key and its value.
EXTRA = {
    "acls": ("acl_key", "acl"),
    "rates": ("rate_key", "rate"),
    "quotas": ("quota_key", "quota"),
    "arrivals": ("arrival_key", "arrival"),
    "fragments": ("fragment_key", "fragment"),
    "frag_queue": ("frag_queue_key", "frag_queue"),
    "frag_sources": ("frag_source_key", "frag_source"),
    "externals": ("external_key", "external"),
    "mappings": ("mapping_key", "mapping"),
    "contacts": ("contact_key", "contact"),
    "origins": ("origin_key", "origin"),
    "xfrm_policies": ("xfrm_key", "xfrm_policy"),
}
LAYOUT = {**EXTRA, **MAPS}
LONG_AFFINITY = 7 * 24 * 3600  # seconds
CHOICES = {"maglev": "MAGLEV", "random": "RANDOM", "least-conn": "LEAST"}
PARTY_PEER = int(abi.OtherParty.PARTY_PEER)
SIZES = {
    **dict.fromkeys(("endpoints", "members", "links", "ports", "origins", "reserved"), 512),
    **dict.fromkeys(("pending", "conns", "externals", "mappings"), 1 << 16),
    "devices": 256,
    "fragments": 1 << 14,
    "frag_queue": 1 << 12,
}
KIND: Any = abi.DeviceKind
FLAG: Any = abi.NetworkFlag
REASONS: dict[str, int] = {reason.name: int(reason) for reason in abi.Reason}
NAMES = {number: name for name, number in REASONS.items()}


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def address(raw: bytes) -> IPv4Address | IPv6Address | None:
    return ip_address(raw) if raw else None


def _mask(bits: int) -> IPv6Address:
    return IPv6Network(f"::/{bits}").netmask


@functools.cache
def bare_program() -> bytes:
    """The object file of tests/bpf/bare.bpf.c."""
    source, include = Path(bpf.__file__).parent / "bare.bpf.c", sysconfig.get_config_var("MULTIARCH")
    command = [
        "clang",
        "-O2",
        "-g",
        "-target",
        "bpf",
        "-mcpu=v3",
        f"-I/usr/include/{include}",
        "-c",
        str(source),
    ]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "bare.bpf.o"
        subprocess.run([*command, "-o", str(built)], check=True)
        return built.read_bytes()


class Programs:
    """One copy of the tc programs with maps of their own."""

    def __init__(self, host: Host, **settings: int) -> None:
        self.host = host
        self.programs: dict[str, int] = {}
        self.buried = set[int]()  # numbers of endpoints whose removal is complete
        self.maps: dict[str, bpf_maps.Map] = {}
        self._tails: list[bpf_maps.RawMap] = []
        timeouts = [name for name, _ in ffi.typeof("struct config").fields if name.startswith("timeout_")]
        config = abi.config(**{**dict.fromkeys(timeouts, 3600), **settings})
        with private_bpffs() as pins:
            for hook in (*HOOKS, *TAILS):
                programs, maps = libbpf.load_object(
                    abi.OBJECTS / f"{hook}.bpf.o", pins=pins, config=config, sizes=SIZES
                )
                self.programs.update((program.name, program.fd) for program in programs)
                for name, fd in maps.items():
                    if name == TAILS_MAP and not self._tails:
                        self._tails = [bpf_maps.RawMap(fd, name, 4, 4)]
                    elif name in LAYOUT and name not in self.maps:
                        self.maps[name] = bpf_maps.Map(fd, name, *LAYOUT[name])
                    else:
                        os.close(fd)
        for m in self.maps.values():
            watch(m, self.maps["epoch"])
        for program, place in TAILS.items():
            key = bpf_maps.number(abi.Tail[place])
            self._tails[0].set_raw(key, bpf_maps.number(self.programs[program]))
        self._load_bare()
        first, last = host.plan.ports
        self.maps["host"][0] = abi.host(nat_port_first=first, nat_port_last=last)
        self.runner = Runner(self.maps["counters"].fd)

    def _load_bare(self) -> None:
        """What takes a packet's Ethernet header off and hands it to from_tunnel."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bare.bpf.o"
            path.write_bytes(bare_program())
            (program,), maps = libbpf.load_object(path, pins=None, config=None)
        os.close(maps["rooms"])
        self._hooks = maps["tested"]
        hook = ffi.new("__u32 *", self.programs["from_tunnel"])
        if lib.bpf_map_update_elem(self._hooks, ffi.new("__u32 *", 0), hook, 0):
            raise OSError(ffi.errno, "fill the map of hooks")
        self.programs["bare"] = program.fd

    def close(self) -> None:
        os.close(self._hooks)
        for fd in self.programs.values():
            os.close(fd)
        for m in (*self.maps.values(), *self._tails):
            m.close()

    def fill(self, topology: Topology) -> None:
        """The maps as the control plane would leave them, without any connection."""
        self.buried.clear()
        Policies(self.maps.__getitem__).clear()
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
                kind=KIND.DEVICE_PARENT
                if uplink.network
                else KIND.DEVICE_UPLINK
                if uplink.ethernet
                else KIND.DEVICE_TUNNEL,
                network=uplink.network.number if uplink.network else 0,
                mac=uplink_mac(i) if uplink.ethernet else None,
                addr4=address(uplink.addr4),
                addr6=address(uplink.addr6),
            )
            if uplink.network:
                row = abi.parent(self.host.index[uplink.name], uplink_mac(i))
                self.maps["parents"][abi.parent_key(uplink.network.number)] = row
        self._policies(topology)
        for number, (where, published) in enumerate(topology.ports.items(), 1):
            self._port(number, where, published)
        self._origins(topology, topology.members)
        for prefix in self.host.plan.anyip:
            whole = ip_network(prefix)
            bits = whole.prefixlen + (96 if whole.version == 4 else 0)
            self.maps["local_prefixes"][abi.local_prefix_key(bits, whole.network_address)] = abi.address(1)
        for raw in topology.host:
            self.maps["addresses"][abi.address_key(address(raw))] = abi.address(1)
        for uplink in topology.uplinks:
            for raw in uplink.linklocals:
                index = self.host.index[uplink.name]
                self.maps["linklocals"][abi.linklocal_key(address(raw), index)] = abi.address(index)
        self._overlay(topology.overlay)
        for service in topology.services:
            self._service(service)
        numbers = {a: m.number for net in topology.networks for a, m in net.members.items()}
        for client, server, port, proto in topology.links:
            key = abi.link_key(address(client), address(server), port, proto)
            self.maps["links"][key] = abi.link(numbers[client], numbers[server])

    def put(self, rows: Rows) -> None:
        """Policies that are in force from now on."""
        Policies(self.maps.__getitem__).apply(rows)

    def _service(self, service: Service) -> None:
        net, number = service.network, service.network.number
        value = self.maps["networks"][number]
        self.maps["networks"][number] = value._replace(flags=value.flags | FLAG.NETWORK_SERVICES)
        for raw in (service.addr4, service.addr6):
            if raw:
                row = abi.endpoint(ifindex=0, number=service.number, mac=mac_text(net.mac))
                self.maps["endpoints"][abi.endpoint_key(number, address(raw))] = row
        for member in service.backends:
            self._backend(service, member)
        numbers = [self.backend_number(service, member) for member in service.slots]
        for chunk in range(0, len(numbers), 64):
            part = numbers[chunk : chunk + 64]
            row = abi.slots(struct.pack(f"={len(part)}I", *part))
            self.maps["slots"][abi.slots_key(service.number, chunk // 64)] = row
        size = len(numbers)
        self.maps["services"][abi.service_key(service.number)] = abi.service(
            network=number,
            affinity=LONG_AFFINITY if service.affinity else 0,
            seed=service.seed,
            table4=service.number,
            size4=size,
            table6=service.number,
            size6=size,
            choice=abi.ServiceChoice[f"CHOICE_{CHOICES[service.algorithm]}"],
        )

    @staticmethod
    def backend_number(service: Service, member: Member) -> int:
        return service.number * 100 + service.backends.index(member)

    def _backend(self, service: Service, member: Member) -> None:
        state = abi.BackendState.BACKEND_DOWN if member in service.down else abi.BackendState.BACKEND_UP
        if member in service.draining:
            state = abi.BackendState.BACKEND_DRAINING
        key = abi.backend_key(self.backend_number(service, member))
        self.maps["backends"][key] = abi.backend(
            service=service.number,
            endpoint=PARTY_PEER if member.peer else member.number,
            state=state,
            weight=1,
            addr4=address(member.addr4),
            addr6=address(member.addr6),
        )

    def _overlay(self, overlay: Overlay | None) -> None:
        self.maps["tunnel"][0] = abi.tunnel()
        if overlay is None:
            return
        number, index = overlay.network.number, self.host.index[overlay.device]
        own = {version: address(overlay.ends[size]) for version, size in ((4, 4), (6, 16))}
        mac = mac_text(overlay.mac)
        encrypted = self.host.index[overlay.encrypted.name] if overlay.encrypted else 0
        tunnel = abi.tunnel(
            own[4], own[6], index, encrypted, overlay.number, int(overlay.direct), overlay.port, mac
        )
        self.maps["tunnel"][0] = tunnel
        masks: dict[str, Any] = {}
        for prefix, length in overlay.subnets:
            version = 4 if len(prefix) == 4 else 6
            bits = length + 128 - 8 * len(prefix)
            masks |= {f"subnet{version}": address(prefix), f"mask{version}": _mask(bits)}
            masks[f"block_mask{version}"] = _mask(126)
            self.maps["subnets"][abi.subnet_key(bits, address(prefix))] = abi.subnet(number)
        transport = abi.Transport.TRANSPORT_VXLAN
        if overlay.direct:
            transport = abi.Transport.TRANSPORT_DIRECT
        if overlay.encrypted:
            transport = abi.Transport.TRANSPORT_WIREGUARD
        flags = int(abi.OverlayFlag.OVERLAY_ROUTED) if overlay.announced else 0
        self.maps["overlays"][abi.overlay_key(number)] = abi.overlay(overlay.vni, transport, flags, **masks)
        self.maps["vnis"][abi.vni_key(overlay.vni)] = abi.vni(number)
        for peer in overlay.peers:
            flags = int(abi.PeerFlag.PEER_WIREGUARD) if overlay.encrypted and peer.keyed else 0
            flags |= int(abi.PeerFlag.PEER_DIRECT) if overlay.direct and peer.on_link else 0
            row = abi.peer(address(peer.addr), flags, peer.mtu, mac_text(peer.mac))
            self.maps["peers"][abi.peer_key(peer.number)] = row
            self.maps["vteps"][abi.vtep_key(address(peer.addr))] = abi.vtep(peer.number)
            for first, _ in peer.blocks:
                key = abi.remote_key(number, address(first))
                self.maps["remote_blocks"][key] = abi.remote(peer.number)
        for raw, peer in overlay.moved.items():
            self.maps["remote_addrs"][abi.remote_key(number, address(raw))] = abi.remote(peer.number)
        value = self.maps["networks"][number]
        self.maps["networks"][number] = value._replace(flags=value.flags | FLAG.NETWORK_OVERLAY)

    def _policies(self, topology: Topology) -> None:
        first, last = topology.nat_first, topology.nat_last
        flags = int(abi.HostFlag.HOST_XFRM_OUT) if topology.protected else 0
        flags |= int(abi.HostFlag.HOST_OTHER_NAT) if topology.other_nat else 0
        self.maps["host"][0] = abi.host(flags=flags, nat_port_first=first, nat_port_last=last)
        prefixes = [ip_network(prefix) for prefix in PROTECTED] if topology.protected else []
        found = tuple(
            XfrmPolicy(
                "out",
                ip_network("0.0.0.0/0" if one.version == 4 else "::/0"),
                one,
                proto=0,
                sport=(0, 0),
                dport=(0, 0),
                ifindex=0,
                priority=0,
                narrowed=False,
                action="protect",
            )
            for one in prefixes
        )
        rows = xfrm_entries(XfrmPolicies(found, frozenset()))
        self.maps["xfrm_policies"].update_many({to_abi(key): to_abi(value) for key, value in rows.items()})

    def judge(self, service: Service, member: Member, becomes: str) -> None:
        """The backend is from now on "up", "down" or "draining"."""
        for state, there in (("down", service.down), ("draining", service.draining)):
            if member in there:
                there.remove(member)
            if becomes == state:
                there.append(member)
        self._backend(service, member)

    def replace(self, topology: Topology, member: Member) -> None:
        """The member's endpoint is removed and another one made with its addresses; connections are forgotten about."""
        net = member.network
        slot = list({id(m): m for m in net.members.values()}).index(id(member))
        routers, index = self.maps["routers"], self.host.index[member.name]
        routers.delete_many([key for key, value in routers.read_all() if value.ifindex == index])
        self._member(net, slot, member)
        for number, (where, published) in enumerate(topology.ports.items(), 1):
            if published.member is member:
                self._port(number, where, published)
        for service in topology.services:
            if member in service.backends:
                self._backend(service, member)
        self._origins(topology, [member])

    def bury(self, number: int) -> None:
        """The removal of the endpoint that had the number is complete: its connections are none from now on."""
        self.maps["quotas"].delete_many([abi.quota_key(number)])
        row = self.maps["removals"][0]
        self.maps["removals"][0] = row._replace(count=row.count + 1)
        self.buried.add(number)

    def _origins(self, topology: Topology, members: list[Member]) -> None:
        """Of several of the host's ports for one of a container's, the first counts."""
        for (host, port, proto), published in reversed(topology.ports.items()):
            if published.member in members and not published.service:
                key = abi.origin_key(address(host), published.member.number, published.port, proto)
                self.maps["origins"][key] = abi.origin(port)

    def keys(self, name: str) -> set[bytes]:
        """All keys of one of the tables of connections as they lie in memory, but for those of buried endpoints."""
        size, parties = abi.layout("tuple").size, abi.layout("conn").select("from_endpoint", "to_endpoint")
        found: set[bytes] = set()
        for keys, values, _ in self.maps[name].batches():
            rows = parties.iter_unpack(values)
            found.update(
                keys[i * size : (i + 1) * size] for i, row in enumerate(rows) if not self.buried & {*row}
            )
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
            (net.beside, FLAG.NETWORK_BESIDE),
            (net.lan, FLAG.NETWORK_LAN),
            (net.routed, FLAG.NETWORK_L3),
            (net.flows, FLAG.NETWORK_FLOWS),
            (net.questions, FLAG.NETWORK_QUESTIONS),
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
            gateway4=None if net.lan else address(net.gateway4),
            gateway6=None if net.lan else address(net.gateway6),
            gateway_linklocal=address(net.linklocal),
        )
        self.maps["devices"][abi.device_key(index)] = abi.device(
            kind=abi.DeviceKind.DEVICE_GATEWAY, network=net.number, mac=mac_text(net.mac)
        )
        for slot, member in enumerate(members):
            self._member(net, slot, member)
            addresses = [found for found in map(address, (member.addr4, member.addr6)) if found]
            add_name(self, net.number, member.name, *([address_record(one)] for one in addresses))
        for far in net.elsewhere:
            found = [ip_address(raw) for raw in far.addresses]
            add_name(self, net.number, far.name, *([address_record(one)] for one in found))
            for one in found:
                add_name(self, net.number, one, [pointer_record(far.called)])

    def _member(self, net: Network, slot: int, member: Member) -> None:
        index = self.host.index[member.name]
        self.maps["quotas"][abi.quota_key(member.number)] = abi.quota()
        self.maps["devices"][abi.device_key(index)] = abi.device(
            kind=abi.DeviceKind.DEVICE_ENDPOINT,
            network=net.number,
            endpoint=member.number,
            mac=mac_text(member.mac),
            forwarding=int(member.forwarding) | ROLE_SERVES * member.serves,
            addr4=address(member.addr4),
            addr6=address(member.addr6),
            linklocal=address(member.linklocal),
        )
        value = abi.endpoint(
            index, member.number, mac_text(member.mac), int(member.forwarding) | ROLE_SERVES * member.serves
        )
        for raw in (member.addr4, member.addr6, member.linklocal):
            if raw:
                key = abi.endpoint_key(net.number, address(raw))
                self.maps["endpoints"][key] = value
        add_name(self, net.number, member.number, [pointer_record(member.called)])
        for router in (
            abi.router_key(net.number, 0, mac_text(member.mac)),
            abi.router_key(net.number, member.number, mac_text(bytes(6))),
        ):
            if member.forwarding:
                self.maps["routers"][router] = value
        if member.resolves:
            egress = 0 if net.internal else net.number
            upstreams = [UpstreamValue(IPv4Address(UPSTREAM))]
            add_resolver(self, member.number, [net.number], egress=egress, upstreams=upstreams)
        self.maps["members"][abi.member_key(net.number, slot)] = abi.member(index, member.number)

    def _port(self, number: int, where: tuple[bytes, int, int], published: Published) -> None:
        host, port, proto = where
        self.maps["ports"][abi.port_key(address(host), port, proto)] = abi.port(
            network=published.member.network.number,
            endpoint=published.service.number if published.service else published.member.number,
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

    def all_moved(self, keep: bool = False) -> list[tuple[int, int]]:
        """What was counted since `seen` was last right: reason and number. For the books, and for failures. `keep`:
        `seen` stays."""
        moved = []
        for reason in range(64):
            value = self.count(reason)
            if value != self.seen[reason]:
                moved.append((reason, value - self.seen[reason]))
                self.seen[reason] = self.seen[reason] if keep else value
        return moved


@contextlib.contextmanager
def pinned_to_one_cpu(number: int = 0) -> Iterator[None]:
    """Of those that are allowed, counted round and round."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[number % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
