# SPDX-License-Identifier: Apache-2.0
"""A driver of one's own, as CONTRIBUTING says: registered from here, it works with the ordinary commands (S2)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any, ClassVar

import pytest

from datapath.drivers import registry
from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.driver import waiting_name
from datapath.drivers.pairs import check as pairs_check
from datapath.drivers.pairs.driver import PairDriver
from datapath.drivers.pairs.spec import PairSpec
from datapath.kernel import sysctl
from datapath.model.drivers import Traits
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import OPT_MTU, OPT_NAME, Network, gateway_mac
from tests.net.hosts import Host, reaches


class RoutedSpec(PairSpec):
    """Members are reached by a route each; the kernel forwards."""

    name = "routed"
    traits = Traits(acl=False)
    options: ClassVar[Any] = {name: PairSpec.options[name] for name in (OPT_NAME, OPT_MTU)}


ROUTED = RoutedSpec()


class Routed(PairDriver):
    spec = ROUTED

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        addresses = [ip_interface((s.gateway, s.prefix.prefixlen)) for s in network.subnets if s.gateway]
        peer = f"rp{network.number}"
        self.context.links.create_gateway(
            network.device, peer, gateway_mac(network), addresses, mtu, ipv6=network.ipv6
        )
        for member in members:
            self.restore(network, member)

    def delete_network(self, network: Network) -> None:
        self.context.links.delete_pair(network.device, f"rp{network.number}")

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        ifname = waiting_name(endpoint) if sandbox is None else endpoint.ifname
        names = (endpoint.host_ifname, ifname)
        index, _ = self.context.links.create_endpoint(*names, sandbox, endpoint.mac, mtu)
        made = replace(endpoint, host_ifindex=index)
        self.restore(network, made)
        return made

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        assert endpoint.ipv4 is not None
        for key in ("proxy_arp", "forwarding"):
            sysctl.write(f"net/ipv4/conf/{endpoint.host_ifname}/{key}", 1)
        gateway = network.subnets[0].gateway
        route = f"ip route replace {endpoint.ipv4.ip}/32 dev {endpoint.host_ifname} src {gateway}"
        subprocess.run(route.split(), check=True)

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        self.context.links.delete_endpoint(endpoint.host_ifname, endpoint.host_ifindex)

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        return pairs_check.findings(comparison, networks)


@pytest.fixture
def with_driver(host: Host) -> Iterator[Host]:
    """The commands are forked from here, where it is registered."""
    registry.register(ROUTED, lambda: Routed)
    try:
        yield host
    finally:
        host.try_ctl("down")
        registry.unregister(ROUTED)


def test_s2_a_driver_of_a_screenful_works_with_the_ordinary_commands(with_driver: Host) -> None:
    host = with_driver
    host.ctl("network create -d routed --subnet 10.70.0.0/24 -o com.docker.network.bridge.name=r0 far")
    assert host.ctl("network ls --filter driver=routed --format {{.Name}}") == "far"
    host.run("a", "--network far")
    host.run("b", "--network far")
    host.run("c")
    host.ctl("network connect far c")
    for name in ("a", "b", "c"):
        assert reaches(host.try_, host.address(name, "far"))
    assert reaches(lambda command: host.try_in("a", command), host.address("b", "far"))
    assert host.network("far")["Driver"] == "routed"
    assert {one["Name"] for one in host.network("far")["Containers"].values()} == {"a", "b", "c"}
    assert host.try_ctl("doctor").returncode == 0
    refused = host.refused("network create -d routed -o com.docker.network.bridge.enable_icc=false x")
    assert "of driver routed is not available" in refused

    host.sh("ip link set r0 down")
    host.in_("a", "ip address flush dev eth0")
    found = host.try_ctl("doctor").stdout
    assert "network far: device r0 is down" in found
    assert "container a on network far: the container's device eth0 has lost the address" in found
    host.ctl("reconcile")
    assert host.try_ctl("doctor").returncode == 0
    host.sh("ip link delete r0")
    assert "its gateway device r0 is gone" in host.try_ctl("doctor").stdout
    host.ctl("network create y")  # any command that changes something builds it again
    assert host.try_ctl("doctor").returncode == 0 and reaches(host.try_, host.address("b", "far"))

    host.ctl("network disconnect far c")
    host.ctl("rm -f a b")
    host.ctl("network rm far")
    assert "r0" not in host.sh("ip -o link") and host.sh("ip route show 10.70.0.0/24") == ""


def test_s2_a_network_whose_driver_is_gone_can_be_seen_and_removed(with_driver: Host) -> None:
    """As after an installation without it."""
    host = with_driver
    host.ctl("network create -d routed --subnet 10.70.0.0/24 far")
    registry.unregister(ROUTED)
    try:
        assert "far" in host.ctl("network ls")
        assert host.network("far")["Driver"] == "routed"
        found = host.try_ctl("doctor --format {{.Check}}:{{.Subject}}").stdout
        assert found == "driver:network far\n", "driver"
        assert "the network's driver is not there any more" in host.refused("run -d --network far true")
        host.ctl("network rm far")
    finally:
        registry.register(ROUTED, lambda: Routed)
