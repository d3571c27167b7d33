# SPDX-License-Identifier: Apache-2.0
"""The topology of one row of the suite `services`: the ingress of another host than the container's. Two hosts of a
cluster, and a machine outside with a link to each."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from datapath.bench.host import CLIENT_SETTINGS, STREAM_SETTINGS
from datapath.bench.model import ACROSS_HOSTS, DSR, EBPF, NONE, SuiteOptions
from datapath.bench.place import Namespace, Place
from datapath.bench.topologies import NETWORK, PORT, SERVER, Route, measured_core
from datapath.bench.topology_hosts import OwnHosts, eventually

INGRESS, CLIENT = "198.51.100.1", "198.51.100.2"  # on the link between the host that is asked and the client
_BACKEND, _BACK = "203.0.113.1", "203.0.113.2"  # on the other one, by which only answers come
_LABEL = "app=server"


class IngressHosts(OwnHosts):
    """The server is on one host, and the other one is asked. In mode `none` a container on the other host asks the
    server itself: that is what the overlay costs."""

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        super().__init__(EBPF, replace(options, folder=options.folder / f"{mode}-hosts"))
        self._asks = mode

    def build(self, stack: ExitStack) -> Route:
        machine = Namespace()
        stack.callback(machine.close)
        for host, name, ours, theirs in (
            (self.other, "eth0", INGRESS, CLIENT),
            (self.one, "eth1", _BACKEND, _BACK),
        ):
            host.inside.sh(
                f"ip link add out0 type veth peer name {name} netns {machine.pid}",
                f"ip address add {ours}/24 dev out0",
                "ip link set out0 up",
            )
            machine.sh(
                f"ip address add {theirs}/24 dev {name}",
                f"ip link set {name} up",
                f"echo 0 >/proc/sys/net/ipv4/conf/{name}/rp_filter",
            )
        machine.sh("echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter")
        self.one.inside.sh(f"ip route add {CLIENT}/32 via {_BACK}")
        across = super().build(stack)
        if self._asks == NONE:
            return across
        words = ("--dsr",) if self._asks == DSR else ()
        create = ("service", "create", "--network", NETWORK, "--selector", _LABEL)
        self.ctl(self.one, *create, "-p", f"{PORT}:{PORT}", *words, "bench")
        client = Place(machine.path, core=measured_core())
        client.write(STREAM_SETTINGS | CLIENT_SETTINGS)
        eventually(lambda: self.ctl(self.other, "service", "inspect", "bench"))
        return Route(across.server, client, INGRESS)

    def route(self, path: str) -> Route:
        """There is but one."""
        return self._routes[ACROSS_HOSTS]

    def _run(self, name: str, *words: str, network: str = NETWORK) -> tuple[str, ...]:
        return super()._run(name, *words, *(("-l", _LABEL) if name == SERVER else ()), network=network)
