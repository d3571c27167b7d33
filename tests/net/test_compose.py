# SPDX-License-Identifier: Apache-2.0
"""S25: Compose, unmodified, brings services up on networks of the driver, changes them, and takes them down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net.dockerd import HTTPD, IMAGE, DockerHost, needs_docker
from tests.net.hosts import OUTSIDE
from tests.net.test_docker import answers, closed, owners
from tests.net.test_docker import shared as shared

pytestmark = [
    needs_docker,
    pytest.mark.skipif(not shutil.which("docker-compose"), reason="no docker-compose"),
]


class Project:
    """A file, and Compose's commands about it. A shop, which others find, and what is behind it, with no way out."""

    def __init__(self, host: DockerHost) -> None:
        self.host, self._file = host, host.folder / "compose.json"
        self.services: dict[str, Any] = {
            "web": {
                "command": HTTPD,
                "ports": ["8080:80", "9000-9003:9000-9003/udp"],
                "networks": {"front": {"aliases": ["shop"]}, "back": {}},
                "depends_on": ["api"],
            },
            "api": {"command": HTTPD, "networks": ["back"], "depends_on": ["db"]},
            "db": {"command": "sleep 1000", "networks": {"back": {"ipv4_address": "10.42.0.50"}}},
        }
        self.networks: dict[str, Any] = {
            "front": {"driver": "datapath", "ipam": {"config": [{"subnet": "10.41.0.0/24"}]}},
            "back": {
                "driver": "datapath",
                "internal": True,
                "ipam": {"config": [{"subnet": "10.42.0.0/24"}]},
            },
        }

    def compose(self, command: str) -> str:
        services = {
            name: {"image": IMAGE, "stop_signal": "KILL", **one} for name, one in self.services.items()
        }
        self._file.write_text(json.dumps({"version": "3", "services": services, "networks": self.networks}))
        return self.host.sh([*self.host.compose, "-p", "shop", "-f", str(self._file), *command.split()])

    def container(self, service: str) -> str:
        """The name that Compose gives it."""
        return f"shop_{service}_1" if self.host.compose[0] == "docker-compose" else f"shop-{service}-1"

    def id(self, service: str) -> str:
        return self.host.docker(["inspect", "-f", "{{.Id}}", self.container(service)])

    def exec(self, service: str, command: str) -> str:
        return self.host.exec(self.container(service), command)


@pytest.fixture
def project(request: pytest.FixtureRequest, shared: DockerHost) -> Iterator[Project]:
    made = Project(shared)
    table.client(request, shared.sh([*shared.compose, "version", "--short"]))
    yield made
    made.compose("down -t 0")


@door("Compose", 1, 2, 3, 4)
def test_s25_compose_brings_three_services_up_changes_them_and_takes_them_down(project: Project) -> None:
    host = project.host
    before = host.ctl("network ls -q")
    project.compose("up -d")
    assert answers(host) and len(host.ctl("ps -q").splitlines()) == 3
    assert owners(host) == [project.container("web")]
    for who, name in (("api", "web"), ("db", project.container("api")), ("web", "api")):
        assert "hello" in project.exec(who, f"wget -q -O - http://{name}/"), (who, name)
    assert "10.42.0.50" in project.exec("api", "nslookup db 127.0.0.11")
    assert "10.41.0.2" in project.exec("web", "nslookup shop 127.0.0.11")
    assert "default" in project.exec("web", "ip route") and "default" not in project.exec("api", "ip route")
    assert project.exec("web", f"ping -c 1 -W 30 {OUTSIDE}") and host.clean()

    ids = {service: project.id(service) for service in project.services}
    project.services["web"]["ports"] = ["8081:80"]
    project.services["api"]["networks"] = ["back", "front"]
    project.compose("up -d -t 0")
    assert answers(host, 8081) and closed(host) and owners(host) == []
    same = {service for service, ident in ids.items() if project.id(service) == ident}
    assert same == {"db"} and project.exec("api", f"ping -c 1 -W 30 {OUTSIDE}") and host.clean()

    project.compose("restart -t 0 web")
    assert answers(host, 8081)
    project.compose("stop -t 0 web")
    assert closed(host, 8081) and owners(host, 8081) == []
    project.compose("up -d")
    assert answers(host, 8081) and host.clean()

    project.compose("down -t 0")
    assert host.ctl("network ls -q") == before and host.ctl("ps -q") == "" and closed(host, 8081)
    assert host.clean()
