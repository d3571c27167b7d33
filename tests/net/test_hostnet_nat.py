# SPDX-License-Identifier: Apache-2.0
"""Address translation as peers outside see it: which port, for how long, and whose sockets come first."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest

from tests.net.compare import EBPF, host_case, options
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, eventually
from tests.net.wire import KINDS, Container, Place, call, opened, serving, start_container

MakeHost = Callable[..., Host]
MakePair = Callable[..., "Pair"]
Keep = Callable[..., "Pair"]
SHARED = "MASQUERADE keeps one port for several as long as their servers differ"


class Pair(NamedTuple):
    host: Host
    a: Container
    b: Container

    @property
    def outside(self) -> Place:
        return self.host.outside


def pair_of(make_host: MakeHost, mode: str, publish: str = "", before: str = "", **more: object) -> Pair:
    """A host with the containers a and b. `before`: what is done on the host first."""
    host = make_host(config=more)
    if before:
        host.sh(before)
    host.ctl(f"network create {options(mode)} net")
    a = start_container(host, "a", f"--network net {publish}")
    return Pair(host, a, start_container(host, "b", "--network net"))


@pytest.fixture
def make_pair(make_host: MakeHost) -> MakePair:
    return partial(pair_of, make_host)


def udp(place: Place, port: int, address: str = "0.0.0.0") -> socket.socket:
    made = opened(place, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


def seen(client: socket.socket, server: socket.socket) -> tuple[str, int]:
    """As whom the server sees it. The answer arrives."""
    client.sendto(b"?", server.getsockname())
    data, peer = server.recvfrom(100)
    assert data == b"?"
    server.sendto(b"!", peer)
    assert client.recvfrom(100) == (b"!", server.getsockname())
    return str(peer[0]), int(peer[1])


def healthy(host: Host) -> bool:
    return host.ctl("doctor") == "No problems found."


# ---- which port ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [40000, 5001, 65000])
@host_case(9, "A UDP socket's own port is kept, towards every server")
def test_a_udp_socket_is_seen_with_its_own_port_by_two_servers(keep: Keep, own: int, mode: str) -> None:
    pair = keep(pair_of, mode)
    with udp(pair.a, own) as client, udp(pair.outside, 90, OUTSIDE) as one, udp(pair.outside, 91, FAR) as two:
        assert {seen(client, server) for server in (one, two)} == {(HOST, own)}


@pytest.mark.parametrize("own", [40001, 5001])
@host_case(9, "A TCP connection's own port is kept")
def test_a_tcp_connection_is_seen_with_its_own_port(keep: Keep, own: int, mode: str) -> None:
    pair = keep(pair_of, mode)
    for address in (OUTSIDE, FAR):
        with serving(pair.outside, "tcp", 90, address):
            answer = call(pair.a, "tcp", address, 90, source=("0.0.0.0", own))
            assert (answer.seen, answer.seen_port) == (HOST, own)


@pytest.mark.parametrize("own", [700, 111])
@host_case(9, "A port below 1024 stays below 1024, also where it is taken")
def test_a_port_below_1024_is_seen_below_1024(keep: Keep, own: int, mode: str) -> None:
    pair = keep(pair_of, mode)
    with (
        udp(pair.a, own) as first,
        udp(pair.b, own) as second,
        udp(pair.outside, 90, OUTSIDE) as server,
    ):
        ports = [seen(client, server)[1] for client in (first, second)]
        assert ports[0] == own and ports[1] != own and ports[1] < 1024


@host_case(
    9, "A socket whose port another container has is seen by all servers with one port (RFC 4787, REQ-1)"
)
def test_a_port_that_was_changed_is_one_for_all_servers(make_pair: MakePair, mode: str) -> None:
    """What STUN asks two servers for, so that a peer can be told where to send."""
    pair = make_pair(mode)
    with (
        udp(pair.a, 40000) as first,
        udp(pair.b, 40000) as second,
        udp(pair.outside, 90, OUTSIDE) as one,
        udp(pair.outside, 91, FAR) as two,
    ):
        assert {seen(first, server) for server in (one, two)} == {(HOST, 40000)}
        assert len({seen(second, server) for server in (one, two)}) == 1


@host_case(9, "Two containers are never seen with one port (RFC 4787, REQ-3)", iptables=SHARED)
def test_two_containers_are_never_seen_with_one_port(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode)
    with (
        udp(pair.a, 40000) as first,
        udp(pair.b, 40000) as second,
        udp(pair.outside, 90, OUTSIDE) as one,
        udp(pair.outside, 91, FAR) as two,
    ):
        assert seen(first, one) != seen(second, two)


@host_case(
    9,
    "A container that sends from a port that it publishes is seen at the published port",
    iptables="MASQUERADE does not know what is published",
)
def test_who_sends_from_a_published_port_is_seen_there(make_pair: MakePair, mode: str) -> None:
    """An answer to it is of the same conversation, and so is the first word of somebody else."""
    pair = make_pair(mode, "-p 10001:9000/udp")
    with (
        udp(pair.a, 9000) as server,
        udp(pair.outside, 90, OUTSIDE) as peer,
        udp(pair.outside, 91, FAR) as other,
    ):
        assert seen(server, peer) == (HOST, 10001)
        assert len(pair.host.ctl("ct ls --proto udp --format {{.Destination}}").splitlines()) == 1
        other.sendto(b"who?", (HOST, 10001))
        data, client = server.recvfrom(100)
        assert (data, client) == (b"who?", other.getsockname())
        server.sendto(b"me", client)
        assert other.recvfrom(100) == (b"me", (HOST, 10001))


@host_case(9, "A published port that came later leaves conversations as they are")
def test_a_port_published_later_leaves_conversations_alone(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode)
    with udp(pair.a, 9000) as client, udp(pair.outside, 90, OUTSIDE) as peer:
        before = seen(client, peer)
        pair.host.ctl("port add a 10001:9000/udp")
        assert seen(client, peer) == before
        pair.host.ctl("port rm a 10001:9000/udp")
        assert seen(client, peer) == before


# ---- the host's own sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", ["udp", "tcp"])
@host_case(10, "What the host begins from a port that a container has kept is the host's")
def test_the_hosts_own_answers_never_land_in_a_container(make_pair: MakePair, proto: str, mode: str) -> None:
    """One ephemeral port of the host's is left: the container has it first, towards the same server. Both talk."""
    pair = make_pair(mode, before="sysctl -qw net.ipv4.ip_local_port_range='40000 40003'")
    host, kind = pair.host, KINDS[proto]
    with opened(pair.outside, kind) as server:
        server.bind((OUTSIDE, 90))
        if proto == "udp":
            _both_talk_udp(pair, server)
            return
        server.listen()
        conversations = []
        for place, port in ((pair.a, 40000), (pair.a, 40001), (pair.a, 40002), (host, 0)):
            client = opened(place, kind)
            client.bind(("0.0.0.0", port)) if port else None
            client.connect((OUTSIDE, 90))
            accepted, peer = server.accept()
            assert peer[0] == HOST
            conversations.append((client, accepted))
        for i, (client, accepted) in enumerate(conversations):
            client.send(b"to %d" % i)
            assert accepted.recv(100) == b"to %d" % i
            accepted.send(b"from %d" % i)
        for i, (client, accepted) in enumerate(conversations):
            assert client.recv(100) == b"from %d" % i
            client.close()
            accepted.close()


def _both_talk_udp(pair: Pair, server: socket.socket) -> None:
    held = [udp(pair.a, port) for port in range(40000, 40003)]
    for client in held:
        seen(client, server)
    with opened(pair.host, socket.SOCK_DGRAM) as connected, opened(pair.host, socket.SOCK_DGRAM) as free:
        connected.connect(server.getsockname())
        for own in (connected, free):
            seen(own, server)
        peers = {seen(client, server) for client in held}
        assert len(peers) == 3
        for own in (connected, free):
            assert seen(own, server) not in peers
    for client in held:
        client.close()


@host_case(
    10, "A UDP socket of the host's that takes a container's kept port is answered; the container goes on"
)
def test_a_socket_that_is_bound_to_a_kept_port_is_answered(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode)
    with udp(pair.a, 40000) as client, udp(pair.outside, 90, OUTSIDE) as server:
        assert seen(client, server) == (HOST, 40000)
        with udp(pair.host, 40000) as own:
            first = seen(own, server)
            assert seen(client, server) != first
            assert seen(own, server) == first


# ---- the host's range ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["1024 65535", "2000 65000", "1024 4999", "40000 40127"])
@host_case(
    10, "net.ipv4.ip_local_port_range is whatever people set: containers and the host reach the outside"
)
def test_any_ephemeral_range_is_served(make_pair: MakePair, setting: str, mode: str) -> None:
    pair = make_pair(
        mode, "-p 8080:80/udp -p 8080:80/tcp", before=f"sysctl -qw net.ipv4.ip_local_port_range='{setting}'"
    )
    for proto in ("udp", "tcp"):
        with serving(pair.outside, proto, 90), serving(pair.a, proto, 80):
            for place in (pair.a, pair.b, pair.host):
                assert call(place, proto, OUTSIDE, 90).seen == HOST
                assert call(place, proto, OUTSIDE, 90, source=("0.0.0.0", 3000)).seen == HOST
            assert call(pair.outside, proto, HOST, 8080).seen == OUTSIDE


@host_case(10, "A range that is changed while containers run is followed")
def test_a_changed_range_is_followed(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode)
    host, reserved = pair.host, "net.ipv4.ip_local_reserved_ports"
    assert healthy(host)
    host.sh(f"sysctl -qw {reserved}=50000")
    host.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65535'")
    if mode == EBPF:
        said = host.try_ctl("doctor").stdout
        assert reserved in said and "map host" in said
    host.ctl("network create other")
    assert healthy(host)
    if mode == EBPF:
        assert host.sh(f"sysctl -n {reserved}") == "49408-65535"
    with serving(pair.outside, "udp", 90):
        for place in (pair.a, host):
            assert call(place, "udp", OUTSIDE, 90).seen == HOST
    host.sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999'")
    host.ctl("network rm other")
    assert host.sh(f"sysctl -n {reserved}") == "50000"
    host.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65535'")
    host.ctl("network create other")
    host.ctl("down")
    assert host.sh(f"sysctl -n {reserved}") == "50000"


@host_case(10, "Ports that others reserve while containers run stay reserved")
def test_what_others_reserve_stays_reserved(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode, "-p 40001:80")
    host, reserved = pair.host, "net.ipv4.ip_local_reserved_ports"
    assert host.sh(f"sysctl -n {reserved}") == "40001"
    host.sh(f"sysctl -qw {reserved}=40001,50000")
    assert healthy(host)
    host.ctl("port add a 40002:80")
    assert host.sh(f"sysctl -n {reserved}") == "40001-40002,50000"
    host.sh(f"sysctl -qw {reserved}=50001")
    assert "reserved" in host.try_ctl("doctor").stdout
    host.ctl("port rm a 40002:80")
    assert host.sh(f"sysctl -n {reserved}") == "40001,50000-50001"
    host.ctl("rm -f a")
    assert host.sh(f"sysctl -n {reserved}") == "50000-50001"


# ---- shares, and times -----------------------------------------------------------------------------------------


@host_case(13, "Clients of a published port do not use up what its container may open")
def test_clients_do_not_use_up_what_a_container_may_open(make_pair: MakePair, mode: str) -> None:
    pair = make_pair(mode, "-p 8080:80/udp", datapath={"max-connections-per-container": 3})
    with udp(pair.a, 80) as server, udp(pair.outside, 90, OUTSIDE) as peer:
        clients = [opened(pair.outside, socket.SOCK_DGRAM) for _ in range(5)]
        for client in clients:
            client.sendto(b"?", (HOST, 8080))
            _, who = server.recvfrom(100)
            server.sendto(b"!", who)
            assert client.recvfrom(100)[0] == b"!"
        for _ in range(3):
            with opened(pair.a, socket.SOCK_DGRAM) as asking:
                seen(asking, peer)
        for client in clients:
            client.close()


def test_a_half_closed_connection_ends_after_its_silence(make_host: MakeHost) -> None:
    """Two minutes, as a rule. One that is whole stays, and so does one that says something."""
    host = make_host(config={"datapath": {"timeouts": {"half-closed": 1}}})
    a = start_container(host, "a")
    with opened(host.outside) as server:
        server.bind((OUTSIDE, 90))
        server.listen()
        pairs = []
        for _ in range(2):
            client = opened(a)
            client.connect((OUTSIDE, 90))
            pairs.append((client, server.accept()[0]))
        states = "ct ls --proto tcp --format {{.State}}"
        with eventually() as until:
            until(lambda: host.ctl(states).split() == ["established"] * 2)
        pairs[0][0].shutdown(socket.SHUT_WR)
        assert pairs[0][1].recv(100) == b""
        with eventually() as until:
            until(lambda: host.ctl(states).split() == ["established"])
        pairs[0][1].send(b"late")
        for one in pairs:
            for end in one:
                end.close()


# ---- containers that meet at their external ports ----------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False], ids=["one network", "two networks"])
@host_case(
    9,
    "Two containers that were told each other's external address meet there (RFC 4787, REQ-9)",
    iptables="the host's stack takes such packets for its own",
)
def test_two_containers_meet_at_their_external_ports(make_pair: MakePair, same: bool, mode: str) -> None:
    """As peers do by way of a server that tells them (ICE, RFC 8445). Who was not sent to stays out."""
    pair = make_pair(mode)
    host, other = pair.host, pair.b
    if not same:
        host.ctl(f"network create {options(mode)} far")
        other = start_container(host, "c", "--network far")
    with (
        udp(pair.a, 40000) as one,
        udp(other, 40000) as two,
        udp(other, 40005) as stranger,
        udp(pair.outside, 90, OUTSIDE) as server,
    ):
        ends = ((one, seen(one, server)), (two, seen(two, server)))
        # The first word is lost, as nobody waits for it yet; the socket may hear so.
        one.sendto(b"lost", ends[1][1])
        two.sendto(b"from two", ends[0][1])
        one.settimeout(10 if mode == EBPF else 1)
        assert one.recvfrom(100) == (b"from two", ends[1][1])
        one.sendto(b"from one", ends[1][1])
        assert two.recvfrom(100) == (b"from one", ends[0][1])
        stranger.sendto(b"who?", ends[0][1])
        two.sendto(b"last", ends[0][1])
        assert one.recvfrom(100) == (b"last", ends[1][1])
