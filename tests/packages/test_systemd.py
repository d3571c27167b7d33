# SPDX-License-Identifier: Apache-2.0
"""The units of the package under systemd itself, in order, on one machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.net.hosts import eventually
from tests.packages.booted import Booted
from tests.packages.roots import HOST, Unfetched

WEB = "--network shop -p 8080:80 python3 -m http.server -d /usr/share/doc/datapath 80"
ONCE = """
[Service]
Type=oneshot
ExecStart=datapathctl run -d --name detached --network shop sleep 86400
"""


@pytest.fixture(scope="module")
def booted(debs: dict[str, Path]) -> Iterator[Booted]:
    try:
        made = Booted("bookworm")
    except Unfetched as error:
        pytest.skip(f"no root to be had here: {error}")
    with closing(made):
        made.apt("update")
        made.put(debs["datapath"], "/root/datapath.deb")
        made.apt("install --no-install-recommends /root/datapath.deb nftables iproute2")
        made.sh(f"mkdir -p /etc/datapath/containers; echo 'RUN={WEB}' >/etc/datapath/containers/web.env")
        made.path("/etc/systemd/system/once.service").write_text(ONCE)
        made.sh("datapathctl network create shop; systemctl daemon-reload")
        yield made
        made.sh("systemctl stop 'datapath@*' datapathctl-agent; datapathctl down")


def answers(outside: str) -> bool:
    argv = ["nsenter", f"--net={outside}", "curl", "-s", "-o", "/dev/null", "-m", "5", f"http://{HOST}:8080/"]
    return subprocess.run(argv).returncode == 0


def shown(booted: Booted, unit: str, name: str) -> str:
    return booted.sh(f"systemctl show -p {name} --value {unit}")


def test_a_container_of_a_unit_is_started_again_whatever_ended_it(booted: Booted) -> None:
    booted.sh("systemctl enable -q --now datapath@web")
    with booted.outside() as outside, eventually() as until:
        until(lambda: answers(outside))
        booted.sh("kill -9 $(datapathctl inspect -f '{{.State.Pid}}' web)")
        until(lambda: shown(booted, "datapath@web", "NRestarts") == "1")
        until(lambda: answers(outside))
        booted.sh("kill -9 $(systemctl show -p MainPID --value datapath@web)")
        until(lambda: shown(booted, "datapath@web", "NRestarts") == "2")
        until(lambda: answers(outside))
    booted.sh("systemctl stop datapath@web")
    assert shown(booted, "datapath@web", "Result") == "success"
    assert booted.sh("datapathctl ps -a --format '{{.Names}}'") == ""


def test_a_detached_container_outlives_the_unit_that_started_it(booted: Booted) -> None:
    booted.sh("systemctl start once")
    assert shown(booted, "once", "ActiveState") == "inactive"
    assert booted.sh("datapathctl ps --format '{{.Names}} {{.State}}'") == "detached running"
    booted.sh("systemctl stop datapath")  # which ends nothing
    assert booted.sh("datapathctl ps --format '{{.Names}} {{.State}}'") == "detached running"


def test_doctors_unit_is_failed_as_long_as_there_is_a_problem(booted: Booted) -> None:
    booted.sh("systemctl enable -q --now datapath-doctor.timer; systemctl start datapath-doctor")
    booted.sh("ip link set $(basename $(ls -d /sys/class/net/veth*)) down")
    assert booted.try_("systemctl start datapath-doctor").returncode
    assert booted.try_("systemctl is-failed datapath-doctor").returncode == 0
    booted.sh("datapathctl reconcile; systemctl start datapath-doctor")
    assert booted.try_("systemctl is-failed datapath-doctor").returncode


@pytest.mark.parametrize("verb", ["restart", "reload"])
def test_rules_that_another_unit_flushes_are_there_again(booted: Booted, verb: str) -> None:
    booted.sh("systemctl start nftables; datapathctl network create -o com.datapath.mode=nftables old")
    booted.sh("datapathctl run -d --name ruled --network old -p 8090:80 sleep 86400")
    rules = booted.sh("nft -s list ruleset")
    assert "8090" in rules
    booted.sh(f"systemctl {verb} nftables")
    assert sorted(booted.sh("nft -s list ruleset").splitlines()) == sorted(rules.splitlines())
    booted.sh("datapathctl doctor; datapathctl rm -f ruled; datapathctl network rm old")


def test_after_a_power_cut_all_is_there_that_a_unit_promises(booted: Booted) -> None:
    booted.sh("systemctl enable -q --now datapathctl-agent datapath-doctor.timer datapath@web")
    booted.sh(
        "systemctl start datapath@web; datapathctl inspect detached >/dev/null 2>&1 || systemctl start once"
    )
    with eventually() as until:
        until(lambda: "web" in booted.sh("datapathctl ps --format '{{.Names}}'"))
    booted.sh("sync")
    booted.cut_power_and_start()
    assert (
        shown(booted, "datapath", "Result") == "success"
        and shown(booted, "datapath", "ActiveState") == "active"
    )
    assert booted.sh("systemctl is-active datapathctl-agent datapath-doctor.timer") == "active\nactive"
    with booted.outside() as outside, eventually() as until:
        until(lambda: answers(outside))
    assert (
        booted.sh("datapathctl ps -a --format '{{.Names}} {{.State}}' | sort")
        == "detached exited\nweb running"
    )
    with eventually() as until:  # the agent follows that the uplink is gone
        until(lambda: booted.try_("datapathctl doctor").returncode == 0)
