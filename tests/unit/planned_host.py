# SPDX-License-Identifier: Apache-2.0
"""A small test host for plans: states are made by the plans themselves, ids and times count upwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import datapath.drivers.registry  # noqa: F401 - plans ask what drivers there are
from datapath.config.daemon import DaemonConfig
from datapath.model.containers import Container, RunRequest
from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import Network, NetworkRequest
from datapath.model.observed import HostFacts
from datapath.model.rows import Phase, Status
from datapath.model.state import Fresh, State, plan_predefined
from datapath.plan.containers import ExitPlan, RunPlan, plan_exited, plan_run
from datapath.plan.endpoints import ConnectPlan, DisconnectPlan, plan_connect, plan_disconnect
from datapath.plan.networks import plan_network_create
from datapath.plan.ports import PortContext

NOW = "2026-11-24T12:00:00.000000Z"
FACTS = HostFacts(
    prefixes=(ip_network("0.0.0.0/0"), ip_network("127.0.0.0/8"), ip_network("192.0.2.0/24")),
    addresses=frozenset({ip_address("127.0.0.1"), ip_address("192.0.2.10")}),
    default_mtu=1500,
    devices=frozenset({"lo", "eth0"}),
    uplinks=("eth0",),
)


class PlannedHost:
    """Carries plans out without a kernel: what a plan returns becomes part of the state, as if all went well."""

    def __init__(self, facts: HostFacts = FACTS, config: DaemonConfig | None = None) -> None:
        self.facts = facts
        self.config = config or DaemonConfig()
        self.busy: dict[tuple[str, int], str] = {}  # (protocol, port) of the host's own processes
        self._ids = 0
        self._numbers = 0
        self.fresh = Fresh(NOW, self.new_id, self.next_number)
        self.state = State(installation_id="test").including(*plan_predefined(self.fresh))

    def new_id(self) -> str:
        """64 digits that begin with a counter, so that the first 7 and 12 are unique too."""
        self._ids += 1
        return f"{self._ids:07x}".ljust(64, "a")

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    @property
    def ports(self) -> PortContext:
        return PortContext(self.facts, lambda proto, _, port: self.busy.get((proto, port)), (40000, 40009))

    def plan_network(self, name: str, **fields: Any) -> Network:
        request = NetworkRequest(name, **fields)
        return plan_network_create(request, self.state, self.facts, self.config, self.fresh)

    def network(self, name: str, **fields: Any) -> Network:
        network = replace(self.plan_network(name, **fields), phase=Phase.READY, built=True)
        self.state = self.state.including(network)
        return network

    def plan_run(self, name: str = "", *networks: str | EndpointRequest, **fields: Any) -> RunPlan:
        wanted = tuple(EndpointRequest(n) if isinstance(n, str) else n for n in networks)
        request = RunRequest(fields.pop("argv", ("true",)), name, wanted, **fields)
        return plan_run(request, self.state, self.facts, self.config, self.fresh, self.ports)

    def run(self, name: str = "", *networks: str | EndpointRequest, **fields: Any) -> Container:
        made = self.plan_run(name, *networks, **fields)
        container = replace(made.container, status=Status.RUNNING, phase=Phase.READY, pid=1)
        rows: list[Any] = [*made.networks, *([made.sandbox] if made.sandbox else []), *made.endpoints]
        ready: list[Any] = [replace(row, phase=Phase.READY) for row in rows]
        ready = [replace(row, built=True) if isinstance(row, Network) else row for row in ready]
        self.state = self.state.including(*ready, container)
        return container

    def connect(self, container: str, network: str, **fields: Any) -> ConnectPlan:
        request = EndpointRequest(network, **fields)
        made = plan_connect(container, request, self.state, self.facts, self.config, self.fresh)
        endpoint = replace(made.endpoint, phase=Phase.READY)
        network_row = replace(made.network, phase=Phase.READY, built=True)
        self.state = self.state.including(made.container, network_row, endpoint, *made.changed)
        return made

    def disconnect(self, network: str, container: str) -> DisconnectPlan:
        made = plan_disconnect(network, container, self.state)
        self.state = self.state.including(made.container, *made.changed).without(made.endpoint)
        return made

    def end(self, name: str) -> ExitPlan:
        made = plan_exited(self.state.container(name).id, 0, self.state, NOW)
        gone = [made.sandbox] if made.sandbox else []
        self.state = self.state.including(made.container).without(*made.endpoints, *gone)
        return made


def addresses(host: PlannedHost, name: str) -> Mapping[str, str]:
    """Network name → IPv4 address of the container."""
    endpoints = host.state.endpoints_of_sandbox(host.state.container(name).sandbox_id)
    return {host.state.networks[e.network_id].name: str(e.ipv4) for e in endpoints}
