# SPDX-License-Identifier: Apache-2.0
"""O9: what is cut again after it has come out of a tunnel: segments of UDP (UDP_SEGMENT, as QUIC sends), and streams
that a member forwards. A kernel that takes such a packet for a tunnel's still loses it, or itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net.hosts import Host
from tests.net.peers import UNDER, Peers, member
from tests.net.test_overlay_packets import GIVE, TAKE, digest, script, serve

# A kernel may not survive it: it is tried in the lab (docs/lab.md) before it is tried on a machine that others need.
# Seen to hold on Linux 6.1.0-50, 6.12.117 and 7.3.4.
IN_LAB = "virtme" in Path("/proc/cmdline").read_text() or "DATAPATH_SEGMENTS" in os.environ
pytestmark = pytest.mark.skipif(not IN_LAB, reason="in the kernel lab, or with DATAPATH_SEGMENTS=1")

SEGMENT, SEGMENTS, TIMES = 1200, 40, 8
# Sends so many buffers, each of which the kernel, or the device, cuts into datagrams; says what came back at the end.
CUT = """
import socket, sys
UDP_SEGMENT = 103  # linux/udp.h
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(20)
client.connect((sys.argv[1], int(sys.argv[2])))
size, count, times = map(int, sys.argv[3:])
client.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
for n in range(times):
    client.send(b"".join(bytes([n, at]) * (size // 2) for at in range(count)))
    if client.recv(20) != b"more":  # so that nothing overflows
        sys.exit("lost")
client.send(b"end")
print(client.recv(200).decode())
"""
# Takes datagrams, says "more" after each buffer, and at the end the sizes that came and the digest of all.
COLLECT = """
import hashlib, socket, sys
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
server.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
sizes, got = set(), []
while True:
    data, peer = server.recvfrom(65535)
    if data == b"end":
        server.sendto(f"{sorted(sizes)} {hashlib.sha256(b''.join(sorted(got))).hexdigest()}".encode(), peer)
        sizes, got = set(), []
        continue
    sizes.add(len(data))
    got.append(data)
    if len(got) % 40 == 0:
        server.sendto(b"more", peer)
"""
ON = "tx on tso on gso on tx-udp_tnl-segmentation on"
OFFLOADS = {
    "nothing joined": "gro off",
    "joined": "gro on rx-udp-gro-forwarding on",
    "cut before the link": "gro on tx-udp_tnl-segmentation off",
}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Two hosts; the member of the second one forwards port 81 to a container on a network behind it, whose device lets
    nothing through that is larger than a frame."""
    with ExitStack() as stack:

        def make() -> Host:
            made = Host(tmp_path_factory.mktemp("host"))
            stack.callback(made.close)
            return made

        found = Peers(make)
        other = found.hosts[1]
        other.ctl("network create --subnet 10.77.0.0/24 back")
        other.run("c3", "--network back --ip 10.77.0.3")
        other.ctl("network connect --ip 10.77.0.2 back c2")
        other.in_("c2", "sysctl -q -w net.ipv4.ip_forward=1")
        other.in_("c2", "ethtool -K eth1 tso off gso off")
        nat = "iptables -t nat -A"
        other.in_("c2", f"{nat} PREROUTING -i eth0 -p tcp --dport 81 -j DNAT --to-destination 10.77.0.3:80")
        other.in_("c2", f"{nat} POSTROUTING -o eth1 -j MASQUERADE")
        found.join()
        serve(other, "c3", TAKE, "10.77.0.3", 80)
        for version in (4, 6):
            serve(other, "c2", COLLECT, member(2, version), 443)
        yield found


@pytest.fixture(params=list(OFFLOADS.values()), ids=list(OFFLOADS))
def offload(relay: Peers, request: pytest.FixtureRequest) -> Iterator[str]:
    for host in relay.hosts:
        host.try_(f"ethtool -K {UNDER} {request.param}")
    yield str(request.param)
    for host in relay.hosts:
        host.sh(f"ethtool -K {UNDER} {ON} gro off rx-udp-gro-forwarding off")


@pytest.mark.parametrize("version", [4, 6])
def test_segments_of_udp_arrive_as_datagrams_of_their_own(relay: Peers, offload: str, version: int) -> None:
    sent = [bytes([n, at]) * (SEGMENT // 2) for n in range(TIMES) for at in range(SEGMENTS)]
    wanted = hashlib.sha256(b"".join(sorted(sent))).hexdigest()
    said = relay.hosts[0].in_("c1", script(CUT, member(2, version), 443, SEGMENT, SEGMENTS, TIMES))
    assert said == f"[{SEGMENT}] {wanted}"


def test_a_stream_that_a_member_forwards_arrives_whole(relay: Peers, offload: str) -> None:
    assert relay.hosts[0].in_("c1", script(GIVE, member(2), 81, 8)) == f"10.77.0.2 {digest(8)}"
