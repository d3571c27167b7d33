# SPDX-License-Identifier: Apache-2.0
"""What `doctor` compares: the desired state, and what was observed of the host. Pure.

Compared is what is settled. An object whose row is unfinished is one finding; its devices and rows are neither missing
nor orphans.
"""

from __future__ import annotations

from collections.abc import Iterable

from datapath.dataplane.name_owners import host_is_asked, is_told
from datapath.model.drivers import built, spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.observed import Device, Observed
from datapath.model.rows import OWNER, Phase, short
from datapath.model.state import State


class Comparison:
    """`networks`: those that are built. `joined`: endpoints whose device has to be there, in a sandbox in which
    somebody lives, or still on the host. `unsettled`: all other endpoints, about which nothing can be said."""

    def __init__(self, state: State, observed: Observed) -> None:
        self.state, self.observed = state, observed
        self.networks = [n for n in built(state.networks.values()) if n.phase == Phase.READY]
        ids = {network.id for network in self.networks}
        self.joined = [
            e
            for e in state.endpoints.values()
            if e.phase == Phase.READY and e.network_id in ids and self._has_place(e)
        ]
        joined = {endpoint.id for endpoint in self.joined}
        self.unsettled = [e for e in state.endpoints.values() if e.id not in joined]

    def _has_place(self, endpoint: Endpoint) -> bool:
        if endpoint.sandbox_id in self.observed.sandboxes:
            return True
        return self.foreign(endpoint) and self.observed.host.at(endpoint.host_ifindex) is not None

    def foreign(self, endpoint: Endpoint) -> bool:
        """The endpoint's sandbox is made and taken away by another owner than our own runtime."""
        sandbox = self.state.sandboxes.get(endpoint.sandbox_id)
        return sandbox is not None and sandbox.foreign

    def of_programs(self) -> list[Endpoint]:
        """The joined endpoints that the packet programs know."""
        return [e for e in self.joined if is_told(e, self.network(e))]

    def members(self, network: Network) -> list[Endpoint]:
        """The network's joined endpoints."""
        return [endpoint for endpoint in self.joined if endpoint.network_id == network.id]

    def devices(self, network: Network) -> tuple[str, ...]:
        """The names of the devices that the network has on the host, beside its members'."""
        return spec_of(network).devices(network)

    def network(self, endpoint: Endpoint) -> Network:
        """The network that the endpoint is on."""
        return self.state.networks[endpoint.network_id]

    def gateway(self, network: Network) -> Device | None:
        """The network's gateway device, if it can be the one that was built."""
        device = self.observed.host.devices.get(spec_of(network).gateway_device(network))
        kind = getattr(spec_of(network), "gateway_kind", None)
        return device if device and device.kind == kind else None

    def mtu(self, network: Network) -> int | None:
        """Bytes of an IP packet; None: whatever it was, as no default route or another device says so."""
        if network.mtu or traits(network).lan:
            return network.mtu
        return self.observed.network.default_mtu if self.observed.network.default_route else None

    def name(self, endpoint: Endpoint) -> str:
        """The endpoint as a finding names it."""
        return endpoint_name(endpoint, self.state)

    def published(self, endpoints: Iterable[Endpoint] | None = None) -> bool:
        """Whether anything is published, by these endpoints or by any."""
        if endpoints is None:
            return any(True for _ in self.state.published)
        return any(e.ports for e in endpoints)

    @property
    def loopback(self) -> bool:
        """What arrives at the host's loopback device may be for a container."""
        return self.published() or host_is_asked(self.state, self.observed.names, self.observed.network)


def endpoint_name(endpoint: Endpoint, state: State) -> str:
    """The endpoint as a finding names it."""
    holder, owner = state.holder(endpoint), state.owner(endpoint)
    who = f"container {holder.name}" if holder else f"endpoint {short(endpoint.id)}"
    if owner != OWNER:
        who = f"sandbox {state.holder_name(endpoint)} of {owner}"
    return f"{who} on network {state.networks[endpoint.network_id].name}"
