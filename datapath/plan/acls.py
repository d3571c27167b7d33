# SPDX-License-Identifier: Apache-2.0
"""Who may connect to published ports: the ACLs of mappings, their numbers, and where there can be none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from datapath.errors import ConfigError
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping, default_acl
from datapath.model.state import State


def with_default_acls(
    mappings: Iterable[PortMapping], egress: Sequence[Endpoint], state: State
) -> tuple[PortMapping, ...]:
    """The mappings; those without an ACL with that of the first endpoint's options, or else of its network's.
    ConfigError where there can be none."""
    endpoint = egress[0]
    allow, deny = default_acl(endpoint.driver_options)
    if not (allow or deny):
        allow, deny = default_acl(state.networks[endpoint.network_id].options)
    ruled = tuple(m if m.acl_text else replace(m, allow=allow, deny=deny) for m in mappings)
    refuse_acls(ruled, egress, state)
    return ruled


def refuse_acls(mappings: Iterable[PortMapping], endpoints: Iterable[Endpoint], state: State) -> None:
    """Who may connect is for the packet programs to judge. ConfigError where there are none."""
    ruled = next((mapping for mapping in mappings if mapping.acl_text), None)
    networks = (state.networks[endpoint.network_id] for endpoint in endpoints)
    without = next((network for network in networks if not traits(network).acl), None)
    if ruled is not None and without is not None:
        raise ConfigError(
            f"cannot publish {ruled}: network {without.name} has {without.mode}, without allow= and deny="
        )


def used_acls(state: State) -> set[int]:
    """Numbers of the ACLs that published ports have. Also of containers that have ended: they can share a stack."""
    ended = (mapping for container in state.containers.values() for mapping in container.ports)
    return {mapping.acl for mapping in (*state.published, *ended) if mapping.acl}


def with_acl(mapping: PortMapping, used: set[int]) -> PortMapping:
    """The mapping with the lowest free number for its ACL, if it has one; the number becomes used."""
    if not mapping.acl_text:
        return replace(mapping, acl=0)
    number = 1
    while number in used:
        number += 1
    used.add(number)
    return replace(mapping, acl=number)
