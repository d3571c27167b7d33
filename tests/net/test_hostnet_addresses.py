# SPDX-License-Identifier: Apache-2.0
"""What is an address, and whether it is the host's: as its kernel has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.net import look
from tests.net.compare import config, host_case, options
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace, ask, echo_server, eventually, reaches

MakeHost = Callable[..., Host]
PROTOS = pytest.mark.parametrize("proto", ["tcp", "udp"])
SECOND_MAC = "02:00:00:00:01:aa"
DUAL = "--ipv6 --subnet fd61::/64 --subnet 10.61.0.0/24"


def serving(host: Host, name: str, run: str, command: list[str]) -> None:
    """Runs a container, and waits until its server answers itself."""
    host.run(name, run, command)
    _, proto, address, port = command[-4:]
    local = "::1" if ":" in address else "127.0.0.1"
    with eventually() as until:
        until(lambda: host.try_in(name, ask(proto, local, int(port), 1)).returncode == 0)


@PROTOS
@host_case(15, "240.0.0.0/4 are addresses: subnet of a network, client of a published port, destination")
def test_class_e_is_like_any_other(make_host: MakeHost, proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.sh("ip address add 240.20.0.1/24 dev eth0")
    host.outside.sh("ip address add 240.20.0.2/24 dev eth0")
    host.ctl(f"network create --subnet 240.10.0.0/24 {options(mode)} e")
    serving(
        host, "web", f"--network e -p 8080:80/{proto} -p 240.20.0.1:8081:80/{proto}", echo_server(proto, 80)
    )
    host.run("peer", "--network e")
    assert host.address("web", "e").startswith("240.10.0.")
    assert host.in_("peer", ask(proto, host.address("web", "e"), 80)).split()[0] == host.address("peer", "e")
    assert reaches(host.try_, host.address("web", "e"))
    for address in (HOST, "240.20.0.1"):
        seen = OUTSIDE if address == HOST else "240.20.0.2"
        assert host.outside.sh(ask(proto, address, 8080)).split()[0] == seen
    assert host.outside.sh(ask(proto, "240.20.0.1", 8081)).split()[0] == "240.20.0.2"
    server = host.outside.start(echo_server(proto, 90), stdout=-1)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    assert host.in_("peer", ask(proto, "240.20.0.2", 90)).split()[0] == "240.20.0.1"
    assert reaches(lambda command: host.try_in("peer", command), OUTSIDE)


@PROTOS
@host_case(
    15,
    "A prefix routed to the host itself (AnyIP): ports published there answer from outside, containers, host",
)
def test_ports_answer_at_a_prefix_that_is_the_hosts(make_host: MakeHost, proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    for prefix in ("10.79.0.0/24", "fd79::/64"):
        host.sh(f"ip route add local {prefix} dev lo")
    host.outside.sh(f"ip route add 10.79.0.0/24 via {HOST}")
    host.ctl(f"network create {options(mode)} {DUAL} shop")
    host.ctl(f"network create {options(mode)} yard")
    publish = f"-p 8080:80/{proto} -p 10.79.0.5:8081:80/{proto} -p [fd79::5]:8081:80/{proto}"
    serving(host, "web", f"--network shop {publish}", echo_server(proto, 80, "::"))
    host.run("peer", "--network shop")
    host.run("other", "--network yard")
    for port in (8080, 8081):
        assert host.outside.sh(ask(proto, "10.79.0.5", port)).split()[0].endswith(OUTSIDE)
        for name in ("peer", "other"):
            assert host.in_(name, ask(proto, "10.79.0.5", port)).split()[1] == "10.79.0.5"
        assert host.in_("peer", ask(proto, "fd79::5", port)).split()[1] == "fd79::5"
        assert host.sh(ask(proto, "10.79.0.5", port)).split()[1] == "10.79.0.5"
        if mode == "ebpf":  # without a proxy the kernel translates no IPv6 of the host's own here
            assert host.sh(ask(proto, "fd79::5", port)).split()[1] == "fd79::5"
    line = host.refused(f"run --name web2 -p 10.80.0.5:9090:80/{proto} sleep 1")
    assert "10.80.0.5 is no address of this host" in line


def test_doctor_knows_the_prefixes_that_are_the_hosts(make_host: MakeHost) -> None:
    """One that was added, or taken away, since the last command is found, and told to the programs."""
    host = make_host()
    host.run("web", "-p 8080:80")
    for change in ("add", "del"):
        for prefix in ("10.79.0.0/24", "fd79::/64"):
            host.sh(f"ip route {change} local {prefix} dev lo")
        found = host.try_ctl("doctor")
        assert found.returncode == 20 and "local_prefixes" in found.stdout, found.stdout
        host.ctl("reconcile")
        host.ctl("doctor")
    host.sh("ip route add local 0.0.0.0/0 dev lo table 100")  # a transparent proxy's
    host.ctl("doctor")


ASK_FROM = """
import socket, sys
proto, source, address, port = sys.argv[1:5]
client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
client.settimeout(float(sys.argv[5]))
scope = socket.if_nametoindex("eth0")
client.bind((source, 0, 0, scope if source.startswith("fe80") else 0))
client.connect((address, int(port), 0, scope))
client.send(b"?")
print(client.recv(100).decode().strip())
"""


@PROTOS
@host_case(15, "A published port answers at the link-local address of the host's device")
def test_the_link_local_address_is_one_of_the_hosts(make_host: MakeHost, proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.ctl(f"network create {options(mode)} {DUAL} shop")
    serving(host, "web", f"--network shop -p 8080:80/{proto}", echo_server(proto, 80, "::"))
    client = "2001:db8:1::2"
    host.sh("ip address add 2001:db8:1::1/64 dev eth0 nodad")
    host.outside.sh(f"ip address add {client}/64 dev eth0 nodad")
    there = linklocal(host)
    seen = host.outside.sh(["python3", "-c", ASK_FROM, proto, client, there, "8080", "20"])
    assert seen == client
    # From the client's own such address there is no way to a container, which is behind another link.
    own = linklocal(host.outside)
    assert host.outside.try_(["python3", "-c", ASK_FROM, proto, own, there, "8080", "1"]).returncode


def linklocal(place: Namespace, device: str = "eth0") -> str:
    """The kernel's own, once it is there and nobody else's."""
    show = f"ip -6 -br address show dev {device} scope link"
    with eventually() as until:
        until(lambda: "ff:fe" in place.sh(f"{show} -tentative"))
    return next(one for one in place.sh(show).split()[2:] if "ff:fe" in one).split("/")[0]


def test_an_address_that_the_kernel_still_asks_about_is_known_once_it_may_be_used(
    make_host: MakeHost,
) -> None:
    """As when a machine starts: no command follows by then."""
    host = make_host()
    for setting in ("accept_dad=1", "dad_transmits=3", "addr_gen_mode=0"):
        host.sh(f"sysctl -q -w net.ipv6.conf.eth0.{setting}")
    host.sh("ip -6 address flush dev eth0")
    for address in ("fe80::5/64", "2001:db8:1::1/64"):
        host.sh(f"ip address add {address} dev eth0")
    host.ctl(f"network create {DUAL} shop")
    assert host.sh("ip -6 -o address show dev eth0 tentative").count("inet6") == 2
    look.detected(host)
    assert host.ctl("doctor") == "No problems found."


@PROTOS
def test_a_link_local_address_is_one_of_the_hosts_on_its_own_link_only(
    make_host: MakeHost, proto: str
) -> None:
    """Whoever sends to one of another device's, be it by a neighbour entry of its own, reaches no published port by
    it (RFC 4007); by the device's own it does, also where both devices have the same."""
    host = make_host()
    second = Namespace()
    try:
        host.sh(f"ip link add eth1 address {SECOND_MAC} type veth peer name eth0 netns {second.pid}")
        second.sh("ip link set eth0 up")
        host.sh("ip link set eth1 up")
        host.sh("ip address add 2001:db8:2::1/64 dev eth1 nodad")
        second.sh("ip address add 2001:db8:2::2/64 dev eth0 nodad")
        for device in ("eth0", "eth1"):
            host.sh(f"ip address add fe80::1/64 dev {device} nodad")
        first, own = linklocal(host), linklocal(host, "eth1")
        host.ctl(f"network create {DUAL} shop")
        serving(host, "web", f"--network shop -p 8080:80/{proto}", echo_server(proto, 80, "::"))
        linklocal(second)
        command = ["python3", "-c", ASK_FROM, proto, "2001:db8:2::2"]
        for address in (own, "fe80::1"):
            assert second.sh([*command, address, "8080", "20"]) == "2001:db8:2::2"
        second.sh(f"ip neigh replace {first} lladdr {SECOND_MAC} dev eth0")
        assert second.try_([*command, first, "8080", "1"]).returncode
        host.ctl("doctor")
    finally:
        second.close()
