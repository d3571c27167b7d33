# SPDX-License-Identifier: Apache-2.0
"""Which port of the host's a container's connection leaves with: RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP)."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    D1,
    HOST,
    HOST6,
    IDENTIFIERS,
    NAT_FIRST,
    NAT_LAST,
    NEXT_HOP,
    NEXT_HOP6,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    Member,
    Programs,
    Reason,
    booted_for,
    outside_sends,
    wait_until,
)

SPORT = 20100  # within the range for masquerading
EPHEMERAL = 40000  # not within it
FAR = "203.0.113.77"  # one more address outside


def tcp(sport: int, dport: int = 53) -> p.Transport:
    return p.tcp(sport, dport, p.SYN)


def ping(ident: int, dport: int = 0) -> p.Transport:
    return p.echo(p.ECHO, ident)


def udp(sport: int, dport: int = 53) -> p.Transport:
    return p.udp(sport, dport)


PROTOCOLS: dict[str, Callable[..., p.Transport]] = {"UDP": udp, "TCP": tcp, "ping": ping}
EACH = pytest.mark.parametrize("proto", PROTOCOLS)


def seen(programs: Programs, member: Member, carried: p.Transport, to: p.Address = OUTSIDE) -> int:
    """The port (or identifier) from which the outside sees it."""
    got = programs.run(member, member.sends(to, carried))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
    at = (54 if ":" in str(to) else 34) + (4 if carried.proto in (p.ICMP, p.ICMPV6) else 0)
    return int.from_bytes(got.packet[at : at + 2], "big")


def answered(programs: Programs, member: Member, external: int, own: int, frm: p.Address = OUTSIDE) -> None:
    """A datagram from there to the external port arrives at the container's own."""
    host = HOST6 if ":" in str(frm) else HOST
    hop: dict[str, Any] = {"hops": 63} if ":" in str(frm) else {"ttl": 63}
    wanted = member.gets(frm, p.udp(53, own), **hop)
    frame = outside_sends(host, p.udp(53, external), src=frm)
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, wanted)


def conns(programs: Programs) -> dict[Any, Any]:
    return {**programs.table("pending"), **programs.table("conns")}


def whole(programs: Programs) -> None:
    """Each entry has its other half, which names it."""
    for name in ("pending", "conns"):
        table = programs.table(name)
        for key, conn in table.items():
            assert table[conn.other].other == key


# ---- RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1: endpoint-independent mapping -----------------------------


@pytest.mark.parametrize("proto", ["UDP", "TCP"])
@pytest.mark.parametrize("own", [7, 700, 1024, SPORT, EPHEMERAL, 65535])
def test_a_port_is_kept_whatever_its_range_if_it_is_free(programs: Programs, proto: str, own: int) -> None:
    """For every destination, and the host's own ephemeral range is no exception."""
    carried = PROTOCOLS[proto]
    for to, dport in ((OUTSIDE, 53), (OUTSIDE, 54), (NEXT_HOP, 53), (FAR, 9)):
        assert seen(programs, A1, carried(own, dport), to) == own
    assert not programs.table("mappings")
    assert [key.port for key in programs.table("externals") if key.proto in (p.UDP, p.TCP)] == [own]


@pytest.mark.parametrize("own", [7, 1024, EPHEMERAL])
@pytest.mark.parametrize("to", [OUTSIDE, OUTSIDE6], ids=["IPv4", "IPv6"])
def test_an_identifier_is_never_kept(programs: Programs, to: p.Address, own: int) -> None:
    """The host's own pings, and those that its packet filter masquerades, keep theirs, and nobody here is told."""
    six = to is OUTSIDE6
    host, far, echo = (HOST6, NEXT_HOP6, p.echo6) if six else (HOST, NEXT_HOP, p.echo)
    ask, reply = (p.ECHO6, p.ECHO6_REPLY) if six else (p.ECHO, p.ECHO_REPLY)
    hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
    external, other = (seen(programs, member, echo(ask, own), to) for member in (A1, A2))
    assert {external, other} <= set(IDENTIFIERS) - {own} and external != other
    assert seen(programs, A1, echo(ask, own), far) == external
    for member, its in ((A1, external), (A2, other)):
        wanted = member.gets(to, echo(reply, own), **hop)
        programs.expect(None, outside_sends(host, echo(reply, its)), REDIRECT, Reason.DELIVERED, wanted)
    # That of the host's own is the host's.
    assert programs.run(None, outside_sends(host, echo(reply, own))).reasons == {"NOT_OURS": 1}


@pytest.fixture
def other_nat(programs: Programs) -> Iterator[Programs]:
    """The host's packet filter masquerades, too."""
    before = programs.maps["host"][0]
    programs.maps["host"][0] = before._replace(flags=int(abi.HostFlag.HOST_OTHER_NAT))
    yield programs
    programs.maps["host"][0] = before


@pytest.mark.parametrize("proto", ["UDP", "TCP"])
@pytest.mark.parametrize(
    ("own", "first", "last"),
    [
        (7, 1, 511),
        (700, 600, 1023),
        (1024, NAT_FIRST, NAT_LAST),
        (SPORT, NAT_FIRST, NAT_LAST),
        (EPHEMERAL, NAT_FIRST, NAT_LAST),
    ],
)
def test_beside_another_nat_no_port_is_kept(
    other_nat: Programs, own: int, first: int, last: int, proto: str
) -> None:
    """It keeps those of its own containers, and asks nobody. The class stays, and one mapping for all servers."""
    carried, chosen = PROTOCOLS[proto], set()
    for member in (A1, A2, A3):
        external = seen(other_nat, member, carried(own, 53))
        assert first <= external <= last
        assert {seen(other_nat, member, carried(own, 54), to) for to in (OUTSIDE, NEXT_HOP)} == {external}
        chosen.add(external)
    assert len(chosen) == 3
    assert {row.port for row in other_nat.table("externals").values() if row.endpoint == A2.number} == {own}


def test_what_was_kept_before_another_nat_came_stays(
    programs: Programs, request: pytest.FixtureRequest
) -> None:
    assert seen(programs, A1, p.udp(EPHEMERAL, 53)) == EPHEMERAL
    request.getfixturevalue("other_nat")
    assert seen(programs, A1, p.udp(EPHEMERAL, 54)) == EPHEMERAL
    assert seen(programs, A1, p.udp(EPHEMERAL + 1, 54)) != EPHEMERAL + 1


@EACH
def test_one_mapping_whatever_the_destination(programs: Programs, proto: str) -> None:
    """Also where the number had to be changed."""
    carried = PROTOCOLS[proto]
    others = seen(programs, A2, carried(EPHEMERAL))
    first = seen(programs, A1, carried(EPHEMERAL))
    assert first != others and first in (IDENTIFIERS if proto == "ping" else range(NAT_FIRST, NAT_LAST + 1))
    for to, dport in ((OUTSIDE, 54), (NEXT_HOP, 53), (FAR, 9)):
        assert seen(programs, A1, carried(EPHEMERAL, dport), to) == first
        assert seen(programs, A2, carried(EPHEMERAL, dport), to) == others
    whole(programs)


def test_one_mapping_whatever_the_destination_in_ipv6(programs: Programs) -> None:
    seen(programs, A2, p.udp(EPHEMERAL, 53), OUTSIDE6)
    first = seen(programs, A1, p.udp(EPHEMERAL, 53), OUTSIDE6)
    assert first != EPHEMERAL
    for to, dport in ((OUTSIDE6, 54), (NEXT_HOP6, 53)):
        assert seen(programs, A1, p.udp(EPHEMERAL, dport), to) == first
    answered(programs, A1, first, EPHEMERAL, OUTSIDE6)
    answered(programs, A2, EPHEMERAL, EPHEMERAL, OUTSIDE6)


def test_families_and_protocols_have_mappings_of_their_own(programs: Programs) -> None:
    assert seen(programs, A1, p.udp(SPORT, 53)) == SPORT
    assert seen(programs, A2, tcp(SPORT)) == SPORT
    assert seen(programs, A3, p.udp(SPORT, 53), OUTSIDE6) == SPORT


def test_who_asks_two_servers_is_told_one_address(programs: Programs) -> None:
    """What STUN (RFC 5780) and WebRTC find out: the port that one server sees serves for any other peer."""
    seen(programs, A3, p.udp(EPHEMERAL, 53))
    told = {seen(programs, A1, p.udp(EPHEMERAL, 53), to) for to in (OUTSIDE, NEXT_HOP)}
    assert len(told) == 1
    (external,) = told
    for peer in (OUTSIDE, NEXT_HOP):
        answered(programs, A1, external, EPHEMERAL, peer)


def test_a_peer_that_was_not_asked_is_not_let_in(programs: Programs) -> None:
    """Address- and port-dependent filtering: the mapping is no open door."""
    seen(programs, A1, p.udp(SPORT, 53))
    for frame in (
        outside_sends(HOST, p.udp(53, SPORT), src=FAR),
        outside_sends(HOST, p.udp(54, SPORT)),
    ):
        assert programs.run(None, frame).reasons == {"NOT_OURS": 1}


def test_another_address_of_the_host_has_ports_of_its_own(programs: Programs) -> None:
    """RFC 4787, REQ-2: which address it is the route says, and one route always says the same."""
    for member, address in ((A1, HOST), (A2, OTHER)):
        row = abi.external(addr=member.ip, endpoint=member.number, port=SPORT, seen=time.monotonic_ns())
        programs.maps["externals"][abi.external_key(address, SPORT, p.UDP)] = row
    assert seen(programs, A1, p.udp(SPORT, 53)) == SPORT
    assert seen(programs, A2, p.udp(SPORT, 53)) != SPORT
    assert {row.dst for row, conn in conns(programs).items() if not conn.flags & 1} == {HOST}


# ---- RFC 4787 REQ-3: no other container has the port ---------------------------------------------------------


@EACH
def test_two_containers_never_have_one_external_port(programs: Programs, proto: str) -> None:
    """Not even towards different destinations."""
    carried, used = PROTOCOLS[proto], set()
    servers: tuple[p.Address, ...] = (OUTSIDE, NEXT_HOP, FAR, OUTSIDE)
    for member, to in zip((A1, A2, A3, B1), servers, strict=True):
        used.add(seen(programs, member, carried(EPHEMERAL), to))
    assert len(used) == 4 and (EPHEMERAL in used or proto == "ping")


@pytest.mark.parametrize(
    ("own", "first", "last"), [(7, 1, 511), (511, 1, 511), (512, 600, 1023), (1023, 600, 1023)]
)
def test_a_port_below_1024_stays_there(programs: Programs, own: int, first: int, last: int) -> None:
    """As RFC 4787 recommends (REQ-3a), in the two parts that the kernel's NAT knows; some servers trust such ports."""
    for carried in (p.udp, tcp):
        seen(programs, A2, carried(own, 53))
        assert first <= seen(programs, A1, carried(own, 53)) <= last


def test_a_port_from_1024_on_stays_there(programs: Programs) -> None:
    seen(programs, A2, p.udp(1024, 53))
    assert NAT_FIRST <= seen(programs, A1, p.udp(1024, 53)) <= NAT_LAST


def test_port_0_is_nobodys_own(programs: Programs) -> None:
    for proto, carried in PROTOCOLS.items():
        chosen = IDENTIFIERS if proto == "ping" else range(NAT_FIRST, NAT_LAST + 1)
        assert seen(programs, A1, carried(0, 53)) in chosen


@pytest.mark.parametrize("own", [SPORT, EPHEMERAL])
def test_a_socket_of_the_host_keeps_its_port(programs: Programs, own: int) -> None:
    """Whether it was there first, or came while a container had the port: then only what is new gets another."""
    assert seen(programs, A1, p.udp(own, 53)) == own
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(HOST), own))
        assert seen(programs, A2, p.udp(own, 53)) != own
        assert seen(programs, A1, p.udp(own, 53)) == own
        other = seen(programs, A1, p.udp(own, 54))
        assert other != own
        assert seen(programs, A1, p.udp(own, 55)) == other


# ---- the time of a mapping ------------------------------------------------------------------------------------


def age_mappings(programs: Programs, seconds: int) -> None:
    """As if they had last been used so long before."""
    booted_for(seconds)
    externals = programs.maps["externals"]
    externals.update_many(
        {key: row._replace(seen=max(1, row.seen - seconds * 10**9)) for key, row in externals.read_all()}
    )


def forget_conns(programs: Programs) -> None:
    for name in ("pending", "conns"):
        programs.maps[name].delete_many(list(programs.table(name)))


def test_a_mapping_outlives_its_connections_by_two_minutes(programs: Programs) -> None:
    """RFC 4787, REQ-5."""
    seen(programs, A2, p.udp(SPORT, 53))
    first = seen(programs, A1, p.udp(SPORT, 53))
    forget_conns(programs)
    if time.monotonic_ns() > 130 * 10**9:  # the machine may have been started a minute ago
        age_mappings(programs, 110)
    assert seen(programs, A1, p.udp(SPORT, 54)) == first
    assert seen(programs, A3, p.udp(first, 53)) != first


def test_a_mapping_that_is_over_makes_room(programs: Programs) -> None:
    seen(programs, A2, p.udp(SPORT, 53))
    first = seen(programs, A1, p.udp(SPORT, 53))
    forget_conns(programs)
    externals = programs.maps["externals"]
    booted_for(121)
    over = time.monotonic_ns() - 121 * 10**9
    if time.monotonic_ns() - over < 120 * 10**9:
        pytest.skip("the machine was started less than two minutes ago")
    externals.update_many({key: row._replace(seen=over) for key, row in externals.read_all()})
    assert seen(programs, A3, p.udp(first, 53)) == first
    assert seen(programs, A1, p.udp(SPORT, 54)) == SPORT
    assert seen(programs, A2, p.udp(SPORT, 54)) not in (SPORT, first)


def test_the_gc_refreshes_the_mappings_of_what_lives(make_programs: MakePrograms) -> None:
    programs = make_programs()
    for member in (A1, A2):
        external = seen(programs, member, p.udp(SPORT, 53))
        programs.run(None, outside_sends(HOST, p.udp(53, external)))
    seen(programs, A3, p.udp(SPORT, 53))  # that nobody answers
    externals = programs.maps["externals"]
    externals.update_many({key: row._replace(seen=1) for key, row in externals.read_all()})
    programs.start_gc()

    def refreshed() -> set[int]:
        return {row.endpoint for row in dict(externals.read_all()).values() if row.seen > 1}

    wait_until(lambda: refreshed() == {A1.number, A2.number})


# ---- published ports ------------------------------------------------------------------------------------------


def publish(programs: Programs, member: Member, inner: int, host_port: int, at: str = "0.0.0.0") -> None:
    """As -p at:host_port:inner."""
    address = ip_address(at)
    programs.maps["reserved"][abi.reserved_key(host_port, p.UDP)] = abi.reserved(1)
    programs.maps["ports"][abi.port_key(address, host_port, p.UDP)] = abi.port(
        network=member.net.number,
        endpoint=member.number,
        addr=member.ip if address.version == 4 else member.ip6,
        port=inner,
    )
    key = abi.origin_key(address, member.number, inner, p.UDP)
    programs.maps["origins"][key] = abi.origin(host_port)


@pytest.fixture
def publishing(programs: Programs) -> Iterator[Programs]:
    """10001 of the host's leads to a1's 9000, in both families."""
    publish(programs, A1, 9000, 10001)
    publish(programs, A1, 9000, 10001, "::")
    yield programs
    for name in ("ports", "reserved"):
        rows = [key for key in programs.maps[name] if key.port == 10001]
        programs.maps[name].delete_many(rows)
    programs.maps["origins"].delete_many(list(programs.maps["origins"]))


@pytest.mark.parametrize("to", [OUTSIDE, OUTSIDE6], ids=["IPv4", "IPv6"])
def test_who_publishes_its_port_is_seen_at_the_published_one(publishing: Programs, to: p.Address) -> None:
    """And what is sent back there is the same connection, no second one."""
    assert seen(publishing, A1, p.udp(9000, 53), to) == 10001
    assert seen(publishing, A1, p.udp(9000, 54), to) == 10001
    before = len(conns(publishing))
    answered(publishing, A1, 10001, 9000, to)
    assert len(conns(publishing)) == before == 4
    whole(publishing)


def test_a_published_port_is_no_other_containers_source(publishing: Programs) -> None:
    assert seen(publishing, A2, p.udp(10001, 53)) != 10001
    assert seen(publishing, A2, p.udp(9000, 53)) == 9000
    assert seen(publishing, A1, tcp(9000)) == 9000  # published for UDP only


def test_who_was_reached_at_its_published_port_answers_from_there(publishing: Programs) -> None:
    """And goes on from there to the same peer, however it begins."""
    publishing.run(None, outside_sends(HOST, p.udp(53, 10001)))
    assert seen(publishing, A1, p.udp(9000, 53)) == 10001
    assert len(conns(publishing)) == 2


def test_a_port_published_at_one_address_is_the_source_at_that_address_only(programs: Programs) -> None:
    publish(programs, A1, 9000, 10001, str(OTHER))
    try:
        assert seen(programs, A1, p.udp(9000, 53)) == 9000
        publish(programs, A1, 9001, 10001, str(HOST))
        assert seen(programs, A1, p.udp(9001, 53)) == 10001
    finally:
        for name in ("ports", "reserved"):
            programs.maps[name].delete_many([k for k in programs.maps[name] if k.port == 10001])
        programs.maps["origins"].delete_many(list(programs.maps["origins"]))


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_a_port_of_who_is_behind_a_container_is_not_its_own(publishing: Programs, six: bool) -> None:
    """a1 forwards for another, whose 9000 nobody publishes: the outside would take it for a1's server."""
    behind, outside, kind = ("fd99::5", OUTSIDE6, p.ETH_IPV6) if six else ("10.99.0.5", OUTSIDE, p.ETH_IPV4)
    packet, hop, at = (p.ipv6, A1.ip6, 54) if six else (p.ipv4, A1.ip, 34)
    key = abi.device_key(publishing.ifindex(A1))
    before = publishing.maps["devices"][key]
    publishing.maps["devices"][key] = before._replace(forwarding=1)
    family = "-6" if six else "-4"
    where = f"{behind}/{128 if six else 32}"
    subprocess.run(["ip", family, "route", "add", where, "via", str(hop), "dev", "dp0"], check=True)
    try:
        frame = p.ethernet(A1.net.mac, A1.mac, kind, packet(behind, outside, p.udp(9000, 53)))
        got = publishing.run(A1, frame)
        assert got.reasons == {"TO_OUTSIDE": 1}
        assert int.from_bytes(got.packet[at : at + 2], "big") == 9000
        assert seen(publishing, A1, p.udp(9000, 53), outside) == 10001
    finally:
        subprocess.run(["ip", family, "route", "del", where], check=True)
        publishing.maps["devices"][key] = before


# ---- few ports left -------------------------------------------------------------------------------------------


def occupy(programs: Programs, ports: set[int], endpoint: int = B1.number) -> None:
    """Another container's ports are mapped to these; one that is there, as its row in `quotas` says."""
    programs.maps["quotas"].setdefault(abi.quota_key(endpoint), abi.quota())
    programs.maps["externals"].update_many(
        {
            abi.external_key(HOST, port, p.UDP): abi.external(
                addr=B1.ip, endpoint=endpoint, port=port, seen=time.monotonic_ns()
            )
            for port in ports
        }
    )


@pytest.mark.parametrize("shape", ["at random", "in a row", "each but the twentieth"])
def test_at_95_percent_no_opening_is_refused_or_shares_a_port(
    make_programs: MakePrograms, shape: str
) -> None:
    programs = make_programs(nat_ports=(20000, 29999), sizes={"externals": 65536, "pending": 65536})
    everything = range(20000, 30000)
    chooser = random.Random(7)
    taken = {
        "at random": set(chooser.sample(everything, 9500)),
        "in a row": set(everything[250:9750]),
        "each but the twentieth": {port for port in everything if port % 20},
    }[shape]
    occupy(programs, {*taken, 7, *range(1025, 1125)})
    for i in range(100):
        external = seen(programs, A1, p.udp(1025 + i, 53))
        assert external in everything and external not in taken
    assert len({row.port for row in programs.table("mappings").values()}) == 100


def test_with_no_port_left_one_is_shared_towards_other_destinations(make_programs: MakePrograms) -> None:
    """Rather than a refusal; both conversations go on by their tuples."""
    programs = make_programs(nat_ports=(20000, 20003))
    ports = {20000, 20001, 20002, 20003}
    occupied = {seen(programs, B1, p.udp(port, 53)) for port in ports}
    assert occupied == ports
    occupy(programs, {EPHEMERAL, 1025})
    # To the same server each is taken.
    programs.expect(A1, A1.sends(OUTSIDE, p.udp(EPHEMERAL, 53)), SHOT, Reason.DROP_NAT_PORTS)
    external = seen(programs, A1, p.udp(EPHEMERAL, 54))
    assert external in ports
    programs.expect(
        None,
        outside_sends(HOST, p.udp(54, external)),
        REDIRECT,
        Reason.DELIVERED,
        A1.gets(OUTSIDE, p.udp(54, EPHEMERAL), ttl=63),
    )
    answered(programs, B1, external, external)
    whole(programs)


def test_below_1024_too_one_is_shared_at_last(make_programs: MakePrograms) -> None:
    programs = make_programs()
    occupy(programs, set(range(1, 512)))
    assert 1 <= seen(programs, A1, p.udp(7, 53)) <= 511


# ---- two CPUs at once -----------------------------------------------------------------------------------------

ROUNDS = 3000


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs the sender's hook on two CPUs at once, on the same packet, for ROUNDS source ports from SPORT on."""
    if (os.cpu_count() or 1) < 2 or not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("needs two CPUs")
    program = tmp_path_factory.mktemp("race") / "race"
    source = Path(__file__).with_name("race.c")
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(program), str(source)]
    subprocess.run(command, check=True)

    def run(programs: Programs, sender: Member | None, frame: bytes) -> None:
        fd = programs.fds["from_uplink" if sender is None else "from_container"]
        os.set_inheritable(fd, True)
        words = (fd, programs.ifindex(sender), ROUNDS, frame.hex(), 34, SPORT)
        subprocess.run([str(program), *map(str, words)], check=True, close_fds=False)

    return run


@pytest.fixture
def roomy(make_programs: MakePrograms) -> Programs:
    sizes = {"pending": 65536, "externals": 65536, "mappings": 65536}
    programs = make_programs(nat_ports=(1024, 32767), sizes=sizes)
    programs.maps["quotas"][abi.quota_key(A1.number)] = abi.quota(since=time.monotonic_ns())
    return programs


def one_each(programs: Programs, whose: p.Address) -> None:
    """Each flow has one entry a direction, and nothing is left of another."""
    table = programs.table("pending")
    mine = {key for key in table if key.src == whose and SPORT <= key.sport < SPORT + ROUNDS}
    assert len(mine) == ROUNDS
    half = [
        key for key, conn in table.items() if table.get(conn.other) is None or table[conn.other].other != key
    ]
    assert not half
    assert len([key for key, conn in table.items() if whose in (key.src, conn.other.src)]) == 2 * ROUNDS


@pytest.mark.parametrize("sport", ["kept", "changed"])
def test_two_cpus_that_open_one_flow_make_one_mapping(
    roomy: Programs, race: Callable[..., None], sport: str
) -> None:
    if sport == "changed":
        occupy(roomy, set(range(SPORT, SPORT + ROUNDS)))
    race(roomy, A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    one_each(roomy, A1.ip)
    assert roomy.maps["quotas"][abi.quota_key(A1.number)].openings == ROUNDS
    owned = [row for row in roomy.table("externals").values() if row.endpoint == A1.number]
    assert len(owned) == ROUNDS


def test_two_cpus_that_open_one_flow_without_masquerading(roomy: Programs, race: Callable[..., None]) -> None:
    race(roomy, D1, D1.sends(OUTSIDE, p.udp(SPORT, 53)))
    one_each(roomy, D1.ip)


def test_two_cpus_that_open_one_flow_to_a_published_port(roomy: Programs, race: Callable[..., None]) -> None:
    """The client's own port is taken at the server, by way of another address of the host's: another is chosen."""
    for i in range(ROUNDS):
        libbpf.test_run(
            roomy.fds["from_uplink"],
            outside_sends(OTHER, p.udp(SPORT + i, 8081)),
            ifindex=roomy.ifindex(None),
        )
    race(roomy, None, outside_sends(HOST, p.udp(SPORT, 8081)))
    table = roomy.table("pending")
    opened = [key for key in table if key.dst == HOST and key.dport == 8081]
    assert len(opened) == ROUNDS
    assert len(table) == 4 * ROUNDS
    assert all(table[conn.other].other == key for key, conn in table.items())


def test_two_cpus_that_open_two_flows_of_one_port_make_one_mapping(
    roomy: Programs, race: Callable[..., None]
) -> None:
    """Flow after flow, each once to either destination."""
    occupy(roomy, set(range(SPORT, SPORT + ROUNDS)))
    race(roomy, A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    race(roomy, A1, A1.sends(NEXT_HOP, p.udp(SPORT, 53)))
    external: dict[int, set[int]] = {}
    for key, conn in roomy.table("pending").items():
        if key.src == A1.ip:
            external.setdefault(key.sport, set()).add(conn.other.dport)
    assert len(external) == ROUNDS
    assert {len(ports) for ports in external.values()} == {1}
    assert len(set(itertools.chain.from_iterable(external.values()))) == ROUNDS
