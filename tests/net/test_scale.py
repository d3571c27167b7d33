# SPDX-License-Identifier: Apache-2.0
"""Many of everything on one host at once. What it costs is printed (`pytest -s`), not judged."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.net.hosts import HOST, Host, ask, echo_server, loses, reaches

ROOT = Path(__file__).resolve().parents[2]

# Through the library, as the start of 200 command lines is not what is asked about.
MANY_CONTAINERS = """
import json, os, sys, time
from datapath.config.settings import Settings
from datapath import Containers, Host
from datapath import EndpointRequest, NetworkRequest, RunRequest

host = Host.open(Settings.from_env(os.environ))
containers = Containers(host)
attach = []
for number in range(50):
    host.networks.create(NetworkRequest(f"net{number}"))
for number in range(200):
    containers.run(RunRequest(("sleep", "3600"), name=f"c{number}", detach=True))
for number in range(50):
    began = time.monotonic()
    containers.connect(f"c{number}", EndpointRequest(f"net{number}"))
    attach.append(time.monotonic() - began)
print(json.dumps(attach))
"""


def test_200_containers_50_networks_and_2000_published_ports_work_side_by_side(host: Host) -> None:
    costs = json.loads(host.sh([sys.executable, "-c", MANY_CONTAINERS], timeout=180))
    host.run("web", "-p 10000-11999:80-2079", echo_server("tcp", 80))
    costs_text = (
        f"connect: first 10 {sum(costs[:10]) * 100:.1f} ms, last 10 {sum(costs[-10:]) * 100:.1f} ms each"
    )
    for command in ("network ls", "ps"):
        began = time.monotonic()
        lines = host.ctl(command).splitlines()
        print(f"{command}: {(time.monotonic() - began) * 1000:.0f} ms for {len(lines)} lines; {costs_text}")
        assert len(lines) == {"network ls": 54, "ps": 202}[command]

    def first(command: str):  # type: ignore[no-untyped-def]
        return host.try_in("c0", command)

    assert reaches(first, host.address("c199"))
    assert reaches(first, host.address("web"))
    assert loses(first, host.address("c49", "net49"))
    assert host.outside.sh(ask("tcp", HOST, 10000)).split()[0] == "192.0.2.2"
    assert host.outside.try_(ask("tcp", HOST, 11999)).returncode != 0, "nobody listens at port 2079"
    assert len(json.loads(host.ctl("network inspect bridge"))[0]["Containers"]) == 201
    host.ctl("down", timeout=120)
    assert "veth" not in host.sh("ip -brief link")
