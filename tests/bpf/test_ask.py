# SPDX-License-Identifier: Apache-2.0
"""Questions that upstream servers are to answer: which way they take, whose the answers are, who is asked next."""

from __future__ import annotations

import errno
import itertools
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any, NamedTuple

import pytest

from datapath.dataplane.convert import to_abi
from datapath.dataplane.structs import ResolverKey, ResolverValue, UpstreamValue
from datapath.errors import KernelError
from datapath.kernel import abi, libbpf
from datapath.model.endpoints import linklocal_of
from tests.bpf import names as n
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    B2,
    C1,
    C2,
    D1,
    HOST,
    HOST6,
    LO,
    NAT_FIRST,
    NAT_LAST,
    NET1,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK,
    UPLINK_MAC,
    Loopback,
    Member,
    Outcome,
    Programs,
    Reason,
    host_says,
    outside_sends,
)

RESOLVER = IPv4Address("127.0.0.11")
SPORT, ID = 40123, 0x1A2B
SECOND = 10**9
NO_ERROR, SERVER_FAILED, NO_SUCH_NAME, REFUSED = 0, 2, 3, 5
FAR, FAR6 = ip_address("203.0.113.77"), ip_address("2001:db8:5::77")
ROUTER = ip_address("fe80::99")
NAME = b"\7example\3org\0" + struct.pack("!HH", 1, 1)
OPT = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
RECORD = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes((192, 0, 2, 7))


def question(ident: int = ID, *, edns: bool = True) -> bytes:
    return struct.pack("!HHHHHH", ident, 0x0110, 1, 0, 0, edns) + NAME + OPT * edns


def answer(ident: int = ID, rcode: int = NO_ERROR, *, records: int = 1) -> bytes:
    records = records if rcode == NO_ERROR else 0
    head = struct.pack("!HHHHHH", ident, 0x8190 | rcode, 1, records, 0, 1)
    return head + NAME + RECORD * records + OPT


class Way(NamedTuple):
    """How a question leaves: which resolver is asked, its upstream, and what the programs make of it."""

    upstream: UpstreamValue
    source: p.Address  # that the upstream sees
    reason: str
    member: Member = A1
    asked: p.Address = RESOLVER
    answers: Member | Loopback | None = None  # who sends the answer

    @property
    def same_family(self) -> bool:
        return ip_address(self.asked).version == self.upstream.addr.version


def to(address: p.Address, network: int = 0, ifindex: int = 0) -> UpstreamValue:
    return UpstreamValue(ip_address(address), network, ifindex)


GW6 = NET1.gateway6
WAYS = {
    "outside": Way(to(OUTSIDE), HOST, "TO_OUTSIDE"),
    "outside, IPv6": Way(to(OUTSIDE6), HOST6, "TO_OUTSIDE", asked=GW6),
    "outside, by the gateway's address": Way(to(OUTSIDE), HOST, "TO_OUTSIDE", asked=NET1.gateway),
    "outside, IPv4 over IPv6": Way(to(OUTSIDE6), HOST6, "TO_OUTSIDE"),
    "outside, IPv6 over IPv4": Way(to(OUTSIDE), HOST, "TO_OUTSIDE", asked=GW6),
    "outside, without masquerading": Way(to(OUTSIDE), HOST, "TO_OUTSIDE", member=D1),
    "outside, IPv6 from a network without": Way(to(OUTSIDE6), HOST6, "TO_OUTSIDE", member=D1),
    "the host's stub": Way(to("127.0.0.53"), "127.0.0.1", "TO_HOST", answers=LO),
    "the host's stub, IPv6": Way(to("::1"), "::1", "TO_HOST", asked=GW6, answers=LO),
    "the host's stub, IPv4 over IPv6": Way(to("::1"), "::1", "TO_HOST", answers=LO),
    "the host's stub, IPv6 over IPv4": Way(to("127.0.0.1"), "127.0.0.1", "TO_HOST", asked=GW6, answers=LO),
    "an address of the host's": Way(to(OTHER), OTHER, "TO_HOST", answers=LO),
    "a member": Way(to(A2.ip, 1), NET1.gateway, "DELIVERED", answers=A2),
    "a member, IPv4 over IPv6": Way(to(A2.ip6, 1), NET1.gateway6, "DELIVERED", answers=A2),
    "a member without icc": Way(to(B2.ip, 2), B2.net.gateway, "DELIVERED", member=B1, answers=B2),
    "a member of an internal network": Way(to(C2.ip, 3), C2.net.gateway, "DELIVERED", member=C1, answers=C2),
}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
OBJECTS = (
    "from_container",
    "from_uplink",
    "from_tunnel",
    "from_loopback",
    "conn_gc",
    "resolve",
    "ask",
    "answered",
)


@pytest.fixture
def resolvers(programs: Programs) -> Iterator[Callable[..., None]]:
    """Gives a member its resolver with these upstreams. The host knows its addresses."""

    def give(member: Member, *upstreams: UpstreamValue, egress: int | None = None) -> None:
        value = ResolverValue((), 0, member.net.number if egress is None else egress, upstreams)
        if member.net.number == C1.net.number:
            value = value._replace(egress=0)
        programs.maps["resolvers"][to_abi(ResolverKey(member.number))] = to_abi(value)

    for address in (HOST, HOST6, OTHER):
        programs.maps["addresses"][abi.address_key(address)] = abi.address(1)
    yield give
    for name in ("resolvers", "addresses"):
        programs.maps[name].delete_many(list(programs.maps[name]))


def sends(way: Way, carried: p.Transport, **header: Any) -> bytes:
    return way.member.sends(way.asked, carried, **header)


def body(packet: bytes) -> tuple[p.Address, p.Address, int, int, bytes]:
    """Addresses, ports and UDP payload of a frame."""
    four = p.ethertype(packet) == p.ETH_IPV4
    assert packet[14] >> 4 == (4 if four else 6)
    at = 26 if four else 22
    size = 4 if four else 16
    src, dst = (ip_address(packet[at + i * size : at + (i + 1) * size]) for i in range(2))
    l4 = 34 if four else 54
    sport, dport = struct.unpack("!HH", packet[l4 : l4 + 4])
    return src, dst, sport, dport, packet[l4 + 8 :]


def whole(packet: bytes) -> bytes:
    """The same packet with lengths and checksums as they should be, whatever they are."""
    src, dst, sport, dport, data = body(packet)
    carried = p.udp(sport, dport, data)
    if p.ethertype(packet) == p.ETH_IPV4:
        fragment, ident = int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[18:20], "big")
        inner = p.ipv4(src, dst, carried, ttl=packet[22], fragment=fragment, ident=ident)
    else:
        inner = p.ipv6(src, dst, carried, hops=packet[21])
    return packet[:14] + inner


def asks(programs: Programs, way: Way, data: bytes = question(), sport: int = SPORT) -> int:
    """The port that its question leaves with, after a look at every byte of it."""
    got = programs.run(way.member, sends(way, p.udp(sport, 53, data)))
    assert (got.verdict, got.reasons) == (REDIRECT, {way.reason: 1})
    src, dst, port, dport, message = body(got.packet)
    assert (src, dst, dport) == (ip_address(way.source), way.upstream.addr, 53)
    assert NAT_FIRST <= port <= NAT_LAST
    assert message == data
    assert not p.difference(got.packet, whole(got.packet))
    return port


def replies(way: Way, port: int, carried: Callable[[int, int], p.Transport], **header: Any) -> bytes:
    if isinstance(way.answers, Member):
        return way.answers.sends(way.source, carried(53, port), **header)
    if way.answers is LO:
        return host_says(way.source, carried(53, port), src=way.upstream.addr, **header)
    return outside_sends(way.source, carried(53, port), src=way.upstream.addr, **header)


def told(programs: Programs, way: Way, port: int, data: bytes, **header: Any) -> Outcome:
    return programs.run(way.answers, replies(way, port, lambda s, d: p.udp(s, d, data), **header))


def arrived(way: Way, got: Outcome, data: bytes, sport: int = SPORT, source: p.Address | None = None) -> None:
    """The answer is what the client gets, from where it has asked."""
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    src, dst, *ports, message = body(got.packet)
    own = source or (way.member.ip if ip_address(way.asked).version == 4 else way.member.ip6)
    assert (src, dst, ports) == (ip_address(way.asked), ip_address(own), [53, sport])
    assert message == data
    assert got.packet[:12] == p.mac_bytes(way.member.mac) + p.mac_bytes(way.member.net.mac)
    assert not p.difference(got.packet, whole(got.packet))


@EACH_WAY
def test_a_question_goes_its_way_and_the_answer_comes_back(
    programs: Programs, resolvers: Callable[..., None], way: Way
) -> None:
    resolvers(way.member, way.upstream)
    port = asks(programs, way)
    arrived(way, told(programs, way, port, answer()), answer())
    assert not programs.table("pending") and not programs.table("conns")


@pytest.mark.parametrize("way", [way for way in WAYS.values() if way.asked == RESOLVER])
def test_a_socket_that_is_bound_to_loopback_is_answered_there(
    programs: Programs, resolvers: Callable[..., None], way: Way
) -> None:
    resolvers(way.member, way.upstream)
    frame = p.ethernet(
        way.member.net.mac,
        way.member.mac,
        p.ETH_IPV4,
        p.ipv4("127.0.0.1", RESOLVER, p.udp(SPORT, 53, question())),
    )
    got = programs.run(way.member, frame)
    assert (got.verdict, got.reasons) == (REDIRECT, {way.reason: 1})
    src, dst, port, *_ = body(got.packet)
    assert (src, dst) == (ip_address(way.source), way.upstream.addr)
    assert not p.difference(got.packet, whole(got.packet))
    arrived(way, told(programs, way, port, answer()), answer(), source="127.0.0.1")


def test_a_link_local_upstream_is_asked_by_its_device(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    index = programs.topology.index[UPLINK]
    own = linklocal_of(UPLINK_MAC)
    key = abi.device_key(index)
    before = programs.maps["devices"][key]
    programs.maps["devices"][key] = before._replace(linklocal=own)
    way = Way(to(ROUTER, ifindex=index), own, "TO_OUTSIDE")
    try:
        resolvers(A1, way.upstream)
        port = asks(programs, way)
        arrived(way, told(programs, way, port, answer()), answer())
    finally:
        programs.maps["devices"][key] = before


@pytest.mark.parametrize("rcode", [NO_ERROR, NO_SUCH_NAME])
def test_an_answer_is_passed_on_unchanged(
    programs: Programs, resolvers: Callable[..., None], rcode: int
) -> None:
    way = WAYS["outside"]
    resolvers(A1, way.upstream, to(FAR))
    port = asks(programs, way)
    arrived(way, told(programs, way, port, answer(rcode=rcode)), answer(rcode=rcode))


# ---- who may answer -----------------------------------------------------------------------------------


def test_an_answer_comes_once(programs: Programs, resolvers: Callable[..., None]) -> None:
    way = WAYS["outside"]
    resolvers(A1, way.upstream)
    port = asks(programs, way)
    told(programs, way, port, answer())
    assert told(programs, way, port, answer()).verdict == UNSPEC


@EACH_WAY
def test_an_answer_with_another_id_is_dropped_and_the_right_one_still_arrives(
    programs: Programs, resolvers: Callable[..., None], way: Way
) -> None:
    resolvers(way.member, way.upstream)
    port = asks(programs, way)
    for wrong in (answer(ID + 1), question(), b"x", b""):
        got = told(programs, way, port, wrong)
        assert got.verdict == SHOT and got.reasons.keys() <= {"DROP_NO_CONN", "DROP_TRUNCATED"}
    arrived(way, told(programs, way, port, answer()), answer())


def test_who_was_not_asked_is_not_heard(programs: Programs, resolvers: Callable[..., None]) -> None:
    """Another address, another port of the upstream's, another of the host's, a member, the host itself."""
    way = WAYS["outside"]
    resolvers(A1, way.upstream)
    port = asks(programs, way)
    other = NAT_FIRST if port != NAT_FIRST else NAT_LAST
    for frame in (
        outside_sends(HOST, p.udp(53, port, answer()), src=FAR),
        outside_sends(HOST, p.udp(54, port, answer())),
        outside_sends(HOST, p.udp(53, other, answer())),
    ):
        programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
    # With the upstream's own address, but from where it cannot come.
    programs.expect(LO, host_says(HOST, p.udp(53, port, answer()), src=OUTSIDE), UNSPEC, Reason.NOT_OURS)
    arrived(way, told(programs, way, port, answer()), answer())


def test_a_member_answers_what_it_was_asked_only(programs: Programs, resolvers: Callable[..., None]) -> None:
    way = WAYS["a member"]
    resolvers(A1, way.upstream)
    port = asks(programs, way)
    got = programs.run(D1, D1.sends(NET1.gateway, p.udp(53, port, answer())))
    assert "DELIVERED" not in got.reasons
    arrived(way, told(programs, way, port, answer()), answer())


def test_the_hosts_other_traffic_on_loopback_is_left_alone(programs: Programs) -> None:
    for sport, dport in ((53, NAT_FIRST), (53, 5353), (54, NAT_FIRST)):
        frame = host_says("127.0.0.1", p.udp(sport, dport, answer()), src="127.0.0.53")
        programs.expect(LO, frame, UNSPEC, Reason.NOT_OURS)


def test_ports_are_not_to_be_guessed(programs: Programs, resolvers: Callable[..., None]) -> None:
    """Each question has its own, from the same socket too."""
    resolvers(A1, WAYS["outside"].upstream)
    ports = [asks(programs, WAYS["outside"], question(i), sport=NAT_FIRST) for i in range(60)]
    assert len(set(ports)) == 60
    steps = {(b - a) % (NAT_LAST - NAT_FIRST + 1) for a, b in itertools.pairwise(ports)}
    assert len(steps) > 40


def test_questions_of_one_socket_are_answered_each(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    """In any order; the later one does not end the earlier one."""
    way = WAYS["outside"]
    resolvers(A1, way.upstream)
    ports = {ident: asks(programs, way, question(ident)) for ident in (1, 2, 3)}
    for ident in (2, 3, 1):
        arrived(way, told(programs, way, ports[ident], answer(ident)), answer(ident))


# ---- who is asked -------------------------------------------------------------------------------------


def whom(got: Outcome) -> p.Address:
    return body(got.packet)[1]


def ask_once(programs: Programs, ident: int = ID, sport: int = SPORT) -> Outcome:
    return programs.run(A1, A1.sends(RESOLVER, p.udp(sport, 53, question(ident))))


def test_the_first_is_asked_and_the_next_when_a_question_comes_again(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    resolvers(A1, to(OUTSIDE), to(OUTSIDE6), to(FAR))
    assert [whom(ask_once(programs)) for _ in range(5)] == [OUTSIDE, OUTSIDE6, FAR, OUTSIDE, OUTSIDE6]
    assert whom(ask_once(programs, ID + 1)) == OUTSIDE


def test_a_late_answer_of_the_one_before_arrives(programs: Programs, resolvers: Callable[..., None]) -> None:
    way = WAYS["outside"]
    resolvers(A1, to(OUTSIDE), to(FAR))
    port = asks(programs, way)
    assert whom(ask_once(programs)) == FAR
    arrived(way, told(programs, way, port, answer()), answer())


def age(programs: Programs, upstream: p.Address, seconds: float, rest: float = 0) -> None:
    """It was asked that long ago, and rests for so long still."""
    now = time.monotonic_ns()
    programs.maps["upstreams"][abi.upstream_key(upstream)] = abi.upstream_state(
        asked=now - int(seconds * SECOND), dead_until=now + int(rest * SECOND) if rest else 0
    )


def test_one_that_owes_an_answer_is_passed_over_then_tried_once(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    resolvers(A1, to(OUTSIDE), to(FAR))
    age(programs, OUTSIDE, 0.3)
    assert whom(ask_once(programs, 1)) == OUTSIDE
    age(programs, OUTSIDE, 2)
    assert [whom(ask_once(programs, i)) for i in (2, 3, 4)] == [FAR] * 3
    state = programs.maps["upstreams"][abi.upstream_key(OUTSIDE)]
    assert 8 * SECOND < state.dead_until - time.monotonic_ns() <= 10 * SECOND
    age(programs, OUTSIDE, 12, rest=-0.1)
    assert [whom(ask_once(programs, i)) for i in (5, 6, 7)] == [OUTSIDE, FAR, FAR]


def test_what_was_lost_long_ago_says_nothing(programs: Programs, resolvers: Callable[..., None]) -> None:
    resolvers(A1, to(OUTSIDE), to(FAR))
    age(programs, OUTSIDE, 30)
    assert whom(ask_once(programs)) == OUTSIDE


def test_any_answer_revives(programs: Programs, resolvers: Callable[..., None]) -> None:
    way = WAYS["outside"]
    resolvers(A1, to(OUTSIDE), to(FAR))
    port = asks(programs, way)
    age(programs, OUTSIDE, 2, rest=9)
    assert whom(ask_once(programs, 2)) == FAR
    arrived(way, told(programs, way, port, answer(rcode=NO_SUCH_NAME)), answer(rcode=NO_SUCH_NAME))
    assert whom(ask_once(programs, 3)) == OUTSIDE


def test_the_only_one_is_asked_though_it_is_silent(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    resolvers(A1, to(OUTSIDE))
    age(programs, OUTSIDE, 2, rest=9)
    assert [whom(ask_once(programs)) for _ in range(3)] == [OUTSIDE] * 3


@EACH_WAY
@pytest.mark.parametrize("rcode", [SERVER_FAILED, REFUSED])
def test_who_does_not_know_is_not_heard_and_the_next_is_asked(
    programs: Programs, resolvers: Callable[..., None], way: Way, rcode: int
) -> None:
    """The question arrives once more at the container's device, as it was sent, and goes to the next."""
    resolvers(way.member, way.upstream, to(FAR))
    port = asks(programs, way)
    got = told(programs, way, port, answer(rcode=rcode))
    assert (got.verdict, got.reasons) == (REDIRECT, {})
    assert not p.difference(got.packet, whole(got.packet))
    assert body(got.packet)[4] == question()
    assert body(got.packet)[2:4] == (SPORT, 53)
    assert not programs.table("pending")
    if way.member is C1:  # no way leads to the other one
        return
    once_more = programs.run(way.member, got.packet)
    assert (once_more.verdict, once_more.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
    assert body(once_more.packet)[1] == FAR
    assert not p.difference(once_more.packet, whole(once_more.packet))


@EACH_WAY
@pytest.mark.parametrize("said", ["with its own", "with a longer one", "without one"])
def test_the_next_is_asked_with_the_edns_of_the_question_whatever_the_answer_has(
    programs: Programs, resolvers: Callable[..., None], way: Way, said: str
) -> None:
    """Its size and DO; its options are between the client and the server that it has asked (RFC 7873, RFC 7871)."""
    options = {"with its own": b"", "with a longer one": b"\0\x0f\0\x06\0\x16no way"}.get(said)
    resolvers(way.member, way.upstream, to(FAR))
    for ident, asked, wanted in (
        (1, b"", b""),
        (2, n.opt(), n.opt()),
        (3, n.opt(size=4096, flags=0x8000), n.opt(size=4096, flags=0x8000)),
        (4, n.opt(size=512, options=b"\0\x0a\0\x08cookie12"), n.opt(size=512)),
    ):
        head = struct.pack("!HHHHHH", ident, 0x0110, 1, 0, 0, bool(asked))
        port = asks(programs, way, head + NAME + asked)
        record = b"" if options is None else n.opt(options=options)
        failed = struct.pack("!HHHHHH", ident, 0x8192, 1, 0, 0, bool(record)) + NAME + record
        got = told(programs, way, port, failed)
        assert (got.verdict, got.reasons) == (REDIRECT, {})
        assert not p.difference(got.packet, whole(got.packet))
        assert body(got.packet)[4] == head + NAME + wanted


def test_the_last_one_that_does_not_know_is_heard(programs: Programs, resolvers: Callable[..., None]) -> None:
    way = WAYS["outside"]
    resolvers(A1, to(OUTSIDE))
    port = asks(programs, way)
    failed = answer(rcode=SERVER_FAILED)
    arrived(way, told(programs, way, port, failed), failed)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.answers is None])
def test_sums_of_the_device_stay_right(programs: Programs, resolvers: Callable[..., None], name: str) -> None:
    """The kernel itself compares them after the test run (EBADMSG). What is cut is not summed any more."""
    way = WAYS[name]
    resolvers(way.member, way.upstream)
    port = asks(programs, way)
    flags = libbpf.BPF_F_TEST_SKB_CHECKSUM_COMPLETE
    frame = replies(way, port, lambda s, d: p.udp(s, d, answer()))
    try:
        assert programs.run(way.answers, frame, flags=flags).verdict == REDIRECT
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("this kernel's test runs cannot check sums")


@pytest.mark.parametrize("asked", [RESOLVER, GW6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "upstreams",
    [(), (to("198.18.1.9"),), (to(A2.ip),), (to(B2.ip),), (to("10.9.9.9", 1),), (to("ff02::fb"),)],
    ids=["none", "unreachable", "a member by route", "another network", "no such member", "a group"],
)
def test_who_has_nobody_to_ask_is_told_at_once(
    programs: Programs, resolvers: Callable[..., None], asked: p.Address, upstreams: tuple[UpstreamValue, ...]
) -> None:
    resolvers(A1, *upstreams)
    got = programs.run(A1, A1.sends(asked, p.udp(SPORT, 53, question())))
    assert (got.verdict, got.reasons) == (REDIRECT, {"ANSWERED": 1})
    src, _, sport, dport, message = body(got.packet)
    assert (src, sport, dport) == (ip_address(asked), 53, SPORT)
    said = struct.pack("!HHHHHH", ID, 0x8190 | REFUSED, 1, 0, 0, 0) + NAME
    if not upstreams:  # it is known before the question is asked of anybody
        said = struct.pack("!HHHHHH", ID, 0x8190 | REFUSED, 1, 0, 0, 1) + NAME + OPT
    assert message == said
    assert got.packet[:12] == p.mac_bytes(A1.mac) + p.mac_bytes(NET1.mac)
    assert not p.difference(got.packet, whole(got.packet))
    assert not programs.table("pending")


# ---- bounds -------------------------------------------------------------------------------------------


def test_questions_count_as_openings_until_they_are_answered(
    topology: Any, make_programs: MakePrograms
) -> None:
    programs = make_programs(objects=OBJECTS, max_openings=4)
    way = WAYS["outside"]
    programs.maps["resolvers"][to_abi(ResolverKey(1))] = to_abi(ResolverValue((), 0, 1, (way.upstream,)))
    ports = {i: asks(programs, way, question(i)) for i in range(4)}
    assert ask_once(programs, 9).reasons == {"DROP_LIMIT": 1}
    arrived(way, told(programs, way, ports[2], answer(2)), answer(2))
    asks(programs, way, question(9))
    assert ask_once(programs, 10).reasons == {"DROP_LIMIT": 1}
    for i in (0, 1, 3):
        told(programs, way, ports[i], answer(i))
    assert programs.maps["quotas"][abi.quota_key(1)].openings == 1
    assert programs.maps["quotas"][abi.quota_key(1)].conns == 0


def test_all_ports_can_be_waiting_and_are_free_again_after_five_seconds(
    topology: Any, make_programs: MakePrograms
) -> None:
    programs = make_programs(objects=OBJECTS, nat_ports=(NAT_FIRST + 10, NAT_FIRST + 17))
    way = WAYS["outside"]
    programs.maps["resolvers"][to_abi(ResolverKey(1))] = to_abi(ResolverValue((), 0, 1, (way.upstream,)))
    assert len({asks(programs, way, question(i)) for i in range(8)}) == 8
    assert ask_once(programs, 9).reasons == {"ANSWERED": 1}  # REFUSED
    pending = programs.maps["pending"]
    for key, conn in list(pending.read_all()):
        pending[key] = conn._replace(last_seen=conn.last_seen - 5 * SECOND)
    asks(programs, way, question(10))


# ---- answers in pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["outside", "outside, IPv6", "a member"])
def test_an_answer_in_fragments_arrives(
    programs: Programs, resolvers: Callable[..., None], name: str
) -> None:
    way = WAYS[name]
    resolvers(way.member, way.upstream)
    port = asks(programs, way)
    data = answer(records=100)
    frame = replies(way, port, lambda s, d: p.udp(s, d, data))
    pieces = []
    for one in p.cut(frame, 1000):
        got = programs.run(way.answers, one)
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
        pieces.append(got.packet)
    at = 34 if ip_address(way.asked).version == 4 else 62
    datagram = b"".join(one[at:] for one in pieces)
    src, dst, *_ = body(pieces[0])
    assert (src, dst) == (ip_address(way.asked), A1.ip if at == 34 else A1.ip6)
    wanted = p.udp(53, SPORT, data).finish(p.packed(src), p.packed(dst))
    assert datagram == wanted
    # It was the answer: another one is none.
    assert told(programs, way, port, answer()).verdict == SHOT


@pytest.mark.parametrize("name", ["outside, IPv4 over IPv6", "outside, IPv6 over IPv4"])
def test_of_an_answer_in_fragments_of_the_other_family_the_client_learns_that_there_is_more(
    programs: Programs, resolvers: Callable[..., None], name: str
) -> None:
    way = WAYS[name]
    resolvers(way.member, way.upstream)
    port = asks(programs, way)
    first, rest = p.cut(replies(way, port, lambda s, d: p.udp(s, d, answer(records=100))), 1000)
    truncated = struct.pack("!HHHHHH", ID, 0x8190 | 0x0200, 1, 0, 0, 0) + NAME
    arrived(way, programs.run(None, first), truncated)
    assert programs.run(None, rest).verdict == SHOT


def error_about(way: Way, sent: bytes, source: p.Address | None = None) -> bytes:
    """Port unreachable, about a packet as it left."""
    four = way.upstream.addr.version == 4
    carried = p.icmp(3, 3, payload=sent[14:]) if four else p.icmp6(1, 4, payload=sent[14:])
    if isinstance(way.answers, Member):
        return way.answers.sends(way.source, carried)
    if way.answers is LO:
        return host_says(way.source, carried, src=way.upstream.addr)
    return outside_sends(way.source, carried, src=source or way.upstream.addr)


@EACH_WAY
def test_where_nobody_listens_the_next_is_asked_at_once(
    programs: Programs, resolvers: Callable[..., None], way: Way
) -> None:
    resolvers(way.member, way.upstream, to(FAR))
    sent = programs.run(way.member, sends(way, p.udp(SPORT, 53, question()))).packet
    got = programs.run(way.answers, error_about(way, sent))
    assert (got.verdict, got.reasons) == (REDIRECT, {})
    assert body(got.packet)[2:] == (SPORT, 53, question())
    assert not p.difference(got.packet, whole(got.packet))
    assert not programs.table("pending")
    if way.member is C1:  # no way leads to the other one
        return
    once_more = programs.run(way.member, got.packet)
    assert (once_more.reasons, body(once_more.packet)[1]) == ({"TO_OUTSIDE": 1}, FAR)
    # Nor is it tried by the next questions.
    frame = sends(way, p.udp(SPORT, 53, question(ID + 1)))
    assert whom(programs.run(way.member, frame)) == FAR


def test_an_error_is_believed_that_quotes_the_question(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    way = WAYS["outside"]
    resolvers(A1, way.upstream, to(FAR))
    sent = ask_once(programs).packet
    id_at, port_at = 14 + 28, 14 + 20
    for at, verdict in ((id_at, SHOT), (port_at, UNSPEC)):
        forged = sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :]
        assert programs.run(None, error_about(way, forged)).verdict == verdict
    assert programs.run(None, error_about(way, sent[:50])).verdict == SHOT  # it does not quote enough
    port = body(sent)[2]
    arrived(way, told(programs, way, port, answer()), answer())


# ---- TCP ----------------------------------------------------------------------------------------------


def segment(packet: bytes) -> tuple[p.Address, p.Address, int, int, int, bytes]:
    src, dst, sport, dport, _ = body(packet)
    l4 = 34 if p.ethertype(packet) == p.ETH_IPV4 else 54
    return src, dst, sport, dport, packet[l4 + 13], packet[l4:]


def right_sum(packet: bytes) -> None:
    src, dst, *_, tcp = segment(packet)
    pseudo = p.packed(src) + p.packed(dst) + struct.pack("!II", len(tcp), p.TCP)
    assert p.checksum(pseudo + tcp) == 0


@EACH_WAY
def test_a_connection_goes_its_way(programs: Programs, resolvers: Callable[..., None], way: Way) -> None:
    resolvers(way.member, way.upstream)
    own = way.member.ip if ip_address(way.asked).version == 4 else way.member.ip6
    port = 0
    steps = [
        (True, p.SYN),
        (False, p.SYN | p.ACK),
        (True, p.ACK),
        (True, p.PSH | p.ACK),
        (False, p.PSH | p.ACK),
    ]
    for forward, flags in steps:
        data = b"message" if flags & p.PSH else b""
        if forward:
            got = programs.run(way.member, sends(way, p.tcp(SPORT, 53, flags, data)))
            assert (got.verdict, got.reasons) == (REDIRECT, {way.reason: 1})
            src, dst, sport, dport, seen, tcp = segment(got.packet)
            assert (src, dst, dport, seen) == (ip_address(way.source), way.upstream.addr, 53, flags)
            assert port in (0, sport)
            port = sport
        else:
            frame = replies(way, port, lambda s, d: p.tcp(s, d, flags, data))  # noqa: B023
            got = programs.run(way.answers, frame)
            assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
            src, dst, sport, dport, seen, tcp = segment(got.packet)
            assert (src, dst, sport, dport, seen) == (ip_address(way.asked), own, 53, SPORT, flags)
        assert tcp.endswith(data)
        right_sum(got.packet)
    assert not programs.table("pending") and len(programs.table("conns")) == 2
    assert programs.maps["quotas"][abi.quota_key(way.member.number)].conns == 1


def test_a_segment_of_no_connection_goes_nowhere(programs: Programs, resolvers: Callable[..., None]) -> None:
    resolvers(A1, to(OUTSIDE))
    got = programs.run(A1, A1.sends(RESOLVER, p.tcp(SPORT, 53, p.ACK)))
    assert got.verdict == SHOT or got.reasons == {"ANSWERED": 1}
    assert not programs.table("pending")


def test_a_syn_that_is_not_answered_is_sent_to_the_next(
    programs: Programs, resolvers: Callable[..., None]
) -> None:
    resolvers(A1, to(OUTSIDE), to(FAR))
    syn = A1.sends(RESOLVER, p.tcp(SPORT, 53, p.SYN))
    assert [whom(programs.run(A1, syn)) for _ in range(2)] == [OUTSIDE] * 2
    pending = programs.maps["pending"]
    for key, conn in list(pending.read_all()):
        pending[key] = conn._replace(last_seen=conn.last_seen - SECOND)
    assert [whom(programs.run(A1, syn)) for _ in range(2)] == [FAR] * 2
    assert len(programs.table("pending")) == 2
