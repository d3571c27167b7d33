# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that somebody else made: adopted, joined, left, forgotten, in any order, any number of times.

An endpoint that has been created and has not joined is in a sandbox of its own, which has no namespace yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network
from datapath.model.observed import HostFacts
from datapath.model.parsing import parse_address, parse_mac
from datapath.model.ports import PortMapping
from datapath.model.rows import OWNER, Phase, short
from datapath.model.sandboxes import Sandbox
from datapath.model.state import Fresh, State
from datapath.plan.endpoints import assign_gateways, ifname_in, plan_endpoint, ready_network
from datapath.plan.networks import refuse_foreign
from datapath.plan.ports import PortContext, choose_ports

_OWNER = re.compile(r"[a-z0-9_-]{1,32}")


class EndpointPlan(NamedTuple):
    """`network` first has to be built if it is not; `sandbox` is new, or the one that the endpoint is in; `endpoint`:
    as it is if `known`."""

    network: Network
    sandbox: Sandbox
    endpoint: Endpoint
    known: bool = False


class MovePlan(NamedTuple):
    """`endpoint` as it is to be, in its new sandbox; `changed`: the other endpoints of the sandbox that it joins or
    leaves, as far as they gain or lose a default route or ports."""

    endpoint: Endpoint
    sandbox: Sandbox
    changed: tuple[Endpoint, ...] = ()


class PublishPlan(NamedTuple):
    """The endpoint with its ports, and the mappings that are new (or gone)."""

    endpoint: Endpoint
    mappings: tuple[PortMapping, ...]


def check_owner(owner: str) -> str:
    """A word that names a runtime other than our own. ConfigError."""
    if not _OWNER.fullmatch(owner) or owner == OWNER:
        raise ConfigError(
            f"invalid owner {quoted(owner)}: expected 1 to 32 of a-z, 0-9, _ and -, and not {quoted(OWNER)}"
        )
    return owner


def plan_adopt(
    path: str,
    inode: int,
    owner: str,
    key: str,
    name: str,
    state: State,
    fresh: Fresh,
    labels: Mapping[str, str] | None = None,
) -> Sandbox:
    """The row of a sandbox whose namespace, of that number, is at the path; the one that there is, if the owner's `key`
    is known. Its phase is "ready". `labels`: of its container; None: as they are. ConfigError."""
    check_owner(owner)
    check_path(path)
    known = find_sandbox(owner, key or path, state)
    if known is not None:
        said = known.labels if labels is None else labels
        return replace(known, key=path, inode=inode, name=name or known.name, labels=said)
    return Sandbox(fresh.new_id(), path, Phase.READY, owner, key or path, name, inode, labels or {})


def check_path(path: str) -> None:
    """What may be the path of a network namespace. ConfigError."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ConfigError(f"invalid network namespace {quoted(path)}: it must be an absolute path")


def find_sandbox(owner: str, key: str, state: State) -> Sandbox | None:
    """The owner's sandbox with that key of its own."""
    return next(
        (s for s in state.sandboxes.values() if s.owner == owner and key and s.owner_key == key), None
    )


def find_endpoint(owner: str, key: str, state: State) -> Endpoint | None:
    """The owner's endpoint with that key of its own."""
    for endpoint in state.endpoints.values():
        if key and endpoint.owner_key == key and state.sandboxes[endpoint.sandbox_id].owner == owner:
            return endpoint
    return None


def plan_create_endpoint(
    request: EndpointRequest,
    owner: str,
    key: str,
    state: State,
    facts: HostFacts,
    config: DaemonConfig,
    fresh: Fresh,
) -> EndpointPlan:
    """A new endpoint of a foreign owner on the network; the one that there is, if the owner's `key` is known on it.
    NotFoundError, ConfigError, ExistsError."""
    check_owner(owner)
    network = state.network(request.network)
    if not traits(network).endpoints:
        raise ConfigError(spec_of(network).refuses_connect)
    known = find_endpoint(owner, key, state)
    if known is not None:
        _require_same(known, request, network)
        return EndpointPlan(network, state.sandboxes[known.sandbox_id], known, known=True)
    network = ready_network(network, state, facts, config)
    sandbox = Sandbox(fresh.new_id(), "", Phase.READY, owner)
    state = state.including(network, sandbox)
    endpoint = plan_endpoint(request, network, sandbox.id, key or short(sandbox.id), state, fresh)
    return EndpointPlan(network, sandbox, replace(endpoint, owner_key=key))


def superseded(request: EndpointRequest, owner: str, key: str, state: State) -> tuple[Endpoint, ...]:
    """Endpoints of an owner who allots addresses himself that have what he now gives to another: he has forgotten them.
    NotFoundError, ConfigError."""
    network = state.network(request.network)
    mac = parse_mac(request.mac) if request.mac else ""
    return tuple(
        e
        for e in state.endpoints_of_network(network.id)
        if state.owner(e) == owner
        and not (key and e.owner_key == key)
        and (e.mac == mac or has_address(e, request))
    )


def has_address(endpoint: Endpoint, request: EndpointRequest) -> bool:
    """The endpoint has one of the IP addresses that are asked for. ConfigError."""
    wanted = {str(parse_address(text, "IP address")) for text in (request.ip, request.ip6) if text}
    return bool(wanted & {str(one.ip) for one in (endpoint.ipv4, endpoint.ipv6) if one})


def _require_same(endpoint: Endpoint, request: EndpointRequest, network: Network) -> None:
    """A repeated request is for the same endpoint. ExistsError if it is not."""
    wanted = {"ip": endpoint.ipv4 and endpoint.ipv4.ip, "ip6": endpoint.ipv6 and endpoint.ipv6.ip}
    different = [name for name, has in wanted.items() if getattr(request, name) not in ("", str(has))]
    if endpoint.network_id != network.id or different:
        raise ExistsError(
            f"endpoint {quoted(endpoint.owner_key)} exists already, on another network or with another address"
        )


def plan_join(endpoint: Endpoint, sandbox: Sandbox, state: State) -> MovePlan:
    """The endpoint joins the sandbox. ConfigError: it is in another one; ExistsError: the sandbox is on that network
    already."""
    network = state.networks[endpoint.network_id]
    there = state.sandboxes[endpoint.sandbox_id]
    if there.key and there.id != sandbox.id:
        raise ConfigError(
            f"endpoint {short(endpoint.id)} has joined sandbox {there.label}: it has to leave that first"
        )
    other = state.endpoint(sandbox.id, network.id)
    if other is not None and other.id != endpoint.id:
        raise ExistsError(f"sandbox {sandbox.label} has an endpoint on network {network.name} already")
    before = [e for e in state.endpoints_of_sandbox(sandbox.id) if e.id != endpoint.id]
    used = {e.ifname for e in before}
    ifname = ifname_in(network, used, endpoint.driver_options)
    moved = replace(endpoint, sandbox_id=sandbox.id, ifname=ifname)
    *others, moved = assign_gateways((*before, moved), _mappings([*before, moved]), state)
    changed = tuple(new for old, new in zip(before, others, strict=True) if new != old)
    return MovePlan(moved, sandbox, changed)


def plan_leave(endpoint: Endpoint, state: State, fresh: Fresh) -> MovePlan:
    """The endpoint leaves its sandbox, for one of its own that has no namespace. Its ports go to the sandbox's
    other endpoints, if one of these leads outside."""
    there = state.sandboxes[endpoint.sandbox_id]
    before = [e for e in state.endpoints_of_sandbox(there.id) if e.id != endpoint.id]
    after = assign_gateways(before, _mappings([*before, endpoint]), state)
    left = replace(endpoint, sandbox_id=fresh.new_id(), gateway4=False, gateway6=False, ports=())
    return MovePlan(
        left,
        Sandbox(left.sandbox_id, "", Phase.READY, there.owner),
        tuple(new for old, new in zip(before, after, strict=True) if new != old),
    )


def _mappings(endpoints: Iterable[Endpoint]) -> tuple[PortMapping, ...]:
    """All ports that they publish, each once."""
    return tuple(dict.fromkeys(mapping for endpoint in endpoints for mapping in endpoint.ports))


def plan_publish(
    endpoint: Endpoint, specs: Iterable[str], state: State, context: PortContext, shared: bool = False
) -> PublishPlan:
    """Ports of an endpoint that has joined; those that it publishes already stay as they are. `shared`: sockets of the
    host may have them too. ConfigError; ExistsError names who has a port."""
    sandbox, network = state.sandboxes[endpoint.sandbox_id], state.networks[endpoint.network_id]
    if not sandbox.key:
        raise ConfigError(
            f"ports of endpoint {short(endpoint.id)} cannot be published: it has joined no sandbox"
        )
    if not endpoint.egress_families:
        raise ConfigError(
            f"ports of sandbox {sandbox.label} cannot be published on network {network.name}: "
            "its default route does not lead there"
        )
    known = {mapping.open for mapping in endpoint.ports}
    parsed = (replace(PortMapping.parse(text), shared=shared) for text in specs)
    wanted = [mapping for mapping in parsed if not _is_published(mapping, endpoint)]
    chosen = choose_ports(wanted, [endpoint], state, context, sandbox.label) if wanted else ()
    new = tuple(mapping for mapping in chosen if mapping.open not in known)
    return PublishPlan(replace(endpoint, ports=(*endpoint.ports, *new), phase=Phase.CHANGING), new)


def _is_published(wanted: PortMapping, endpoint: Endpoint) -> bool:
    return any(
        wanted.concrete and (wanted == replace(m, acl=0) or wanted == replace(m, host_ip=None, acl=0))
        for m in endpoint.ports
    )


def plan_unpublish(endpoint: Endpoint, specs: Iterable[str]) -> PublishPlan:
    """Without these ports; those that are not published are passed over. No specs: without any. ConfigError."""
    wanted = [PortMapping.parse(text).open for text in specs]
    gone = tuple(
        mapping
        for mapping in endpoint.ports
        if not wanted or mapping.open in wanted or replace(mapping.open, host_ip=None) in wanted
    )
    left = tuple(mapping for mapping in endpoint.ports if mapping not in gone)
    return PublishPlan(replace(endpoint, ports=left, phase=Phase.CHANGING), gone)


def require_endpoint(name: str, state: State, owner: str = "") -> Endpoint:
    """By id, or its unique beginning; with an owner first by his key. NotFoundError; ConfigError: it means several;
    InUseError: it is of another owner."""
    found = (find_endpoint(owner, name, state) if owner else None) or state.endpoints.get(name)
    if found is not None:
        if owner:
            refuse_foreign(state.owner(found), f"endpoint {short(found.id)}", owner, force=False)
        return found
    matches = [e for ident, e in state.endpoints.items() if name and ident.startswith(name)]
    if len(matches) > 1:
        raise ConfigError(f"endpoint {name} is ambiguous ({len(matches)} matches found based on ID prefix)")
    if not matches:
        raise NotFoundError(f"endpoint {quoted(name)} not found")
    return matches[0]
