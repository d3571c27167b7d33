# SPDX-License-Identifier: Apache-2.0
"""Endpoints that were handed over: their owner moves the device into a sandbox himself, gives it addresses and routes
there, and says when it is the sandbox's way out. Docker's plugin protocol works like that.

Nothing here touches the sandbox. It may not be there yet when the endpoint joins it, and it is forgotten with the last
of its endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from datapath.errors import ConfigError, ExistsError
from datapath.model.endpoints import Endpoint
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, short
from datapath.model.sandboxes import Sandbox
from datapath.model.state import Fresh, State
from datapath.plan.acls import used_acls, with_acl, with_default_acls
from datapath.plan.endpoints import ifname_in
from datapath.plan.ports import PortContext, choose_ports
from datapath.plan.sandboxes import MovePlan, check_path, find_sandbox


class ProgramPlan(NamedTuple):
    """`endpoint` as it is to be, with its ports; `others`: those of the same sandbox, as they are to be. `same`: the
    endpoint is so already."""

    endpoint: Endpoint
    others: tuple[Endpoint, ...] = ()
    same: bool = False


def plan_hand_over(
    endpoint: Endpoint, path: str, name: str, ports: Iterable[str], state: State, fresh: Fresh
) -> MovePlan:
    """The endpoint is in the sandbox whose namespace is, or will be, at the path; it is not the way out yet. `ports`:
    those that are to be published once it is. ConfigError."""
    check_path(path)
    network, owner = state.networks[endpoint.network_id], state.owner(endpoint)
    if network.plugin:
        raise ConfigError(
            f"network {network.name} is plugin {network.driver}'s: nobody else moves its devices"
        )
    known = find_sandbox(owner, path, state)
    sandbox = known or Sandbox(fresh.new_id(), path, Phase.READY, owner, path, name)
    others = [e for e in state.endpoints_of_sandbox(sandbox.id) if e.id != endpoint.id]
    moved = replace(
        endpoint,
        sandbox_id=sandbox.id,
        ifname=ifname_in(network, {e.ifname for e in others}, endpoint.driver_options),
        handed_over=True,
        published=tuple(map(PortMapping.parse, ports)),
        chosen=next((e.chosen for e in others if e.chosen), endpoint.chosen),
    )
    return MovePlan(moved, sandbox)


def plan_take_out(endpoint: Endpoint, state: State, fresh: Fresh) -> MovePlan:
    """The endpoint is in no sandbox: its owner takes the device out. Its ports close, its addresses stay its own."""
    # The labels are still those of the container, which services that it leaves are known by.
    labels = state.sandboxes[endpoint.sandbox_id].labels
    sandbox = Sandbox(fresh.new_id(), "", Phase.READY, state.owner(endpoint), labels=labels)
    return MovePlan(replace(plan_revoke(endpoint), sandbox_id=sandbox.id, handed_over=False), sandbox)


def plan_program(
    endpoint: Endpoint, ports: Iterable[str] | None, state: State, context: PortContext
) -> ProgramPlan:
    """The endpoint is its sandbox's way out, of each IP version that it has, and has the ports; None: those that it was
    handed over with. Another endpoint of the sandbox that was it before has them no more.

    Of ports whose host port is open, that which the sandbox had before is taken again if it is free. ConfigError;
    ExistsError names who has a port.
    """
    network, sandbox = state.networks[endpoint.network_id], state.sandboxes[endpoint.sandbox_id]
    if not endpoint.handed_over:
        raise ConfigError(
            f"ports of endpoint {short(endpoint.id)} cannot be published: it has joined no sandbox"
        )
    wanted = endpoint.published if ports is None else tuple(map(PortMapping.parse, ports))
    here = replace(
        endpoint,
        gateway4=endpoint.ipv4 is not None and not network.internal,
        gateway6=endpoint.ipv6 is not None and not network.internal,
        published=wanted,
    )
    if here == endpoint and (endpoint.ports or not wanted or not here.gateway):
        return ProgramPlan(endpoint, same=True)
    others = [
        _yielded(other, here) for other in state.endpoints_of_sandbox(sandbox.id) if other.id != endpoint.id
    ]
    if not here.gateway:
        return ProgramPlan(replace(here, ports=()), tuple(others))
    found = _choose(wanted, here, state, context, sandbox.label)
    asked = {mapping.open for mapping in wanted}
    chosen = tuple(mapping for mapping in found if mapping.open not in asked)
    return ProgramPlan(
        replace(here, ports=found, chosen=chosen), tuple(replace(other, chosen=chosen) for other in others)
    )


def once_closed(context: PortContext, endpoints: Iterable[Endpoint]) -> PortContext:
    """The same after the ports of these endpoints are closed: it is us who keep the host's sockets from them."""
    mine = {(proto, port) for e in endpoints for mapping in e.ports for _, port, _, proto in mapping.expand()}

    def in_use(proto: str, address: Address | None, port: int) -> str | None:
        return None if (proto, port) in mine else context.in_use(proto, address, port)

    return context._replace(in_use=in_use)


def plan_revoke(endpoint: Endpoint) -> Endpoint:
    """The endpoint is not the sandbox's way out, and has no ports."""
    return replace(endpoint, gateway4=False, gateway6=False, ports=())


def _yielded(other: Endpoint, here: Endpoint) -> Endpoint:
    """What is left of another endpoint of the sandbox once this one is the way out."""
    left = replace(
        other,
        gateway4=other.gateway4 and not here.gateway4,
        gateway6=other.gateway6 and not here.gateway6,
    )
    return replace(left, ports=tuple(mapping for mapping in other.ports if left.serves(mapping)))


def _choose(
    wanted: tuple[PortMapping, ...], endpoint: Endpoint, state: State, context: PortContext, who: str
) -> tuple[PortMapping, ...]:
    wanted = with_default_acls(wanted, [endpoint], state)
    members = state.endpoints_of_sandbox(endpoint.sandbox_id)
    held = {mapping.open: mapping for member in members for mapping in member.ports}
    before = [_as_before(mapping, endpoint.chosen) for mapping in wanted]
    # What the sandbox publishes already is in nobody's way: it moves here. All others have to be free.
    kept = {index: held[mapping.open] for index, mapping in enumerate(before) if mapping.open in held}
    rules = used_acls(state)
    stay = tuple(
        with_acl(replace(m, allow=before[i].allow, deny=before[i].deny), rules) for i, m in kept.items()
    )
    state = state.including(*(replace(member, ports=()) for member in members), replace(endpoint, ports=stay))
    new = [mapping for index, mapping in enumerate(before) if index not in kept]
    open_still = [mapping for index, mapping in enumerate(wanted) if index not in kept]
    if not new:
        return stay
    try:
        return (*stay, *choose_ports(new, [endpoint], state, context, who))
    except ExistsError:
        if new == open_still:
            raise
    # Somebody has taken one of the ports that were chosen before.
    return (*stay, *choose_ports(open_still, [endpoint], state, context, who))


def _as_before(wanted: PortMapping, chosen: Iterable[PortMapping]) -> PortMapping:
    """The mapping at the host port that was chosen for it before, if one was."""
    if wanted.concrete:
        return wanted
    for known in chosen:
        same = (known.proto, known.container_port, known.count) == (
            wanted.proto,
            wanted.container_port,
            wanted.count,
        )
        inside = not wanted.host_port_last or wanted.host_port <= known.host_port <= wanted.host_port_last
        if same and inside and wanted.host_ip in (None, known.host_ip):
            return wanted.at(known.host_port, wanted.count)
    return wanted
