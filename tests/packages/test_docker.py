# SPDX-License-Identifier: Apache-2.0
"""The README's lines for Docker, on a machine whose first process is systemd: install, enable the socket, and use it.
Docker is the release's own, as it is installed: with its bridge, its rules and its docker-proxy."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.net.hosts import eventually
from tests.packages.booted import Booted
from tests.packages.roots import HOST, OUTSIDE, TREE, Unfetched

README = (TREE / "README.md").read_text()
ENABLE = "systemctl enable --now datapath-docker.socket"
PAGE = "Hello from a container."


def image() -> bytes:
    """Busybox and nothing else."""
    busybox = os.path.realpath("/bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for applet in set(listed) - {"busybox"}:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return written.getvalue()


@pytest.fixture(scope="module")
def booted(debs: dict[str, Path]) -> Iterator[Booted]:
    try:
        made = Booted("bookworm")
    except Unfetched as error:
        pytest.skip(f"no root to be had here: {error}")
    with closing(made):
        made.apt("update")
        # The machine's root is an overlay, on which there is no other.
        made.sh('mkdir -p /etc/docker; echo \'{"storage-driver": "vfs"}\' >/etc/docker/daemon.json')
        made.apt("install --no-install-recommends docker.io iptables iproute2 curl")
        made.put(debs["datapath"], "/root/datapath.deb")
        made.apt("install --no-install-recommends /root/datapath.deb")
        made.path("/root/image.tar").write_bytes(image())
        yield made
        made.try_("docker rm -f $(docker ps -aq); docker network rm shop; datapathctl down --force")


def outside_sees(outside: str) -> str:
    argv = ["nsenter", f"--net={outside}", "curl", "-sS", "-m", "30", f"http://{HOST}:8080/"]
    return subprocess.run(argv, capture_output=True, text=True).stdout.strip()


def test_the_readmes_lines_from_installing_to_a_published_port(booted: Booted) -> None:
    assert f"sudo {ENABLE} " in README
    booted.sh("docker import /root/image.tar busybox")
    booted.sh(ENABLE)
    assert booted.sh("systemctl is-active datapath-docker.socket docker") == "active\nactive"
    assert booted.try_("systemctl is-active datapath-docker.service").stdout.strip() == "inactive"
    quick = README.partition("## Quick start")[2].partition("```console\n")[2].partition("```")[0]
    commands = re.findall(r"(?m)^# (.*)$", quick)
    assert [line for line in commands if line.startswith("docker network create -d datapath")]
    with booted.outside() as outside:
        for command in commands:
            if command.startswith("docker rm"):
                break
            said = booted.sh(command)
            assert PAGE in said or not command.startswith("curl"), said
            if command.startswith("datapathctl doctor"):
                assert said == "No problems found."
        with eventually() as until:
            until(lambda: outside_sees(outside) == PAGE)
        booted.sh(f"docker run --rm --network shop busybox ping -c 1 -W 30 {OUTSIDE}")
        booted.sh("docker run --rm --network shop busybox ping -c 1 -W 30 web")
        # Docker's own networks are beside it.
        assert PAGE in booted.sh(f"docker run --rm busybox wget -q -O - http://{HOST}:8080/")
        assert booted.sh("docker network ls -f name=docker_gwbridge -q") == ""
        booted.sh("systemctl restart docker")  # without live-restore containers end
        booted.sh("docker start web")
        with eventually() as until:
            until(lambda: outside_sees(outside) == PAGE)
    assert booted.sh("systemctl show -p NRestarts --value datapath-docker") == "0"


def test_the_driver_ends_when_nobody_asks_and_is_started_again(booted: Booted) -> None:
    with eventually() as until:  # half a minute
        until(lambda: booted.try_("systemctl is-active datapath-docker.service").stdout.strip() == "inactive")
    assert booted.sh("systemctl show -p Result --value datapath-docker") == "success"
    booted.sh("docker rm -f web")
    assert booted.sh("systemctl is-active datapath-docker.service") == "active"
    booted.sh("docker network rm shop")
    assert booted.sh("datapathctl doctor") == "No problems found."


def test_after_a_power_cut_docker_has_its_networks_and_containers(booted: Booted) -> None:
    booted.sh("docker network create -d datapath --subnet 10.5.0.0/16 shop")
    run = "docker run -d --name web --restart always --network shop -p 8080:80 -v /srv/www:/www busybox"
    booted.sh(f"mkdir -p /srv/www; echo {PAGE} >/srv/www/index.html; {run} httpd -f -h /www; sync")
    booted.cut_power_and_start()
    with eventually() as until:
        until(lambda: booted.sh("docker ps --format '{{.Names}}'") == "web")
    with booted.outside() as outside, eventually() as until:
        booted.sh("datapathctl reconcile")  # the uplink came after the network
        until(lambda: outside_sees(outside) == PAGE)
        assert booted.sh("datapathctl doctor") == "No problems found."
