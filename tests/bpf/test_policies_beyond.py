# SPDX-License-Identifier: Apache-2.0
"""Policies where a packet's way goes on in other programs: services, other hosts, questions to name servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from datapath.dataplane.convert import to_abi
from datapath.dataplane.structs import ResolverKey, ResolverValue, UpstreamValue
from datapath.model.policies import Member as Container
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf import policies
from tests.bpf import services as s
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    HOST,
    NET1,
    OUTSIDE,
    REDIRECT,
    SHOT,
    Copies,
    Programs,
    Reason,
    Topology,
    outside_sends,
)
from tests.bpf.policies import policies_of, put
from tests.bpf.test_ask import RESOLVER, body, question

REMOTE = Container(-1, NET1.device, "far", {"role": "f"}, (o.REMOTE, o.REMOTE6), "far", here=False)
BOTH = pytest.mark.parametrize("version", [4, 6])
CLIENT = 40000


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=(*o.TUNNEL_OBJECTS, "to_service")) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    world = replace(policies.WORLD, members=(*policies.WORLD.members, REMOTE))
    monkeypatch.setattr(policies, "WORLD", world)
    network = programs.maps["networks"][NET1.number]
    o.fill(programs, device=topology.index["dp4"])
    yield
    policies_of(programs).clear()
    programs.maps["networks"][NET1.number] = network


def far(version: int) -> Any:
    return o.REMOTE if version == 4 else o.REMOTE6


def comes(programs: Programs, version: int, carried: p.Transport, **header: Any) -> Any:
    """What becomes of what the member on the other host sends to a2."""
    to = A2.ip if version == 4 else A2.ip6
    return programs.run(None, tunnelled(version, o.inner(far(version), to, carried, **header)))


def tunnelled(version: int, frame: bytes) -> bytes:
    """In a tunnel of its family, which the programs open on all kernels."""
    return o.arrives(o.vxlan(frame), src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER])


# ---- other hosts ---------------------------------------------------------------------------------------------------


@BOTH
def test_what_goes_to_another_host_is_judged_here_for_who_sends_it(programs: Programs, version: int) -> None:
    known = put(programs, "policies: {x: {for: a1, out: {allow: ['far:80']}}}")
    assert programs.run(A1, A1.sends(far(version), p.tcp(CLIENT, 80, p.SYN))).reasons == {"TO_PEER": 1}
    frame = A1.sends(far(version), p.tcp(CLIENT, 81, p.SYN))
    gateway = NET1.gateway if version == 4 else NET1.gateway6
    programs.expect(A1, frame, REDIRECT, Reason.DROP_OUT, p.own_error(frame, gateway, prohibited=True))
    assert known.hits() == {"x/1": (1, 0), "x/0": (0, 1)}
    answer = o.inner(far(version), A1.ip if version == 4 else A1.ip6, p.tcp(80, CLIENT, p.SYN | p.ACK))
    assert programs.run(None, tunnelled(version, answer)).reasons == {"DELIVERED": 1}


@BOTH
def test_what_comes_from_another_host_is_judged_here_for_who_gets_it(
    programs: Programs, version: int
) -> None:
    known = put(programs, "policies: {db: {for: a2, in: {allow: ['role=f:53/udp']}, out: {allow: []}}}")
    assert comes(programs, version, p.udp(CLIENT, 53)).reasons == {"DELIVERED": 1}
    assert programs.run(A2, A2.sends(far(version), p.udp(53, CLIENT))).reasons == {"TO_PEER": 1}, "the answer"
    assert programs.run(A2, A2.sends(far(version), p.udp(53, 9))).reasons == {"DROP_OUT": 1}
    got = comes(programs, version, p.udp(CLIENT, 54))
    assert got.reasons == {"DROP_IN": 1, "TO_PEER": 1}, "its sender hears of it"
    assert known.hits() == {"db/1": (1, 0), "db/0": (0, 2)}


@BOTH
def test_a_flow_between_hosts_is_remembered_for_no_longer_than_policies_let_it(
    programs: Programs, version: int
) -> None:
    def twice() -> list[dict[str, int]]:
        return [comes(programs, version, p.udp(CLIENT, 53)).reasons for _ in range(3)]

    assert twice() == [{"DELIVERED": 1}] * 3
    put(programs, "policies: {db: {for: a2, in: {deny: [far]}}}")
    assert twice() == [{"DROP_IN": 1, "TO_PEER": 1}] * 3
    put(programs, "policies: {db: {for: a2, in: {allow: [far]}}}")
    assert twice() == [{"DELIVERED": 1}] * 3
    put(programs, "policies: {db: {for: a2, in: {deny: [far]}}}")
    assert twice() == [{"DROP_IN": 1, "TO_PEER": 1}] * 3
    sends = A1.sends(far(version), p.udp(CLIENT, 53))
    assert [programs.run(A1, sends).reasons for _ in range(3)] == [{"TO_PEER": 1}] * 3
    put(programs, "policies: {x: {for: a1, out: {allow: []}}}")
    assert [programs.run(A1, sends).reasons for _ in range(3)] == [{"DROP_OUT": 1}] * 3


def test_fragments_from_another_host_are_of_their_datagram(programs: Programs) -> None:
    put(programs, "policies: {db: {for: a2, in: {allow: ['far:53/udp']}}}")
    for port, outcome in ((53, {"DELIVERED": 1}), (54, {"DROP_IN": 1, "TO_PEER": 1})):
        whole = o.inner(o.REMOTE, A2.ip, p.udp(CLIENT, port, bytes(2000)))
        first, later = p.cut(whole, 1400, ident=port)
        assert programs.run(None, o.arrives(o.vxlan(first))).reasons == outcome
        assert ("DELIVERED" in programs.run(None, o.arrives(o.vxlan(later))).reasons) == (port == 53)


# ---- services ------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(programs: Programs) -> Iterator[None]:
    s.fill(programs, [A2])
    yield
    s.remove(programs)


@BOTH
def test_a_service_is_asked_as_the_backend_that_gets_it(
    programs: Programs, service: None, version: int
) -> None:
    known = put(
        programs, "policies: {web: {for: a2, in: {allow: ['a1:80']}}, a: {for: a1, out: {allow: ['a2:80']}}}"
    )
    asks = p.tcp(CLIENT, 80, p.SYN)
    assert programs.run(A1, A1.sends(s.at(version), asks)).reasons == {"DELIVERED": 1}
    frame = A3.sends(s.at(version), asks)
    gateway = NET1.gateway if version == 4 else NET1.gateway6
    programs.expect(A3, frame, REDIRECT, Reason.DROP_IN, p.own_error(frame, gateway, prohibited=True))
    assert known.hits() == {"web/1": (1, 0), "a/1": (1, 0), "web/0": (0, 1)}
    own = A1.ip if version == 4 else A1.ip6
    assert programs.run(A2, A2.sends(own, p.tcp(80, CLIENT, p.SYN | p.ACK), to=A1.mac)).reasons == {
        "DELIVERED": 1
    }
    put(programs, "policies: {web: {for: a2, in: {allow: ['a3:80']}}}")
    assert programs.run(A1, A1.sends(s.at(version), p.tcp(CLIENT, 80, p.ACK))).reasons == {"DROP_IN": 1}


def test_a_published_service_lets_in_whom_its_backend_does(programs: Programs, service: None) -> None:
    put(programs, "policies: {web: {for: a2, in: {allow: ['203.0.113.0/24:80']}}}")
    assert programs.run(None, outside_sends(HOST, p.tcp(CLIENT, s.PUBLISHED, p.SYN))).reasons == {
        "DELIVERED": 1
    }
    put(programs, "policies: {web: {for: a2, in: {deny: ['203.0.113.0/24:80']}}}")
    programs.expect(None, outside_sends(HOST, p.tcp(CLIENT + 1, s.PUBLISHED, p.SYN)), SHOT, Reason.DROP_IN)


# ---- names ---------------------------------------------------------------------------------------------------------


def test_names_outside_are_asked_for_by_who_may_ask(programs: Programs) -> None:
    """Who may go nowhere tells nobody anything by the names that it asks for, either."""
    value = ResolverValue((), 0, NET1.number, (UpstreamValue(OUTSIDE, 0, 0),))
    programs.maps["resolvers"][to_abi(ResolverKey(A1.number))] = to_abi(value)
    asks = A1.sends(RESOLVER, p.udp(CLIENT, 53, question()))
    for listed in ("dns", "any", "api.example.com"):
        put(programs, f"policies: {{x: {{for: a1, out: {{allow: [{listed}]}}}}}}")
        assert programs.run(A1, asks).reasons == {"TO_OUTSIDE": 1}, listed
    known = put(programs, "policies: {x: {for: a1, out: {allow: [a2]}}}")
    got = programs.run(A1, asks)
    assert (got.verdict, got.reasons) == (REDIRECT, {"DROP_OUT": 1, "ANSWERED": 1})
    assert body(got.packet)[4][3] & 15 == 5, "refused"
    assert known.hits() == {"x/0": (0, 1)}
    syn = A1.sends(RESOLVER, p.tcp(CLIENT, 53, p.SYN))
    assert programs.run(A1, syn).reasons == {"DROP_OUT": 1, "ANSWERED": 1}
    del programs.maps["resolvers"][to_abi(ResolverKey(A1.number))]
