# SPDX-License-Identifier: Apache-2.0
"""Link-local addresses that a container has asked for beside its own: rows of `endpoints` alone say whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import A1, A2, NET1, OUTSIDE, Member, Programs, Reason, Row, dropped, redirected
from tests.bpf.test_from_container import PING, PING6, advertises, answer, asks, says, solicits, v4, v6

MINE, THEIRS, NOBODYS = "169.254.7.1", "169.254.7.2", "169.254.7.3"
MINE6, THEIRS6, NOBODYS6 = "fe80::a1", "fe80::a2", "fe80::a3"
OWNERS: dict[str, Member] = {MINE: A1, MINE6: A1, THEIRS: A2, THEIRS6: A2}


@pytest.fixture
def asked(programs: Programs) -> Iterator[Programs]:
    keys = []
    for address, member in OWNERS.items():
        key = abi.endpoint_key(member.net.number, ip_address(address))
        programs.maps["endpoints"][key] = abi.endpoint(programs.ifindex(member), member.number, member.mac)
        keys.append(key)
    yield programs
    programs.maps["endpoints"].delete_many(keys)


ROWS = [
    redirected("from one to the other's", A1, v4(A1.mac, MINE, THEIRS, PING), Reason.DELIVERED),
    redirected("from one to the other's usual address", A1, v4(A1.mac, MINE, A2.ip, PING), Reason.DELIVERED),
    redirected("from the usual one to the other's", A1, v4(A1.mac, A1.ip, THEIRS, PING), Reason.DELIVERED),
    redirected("the same over IPv6", A1, v6(A1.mac, MINE6, THEIRS6, PING6), Reason.DELIVERED),
    dropped("from somebody else's", A1, v4(A1.mac, THEIRS, A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped("from nobody's", A1, v4(A1.mac, NOBODYS, THEIRS, PING), Reason.DROP_SPOOFED_ADDR),
    dropped("from somebody else's, IPv6", A1, v6(A1.mac, THEIRS6, A2.ip6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped("from nobody's, IPv6", A1, v6(A1.mac, NOBODYS6, THEIRS6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped("to the outside", A1, v4(A1.mac, MINE, OUTSIDE, PING, to=NET1.mac), Reason.DROP_BAD_ADDR),
    dropped("to the gateway", A1, v4(A1.mac, MINE, NET1.gateway, PING, to=NET1.mac), Reason.DROP_BAD_ADDR),
    redirected(
        "who has it", A1, asks(ip_address(THEIRS)), Reason.ANSWERED, answer(A2.mac, ip_address(THEIRS))
    ),
    redirected(
        "who has it, asked from one",
        A1,
        asks(ip_address(THEIRS), sender=ip_address(MINE)),
        Reason.ANSWERED,
        answer(A2.mac, ip_address(THEIRS), ip_address(MINE)),
    ),
    dropped(
        "who has it, asked from somebody else's",
        A1,
        asks(A2.ip, sender=ip_address(THEIRS)),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped(
        "an announcement of somebody else's",
        A1,
        says(p.REPLY, ip_address(THEIRS), A2.ip),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped(
        "a probe for its own is not answered",
        A1,
        asks(ip_address(MINE), sender=ip_address("0.0.0.0")),
        Reason.ABSORBED,
    ),
    redirected(
        "a probe for somebody else's is",
        A1,
        asks(ip_address(THEIRS), sender=ip_address("0.0.0.0")),
        Reason.ANSWERED,
        answer(A2.mac, ip_address(THEIRS), ip_address("0.0.0.0")),
    ),
    redirected(
        "who has it, IPv6",
        A1,
        solicits(ip_address(THEIRS6)),
        Reason.ANSWERED,
        advertises(ip_address(THEIRS6), A2.mac),
    ),
    dropped(
        "is there a duplicate of its own",
        A1,
        solicits(ip_address(MINE6), src="::", option=None),
        Reason.ABSORBED,
    ),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.sentence) for row in ROWS])
def test_packet(asked: Programs, row: Row) -> None:
    asked.check(row)
