# SPDX-License-Identifier: Apache-2.0
"""Packets that are larger than their way takes: cut where they may be, as the kernel's own forwarding cuts them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.net.compare import config, host_case
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace
from tests.net.test_hostnet_route import MEASURING, SENDING, script, serve

MakeHost = Callable[..., Host]
# Says, for each IPv4 packet that arrives, how long it is, whether it is a fragment, and its options.
WATCHING = """
import json, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
tap.bind(("eth0", 0x800))
print("ready", flush=True)
while True:
    packet, where = tap.recvfrom(65536)
    if where[2] != socket.PACKET_OUTGOING:
        size = (packet[0] & 15) * 4
        word = int.from_bytes(packet[6:8], "big")
        print(json.dumps([len(packet), word & 0x3FFF, packet[20:size].hex()]), flush=True)
"""
# As SENDING, with IP options.
SENDING_OPTIONS = SENDING.replace(
    "client.connect(", "client.setsockopt(0, 4, bytes.fromhex(sys.argv[5]))\nclient.connect("
)


class Watch:
    """What arrives at a device eth0."""

    def __init__(self, place: Namespace, prefix: list[str]) -> None:
        process = place.start([*prefix, *script(WATCHING)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        self.lines = process.stdout

    def until(self, length: int) -> list[tuple[int, int, str]]:
        """All packets up to the first of that length."""
        found: list[tuple[int, int, str]] = []
        while not found or found[-1][0] != length:
            found.append(tuple(json.loads(self.lines.readline())))
        return found[:-1]


COPIED, FIRST = "94040000", "52040000"  # router alert; of those without the copied flag, a traceroute's


@pytest.mark.parametrize("given", [COPIED, FIRST, COPIED + FIRST, FIRST + COPIED])
@host_case(
    3,
    "A way out of 1400 bytes: IP options are no reason not to fragment, and go into the fragments that they have to",
)
def test_options_go_into_fragments(make_host: MakeHost, given: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("client")
    for place in (host, host.outside):
        place.sh("ip link set eth0 mtu 1400")
    serve(host.outside, script(MEASURING, 90))
    watch = Watch(host.outside, [])
    assert host.in_("client", script(SENDING_OPTIONS, OUTSIDE, 90, 1450, 60, given)) == HOST
    assert host.in_("client", script(SENDING, OUTSIDE, 90, 77, 60)) == HOST
    first, last = watch.until(77 + 28)
    assert (first[1], first[2]) == (0x2000, given)
    assert last[1] < 0x2000 and last[2].replace("01", "") == (COPIED if COPIED in given else "")
