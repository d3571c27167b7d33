# SPDX-License-Identifier: Apache-2.0
"""What is remembered of flows between members on two hosts counts for no packet that would not have gone that way, and
not a moment longer than the rows that it rests on."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

import pytest

from datapath.dataplane.layout import EPOCH_MAPS, LIMIT_DIRECTIONS, MAPS, TOLD_MAPS
from datapath.dataplane.pins import watch
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, libbpf
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    HOST,
    HOST6,
    NET1,
    NEXT_HOP_MAC,
    OUTSIDE,
    REDIRECT,
    UNSPEC,
    UPLINK_MAC,
    Copies,
    Programs,
    Reason,
    Topology,
)
from tests.bpf.ipsec import Policies, policy

LIFE = 0.3  # seconds, and a little more than what is remembered counts,
REMEMBERED = 0.2  # and a little less
TRIES = 9
UNNOTICED = "remote_addrs", "remote_blocks", "vteps", "reserved", "ports"
TCP = p.tcp(1000, 80, p.ACK, b"more")
CARRIED = pytest.mark.parametrize("carried", [p.udp(1000, 80), TCP], ids=["UDP", "TCP"])
UDP = p.udp(1000, 80)


class Way(NamedTuple):
    """The versions of IP of a flow's packets, and of those that they are in between the hosts."""

    version: int
    outer: int

    @property
    def remote(self) -> Any:
        return o.REMOTE if self.version == 4 else o.REMOTE6

    @property
    def member(self) -> Any:
        return A1.ip if self.version == 4 else A1.ip6

    @property
    def peers(self) -> Any:
        return o.PEERS if self.outer == 4 else o.PEERS6

    @property
    def stranger(self) -> Any:
        return o.STRANGER if self.outer == 4 else o.STRANGER6

    @property
    def key(self) -> Any:
        return abi.remote_key(NET1.number, self.remote)

    @property
    def end(self) -> str:
        """The field of `tunnel` that has this host's address."""
        return f"addr{self.outer}"

    @property
    def at(self) -> int:
        """Where the packet's IP header is in a frame that comes in a tunnel."""
        return 14 + (20 if self.outer == 4 else 40) + 30

    def sends(self, carried: p.Transport = UDP, **header: Any) -> bytes:
        return A1.sends(self.remote, carried, **header)

    def gets(self, carried: p.Transport = UDP) -> bytes:
        return A1.gets(self.remote, carried)

    def comes(self, carried: p.Transport = UDP, **header: Any) -> bytes:
        """A frame from the remote member, as it is."""
        if self.version == 4:
            body = p.ipv4(self.remote, self.member, carried, **header)
            return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, body)
        body = p.ipv6(self.remote, self.member, carried, **header)
        return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV6, body)

    def in_tunnel(
        self, carried: p.Transport = UDP, *, src: Any = None, vni: int = o.VNI, **header: Any
    ) -> bytes:
        frame = o.inner(self.remote, self.member, carried, **header)
        return o.arrives(o.vxlan(frame, vni=vni), src=src or self.peers[o.PEER])


WAYS = [Way(4, 4), Way(6, 4), Way(4, 6), Way(6, 6)]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.version} in {way.outer}")
def way(request: pytest.FixtureRequest, programs: Programs, topology: Topology) -> Way:
    found: Way = request.param
    o.fill(programs, outer=found.outer, device=topology.index["dp4"])
    return found


@pytest.fixture
def arriving(way: Way, programs: Programs) -> Way:
    """What comes so, the programs can free of its headers."""
    if way.version != way.outer and programs.run(None, way.in_tunnel()).reasons == {"NOT_OURS": 1}:
        pytest.skip("this kernel has no program that changes a packet's family (6.3)")
    return way


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=(*o.TUNNEL_OBJECTS, "from_parent")) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs, topology: Topology) -> Iterator[None]:
    kept = {name: dict(programs.maps[name].read_all()) for name in ("devices", "endpoints")}
    network = programs.maps["networks"][NET1.number]
    o.fill(programs, device=topology.index["dp4"])
    yield
    programs.maps["networks"][NET1.number] = network
    for name, entries in kept.items():
        programs.maps[name].update_many(entries)


@contextlib.contextmanager
def unnoticed(programs: Programs, *names: str) -> Iterator[None]:
    """Rows change and the programs are not told: what they remember still counts."""
    kept = {name: programs.maps[name].changed for name in names}
    for name in names:
        programs.maps[name].changed = None
    try:
        yield
    finally:
        for name, changed in kept.items():
            programs.maps[name].changed = changed


def in_time(test: Callable[..., None]) -> Callable[..., None]:
    """On one CPU, as each has its own memory; once more, with the rows as they were, if so much time had passed that
    the programs had to forget."""

    @functools.wraps(test)
    def tried(programs: Programs, **others: Any) -> None:
        for _ in range(TRIES):
            kept = {name: dict(programs.maps[name].read_all()) for name in UNNOTICED if name in programs.maps}
            anywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {min(anywhere)})
            programs.forget_ways()  # what an earlier test has left would not last as long
            begun = time.monotonic()
            try:
                return test(programs, **others)
            except AssertionError:
                if time.monotonic() - begun < REMEMBERED:
                    raise
            finally:
                os.sched_setaffinity(0, anywhere)
            for name, rows in kept.items():
                programs.maps[name].delete_many(list(programs.maps[name]))
                programs.maps[name].update_many(rows)
            programs.forget()
        raise AssertionError(f"it took longer than {REMEMBERED} s, {TRIES} times")

    return tried


def moved(programs: Programs) -> None:
    """The remote member's addresses have gone to the other host. (They came with its block.)"""
    for way in WAYS:
        programs.maps["remote_addrs"][way.key] = abi.remote(o.OTHER_PEER)


@pytest.fixture
def stays(programs: Programs) -> Iterator[None]:
    yield
    for way in WAYS:
        programs.maps["remote_addrs"].pop(way.key, None)


def bytes_counted(programs: Programs) -> dict[str, int]:
    counters = programs.maps["counters"]
    return {reason.name: sum(c.bytes for c in counters[int(reason)]) for reason in Reason}


# ---- it is remembered, and every packet is as the first one was ---------------------------------------


@CARRIED
@pytest.mark.usefixtures("stays")
@in_time
def test_a_flow_that_leaves_is_remembered(programs: Programs, way: Way, carried: p.Transport) -> None:
    """Each packet is as long, and marked, as itself, and counted so."""
    frame = way.sends(carried)
    before = bytes_counted(programs)
    first = programs.run(A1, frame)
    once = bytes_counted(programs)
    with unnoticed(programs, "remote_addrs"):
        moved(programs)
        assert programs.run(A1, frame) == first
        assert bytes_counted(programs) == {name: 2 * once[name] - before[name] for name in once}
        sport = o.source_port(first.packet)
        for ecn in (0, 1, 2, 3):
            data = bytes(100 + ecn)
            longer = way.sends(p.tcp(1000, 80, p.ACK, data) if carried is TCP else p.udp(1000, 80, data))
            longer = longer[:14] + o.marked(longer[14:], ecn)
            wanted = o.leaves(longer[14:], sport, outer=way.outer, ecn=ecn)
            got = programs.run(A1, longer)
            assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
            assert not (difference := p.difference(got.packet, wanted)), difference


@CARRIED
@in_time
def test_a_flow_that_arrives_is_remembered(programs: Programs, arriving: Way, carried: p.Transport) -> None:
    """Whatever the outer headers say that is asked of each packet."""
    before = bytes_counted(programs)
    first = programs.run(None, arriving.in_tunnel(carried))
    assert first.reasons == {"DELIVERED": 1}
    once = bytes_counted(programs)
    with unnoticed(programs, "vteps"):
        del programs.maps["vteps"][abi.vtep_key(arriving.peers[o.PEER])]
        frame = arriving.in_tunnel(carried)
        programs.expect(None, frame, REDIRECT, Reason.DELIVERED, arriving.gets(carried))
        assert bytes_counted(programs) == {name: 2 * once[name] - before[name] for name in once}
        marked = frame[:14] + o.marked(frame[14:], 2)
        programs.expect(None, marked, REDIRECT, Reason.DELIVERED, arriving.gets(carried))
        assert programs.run(None, frame[:14] + o.marked(frame[14:], 3)).reasons != {"DELIVERED": 1}


@CARRIED
@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("version", [4, 6])
@in_time
def test_so_are_flows_without_a_tunnel(programs: Programs, version: int, carried: p.Transport) -> None:
    o.fill(programs, outer=version, direct=True)
    way = Way(version, version)
    out, back = way.sends(carried), way.comes(carried)
    for _ in range(2):
        programs.expect(A1, out, REDIRECT, Reason.TO_PEER, out)
        programs.expect(None, back, REDIRECT, Reason.DELIVERED, way.gets(carried))
        with unnoticed(programs, "remote_blocks"):
            for key in list(programs.maps["remote_blocks"]):
                del programs.maps["remote_blocks"][key]
    o.fill(programs, direct=True)


@in_time
def test_it_is_forgotten_after_a_moment(programs: Programs, arriving: Way) -> None:
    """If whoever has changed a row is killed before the programs are told."""
    frame = arriving.in_tunnel()
    with unnoticed(programs, "vteps"):
        assert programs.run(None, frame).reasons == {"DELIVERED": 1}
        del programs.maps["vteps"][abi.vtep_key(arriving.peers[o.PEER])]
        assert programs.run(None, frame).reasons == {"DELIVERED": 1}
        time.sleep(LIFE)
        assert programs.run(None, frame).reasons == {"DROP_TUNNEL_SENDER": 1}


# ---- what changes counts at once ----------------------------------------------------------------------


Change = Callable[[Programs, Way], None]


def without(name: str, key: Callable[[Way], Any]) -> Change:
    return lambda programs, way: programs.maps[name].__delitem__(key(way))


def replaced(name: str, key: Callable[[Way], Any], **fields: Any) -> Change:
    return lambda programs, way: programs.maps[name].__setitem__(
        key(way), programs.maps[name][key(way)]._replace(**fields)
    )


def of_a1(**fields: Any) -> Change:
    return lambda programs, way: replaced(
        "devices", lambda _: abi.device_key(programs.ifindex(A1)), **fields
    )(programs, way)


def of_network(**fields: Any) -> Change:
    return replaced("networks", lambda _: NET1.number, **fields)


def with_another_address(programs: Programs, way: Way) -> None:
    """Of IPv6 it may have several, as endpoints say."""
    of_a1(**({"addr4": A2.ip} if way.version == 4 else {"addr6": A2.ip6}))(programs, way)
    if way.version == 6:
        del programs.maps["endpoints"][abi.endpoint_key(NET1.number, A1.ip6)]


def without_an_end(programs: Programs, way: Way) -> None:
    replaced("tunnel", lambda _: 0, **{way.end: None})(programs, way)


FLAGS = NET1.flags | abi.NetworkFlag.NETWORK_OVERLAY
WITHOUT_ICC = of_network(flags=FLAGS & ~abi.NetworkFlag.NETWORK_ICC)
WITHOUT_BLOCK = without("remote_blocks", lambda way: abi.remote_key(NET1.number, way.remote - 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_a1(mac="02:42:00:00:00:77"), "DROP_SPOOFED_MAC"),
        (with_another_address, "DROP_BAD_ADDR DROP_SPOOFED_ADDR"),
        (WITHOUT_ICC, "DROP_ICC"),
        (of_network(flags=0), "DROP_DEVICE DROP_NO_IPV6"),
        (WITHOUT_BLOCK, "DROP_NO_REMOTE"),
        (without("peers", lambda _: abi.peer_key(o.PEER)), "DROP_NO_REMOTE"),
        (without_an_end, "DROP_NO_TUNNEL"),
        (replaced("peers", lambda _: abi.peer_key(o.PEER), mtu=80), "DROP_TOO_BIG"),
    ],
    ids=["MAC", "address", "icc", "network", "block", "peer", "end", "width"],
)
def test_a_change_counts_for_the_next_packet_that_leaves(
    programs: Programs, way: Way, change: Change, reason: str
) -> None:
    frame = way.sends()
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
    change(programs, way)
    assert programs.run(A1, frame).reasons in ({each: 1} for each in reason.split())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("endpoints", lambda way: abi.endpoint_key(NET1.number, way.member)), "DROP_NO_ENDPOINT"),
        (without("vteps", lambda way: abi.vtep_key(way.peers[o.PEER])), "DROP_TUNNEL_SENDER"),
        (without("vnis", lambda _: abi.vni_key(o.VNI)), "NOT_OURS"),
        (WITHOUT_BLOCK, "DROP_TUNNEL_SOURCE"),
        (without("overlays", lambda _: abi.overlay_key(NET1.number)), "DROP_TUNNEL_SOURCE"),
        (WITHOUT_ICC, "DROP_ICC"),
        (of_network(flags=0), "DROP_DEVICE"),
        (replaced("tunnel", lambda _: 0, port=4790), "NOT_OURS"),
        (without_an_end, "NOT_OURS"),
    ],
    ids=["member", "host", "vni", "block", "overlay", "icc", "network", "port", "end"],
)
def test_a_change_counts_for_the_next_packet_that_arrives(
    programs: Programs, arriving: Way, change: Change, reason: str
) -> None:
    frame = arriving.in_tunnel()
    for _ in range(2):
        assert programs.run(None, frame).reasons == {"DELIVERED": 1}
    change(programs, arriving)
    assert programs.run(None, frame).reasons == {reason: 1}


def test_a_member_that_is_another_now_gets_it(programs: Programs, arriving: Way) -> None:
    frame, wanted = arriving.in_tunnel(), arriving.gets()
    for _ in range(2):
        programs.expect(None, frame, REDIRECT, Reason.DELIVERED, wanted)
    endpoints = programs.maps["endpoints"]
    key = abi.endpoint_key(NET1.number, arriving.member)
    endpoints[key] = endpoints[abi.endpoint_key(NET1.number, A2.ip)]
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, p.mac_bytes(A2.mac) + wanted[6:])


def test_an_ipsec_policy_counts_at_once(programs: Programs, arriving: Way, policies: Policies) -> None:
    frame, own = arriving.sends(), HOST if arriving.outer == 4 else HOST6
    peer, bits = arriving.peers[o.PEER], own.max_prefixlen
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
        assert programs.run(None, arriving.in_tunnel()).reasons == {"DELIVERED": 1}
    policies(
        policy("out", f"{own}/{bits}", f"{peer}/{bits}"), policy("in", f"{peer}/{bits}", f"{own}/{bits}")
    )
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(A1, frame, REDIRECT, Reason.TO_PEER, by_device)
    assert programs.run(None, arriving.in_tunnel()).reasons == {"NOT_OURS": 1}


def test_a_route_that_is_another_now_counts_after_a_moment(programs: Programs, way: Way) -> None:
    ip, peer = ["ip", f"-{way.outer}", "route"], str(way.peers[o.PEER])
    longer = way.sends(p.udp(1000, 80, bytes(1360)))
    for _ in range(2):
        assert programs.run(A1, longer).reasons == {"TO_PEER": 1}
    subprocess.run([*ip, "add", peer, "dev", "up0", "mtu", "lock", "1300"], check=True)
    try:
        time.sleep(LIFE)
        assert programs.run(A1, longer).reasons == {"DROP_TOO_BIG": 1}
    finally:
        subprocess.run([*ip, "del", peer, "dev", "up0", "mtu", "lock", "1300"], check=True)
        time.sleep(LIFE)


def test_what_is_too_long_for_the_way_is_told_so(programs: Programs, way: Way) -> None:
    """The last byte that fits leaves, by a flow that is known as by one that is not; segments are measured each."""
    head = 28 if way.version == 4 else 48
    room = 1500 - (50 if way.outer == 4 else 70) - head
    assert programs.run(A1, way.sends()).reasons == {"TO_PEER": 1}
    for _ in range(2):
        assert programs.run(A1, way.sends(p.udp(1000, 80, bytes(room)))).reasons == {"TO_PEER": 1}
        assert programs.run(A1, way.sends(p.udp(1000, 80, bytes(room + 1)))).reasons == {"DROP_TOO_BIG": 1}
    for carried, width in (
        (p.udp(1000, 80, bytes(2000)), room),
        (p.tcp(1000, 80, p.ACK, bytes(2000)), room - 12),
    ):
        sent = way.sends(carried)
        for _ in range(2):
            assert programs.run(A1, sent, gso=width).reasons == {"TO_PEER": 1}
            assert programs.run(A1, sent, gso=width + 1).reasons == {"DROP_TOO_BIG": 1}


# ---- what is not the flow, or not plain -----------------------------------------------------------------


def test_nobody_else_sends_as_the_flow(programs: Programs, way: Way) -> None:
    frame = way.sends()
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
    assert programs.run(A2, frame).reasons == {"DROP_SPOOFED_MAC": 1}
    assert programs.run(A2, frame[:6] + p.mac_bytes(A2.mac) + frame[12:]).reasons == {"DROP_SPOOFED_ADDR": 1}
    assert programs.run(A1, frame[:6] + p.mac_bytes(A2.mac) + frame[12:]).reasons == {"DROP_SPOOFED_MAC": 1}


def test_nobody_else_is_believed_as_the_flow(programs: Programs, arriving: Way) -> None:
    for _ in range(2):
        assert programs.run(None, arriving.in_tunnel()).reasons == {"DELIVERED": 1}
    strange, other = arriving.in_tunnel(src=arriving.stranger), arriving.peers[o.OTHER_PEER]
    assert programs.run(None, strange).reasons == {"DROP_TUNNEL_SENDER": 1}
    assert programs.run(None, arriving.in_tunnel(src=other)).reasons == {"DROP_TUNNEL_SOURCE": 1}
    assert programs.run(None, arriving.in_tunnel(vni=77)).reasons == {"NOT_OURS": 1}
    assert programs.run(None, arriving.comes()).reasons == {"NOT_OURS": 1}
    o.fill(programs, outer=arriving.version, direct=True)
    for _ in range(2):
        assert programs.run(None, arriving.comes()).reasons == {"DELIVERED": 1}
    assert programs.run(None, strange).reasons == {"DROP_TUNNEL_SENDER": 1}


def mapped(address: Any) -> IPv6Address:
    return IPv6Address(f"::ffff:{address}")


def test_what_looks_like_a_flow_of_the_other_family_is_none_of_it(programs: Programs) -> None:
    """In the tables an IPv4 address is in its mapped form, which no packet of IPv6 may have."""
    honest = [Way(6, 4).in_tunnel(), Way(4, 6).in_tunnel(), Way(6, 6).in_tunnel()]
    within = o.inner(mapped(o.REMOTE), mapped(A1.ip), UDP)
    false = [
        o.arrives(o.vxlan(o.inner(o.REMOTE6, A1.ip6, UDP)), src=mapped(o.PEERS[o.PEER])),
        o.arrives(o.vxlan(within), src=o.PEERS6[o.PEER]),
        o.arrives(o.vxlan(within), src=o.PEERS[o.PEER]),
    ]
    before = [programs.run(None, each).reasons for each in false]
    assert not any("DELIVERED" in reasons for reasons in before)
    for frame in honest * 2:
        assert programs.run(None, frame).reasons in ({"DELIVERED": 1}, {"NOT_OURS": 1})
    assert [programs.run(None, each).reasons for each in false] == before


V4, V6 = Way(4, 4), Way(6, 6)


@pytest.mark.parametrize(
    ("false", "honest"),
    [
        (V4.in_tunnel(src=o.STRANGER), V4.in_tunnel()),
        (V4.in_tunnel(src=o.STRANGER), V4.in_tunnel(src=o.PEERS6[o.PEER])),
        (V4.in_tunnel(vni=77), V4.in_tunnel()),
        (V4.in_tunnel(src=IPv4Address(0)), V4.in_tunnel(src=o.PEERS6[o.PEER])),
        (V4.in_tunnel(src=IPv4Address(0), vni=0), V4.comes()),
        (V6.in_tunnel(src=o.STRANGER6), V6.in_tunnel()),
        (V6.in_tunnel(src=o.STRANGER6), V6.in_tunnel(src=o.PEERS[o.PEER])),
        (V6.in_tunnel(src=o.STRANGER), V6.in_tunnel(src=o.PEERS[o.PEER])),
        (V6.in_tunnel(vni=77), V6.in_tunnel()),
        (V6.in_tunnel(src=IPv6Address(0), vni=0), V6.comes()),
        (V6.in_tunnel(src=mapped(o.PEERS[o.PEER])), V6.in_tunnel(src=o.PEERS[o.PEER])),
        (V6.in_tunnel(src=o.STRANGER6), V4.in_tunnel()),
        (V4.in_tunnel(src=o.STRANGER), V6.in_tunnel()),
    ],
    ids=[
        *("a stranger's", "a stranger's, over IPv6", "another network's", "from 0.0.0.0", "in no tunnel"),
        *("a stranger's of IPv6", "then over IPv4", "both over IPv4", "another network's of IPv6"),
        *("IPv6 in no tunnel", "from a mapped address", "then IPv4", "then IPv6"),
    ],
)
def test_what_is_found_out_about_a_packet_is_not_remembered_of_another(
    programs: Programs, false: bytes, honest: bytes
) -> None:
    """By a device's hook that remembers nothing comes the flow, after a false packet by one that does."""
    o.fill(programs, outer=6 if honest == V6.comes() else 4, direct=honest in (V4.comes(), V6.comes()))
    before = programs.run(None, false).reasons
    assert "DELIVERED" not in before
    libbpf.test_run(programs.fds["from_parent"], honest, ifindex=programs.ifindex(None))
    # Of the other family, before 6.3, it is left to the device, or lost where there is none.
    assert programs.counted() in ({"DELIVERED": 1}, {"NOT_OURS": 1}, {"DROP_NO_TUNNEL": 1})
    assert programs.run(None, false).reasons == before


def test_nor_is_what_another_hook_leaves_to_the_host(programs: Programs) -> None:
    """It has not said what was there before it looked (test_host_flows.py)."""
    syn = p.ipv4(OUTSIDE, HOST, p.tcp(80, 4022, p.SYN))
    frame = p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, syn)
    other = p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, p.ipv4(OUTSIDE, HOST, p.tcp(80, 4023, p.SYN)))
    port = abi.port_key(HOST, 4022, p.TCP)
    programs.expect(None, other, UNSPEC, Reason.NOT_OURS)
    libbpf.test_run(programs.fds["from_parent"], frame, ifindex=programs.ifindex(None))
    assert programs.counted() == {"NOT_OURS": 1}
    try:
        with unnoticed(programs, "reserved"):
            programs.maps["reserved"][abi.reserved_key(4022, p.TCP)] = abi.reserved(1)
            programs.maps["ports"][port] = abi.port(
                network=NET1.number, endpoint=A1.number, addr=A1.ip, port=80
            )
            assert programs.run(None, frame).reasons == {"DELIVERED": 1}
    finally:
        programs.maps["reserved"].pop(abi.reserved_key(4022, p.TCP), None)
        programs.maps["ports"].pop(port, None)


def odd(frame: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Frames that have the flow's addresses and ports, and how they are joined: the packet, whose IP header is at
    `at`, is not what it seems, or not all there."""
    for index in (0, 6, 7, 9, 2, 3) if frame[at] >> 4 == 4 else (0, 1, 4, 5, 6, 7):
        for bit in range(8):
            yield changed(frame, at + index, 1 << bit), 0
    for length in range(at, len(frame)):
        yield frame[:length], 0
    yield frame + bytes(20), 0
    yield frame, 8


def changed(frame: bytes, at: int, bits: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ bits]) + frame[at + 1 :]


def as_if_new(programs: Programs, sender: Any, frame: bytes, odd_ones: Iterator[tuple[bytes, int]]) -> None:
    """What becomes of each is the same after the flow was remembered and when nothing is."""
    for each, gso in odd_ones:
        programs.maps["tunnel"][0] = programs.maps["tunnel"][0]
        programs.forget()
        alone = run(programs, sender, each, gso)
        programs.maps["tunnel"][0] = programs.maps["tunnel"][0]
        programs.forget()
        programs.run(sender, frame)
        assert run(programs, sender, each, gso) == alone, (each.hex(), gso)


def run(programs: Programs, sender: Any, frame: bytes, gso: int) -> Any:
    try:
        return programs.run(sender, frame, gso=gso)
    except Exception as error:  # the kernel makes no packet of it
        return str(error)


@pytest.mark.parametrize(
    ("way", "carried"),
    [
        (Way(4, 4), UDP),
        (Way(4, 4), TCP),
        (Way(6, 6), UDP),
        (Way(6, 6), TCP),
        (Way(6, 4), UDP),
        (Way(4, 6), UDP),
    ],
    ids=["4 in 4-UDP", "4 in 4-TCP", "6 in 6-UDP", "6 in 6-TCP", "6 in 4-UDP", "4 in 6-UDP"],
    indirect=["way"],
)
def test_what_is_not_plain_is_looked_at_as_ever(programs: Programs, way: Way, carried: p.Transport) -> None:
    sent, got = way.sends(carried), way.in_tunnel(carried)
    as_if_new(programs, A1, sent, odd(sent, 14))
    as_if_new(programs, None, got, odd(got, 14))
    headers = range(14 + (22 if way.outer == 4 else 42), way.at + (10 if way.version == 4 else 8))
    as_if_new(programs, None, got, ((changed(got, at, 1 << bit), 0) for at in headers for bit in (0, 7)))


@CARRIED
@pytest.mark.parametrize("version", [4, 6])
def test_so_is_what_is_not_plain_without_a_tunnel(
    programs: Programs, version: int, carried: p.Transport
) -> None:
    o.fill(programs, outer=version, direct=True)
    way = Way(version, version)
    as_if_new(programs, A1, way.sends(carried), odd(way.sends(carried), 14))
    as_if_new(programs, None, way.comes(carried), odd(way.comes(carried), 14))


EXTENSIONS = {
    "hop by hop": [p.extension(p.HOP_OPTIONS)],
    "destination": [p.extension(p.DESTINATION_OPTIONS)],
    "routing": [p.extension(p.ROUTING)],
    "two": [p.extension(p.HOP_OPTIONS), p.extension(p.DESTINATION_OPTIONS)],
    "atomic fragment": [p.fragment_header(0, False)],
    "first fragment": [p.fragment_header(0, True)],
    "later fragment": [p.fragment_header(16, False)],
}


@pytest.mark.parametrize("outer", [4, 6])
def test_neither_fragments_nor_extension_headers_are_of_a_flow(programs: Programs, outer: int) -> None:
    way = Way(6, outer)
    o.fill(programs, outer=outer)
    for extensions in EXTENSIONS.values():
        sent, got = way.sends(extensions=extensions), way.in_tunnel(extensions=extensions)
        as_if_new(programs, A1, way.sends(), iter([(sent, 0)]))
        as_if_new(programs, None, way.in_tunnel(), iter([(got, 0)]))
        if outer == 6:
            frame = o.inner(way.remote, way.member, UDP)
            outside = o.arrives(o.vxlan(frame), src=way.peers[o.PEER], extensions=extensions)
            as_if_new(programs, None, way.in_tunnel(), iter([(outside, 0)]))


def test_what_a_limit_is_about_is_not_remembered(programs: Programs, arriving: Way) -> None:
    for direction, sender, frame in (
        ("egress", A1, arriving.sends()),
        ("ingress", None, arriving.in_tunnel()),
    ):
        limited = LIMIT_DIRECTIONS[direction]
        of_a1(limited=limited)(programs, arriving)
        member = replaced("endpoints", lambda way: abi.endpoint_key(NET1.number, way.member), limited=limited)
        member(programs, arriving)
        programs.maps["limits"][abi.limit_key(A1.number, limited)] = abi.limit(rate=1, burst=1)
        try:
            assert programs.run(sender, frame).reasons.keys() & {"TO_PEER", "DELIVERED"}
            assert programs.run(sender, frame).reasons == {"DROP_BANDWIDTH": 1}
        finally:
            del programs.maps["limits"][abi.limit_key(A1.number, limited)]


@pytest.mark.usefixtures("stays")
def test_a_question_is_not_remembered(programs: Programs, way: Way) -> None:
    """Whether it is for a resolver changes with more than those rows."""
    frame = way.sends(p.udp(1000, 53))
    first = programs.run(A1, frame)
    with unnoticed(programs, "remote_addrs"):
        moved(programs)
        assert programs.run(A1, frame) != first


# ---- whoever changes rows says so -------------------------------------------------------------------------


def test_each_change_of_a_row_begins_an_epoch() -> None:
    with contextlib.ExitStack() as stack:
        rows, others, epoch = (made(stack, name) for name in ("peers", "links", "epoch"))
        watch(rows, epoch)
        watch(others, epoch)
        row = abi.peer(o.PEERS[o.PEER], 0, 1500, o.peer_mac(o.PEER))
        key = abi.peer_key(o.PEER)
        writes: list[Callable[[], object]] = [
            lambda: rows.set(key, row),
            lambda: rows.update_many({key: row}),
            lambda: rows.pop(key),
            lambda: rows.delete_many([key]),
            lambda: rows.set_raw(bytes(4), bytes(abi.layout("peer").size)),
            lambda: rows.set(key, row, bpf_maps.BPF_EXIST),  # which fails
        ]
        seen = {epoch[0]}
        for count, write in enumerate(writes, start=2):
            with contextlib.suppress(KernelError):
                write()
            seen.add(epoch[0])
            assert len(seen) == count
        others.set(abi.link_key(A1.ip, A2.ip, 80, 6), abi.link(1, 2))
        assert epoch[0] in seen


def made(stack: contextlib.ExitStack, name: str) -> bpf_maps.Map:
    found = bpf_maps.Map(bpf_maps.unread(name, *MAPS[name]), name, *MAPS[name])
    stack.callback(found.close)
    return found


def test_all_that_a_packet_between_hosts_rests_on_is_watched() -> None:
    """Of the rest `host`, and with it the policies, is looked at again; links count without icc, members for groups,
    services and ports in networks with services, of which no flow is remembered, and the others for what leaves the
    network."""
    declared: set[str] = set()
    for hook in ("to_peer", "from_peer"):
        declared.update(libbpf.declared_maps(abi.OBJECTS / f"{hook}.bpf.o"))
    others = {"host", "xfrm_policies", "links", "members", "routers", "addresses", "local_prefixes"}
    others |= {"services", "slots", "backends", "ports", "bindings", "origins", "acls"}
    # Rows of policies are of one generation, and policy_state, which says of which, is watched.
    others |= {"subjects", "peer_classes", "port_scopes", "rulesets"}
    assert declared & TOLD_MAPS <= EPOCH_MAPS | others
