# SPDX-License-Identifier: Apache-2.0
"""Docker's driver, asked as dockerd asks it, without a daemon: one of a process of its own, or a request at a time in
a forked one, which a fault can be put into."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctl.docker.driver import Driver
from datapath.config.settings import Settings
from datapath.host import Host as Library
from datapath.kernel.unix_http import Api
from datapath.kernel.unix_server import Request
from tests.net import faults, forked
from tests.net.doors import Space
from tests.net.hosts import DATAPATHCTL, TIMEOUT, Host, eventually

PORT_MAP = "com.docker.network.portmap"
TEARDOWN = ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint")
Words = tuple[str, dict[str, Any]]


def ident(number: int) -> str:
    """One of Docker's ids."""
    return f"{number:012x}" + "0" * 52


def port_map(*ports: str) -> list[dict[str, Any]]:
    """`8080:80`, as Docker has it."""
    found = []
    for text in ports:
        host, port = map(int, text.split(":"))
        found.append(
            {"Proto": 6, "IP": "", "Port": port, "HostIP": "", "HostPort": host, "HostPortEnd": host}
        )
    return found


def create_network(number: int, pool: str = "10.5.0.0/16", **options: Any) -> Words:
    """With the network's address as the gateway."""
    base, length = pool.split("/")
    gateway = f"{base.rpartition('.')[0]}.1/{length}"
    data = [{"AddressSpace": "LocalDefault", "Pool": pool, "Gateway": gateway}]
    return "CreateNetwork", {
        "NetworkID": ident(number),
        "Options": options,
        "IPv4Data": data,
        "IPv6Data": [],
    }


def starting(network: int, endpoint: int, address: str, *ports: str, path: str = "") -> list[Words]:
    """The three requests of a container that is started. `path`: of its namespace, which needs not be there."""
    both: dict[str, Any] = {
        "NetworkID": ident(network),
        "EndpointID": ident(endpoint),
        "Options": {PORT_MAP: port_map(*ports)},
    }
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    key = path or f"/run/docker/netns/{endpoint:x}"
    return [
        ("CreateEndpoint", {**both, "Interface": interface}),
        ("Join", {**both, "SandboxKey": key}),
        ("ProgramExternalConnectivity", both),
    ]


def stopping(network: int, endpoint: int) -> list[Words]:
    """The three of one that is stopped."""
    return [(name, {"NetworkID": ident(network), "EndpointID": ident(endpoint)}) for name in TEARDOWN]


class Refused(AssertionError):
    """The driver has answered with an error."""


class Door:
    """A driver on the host, in a process of its own."""

    def __init__(self, host: Host, *options: str) -> None:
        self.host, self.path = host, host.folder / "docker.sock"
        self.log = (host.folder / "driver.log").open("a")
        argv = [DATAPATHCTL, "docker", "serve", "--socket", str(self.path), *options]
        self.process = host.start(argv, stderr=self.log)
        with eventually() as until:
            until(lambda: self.process.poll() is not None or self._listens())
        assert self.process.poll() is None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as opened:
            return opened.connect_ex(str(self.path)) == 0

    def ask(self, *words: Words) -> list[dict[str, Any]]:
        """What is answered; Refused with its text."""
        found = []
        for method, fields in words:
            reply = Api(str(self.path), TIMEOUT).ask("POST", f"/NetworkDriver.{method}", fields)
            if "Err" in reply:
                raise Refused(reply["Err"])
            found.append(reply)
        return found

    def memory(self, name: str = "VmRSS") -> int:
        """Kilobytes; VmHWM: the most that it ever had."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self.log.close()


def moved(host: Host, space: Space, reply: dict[str, Any], address: str) -> None:
    """What dockerd does after Join."""
    source = reply["InterfaceName"]["SrcName"]
    host.sh(f"ip link set {source} netns {space.path} name eth0")
    for command in (f"ip address add {address} dev eth0", "ip link set eth0 up"):
        space.sh(command)
    if reply["Gateway"]:
        space.sh(f"ip route replace default via {reply['Gateway']}")


def at_once(host: Host, words: Sequence[Words], fault: str = "") -> subprocess.CompletedProcess[str]:
    """All in one forked process: each answer is a line. `fault`: see `faults`, which has to be installed."""

    def act() -> int:
        driver = Driver(Library.open(Settings.from_env(os.environ)), lambda: None, lambda line: None)
        for method, fields in words:
            request = Request("POST", f"/NetworkDriver.{method}", json.dumps(fields).encode())
            print(driver.handle(request).body.decode().strip(), flush=True)
        return 0

    assert host.env is not None
    env = {**host.env, faults.VARIABLE: fault} if fault else host.env
    return forked.call(act, [words[0][0]], host.path, env, TIMEOUT)
