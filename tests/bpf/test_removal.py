# SPDX-License-Identifier: Apache-2.0
"""An endpoint is removed: its connections are none from then on, though nobody has looked for them, whoever has its
address and ports next; and the conntrack GC deletes them soon after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    HOST,
    OUTSIDE,
    PUBLISHED,
    Member,
    Programs,
    outside_sends,
    wait_until,
)

SPORT = 20100
SYN_ACK = p.SYN | p.ACK
UDP = 17
NEXT = 99  # the number of who has the address afterwards
SAID: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], tuple[int, ...]], tuple[int, ...]]] = {
    "UDP": (p.udp, ((), ()), ()),
    "TCP": (p.tcp, ((p.SYN,), (SYN_ACK,)), (p.ACK,)),
}
Talk = Callable[[Programs, str], dict[str, int]]


@pytest.fixture
def counted(programs: Programs) -> Iterator[Programs]:
    """As the control plane leaves them: each endpoint has its row in `quotas`. Afterwards all is as it was."""
    for member in (A1, A2, A3, B1):
        programs.maps["quotas"][abi.quota_key(member.number)] = abi.quota()
    yield programs
    programs.maps["removals"][0] = abi.removals()
    for member in (A1, A2):
        settle(programs, member)


def settle(programs: Programs, member: Member) -> None:
    """The member's number is that of the address, the device, and the published ports."""
    programs._add(member)
    for (address, number, proto), (owner, _) in PUBLISHED.items():
        for at in (address,) if address else ("0.0.0.0", "::"):
            key = abi.port_key(ip_address(at), number, proto)
            if owner.name == member.name and (row := programs.maps["ports"].get(key)):
                programs.maps["ports"][key] = row._replace(endpoint=member.number)


def remove(programs: Programs, member: Member) -> Member:
    """The endpoint goes, and another one gets its address."""
    programs.maps["quotas"].delete_many([abi.quota_key(member.number)])
    verdict = libbpf.test_run(programs.fds["conn_gc"], bytes(64), mark=abi.GcOrder.GC_REMOVED).verdict
    assert verdict == 0
    heir = member._replace(number=NEXT)
    programs.maps["quotas"][abi.quota_key(NEXT)] = abi.quota()
    settle(programs, heir)
    return heir


def to_outside(programs: Programs, kind: str) -> dict[str, int]:
    """A1 asks somebody outside, and is answered; what has become of its last packet."""
    make, (asked, answered), more = SAID[kind]
    got = programs.run(A1, A1.sends(OUTSIDE, make(SPORT, 53, *asked)))
    assert int.from_bytes(got.packet[34:36], "big") == SPORT  # its own
    back = programs.run(None, outside_sends(HOST, make(53, SPORT, *answered)))
    if more:
        programs.run(A1, A1.sends(OUTSIDE, make(SPORT, 53, *more)))
    return {**got.reasons, **back.reasons}


def from_outside(programs: Programs, kind: str) -> dict[str, int]:
    """Somebody outside asks A2 by its published port."""
    make, (asked, answered), more = SAID[kind]
    inner = 53 if kind == "UDP" else 80
    got = programs.run(None, outside_sends(HOST, make(SPORT, 8081, *asked)))
    back = programs.run(A2, A2.sends(OUTSIDE, make(inner, SPORT, *answered)))
    if more:
        programs.run(None, outside_sends(HOST, make(SPORT, 8081, *more)))
    return {**got.reasons, **back.reasons}


def from_another(programs: Programs, kind: str) -> dict[str, int]:
    """B1, of another network, asks A2 by its published port."""
    make, (asked, answered), more = SAID[kind]
    inner = 53 if kind == "UDP" else 80
    got = programs.run(B1, B1.sends(HOST, make(SPORT, 8081, *asked)))
    back = programs.run(A2, A2.sends(B1.ip, make(inner, SPORT, *answered)))
    if more:
        programs.run(B1, B1.sends(HOST, make(SPORT, 8081, *more)))
    return {**got.reasons, **back.reasons}


TALKS: dict[str, tuple[Talk, Member, dict[str, int]]] = {
    "to the outside": (to_outside, A1, {"TO_OUTSIDE": 1, "DELIVERED": 1}),
    "from outside": (from_outside, A2, {"DELIVERED": 1, "TO_OUTSIDE": 1}),
    "from another network": (from_another, A2, {"DELIVERED": 1}),
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("name", TALKS)
def test_the_next_holder_of_the_address_has_a_connection_of_its_own(
    counted: Programs, name: str, kind: str
) -> None:
    """With the same ports at both ends, in the same moment: nothing of what was is continued, or in the way."""
    talk, member, wanted = TALKS[name]
    assert talk(counted, kind) == wanted
    before = counted.table("conns")
    assert len(before) == 2
    remove(counted, member)
    assert talk(counted, kind) == wanted
    after = counted.table("conns")
    assert after.keys() == before.keys()
    assert member.number not in {n for row in after.values() for n in (row.from_endpoint, row.to_endpoint)}
    assert not counted.table("pending")
    assert (
        counted.maps["quotas"][abi.quota_key(NEXT if name != "from another network" else B1.number)].conns
        == 1
    )


@pytest.mark.parametrize("kind", SAID)
def test_an_answer_to_one_that_is_gone_reaches_nobody(counted: Programs, kind: str) -> None:
    """It is the host's, as any that nobody waits for."""
    make, (_, answered), _ = SAID[kind]
    to_outside(counted, kind)
    remove(counted, A1)
    late = outside_sends(HOST, make(53, SPORT, *answered))
    got = counted.run(None, late)
    assert (got.reasons, got.packet) == ({"NOT_OURS": 1}, late)
    assert not counted.table("conns")


def test_an_opening_that_nobody_has_answered_is_gone_as_well(counted: Programs) -> None:
    frame = A1.sends(OUTSIDE, p.udp(SPORT, 53))
    assert counted.run(A1, frame).reasons == {"TO_OUTSIDE": 1}
    remove(counted, A1)
    assert counted.run(None, outside_sends(HOST, p.udp(53, SPORT))).reasons == {"NOT_OURS": 1}
    assert counted.run(A1, frame).reasons == {"TO_OUTSIDE": 1}
    assert {row.from_endpoint for row in counted.table("pending").values()} == {0, NEXT}


def test_its_external_port_is_free_for_another_container(counted: Programs) -> None:
    """Though a connection used it a moment ago."""
    to_outside(counted, "UDP")
    before = counted.maps["externals"][abi.external_key(HOST, SPORT, UDP)]
    assert before.endpoint == A1.number
    remove(counted, A1)
    counted.run(A3, A3.sends(OUTSIDE, p.udp(SPORT, 53)))
    assert counted.maps["externals"][abi.external_key(HOST, SPORT, UDP)].endpoint == A3.number


@pytest.mark.parametrize("kind", SAID)
def test_connections_of_others_go_on(counted: Programs, kind: str) -> None:
    """They are looked at once, by whoever meets them next."""
    from_outside(counted, kind)
    to_outside(counted, kind)
    remove(counted, A1)
    make, (asked, _), more = SAID[kind]
    again = more or asked
    got = counted.run(None, outside_sends(HOST, make(SPORT, 8081, *again)))
    assert got.reasons == {"DELIVERED": 1}
    served = {key: row for key, row in counted.table("conns").items() if row.to_endpoint == A2.number}
    assert [row.removals for row in served.values()] == [1]


def test_the_gc_deletes_them_and_gives_others_back_what_they_had_of_it(counted: Programs) -> None:
    """Those of others stay."""
    from_another(counted, "UDP")
    to_outside(counted, "UDP")
    assert counted.maps["quotas"][abi.quota_key(B1.number)].conns == 1
    whole: dict[Any, Any] = counted.table("conns")
    counted.start_gc()
    remove(counted, A2)
    wait_until(lambda: counted.maps["quotas"][abi.quota_key(B1.number)].conns == 0)
    wait_until(lambda: counted.maps["removals"][0].left == 0)
    left = counted.table("conns")
    assert left.keys() < whole.keys()
    assert {n for row in left.values() for n in (row.from_endpoint, row.to_endpoint)} == {0, A1.number}
