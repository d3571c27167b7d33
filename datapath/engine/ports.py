# SPDX-License-Identifier: Apache-2.0
"""Published ports: opened and closed at the endpoints that carry them, and reserved in the kernel."""

from __future__ import annotations

from dataclasses import replace

from datapath.dataplane import entries
from datapath.engine.transaction import Transaction
from datapath.kernel import sockets, sysctl
from datapath.model.endpoints import Endpoint
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping
from datapath.model.state import State
from datapath.plan.nat import WRITTEN, reserved_ports
from datapath.plan.ports import PortContext, parse_reserved, reserved_text


def publish(
    tx: Transaction,
    endpoint: Endpoint,
    mappings: tuple[PortMapping, ...],
    again: bool = False,
    state: State | None = None,
) -> None:
    """Opens ports of an endpoint; its row names them already. `again`: it has had them all along. `state`: what the
    rows will say, if they do not yet."""
    if not mappings:
        return
    reserve(tx)
    network = tx.state.networks[endpoint.network_id]
    reserved = entries.number_entries(state or tx.state, mappings)
    driver = tx.driver(network)
    (driver.take_over_ports if again else driver.publish)(network, endpoint, mappings, reserved)
    if any(mapping.acl for mapping in mappings):
        tx.refresh_acls()


def unpublish(tx: Transaction, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
    """Closes ports of an endpoint; what another endpoint of the sandbox has too, while ports move, leads there."""
    if not mappings:
        return
    left = tuple(mapping for mapping in endpoint.ports if mapping not in mappings)
    after = tx.state.including(replace(endpoint, ports=left))
    network = tx.state.networks[endpoint.network_id]
    reserved = entries.number_entries(after, mappings)
    acls = frozenset(m.acl for m in mappings if m.acl) - acls_in_use(after)
    tx.driver(network).unpublish(network, endpoint, mappings, reserved, acls)
    for other in tx.state.endpoints_of_sandbox(endpoint.sandbox_id):
        theirs = tuple(mapping for mapping in other.ports if mapping in mappings)
        if other.id != endpoint.id and theirs:
            publish(tx, other, theirs, again=True, state=after)


def set_acl(
    tx: Transaction, before: PortMapping, mapping: PortMapping, endpoints: tuple[Endpoint, ...]
) -> None:
    """Exchanges the ACL of a mapping, in one step for each port; the rows name the new one already."""
    concerned = [endpoint for endpoint in endpoints if mapping in endpoint.ports]
    for endpoint in concerned:
        publish(tx, endpoint, (mapping,), again=True)
    unused = frozenset({before.acl} - {0}) - acls_in_use(tx.state)
    for endpoint in concerned:
        driver = tx.driver(tx.state.networks[endpoint.network_id])
        driver.delete_acls(unused)
        driver.end_denied(endpoint, (mapping,))
    tx.refresh_acls()


def acls_in_use(state: State) -> set[int]:
    """Numbers of the ACLs that ports of endpoints use."""
    return {mapping.acl for mapping in state.published}


def context(tx: Transaction) -> PortContext:
    """What plans need to decide about host ports: the host's own sockets, and its ephemeral range."""
    return PortContext(tx.facts, in_use, tx.observed.ephemeral, sockets.suspects)


def in_use(proto: str, address: Address | None, port: int) -> str | None:
    """Who of the host's own processes has the port; None: nobody."""
    return sockets.holder(proto, address, port) if sockets.in_use(proto, address, port) else None


def reserve(tx: Transaction) -> None:
    """Takes published ports, and those of masquerading, off the kernel's choice of ports for sockets that do not care.

    No bind() shows such a choice; a container would get the answers. The host's own setting is noted, kept in force,
    and put back when there is no such port in that range any more.
    """
    ours = reserved_ports(tx.state, tx.observed.ephemeral)
    before, written = tx.store.note(sysctl.RESERVED_PORTS), tx.store.note(WRITTEN)
    if not ours and before is None:
        return
    current = parse_reserved(sysctl.read(sysctl.RESERVED_PORTS))
    known = current if written is None else parse_reserved(written)
    # What others have reserved since is theirs, as what was there before.
    theirs = current if before is None else parse_reserved(before) | (current - known - ours)
    if before is None or theirs != parse_reserved(before):
        tx.store.set_note(sysctl.RESERVED_PORTS, reserved_text(theirs))
    wanted = theirs | ours
    # Killed between the two, both what is there and what is to be are known.
    if written is None or not wanted <= known:
        tx.store.set_note(WRITTEN, reserved_text(known | wanted))
    if wanted != current:
        sysctl.write(sysctl.RESERVED_PORTS, reserved_text(wanted))
    if not known <= wanted:
        tx.store.set_note(WRITTEN, reserved_text(wanted))
    if not ours:
        tx.store.set_note(sysctl.RESERVED_PORTS, None)
        tx.store.set_note(WRITTEN, None)
