# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin, as container runtimes call it, with real packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.net.doors import Cni, Refused, Space, spaces_of_a_test
from tests.net.hosts import OUTSIDE, Host, reaches

CLEAN = "No problems found.\n"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
Spaces = Callable[[], Space]


@pytest.fixture
def spaces() -> Iterator[Spaces]:
    yield from spaces_of_a_test()


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """One for all tests of the module: each has to leave nothing."""
    shared_host.preloaded = True
    yield shared_host
    assert doctor(shared_host) == CLEAN
    assert "cni" not in shared_host.ctl("network ls") + shared_host.ctl("ps")


def doctor(host: Host) -> str:
    return host.try_ctl("doctor").stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_is_put_onto_the_network_and_taken_off_it(
    host: Host, spaces: Spaces, version: str
) -> None:
    """ADD, CHECK, DEL twice, with the answers of each version of the specification."""
    cni, space = Cni(host, {"subnet": "10.71.0.0/24"}, version), spaces()
    result = cni.add("pod1", space.path)
    assert result["cniVersion"] == version
    assert result["ips"][0]["address"] == "10.71.0.2/24" and result["ips"][0]["gateway"] == "10.71.0.1"
    assert result["ips"][0].get("version") == (None if version >= "1.0.0" else "4")
    inside = result["interfaces"][result["ips"][0]["interface"]]
    assert inside["name"] == "eth0" and inside["sandbox"] == space.path
    assert inside["mac"] in space.sh("ip link show eth0")
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.71.0.1"}]
    assert reaches(space.try_, OUTSIDE) and reaches(host.try_, "10.71.0.2")
    if version != "0.3.1":
        cni.check("pod1", space.path)
    with pytest.raises(Refused, match="exists already"):
        cni.add("pod1", space.path)
    cni.delete("pod1", space.path)
    assert "eth0" not in space.sh("ip -o link")
    cni.delete("pod1")
