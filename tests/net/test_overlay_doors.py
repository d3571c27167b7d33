# SPDX-License-Identifier: Apache-2.0
"""S23 by other doors: containers of podman, CNI runtimes and Docker, on two hosts, on one overlay network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net.cluster import Cluster, Member
from tests.net.dockerd import HTTPD, IMAGE, PAGE, DockerHost, needs_docker
from tests.net.doors import Cni, Netavark, Refused, Space, spaces_of_a_test
from tests.net.hosts import ask, reaches
from tests.net.test_overlay import TRIED, clear, hears_of, reaches_from

Spaces = Callable[[], Space]
OF_OURS = {"options": {"com.datapath.network": "ov"}, "ipam_options": {"driver": "none"}}


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    yield from spaces_of_a_test(tmp_path)


@pytest.fixture
def ov(cluster: Cluster) -> Iterator[Cluster]:
    """The network `ov`, which neither host takes part in yet."""
    clear(cluster)
    cluster[0].ctl("network create -d overlay --subnet 10.7.0.0/16 ov")
    yield cluster
    clear(cluster)
    for host in cluster:
        assert host.ctl("doctor") == "No problems found."


def told(cluster: Cluster) -> set[str]:
    """The addresses that the store has."""
    with cluster.etcd.client() as store:
        return {key.rpartition("/")[2] for key in store.list("eps/").entries}


def test_s23_containers_of_cni_runtimes_on_two_hosts_are_on_one_network(ov: Cluster, spaces: Spaces) -> None:
    doors = [Cni(host, {"network": "ov"}, "1.1.0") for host in ov]
    places = [spaces(), spaces()]
    results = [
        cni.add(f"pod{n}", place.path) for n, (cni, place) in enumerate(zip(doors, places, strict=True))
    ]
    addresses = [result["ips"][0]["address"].partition("/")[0] for result in results]
    assert told(ov) == set(addresses)
    ov[0].run("a", "--network ov")  # and so hears of the other host
    places[1].serve(80)
    assert addresses[0] in places[0].sh(ask("tcp", addresses[1], 80))
    assert reaches_from(ov[0], "a", addresses[1])
    for n, (cni, place) in enumerate(zip(doors, places, strict=True)):
        cni.check(f"pod{n}", place.path)
        cni.delete(f"pod{n}", place.path)
    assert "ov" in ov[1].ctl("network ls"), "it is datapathctl's, and stays"
    assert told(ov) == {ov[0].address("a", "ov")}


def test_s23_containers_of_podman_on_two_hosts_are_on_one_network(ov: Cluster, spaces: Spaces) -> None:
    doors, places = [Netavark(host) for host in ov], [spaces(), spaces()]
    addresses = []
    for n, (podman, place) in enumerate(zip(doors, places, strict=True)):
        made = podman.create("shop", **OF_OURS)
        assert not made.get("subnets")
        request = podman.request(f"c{n}", "shop", "eth0")
        status = podman.call("setup", place.path, request=request)
        assert podman.call("setup", place.path, request=request) == status
        (subnet,) = status["interfaces"]["eth0"]["subnets"]
        addresses.append(subnet["ipnet"].partition("/")[0])
    assert told(ov) == set(addresses)
    hears_of(ov[0], "ov")
    places[1].serve(80)
    assert addresses[0] in places[0].sh(ask("tcp", addresses[1], 80))
    assert reaches(ov[0].try_, addresses[1], TRIED)
    for n, (podman, place) in enumerate(zip(doors, places, strict=True)):
        for _ in range(2):
            assert (
                podman.call("teardown", place.path, request=podman.request(f"c{n}", "shop", "eth0")) is None
            )
    assert told(ov) == set()


class DockerMember(DockerHost, Member):
    """A host of the cluster with a real dockerd, and the driver."""


@pytest.fixture
def dockers(ov: Cluster) -> Iterator[list[DockerMember]]:
    made = []
    with ExitStack() as stack:
        for number in (11, 12):
            folder = ov.folder / f"docker{number}"
            folder.mkdir()
            made.append(
                DockerMember(folder, switch=ov.switch, number=number, name=f"d{number}", config=ov.settings)
            )
            stack.callback(made[-1].close)
            made[-1].serve()
            made[-1].up()
        yield made


@needs_docker
def test_s23_containers_of_docker_on_two_hosts_are_on_one_network(
    ov: Cluster, dockers: list[DockerMember]
) -> None:
    """Real daemons, which know nothing of each other: the network gives out the addresses."""
    create = "network create -d datapath --ipam-driver null -o com.datapath.network"
    for host in dockers:
        assert "zzz not found" in host.try_docker(f"{create}=zzz zzz").stderr
        host.docker(f"{create}=ov shop")
        said = host.try_docker("network create -d datapath -o com.datapath.network=ov other").stderr
        assert "add --ipam-driver null" in said
    dockers[0].docker(f"run -d --name web --network shop -p 8080:80 {IMAGE} {HTTPD}")
    dockers[1].docker(f"run -d --name client --network shop {IMAGE} sleep 3600")
    hears_of(dockers[0], "ov")
    found = [
        host.docker(["inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", name])
        for host, name in zip(dockers, ("web", "client"), strict=True)
    ]
    assert told(ov) == set(found) and len(set(found)) == 2
    assert dockers[1].exec("client", f"wget -q -O - http://{found[0]}/") + "\n" == PAGE
    assert PAGE.strip() in ov.switch.sh(f"curl -s http://{dockers[0].vtep}:8080/")
    ov[0].run("a", "--network ov")
    hears_of(dockers[0], "ov")
    assert reaches_from(ov[0], "a", found[0])
    dockers[0].docker("restart -t 0 web")
    assert told(ov) >= {found[1]}
    assert all(host.clean() for host in dockers)  # before the first is down, of which the other does not hear
    for host, name in zip(dockers, ("web", "client"), strict=True):
        host.docker(f"rm -f {name}")
        host.docker("network rm shop")
        assert "ov" in host.ctl("network ls")
        host.ctl("down")
    assert told(ov) == {ov[0].address("a", "ov")}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"options": {"com.datapath.network": "zzz"}, "ipam_options": {"driver": "none"}}, "zzz not found"),
        ({"options": {"com.datapath.network": "ov"}}, "add --ipam-driver none"),
        ({**OF_OURS, "subnets": [{"subnet": "10.9.0.0/24"}]}, "they cannot be chosen"),
        ({**OF_OURS, "options": {"com.datapath.network": "ov", "mtu": "1400"}}, 'option "mtu"'),
    ],
)
def test_s32_a_network_of_podmans_that_cannot_stand_for_another_is_refused(
    ov: Cluster, asked: dict[str, object], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        Netavark(ov[0]).create("shop", **asked)
