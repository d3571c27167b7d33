# SPDX-License-Identifier: Apache-2.0
"""O11: Docker's overlay networks (swarm mode, real daemons) on the same two hosts as ours: each host has both, and who
has the UDP port of tunnels is said when it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.bench.docker import Docker
from datapath.bench.host import Host
from datapath.bench.model import ACROSS_HOSTS, DOCKER, EBPF, SuiteOptions
from datapath.bench.place import ToolError
from datapath.bench.topologies import CLIENT, NETWORK, SERVER, Route
from datapath.bench.topology_hosts import DockerHosts, OwnHosts, TwoHosts, eventually
from tests.net.dockerd import needs_docker
from tests.net.hosts import TIMEOUT, TREE
from tests.net.test_overlay_packets import GIVE, TAKE, digest, script

pytestmark = needs_docker
CREATE = ("network", "create", "-d", "overlay", "--subnet", "10.88.0.0/16", NETWORK)


class Swarm(DockerHosts):
    """Two daemons in one swarm with a container on each, joined by Docker's overlay network at port 4789."""

    def _daemon(self, host: Host, store: str) -> Docker:
        self._stored = False  # by swarm, not by a store of its own
        return Docker(host, self.options.dockerd)


class Ours(OwnHosts):
    """The command line on the hosts of a swarm, by the store that is there."""

    def __init__(self, hosts: TwoHosts) -> None:
        super().__init__(EBPF, hosts.options)
        self.one, self.other = hosts.hosts
        self._store = f"{self.one.address}:2379"

    def configure(self, **opts: str) -> None:
        for host in self.hosts:
            config = {**self._clustered(host), "cluster-store-opts": opts}
            (host.folder / "daemon.json").write_text(json.dumps(config))

    def refused(self, host: Host, *command: str) -> str:
        with pytest.raises(ToolError) as caught:
            self.ctl(host, *command)
        return str(caught.value)

    def joined(self) -> Route:
        """Between a container on each host, which know of each other."""
        self.ctl(self.one, *CREATE)
        self.ctl(self.one, *self._run(SERVER))
        self.ctl(self.other, *self._run(CLIENT))
        self.ctl(self.one, "run", "--rm", "--network", NETWORK, "--", "true")  # it hears of the other
        server, client = self._inspect(self.one, SERVER), self._inspect(self.other, CLIENT)
        address = server["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        return self.between(
            f"/proc/{server['State']['Pid']}/ns/net", f"/proc/{client['State']['Pid']}/ns/net", address
        )

    def down(self) -> None:
        for host in self.hosts:
            self._down(host)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    program = (sys.executable, "-m", "ctl.cli.main")
    options = SuiteOptions(1.0, tmp_path_factory.mktemp("swarm"), "docker", "dockerd", program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TREE))
        made = Swarm(DOCKER, options)
        with made:
            yield made


@pytest.fixture
def ours(swarm: Swarm) -> Iterator[Ours]:
    made = Ours(swarm)
    yield made
    made.down()


def passes(route: Route, folder: Path) -> bool:
    """A stream arrives whole."""
    with route.server.serving(script(TAKE, route.address, 8000), 8000, folder / "taken"):
        said = route.client.run(script(GIVE, route.address, 8000, 4), TIMEOUT)
    return said.split()[-1] == digest(4)


def test_who_has_the_port_of_tunnels_is_said_and_nothing_is_changed(
    swarm: Swarm, ours: Ours, tmp_path: Path
) -> None:
    """Docker's device is in a namespace of its own: no list of devices or processes here has it."""
    ours.configure()
    said = ours.refused(ours.one, *CREATE)
    assert "UDP port 4789, which the hosts of this cluster use for tunnels, is taken on this host by " in said
    assert "a VXLAN device that was moved to another namespace, as Docker's overlay networks do" in said
    assert NETWORK not in ours.ctl(ours.one, "network", "ls")
    assert "vxlan" not in ours.one.inside.sh("ip -o link")
    assert passes(swarm.route(ACROSS_HOSTS), tmp_path)


def test_at_another_port_both_overlays_carry_traffic_on_the_same_hosts(
    swarm: Swarm, ours: Ours, tmp_path: Path
) -> None:
    ours.configure(**{"vxlan.port": "8472"})
    route = ours.joined()
    eventually(lambda: route.client.run(["ping", "-c", "1", "-W", "1", route.address], 5))
    for each in (route, swarm.route(ACROSS_HOSTS), route):
        assert passes(each, tmp_path)
    for host in ours.hosts:
        assert "No problems found" in ours.ctl(host, "doctor")
    ours.configure(**{"vxlan.port": "8473"})
    said = ours.refused(ours.other, "run", "--rm", "--network", NETWORK, "--", "true")
    assert "port 8473 for tunnels is not that of the cluster, 8472" in said
    ours.configure(**{"vxlan.port": "8472"})
