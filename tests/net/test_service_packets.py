# SPDX-License-Identifier: Apache-2.0
"""Sockets that talk to a service, whose rows are written by hand: what kernels make of the packets."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from datapath.dataplane import connections
from datapath.dataplane.layout import ROLE_SERVES
from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from tests.net.hosts import HOST, PATIENCE, Host, Namespace, reaches
from tests.net.test_ipv6 import HOST6, plug_ipv6
from tests.net.wire import Container, Place, call, counters, fails, opened, rises, serving, start_container

SERVICE, TABLE, PUBLISHED, PORT = 4_000_000, 1, 8088, 80
VIP = {4: "10.60.0.250", 6: "fd60::250"}
HOSTS = {4: HOST, 6: HOST6}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
PROTOCOLS = pytest.mark.parametrize("proto", ["tcp", "udp"])


@dataclass
class Made:
    host: Host
    client: Container
    one: Container
    two: Container
    far: Container  # of another network

    def place(self, name: str) -> Place | Namespace:
        places: dict[str, Place] = {"host": self.host, "outside": self.host.outside}
        return places.get(name) or getattr(self, name)

    def states(self, *states: str) -> None:
        """Of the backends one and two."""
        found = Dataplane.find(self.host.bpffs / "datapath")
        assert found is not None
        with found:
            for place, (container, state) in enumerate(zip((self.one, self.two), states, strict=True), 1):
                found.backends[abi.backend_key(SERVICE + place)] = abi.backend(
                    service=SERVICE,
                    endpoint=number(found, container),
                    state=abi.BackendState[f"BACKEND_{state}"],
                    weight=1,
                    addr4=ip_address(container.ip),
                    addr6=ip_address(container.ip6),
                )


def endpoint_of(found: Dataplane, container: Container) -> tuple[object, object]:
    return next(
        (key, value) for key, value in found.endpoints.read_all() if key.addr == ip_address(container.ip)
    )


def number(found: Dataplane, container: Container) -> int:
    return int(endpoint_of(found, container)[1].number)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def made(shared_host: Host) -> Iterator[Made]:
    """Two backends of the network `svc`."""
    host = shared_host
    plug_ipv6(host)
    host.ctl("network create --ipv6 --subnet 10.60.0.0/24 --subnet fd60::/64 svc")
    host.ctl("network create --ipv6 --subnet 10.61.0.0/24 --subnet fd61::/64 other")
    containers = {name: start_container(host, name, "--network svc") for name in ("client", "one", "two")}
    made = Made(host, far=start_container(host, "far", "--network other"), **containers)
    # A port that is published makes the loopback device's program run.
    start_container(host, "published", "--network svc -p 9:9")
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        key, _ = endpoint_of(found, made.one)
        network: int = key.network  # type: ignore[attr-defined]
        value = found.networks[network]
        flags = value.flags | abi.NetworkFlag.NETWORK_SERVICES
        found.tell_network(network, value._replace(flags=flags))
        for container in (made.one, made.two):
            index = endpoint_of(found, container)[1].ifindex  # type: ignore[attr-defined]
            row = found.devices[abi.device_key(index)]
            found.devices[abi.device_key(index)] = row._replace(forwarding=ROLE_SERVES)
        for address in VIP.values():
            at = abi.endpoint_key(network, ip_address(address))
            found.endpoints[at] = abi.endpoint(ifindex=0, number=SERVICE, mac=value.mac)
        row = struct.pack("=4I", SERVICE + 1, SERVICE + 2, SERVICE + 2, SERVICE + 1)
        found.slots[abi.slots_key(TABLE, 0)] = abi.slots(row)
        found.services[abi.service_key(SERVICE)] = abi.service(
            network=network, seed=7, table4=TABLE, size4=4, table6=TABLE, size6=4
        )
        for proto in (6, 17):
            for family, every in ((4, "0.0.0.0"), (6, "::")):
                found.ports[abi.port_key(ip_address(every), PUBLISHED, proto)] = abi.port(
                    network=network, endpoint=SERVICE, addr=ip_address(VIP[family]), port=PORT
                )
            found.reserved[abi.reserved_key(PUBLISHED, proto)] = abi.reserved(1)
    made.states("UP", "UP")
    yield made
    with Dataplane(host.bpffs / "datapath") as found:
        found.services.delete_many(list(found.services))
        for proto in (6, 17):
            found.reserved.delete_many([abi.reserved_key(PUBLISHED, proto)])


@pytest.fixture(autouse=True)
def up(made: Made) -> None:
    made.states("UP", "UP")


def address(made: Made, name: str, family: int) -> str:
    """What a server sees of a client."""
    if name == "host":
        return str(made.client.gateway) if family == 4 else "fd60::1"
    if name == "outside":
        return "192.0.2.2" if family == 4 else HOST6.replace("::1", "::2")
    container: Container = getattr(made, name)
    return container.ip if family == 4 else container.ip6


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("name", ["client", "host", "one"])
def test_s26_a_socket_that_asks_the_virtual_address_is_answered(
    made: Made, name: str, proto: str, family: int
) -> None:
    """By a member, by the host, and by a backend itself."""
    before = counters(made.host)
    made.states("UP", "DOWN")
    with serving(made.one, proto, PORT, address(made, "one", family)):
        answer = call(made.place(name), proto, VIP[family], PORT)
    assert answer.seen == (address(made, "host", family) if name == "one" else address(made, name, family))
    assert not rises(before, counters(made.host))


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("name", ["outside", "far", "host", "client"])
def test_s26_a_socket_that_asks_the_published_port_is_answered(
    made: Made, name: str, proto: str, family: int
) -> None:
    before = counters(made.host)
    made.states("DOWN", "UP")
    with serving(made.two, proto, PORT, address(made, "two", family)):
        answer = call(made.place(name), proto, HOSTS[family], PUBLISHED)
    if name != "host":
        assert answer.seen == address(made, name, family)
    assert not rises(before, counters(made.host))


def test_s26_the_hosts_loopback_address_leads_to_a_backend_too(made: Made) -> None:
    """A socket that is pointed at the service's address, and one that was bound before, which is not."""
    made.states("DOWN", "UP")
    for proto in ("tcp", "udp"):
        with serving(made.two, proto, PORT, made.two.ip):
            assert call(made.host, proto, "127.0.0.1", PUBLISHED).seen == made.two.gateway
            call(made.host, proto, "127.0.0.1", PUBLISHED, source=("127.0.0.1", 0))


@FAMILIES
@pytest.mark.parametrize("name", ["client", "host", "outside", "far"])
def test_s26_without_a_backend_a_socket_hears_so_at_once(made: Made, name: str, family: int) -> None:
    made.states("DOWN", "DRAINING")
    at = (VIP[family], PORT) if name in ("client", "host") else (HOSTS[family], PUBLISHED)
    for proto in ("tcp", "udp"):
        assert fails(made.place(name), proto, *at) == errno.ECONNREFUSED


def test_s26_a_connection_that_is_flushed_is_no_load_any_more(made: Made) -> None:
    made.states("UP", "DOWN")
    with Dataplane(made.host.bpffs / "datapath") as found:
        key = abi.service_key(SERVICE)
        found.services[key] = found.services[key]._replace(choice=abi.ServiceChoice.CHOICE_LEAST)
        load = abi.load_key(number(found, made.one), ip_address(made.one.ip))
        with serving(made.one, "udp", PORT, made.one.ip):
            call(made.client, "udp", VIP[4], PORT)
        assert found.loads[load].conns == 1
        connections.recount(found)
        assert found.loads[load].conns == 1
        made.host.ctl("ct flush --container one")
        assert found.loads[load].conns == 0
        found.services[key] = found.services[key]._replace(choice=abi.ServiceChoice.CHOICE_MAGLEV)


@FAMILIES
def test_s26_a_ping_of_the_virtual_address_is_answered(made: Made, family: int) -> None:
    assert reaches(made.client.try_, VIP[family], 3)
    assert reaches(made.client.try_, f"-s 3000 {VIP[family]}", 2)
    assert reaches(made.host.try_, VIP[family], 3)


@FAMILIES
@pytest.mark.parametrize("name", ["client", "host", "outside"])
def test_s26_a_stream_gets_there_whole(made: Made, name: str, family: int) -> None:
    """Segments that are cut late, sums that are left to devices."""
    made.states("UP", "DOWN")
    at = (VIP[family], PORT) if name != "outside" else (HOSTS[family], PUBLISHED)
    sent, heard = os.urandom(1 << 20) * 24, hashlib.sha256()
    with (
        opened(made.one, family=FAMILY[family]) as server,
        opened(made.place(name), family=FAMILY[family]) as client,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address(made, "one", family), PORT))
        server.listen()
        client.settimeout(PATIENCE)

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(1 << 20):
                    heard.update(data)
                connection.sendall(sent)

        receiver = threading.Thread(target=receive)
        receiver.start()
        client.connect(at)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        back = hashlib.sha256()
        while data := client.recv(1 << 20):
            back.update(data)
        receiver.join()
    assert heard.digest() == back.digest() == hashlib.sha256(sent).digest()
    # Of the backend's kernel.
    names, values = (
        line.split() for line in made.one.sh("cat /proc/net/snmp").splitlines() if line.startswith("Tcp:")
    )
    assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"
