# SPDX-License-Identifier: Apache-2.0
"""Fragments on a real way in, where some are lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.net.compare import config, host_case, options
from tests.net.hosts import HOST, OUTSIDE, Host, ask, echo_server, eventually

MakeHost = Callable[..., Host]

# The first fragment of a datagram for one port; then both of one for another port, with the same number.
SEND = """
import socket, struct, sys
source, target, lost, port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind((source, 0))
heard.settimeout(60)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
addresses = socket.inet_aton(source) + socket.inet_aton(target)

def piece(number, offset, more, data):
    flags = offset // 8 | (0x2000 if more else 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), number, flags, 64, 17, 0)
    raw.sendto(head + addresses + data, (target, 0))

def datagram(port, fill):  # without a checksum
    data = fill * 1600
    return struct.pack("!HHHH", heard.getsockname()[1], port, 8 + len(data), 0) + data

piece(77, 0, True, datagram(lost, b"a")[:1400])
whole = datagram(port, b"b")
piece(77, 0, True, whole[:1400])
piece(77, 1400, False, whole[1400:])
print(heard.recv(100).decode().strip())
"""


def succeeds(host: Host, command: list[str]) -> bool:
    return host.outside.try_(command).returncode == 0


@host_case(
    14,
    "After a loss the next datagram with the same identification arrives whole, at its own container",
)
def test_an_identification_is_used_again_after_a_loss(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    for name, port in (("one", 8081), ("two", 8082)):
        host.ctl(f"network create {options(mode)} net{name}")
        host.run(name, f"--network net{name} -p {port}:53/udp", echo_server("udp", 53))
        asking = ask("udp", HOST, port, 1)
        with eventually() as until:
            until(partial(succeeds, host, asking))
    assert host.outside.sh(["python3", "-c", SEND, OUTSIDE, HOST, "8081", "8082"]) == OUTSIDE
