# SPDX-License-Identifier: Apache-2.0
"""That a packet on an uplink is the host's counts for those of its flow that follow, until it could be another's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    HOST,
    HOST6,
    NEXT_HOP_MAC,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    UNSPEC,
    UPLINK_MAC,
    Programs,
    Reason,
)
from tests.bpf.test_flows import LIFE, as_if_new, bytes_counted, in_time, odd, unnoticed

PORT = 4022  # of the host's; nobody has published it
TABLES = "reserved", "ports"


class Flow(NamedTuple):
    """Of that version of IP, from outside to a port of the host's."""

    version: int
    tcp: bool

    @property
    def host(self) -> Any:
        return HOST if self.version == 4 else HOST6

    @property
    def proto(self) -> int:
        return p.TCP if self.tcp else p.UDP

    def carried(self, sport: int, dport: int, flags: int = p.ACK) -> p.Transport:
        return p.tcp(sport, dport, flags, b"more") if self.tcp else p.udp(sport, dport)

    def comes(self, port: int = PORT, flags: int = p.ACK, **header: Any) -> bytes:
        carried = self.carried(80, port, flags)
        if self.version == 4:
            body = p.ipv4(OUTSIDE, HOST, carried, **header)
            return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, body)
        body = p.ipv6(OUTSIDE6, HOST6, carried, **header)
        return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV6, body)


FLOWS = pytest.mark.parametrize(
    "flow",
    [Flow(version, tcp) for version in (4, 6) for tcp in (True, False)],
    ids=lambda flow: f"{'TCP' if flow.tcp else 'UDP'} over IPv{flow.version}",
)


def publish(programs: Programs, flow: Flow) -> None:
    address = A1.ip if flow.version == 4 else A1.ip6
    programs.maps["reserved"][abi.reserved_key(PORT, flow.proto)] = abi.reserved(1)
    programs.maps["ports"][abi.port_key(flow.host, PORT, flow.proto)] = abi.port(
        network=A1.net.number, endpoint=A1.number, addr=address, port=80
    )


@pytest.fixture(autouse=True)
def unpublished(programs: Programs) -> Iterator[None]:
    programs.forget()
    yield
    for proto in (p.TCP, p.UDP):
        programs.maps["reserved"].pop(abi.reserved_key(PORT, proto), None)
        for address in (HOST, HOST6):
            programs.maps["ports"].pop(abi.port_key(address, PORT, proto), None)


@FLOWS
@in_time
def test_a_flow_of_the_hosts_is_remembered_for_a_moment(programs: Programs, flow: Flow) -> None:
    """If whoever has published its port is killed before the programs are told."""
    frame = flow.comes(flags=p.SYN)
    before = bytes_counted(programs)
    programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
    once = bytes_counted(programs)
    with unnoticed(programs, *TABLES):
        publish(programs, flow)
        programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
        assert bytes_counted(programs) == {name: 2 * once[name] - before[name] for name in once}
        time.sleep(LIFE)
        assert programs.run(None, frame).reasons == {"DELIVERED": 1}


@FLOWS
def test_a_port_that_is_published_counts_for_the_next_packet(programs: Programs, flow: Flow) -> None:
    for _ in range(2):
        programs.expect(None, flow.comes(flags=p.SYN), UNSPEC, Reason.NOT_OURS)
    publish(programs, flow)
    assert programs.run(None, flow.comes(flags=p.SYN)).reasons == {"DELIVERED": 1}


@FLOWS
def test_an_answer_to_a_container_is_its_own_at_once(programs: Programs, flow: Flow) -> None:
    """As soon as it has asked, though the same numbers were of the host's a moment before."""
    asks = A1.sends(OUTSIDE if flow.version == 4 else OUTSIDE6, flow.carried(3333, 80, p.SYN))
    left = programs.run(A1, asks).packet
    at = 14 + (20 if flow.version == 4 else 40)
    answer = flow.comes(int.from_bytes(left[at : at + 2], "big"), p.SYN | p.ACK)
    programs.forget()
    for _ in range(2):
        programs.expect(None, answer, UNSPEC, Reason.NOT_OURS)
    assert programs.run(A1, asks).packet == left
    got = programs.run(None, answer)
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})


@FLOWS
def test_what_is_not_plain_is_looked_at_as_ever(programs: Programs, flow: Flow) -> None:
    frame = flow.comes(flags=p.SYN)
    as_if_new(programs, None, frame, odd(frame, 14))


@FLOWS
def test_other_numbers_are_of_another_flow(programs: Programs, flow: Flow) -> None:
    """Each differs in one place from the host's, to whose port that leads it."""
    publish(programs, flow)
    frame = flow.comes(PORT ^ 1)
    for _ in range(2):
        programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
    assert programs.run(None, flow.comes(PORT)).reasons == {"DELIVERED": 1}
