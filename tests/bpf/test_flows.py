# SPDX-License-Identifier: Apache-2.0
"""What is remembered of flows between members on two hosts counts for no packet that would not have gone that way, and
not a moment longer than the rows that it rests on."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from datapath.dataplane.layout import EPOCH_MAPS, LIMIT_DIRECTIONS, MAPS, TOLD_MAPS
from datapath.dataplane.pins import watch
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, libbpf, netns
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    HOST,
    NET1,
    NEXT_HOP_MAC,
    REDIRECT,
    UPLINK_MAC,
    Programs,
    Reason,
    Topology,
)
from tests.bpf.ipsec import Policies, policy

LIFE = 0.3  # seconds, and a little more than what is remembered counts
TCP = p.tcp(1000, 80, p.ACK, b"more")
CARRIED = pytest.mark.parametrize("carried", [p.udp(1000, 80), TCP], ids=["UDP", "TCP"])
UDP = p.udp(1000, 80)
KEY = abi.remote_key(NET1.number, o.REMOTE)


@pytest.fixture(scope="module")
def loaded(topology: Topology) -> Iterator[Programs]:
    with netns.enter(topology.host):
        made = Programs(topology, objects=(*o.TUNNEL_OBJECTS, "from_parent"))
        yield made
        made.close()


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
    yield
    for name, changed in kept.items():
        programs.maps[name].changed = changed


def moved(programs: Programs) -> None:
    """The remote member's address has gone to the other host. (It came with its block.)"""
    programs.maps["remote_addrs"][KEY] = abi.remote(o.OTHER_PEER)


@pytest.fixture
def stays(programs: Programs) -> Iterator[None]:
    yield
    programs.maps["remote_addrs"].pop(KEY, None)


def comes(carried: p.Transport, **header: Any) -> bytes:
    """A frame from the remote member, as it is."""
    return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, p.ipv4(o.REMOTE, A1.ip, carried, **header))


def in_tunnel(carried: p.Transport = UDP, *, src: Any = o.PEERS[o.PEER], vni: int = o.VNI) -> bytes:
    return o.arrives(o.vxlan(o.inner(o.REMOTE, A1.ip, carried), vni=vni), src=src)


# ---- it is remembered, and every packet is as the first one was ---------------------------------------


@CARRIED
@pytest.mark.usefixtures("stays")
def test_a_flow_that_leaves_is_remembered(programs: Programs, carried: p.Transport) -> None:
    """Each packet is as long, and marked, as itself."""
    frame = A1.sends(o.REMOTE, carried)
    first = programs.run(A1, frame)
    with unnoticed(programs, "remote_addrs"):
        moved(programs)
        assert programs.run(A1, frame) == first
        sport = o.source_port(first.packet)
        for ecn in (0, 1, 2, 3):
            data = bytes(100 + ecn)
            longer = A1.sends(
                o.REMOTE, p.tcp(1000, 80, p.ACK, data) if carried is TCP else p.udp(1000, 80, data)
            )
            longer = longer[:14] + o.marked(longer[14:], ecn)
            wanted = o.leaves(longer[14:], sport, ecn=ecn)
            got = programs.run(A1, longer)
            assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
            assert not (difference := p.difference(got.packet, wanted)), difference


@CARRIED
def test_a_flow_that_arrives_is_remembered(programs: Programs, carried: p.Transport) -> None:
    first = programs.run(None, in_tunnel(carried))
    assert first.reasons == {"DELIVERED": 1}
    with unnoticed(programs, "vteps"):
        del programs.maps["vteps"][abi.vtep_key(o.PEERS[o.PEER])]
        programs.expect(None, in_tunnel(carried), REDIRECT, Reason.DELIVERED, A1.gets(o.REMOTE, carried))


@CARRIED
@pytest.mark.usefixtures("stays")
def test_so_are_flows_without_a_tunnel(programs: Programs, carried: p.Transport) -> None:
    o.fill(programs, direct=True)
    out, back = A1.sends(o.REMOTE, carried), comes(carried)
    for _ in range(2):
        programs.expect(A1, out, REDIRECT, Reason.TO_PEER, out)
        programs.expect(None, back, REDIRECT, Reason.DELIVERED, A1.gets(o.REMOTE, carried))
        with unnoticed(programs, "remote_blocks"):
            for key in list(programs.maps["remote_blocks"]):
                del programs.maps["remote_blocks"][key]
    o.fill(programs, direct=True)


def test_it_is_forgotten_after_a_moment(programs: Programs) -> None:
    """If whoever has changed a row is killed before the programs are told."""
    with unnoticed(programs, "vteps"):
        assert programs.run(None, in_tunnel()).reasons == {"DELIVERED": 1}
        del programs.maps["vteps"][abi.vtep_key(o.PEERS[o.PEER])]
        assert programs.run(None, in_tunnel()).reasons == {"DELIVERED": 1}
        time.sleep(LIFE)
        assert programs.run(None, in_tunnel()).reasons == {"DROP_TUNNEL_SENDER": 1}


# ---- what changes counts at once ----------------------------------------------------------------------


def without(name: str, key: Any) -> Callable[[Programs], None]:
    return lambda programs: programs.maps[name].__delitem__(key)


def replaced(name: str, key: Any, **fields: Any) -> Callable[[Programs], None]:
    return lambda programs: programs.maps[name].__setitem__(key, programs.maps[name][key]._replace(**fields))


def of_a1(**fields: Any) -> Callable[[Programs], None]:
    return lambda programs: replaced("devices", abi.device_key(programs.ifindex(A1)), **fields)(programs)


FLAGS = NET1.flags | abi.NetworkFlag.NETWORK_OVERLAY
BLOCK = abi.remote_key(NET1.number, o.REMOTE - 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_a1(mac="02:42:00:00:00:77"), "DROP_SPOOFED_MAC"),
        (of_a1(addr4=A2.ip), "DROP_BAD_ADDR"),
        (replaced("networks", NET1.number, flags=FLAGS & ~abi.NetworkFlag.NETWORK_ICC), "DROP_ICC"),
        (replaced("networks", NET1.number, flags=0), "DROP_DEVICE"),
        (without("remote_blocks", BLOCK), "DROP_NO_REMOTE"),
        (without("peers", abi.peer_key(o.PEER)), "DROP_NO_REMOTE"),
        (replaced("tunnel", 0, addr4=None), "DROP_NO_TUNNEL"),
        (replaced("peers", abi.peer_key(o.PEER), mtu=80), "DROP_TOO_BIG"),
    ],
    ids=["MAC", "address", "icc", "network", "block", "peer", "end", "width"],
)
def test_a_change_counts_for_the_next_packet_that_leaves(
    programs: Programs, change: Callable[[Programs], None], reason: str
) -> None:
    frame = A1.sends(o.REMOTE, UDP)
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
    change(programs)
    assert programs.run(A1, frame).reasons == {reason: 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("endpoints", abi.endpoint_key(NET1.number, A1.ip)), "DROP_NO_ENDPOINT"),
        (without("vteps", abi.vtep_key(o.PEERS[o.PEER])), "DROP_TUNNEL_SENDER"),
        (without("vnis", abi.vni_key(o.VNI)), "NOT_OURS"),
        (without("remote_blocks", BLOCK), "DROP_TUNNEL_SOURCE"),
        (without("overlays", abi.overlay_key(NET1.number)), "DROP_TUNNEL_SOURCE"),
        (replaced("networks", NET1.number, flags=FLAGS & ~abi.NetworkFlag.NETWORK_ICC), "DROP_ICC"),
        (replaced("networks", NET1.number, flags=0), "DROP_DEVICE"),
        (replaced("tunnel", 0, port=4790), "NOT_OURS"),
        (replaced("tunnel", 0, addr4=None), "NOT_OURS"),
    ],
    ids=["member", "host", "vni", "block", "overlay", "icc", "network", "port", "end"],
)
def test_a_change_counts_for_the_next_packet_that_arrives(
    programs: Programs, change: Callable[[Programs], None], reason: str
) -> None:
    for _ in range(2):
        assert programs.run(None, in_tunnel()).reasons == {"DELIVERED": 1}
    change(programs)
    assert programs.run(None, in_tunnel()).reasons == {reason: 1}


def test_a_member_that_is_another_now_gets_it(programs: Programs) -> None:
    for _ in range(2):
        programs.expect(None, in_tunnel(), REDIRECT, Reason.DELIVERED, A1.gets(o.REMOTE, UDP))
    endpoints = programs.maps["endpoints"]
    endpoints[abi.endpoint_key(NET1.number, A1.ip)] = endpoints[abi.endpoint_key(NET1.number, A2.ip)]
    wanted = p.mac_bytes(A2.mac) + A1.gets(o.REMOTE, UDP)[6:]
    programs.expect(None, in_tunnel(), REDIRECT, Reason.DELIVERED, wanted)


def test_an_ipsec_policy_counts_at_once(programs: Programs, policies: Policies) -> None:
    frame = A1.sends(o.REMOTE, UDP)
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
        assert programs.run(None, in_tunnel()).reasons == {"DELIVERED": 1}
    policies(
        policy("out", f"{HOST}/32", f"{o.PEERS[o.PEER]}/32"),
        policy("in", f"{o.PEERS[o.PEER]}/32", f"{HOST}/32"),
    )
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(A1, frame, REDIRECT, Reason.TO_PEER, by_device)
    assert programs.run(None, in_tunnel()).reasons == {"NOT_OURS": 1}


def test_a_route_that_is_another_now_counts_after_a_moment(programs: Programs) -> None:
    frame, peer = A1.sends(o.REMOTE, UDP), str(o.PEERS[o.PEER])
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
    subprocess.run(["ip", "route", "add", "dev", "up0", peer, "mtu", "lock", "100"], check=True)
    try:
        time.sleep(LIFE)
        longer = A1.sends(o.REMOTE, p.udp(1000, 80, bytes(40)))
        assert programs.run(A1, longer).reasons == {"DROP_TOO_BIG": 1}
    finally:
        subprocess.run(["ip", "route", "del", peer], check=True)
        time.sleep(LIFE)


# ---- what is not the flow, or not plain -----------------------------------------------------------------


def test_nobody_else_sends_as_the_flow(programs: Programs) -> None:
    frame = A1.sends(o.REMOTE, UDP)
    for _ in range(2):
        assert programs.run(A1, frame).reasons == {"TO_PEER": 1}
    assert programs.run(A2, frame).reasons == {"DROP_SPOOFED_MAC": 1}
    assert programs.run(A2, frame[:6] + p.mac_bytes(A2.mac) + frame[12:]).reasons == {"DROP_SPOOFED_ADDR": 1}
    assert programs.run(A1, frame[:6] + p.mac_bytes(A2.mac) + frame[12:]).reasons == {"DROP_SPOOFED_MAC": 1}


def test_nobody_else_is_believed_as_the_flow(programs: Programs) -> None:
    for _ in range(2):
        assert programs.run(None, in_tunnel()).reasons == {"DELIVERED": 1}
    assert programs.run(None, in_tunnel(src=o.STRANGER)).reasons == {"DROP_TUNNEL_SENDER": 1}
    assert programs.run(None, in_tunnel(src=o.PEERS[o.OTHER_PEER])).reasons == {"DROP_TUNNEL_SOURCE": 1}
    assert programs.run(None, in_tunnel(vni=77)).reasons == {"NOT_OURS": 1}
    assert programs.run(None, comes(UDP)).reasons == {"NOT_OURS": 1}
    o.fill(programs, direct=True)
    for _ in range(2):
        assert programs.run(None, comes(UDP)).reasons == {"DELIVERED": 1}
    assert programs.run(None, in_tunnel(src=o.STRANGER)).reasons == {"DROP_TUNNEL_SENDER": 1}


@pytest.mark.parametrize(
    ("false", "src"),
    [
        (in_tunnel(src=o.STRANGER), o.PEERS[o.PEER]),
        (in_tunnel(src=o.STRANGER), o.PEERS6[o.PEER]),
        (in_tunnel(vni=77), o.PEERS[o.PEER]),
        (in_tunnel(src=IPv4Address(0)), o.PEERS6[o.PEER]),
        (in_tunnel(src=IPv4Address(0), vni=0), None),
    ],
    ids=["a stranger's", "a stranger's, over IPv6", "another network's", "from 0.0.0.0", "in no tunnel"],
)
def test_what_is_found_out_about_a_packet_is_not_remembered_of_another(
    programs: Programs, false: bytes, src: Any
) -> None:
    """By a device's hook that remembers nothing comes the flow, after a false packet by one that does."""
    o.fill(programs, direct=src is None)
    honest = comes(UDP) if src is None else in_tunnel(src=src)
    before = programs.run(None, false).reasons
    assert "DELIVERED" not in before
    libbpf.test_run(programs.fds["from_parent"], honest, ifindex=programs.ifindex(None))
    # Of the other family, before 6.3, it is left to the device, or lost where there is none.
    assert programs.counted() in ({"DELIVERED": 1}, {"NOT_OURS": 1}, {"DROP_NO_TUNNEL": 1})
    assert programs.run(None, false).reasons == before


def odd(frame: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Frames that have the flow's addresses and ports, and how they are joined: the packet, whose IP header is at
    `at`, is not what it seems, or not all there."""
    for index in (0, 6, 7, 9, *range(2, 4)):
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


@CARRIED
@pytest.mark.parametrize("direct", [False, True], ids=["tunnel", "direct"])
def test_what_is_not_plain_is_looked_at_as_ever(
    programs: Programs, carried: p.Transport, direct: bool
) -> None:
    o.fill(programs, direct=direct)
    sent, got = A1.sends(o.REMOTE, carried), comes(carried) if direct else in_tunnel(carried)
    as_if_new(programs, A1, sent, odd(sent, 14))
    as_if_new(programs, None, got, odd(got, 14))
    if not direct:
        as_if_new(
            programs, None, got, ((changed(got, at, 1 << bit), 0) for at in range(36, 74) for bit in (0, 7))
        )


def test_what_a_limit_is_about_is_not_remembered(programs: Programs) -> None:
    for direction, sender, frame in (
        ("egress", A1, A1.sends(o.REMOTE, UDP)),
        ("ingress", None, in_tunnel()),
    ):
        limited = LIMIT_DIRECTIONS[direction]
        of_a1(limited=limited)(programs)
        replaced("endpoints", abi.endpoint_key(NET1.number, A1.ip), limited=limited)(programs)
        programs.maps["limits"][abi.limit_key(A1.number, limited)] = abi.limit(rate=1, burst=1)
        try:
            assert programs.run(sender, frame).reasons.keys() & {"TO_PEER", "DELIVERED"}
            assert programs.run(sender, frame).reasons == {"DROP_BANDWIDTH": 1}
        finally:
            del programs.maps["limits"][abi.limit_key(A1.number, limited)]


@pytest.mark.usefixtures("stays")
def test_a_question_is_not_remembered(programs: Programs) -> None:
    """Whether it is for a resolver changes with more than those rows."""
    frame = A1.sends(o.REMOTE, p.udp(1000, 53))
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
    others |= {"services", "slots", "backends", "ports", "reserved", "bindings", "origins", "acls"}
    assert declared & TOLD_MAPS <= EPOCH_MAPS | others
