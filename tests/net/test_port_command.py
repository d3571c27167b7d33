# SPDX-License-Identifier: Apache-2.0
"""S20: `port ls|add|rm` on a running container."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.net.hosts import HOST, OUTSIDE, PATIENCE, Host
from tests.net.wire import Container, call, fails, opened, serving, start_container


class Topology(NamedTuple):
    host: Host
    web: Container


@pytest.fixture
def topology(shared_host: Host) -> Iterator[Topology]:
    yield Topology(
        shared_host, start_container(shared_host, "web", "-p 8081:80 -p 127.0.0.1:8090-8092:90-92/udp")
    )
    shared_host.ctl("rm -f web")


def listed(host: Host, name: str = "web") -> list[str]:
    """The mappings as `port add` takes them; they are numbered from 1."""
    found = []
    for number, line in enumerate(host.ctl(f"port ls {name}").splitlines()[1:], 1):
        shown, container, address, host_port, port, proto, sources = line.split()
        assert (shown, container, sources) == (str(number), name, "all")
        found.append(f"{'' if address == '0.0.0.0' else address + ':'}{host_port}:{port}/{proto}")
    return found


def test_s20_ls_numbers_the_mappings(topology: Topology) -> None:
    assert listed(topology.host) == ["8081:80/tcp", "127.0.0.1:8090-8092:90-92/udp"]
    rows = [json.loads(line) for line in topology.host.ctl("port ls web --format json").splitlines()]
    assert [(row["Number"], row["HostPort"], row["Count"]) for row in rows] == [(1, 8081, 1), (2, 8090, 3)]


def test_s20_add_opens_a_port_at_once_and_rm_closes_it(topology: Topology) -> None:
    host, web = topology
    with serving(web, "tcp", 80), serving(web, "udp", 53):
        assert fails(host.outside, "tcp", HOST, 8082)
        host.ctl("port add web 8082:80")
        host.ctl("port add web 8053:53/udp")
        assert listed(host)[2:] == ["8082:80/tcp", "8053:53/udp"]
        for place, address in ((host.outside, HOST), (host, HOST), (host, "127.0.0.1"), (web, HOST)):
            assert call(place, "tcp", address, 8082).peer_port == 8082
            assert call(place, "udp", address, 8053).peer_port == 8053
        host.ctl("port rm web 8082:80")
        host.ctl("port rm web 8053:53/udp")
        for place, address in ((host.outside, HOST), (host, HOST), (host, "127.0.0.1"), (web, HOST)):
            assert fails(place, "tcp", address, 8082)
            assert fails(place, "udp", address, 8053)
        assert len(listed(host)) == 2
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE


def test_s20_rm_takes_the_number_or_the_spec(topology: Topology) -> None:
    host = topology.host
    host.ctl("port add web 8082:82")
    host.ctl("port add web 8083:83")
    host.ctl("port rm web 1")
    assert listed(host) == [
        "127.0.0.1:8090-8092:90-92/udp",
        "8082:82/tcp",
        "8083:83/tcp",
    ]
    host.ctl("port rm web 8082:82/tcp")
    host.ctl("port rm web 8090-8092:90-92/udp")
    assert listed(host) == ["8083:83/tcp"]
    host.ctl("port rm web 1")
    assert listed(host) == []
    with serving(topology.web, "tcp", 80):
        assert fails(host.outside, "tcp", HOST, 8081)


def test_s20_a_removed_port_is_free_for_a_process_of_the_host_and_for_another_container(
    topology: Topology,
) -> None:
    host = topology.host
    host.ctl("port rm web 1")
    with serving(host, "tcp", 8081):
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert "8081" in host.refused("port add web 8081:80")
    host.ctl("port add web 8081:80")
    with serving(topology.web, "tcp", 80):
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE


def test_s20_what_is_there_already_or_was_never_there_is_refused(topology: Topology) -> None:
    host = topology.host
    for spec in ("8081:80", "8081:90", "8080-8081:80-81", f"{HOST}:8081:80", "8091:1/udp"):
        assert "already allocated" in host.refused(["port", "add", "web", spec])
    for what in ("3", "0", "8082:80", "8081:81", "8081:80/udp"):
        host.refused(["port", "rm", "web", what])
    for spec in ("", "x", "70000:80", "8082:0", "8082:80/icmp", "300.0.0.1:8082:80"):
        host.refused(["port", "add", "web", spec])
    host.refused("port add nobody 8082:80")
    assert len(listed(host)) == 2


def test_s20_without_a_host_port_a_free_one_is_chosen_and_printed(topology: Topology) -> None:
    host = topology.host
    assert host.ctl("port add web 85") == listed(host)[2]
    host_port = int(listed(host)[2].split(":")[0])
    with serving(topology.web, "tcp", 85):
        assert call(host.outside, "tcp", HOST, host_port).seen == OUTSIDE


@pytest.mark.parametrize("where", ["outside", "host", "container"])
def test_s20_a_long_connection_on_another_port_goes_on_untouched(topology: Topology, where: str) -> None:
    """Bytes flow both ways all the time while ports come and go; none waits for two seconds."""
    host, web = topology
    peer = start_container(host, "peer") if where == "container" else None
    place = {"outside": host.outside, "host": host}.get(where) or peer
    assert place
    stop = threading.Event()
    rounds = 0
    failure: list[BaseException] = []
    with opened(web) as listener, opened(place) as client:
        listener.bind(("0.0.0.0", 80))
        listener.listen()
        client.connect((HOST, 8081))
        server, _ = listener.accept()
        server.settimeout(PATIENCE)

        def talk() -> None:
            nonlocal rounds
            try:
                while not stop.is_set():
                    _both_ways(client, server, rounds)
                    rounds += 1
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=talk)
        thread.start()
        for number in range(8200, 8202):
            host.ctl(f"port add web {number}:80")
            host.ctl(f"port rm web {number}:80")
        stop.set()
        thread.join()
        server.close()
    if peer:
        host.ctl("rm -f peer")
    assert not failure, failure
    assert rounds > 20


def _both_ways(one: socket.socket, two: socket.socket, number: int) -> None:
    text = number.to_bytes(4, "big") * 100
    for speaker, hearer in ((one, two), (two, one)):
        speaker.sendall(text)
        got = b""
        while len(got) < len(text):
            more = hearer.recv(len(text) - len(got))
            assert more
            got += more
        assert got == text


# Through the library. Whoever looks at the link keeps it; the kernel's own worker may be as late.
AGAIN = """
import os, threading
from pathlib import Path
from datapath.config.settings import Settings
from datapath import Containers, Host
from datapath.kernel import bpffs

host = Host.open(Settings.from_env(os.environ))
containers = Containers(host)
containers.port_add("web", "8100:100")
link = bpffs.get_pinned(Path(os.environ["DATAPATH_BPFFS"]) / "links" / "from_loopback-1")
containers.port_remove("web", "8100:100")
if link is not None:  # with clsact there is none
    threading.Timer(0.2, os.close, [link]).start()
containers.port_add("web", "8100:100")
"""


def test_s20_a_port_is_published_again_while_the_last_ones_program_is_being_taken_off(host: Host) -> None:
    host.run("web")
    host.sh([sys.executable, "-c", AGAIN])
    assert listed(host) == ["8100:100/tcp"]
