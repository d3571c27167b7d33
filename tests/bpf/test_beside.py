# SPDX-License-Identifier: Apache-2.0
"""Published ports of members whose default route is elsewhere: whoever connects comes from the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A2,
    B1,
    HOST,
    HOST6,
    LO,
    NET1,
    OUTSIDE,
    OUTSIDE6,
    Flag,
    Programs,
    host_says,
    outside_sends,
)

GATEWAYS: dict[int, IPv4Address | IPv6Address] = {4: NET1.gateway, 6: NET1.gateway6}


@pytest.fixture
def beside(programs: Programs) -> Iterator[Programs]:
    networks = programs.maps["networks"]
    before = networks[NET1.number]
    networks[NET1.number] = before._replace(flags=before.flags | Flag.NETWORK_BESIDE)
    yield programs
    networks[NET1.number] = before


def seen(packet: bytes) -> tuple[bytes, int]:
    """Source address and port that a container sees."""
    at, size, ports = (26, 4, 34) if packet[12:14] == b"\x08\0" else (22, 16, 54)
    return packet[at : at + size], int.from_bytes(packet[ports : ports + 2], "big")


@pytest.mark.parametrize(
    ("sender", "packet", "version"),
    [
        (None, outside_sends(HOST, p.tcp(40001, 8081, p.SYN)), 4),
        (None, outside_sends(HOST, p.udp(40002, 8081)), 4),
        (None, outside_sends(HOST6, p.tcp(40003, 8081, p.SYN)), 6),
        (B1, B1.sends(HOST, p.tcp(40004, 8081, p.SYN)), 4),
        (A2, A2.sends(HOST, p.tcp(40005, 8081, p.SYN)), 4),
        (LO, host_says(HOST, p.tcp(40006, 8081, p.SYN)), 4),
    ],
)
def test_who_connects_comes_from_the_gateway(
    beside: Programs, sender: object, packet: bytes, version: int
) -> None:
    got = beside.run(sender, packet)  # type: ignore[arg-type]
    assert got.reasons == {"DELIVERED": 1}
    assert seen(got.packet)[0] == GATEWAYS[version].packed


@pytest.mark.parametrize(("host", "outside", "version"), [(HOST, OUTSIDE, 4), (HOST6, OUTSIDE6, 6)])
def test_the_answer_goes_to_the_client_from_the_address_that_was_asked(
    beside: Programs, host: IPv4Address | IPv6Address, outside: IPv4Address | IPv6Address, version: int
) -> None:
    got = beside.run(None, outside_sends(host, p.udp(40010, 8081)))
    port = seen(got.packet)[1]
    sent = A2.sends(GATEWAYS[version], p.udp(53, port))
    answer = beside.run(A2, sent)
    assert answer.reasons == {"TO_OUTSIDE": 1}
    at, size = (26, 4) if version == 4 else (22, 16)
    assert answer.packet[at : at + 2 * size] == host.packed + outside.packed
    assert answer.packet[at + 2 * size :][:4] == (8081).to_bytes(2, "big") + (40010).to_bytes(2, "big")


def test_what_is_of_no_connection_is_the_hosts(beside: Programs) -> None:
    got = beside.run(A2, A2.sends(NET1.gateway, p.udp(53, 40020)))
    assert got.reasons == {"TO_HOST": 1}
