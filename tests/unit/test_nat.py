# SPDX-License-Identifier: Apache-2.0
"""Which of the host's ports masquerading has for itself, and at which ones containers' own ports are seen."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from datapath.dataplane import entries, host_entries
from datapath.dataplane.structs import OriginKey, OriginValue
from datapath.model.host import HostNetwork
from datapath.plan.nat import nat_ports, reserved_ports
from datapath.plan.ports import parse_reserved
from tests.unit.planned_host import PlannedHost


@pytest.mark.parametrize(
    ("ephemeral", "chosen"),
    [
        ((32768, 60999), (1024, 32767)),
        ((1024, 4999), (5000, 65535)),
        ((2048, 65535), (1024, 2047)),
        ((2047, 65535), (49664, 65535)),
        ((2000, 65000), (49251, 65000)),
        ((1024, 65535), (49408, 65535)),
        ((1, 65535), (49153, 65535)),
        ((40000, 40127), (1024, 39999)),
    ],
)
def test_the_larger_gap_or_the_end_of_the_range(ephemeral: tuple[int, int], chosen: tuple[int, int]) -> None:
    assert nat_ports(ephemeral) == chosen
    _, row = host_entries.host_entry(HostNetwork(ephemeral=ephemeral))
    assert (row.nat_port_first, row.nat_port_last) == chosen
    assert (row.ephemeral_first, row.ephemeral_last) == ephemeral


def test_a_part_of_the_range_is_reserved_while_programs_forward_for_somebody() -> None:
    host = PlannedHost()
    assert not reserved_ports(host.state, (1024, 65535))
    host.network("net")
    assert reserved_ports(host.state, (1024, 65535)) == frozenset(range(49408, 65536))
    assert not reserved_ports(host.state, (32768, 60999))


def test_the_kernels_own_forwarding_needs_no_ports_of_its_own() -> None:
    host = PlannedHost()
    host.network("net", options=("com.datapath.mode=iptables",))
    assert not reserved_ports(host.state, (1024, 65535))


def test_published_ports_and_those_of_masquerading_are_reserved_together() -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web", "net", publish=("5000-5001:80-81", "60000:82"))
    assert reserved_ports(host.state, (1024, 65535)) == parse_reserved("5000-5001,49408-65535")


def test_a_containers_port_is_seen_at_the_first_host_port_that_leads_there() -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web", "net", publish=("8080:80", "9080:80", "10000-10002:79-81", "127.0.0.1:8081:80"))
    (web,) = host.state.endpoints_of_sandbox(host.state.container("web").id)
    number = web.number
    rows = dict(entries.origin_entries(web))
    every = ip_address("0.0.0.0")
    assert rows == {
        OriginKey(every, number, 79, 6): OriginValue(10000),
        OriginKey(every, number, 80, 6): OriginValue(8080),
        OriginKey(every, number, 81, 6): OriginValue(10002),
        OriginKey(ip_address("127.0.0.1"), number, 80, 6): OriginValue(8081),
    }
    added, left = web.ports[1:2], replace(web, ports=web.ports[1:])
    assert dict(entries.origin_entries(web, added))[OriginKey(every, number, 80, 6)] == OriginValue(8080)
    assert dict(entries.origin_entries(left, added))[OriginKey(every, number, 80, 6)] == OriginValue(9080)
    assert OriginKey(every, number, 79, 6) in entries.origin_entries(web, added)
    assert not entries.origin_entries(web, ())
