# SPDX-License-Identifier: Apache-2.0
"""Where the programs differ from the RFCs, or from the kernel, found by comparing random packets with the reference
model. Each is expected to fail until it is mended; then tests/model/situations.py withholds its situation no more."""

from __future__ import annotations

from ipaddress import IPv4Address

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import A2, B1, HOST, OUTSIDE, Programs

SPORT = 20100


def test_a_port_published_at_all_addresses_is_no_source_where_another_has_it(programs: Programs) -> None:
    """b1 publishes its 9000 as 8081 at every address, but at HOST 8081 is a2's: there nobody knows b1 by it."""
    ports, origins = programs.maps["ports"], programs.maps["origins"]
    key = abi.port_key(HOST, 8081, p.UDP)
    ports[key] = abi.port(network=1, endpoint=A2.number, addr=A2.ip, port=53)
    origin = abi.origin_key(IPv4Address(0), B1.number, 9000, p.UDP)
    origins[origin] = abi.origin(8081)
    try:
        got = programs.run(B1, B1.sends(OUTSIDE, p.udp(9000, 53)))
        assert got.reasons == {"TO_OUTSIDE": 1}
        assert int.from_bytes(got.packet[34:36], "big") != 8081
    finally:
        ports.pop(key)
        origins.pop(origin)
