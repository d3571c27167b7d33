# SPDX-License-Identifier: Apache-2.0
"""The library alone, S33: sandboxes that somebody else made, joined and left in any order, any number of times."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import datapath
from datapath.config.settings import Settings
from datapath.drivers.base import JoinInfo
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError
from datapath.kernel import netns
from datapath.kernel.links import Links
from datapath.model.endpoints import Endpoint
from tests.net import faults, forked, look
from tests.net.doors import Space, spaces_of_a_test
from tests.net.hosts import HOST, OUTSIDE, TREE, Host, ask, eventually, reaches

STEPS = 260  # of the random walk
STRIDE = 1 if os.environ.get("DATAPATH_LONG") else 7


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


class Engine:
    """The library, each call of it inside the pretend host's namespace."""

    def __init__(self, host: Host) -> None:
        self.path = host.path
        self.library = datapath.Host.open(Settings.from_env(host.env or {}))

    def __getattr__(self, name: str) -> Any:
        part = getattr(self.library, name)
        return _Inside(self.path, part)


class _Inside:
    def __init__(self, path: str, part: Any) -> None:
        self._path, self._part = path, part

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        with netns.enter(self._path):
            return self._part(*arguments, **more)

    def __getattr__(self, name: str) -> _Inside:
        return _Inside(self._path, getattr(self._part, name))


@pytest.fixture
def emptied(emptied: Host) -> Iterator[Host]:
    """Other owners' endpoints that wait for a sandbox are taken away, too."""
    emptied.preloaded = True
    yield emptied
    endpoints = Engine(emptied).endpoints
    for one in endpoints.all():
        for owner in ("cni", "docker", "doors", "podman"):
            with contextlib.suppress(DatapathError):
                endpoints.delete(one.id, owner)


@pytest.fixture
def host(emptied: Host) -> Host:
    """The module's, with nothing on it: making one, and loading its programs, takes longer than most of the tests."""
    return emptied


@pytest.fixture
def engine(host: Host) -> Engine:
    return Engine(host)


def doctor(host: Host) -> str:
    return host.try_ctl("doctor").stdout


def test_s33_a_namespace_of_somebody_elses_is_joined_published_and_its_address_given_to_the_next(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """`ip netns add`, an endpoint, a port answered from outside; the namespace deleted under it; the next has all."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    first = spaces()
    sandbox = engine.sandboxes.adopt(first.path, "cni", key="pod-1", name="pod")
    endpoint = engine.endpoints.create(datapath.EndpointRequest("shop", ip="10.61.0.7"), "cni", "pod-1/eth0")
    info = engine.endpoints.join(endpoint.id, sandbox.id)
    assert (info.source, info.ifname, str(info.addresses[0])) == ("", "eth0", "10.61.0.7/24")
    assert str(info.gateway4) == "10.61.0.1" and info.mtu == 1500
    (published,) = engine.ports.publish(endpoint.id, "8080:80")
    assert (published.host_port, published.container_port) == (8080, 80)
    first.serve(80)
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
    assert reaches(first.try_, OUTSIDE) and reaches(host.try_, "10.61.0.7")
    assert doctor(host) == "No problems found.\n"

    first.delete()
    with eventually() as until:
        until(lambda: endpoint.host_ifname not in host.sh("ip -o link"))
    assert "sandbox pod of cni on network shop: its device" in doctor(host)
    assert host.try_ctl("doctor --format {{.Check}}").stdout == "dead\n", "dead"

    second = spaces()
    again = engine.endpoints.create(datapath.EndpointRequest("shop", ip="10.61.0.7"), "cni", "pod-2/eth0")
    assert again.id != endpoint.id and again.ipv4 == endpoint.ipv4
    engine.endpoints.join(again.id, engine.sandboxes.adopt(second.path, "cni", key="pod-2").id)
    engine.ports.publish(again.id, "8080:80")
    second.serve(80)
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
    assert doctor(host) == "No problems found.\n"
    assert [e.id for e in engine.endpoints.all()] == [again.id]


def test_s33_each_step_may_be_repeated(host: Host, engine: Engine, spaces: Callable[[], Space]) -> None:
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    space = spaces()
    sandboxes = {engine.sandboxes.adopt(space.path, "podman", key="p").id for _ in range(2)}
    request = datapath.EndpointRequest("shop")
    endpoints = {engine.endpoints.create(request, "podman", "p0").id for _ in range(2)}
    assert (len(sandboxes), len(endpoints)) == (1, 1)
    (sandbox,), (endpoint,) = sandboxes, endpoints
    assert engine.endpoints.join(endpoint, sandbox) == engine.endpoints.join(endpoint, sandbox)
    ports = [engine.ports.publish(endpoint, "8080:80", "8081:81/udp") for _ in range(2)]
    assert ports[0] == ports[1] and len(ports[0]) == 2
    assert len(engine.ports.unpublish(endpoint, "8080:80")) == 1
    assert len(engine.ports.unpublish(endpoint, "8080:80")) == 1
    assert [engine.endpoints.leave(endpoint) for _ in range(2)] == [True, False]
    assert "eth0" not in space.try_("ip -o link").stdout
    assert doctor(host) == "No problems found.\n"
    engine.endpoints.join(endpoint, sandbox)
    assert reaches(host.try_, str(engine.endpoints.all()[0].ipv4.ip))
    assert [engine.endpoints.delete("p0", "podman") for _ in range(2)] == [True, False]
    assert [engine.sandboxes.forget("p", "podman") for _ in range(2)] == [True, False]
    assert doctor(host) == "No problems found.\n"


def test_s33_delete_and_forget_imply_all_that_takes_away(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    space = spaces()
    before = space.try_("ip -o link").stdout
    sandbox = engine.sandboxes.adopt(space.path, "cni")
    takes: tuple[Callable[[Endpoint], Any], ...] = (
        lambda endpoint: engine.endpoints.delete(endpoint.id, "cni"),
        lambda endpoint: engine.sandboxes.forget(space.path, "cni"),
    )
    for take in takes:
        sandbox = engine.sandboxes.adopt(space.path, "cni")
        endpoint = engine.endpoints.create(datapath.EndpointRequest("shop"), "cni")
        engine.endpoints.join(endpoint.id, sandbox.id)
        engine.ports.publish(endpoint.id, "8080:80")
        assert take(endpoint)
        assert engine.endpoints.all() == []
        assert "8080" not in host.ctl("port ls")
        assert doctor(host) == "No problems found.\n"
    with eventually() as until:  # lo may have become up
        until(lambda: len(space.try_("ip -o link").stdout.splitlines()) == len(before.splitlines()))
    assert os.path.exists(space.path)
    assert engine.networks.remove("shop").name == "shop"


def test_s33_an_endpoint_waits_on_the_host_until_its_owner_moves_it(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """libnetwork moves and addresses devices itself: it is told what to do."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    space = spaces()
    endpoint = engine.endpoints.create(datapath.EndpointRequest("shop"), "docker", "e1")
    later = "/run/netns/not-made-yet"
    info = engine.endpoints.hand_over("e1", "docker", later, ["8080:80"], "web")
    assert info == engine.endpoints.hand_over("e1", "docker", later, ["8080:80"], "web")
    assert [s.key for s in engine.sandboxes.all()] == [later] and doctor(host) == "No problems found.\n"
    info = engine.endpoints.hand_over("e1", "docker", space.path, ["8080:80"], "web")
    assert [s.label for s in engine.sandboxes.all()] == ["web"], (
        "one that nobody is handed over to is forgotten"
    )
    move(host, space, info, "lan7")  # as it likes to call it
    assert reaches(space.try_, OUTSIDE)
    space.serve(80)
    assert "8080" not in host.ctl("port ls"), "it is not the way out yet"
    for _ in range(2):
        (port,) = engine.endpoints.program("e1", "docker")
        assert port.host_port == 8080
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
    assert doctor(host) == "No problems found.\n"
    for _ in range(2):
        engine.endpoints.revoke("e1", "docker")
        assert host.outside.try_(ask("tcp", HOST, 8080)).returncode
    assert [engine.endpoints.leave("e1", "docker") for _ in range(2)] == [True, False]
    assert engine.sandboxes.all() == [] and doctor(host) == "No problems found.\n"
    assert [engine.endpoints.delete("e1", "docker") for _ in range(2)] == [True, False]
    assert "lan7" not in space.try_("ip -o link").stdout
    assert endpoint.host_ifname not in host.sh("ip -o link")


def move(host: Host, space: Space, info: JoinInfo, name: str = "") -> None:
    """What libnetwork does with a device that was handed over."""
    assert info.source in host.sh("ip -o link")
    name = name or info.ifname
    host.sh(f"ip link set {info.source} netns {space.path} name {name}")
    for command in (f"ip address add {info.addresses[0]} dev {name}", f"ip link set {name} up"):
        assert space.try_(command).returncode == 0
    space.try_(f"ip route replace default via {info.gateway4}")


def test_s33_ports_go_with_the_way_out_of_a_sandbox_and_a_chosen_one_stays_the_same(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """Docker says which endpoint it is; after a crash it does not say that the one before is it no more."""
    space = spaces()
    for number, key in enumerate(("a", "b"), start=61):
        engine.networks.create(datapath.NetworkRequest(key, subnets=(f"10.{number}.0.0/24",), owner="docker"))
        engine.endpoints.create(datapath.EndpointRequest(key), "docker", key)
        info = engine.endpoints.hand_over(key, "docker", space.path, ["80", "8080:80", "8000-8010:81"])
        move(host, space, info)
    space.serve(80)
    first = engine.endpoints.program("a", "docker")
    opened, named, within = (mapping.host_port for mapping in first)
    assert (named, within) == (8080, 8000)
    for key in ("b", "a", "b"):
        assert engine.endpoints.program(key, "docker") == first
        published = host.ctl("ps --format {{.Ports}}")
        assert published.count(":8080->") == 1 and f":{opened}->" in published
        if key == "a":
            engine.endpoints.revoke("a", "docker")
    for port in (opened, named):
        assert host.outside.sh(ask("tcp", HOST, port)).split()[0] == OUTSIDE
    assert doctor(host) == "No problems found.\n"
    assert 'already allocated (by container "' in host.refused("run -d -p 8080:80 true")
    engine.endpoints.delete("b", "docker")
    space.try_("ip route replace default via 10.61.0.1")
    assert engine.endpoints.program("a", "docker", ["127.0.0.1:8080:80"])[0].host_port == 8080
    assert engine.endpoints.program("a", "docker", ["8080:80"])[0].host_port == 8080
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
    engine.endpoints.delete("a", "docker")
    assert engine.sandboxes.all() == [] and "8080" not in host.ctl("port ls")


def test_s33_who_allots_addresses_gives_one_of_a_forgotten_endpoint_to_the_next(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """Its device is there still, in a namespace of which nobody has said that it is to go."""
    ident = "ab" * 32
    request = datapath.NetworkRequest("n", subnets=("10.61.0.0/24",), owner="docker", ident=ident)
    assert engine.networks.create(request).id == ident
    with pytest.raises(ExistsError, match="already exists"):
        engine.networks.create(request)
    one, two = spaces(), spaces()
    for key, space in (("e1", one), ("e2", two)):
        asked = datapath.EndpointRequest(ident, ip="10.61.0.7")
        if key == "e2":
            with pytest.raises(ExistsError, match="Address already in use"):
                engine.endpoints.create(asked, "docker", key)
        engine.endpoints.create(asked, "docker", key, allots=True)
        move(host, space, engine.endpoints.hand_over(key, "docker", space.path, ["8080:80"]))
        engine.endpoints.program(key, "docker")
        assert reaches(space.try_, OUTSIDE)
    assert [endpoint.owner_key for endpoint in engine.endpoints.all()] == ["e2"]
    assert doctor(host) == "No problems found.\n"
    with pytest.raises(InUseError, match="active endpoints"):
        engine.networks.remove(ident, "docker")
    engine.networks.remove(ident, "docker", members=True)
    assert engine.sandboxes.all() == [] and doctor(host) == "No problems found.\n"


def test_s33_the_commands_show_owners_and_take_nothing_of_theirs_without_force(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    host.run("web")
    assert "OWNER" not in host.ctl("ps") + host.ctl("network ls")
    engine.networks.create(datapath.NetworkRequest("theirs", subnets=("10.62.0.0/24",), owner="docker"))
    space = spaces()
    sandbox = engine.sandboxes.adopt(space.path, "docker", key="c" * 64, name="db")
    endpoint = engine.endpoints.create(datapath.EndpointRequest("theirs"), "docker", "e1")
    engine.endpoints.join(endpoint.id, sandbox.id)
    engine.ports.publish(endpoint.id, "8080:80")
    rows = {line.split()[-1] for line in host.ctl("ps").splitlines()}
    assert rows == {"OWNER", "datapath", "docker"}
    assert host.ctl("ps --filter name=db --format {{.Names}}:{{.Owner}}:{{.Ports}}").startswith(
        "db:docker:0.0.0.0:8080"
    )
    assert host.ctl("network ls --filter name=theirs --format {{.Owner}}") == "docker"
    before = look.database(host)
    assert "network theirs belongs to docker" in host.refused("network rm theirs")
    assert "sandbox db belongs to docker" in host.refused("rm db")
    assert "networks or sandboxes of docker are here" in host.refused("down")
    with pytest.raises(InUseError, match="belongs to docker"):
        engine.endpoints.delete(endpoint.id, "cni")
    assert look.database(host) == before
    assert 'already allocated (by container "db")' in host.refused("run -d -p 8080:80 true")
    host.ctl("rm -f db")
    host.ctl("network rm -f theirs")
    host.ctl("down")


@pytest.mark.parametrize(
    ("words", "act"),
    [
        ("is no network namespace", lambda e, s: e.sandboxes.adopt("/etc/hosts", "cni")),
        ("must be an absolute path", lambda e, s: e.sandboxes.adopt("relative", "cni")),
        ("invalid owner", lambda e, s: e.sandboxes.adopt(s.path, "datapath")),
        ("invalid owner", lambda e, s: e.sandboxes.adopt(s.path, "No Body")),
        ("network nowhere not found", lambda e, s: e.endpoints.create(_request("nowhere"), "cni")),
        ("cannot connect container to host", lambda e, s: e.endpoints.create(_request("host"), "cni")),
        ("no configured subnet", lambda e, s: e.endpoints.create(_request("shop", ip="10.9.9.9"), "cni")),
        ('endpoint "e9" not found', lambda e, s: e.endpoints.join("e9", "x")),
        ('endpoint "e9" not found', lambda e, s: e.ports.publish("e9", "80:80")),
        ('endpoint "e9" not found', lambda e, s: e.endpoints.hand_over("e9", "docker", s.path)),
        ("invalid network id", lambda e, s: e.networks.create(_network("../x"))),
    ],
)
def test_s33_what_cannot_be_is_refused_and_changes_nothing(
    host: Host,
    engine: Engine,
    spaces: Callable[[], Space],
    words: str,
    act: Callable[[Any, Space], object],
) -> None:
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    before = look.database(host)
    with pytest.raises(DatapathError, match=words):
        act(engine, spaces())
    assert look.database(host) == before


def _network(ident: str) -> datapath.NetworkRequest:
    return datapath.NetworkRequest("x", owner="docker", ident=ident)


def _request(network: str, ip: str = "") -> datapath.EndpointRequest:
    return datapath.EndpointRequest(network, ip)


def test_s33_an_endpoint_is_in_one_sandbox_and_a_sandbox_once_on_a_network(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    one, two = (engine.sandboxes.adopt(spaces().path, "cni").id for _ in range(2))
    first, second = (engine.endpoints.create(_request("shop"), "cni") for _ in range(2))
    with pytest.raises(ConfigError, match="it has joined no sandbox"):
        engine.ports.publish(first.id, "80:80")
    engine.endpoints.join(first.id, one)
    with pytest.raises(ConfigError, match="it has to leave that first"):
        engine.endpoints.join(first.id, two)
    with pytest.raises(ExistsError, match="has an endpoint on network shop already"):
        engine.endpoints.join(second.id, one)
    with pytest.raises(ExistsError, match="Address already in use"):
        engine.endpoints.create(_request("shop", ip=str(first.ipv4.ip)), "cni")
    assert doctor(host) == "No problems found.\n"


def test_s33_with_two_endpoints_the_ports_follow_the_egress(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    for number, name in enumerate(("a", "b")):
        engine.networks.create(datapath.NetworkRequest(name, subnets=(f"10.6{number}.0.0/24",)))
    space = spaces()
    sandbox = engine.sandboxes.adopt(space.path, "cni")
    a, b = (engine.endpoints.create(_request(name), "cni", name) for name in ("a", "b"))
    engine.endpoints.join(b.id, sandbox.id)
    engine.ports.publish(b.id, "8080:80")
    space.serve(80)
    steps: tuple[Callable[[], object], ...] = (
        lambda: engine.endpoints.join(a.id, sandbox.id),
        lambda: engine.endpoints.leave(a.id),
    )
    for step in steps:
        step()
        assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
        assert doctor(host) == "No problems found.\n"
    engine.endpoints.join(a.id, sandbox.id)
    engine.endpoints.delete("a", "cni")
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE


@pytest.mark.parametrize("spec", ["8080:80", f"{HOST}:8080:80", "127.0.0.1:8080:80"])
@pytest.mark.parametrize("first", [True, False], ids=["held before", "held after"])
def test_s33_a_port_that_its_owner_holds_by_a_socket_is_published_all_the_same(
    host: Host, engine: Engine, spaces: Callable[[], Space], spec: str, first: bool
) -> None:
    """As podman does: nobody else gets the port, and the container answers, not the socket."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    space = spaces()
    sandbox = engine.sandboxes.adopt(space.path, "podman")
    endpoint = engine.endpoints.create(_request("shop"), "podman")
    engine.endpoints.join(endpoint.id, sandbox.id)
    space.serve(80)
    address = spec.removesuffix("8080:80").rstrip(":") or "0.0.0.0"
    if first:
        hold(host, address)
        with pytest.raises(ExistsError, match="address already in use"):
            engine.ports.publish(endpoint.id, spec)
    engine.ports.publish(endpoint.id, spec, shared=True)
    if not first:
        hold(host, address)
    client, asked = (host, address) if address == "127.0.0.1" else (host.outside, HOST)
    assert client.sh(ask("tcp", asked, 8080)).split()[0] in (OUTSIDE, "10.61.0.1")
    other = engine.endpoints.create(_request("shop"), "podman")
    engine.endpoints.join(other.id, engine.sandboxes.adopt(spaces().path, "podman").id)
    with pytest.raises(ExistsError, match="already allocated"):
        engine.ports.publish(other.id, spec, shared=True)
    assert doctor(host) == "No problems found.\n"
    assert engine.ports.publish(endpoint.id, spec, shared=True) == engine.endpoints.all()[0].ports
    assert engine.ports.unpublish(endpoint.id, spec) == ()
    assert doctor(host) == "No problems found.\n"


def hold(host: Host, address: str) -> None:
    """A process of the host listens at port 8080."""
    code = f"import socket, time; s = socket.create_server(({address!r}, 8080)); print(flush=True); time.sleep(3600)"
    process = host.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    process.stdout.close()


def test_s33_an_attachment_is_all_of_it_or_nothing(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """Whatever is refused, network and sandbox included, is not there afterwards; the last one takes the network."""
    engine.networks.create(datapath.NetworkRequest("mine", subnets=("10.64.0.0/24",)))
    one, two = spaces(), spaces()
    two.try_("ip link add eth0 type veth peer name other")
    before = look.database(host)
    refused: tuple[tuple[str, datapath.AttachmentRequest], ...] = (
        ("File exists", _attachment(two.path)),
        ("is no network namespace", _attachment("/etc/hosts")),
        ("no address of this host", replace(_attachment(one.path), ports=("203.0.113.9:82:82",))),
        (
            "belongs to datapath",
            replace(_attachment(one.path), network=datapath.NetworkRequest("mine", owner="door")),
        ),
        ("not found", replace(_attachment(one.path), network=None)),
    )
    for words, request in refused:
        with pytest.raises(DatapathError, match=words):
            engine.attachments.add(request)
        assert look.database(host) == before, words
    attached = engine.attachments.add(_attachment(one.path))
    assert [str(m) for m in attached.endpoint.ports] == ["8082:82/tcp"]
    with pytest.raises(ExistsError, match="exists already"):
        engine.attachments.add(_attachment(one.path))
    other = replace(
        _attachment(one.path), network=datapath.NetworkRequest("doors", internal=True, owner="door")
    )
    with pytest.raises(InUseError, match="in use"):
        engine.attachments.add(replace(other, key="b", sandbox="t", path=two.path))
    assert engine.attachments.check("door", "a", one.path) == []
    assert engine.attachments.retain("door", "doors", lambda key: key == "a") == []
    assert engine.attachments.retain("door", "doors", lambda key: False) == ["a"]
    assert look.database(host) == before
    assert doctor(host) == "No problems found.\n"


def test_s33_a_namespace_that_has_just_ended_holds_no_port(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """Though its devices are there until the kernel has taken all away that has ended before it."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    first, second = spaces(), spaces()

    def joined(space: Space) -> Endpoint:
        made: Endpoint = engine.endpoints.create(
            datapath.EndpointRequest("shop"), "cni", f"{space.name}/eth0"
        )
        engine.endpoints.join(made.id, engine.sandboxes.adopt(space.path, "cni", key=space.name).id)
        return made

    before, after = joined(first), joined(second)
    engine.ports.publish(before.id, "8080:80")
    with Links(host.path) as links:
        assert not links.is_cut_off(before.host_ifindex)
        for _ in range(20):
            subprocess.run(["unshare", "--net", "true"], check=True)
        first.delete()
        assert links.is_cut_off(before.host_ifindex)
    engine.ports.publish(after.id, "8080:80")
    assert before.id not in {one.id for one in engine.endpoints.all()}
    assert doctor(host) == "No problems found.\n"


def test_s33_a_path_that_leads_to_another_namespace_by_now_is_the_sandboxs_no_more(
    host: Host, engine: Engine
) -> None:
    """As /proc/PID/ns/net does once the number is another process's, and here the host's own."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from datapath.kernel import syscalls; "
        "there = os.open(sys.argv[1], os.O_RDONLY); syscalls.unshare(syscalls.CLONE_NEWNET); print(flush=True); "
        "input(); syscalls.setns(there, syscalls.CLONE_NEWNET); print(flush=True); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = host.start([sys.executable, "-c", code, host.path, str(TREE)], **pipes)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    before = host.sh("ip -o link show eth0"), host.sh("ip -o address show eth0")
    request = datapath.AttachmentRequest(
        "door", "a", f"/proc/{process.pid}/ns/net", "s", _request("shop"), name="pod"
    )
    attached = engine.attachments.add(request)
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()
    with eventually() as until:
        until(lambda: attached.endpoint.host_ifname not in host.sh("ip -o link"))
    assert host.try_ctl("doctor --format {{.Check}}").stdout == "dead\n"
    host.ctl("reconcile")
    assert (host.sh("ip -o link show eth0"), host.sh("ip -o address show eth0")) == before
    assert doctor(host) == "No problems found.\n"
    assert engine.endpoints.all() == []
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def test_s33_any_order_any_subset_any_number_of_times(
    host: Host, engine: Engine, spaces: Callable[[], Space]
) -> None:
    """A random walk; whatever is refused changes nothing, and in between nothing differs from the desired state."""
    chance = random.Random(61)
    for number, name in enumerate(("a", "b")):
        engine.networks.create(datapath.NetworkRequest(name, subnets=(f"10.6{number}.0.0/24",)))
    there = [spaces() for _ in range(2)]

    def endpoint(key: str) -> str:
        found: Endpoint | None = next((e for e in engine.endpoints.all() if e.owner_key == key), None)
        return found.id if found else "0" * 64

    def renew(space: Space) -> None:
        space.delete()
        space.make()

    steps: list[Callable[[str, Space, str], object]] = [
        lambda key, space, port: engine.sandboxes.adopt(space.path, "cni", key=space.name),
        lambda key, space, port: engine.endpoints.create(_request(key[0]), "cni", key),
        lambda key, space, port: engine.endpoints.join(endpoint(key), space.name),
        lambda key, space, port: engine.ports.publish(endpoint(key), port),
        lambda key, space, port: engine.ports.unpublish(endpoint(key), port),
        lambda key, space, port: engine.endpoints.leave(endpoint(key)),
        lambda key, space, port: engine.endpoints.delete(key, "cni"),
        lambda key, space, port: engine.sandboxes.forget(space.name, "cni"),
        lambda key, space, port: renew(space) if chance.random() < 0.3 else None,
        lambda key, space, port: host.ctl("network create x") and host.ctl("network rm x"),
    ]
    done = refused = 0
    for number in range(STEPS):
        step = chance.choice(steps)
        arguments = chance.choice(("a1", "a2", "b1")), chance.choice(there), chance.choice(("8080:80", "81"))
        try:
            step(*arguments)
            done += 1
        except DatapathError:
            refused += 1
        if number % 20 == 0:
            host.ctl("reconcile")
            assert doctor(host) == "No problems found.\n", f"after {number} steps"
    assert done > STEPS / 4 and refused > STEPS / 20
    for key in ("a1", "a2", "b1"):
        engine.endpoints.delete(key, "cni")
    for space in there:
        engine.sandboxes.forget(space.name, "cni")
    host.ctl("network rm a b")
    assert doctor(host) == "No problems found.\n"
    host.ctl("down")
    assert not any(Path(host.folder / "state").glob("*"))


KILLED: dict[str, Callable[[Any, str], object]] = {
    "adopt": lambda engine, path: engine.sandboxes.adopt(path, "cni", key="new"),
    "create": lambda engine, path: engine.endpoints.create(_request("shop"), "cni", "new"),
    "join": lambda engine, path: engine.endpoints.join(_id(engine, "waits"), path),
    "publish": lambda engine, path: engine.ports.publish(_id(engine, "in"), "8080:80,deny=10.0.0.0/8"),
    "unpublish": lambda engine, path: engine.ports.unpublish(_id(engine, "in")),
    "leave": lambda engine, path: engine.endpoints.leave(_id(engine, "in")),
    "delete": lambda engine, path: engine.endpoints.delete("in", "cni"),
    "forget": lambda engine, path: engine.sandboxes.forget("all", "cni"),
    "attach": lambda engine, path: engine.attachments.add(_attachment(path, again=True)),
    "detach": lambda engine, path: engine.attachments.remove("door", "a", "doors"),
}


def _attachment(path: str, again: bool = False) -> datapath.AttachmentRequest:
    network = datapath.NetworkRequest("doors", subnets=("10.63.0.0/24",), owner="door")
    return datapath.AttachmentRequest(
        *("door", "a", path, "s", _request("doors"), network), ports=("8082:82",), again=again
    )


def _id(engine: Any, key: str) -> str:
    return str(next(e.id for e in engine.endpoints.all() if e.owner_key == key))


# Of endpoints that were handed over: "a" and "b" of one sandbox, "a" is its way out.
HANDED: dict[str, Callable[[Any, str], object]] = {
    "hand over": lambda engine, path: engine.endpoints.hand_over("a", "docker", path, ["81"]),
    "program": lambda engine, path: engine.endpoints.program("b", "docker"),
    "revoke": lambda engine, path: engine.endpoints.revoke("a", "docker"),
    "take out": lambda engine, path: engine.endpoints.leave("a", "docker"),
    "supersede": lambda engine, path: engine.endpoints.create(
        _request("shop", "10.61.0.7"), "docker", "c", True
    ),
}


@pytest.mark.parametrize("what", HANDED)
def test_s30_a_step_of_an_endpoint_that_was_handed_over_is_whole_when_killed_anywhere(
    host: Host, engine: Engine, spaces: Callable[[], Space], what: str
) -> None:
    space, other = spaces(), spaces()
    for number, name in enumerate(("shop", "other"), start=61):
        engine.networks.create(datapath.NetworkRequest(name, subnets=(f"10.{number}.0.0/24",)))

    def prepare() -> None:
        for key in ("a", "b", "c"):
            engine.endpoints.delete(key, "docker")
        for key, network, ip in (("a", "shop", "10.61.0.7"), ("b", "other", "10.62.0.7")):
            engine.endpoints.create(_request(network, ip), "docker", key)
            move(host, space, engine.endpoints.hand_over(key, "docker", space.path, ["8080:80", "81"]))
        engine.endpoints.program("a", "docker")

    killed_anywhere(host, what, prepare, lambda library: HANDED[what](library, other.path), 3 * STRIDE)


@pytest.mark.parametrize("what", KILLED)
def test_s30_a_step_that_is_killed_anywhere_is_whole_after_the_next_command(
    host: Host, engine: Engine, spaces: Callable[[], Space], what: str
) -> None:
    """And asked for again it is done."""
    engine.networks.create(datapath.NetworkRequest("shop", subnets=("10.61.0.0/24",)))
    space, other = spaces(), spaces()

    def prepare() -> None:
        for name in ("all", "new", "other"):
            engine.sandboxes.forget(name, "cni")
        for key in ("in", "waits", "new"):
            engine.endpoints.delete(key, "cni")
        engine.attachments.remove("door", "a", "doors")
        if what == "detach":
            engine.attachments.add(_attachment(space.path))
        engine.sandboxes.adopt(space.path, "cni", key="all")
        engine.sandboxes.adopt(other.path, "cni", key=other.path)
        if what in ("attach", "detach"):
            return
        inside = engine.endpoints.create(_request("shop"), "cni", "in")
        engine.endpoints.create(_request("shop"), "cni", "waits")
        engine.endpoints.join(inside.id, "all")
        engine.ports.publish(inside.id, "8081:81")

    killed_anywhere(host, what, prepare, lambda library: KILLED[what](library, other.path))


def killed_anywhere(
    host: Host, what: str, prepare: Callable[[], None], step: Callable[[Any], object], stride: int = STRIDE
) -> None:
    """The step, after what is prepared anew each time: killed at one of its calls of the system after the other."""

    def act() -> int:
        step(datapath.Host.open(Settings.from_env(os.environ)))
        return 0

    def attempt(fault: str) -> int:
        assert host.env is not None
        env = {**host.env, faults.VARIABLE: fault}
        done = forked.call(act, [what], host.path, env, 60)
        assert done.returncode in (0, -9), f"{what}, {fault}: {done.stderr}"
        return faults.last().steps

    forked.in_child.append(faults.install)
    try:
        prepare()
        steps = attempt("count@0")
        assert steps > 1
        for number in range(1, steps + 1, stride):
            prepare()
            attempt(f"kill@{number}")
            host.ctl("reconcile")
            assert doctor(host) == "No problems found.\n", f"killed at step {number} of {steps}"
            assert attempt("count@0") >= 0
            assert doctor(host) == "No problems found.\n", f"asked again after step {number} of {steps}"
    finally:
        forked.in_child.remove(faults.install)
