# SPDX-License-Identifier: Apache-2.0
"""Pods of containerd's, by its Container Runtime Interface, as a kubelet asks for them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.net import clients
from tests.net.clients import CLEAN, Machine, answers
from tests.net.hosts import HOST, TIMEOUT, TREE, Host, eventually

BB = "docker.io/library/bb:latest"
SERVE = ["httpd", "-f", "-h", "/www", "-p"]


class Failed(AssertionError):
    """The runtime answered with an error."""


class Runtime:
    """A client of the containerd on the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.made: dict[str, dict[str, Any]] = {}  # configurations of pods, by id
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.net.cri", f"/proc/{machine.pid}/root{clients.CONTAINERD}"],
            cwd=TREE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def call(self, method: str, service: str = "RuntimeService", **request: Any) -> dict[str, Any]:
        """The answer; Failed with the runtime's error."""
        asked = {"service": service, "method": method, "request": request, "timeout": TIMEOUT}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        if "error" in said:
            raise Failed(said["error"])
        answer: dict[str, Any] = said["answer"]
        return answer

    def is_there(self, image: str) -> bool:
        return "image" in self.call("ImageStatus", "ImageService", image={"image": image})

    def network(self) -> str:
        """ "" : it is ready; else what the runtime says."""
        conditions = self.call("Status")["status"]["conditions"]
        (found,) = (one for one in conditions if one["type"] == "NetworkReady")
        return "" if found.get("status") else str(found["message"])

    def run(self, name: str, *ports: dict[str, Any], of_host: bool = False, **config: Any) -> str:
        """Runs a pod; its id."""
        namespaces = {"network": "NODE" if of_host else "POD"}
        asked = {
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "hostname": "" if of_host else name,
            "port_mappings": ports,
            "annotations": {"note": "none of datapath's"},
            "linux": {
                "cgroup_parent": f"/{self.machine.cgroup}",
                "security_context": {"namespace_options": namespaces},
            },
            **config,
        }
        pod = str(self.call("RunPodSandbox", config=asked)["pod_sandbox_id"])
        self.made[pod] = asked
        return pod

    def start(self, pod: str, name: str, command: list[str]) -> str:
        """Starts a container in the pod; its id."""
        security = self.made[pod]["linux"]["security_context"]
        config = {
            "metadata": {"name": name},
            "image": {"image": BB},
            "command": command,
            "linux": {"security_context": security},
        }
        made = self.call("CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=self.made[pod])
        self.call("StartContainer", container_id=made["container_id"])
        return str(made["container_id"])

    def exec(self, container: str, *cmd: str) -> str:
        said = self.call("ExecSync", container_id=container, cmd=cmd)
        assert not said.get("exit_code"), said
        return base64.b64decode(said.get("stdout", "")).decode()

    def status(self, pod: str) -> dict[str, Any]:
        return self.call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)

    def address(self, pod: str) -> str:
        return str(self.status(pod)["status"]["network"].get("ip", ""))

    def namespace(self, pod: str) -> str:
        """The path of its network namespace on the machine."""
        spec = json.loads(self.status(pod)["info"]["info"])["runtimeSpec"]
        (path,) = (one["path"] for one in spec["linux"]["namespaces"] if one["type"] == "network")
        return str(path)

    def stop(self, pod: str) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=pod)

    def remove(self, pod: str) -> None:
        self.call("RemovePodSandbox", pod_sandbox_id=pod)


def runs_pods(host: Host, machine: Machine, version: str) -> None:
    """What a kubelet does with pods on a network of the plugin's. `version`: of the network's configuration."""
    daemon = clients.containerd(machine, pods=True)
    runtime = Runtime(machine)
    try:
        with eventually() as until:
            until(lambda: runtime.is_there(BB))
        _is_ready_with_its_network(machine, runtime, version)
        _serves_and_ends(host, runtime)
        _goes_on_without_containerd(host, machine, runtime, daemon)
    finally:
        runtime.close()


def _nothing_is_left(host: Host) -> None:
    assert "cni" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN
    assert "10.81.0" not in host.sh("ip -o address")


def _is_ready_with_its_network(machine: Machine, runtime: Runtime, version: str) -> None:
    """The node is not ready before there is a configuration, nor, since there is STATUS, with one that cannot serve."""
    assert runtime.network()
    if version >= "1.1.0":
        machine.network("n1", version, subnet="10.81.0.0/24", ipam={"type": "nosuch"})
        with eventually() as until:
            until(lambda: "IPAM plugin nosuch is not in CNI_PATH" in runtime.network())
    machine.network("n1", version, subnet="10.81.0.0/24")
    with eventually() as until:
        until(lambda: not runtime.network())


def _serves_and_ends(host: Host, runtime: Runtime) -> None:
    ports = (
        {"container_port": 80, "host_port": 8080},
        {"container_port": 80, "host_port": 8081, "host_ip": "127.0.0.1"},
        {"container_port": 99},
    )
    web = runtime.run("web", *ports, dns_config={"servers": ["10.96.0.10"], "searches": ["a.b"]})
    assert runtime.address(web) == "10.81.0.2"
    assert "default/web" in host.ctl("ps --format {{.Names}}")
    first = runtime.start(web, "first", [*SERVE, "80"])
    runtime.start(web, "second", [*SERVE, "81"])
    assert "10.81.0.2/24" in runtime.exec(first, "ip", "-o", "address", "show", "eth0")
    for place, port in (("10.81.0.2", 80), ("10.81.0.2", 81), (HOST, 8080), ("127.0.0.1", 8081)):
        answers(host, place, port)
    assert runtime.exec(first, "wget", "-qO-", "http://127.0.0.1:81/") == "hello\n"
    assert host.outside.try_(f"curl -s -m 5 http://{HOST}:8081/").returncode
    assert host.try_ctl("doctor").stdout == CLEAN

    with pytest.raises(Failed, match=r'port is already allocated \(by container "default/web"\)'):
        runtime.run("second", ports[0])
    assert host.ctl("ps --format {{.Names}}").split() == ["default/web"]
    other = runtime.run("other", {"container_port": 53, "host_port": 5353, "protocol": "UDP"})
    client = runtime.start(other, "client", ["sleep", "3600"])
    for place in ("10.81.0.2", f"{HOST}:8080"):
        assert runtime.exec(client, "wget", "-qO-", f"http://{place}/") == "hello\n"
    assert "5353" in host.ctl("port ls default/other")
    node = runtime.run("node", of_host=True)
    runtime.start(node, "server", [*SERVE, "8083"])
    answers(host, HOST, 8083)
    assert len(host.ctl("ps -q").split()) == 2
    assert host.try_ctl("doctor").stdout == CLEAN

    for pod in (node, web, other):
        runtime.stop(pod)
        assert host.try_ctl("doctor").stdout == CLEAN
        runtime.stop(pod)
        runtime.remove(pod)
        runtime.remove(pod)
    assert host.outside.try_(f"curl -s -m 5 http://{HOST}:8080/").returncode
    _nothing_is_left(host)


def _goes_on_without_containerd(
    host: Host, machine: Machine, runtime: Runtime, daemon: subprocess.Popen[str]
) -> None:
    """The daemon is killed and started again, and the namespace vanishes: DEL comes without it."""
    port = {"container_port": 80, "host_port": 8080}
    web = runtime.run("web", port)
    runtime.start(web, "server", [*SERVE, "80"])
    answers(host, HOST, 8080)
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
    os.kill(int(children.split()[0]), 9)
    daemon.wait()
    answers(host, HOST, 8080)
    clients.containerd(machine, pods=True)
    answers(host, HOST, 8080)
    assert host.try_ctl("doctor").stdout == CLEAN
    path = runtime.namespace(web)
    machine.sh(f"umount {path}")
    machine.sh(f"rm {path}")
    runtime.stop(web)
    runtime.stop(web)
    runtime.remove(web)
    _nothing_is_left(host)
    again = runtime.run("web", port)
    assert runtime.address(again) == "10.81.0.2"
    runtime.stop(again)
    runtime.remove(again)
    _nothing_is_left(host)
