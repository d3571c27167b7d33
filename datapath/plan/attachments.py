# SPDX-License-Identifier: Apache-2.0
"""Attachments: which network serves one, and which are not wanted any more. Pure."""

from __future__ import annotations

from collections.abc import Callable

from datapath.errors import ExistsError, InUseError
from datapath.model.attachments import AttachmentRequest
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network, NetworkRequest
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State
from datapath.plan import ipam
from datapath.plan.networks import parse_options
from datapath.plan.sandboxes import find_endpoint


def plan_network(request: NetworkRequest, state: State) -> tuple[Network | None, bool]:
    """The network of that name, None: there is none; and whether it has to be made anew, as it is not what is asked
    for. ExistsError: another owner has one of that name; InUseError: it is not what is asked for, and is used."""
    network = state.find_network(request.name)
    if network is None:
        return None, False
    if network.owner != request.owner:
        raise ExistsError(
            f"network {network.name} exists already, and belongs to {network.owner}: choose another name"
        )
    different = difference(request, network)
    if different and state.endpoints_of_network(network.id):
        raise InUseError(f"network {network.name} has {different}, and is in use: end its containers first")
    return network, bool(different)


def difference(request: NetworkRequest, network: Network) -> str:
    """In what the network is not what is asked for: "other subnets (10.1.0.0/16)"; "": in nothing."""
    wanted = ipam.parse_subnets(request.subnets, request.ip_ranges, request.gateways, request.aux_addresses)
    if wanted and {*map(repr, wanted)} != {*map(repr, network.subnets)}:
        return f"other subnets ({', '.join(str(subnet.prefix) for subnet in network.subnets)})"
    if request.internal != network.internal:
        return f"internal={str(network.internal).lower()}"
    if (request.ipv4, request.ipv6) != (network.ipv4, network.ipv6):
        return "other IP versions"
    for name, value in parse_options(request.driver, request.options, {}).items():
        if network.options.get(name, value) != value:
            return f"{name}={network.options[name]}"
    return ""


def refuse_known(request: AttachmentRequest, state: State) -> None:
    """Refuses an attachment that is there already, unless it may be. ExistsError."""
    known = find_endpoint(request.owner, request.key, state)
    if known is not None and state.sandboxes[known.sandbox_id].key and not request.again:
        raise ExistsError(f"attachment {request.key} exists already: it has to be taken away first")


def unwanted(owner: str, network: str, wanted: Callable[[str], bool], state: State) -> list[Endpoint]:
    """The owner's endpoints on the network of that name whose keys are not wanted."""
    found = state.find_network(network)
    endpoints = state.endpoints_of_network(found.id) if found is not None else ()
    return [e for e in endpoints if state.owner(e) == owner and not wanted(e.owner_key)]


def abandoned(owner: str, state: State) -> list[Sandbox]:
    """The owner's sandboxes that are on no network."""
    mine = (sandbox for sandbox in state.sandboxes.values() if sandbox.owner == owner and sandbox.key)
    return [sandbox for sandbox in mine if not state.endpoints_of_sandbox(sandbox.id)]
