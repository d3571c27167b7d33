# SPDX-License-Identifier: Apache-2.0
"""The packet path between hosts of one overlay network, with rows that the test writes (tests/net/peers.py)."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets
from tests.net.hosts import Host, loses, ping, reaches
from tests.net.peers import DEVICE, GATEWAY, UNDER, VNI, Peers, member, vtep

MakeHost = Callable[..., Host]

# Answers with the peer's address, the TTL of what it got, and the digest of it.
TAKE = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen(8)
print("ready", flush=True)
while True:
    connection, peer = server.accept()
    digest = hashlib.sha256()
    while data := connection.recv(1 << 20):
        digest.update(data)
    connection.sendall(f"{peer[0]} {digest.hexdigest()}".encode())
    connection.close()
"""
# Sends so many MiB of one byte after another, and prints what it hears.
GIVE = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
data = bytes(range(251)) * 4178
for _ in range(int(sys.argv[3])):
    client.sendall(data)
client.shutdown(socket.SHUT_WR)
print(client.recv(200).decode())
"""
# Answers each datagram with its sender's address and length.
TELL = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.socket(family, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(65535)
    server.sendto(f"{peer[0]} {len(data)}".encode(), peer)
"""
SAY = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
client = socket.socket(family, socket.SOCK_DGRAM)
client.settimeout(60)
client.connect((sys.argv[1], int(sys.argv[2])))
client.send(bytes(int(sys.argv[3])))
print(client.recv(200).decode())
"""


def digest(megabytes: int) -> str:
    return hashlib.sha256(bytes(range(251)) * 4178 * megabytes).hexdigest()


def script(text: str, *arguments: object) -> list[str]:
    return ["/usr/bin/python3", "-c", text, *map(str, arguments)]


def serve(host: Host, container: str, text: str, address: str, port: int) -> None:
    within = ["nsenter", "-t", str(host.process(container)), "--net"]
    process = host.start([*within, *script(text, address, port)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Two hosts whose tunnels are of IPv4, for all tests that change nothing about them."""
    with ExitStack() as stack:
        yield _made(stack, tmp_path_factory.mktemp("peers"), 4)


@pytest.fixture(scope="module")
def peers6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """The same with tunnels of IPv6."""
    with ExitStack() as stack:
        yield _made(stack, tmp_path_factory.mktemp("peers6"), 6)


def _made(
    stack: ExitStack,
    folder: Path,
    outer: int,
    prepare: Callable[[Peers], None] = lambda peers: None,
    under: int = 1500,
    **how: Any,
) -> Peers:
    def make() -> Host:
        inner = folder / f"host{len(list(folder.iterdir()))}"
        inner.mkdir()
        made = Host(inner)
        stack.callback(made.close)
        return made

    found = Peers(make, mtu=under)
    prepare(found)
    found.join(outer=outer, **how)
    for version in (4, 6):
        serve(found.hosts[1], "c2", TAKE, member(2, version), 80)
        serve(found.hosts[1], "c2", TELL, member(2, version), 53)
    return found


@pytest.fixture(params=[4, 6], ids=["over IPv4", "over IPv6"])
def either(request: pytest.FixtureRequest) -> Peers:
    found: Peers = request.getfixturevalue("peers" if request.param == 4 else "peers6")
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_members_on_two_hosts_reach_each_other_at_once(either: Peers, version: int) -> None:
    """O2: no packet is lost, and none has one hop less."""
    one, other = either.hosts
    either.counted(1), either.counted(2)
    said = one.in_("c1", f"ping -n -c 3 -i 0.01 -W 10 {member(2, version)}")
    assert said.count("ttl=64") == 3
    assert either.counted(1)["TO_PEER"] == either.counted(2)["TO_PEER"] == 3
    assert reaches(lambda command: other.try_in("c2", command), member(1, version))


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_arrives_whole_and_from_the_sender_itself(either: Peers, version: int) -> None:
    """O2, O8: segments cross as few large packets, which the tunnel's device frees of their headers."""
    one, other = either.hosts
    said = one.in_("c1", script(GIVE, member(2, version), 80, 16))
    assert said == f"{member(1, version)} {digest(16)}"
    errors = other.in_("c2", "cat /proc/net/snmp")
    tcp = [line.split() for line in errors.splitlines() if line.startswith("Tcp:")]
    assert dict(zip(*tcp, strict=True))["InCsumErrors"] == "0"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [100, 1400, 9000, 60000])
def test_datagrams_arrive_fragmented_or_not(either: Peers, version: int, size: int) -> None:
    one = either.hosts[0]
    assert one.in_("c1", script(SAY, member(2, version), 53, size)) == f"{member(1, version)} {size}"


@pytest.mark.parametrize("version", [4, 6])
def test_a_host_reaches_a_member_on_another_one_and_hears_its_answer(either: Peers, version: int) -> None:
    """S18, across hosts: every host has the gateway's address, and each gets its own answers."""
    one, other = either.hosts
    for _ in range(2):
        for host in (one, other):
            assert host.sh(ping(member(2, version), 3)).count("3 received") == 1
            said = host.sh(script(GIVE, member(2, version), 80, 1))
            assert said == f"{GATEWAY[version]} {digest(1)}"
            assert host.sh(script(SAY, member(2, version), 53, 10)) == f"{GATEWAY[version]} 10"


def test_what_a_member_asks_its_gateway_stays_on_its_host(peers: Peers) -> None:
    peers.counted(1)
    assert reaches(lambda command: peers.hosts[0].try_in("c1", command), GATEWAY[4])
    assert "TO_PEER" not in peers.counted(1)


def test_an_address_that_no_host_has_is_dropped_under_its_reason(peers: Peers) -> None:
    one = peers.hosts[0]
    one.in_("c1", "ip neigh replace 10.9.77.7 lladdr 02:42:0a:09:00:01 dev eth0")
    peers.counted(1)
    assert loses(lambda command: one.try_in("c1", command), "10.9.77.7")
    assert peers.counted(1)["DROP_NO_REMOTE"] == 1
    one.in_("c1", "ip neigh del 10.9.77.7 dev eth0")
    assert loses(lambda command: one.try_in("c1", command), "10.9.77.8")
    assert peers.counted(1)["DROP_UNKNOWN_ARP"] > 0


@pytest.mark.parametrize("offload", ["tx-udp_tnl-segmentation off", "tso off", "gso off", "tx off", "gro on"])
def test_a_stream_arrives_whatever_the_device_does_itself(peers: Peers, offload: str) -> None:
    """O8."""
    one, other = peers.hosts
    for host in (one, other):
        host.try_(f"ethtool -K {UNDER} {offload}")
    try:
        assert one.in_("c1", script(GIVE, member(2), 80, 8)) == f"{member(1)} {digest(8)}"
    finally:
        for host in (one, other):
            host.sh(f"ethtool -K {UNDER} tx on tso on gso on tx-udp_tnl-segmentation on gro off")


def test_the_device_of_tunnels_joins_nothing_that_was_joined_on_the_link(peers: Peers) -> None:
    for host in peers.hosts:
        assert "generic-receive-offload: off" in host.sh(f"ethtool -k {DEVICE}")


@pytest.fixture
def narrow(make_host: MakeHost) -> Peers:
    """Hosts between which 1400 bytes fit; their containers believe in 1450."""
    return Peers(make_host, mtu=1400)


@pytest.fixture(scope="module")
def narrow_tunnels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """The same, joined."""
    with ExitStack() as stack:
        yield _made(stack, tmp_path_factory.mktemp("narrow"), 4, under=1400)


@pytest.mark.parametrize("version", [4, 6])
def test_what_does_not_fit_is_told_so_and_streams_flow(narrow_tunnels: Peers, version: int) -> None:
    """O7: with DF the sender hears of the tunnel's size; without, the packet arrives."""
    narrow, one = narrow_tunnels, narrow_tunnels.hosts[0]
    size = {4: 1422, 6: 1402}[version]
    narrow.counted(1)
    refused = one.try_in("c1", f"ping -n -c 1 -W 5 -M do -s {size} {member(2, version)}")
    assert "1350" in refused.stdout, refused.stdout
    assert narrow.counted(1)["DROP_TOO_BIG"] == 1
    if version == 4:
        said = one.in_("c1", f"ping -n -c 1 -W 10 -M dont -s {size} {member(2)}")
        assert "1 received" in said
    for place in (lambda command: one.in_("c1", command), one.sh):
        assert place(script(GIVE, member(2, version), 80, 4)).endswith(digest(4))


def test_without_its_device_a_host_still_sends_and_says_what_it_cannot(narrow: Peers) -> None:
    narrow.join(device=False)
    one = narrow.hosts[0]
    assert reaches(lambda command: one.try_in("c1", command), member(2))
    narrow.counted(1)
    assert loses(lambda command: one.try_in("c1", command), f"-M dont -s 1422 {member(2)}")
    assert narrow.counted(1)["DROP_NO_TUNNEL"] == 1


def test_with_checksums_the_device_sends(make_host: MakeHost) -> None:
    made = Peers(make_host)
    made.join(checksum=True)
    one, other = made.hosts
    serve(other, "c2", TAKE, member(2), 80)
    assert one.in_("c1", script(GIVE, member(2), 80, 4)).endswith(digest(4))
    assert "RX:" in one.sh(f"ip -s link show {DEVICE}")


ICC_OFF = "-o com.docker.network.bridge.enable_icc=false"


def test_without_icc_members_of_two_hosts_may_not_talk(make_host: MakeHost) -> None:
    made = Peers(make_host, options=ICC_OFF)
    made.join()
    one = made.hosts[0]
    assert loses(lambda command: one.try_in("c1", command), member(2))
    assert made.counted(1)["DROP_ICC"] == 1
    # Nor does the other host let in what its peer has let out.
    with made.open(1) as programs:
        number = made.network(one).number
        value = programs.networks[number]
        programs.networks[number] = value._replace(flags=value.flags | 8)
    made.counted(2)
    assert loses(lambda command: one.try_in("c1", command), member(2))
    assert made.counted(2)["DROP_ICC"] == 1
    # The host itself may.
    assert reaches(one.try_, member(2))


def test_a_link_opens_what_is_exposed_across_hosts(make_host: MakeHost) -> None:
    made = Peers(make_host, options=ICC_OFF)
    made.join()
    one, other = made.hosts
    for number in (1, 2):
        with made.open(number) as programs:
            for proto, port in ((6, 80), (17, 53)):
                key = abi.link_key(ip_address(member(1)), ip_address(member(2)), port, proto)
                programs.links[key] = abi.link(1, 2)
    serve(other, "c2", TAKE, member(2), 80)
    serve(other, "c2", TELL, member(2), 53)
    assert one.in_("c1", script(GIVE, member(2), 80, 2)).endswith(digest(2))
    assert one.in_("c1", script(SAY, member(2), 53, 9000)) == f"{member(1)} 9000"
    made.counted(2)
    assert loses(lambda command: other.try_in("c2", command), member(1))
    assert made.counted(2)["DROP_ICC"] == 1


# Sends a datagram of these bytes (hex) from an address to the port of tunnels, with a value of TOS.
FORGE = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(sys.argv[4]))
sender.bind((sys.argv[1], 0))
sender.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[2], 4789))
"""
FORGER = "198.51.100.9"  # nobody's of the cluster


def inner(
    src: str, dst: str, *, to: str = "02:00:00:00:01:01", payload: bytes = b"forged", tos: int = 0
) -> bytes:
    """A frame with a datagram."""
    body = packets.ipv4(src, dst, packets.udp(1000, 53, payload))
    if tos:
        header = bytes((body[0], tos)) + body[2:10] + bytes(2) + body[12:20]
        body = header[:10] + packets.checksum(header).to_bytes(2, "big") + header[12:] + body[20:]
    return packets.ethernet(to, "02:00:00:00:01:02", packets.ETH_IPV4, body)


def forge(
    sender: Host, frame: bytes, *, vni: int = VNI, source: str = vtep(2), tos: int = 0, flags: int = 8
) -> None:
    datagram = bytes((flags, 0, 0, 0)) + (vni << 8).to_bytes(4, "big") + frame
    sender.sh(script(FORGE, source, vtep(1), datagram.hex(), tos))


HONEST = inner(member(2), member(1))
BROADCAST = inner(member(2), "10.9.255.255", to=packets.BROADCAST)
QUESTION = packets.arp(packets.REQUEST, "02:00:00:00:01:02", member(2), packets.NOBODY, member(1))
ARP = packets.ethernet(packets.BROADCAST, "02:00:00:00:01:02", packets.ETH_ARP, QUESTION)


@pytest.mark.parametrize(
    ("frame", "how", "reason"),
    [
        pytest.param(HONEST, {}, "DELIVERED", id="from a member of that host"),
        pytest.param(HONEST, {"source": FORGER}, "DROP_TUNNEL_SENDER", id="from no host of the cluster"),
        pytest.param(inner("10.9.1.7", member(1)), {}, "DROP_TUNNEL_SOURCE", id="with another host's source"),
        pytest.param(
            inner("203.0.113.9", member(1)), {}, "DROP_TUNNEL_SOURCE", id="with a source of nobody's"
        ),
        pytest.param(
            inner("10.9.0.1", "10.9.0.1"), {}, "DROP_TUNNEL_SOURCE", id="from the gateway to the gateway"
        ),
        pytest.param(inner(member(2), "10.9.1.77"), {}, "DROP_NO_ENDPOINT", id="to nobody"),
        pytest.param(HONEST, {"vni": 77}, "DROP_VNI", id="of another network"),
        pytest.param(HONEST, {"flags": 0}, "NOT_OURS", id="without a network"),
        pytest.param(HONEST[:10], {}, "DROP_TRUNCATED", id="cut in its Ethernet header"),
        pytest.param(HONEST[:20], {}, "DROP_TRUNCATED", id="cut in its IP header"),
        pytest.param(HONEST[:36], {}, "DROP_TRUNCATED", id="cut in its UDP header"),
        pytest.param(BROADCAST, {}, "DROP_TUNNEL_FRAME", id="to all"),
        pytest.param(ARP, {}, "DROP_TUNNEL_FRAME", id="a question for an address"),
        pytest.param(HONEST[:12] + b"\x81\0\0\1" + HONEST[12:], {}, "DROP_VLAN", id="with a tag"),
        pytest.param(HONEST[:12] + b"\x88\xcc" + HONEST[14:], {}, "DROP_ETHERTYPE", id="of another kind"),
        pytest.param(HONEST, {"tos": 3}, "DROP_CONGESTED", id="marked as congested, unknown to its sender"),
        pytest.param(inner(member(2), member(1), tos=2), {"tos": 3}, "DELIVERED", id="marked as congested"),
    ],
)
def test_a_packet_of_a_tunnel_is_believed_from_whom_it_can_come(
    peers: Peers, frame: bytes, how: dict[str, Any], reason: str
) -> None:
    """O10."""
    other = peers.hosts[1]
    if f"{FORGER}/24" not in other.sh(f"ip address show {UNDER}"):
        other.sh(f"ip address add {FORGER}/24 dev {UNDER}")
    peers.counted(1)
    forge(other, frame, **how)
    found = peers.counted(1)
    assert {name for name in found if name not in ("NOT_OURS", "ANSWERED", "TO_PEER")} == {reason} - {
        "NOT_OURS"
    }
    assert reason in found


def test_a_plain_vxlan_host_is_a_peer(make_host: MakeHost) -> None:
    """O12: laid out as flannel does: no learning, the MAC of each host's end is a neighbour, a route each block."""
    made = Peers(make_host)
    made.join(numbers=(1,))
    one, other = made.hosts
    other.ctl("down")
    index = one.sh("cat /proc/net/dev").count(DEVICE)
    assert index == 1
    for line in (
        f"ip link add flannel.1 type vxlan id {VNI} local {vtep(2)} dev {UNDER} dstport 4789 nolearning",
        "ip link set flannel.1 address 02:00:00:00:01:02 mtu 1450 up",
        f"ip address add {member(2)}/32 dev flannel.1",
        "ip neigh add 10.9.1.0 lladdr 02:00:00:00:01:01 dev flannel.1 nud permanent",
        f"bridge fdb add 02:00:00:00:01:01 dev flannel.1 dst {vtep(1)}",
        "ip route add 10.9.1.0/24 via 10.9.1.0 dev flannel.1 onlink",
    ):
        other.sh(line)
    assert reaches(lambda command: one.try_in("c1", command), member(2))
    assert reaches(other.try_, member(1))
    serve(one, "c1", TAKE, member(1), 80)
    said = other.sh(script(GIVE, member(1), 80, 8))
    assert said == f"{member(2)} {digest(8)}"
    process = other.start(script(TAKE, member(2), 80), stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert one.in_("c1", script(GIVE, member(2), 80, 8)) == f"{member(1)} {digest(8)}"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Two hosts on one link, whose members' packets need no tunnel."""
    with ExitStack() as stack:
        yield _made(stack, tmp_path_factory.mktemp("straight"), 4, transport="TRANSPORT_DIRECT", direct=True)


@pytest.mark.parametrize("version", [4, 6])
def test_on_one_link_packets_go_as_they_are(straight: Peers, version: int) -> None:
    """O13: IPv6 over a link whose ends have IPv4 addresses goes in tunnels still."""
    one, other = straight.hosts
    watch = other.start(
        [
            "tcpdump",
            "-Z",
            "root",
            "-n",
            "-l",
            "-c",
            "1",
            "-i",
            UNDER,
            f"src {vtep(1)} and udp port 4789 or src {member(1)}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watch.stderr is not None and "listening" in watch.stderr.readline() + watch.stderr.readline()
    straight.counted(1), straight.counted(2)
    assert one.in_("c1", f"ping -n -c 2 -i 0.01 -W 10 {member(2, version)}").count("ttl=64") == 2
    assert straight.counted(1)["TO_PEER"] == straight.counted(2)["TO_PEER"] == 2
    assert watch.stdout is not None
    assert ("4789" in watch.stdout.readline()) == (version == 6)
    said = one.in_("c1", script(GIVE, member(2, version), 80, 16))
    assert said == f"{member(1, version)} {digest(16)}"
    assert one.in_("c1", script(SAY, member(2, version), 53, 9000)) == f"{member(1, version)} 9000"
    assert one.sh(script(GIVE, member(2, version), 80, 1)) == f"{GATEWAY[version]} {digest(1)}"


def test_what_comes_straight_is_believed_from_whom_it_can_come(straight: Peers) -> None:
    one, other = straight.hosts
    mac = one.sh(f"ip -o link show {UNDER}").partition("link/ether ")[2].split()[0]
    own = "02:00:00:00:01:02"
    for source, reason in (
        (member(2), "DELIVERED"),
        ("10.9.1.7", "DROP_DIRECT"),
        ("203.0.113.9", "DROP_DIRECT"),
    ):
        straight.counted(1)
        frame = packets.ethernet(
            mac, own, packets.ETH_IPV4, packets.ipv4(source, member(1), packets.udp(1, 53))
        )
        other.sh(script(RAW, UNDER, frame.hex()))
        found = straight.counted(1)
        assert reason in found and ("DELIVERED" in found) == (reason == "DELIVERED"), found


# Sends a frame by a device.
RAW = """
import socket, sys
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind((sys.argv[1], 0))
sender.send(bytes.fromhex(sys.argv[2]))
"""


def test_what_does_not_fit_on_the_link_is_told_so(narrow: Peers) -> None:
    """O7, without tunnels."""
    narrow.join(transport="TRANSPORT_DIRECT", direct=True)
    one, other = narrow.hosts
    refused = one.try_in("c1", f"ping -n -c 1 -W 5 -M do -s 1422 {member(2)}")
    assert "1400" in refused.stdout, refused.stdout
    assert "1 received" in one.in_("c1", f"ping -n -c 1 -W 10 -M dont -s 1422 {member(2)}")
    serve(other, "c2", TAKE, member(2), 80)
    assert one.in_("c1", script(GIVE, member(2), 80, 4)).endswith(digest(4))


def test_the_hosts_very_first_packet_arrives(either: Peers) -> None:
    """Before anybody knows the MAC address of the other host."""
    for host in either.hosts:
        host.sh(f"ip neigh flush dev {UNDER}")
    assert reaches(either.hosts[0].try_, member(2))


# Joins two devices of the kind tun, one in each of these namespaces, as a tunnel between hosts does whose packets have
# no Ethernet header; what it would encrypt on the way is of no matter to the programs.
RELAY = """
import ctypes, fcntl, os, select, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
ends = []
for path in sys.argv[2:4]:
    assert not libc.setns(os.open(path, os.O_RDONLY), 0x40000000)
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    ends.append(end)
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        try:
            os.write(ends[1 - ends.index(end)], os.read(end, 65536))
        except OSError:
            pass
"""
SECRET = "wg0"


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Two hosts with a device for encrypted tunnels."""
    with ExitStack() as stack:
        yield _made(
            stack,
            tmp_path_factory.mktemp("secret"),
            4,
            prepare=_relayed,
            transport="TRANSPORT_WIREGUARD",
            wireguard=SECRET,
        )


def _relayed(peers: Peers) -> None:
    one, other = peers.hosts
    relay = one.start(script(RELAY, SECRET, one.path, other.path), stdout=subprocess.PIPE)
    assert relay.stdout is not None and relay.stdout.readline() == "ready\n"
    for host in (one, other):
        host.sh(f"ip link set {SECRET} addrgenmode none")  # nothing of the kernel's own passes there
        host.sh(f"ip link set {SECRET} mtu 1420 up")


@pytest.mark.parametrize("version", [4, 6])
def test_encrypted_packets_go_by_their_device_alone(secret: Peers, version: int) -> None:
    one = secret.hosts[0]
    secret.counted(1), secret.counted(2)
    assert one.in_("c1", f"ping -n -c 3 -i 0.01 -W 10 {member(2, version)}").count("ttl=64") == 3
    assert secret.counted(1)["TO_PEER"] == secret.counted(2)["TO_PEER"] == 3
    said = one.in_("c1", script(GIVE, member(2, version), 80, 2))
    assert said == f"{member(1, version)} {digest(2)}"
    size = {4: 1393, 6: 1373}[version]
    refused = one.try_in("c1", f"ping -n -c 1 -W 5 -M do -s {size} {member(2, version)}")
    assert "1420" in refused.stdout + refused.stderr


def test_what_is_to_come_encrypted_is_not_believed_in_clear(secret: Peers) -> None:
    """O14: neither in another tunnel nor as it is; and what the host itself asks, whose name every host has, leaves as
    members' packets do."""
    one, other = secret.hosts
    secret.counted(1)
    forge(other, HONEST)
    assert secret.counted(1)["DROP_TUNNEL_SOURCE"] == 1
    assert reaches(one.try_, member(2))
    assert secret.counted(1)["TO_PEER"] == 1
    # Nothing that comes out of the device is for the host itself.
    one.sh("ip address add 198.18.0.1/32 dev lo")
    other.sh(f"ip route add 198.18.0.1/32 dev {SECRET}")
    assert loses(other.try_, "198.18.0.1")
    assert secret.counted(1)["DROP_DIRECT"] == 1
    # Out of the device comes what a host of the cluster has, and nothing else.
    with secret.open(1) as programs:
        key = abi.remote_key(secret.network(one).number, ip_address("10.9.2.0"))
        value = programs.remote_blocks[key]
        del programs.remote_blocks[key]
        assert loses(lambda command: other.try_in("c2", command), member(1))
        programs.remote_blocks[key] = value
    assert secret.counted(1)["DROP_DIRECT"] == 1
