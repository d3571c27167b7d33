# SPDX-License-Identifier: Apache-2.0
"""S31: everything can be taken away again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.net import look
from tests.net.hosts import BOTH_WAYS, DATAPATHCTL, HOST, Host, ask, echo_server, eventually, reaches

MakeHost = Callable[..., Host]


def different(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {kind: (before[kind], after[kind]) for kind in before if before[kind] != after[kind]}


def is_as_before(host: Host, before: dict[str, Any]) -> None:
    """What `down` left ending on a slow machine, the parents of containers, has ended; all else is as it was."""
    with eventually() as until:
        until(lambda: not different(before, look.everything(host)).keys() & {"processes", "helpers"})
    assert different(before, look.everything(host)) == {}


def populate(host: Host) -> list[int]:
    """Something of every kind, used by real packets; the containers' processes."""
    counted = "-o com.datapath.flows=true"
    host.ctl(f"network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 {counted} shop")
    host.ctl(
        "network create --internal --label a=b -o com.docker.network.bridge.name=inner0 "
        "-o com.docker.network.bridge.enable_icc=false inner"
    )
    host.run("web", "--network shop -p 8081:80", echo_server("tcp", 80))
    host.run("app")
    host.run("bare", "--network none")
    host.run("open", "--network host")
    host.run("second", "--network container:web")
    host.ctl("network connect inner web")
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)
    host.in_("app", "ping -n -c 1 -W 60 203.0.113.5")
    reached = reaches(host.try_, host.address("web", "shop"))
    assert reached and "host" in host.ctl("flows --to web")
    return [host.process(name) for name in ("web", "app", "bare", "open", "second")]


@pytest.mark.parametrize("attach", BOTH_WAYS)
def test_s31_down_with_running_containers_leaves_the_host_as_it_was(make_host: MakeHost, attach: str) -> None:
    host = look.settled(make_host(attach=attach))
    before = look.everything(host)
    processes = populate(host)
    numbers = look.kernel_ids(host)
    with ExitStack() as stack:
        namespaces = {stack.enter_context(look.holding(pid)) for pid in processes} - {
            look.namespace_of(host.pid)
        }
        assert len(namespaces) == 3  # web and second share one, open has the host's

        assert host.ctl("down") == ""

        is_as_before(host, before)
        assert not [pid for pid in processes if look.alive(pid)]
        assert not any(look.members_of(namespace) for namespace in namespaces)
    with eventually() as until:  # the kernel frees what nobody holds after a grace period
        until(lambda: look.gone(host, numbers))


def test_s31_a_reserved_port_is_given_back_with_the_container_where_there_was_none_before(host: Host) -> None:
    setting = "cat /proc/sys/net/ipv4/ip_local_reserved_ports"
    assert host.sh(setting) == ""
    host.run("web", "-p 40001:80")
    assert host.sh(setting) == "40001"
    host.ctl("rm -f web")
    assert host.sh(setting) == ""


def test_s31_down_leaves_other_peoples_qdisc_and_filter_on_the_uplink_alone(make_host: MakeHost) -> None:
    host = look.settled(make_host(attach="clsact"))
    host.sh("tc qdisc add dev eth0 clsact")
    host.sh("tc filter add dev eth0 ingress prio 5 protocol ip u32 match u32 0 0 classid 1:1")
    before = look.everything(host)
    host.run("web")
    assert "from_uplink" in host.sh("tc filter show dev eth0 ingress")
    host.ctl("down")
    is_as_before(host, before)


def test_s31_down_leaves_a_filter_alone_that_others_added_beside_ours(make_host: MakeHost) -> None:
    host = make_host(attach="clsact")
    host.run("web")
    host.sh("tc filter add dev eth0 ingress prio 5 protocol ip u32 match u32 0 0 classid 1:1")
    host.ctl("down")
    left = host.sh("tc filter show dev eth0 ingress")
    assert "u32" in left
    assert "from_uplink" not in left


@pytest.mark.parametrize("attach", BOTH_WAYS)
def test_s31_down_takes_the_program_off_an_uplink_that_has_lost_its_address(
    make_host: MakeHost, attach: str
) -> None:
    host = make_host(attach=attach)
    host.run("web")
    numbers = look.kernel_ids(host)
    host.sh(f"ip address del {HOST}/24 dev eth0")
    host.ctl("network create later")  # this command sees that eth0 leads nowhere
    host.ctl("down")
    assert "from_uplink" not in host.sh("tc filter show dev eth0 ingress")
    assert "clsact" not in host.sh("tc qdisc show")
    with eventually() as until:
        until(lambda: look.gone(host, numbers))


def test_s31_down_on_a_fresh_host_and_down_twice_change_nothing(host: Host) -> None:
    look.settled(host)
    before = look.everything(host)
    assert host.ctl("down") == ""
    is_as_before(host, before)
    host.run("web")
    host.ctl("down")
    assert host.ctl("down") == ""
    is_as_before(host, before)


def test_s31_down_after_containers_and_shims_were_killed(host: Host) -> None:
    look.settled(host)
    before = look.everything(host)
    host.run("one", "-p 8081:80")
    host.run("two", "--network none")
    host.run("three")
    shims = {name: _parent(host.process(name)) for name in ("one", "two")}
    for name, shim in shims.items():
        pid = host.process(name)
        os.kill(shim, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    os.kill(_parent(host.process("three")), signal.SIGKILL)  # its process lives on
    three = host.process("three")
    host.ctl("down")
    assert not look.alive(three)
    is_as_before(host, before)


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def test_s31_down_after_somebody_deleted_devices_by_hand(host: Host) -> None:
    look.settled(host)
    before = look.everything(host)
    host.run("web")
    host.ctl("network create --subnet 10.30.0.0/24 shop")
    host.run("app", "--network shop")
    device = next(name for name in look.devices(host.sh) if name.startswith("dp-"))
    host.sh(f"ip link delete {device}")
    veth = next(name for name in look.devices(host.sh) if name.startswith("veth"))
    host.sh(f"ip link delete {veth}")
    host.ctl("down")
    is_as_before(host, before)


def test_s31_down_of_one_host_leaves_another_one_at_work(make_host: MakeHost) -> None:
    one, other = make_host(), make_host()
    for host in (one, other):
        host.run("web", "-p 8081:80", echo_server("tcp", 80))
    one.ctl("down")
    with eventually() as until:
        until(lambda: other.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)
    assert one.outside.try_(ask("tcp", HOST, 8081)).returncode != 0


def test_s31_everything_works_again_after_down(host: Host) -> None:
    first = host.run("web", "-p 8081:80")
    host.ctl("down")
    assert host.ctl("ps -aq") == ""
    second = host.run("web", "-p 8081:80", echo_server("tcp", 80))
    assert first != second
    assert host.address("web") == "172.17.0.2"
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)


def test_s31_an_own_bpffs_that_was_mounted_for_us_is_unmounted(host: Host) -> None:
    folder = host.folder / "elsewhere"
    command = ["env", f"DATAPATH_BPFFS={folder}", DATAPATHCTL]
    host.sh([*command, "run", "-d", "--name", "web", "sleep", "3600"])
    assert subprocess.run(["mountpoint", "-q", folder], check=False).returncode == 0
    host.sh([*command, "down"])
    assert not folder.exists()
