# SPDX-License-Identifier: Apache-2.0
"""Uplinks of every kind, with and without an Ethernet header: published ports, the way out, ACLs, errors, sizes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from datapath.kernel import sysctl
from datapath.kernel.netns import enter
from tests.bpf import packets
from tests.net.compare import EBPF, config, host_case
from tests.net.hosts import BOTH_WAYS, Host, Namespace, eventually, ping, reaches
from tests.net.uplinks import BARE, IFF_NO_PI, IFF_TUN, KINDS, MTU, NAME, TUNSETIFF, TUNSETLINK, linked, made
from tests.net.wire import Container, Place, call, fails, opened, serving, start_container

NEAR, FAR, OTHER, BEHIND = "10.66.0.1", "10.66.0.2", "10.66.0.3", "10.67.0.5"
NEAR6, FAR6, OTHER6, BEHIND6 = "fd66::1", "fd66::2", "fd66::3", "fd67::5"
# Whose first bytes are ethertypes, where a header is expected that is not there: IPv4's, IPv6's.
FORGED = ("8.0.1.1", "134.221.1.1")
SMALL = 1280  # of the containers' network `small`
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 2, 14, 23, 24
IP_PMTUDISC_OMIT = 5


class World(NamedTuple):
    """`web` is on a network of both families, `small` on one that takes small packets only. From outside there is a
    second way to it: the host's address at that link is 10.66.0.1, what is far there has 10.66.0.2 and 10.66.0.3,
    and 10.67.0.5 lies behind it. The same of IPv6, where the link carries it."""

    host: Host
    web: Container
    small: Container
    ipv4: bool
    ipv6: bool

    def each(self, four: str, six: str) -> list[str]:
        """Those of the two that the link can carry."""
        return [four] * self.ipv4 + [six] * self.ipv6


Worlds = Callable[[str, str], World]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """World by kind of uplink and mode of the networks. Those of one kind at a time."""
    made: dict[tuple[str, str], World] = {}
    stack = ExitStack()

    def find(kind: str, mode: str) -> World:
        if not any(there == kind for there, _ in made):
            stack.close()
            made.clear()
        if (kind, mode) not in made:
            made[kind, mode] = _build(stack, Host(tmp_path_factory.mktemp("host"), config=config(mode)), kind)
        return made[kind, mode]

    with stack:
        yield find


def _build(stack: ExitStack, host: Host, kind: str) -> World:
    stack.callback(host.close)
    with ExitStack() as links:  # a device of a relay is to go before its host does
        KINDS[kind](host, links)
        stack.push(links.pop_all())
    ipv4, ipv6 = True, kind != "ipip"
    ends: tuple[tuple[Namespace, tuple[str, ...]], ...] = (
        (host, (NEAR, NEAR6)),
        (host.outside, (FAR, FAR6, OTHER, OTHER6)),
    )
    for place, addresses in ends:
        for address in addresses:
            length = 64 if ":" in address else 24
            if ipv6 or ":" not in address:
                place.sh(f"ip address add {address}/{length} dev {NAME} {'nodad' if ':' in address else ''}")
        place.sh(f"ip link set {NAME} mtu {MTU} up")
    host.outside.sh(f"ip address add {BEHIND}/32 dev lo")
    host.sh(f"ip route add 10.67.0.0/24 via {FAR} dev {NAME}")
    for forged in FORGED:
        host.sh(f"ip route add {forged}/32 dev {NAME}")
        host.outside.sh(f"ip address add {forged}/32 dev lo")
    if ipv6:
        host.outside.sh(f"ip -6 address add {BEHIND6}/128 dev lo")
        host.sh(f"ip -6 route add fd67::/64 via {FAR6} dev {NAME}")
    ready = ping(FAR), *((ping(FAR6),) if ipv6 else ())
    with eventually() as until:  # a bond's port, a bridge's port, WireGuard's handshake
        until(lambda: all(host.try_(command.replace("-W 60", "-W 1")).returncode == 0 for command in ready))
    host.ctl("network create --ipv6 net")
    host.ctl(f"network create --ipv6 -o com.docker.network.driver.mtu={SMALL} small")
    ports = "-p 8080:80 -p 8080:80/udp -p 8083:83 -p 8084:84/udp"
    web = start_container(host, "web", f"--network net {ports}")
    small = start_container(host, "small", "--network small -p 8090:80/udp -p 8091:80")
    return World(host, web, small, ipv4, ipv6)


each_kind = pytest.mark.parametrize(
    "kind", KINDS, scope="module"
)  # so that all tests of one kind are run together
PROTOCOLS = ("tcp", "udp")


@contextlib.contextmanager
def servers(place: Place, port: int, *addresses: str) -> Iterator[None]:
    """Of both protocols, at these addresses, or else at all of both families."""
    with enter(place.path):  # so that servers of both families get the same port
        sysctl.write("net/ipv6/bindv6only", "1")
    with ExitStack() as stack:
        for proto in PROTOCOLS:
            for address in addresses or ("0.0.0.0", "::"):
                stack.enter_context(serving(place, proto, port, address))
        yield


@each_kind
@host_case(1, "A published port is reached through an uplink of any kind, and sees the client's own address")
def test_s19_a_published_port_is_reached_through_any_kind_of_uplink(
    world: Worlds, kind: str, mode: str
) -> None:
    at = world(kind, mode)
    with servers(at.web, 80):
        for proto in PROTOCOLS:
            for asked, own in zip(at.each(NEAR, NEAR6), at.each(OTHER, OTHER6), strict=True):
                answer = call(at.host.outside, proto, asked, 8080, source=(own, 0))
                assert (answer.seen, answer.peer) == (own, asked)


@each_kind
@host_case(1, "A container reaches what is behind an uplink of any kind, with the host's address there")
def test_s21_the_way_out_leads_through_any_kind_of_uplink(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    with servers(at.host.outside, 90, *at.each(FAR, FAR6), *at.each(BEHIND, BEHIND6)):
        for proto in PROTOCOLS:
            for targets in (at.each(FAR, FAR6), at.each(BEHIND, BEHIND6)):
                for target, source in zip(targets, at.each(NEAR, NEAR6), strict=True):
                    answer = call(at.web, proto, target, 90)
                    assert (answer.seen, answer.peer) == (source, target)
    for target in at.each(BEHIND, BEHIND6):
        assert reaches(at.web.try_, target, 3)


@each_kind
@host_case(1, "ICMP errors come through an uplink of any kind, in both directions")
def test_s21_icmp_errors_come_through_any_kind_of_uplink(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    for target in at.each(BEHIND, BEHIND6):  # nobody is at that port: the far machine says so
        assert fails(at.web, "udp", target, 4711) == errno.ECONNREFUSED
    for asked in at.each(NEAR, NEAR6):  # nobody is at the container's port: it says so
        assert fails(at.host.outside, "udp", asked, 8084) == errno.ECONNREFUSED


def stream(sender: socket.socket, receiver: socket.socket, size: int) -> bool:
    """Whether all bytes arrive that the other end of the connection is made to send."""
    thread = threading.Thread(target=lambda: sender.sendall(bytes(size)), daemon=True)
    thread.start()
    left = size
    while left:
        got = len(receiver.recv(1 << 16))
        if not got:
            return False
        left -= got
    thread.join()
    return True


@contextlib.contextmanager
def connection(
    client: Place, asked: str, port: int, server: Place, inner: int
) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with opened(server, family=family) as listening, opened(client, family=family) as ours:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("::" if ":" in asked else "0.0.0.0", inner))
        listening.listen()
        ours.connect((asked, port))
        theirs, _ = listening.accept()
        with theirs:
            theirs.settimeout(ours.gettimeout())
            yield ours, theirs


@each_kind
@host_case(1, "Long TCP streams pass an uplink of any kind whose packets are smaller than the network's")
def test_s22_long_streams_pass_any_kind_of_uplink(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    for asked, target in zip(at.each(NEAR, NEAR6), at.each(BEHIND, BEHIND6), strict=True):
        for client, address, port, server, inner in (
            (at.host.outside, asked, 8083, at.web, 83),
            (at.host.outside, asked, 8091, at.small, 80),
            (at.web, target, 93, at.host.outside, 93),
        ):
            with connection(client, address, port, server, inner) as (one, other):
                assert stream(one, other, 1 << 19) and stream(other, one, 1 << 19)


def path_mtu(client: Place, address: str, port: int, size: int) -> int:
    """What the kernel of a client takes for the path's MTU, once a datagram of that size was too big for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    level, discover, mtu = (
        (41, IPV6_MTU_DISCOVER, IPV6_MTU) if ":" in address else (0, IP_MTU_DISCOVER, IP_MTU)
    )
    with opened(client, socket.SOCK_DGRAM, family) as sock:
        sock.setsockopt(level, discover, IP_PMTUDISC_DO)
        sock.connect((address, port))
        deadline = time.monotonic() + 60
        while True:
            try:
                sock.send(bytes(size))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return int(sock.getsockopt(level, mtu))
            assert time.monotonic() < deadline, "nobody said that it is too big"
            time.sleep(0.01)


@each_kind
@host_case(1, "Who sends too large a packet through an uplink of any kind is told, in both directions")
def test_s22_what_is_too_big_is_told_of_through_any_kind_of_uplink(
    world: Worlds, kind: str, mode: str
) -> None:
    at = world(kind, mode)
    for target in at.each(BEHIND, BEHIND6):
        assert path_mtu(at.web, target, 4711, 1440) == MTU
    for asked in at.each(NEAR, NEAR6):
        assert path_mtu(at.host.outside, asked, 8090, SMALL + 20) == SMALL


@each_kind
@host_case(1, "Datagrams in fragments pass an uplink of any kind, in both directions")
def test_s22_fragments_pass_any_kind_of_uplink(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    for asked, target in zip(at.each(NEAR, NEAR6), at.each(BEHIND, BEHIND6), strict=True):
        family = socket.AF_INET6 if ":" in asked else socket.AF_INET
        for client, address, port, place, inner in (
            (at.host.outside, asked, 8084, at.web, 84),
            (at.web, target, 94, at.host.outside, 94),
        ):
            own = target if client is at.web else "::" if ":" in asked else "0.0.0.0"
            with opened(place, socket.SOCK_DGRAM, family) as server:
                server.bind((own, inner))
                with opened(client, socket.SOCK_DGRAM, family) as ours, eventually() as until:
                    # Who sends fragments that are too big is told so at the first time, and they are lost.
                    until(functools.partial(long_answer, server, ours, (address, port)))


def long_answer(server: socket.socket, client: socket.socket, to: tuple[str, int]) -> bool:
    """Asks with several fragments, and answers with several."""
    server.settimeout(0.5)
    client.settimeout(0.5)
    try:
        client.sendto(b"ask" * 1500, to)
        data, peer = server.recvfrom(65535)
        assert data == b"ask" * 1500
        server.sendto(b"answer" * 1000, peer)
        return client.recvfrom(65535)[0] == b"answer" * 1000
    except TimeoutError:
        return False


@each_kind
@host_case(3, "What may be fragmented comes to a narrow network in fragments, through an uplink of any kind")
def test_s22_what_may_be_fragmented_is_behind_any_kind_of_uplink(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    with (
        opened(at.small, socket.SOCK_DGRAM) as server,
        opened(at.small, socket.SOCK_DGRAM, socket.AF_PACKET, socket.htons(0x800)) as tap,
        opened(at.host.outside, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 80))
        tap.bind(("eth0", 0x800))
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
        for size in (SMALL - 28, SMALL - 27, MTU - 28, 4000):
            data = bytes(index % 251 for index in range(size))
            client.sendto(data, (NEAR, 8090))
            assert server.recvfrom(65535)[0] == data
        tap.setblocking(False)
        lengths = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lengths.append(len(tap.recvfrom(65535)[0]))
        assert SMALL - 8 <= max(lengths) <= SMALL


@pytest.mark.parametrize("kind", ["tun", "veth", "gre", "ipip"], scope="module")
@host_case(1, "Fragments that arrive in the wrong order arrive whole")
def test_s22_fragments_in_the_wrong_order_arrive_through_any_kind_of_uplink(
    world: Worlds, kind: str, mode: str
) -> None:
    at = world(kind, mode)
    payload = bytes(range(256)) * 12
    whole = packets.ipv4(OTHER, NEAR, packets.udp(5000, 8084, payload))
    pieces = packets.cut(
        packets.ethernet(packets.NOBODY, packets.NOBODY, packets.ETH_IPV4, whole), 1000, 2000
    )
    with opened(at.web, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 84))
        send_bare(at, *(piece[14:] for piece in reversed(pieces)))
        data, peer = server.recvfrom(65535)
        assert (data, peer) == (payload, (OTHER, 5000))


def send_bare(at: World, *sent: bytes) -> None:
    """What the far machine's stack would never send: whole IPv4 packets, into its end of the link."""
    with opened(at.host.outside, socket.SOCK_RAW, proto=socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, NAME.encode())
        for packet in sent:
            raw.sendto(packet, (NEAR, 0))


@each_kind
def test_s20_an_acl_holds_at_any_kind_of_uplink(world: Worlds, kind: str) -> None:
    at = world(kind, EBPF)
    host = at.host
    host.run(
        "guarded",
        f"--network net -p 8085:85,allow={OTHER}/32,allow={OTHER6}/128 -p 8085:85/udp,deny={FAR}/32",
    )
    try:
        host.ctl("doctor")  # XDP is where it can be
        guarded = Container(host, "guarded")
        with servers(guarded, 85):
            for asked, own in zip(at.each(NEAR, NEAR6), at.each(OTHER, OTHER6), strict=True):
                assert call(host.outside, "tcp", asked, 8085, source=(own, 0)).seen == own
            assert call(host.outside, "udp", NEAR, 8085, source=(OTHER, 0)).seen == OTHER
            for asked in at.each(NEAR, NEAR6):  # from its first address, 10.66.0.2 or fd66::2
                with opened(
                    host.outside, family=socket.AF_INET6 if ":" in asked else socket.AF_INET
                ) as client:
                    client.bind((FAR6 if ":" in asked else FAR, 0))
                    client.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        client.connect((asked, 8085))
            for forged in FORGED:
                with opened(host.outside) as client:
                    client.bind((forged, 0))
                    client.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        client.connect((NEAR, 8085))
        connections = host.ctl("ct list")
        assert not any(forged in connections for forged in FORGED)
    finally:
        host.ctl("rm -f guarded")


@pytest.mark.parametrize("kind", BARE, scope="module")
@host_case(1, "A source whose bytes are an ethertype's is an address like any other")
def test_s19_a_source_that_looks_like_an_ethertype_is_served(world: Worlds, kind: str, mode: str) -> None:
    at = world(kind, mode)
    with servers(at.web, 80):
        for proto in PROTOCOLS:
            for own in FORGED:
                assert call(at.host.outside, proto, NEAR, 8080, source=(own, 0)).seen == own


@each_kind
def test_s28_doctor_has_nothing_to_say_of_any_kind_of_uplink(world: Worlds, kind: str) -> None:
    at = world(kind, EBPF)
    at.host.ctl("doctor")


# ---- uplinks as such -----------------------------------------------------------------------------------------


def plug(host: Host, stack: ExitStack, kind: str = "tun") -> None:
    """A link of that kind with IPv4 addresses at both ends."""
    KINDS[kind](host, stack)
    for place, address in ((host, NEAR), (host.outside, FAR)):
        place.sh(f"ip address add {address}/24 dev {NAME}")
        place.sh(f"ip link set {NAME} up")


@host_case(
    1, "An uplink needs no address of its own: packets leave with that of the host which its route says"
)
def test_s21_an_uplink_without_an_address_of_its_own(make_host: Callable[..., Host], mode: str) -> None:
    host = make_host(config=config(mode))
    with ExitStack() as stack:
        KINDS["tun"](host, stack)
        host.sh(f"ip address add {NEAR}/32 dev lo")
        for place in (host, host.outside):
            place.sh(f"ip link set {NAME} up")
        host.sh(f"ip route add {FAR}/32 dev {NAME} src {NEAR}")
        host.outside.sh(f"ip address add {FAR}/32 dev lo")
        host.outside.sh(f"ip route add {NEAR}/32 dev {NAME} src {FAR}")
        web = start_container(host, "web", "-p 8080:80 -p 8080:80/udp")
        with servers(web, 80, "0.0.0.0"), servers(host.outside, 90, "0.0.0.0"):
            for proto in PROTOCOLS:
                answer = call(host.outside, proto, NEAR, 8080)
                assert (answer.seen, answer.peer) == (FAR, NEAR)
                assert call(web, proto, FAR, 90).seen == NEAR
        if mode == EBPF:
            host.ctl("doctor")


def programs_at(host: Host, name: str) -> str:
    """Our programs at a device: what pins keep there, and its filters."""
    links, index = host.bpffs / "datapath/links", link_index(host, name)
    pinned = [path.name for path in links.glob(f"*-{index}")]
    return " ".join(pinned) + host.sh(f"tc filter show dev {name} ingress")


def link_index(host: Host, name: str) -> int:
    return int(json.loads(host.sh(f"ip -j link show {name}"))[0]["ifindex"])


@pytest.mark.parametrize("attach", BOTH_WAYS)
def test_s31_the_program_of_a_link_without_headers_comes_goes_and_is_mended(
    make_host: Callable[..., Host], attach: str
) -> None:
    """It is there while the link is an uplink."""
    host = make_host(attach=attach)
    host.run("web", "-p 8080:80,allow=10.66.0.0/24")
    with ExitStack() as stack:
        plug(host, stack)
        host.ctl("run --rm true")  # any command follows the host
        assert "from_tunnel" in programs_at(host, NAME) and "from_uplink" not in programs_at(host, NAME)
        assert "xdp" not in programs_at(host, NAME)
        host.ctl("doctor")
        if attach == "tcx":
            (host.bpffs / f"datapath/links/from_tunnel-{link_index(host, NAME)}").unlink()
        else:
            host.sh(f"tc filter del dev {NAME} ingress")
        assert "from_tunnel is not attached" in host.try_ctl("doctor").stdout
        host.ctl("reconcile")
        assert "from_tunnel" in programs_at(host, NAME)
        host.sh(f"ip address flush dev {NAME}")
        host.ctl("run --rm true")
        assert "from_tunnel" not in programs_at(host, NAME)
        host.sh(f"ip route add 10.66.0.0/24 dev {NAME}")
        host.ctl("run --rm true")
        assert "from_tunnel" in programs_at(host, NAME)
        host.ctl("down")
        assert "from_tunnel" not in programs_at(host, NAME)


TYPE_802154 = 804  # ARPHRD_IEEE802154


def odd_type(host: Host) -> None:
    """A tun device that says that its packets are those of another link layer."""
    host.sh(f"ip tuntap add {NAME} mode tun")
    with enter(host.path), open("/dev/net/tun", "r+b", buffering=0) as control:
        fcntl.ioctl(control, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), IFF_TUN | IFF_NO_PI))
        fcntl.ioctl(control, TUNSETLINK, TYPE_802154)
    host.sh(f"ip address add {NEAR}/24 dev {NAME}")
    host.sh(f"ip link set {NAME} up")


def in_a_vrf(host: Host) -> None:
    linked(host, "vrf1 type vrf table 42")
    host.sh("ip link set vrf1 up")
    host.sh(f"ip link add {NAME} type veth peer name other1")
    host.sh(f"ip link set {NAME} master vrf1 up")
    host.sh(f"ip address add {NEAR}/24 dev {NAME}")


def many_peers(host: Host) -> None:
    linked(host, f"{NAME} type gre local 192.0.2.1")
    host.sh(f"ip address add {NEAR}/24 dev {NAME}")
    host.sh(f"ip link set {NAME} up")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (odd_type, "device type 804"),
        (in_a_vrf, "VRF"),
        (many_peers, "without one remote end"),
    ],
    ids=["another-link-layer", "VRF", "GRE-with-many-peers"],
)
def test_s28_an_uplink_that_cannot_be_served_is_named(
    host: Host, make: Callable[[Host], None], why: str
) -> None:
    make(host)
    warned = host.try_ctl("run --rm true")
    assert warned.returncode == 0
    assert [line for line in warned.stderr.splitlines() if NAME in line and why in line]
    assert NAME not in host.try_ctl("run --rm true").stderr, "once is enough"
    done = host.try_ctl("doctor")
    assert done.returncode == 20 and f"uplink {NAME}" in done.stdout and why in done.stdout
    assert '"unserved"' in host.try_ctl("doctor --json").stdout
    assert host.try_ctl("reconcile").returncode == 20
    assert "from_" not in programs_at(host, NAME)
    host.sh(f"ip link del {NAME}")
    host.ctl("run --rm true")
    host.ctl("doctor")


MANY = {
    "tun1": "tuntap",
    "veth1": "veth peer name veth2",
    "bridge1": "bridge",
    "macvlan1": "macvlan",
    "vxlan1": "vxlan id 43 dstport 4790 local 192.0.2.1 remote 192.0.2.2",
    "geneve1": "geneve id 44 remote 192.0.2.2",
    "vlan1": "vlan id 9",
    "bond1": "bond mode active-backup",
    "team1": "team",
    "dummy1": "dummy",
    "wg1": "wireguard",
    "gre1": "gre local 192.0.2.1 remote 192.0.2.2",
    "gretap1": "gretap local 192.0.2.1 remote 192.0.2.2 key 5",
    "ipip1": "ipip local 192.0.2.1 remote 192.0.2.2",
    "sit1": "sit local 192.0.2.1 remote 192.0.2.2",
    "ip6gre1": "ip6gre local 2001:db8:1::1 remote 2001:db8:1::2",
    "ip6tnl1": "ip6tnl mode any local 2001:db8:1::1 remote 2001:db8:1::2",
}
MANY_BARE = ("tun1", "wg1", "gre1", "ipip1", "sit1", "ip6gre1", "ip6tnl1")


def test_s28_doctor_is_content_with_all_kinds_of_uplinks_at_once(host: Host) -> None:
    """All of those that the kernel knows."""
    there = []
    host.sh("sysctl -q -w net.ipv6.conf.default.accept_dad=0")  # else link-local addresses come amid the test
    for number, (name, kind) in enumerate(MANY.items()):
        if kind == "tuntap":
            host.sh(f"ip tuntap add {name} mode tun")
        else:
            under = " link eth0" if name in ("macvlan1", "vlan1") else ""
            if made(host, f"{name}{under} type {kind}"):
                continue
        host.sh(f"ip address add 10.{100 + number}.0.1/24 dev {name}")
        host.sh(f"ip link set {name} up")
        there.append(name)
    assert len(there) >= 5
    with eventually() as until:
        until(lambda: not host.sh("ip -6 address show tentative"))
    host.run("web", "-p 8080:80,allow=10.0.0.0/8")
    host.ctl("doctor")
    for name in there:
        hook = "from_tunnel" if name in MANY_BARE else "from_uplink"
        assert hook in programs_at(host, name), name
