# SPDX-License-Identifier: Apache-2.0
"""The library's calls that a door makes, on a planned host: their plans are carried out, and no kernel is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datapath.config.settings import Settings
from datapath.drivers.base import JoinInfo
from datapath.drivers.inside.driver import addresses, gateway, waiting_name
from datapath.errors import NotFoundError
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network, NetworkRequest
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan import handover, sandboxes
from datapath.plan.networks import plan_network_create, plan_network_remove, superseded_networks
from tests.unit.planned_host import PlannedHost


class PlannedEngine(PlannedHost):
    """`networks` and `endpoints` of a `datapath.Host`, as far as Docker's driver calls them. It has no store,
    and so no note of what Docker's networks stand for."""

    settings = Settings(state_dir=Path("/nonexistent"))

    @property
    def networks(self) -> PlannedNetworks:
        return PlannedNetworks(self)

    @property
    def endpoints(self) -> PlannedEndpoints:
        return PlannedEndpoints(self)

    def snapshot(self) -> State:
        return self.state

    def without(self, endpoint: Endpoint) -> None:
        """And its sandbox, if it was known for its endpoints' sake."""
        self.state = self.state.without(endpoint)
        if not self.state.endpoints_of_sandbox(endpoint.sandbox_id):
            self.state = self.state.without(self.state.sandboxes[endpoint.sandbox_id])


class PlannedNetworks:
    def __init__(self, host: PlannedEngine) -> None:
        self.host = host

    def create(self, request: NetworkRequest, allots: bool = False) -> Network:
        host = self.host
        if allots:
            host.state = host.state.without(*superseded_networks(request, host.state))
        made = plan_network_create(request, host.state, host.facts, host.config, host.fresh)
        host.state = host.state.including(replace(made, phase=Phase.READY, built=True))
        return made

    def remove(self, name: str, owner: str, members: bool) -> Network:
        network = self.host.state.network(name)
        for endpoint in self.host.state.endpoints_of_network(network.id):
            self.host.without(endpoint)
        gone = plan_network_remove(name, self.host.state, owner)
        self.host.state = self.host.state.without(gone)
        return gone


class PlannedEndpoints:
    def __init__(self, host: PlannedEngine) -> None:
        self.host = host

    def create(
        self, request: EndpointRequest, owner: str, key: str, allots: bool, asker: tuple[int, int]
    ) -> Endpoint:
        host = self.host
        for endpoint in sandboxes.superseded(request, owner, key, host.state):
            host.without(endpoint)
        made = sandboxes.plan_create_endpoint(
            request, owner, key, host.state, host.facts, host.config, host.fresh
        )
        if not made.known:
            host.state = host.state.including(made.sandbox, replace(made.endpoint, phase=Phase.READY))
        return made.endpoint

    def hand_over(self, name: str, owner: str, path: str, ports: Sequence[str], label: str) -> JoinInfo:
        host = self.host
        endpoint = sandboxes.require_endpoint(name, host.state, owner)
        made = handover.plan_hand_over(endpoint, path, label, ports, host.state, host.fresh)
        if endpoint.handed_over and endpoint.sandbox_id != made.sandbox.id:
            self.leave(name, owner)
            return self.hand_over(name, owner, path, ports, label)
        other = host.state.endpoint(made.sandbox.id, endpoint.network_id)
        if other is not None and other.id != endpoint.id:
            host.without(other)
        self._replace(endpoint, made)
        network = host.state.networks[endpoint.network_id]
        offered = not network.internal
        return JoinInfo(
            source=waiting_name(endpoint),
            ifname=made.endpoint.ifname,
            mac=endpoint.mac,
            addresses=tuple(addresses(endpoint)),
            gateway4=gateway(network, 4) if offered else None,
            gateway6=gateway(network, 6) if offered else None,
            mtu=1500,
        )

    def _replace(self, endpoint: Endpoint, made: sandboxes.MovePlan) -> None:
        host = self.host
        host.state = host.state.including(made.sandbox, made.endpoint)
        if endpoint.sandbox_id != made.sandbox.id and not host.state.endpoints_of_sandbox(
            endpoint.sandbox_id
        ):
            host.state = host.state.without(host.state.sandboxes[endpoint.sandbox_id])

    def program(self, name: str, owner: str, ports: Sequence[str] | None) -> None:
        host = self.host
        endpoint = sandboxes.require_endpoint(name, host.state, owner)
        made = handover.plan_program(endpoint, ports, host.state, host.ports)
        host.state = host.state.including(made.endpoint, *made.others)

    def revoke(self, name: str, owner: str) -> None:
        endpoint = sandboxes.require_endpoint(name, self.host.state, owner)
        self.host.state = self.host.state.including(handover.plan_revoke(endpoint))

    def leave(self, name: str, owner: str) -> None:
        endpoint = sandboxes.require_endpoint(name, self.host.state, owner)
        self._replace(endpoint, handover.plan_take_out(endpoint, self.host.state, self.host.fresh))

    def delete(self, name: str, owner: str) -> None:
        try:
            self.host.without(sandboxes.require_endpoint(name, self.host.state, owner))
        except NotFoundError:
            return
