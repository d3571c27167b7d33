# SPDX-License-Identifier: Apache-2.0
"""Policies in the packet programs: who may open what, what is answered, who is told, and what counts after a change."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from datapath.dataplane.policy_rows import TABLES, content
from datapath.errors import ConfigError
from datapath.kernel import abi
from datapath.model.policies import Action, Direction
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.rows import Outcome, Rows, RuleSet, SetKey
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    B2,
    D1,
    HOST,
    HOST6,
    LO,
    NET1,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    Member,
    Programs,
    Reason,
    host_says,
    host_sends,
    outside_sends,
)
from tests.bpf.policies import WORLD, policies_of, put

SYN, ACK, FIN, RST = p.SYN, p.ACK, p.FIN, p.RST
CLIENT = 40000

# a2 lets in a1 at 5432, and nobody else.
DB = "policies: {db: {for: a2, in: {allow: ['a1:5432']}}}"
# a1 may go to a2 at port 53 alone.
NARROW = "policies: {narrow: {for: a1, out: {allow: ['a2:53/udp']}}}"


@pytest.fixture(autouse=True)
def none_are_left(programs: Programs) -> Iterator[None]:
    yield
    policies_of(programs).clear()


def address(member: Member, version: int) -> Any:
    return member.ip if version == 4 else member.ip6


def syn(sport: int = CLIENT, dport: int = 5432, flags: int = SYN) -> p.Transport:
    return p.tcp(sport, dport, flags)


def sends(
    programs: Programs, member: Member, to: Member, carried: p.Transport, version: int = 4, **header: Any
) -> Any:
    """What becomes of it: the reasons that were counted."""
    return programs.run(member, member.sends(address(to, version), carried, to=to.mac, **header)).reasons


def refusal(programs: Programs, member: Member, frame: bytes, reason: Any, by: Any = None) -> None:
    """It is dropped, and its sender told by its gateway."""
    version = 4 if p.ethertype(frame) == p.ETH_IPV4 else 6
    gateway = by or (member.net.gateway if version == 4 else member.net.gateway6)
    programs.expect(member, frame, REDIRECT, reason, p.own_error(frame, gateway, prohibited=True))


BOTH = pytest.mark.parametrize("version", [4, 6])


@BOTH
def test_who_is_not_let_in_is_told_so_and_who_is_goes_on(programs: Programs, version: int) -> None:
    known = put(programs, DB)
    db = address(A2, version)
    refusal(programs, A3, A3.sends(db, syn(), to=A2.mac), Reason.DROP_IN)
    refusal(programs, A1, A1.sends(db, syn(dport=5433), to=A2.mac), Reason.DROP_IN)
    refusal(programs, A3, A3.sends(db, p.udp(CLIENT, 5432), to=A2.mac), Reason.DROP_IN)
    assert known.hits() == {"db/0": (0, 3)}
    assert sends(programs, A1, A2, syn(), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, syn(5432, CLIENT, SYN | ACK), version) == {"DELIVERED": 1}
    assert sends(programs, A1, A2, syn(flags=ACK), version) == {"DELIVERED": 1}
    assert known.hits() == {"db/0": (0, 3), "db/1": (1, 0)}
    assert sends(programs, A2, A3, syn(5432, 80), version) == {"DELIVERED": 1}, "its `out` is open"


@BOTH
def test_who_is_not_let_out_is_told_so_and_who_is_gets_answers(programs: Programs, version: int) -> None:
    known = put(programs, NARROW)
    resolver = address(A2, version)
    for carried in (syn(dport=53), p.udp(CLIENT, 54)):
        refusal(programs, A1, A1.sends(resolver, carried, to=A2.mac), Reason.DROP_OUT)
    assert sends(programs, A1, A2, p.udp(CLIENT, 53), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, p.udp(53, CLIENT), version) == {"DELIVERED": 1}
    assert sends(programs, A1, A2, p.udp(CLIENT, 53), version) == {"DELIVERED": 1}
    assert known.hits() == {"narrow/0": (0, 2), "narrow/1": (1, 0)}
    # What it is asked it answers, though it may not ask.
    assert sends(programs, A3, A1, p.udp(CLIENT, 9), version) == {"DELIVERED": 1}
    assert sends(programs, A1, A3, p.udp(9, CLIENT), version) == {"DELIVERED": 1}
    refusal(programs, A1, A1.sends(address(A3, version), p.udp(9, CLIENT + 1), to=A3.mac), Reason.DROP_OUT)


@BOTH
def test_a_server_does_not_open_by_the_port_that_it_answers_from(programs: Programs, version: int) -> None:
    put(programs, "policies: {n: {for: a2, in: {allow: ['a1:53/udp']}}, a: {for: a1, in: {allow: []}}}")
    assert sends(programs, A1, A2, p.udp(CLIENT, 53), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, p.udp(53, CLIENT), version) == {"DELIVERED": 1}
    refusal(programs, A2, A2.sends(address(A1, version), p.udp(53, 9999), to=A1.mac), Reason.DROP_IN)
    assert sends(programs, A1, A2, syn(), version) == {"DROP_IN": 1}


@BOTH
def test_the_other_end_may_not_begin_where_it_answers(programs: Programs, version: int) -> None:
    put(programs, "policies: {closed: {for: a2, out: {allow: []}}}")
    assert sends(programs, A1, A2, syn(), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, syn(5432, CLIENT, SYN | ACK), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, syn(5432, CLIENT, SYN), version) == {"DROP_OUT": 1}
    assert sends(programs, A2, A1, syn(5432, CLIENT, ACK), version) == {"DELIVERED": 1}


@BOTH
def test_a_ping_is_let_in_and_answered_or_not(programs: Programs, version: int) -> None:
    put(programs, "policies: {quiet: {for: a2, in: {deny: ['a3/icmp']}, out: {allow: []}}}")
    kinds = (p.ECHO, p.ECHO_REPLY) if version == 4 else (128, 129)
    ping, pong = ((p.echo if version == 4 else p.echo6)(kind, 7) for kind in kinds)
    assert sends(programs, A1, A2, ping, version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, pong, version) == {"DELIVERED": 1}
    assert sends(programs, A3, A2, ping, version) == {"DROP_IN": 1}
    assert sends(programs, A2, A3, pong, version) == {"DROP_OUT": 1}


def test_what_is_only_watched_is_counted_once_an_opening_and_passes(programs: Programs) -> None:
    known = put(programs, DB.replace("for: a2", "for: a2, mode: audit"))
    for sport in range(CLIENT, CLIENT + 3):
        assert sends(programs, A3, A2, syn(sport)) == {"DELIVERED": 1, "WOULD_IN": 1}
        assert sends(programs, A3, A2, syn(sport, flags=ACK)) == {"DELIVERED": 1}
        assert sends(programs, A1, A2, syn(sport)) == {"DELIVERED": 1}
    assert known.hits() == {"db/0": (0, 3)}, "what is in audit mode lets nothing pass"
    enforced = put(programs, DB, former=known.rows)
    assert sends(programs, A3, A2, syn(CLIENT, flags=ACK)) == {"DROP_IN": 1}
    assert enforced.hits() == {"db/0": (0, 4)}


@BOTH
def test_a_policy_that_changes_is_asked_for_the_next_packet(programs: Programs, version: int) -> None:
    def both() -> list[dict[str, int]]:
        return [
            sends(programs, A1, A2, syn(flags=ACK), version),
            sends(programs, A2, A1, syn(5432, CLIENT, ACK), version),
        ]

    passes, stopped = [{"DELIVERED": 1}] * 2, [{"DROP_IN": 1}] * 2
    put(programs, DB)
    assert sends(programs, A1, A2, syn(), version) == {"DELIVERED": 1}
    assert both() == passes
    changed = put(programs, DB.replace("a1:", "a3:"))
    assert both() == stopped
    assert changed.hits() == {"db/0": (0, 2)}
    again = put(programs, DB)
    assert both() == passes
    assert again.hits() == {}, "it is the same connection"
    policies_of(programs).clear()
    assert both() == passes


def test_a_connection_that_was_open_before_there_were_policies_goes_on_as_either_end_may(
    programs: Programs,
) -> None:
    put(programs, "policies: {db: {for: a2, in: {allow: ['a1:5432']}, out: {allow: []}}}")
    assert sends(programs, A2, A1, syn(5432, CLIENT, ACK)) == {"DELIVERED": 1}, "it answers"
    assert sends(programs, A2, A3, syn(5432, CLIENT, ACK)) == {"DROP_IN": 1}
    assert sends(programs, A2, A3, p.udp(5432, CLIENT)) == {"DROP_OUT": 1}


def test_a_port_that_is_used_again_is_another_opening(programs: Programs) -> None:
    known = put(programs, DB)
    for flags in (SYN, SYN, ACK, FIN | ACK, ACK, SYN):  # the second is sent again
        assert sends(programs, A1, A2, syn(flags=flags)) == {"DELIVERED": 1}
    assert known.hits() == {"db/1": (2, 0)}


def test_an_address_that_another_container_has_begins_anew(programs: Programs) -> None:
    put(programs, "policies: {db: {for: a2, in: {allow: ['a1:53/udp']}, out: {allow: []}}}")
    assert sends(programs, A1, A2, p.udp(CLIENT, 53)) == {"DELIVERED": 1}
    key = abi.endpoint_key(NET1.number, A1.ip)
    row = programs.maps["endpoints"][key]
    programs.maps["endpoints"][key] = row._replace(number=A3.number)
    try:
        assert sends(programs, A2, A1, p.udp(53, CLIENT)) == {"DROP_OUT": 1}
    finally:
        programs.maps["endpoints"][key] = row
    assert sends(programs, A2, A1, p.udp(53, CLIENT)) == {"DELIVERED": 1}


@BOTH
def test_an_error_is_of_what_it_is_about(programs: Programs, version: int) -> None:
    own = "db: {for: a2, in: {allow: ['a1:53/udp']}, out: {allow: []}}"
    put(programs, f"policies: {{{own}, other: {{for: a3, in: {{allow: []}}}}}}")

    def closed(asked: Member) -> p.Transport:
        quote = asked.sends(address(A2, version), p.udp(CLIENT, 53), to=A2.mac)[14:]
        return p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)

    assert sends(programs, A1, A2, p.udp(CLIENT, 53), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A1, closed(A1), version) == {"DELIVERED": 1}
    assert sends(programs, A2, A3, closed(A3), version) == {"DROP_IN": 1}, "it is about nothing that may be"


def test_each_fragment_is_of_its_datagram(programs: Programs) -> None:
    put(programs, "policies: {db: {for: a2, in: {allow: ['a1:53/udp']}}}")
    for member, outcome in ((A1, "DELIVERED"), (A3, "DROP_IN")):
        whole = member.sends(A2.ip, p.udp(CLIENT, 53, bytes(3000)), to=A2.mac)
        first, *others = p.cut(whole, 1480, 2960)
        assert programs.run(member, first).reasons == {outcome: 1}
        for later in others:
            assert programs.run(member, later).reasons in ({outcome: 1}, {"DROP_FRAGMENT": 1})
        assert member is A1 or "DELIVERED" not in programs.run(member, others[0]).reasons
    lonely = p.cut(A3.sends(A2.ip, p.udp(CLIENT, 53, bytes(3000)), to=A2.mac), 1480, 2960, ident=77)[1]
    assert programs.run(A3, lonely).reasons == {"HELD": 1}


def test_an_endpoint_that_the_rows_do_not_know_is_closed(programs: Programs) -> None:
    put(programs, DB, without=A3.number)
    assert sends(programs, A3, A1, syn()) == {"DROP_OUT": 1}
    assert sends(programs, A1, A3, syn()) == {"DROP_IN": 1}
    assert programs.run(A3, A3.sends(OUTSIDE, syn())).reasons == {"DROP_OUT": 1}
    assert programs.run(NET1, host_sends(A3, syn())).reasons == {"DROP_IN": 1}


def test_groups_packets_are_not_for_who_refuses_somebody(programs: Programs) -> None:
    group = p.ethernet(p.BROADCAST, A1.mac, p.ETH_IPV4, p.ipv4(A1.ip, NET1.broadcast, p.udp(CLIENT, 9)))
    for text, heard in ((DB, []), ("policies: {x: {for: a2, out: {deny: [metadata]}}}", [group])):
        put(programs, text)
        programs.topology.received("a2"), programs.topology.received("a3")
        assert programs.run(A1, group).reasons == {"FLOODED": 1}
        assert programs.topology.received("a3") == [group]
        assert programs.topology.received("a2") == heard
    put(programs, "policies: {x: {for: a1, out: {allow: ['a2']}}}")
    assert programs.run(A1, group).reasons == {"DROP_OUT": 1}


# ---- the host, and outside -----------------------------------------------------------------------------------------


def test_the_host_is_let_in_or_told(programs: Programs) -> None:
    put(programs, DB)
    frame = host_sends(A2, syn())
    programs.expect(NET1, frame, REDIRECT, Reason.DROP_IN, p.own_error(frame, A2.ip, prohibited=True))
    put(programs, "policies: {db: {for: a2, in: {allow: ['host:5432']}, out: {allow: []}}}")
    assert programs.run(NET1, frame).reasons == {"DELIVERED": 1}
    assert programs.run(A2, A2.sends(NET1.gateway, syn(5432, CLIENT, SYN | ACK))).reasons == {"TO_HOST": 1}
    refusal(programs, A2, A2.sends(NET1.gateway, syn(CLIENT, 22)), Reason.DROP_OUT)
    refusal(programs, A2, A2.sends(HOST, syn(CLIENT, 22)), Reason.DROP_OUT)


def test_a_container_reaches_the_host_and_hears_its_answers(programs: Programs) -> None:
    put(programs, "policies: {db: {for: a2, in: {allow: []}, out: {allow: ['host:22']}}}")
    assert programs.run(A2, A2.sends(NET1.gateway, syn(CLIENT, 22))).reasons == {"TO_HOST": 1}
    assert programs.run(NET1, host_sends(A2, syn(22, CLIENT, SYN | ACK))).reasons == {"DELIVERED": 1}
    assert programs.run(NET1, host_sends(A2, syn(22, CLIENT, SYN))).reasons == {"DROP_IN": 1}


@BOTH
def test_outside_is_let_out_to_or_not_and_asked_again_for_each_change(
    programs: Programs, version: int
) -> None:
    server = OUTSIDE if version == 4 else OUTSIDE6
    prefix = f"{server}/{32 if version == 4 else 128}"
    put(programs, f"policies: {{x: {{for: a1, out: {{deny: ['{prefix}']}}}}}}")
    refusal(programs, A1, A1.sends(server, syn()), Reason.DROP_OUT)
    assert not programs.table("pending"), "nothing was opened"
    known = put(programs, "policies: {x: {for: a1, out: {allow: [outside]}}}")
    assert programs.run(A1, A1.sends(server, syn())).reasons == {"TO_OUTSIDE": 1}
    host = HOST if version == 4 else HOST6
    (port,) = {key.dport for key in programs.table("pending") if key.src == server}
    answer = outside_sends(host, p.tcp(5432, port, SYN | ACK))
    assert programs.run(None, answer).reasons == {"DELIVERED": 1}
    assert programs.run(A1, A1.sends(server, syn(flags=ACK))).reasons == {"TO_OUTSIDE": 1}
    assert known.hits() == {"x/1": (1, 0)}
    put(programs, "policies: {x: {for: a1, out: {allow: []}}}")
    refusal(programs, A1, A1.sends(server, syn(flags=ACK)), Reason.DROP_OUT)
    late = outside_sends(host, p.tcp(5432, port, ACK, b"more"))
    programs.expect(None, late, SHOT, Reason.DROP_OUT)
    put(programs, "policies: {x: {for: a1, out: {allow: [outside]}}}")
    assert programs.run(None, late).reasons == {"DELIVERED": 1}


def test_the_addresses_where_clouds_tell_secrets_are_refused_and_others_are_not(programs: Programs) -> None:
    put(programs, "policies: {x: {for: {network: dp0}, out: {deny: [metadata]}}}")
    refusal(programs, A1, A1.sends("169.254.169.254", syn(dport=80)), Reason.DROP_OUT)
    assert programs.run(A1, A1.sends(OUTSIDE, syn(dport=80))).reasons == {"TO_OUTSIDE": 1}


# ---- published ports -----------------------------------------------------------------------------------------------

WEB = "policies: {web: {for: a2, in: {allow: ['203.0.113.0/24:80']}}}"


def test_a_published_port_is_asked_of_the_containers_own_port(programs: Programs) -> None:
    known = put(programs, WEB)
    assert programs.run(None, outside_sends(HOST, syn(dport=8081))).reasons == {"DELIVERED": 1}
    other = outside_sends(HOST, syn(dport=8081), src=IPv4Address("198.51.100.77"))
    programs.expect(None, other, SHOT, Reason.DROP_IN)
    assert programs.run(A2, A2.sends(OUTSIDE, syn(80, CLIENT, SYN | ACK))).reasons == {"TO_OUTSIDE": 1}
    detour = A1.sends(HOST, syn(dport=8081))
    refusal(programs, A1, detour, Reason.DROP_IN)
    assert programs.run(A2, A2.sends(HOST, syn(dport=8081))).reasons == {"DELIVERED": 1}, "to itself"
    assert known.hits() == {"web/1": (1, 0), "web/0": (0, 2)}
    put(programs, WEB.replace("203.0.113.0/24", "198.51.100.77"))
    programs.expect(None, outside_sends(HOST, syn(dport=8081, flags=ACK)), SHOT, Reason.DROP_IN)
    programs.expect(A2, A2.sends(OUTSIDE, syn(80, CLIENT, ACK)), SHOT, Reason.DROP_IN)


def test_who_publishes_and_may_not_go_out_answers_all_the_same(programs: Programs) -> None:
    put(programs, "policies: {web: {for: a2, out: {allow: []}}}")
    assert programs.run(None, outside_sends(HOST, syn(dport=8081))).reasons == {"DELIVERED": 1}
    assert programs.run(A2, A2.sends(OUTSIDE, syn(80, CLIENT, SYN | ACK))).reasons == {"TO_OUTSIDE": 1}
    refusal(programs, A2, A2.sends(OUTSIDE, syn(81, CLIENT)), Reason.DROP_OUT)


def test_a_policy_of_one_published_port_is_of_no_other_way(programs: Programs) -> None:
    put(programs, "policies: {web: {for: {name: a2, published: 8081}, in: {allow: ['203.0.113.0/24']}}}")
    stranger = IPv4Address("198.51.100.77")
    assert programs.run(None, outside_sends(HOST, syn(dport=8081))).reasons == {"DELIVERED": 1}
    programs.expect(None, outside_sends(HOST, syn(dport=8081), src=stranger), SHOT, Reason.DROP_IN)
    assert sends(programs, A1, A2, syn(dport=80)) == {"DELIVERED": 1}


def test_the_hosts_own_sockets_meet_what_they_would_without_the_port(programs: Programs) -> None:
    put(programs, WEB)
    frame = host_says(ip_address("127.0.0.1"), syn(dport=8083))
    got = programs.run(LO, frame)
    assert (got.verdict, got.reasons, got.packet) == (UNSPEC, {"DROP_IN": 1, "NOT_OURS": 1}, frame)
    put(programs, WEB.replace("203.0.113.0/24", "host"))
    assert programs.run(LO, frame).reasons == {"DELIVERED": 1}


# ---- changing them -------------------------------------------------------------------------------------------------


def test_more_than_there_is_room_for_is_refused_and_what_was_in_force_is(programs: Programs) -> None:
    known = put(programs, DB)
    many = {SetKey(number, 0, Direction.OUT, 6, 0): RuleSet(Outcome(Action.ALLOW)) for number in range(5000)}
    with pytest.raises(
        ConfigError, match=r"the policies need 5,000 sets of rules, and there is room for 4,0\d\d beside"
    ):
        known.policies.apply(Rows(True, sets=many))
    assert known.policies.current() == content(known.rows)
    assert known.policies.leftovers() == 0
    assert sends(programs, A3, A2, syn()) == {"DROP_IN": 1}


def apply_and_die(programs: Programs, rows: Rows, step: int) -> None:
    """Puts the rows into force, in a process of its own that is killed after so many writes of maps."""
    writes = itertools.count(1)

    def written() -> None:
        if next(writes) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in (*TABLES, "policy_state"):
        programs.maps[name].changed = written
    policies_of(programs).apply(rows)
    os._exit(0)


def test_whoever_is_killed_while_changing_them_leaves_the_old_ones_or_the_new_and_what_is_left_goes(
    programs: Programs,
) -> None:
    """After each write of a map, one after the other."""
    left = set()
    for step in range(1, 100):
        old, new = put(programs, DB), plan_rows(read_policies(NARROW, "here"), WORLD)
        child = os.fork()
        if not child:
            apply_and_die(programs, new, step)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        changed = old.policies.current() == content(new)
        assert changed or old.policies.current() == content(old.rows)
        assert sends(programs, A3, A2, syn()) == ({"DELIVERED": 1} if changed else {"DROP_IN": 1})
        assert sends(programs, A1, A2, syn()) == ({"DROP_OUT": 1} if changed else {"DELIVERED": 1})
        left.add((changed, old.policies.leftovers() > 0))
        old.policies.sweep()
        assert old.policies.leftovers() == 0
        assert old.policies.current() == content(new if changed else old.rows)
        if finished:
            break
    assert left == {(False, True), (True, True), (True, False)} | (left & {(False, False)})
    assert finished


# ---- nothing else --------------------------------------------------------------------------------------------------


def test_without_policies_nothing_is_asked_and_nothing_remembered(programs: Programs) -> None:
    assert sends(programs, A1, A2, syn()) == {"DELIVERED": 1}
    put(programs, DB)
    assert sends(programs, A1, A3, syn()) == {"DELIVERED": 1}, "no policy is about them"
    assert programs.run(D1, D1.sends(OUTSIDE, syn())).reasons == {"TO_OUTSIDE": 1}
    assert not programs.table("admissions")


def test_a_network_without_icc_stays_one_whatever_policies_allow(programs: Programs) -> None:
    put(programs, "policies: {b: {for: b2, in: {allow: [any]}}}")
    assert sends(programs, B2, B1, syn(dport=80)) == {"DROP_ICC": 1}
    assert sends(programs, B1, B2, syn(dport=80)) == {"DELIVERED": 1}, "a link lets it"
