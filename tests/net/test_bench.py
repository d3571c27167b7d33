# SPDX-License-Identifier: Apache-2.0
"""The benchmark's topologies: the same programs in each mode, and nothing left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.bench import host
from datapath.bench.groups import group
from datapath.bench.host import HOST
from datapath.bench.model import BY_OTHER_HOST, DOCKERS, Sample, SuiteOptions
from datapath.bench.names import Asking, Dns
from datapath.bench.place import Place, ToolError
from datapath.bench.served import Served, services
from datapath.bench.suites import populated, ports
from datapath.bench.topologies import LOOPBACK, PORT, Own
from datapath.bench.topology_docker import DockerTopology
from datapath.bench.topology_services import MEASURED, SERVERS, OwnServices, make_services
from datapath.bench.traffic import Topologies, Traffic, traffic
from datapath.bench.workloads import PROBE, TCP_CONNECT, TCP_RR, UDP_PPS
from datapath.kernel import netns
from tests.net.hosts import DATAPATHCTL, PATIENCE, TREE, eventually

MODES = ("ebpf", "iptables", "none")
SECONDS = 0.2


@pytest.fixture(scope="module")
def topologies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topologies]:
    made = Topologies("bench", SuiteOptions(SECONDS, tmp_path_factory.mktemp("bench")))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", autouse=True)
def groups() -> Iterator[list[Path]]:
    """The control groups that were made here: the machine's are others' too."""
    made: list[Path] = []

    @contextlib.contextmanager
    def noted(name: str) -> Iterator[Path]:
        with group(name) as place:
            made.append(place)
            yield place

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "group", noted)
        yield made
    assert made and not [place for place in made if place.exists()]


def samples(row: Traffic) -> dict[str, Sample]:
    with row:
        return {mode: row.sample(mode) for mode in row.modes}


@pytest.mark.parametrize("path", ["outside-published", "loopback-published", "hairpin"])
def test_s28_connections_are_counted_in_every_mode(topologies: Topologies, path: str) -> None:
    found = samples(traffic(topologies, MODES, TCP_CONNECT, path))
    assert all(sample.value > 100 for sample in found.values())


def test_s28_packets_are_counted_in_every_mode(topologies: Topologies) -> None:
    found = samples(traffic(topologies, MODES, UDP_PPS, "container-container"))
    assert all(sample.value > 1 for sample in found.values())


@pytest.mark.skipif(not shutil.which("sockperf"), reason="sockperf is not installed: make bench-deps")
def test_s28_round_trips_are_timed(topologies: Topologies) -> None:
    found = samples(traffic(topologies, ("ebpf",), TCP_RR, "container-outside"))
    assert 1 < found["ebpf"].value < 10_000


def test_s28_the_measured_port_is_published_whatever_is_published_before_it(topologies: Topologies) -> None:
    for count in (300, 1):
        found = samples(ports(topologies, ("ebpf", "iptables"), count))
        assert all(sample.value > 10 for sample in found.values())


def test_s28_other_networks_and_containers_come_and_go(topologies: Topologies) -> None:
    assert samples(populated(topologies, ("ebpf",), TCP_CONNECT, networks=2))["ebpf"].value > 100
    assert samples(populated(topologies, ("ebpf",), TCP_CONNECT, containers=3))["ebpf"].value > 100


def test_s28_connections_stand_in_the_table_while_others_are_measured(topologies: Topologies) -> None:
    row = ports(topologies, ("ebpf",), 1)
    row.flows = 500
    assert samples(row)["ebpf"].value > 100
    topology = topologies.of("ebpf")
    assert isinstance(topology, Own)
    from datapath.model.connections import ConnectionFilter
    from datapath.telemetry import stats

    found = [one for one, _ in stats.connections(topology.engine, ConnectionFilter(proto=17))]
    assert len(found) == 500


def test_s28_changes_are_timed(topologies: Topologies) -> None:
    for mode in ("ebpf", "iptables"):
        topology = topologies.of(mode)
        assert all(seconds > 0 for seconds in (*topology.attach_detach(), *topology.open_close(20)))


def test_s28_only_the_hosts_own_group_pays_for_socket_hooks(topologies: Topologies) -> None:
    """DATAPATH_CGROUP: the hooks note what a socket asked for, if they see it."""
    topology = topologies.of("ebpf")
    assert isinstance(topology, Own)
    from datapath.telemetry.stats import stats

    route, ask = topology.route("loopback-published"), [PROBE, "connect", LOOPBACK, str(PORT), "0.01"]

    def noted() -> int:
        with netns.enter(topology.host.inside.path):
            return stats(topology.engine).fill["sockets"][0]

    before = noted()
    with route.server.serving([PROBE, "serve", str(PORT)], PORT, None):
        Place(route.client.netns).run(ask, PATIENCE)
        assert noted() == before
        Place(route.client.netns, str(topology.host.group)).run(ask, PATIENCE)
        assert noted() > before


@pytest.mark.skipif(not shutil.which("unbound"), reason="unbound is not installed: make bench-deps")
def test_s28_questions_for_names_are_timed_of_every_resolver_that_is_here(tmp_path: Path) -> None:
    modes = ("ebpf", "dnsmasq", "unbound", "aardvark", "none")
    with Dns(modes, SuiteOptions(SECONDS, tmp_path)) as suite:
        for row in suite.experiments():
            needed = row.programs if isinstance(row, Asking) else ()
            if not row.point.parameters and all(map(shutil.which, needed)):
                with row:
                    assert ("ebpf" in row.modes and "dnsmasq" in row.modes) or "none" in row.modes
                    assert all(row.sample(mode).value > 0 for mode in row.modes)


def test_s26_s28_services_are_measured_in_every_mode_that_is_here(tmp_path: Path) -> None:
    """Among others, of many backends, from outside and from the host, and while one backend comes and goes."""
    own = Topologies("services", SuiteOptions(SECONDS, tmp_path), make_services)
    try:
        for row in services(own, ("ebpf", "none", "iptables", "nginx", "haproxy")):
            if row.workload.name == "tcp_rr" or not isinstance(row, Served):
                continue
            row.services, row.backends = min(row.services, 4), min(row.backends, 30)
            with row:
                found = {mode: row.sample(mode) for mode in row.modes}
            assert all(sample.value > 10 for sample in found.values())
            assert not found["ebpf"].details["failed"]
            if row.point.workload == "tcp_insist":
                assert all(sample.details["changes"] for sample in found.values())
        topology = own.of("ebpf")
        assert isinstance(topology, OwnServices)
        with netns.enter(topology.host.inside.path):
            served = topology.engine.services.backends(MEASURED)
        assert len([use for use in served if use.opened]) == SERVERS
    finally:
        own.close()


@pytest.mark.skipif(not shutil.which("etcd"), reason="etcd is not installed: make deps")
def test_s26_s28_a_port_of_another_host_is_measured_beside_the_overlay_itself(tmp_path: Path) -> None:
    """With direct server return and without."""
    options = SuiteOptions(SECONDS, tmp_path, program=(DATAPATHCTL,))
    own = Topologies("services", options, make_services)
    try:
        rows = [row for row in services(own, ("ebpf", "dsr", "none")) if row.point.path == BY_OTHER_HOST]
        assert [row.workload.name for row in rows] == ["tcp_rr", "tcp_connect"]
        with rows[1] as row:
            assert row.modes == ("ebpf", "dsr", "none")
            for mode in row.modes:
                found = row.sample(mode)
                assert found.value > 10 and not found.details["failed"]
    finally:
        own.close()


IN_PID_NAMESPACE = """
import sys, time
from pathlib import Path
from datapath.bench.measure import in_pid_namespace
from datapath.bench.model import SuiteOptions
from datapath.bench.traffic import make_topology

def work():
    options = SuiteOptions(1.0, Path(sys.argv[1]))
    with make_topology("ebpf", options) as topology, make_topology("none", options):
        print(topology.host.group, flush=True)
        time.sleep(3600)
    return 0

sys.exit(in_pid_namespace(work))
"""


def test_s28_a_killed_benchmark_leaves_no_process_and_its_groups_to_the_next(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", IN_PID_NAMESPACE, str(tmp_path)]
    killed = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=TREE)
    assert killed.stdout is not None
    left = Path(killed.stdout.readline().strip())
    assert left.is_dir()
    assert f"{tmp_path}/ebpf" not in Path("/proc/self/mounts").read_text(), "its mounts are its own"
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with eventually() as until:
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
    shutil.rmtree(tmp_path / "ebpf")
    with Own("iptables", SuiteOptions(1.0, tmp_path)):
        assert not left.exists()


def test_s28_a_mode_that_cannot_be_set_up_does_not_stop_the_others(tmp_path: Path) -> None:
    own = Topologies("broken", SuiteOptions(SECONDS, tmp_path, dockerd="false"))
    try:
        row = traffic(own, ("none", "docker"), TCP_CONNECT, "outside-published")
        assert samples(row)["none"].value > 100
        assert row.modes == ("none",) and row.lost == {"docker": "false: no output"}
        with pytest.raises(ToolError):
            samples(traffic(own, ("docker",), TCP_CONNECT, "outside-published"))
    finally:
        own.close()


@pytest.mark.skipif(not shutil.which("dockerd"), reason="dockerd is not installed: make bench-deps")
def test_s28_docker_is_measured_in_a_daemon_of_its_own(tmp_path: Path) -> None:
    own = Topologies("docker", SuiteOptions(SECONDS, tmp_path, program=(DATAPATHCTL,)))
    try:
        with traffic(own, DOCKERS, TCP_CONNECT, "outside-published") as row:
            for mode in DOCKERS:
                assert row.sample(mode).value > 100
                assert all(seconds > 0 for seconds in own.of(mode).attach_detach())
                assert all(seconds > 0 for seconds in own.of(mode).start_remove(2, asleep=True))
                assert own.of(mode).route("hairpin").address == HOST
        topology = own.of("docker-datapath")
        assert isinstance(topology, DockerTopology)
        said = topology.docker.api.ask("GET", "/networks/bench")
        assert said["Driver"] == "datapath" and len(said["Containers"]) == 2
    finally:
        own.close()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
