# SPDX-License-Identifier: Apache-2.0
"""Who may connect to a published port, and how much one container may have of the connection tables."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    B2,
    D1,
    HOST,
    HOST6,
    NET1,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    Member,
    Programs,
    Reason,
    outside_sends,
    wait_until,
)

SPORT = 20100
SYN_ACK = p.SYN | p.ACK


def rule(prefix: str, filtered: int = 1) -> Any:
    """The key of a source rule."""
    network = ip_network(prefix)
    length = 32 + network.prefixlen + (96 if network.version == 4 else 0)
    address: IPv4Address | IPv6Address | None = network.network_address
    return abi.acl_key(length, filtered, None if address == IPv6Address(0) else address)


class Rules:
    """Of published port 8081, both protocols and families; filter 1."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.kept = dict(programs.maps["ports"].items())

    def set(self, *, allow: tuple[str, ...] = (), deny: tuple[str, ...] = (), filtered: int = 1) -> None:
        """As `-p 8081:80,allow=…,deny=…` would."""
        self.programs.maps["acls"].delete_many(list(self.programs.maps["acls"]))
        for prefixes, value in ((allow, 1), (deny, 0)):
            for prefix in prefixes:
                self.programs.maps["acls"][rule(prefix, filtered)] = abi.acl(value)
        for proto in (p.TCP, p.UDP):
            for address in ("0.0.0.0", "::"):
                self.programs.publish(address, 8081, proto, filtered=filtered, refuse=bool(allow))

    def ask(self, src: p.Address, proto: int = p.TCP) -> bool:
        """Does an opening from this source get in?"""
        carried = p.tcp(9, 8081, p.SYN) if proto == p.TCP else p.udp(9, 8081)
        frame = outside_sends(HOST if ip_address(src).version == 4 else HOST6, carried, src=src)
        got = self.programs.run(None, frame)
        early = self.programs.early(frame)
        self.programs.forget()
        if got.reasons == {"DROP_DENIED": 1}:
            assert (got.verdict, got.packet) == (SHOT, frame)
            assert early.reasons == {"DROP_DENIED": 1}, "XDP and tc must be of one opinion"
            return False
        assert (got.verdict, got.reasons, early.reasons) == (REDIRECT, {"DELIVERED": 1}, {})
        return True


@pytest.fixture
def rules(programs: Programs) -> Iterator[Rules]:
    made = Rules(programs)
    yield made
    programs.maps["ports"].update_many(made.kept)
    programs.maps["acls"].delete_many(list(programs.maps["acls"]))


def test_entries_are_found_by_one_of_their_fields(programs: Programs) -> None:
    everything = dict(programs.maps["devices"].read_all())
    for kind in {value.kind for value in everything.values()} | {99}:
        wanted = {key: value for key, value in everything.items() if value.kind == kind}
        assert programs.maps["devices"].having("kind", kind) == wanted
    assert len({value.kind for value in everything.values()}) > 1


# allow=, deny=, and what then holds for sources
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, bool]]] = {
    "nothing is said": ((), (), {"203.0.113.5": True, "2001:db8:5::5": True}),
    "allow one network": (
        ("203.0.113.0/24",),
        (),
        {
            "203.0.113.0": True,
            "203.0.113.255": True,
            "203.0.112.255": False,
            "203.0.114.0": False,
            "2001:db8:5::5": False,
        },
    ),
    "deny one network": (
        (),
        ("203.0.113.0/24",),
        {
            "203.0.113.0": False,
            "203.0.113.255": False,
            "203.0.112.255": True,
            "203.0.114.0": True,
            "2001:db8:5::5": True,
        },
    ),
    "allow one address": (
        ("203.0.113.5/32",),
        (),
        {"203.0.113.5": True, "203.0.113.4": False, "203.0.113.6": False, "203.0.113.133": False},
    ),
    "allow a network, but not a part of it, but an address of that": (
        ("203.0.0.0/16", "203.0.113.5/32"),
        ("203.0.113.0/24",),
        {"203.0.1.1": True, "203.0.113.4": False, "203.0.113.5": True, "203.1.0.1": False},
    ),
    "deny a network, but not a part of it": (
        ("203.0.113.64/26",),
        ("203.0.113.0/24",),
        {
            "203.0.113.63": False,
            "203.0.113.64": True,
            "203.0.113.127": True,
            "203.0.113.128": False,
            "198.51.100.9": False,
        },
    ),
    "no prefix at a byte's end": (
        ("203.0.113.40/29", "100.64.0.0/10"),
        (),
        {
            "203.0.113.39": False,
            "203.0.113.40": True,
            "203.0.113.47": True,
            "203.0.113.48": False,
            "100.127.1.1": True,
            "100.128.1.1": False,
        },
    ),
    "all of IPv4, none of IPv6": (
        ("0.0.0.0/0",),
        (),
        {"203.0.113.5": True, "1.1.1.1": True, "2001:db8:5::5": False},
    ),
    "deny all of IPv4": ((), ("0.0.0.0/0",), {"203.0.113.5": False, "2001:db8:5::5": True}),
    "IPv6: allow one network": (
        ("2001:db8:5::/48",),
        (),
        {
            "2001:db8:5::5": True,
            "2001:db8:5:ffff::1": True,
            "2001:db8:4:ffff::1": False,
            "2001:db8:6::9": False,
            "203.0.113.5": False,
        },
    ),
    "IPv6: allow a network, but not a part of it, but an address of that": (
        ("2001:db8::/32", "2001:db8:5::5/128"),
        ("2001:db8:5::/48",),
        {"2001:db8:9::1": True, "2001:db8:5::6": False, "2001:db8:5::5": True, "2001:db9::1": False},
    ),
    "IPv6: no prefix at a byte's end": (
        ("2001:db8:5:8000::/49", "2001:db8:5::10/126"),
        (),
        {
            "2001:db8:5:8000::1": True,
            "2001:db8:5:7fff::1": False,
            "2001:db8:5::10": True,
            "2001:db8:5::13": True,
            "2001:db8:5::14": False,
        },
    ),
    "both families": (
        ("203.0.113.0/24", "2001:db8:5::/48"),
        (),
        {"203.0.113.5": True, "2001:db8:5::5": True, "203.0.112.5": False, "2001:db8:4::5": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_longest_prefix_decides(rules: Rules, name: str) -> None:
    allow, deny, sources = CASES[name]
    rules.set(allow=allow, deny=deny)
    for proto in (p.TCP, p.UDP):
        assert {src: rules.ask(src, proto) for src in sources} == sources


def test_rules_change_at_run_time(rules: Rules) -> None:
    rules.set(deny=("203.0.113.0/24",))
    assert not rules.ask(OUTSIDE)
    rules.set(deny=("203.0.113.0/24",), allow=("203.0.113.5/32",))
    assert rules.ask(OUTSIDE)
    rules.set(allow=("10.0.0.0/8",))
    assert not rules.ask(OUTSIDE)
    rules.set()
    assert rules.ask(OUTSIDE)


def test_rules_of_one_filter_are_not_anothers(rules: Rules) -> None:
    rules.set(allow=("10.0.0.0/8",), filtered=1)
    rules.programs.publish(str(HOST), 8082, p.TCP, filtered=2)
    rules.programs.maps["acls"][rule("203.0.113.0/25", 3)] = abi.acl(0)
    rules.programs.maps["acls"][rule("203.0.113.0/24", 2)] = abi.acl(1)
    got = rules.programs.run(None, outside_sends(HOST, p.tcp(9, 8082, p.SYN)))
    assert got.reasons == {"DELIVERED": 1}
    assert not rules.ask(OUTSIDE)


def test_a_denied_source_opens_nothing_and_uses_nothing(rules: Rules) -> None:
    rules.set(deny=("203.0.113.0/24",))
    rules.programs.run(None, outside_sends(HOST, p.udp(9, 8081)))
    rules.programs.run(None, outside_sends(HOST, p.tcp(9, 8081, p.ACK)))
    assert not rules.programs.table("pending")
    assert list(rules.programs.maps["quotas"]) == []


def test_an_address_that_is_not_the_hosts_has_no_rules(rules: Rules) -> None:
    rules.set(deny=("0.0.0.0/0",))
    rules.programs.expect(None, outside_sends("203.0.113.99", p.tcp(9, 8081, p.SYN)), UNSPEC, Reason.NOT_OURS)


def test_rules_hold_for_containers_too(rules: Rules) -> None:
    """Of another network by their own address; of the same one as well, though the server would see the gateway."""
    rules.set(deny=(f"{B1.ip}/32", f"{A1.ip}/32", f"{A1.ip6}/128"))
    programs = rules.programs
    programs.expect(B1, B1.sends(HOST, p.udp(9, 8081)), SHOT, Reason.DROP_DENIED)
    programs.expect(A1, A1.sends(HOST, p.udp(SPORT, 8081)), SHOT, Reason.DROP_DENIED)
    programs.expect(A1, A1.sends(HOST6, p.udp(SPORT, 8081)), SHOT, Reason.DROP_DENIED)
    out = A2.gets(B2.ip, p.udp(9, 53), ttl=63)
    programs.expect(B2, B2.sends(HOST, p.udp(9, 8081)), REDIRECT, Reason.DELIVERED, out)
    assert programs.run(A3, A3.sends(HOST, p.udp(SPORT, 8081))).reasons == {"DELIVERED": 1}


def test_a_rule_is_about_openings(rules: Rules) -> None:
    """What is open goes on until somebody ends it (the control plane does, when it changes a rule)."""
    rules.set()
    programs = rules.programs
    programs.run(None, outside_sends(HOST, p.tcp(9, 8081, p.SYN)))
    rules.set(deny=("203.0.113.0/24",))
    assert programs.run(A2, A2.sends(OUTSIDE, p.tcp(80, 9, SYN_ACK))).reasons == {"TO_OUTSIDE": 1}
    assert programs.run(None, outside_sends(HOST, p.tcp(9, 8081, p.ACK))).reasons == {"DELIVERED": 1}
    programs.expect(None, outside_sends(OTHER, p.tcp(9, 8081, p.SYN)), SHOT, Reason.DROP_DENIED)


# ---- what one container may have ----------------------------------------------------------------------------


def used(programs: Programs, member: Member) -> tuple[int, int]:
    """Connections and unanswered openings that count for it."""
    usage = programs.maps["quotas"][abi.quota_key(member.number)]
    return usage.conns, usage.openings


def asks(programs: Programs, member: Member, sport: int, dst: p.Address = OUTSIDE) -> str:
    (reason,) = programs.run(member, member.sends(dst, p.udp(sport, 53))).reasons
    return reason


def is_answered(programs: Programs, sport: int) -> None:
    assert "DELIVERED" in programs.run(None, outside_sends(HOST, p.udp(53, sport))).reasons


def with_quotas(programs: Programs) -> Programs:
    """The control plane makes the rows with the endpoints."""
    for member in (A1, A2, A3, B1, B2, D1):
        programs.maps["quotas"][abi.quota_key(member.number)] = abi.quota()
    return programs


def test_a_container_that_asks_and_is_not_answered(make_programs: MakePrograms) -> None:
    """Its next opening is refused, packets of what it has open are not, and other containers open as they like."""
    programs = with_quotas(make_programs(max_openings=3))
    for i in range(3):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
    assert used(programs, A1) == (0, 3)
    frame = A1.sends(OUTSIDE, p.udp(SPORT + 9, 53))
    for _ in range(3):
        programs.expect(A1, frame, SHOT, Reason.DROP_LIMIT)
    for carried in (p.tcp(SPORT, 80, p.SYN), p.echo(p.ECHO, SPORT)):
        programs.expect(A1, A1.sends(OUTSIDE, carried), SHOT, Reason.DROP_LIMIT)
    programs.expect(A1, A1.sends(OUTSIDE6, p.udp(SPORT, 53)), SHOT, Reason.DROP_LIMIT)
    programs.expect(A1, A1.sends(HOST, p.udp(SPORT, 8081)), SHOT, Reason.DROP_LIMIT)
    for i in range(3):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
    assert used(programs, A1) == (0, 3)
    for member in (A2, B1, D1):
        assert asks(programs, member, SPORT + 20 + member.number) == "TO_OUTSIDE"
    assert (
        A1.sends(A2.ip, p.udp(1, 2), to=A2.mac)
        == programs.run(A1, A1.sends(A2.ip, p.udp(1, 2), to=A2.mac)).packet
    )
    assert programs.run(A1, A1.sends(NET1.gateway, p.udp(1, 22))).reasons == {"TO_HOST": 1}


def test_an_answer_makes_room(make_programs: MakePrograms) -> None:
    programs = with_quotas(make_programs(max_openings=2))
    for i in range(20):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
        is_answered(programs, SPORT + i)
    assert used(programs, A1) == (20, 0)


def test_unanswered_openings_are_forgotten_by_halves(make_programs: MakePrograms) -> None:
    programs = with_quotas(make_programs(max_openings=4))
    for i in range(4):
        asks(programs, A1, SPORT + i)
    assert asks(programs, A1, SPORT + 9) == "DROP_LIMIT"
    key = abi.quota_key(A1.number)
    usage = programs.maps["quotas"][key]
    programs.maps["quotas"][key] = usage._replace(since=usage.since - 61 * 10**9)
    for i in range(2):
        assert asks(programs, A1, SPORT + 10 + i) == "TO_OUTSIDE"
    assert asks(programs, A1, SPORT + 12) == "DROP_LIMIT"


def test_an_account_says_whether_there_ever_was_a_connection(programs: Programs) -> None:
    """Only then the tables are looked through when the endpoint goes."""
    members = (A1, A2, A3, B1)
    for member in members:
        programs.maps["quotas"][abi.quota_key(member.number)] = abi.quota(since=1)

    def begun() -> set[str]:
        quotas = {member.name: programs.maps["quotas"][abi.quota_key(member.number)] for member in members}
        return {name for name, usage in quotas.items() if usage.since > 1}

    programs.run(A3, A3.sends(A1.ip, p.udp(1, 2), to=A1.mac))
    assert begun() == set()
    programs.run(None, outside_sends(HOST, p.udp(SPORT, 8081)))
    assert begun() == {A2.name}
    asks(programs, A1, SPORT)
    assert begun() == {A1.name, A2.name}
    programs.maps["quotas"][abi.quota_key(A2.number)] = abi.quota(since=1)
    programs.run(B1, B1.sends(HOST, p.udp(SPORT, 8081)))
    assert begun() == {A1.name, A2.name, B1.name}


def test_a_container_with_its_share_of_connections(make_programs: MakePrograms) -> None:
    """Opens no more; what it has works; those of others are confirmed as ever."""
    programs = with_quotas(make_programs(max_conns=3))
    for i in range(3):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
        is_answered(programs, SPORT + i)
    assert used(programs, A1) == (3, 0)
    programs.expect(A1, A1.sends(OUTSIDE, p.udp(SPORT + 3, 53)), SHOT, Reason.DROP_LIMIT)
    programs.expect(A1, A1.sends(HOST, p.udp(SPORT + 3, 8081)), SHOT, Reason.DROP_LIMIT)
    assert asks(programs, A1, SPORT) == "TO_OUTSIDE"
    is_answered(programs, SPORT)
    for i in range(5):
        assert asks(programs, B1, SPORT + 10 + i) == ("TO_OUTSIDE" if i < 3 else "DROP_LIMIT")
        if i < 3:
            is_answered(programs, SPORT + 10 + i)
    assert (used(programs, A1), used(programs, B1)) == ((3, 0), (3, 0))


def test_openings_under_way_when_the_share_is_full(make_programs: MakePrograms) -> None:
    """They work, as in a full table, and count when there is room again."""
    programs = with_quotas(make_programs(max_conns=1))
    for i in range(2):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
    is_answered(programs, SPORT)
    for _ in range(2):
        got = programs.run(None, outside_sends(HOST, p.udp(53, SPORT + 1)))
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1, "UNCONFIRMED": 1})
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (2, 2)
    assert used(programs, A1) == (1, 1)


def test_a_server_with_its_share_of_connections(make_programs: MakePrograms) -> None:
    """Clients are not refused; more than its share stays where a flood can evict it. Its own openings do not
    suffer from clients that are not answered."""
    programs = with_quotas(make_programs(max_conns=2, max_openings=2))
    for i in range(5):
        assert programs.run(None, outside_sends(HOST, p.udp(9 + i, 8081))).reasons == {"DELIVERED": 1}
    assert used(programs, A2) == (0, 0)
    for i in range(3):
        got = programs.run(A2, A2.sends(OUTSIDE, p.udp(53, 9 + i)))
        assert got.verdict == REDIRECT
        assert got.reasons == ({"TO_OUTSIDE": 1} if i < 2 else {"TO_OUTSIDE": 1, "UNCONFIRMED": 1})
    assert used(programs, A2) == (2, 0)
    assert len(programs.table("conns")) == 4
    assert programs.maps["arrivals"][abi.arrival_key(A2.number)].conns == 2


def test_what_arrives_does_not_use_up_what_a_container_may_open(make_programs: MakePrograms) -> None:
    """Nor the other way round: each has the whole limit."""
    programs = with_quotas(make_programs(max_conns=2))

    def served(sport: int) -> set[str]:
        programs.run(None, outside_sends(HOST, p.udp(sport, 8081)))
        return set(programs.run(A2, A2.sends(OUTSIDE, p.udp(53, sport))).reasons)

    def opened(sport: int) -> str:
        reason = asks(programs, A2, sport)
        if reason == "TO_OUTSIDE":
            programs.run(None, outside_sends(HOST, p.udp(53, sport)))
        return reason

    assert [served(9 + i) for i in range(2)] == [{"TO_OUTSIDE"}] * 2
    assert served(11) == {"TO_OUTSIDE", "UNCONFIRMED"}
    assert [opened(SPORT + i) for i in range(3)] == ["TO_OUTSIDE", "TO_OUTSIDE", "DROP_LIMIT"]
    assert used(programs, A2) == (4, 0)
    assert served(11) == {"TO_OUTSIDE", "UNCONFIRMED"}


def test_arrivals_of_before_the_programs_counted_them_end_without_harm(make_programs: MakePrograms) -> None:
    """After an upgrade: they are in the sum only."""
    programs = with_quotas(make_programs(timeout_udp=1, max_conns=3))
    for i in range(2):
        programs.run(None, outside_sends(HOST, p.udp(9 + i, 8081)))
        programs.run(A2, A2.sends(OUTSIDE, p.udp(53, 9 + i)))
    key = abi.arrival_key(A2.number)
    programs.maps["arrivals"].delete_many([key])
    programs.run(None, outside_sends(HOST, p.udp(20, 8081)))
    programs.run(A2, A2.sends(OUTSIDE, p.udp(53, 20)))
    assert (used(programs, A2), programs.maps["arrivals"][key].conns) == ((3, 0), 1)
    programs.start_gc()
    wait_until(lambda: not programs.table("conns"))
    assert (used(programs, A2), programs.maps["arrivals"][key].conns) == ((0, 0), 0)


def test_clients_that_connect_do_not_pay_for_the_servers_openings(make_programs: MakePrograms) -> None:
    """Else a server with many clients could open without limit."""
    programs = with_quotas(make_programs(max_openings=2))
    for i in range(2):
        assert asks(programs, A2, SPORT + i) == "TO_OUTSIDE"
    for i in range(4):
        programs.run(None, outside_sends(HOST, p.udp(9 + i, 8081)))
        programs.run(A2, A2.sends(OUTSIDE, p.udp(53, 9 + i)))
    assert used(programs, A2) == (4, 2)
    assert asks(programs, A2, SPORT + 5) == "DROP_LIMIT"


def test_between_containers_it_counts_for_the_client(make_programs: MakePrograms) -> None:
    programs = with_quotas(make_programs(max_conns=10))
    programs.run(B1, B1.sends(HOST, p.udp(9, 8081)))
    assert (used(programs, B1), used(programs, A2)) == ((0, 1), (0, 0))
    programs.run(A2, A2.sends(B1.ip, p.udp(53, 9)))
    assert (used(programs, B1), used(programs, A2)) == ((1, 0), (0, 0))
    programs.run(A1, A1.sends(HOST6, p.udp(SPORT, 8081)))
    programs.run(A2, A2.sends(NET1.gateway6, p.udp(53, SPORT)))
    assert (used(programs, A1), used(programs, A2)) == ((1, 0), (0, 0))


def test_tcp_counts_when_it_is_established(make_programs: MakePrograms) -> None:
    programs = with_quotas(make_programs(max_conns=10))
    for sender, packet, wanted in (
        (A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.SYN)), (0, 1)),
        (None, outside_sends(HOST, p.tcp(80, SPORT, SYN_ACK)), (0, 1)),
        (A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.ACK)), (1, 0)),
        (None, outside_sends(HOST, p.tcp(80, SPORT, p.ACK, b"x")), (1, 0)),
        (A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.FIN | p.ACK)), (1, 0)),
        (None, outside_sends(HOST, p.tcp(80, SPORT, p.FIN | p.ACK)), (1, 0)),
        (A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.SYN)), (1, 0)),  # the same entry again
    ):
        programs.run(sender, packet)
        assert used(programs, A1) == wanted


def test_a_leftover_of_an_earlier_holder_is_given_back(programs: Programs) -> None:
    """The address is another endpoint's now: what it finds of the earlier one's ends, and counts no more."""
    with_quotas(programs)
    assert asks(programs, A1, SPORT) == "TO_OUTSIDE"
    is_answered(programs, SPORT)
    assert used(programs, A1) == (1, 0)
    key = abi.device_key(programs.ifindex(A1))
    device = programs.maps["devices"][key]
    programs.maps["devices"][key] = device._replace(endpoint=99)
    try:
        assert asks(programs, A1, SPORT) == "TO_OUTSIDE"
    finally:
        programs.maps["devices"][key] = device
    assert used(programs, A1) == (0, 0)
    assert {conn.from_endpoint for conn in programs.table("pending").values()} == {0, 99}
    assert not programs.table("conns")


def test_without_limits_nobody_is_refused(programs: Programs) -> None:
    """Each is counted all the same, for `ct stats`."""
    with_quotas(programs)
    for i in range(100):
        assert asks(programs, A1, SPORT + i) == "TO_OUTSIDE"
        if i % 2:
            is_answered(programs, SPORT + i)
    assert used(programs, A1) == (50, 50)
