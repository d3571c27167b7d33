# SPDX-License-Identifier: Apache-2.0
"""docs/overlay.md: its commands are typed on two hosts, its configuration is theirs, and it names every option."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from ctl.docker import lent
from datapath.config.daemon import DaemonConfig
from datapath.drivers.overlay.spec import OVERLAY
from tests.net.cluster import Cluster, agents
from tests.net.doors import Cni, Netavark
from tests.net.hosts import TREE
from tests.net.test_overlay import clear

PAGE = (TREE / "docs/overlay.md").read_text()
HEADINGS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


def blocks(heading: str, kind: str) -> list[str]:
    (section,) = (part for part in HEADINGS if part.startswith(heading))
    return re.findall(rf"^```{kind}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def typed(cluster: Cluster, heading: str) -> Iterator[tuple[str, str]]:
    """Each command below the heading, and what it prints on its host."""
    for block in blocks(heading, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            prompt, command = re.fullmatch(r"host(\d)# (.*)", line).groups()  # type: ignore[union-attr]
            host = cluster[int(prompt) - 1]
            argv = shlex.split(command)
            done: subprocess.CompletedProcess[str] = (
                host.try_ctl(argv[1:]) if argv[0] == "datapathctl" else host.try_(argv)
            )
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            yield command, done.stdout


@pytest.fixture
def clean(cluster: Cluster) -> Iterator[Cluster]:
    clear(cluster)
    yield cluster
    clear(cluster)


def test_two_hosts_talk_as_the_page_begins(clean: Cluster) -> None:
    """In what it says that daemon.json is, but for where this cluster's store is."""
    (given,) = blocks("From nothing", "json")
    store = json.loads(given)["cluster-store"]
    for host in clean:
        host.configure({**json.loads(given), "cluster-store": clean.settings["cluster-store"]})
    assert DaemonConfig.parse(given).cluster is not None and store.startswith("etcd://")
    with agents(clean.hosts):
        said = dict(typed(clean, "From nothing"))
    (page,) = (text for command, text in said.items() if "curl" in command)
    assert "Welcome to nginx" in page
    (found,) = json.loads(said["datapathctl network inspect shop"])
    assert [peer["Name"] for peer in found["Peers"]] == ["h1", "h2"]
    for host in clean:
        host.configure(clean.settings)


def test_blocks_are_shown_as_the_page_shows_them(clean: Cluster) -> None:
    said = dict(typed(clean, "Routers"))
    assert re.fullmatch(r"10\.7\.\d+\.\d+/26 dev dp-\w+ scope link ?\n", said["ip route show proto 200"])


def test_what_the_page_says_of_other_runtimes_is_taken(clean: Cluster) -> None:
    """The configuration of CNI, and what podman makes of its command."""
    clean[0].ctl("network create -d overlay shop")
    (given,) = blocks("Containers of other", "json")
    config = json.loads(given)
    assert Cni(clean[1], config, config["cniVersion"]).call("STATUS", more={"cniVersion": "1.1.0"}) is None
    (commands,) = blocks("Containers of other", "sh")
    for line, ipam in zip(commands.splitlines(), ("none", "null"), strict=True):
        argv = shlex.split(line)
        assert argv[1:7] == ["network", "create", "-d", "datapath", "--ipam-driver", ipam]
        name, _, value = argv[8].partition("=")
        if argv[0] == "podman":
            Netavark(clean[1]).create(argv[9], options={name: value}, ipam_options={"driver": ipam})
        else:
            assert name == lent.OPTION and value == "shop"  # by real daemons: test_overlay_doors.py


def test_the_page_names_every_option_and_no_other() -> None:
    (section,) = (part for part in HEADINGS if part.startswith("Options"))
    cells = " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    named, family = set(), ""
    for word in re.findall(r"`([^`]+)`", cells):
        option = word.partition("=")[0]
        if option.startswith(("com.", "encrypted")):
            family = option.rpartition(".")[0]
        else:
            option = f"{family}.{option.lstrip('.…')}"
        named.add(option)
    assert named == OVERLAY.options.keys()
