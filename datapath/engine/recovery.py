# SPDX-License-Identifier: Apache-2.0
"""What earlier commands left unfinished, and what somebody took away: made whole before a command begins."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath.dataplane import entries
from datapath.drivers.linuxbridge import forwarding
from datapath.errors import DatapathError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.rows import CHANGING, CREATING
from datapath.model.sandboxes import Sandbox
from datapath.plan.networks import plan_default_bridge

if TYPE_CHECKING:
    from datapath.engine.session import Session


def recover(session: Session) -> None:
    """Everything is as the rows say, and no row says that it is in the middle of something."""
    changing = [e.sandbox_id for e in session.state.endpoints.values() if e.phase == CHANGING]
    clear_up(session)
    _rebuild(session)
    for sandbox_id in dict.fromkeys(changing):
        session.warn(f"ports of container {sandbox_id[:12]} were being changed: done")
        session.settle(sandbox_id)


def clear_up(session: Session) -> None:
    """Takes back what was being created, completes what was being removed, notices what has ended."""
    from datapath.kernel import process

    for container in list(session.state.containers.values()):
        if container.phase == CREATING:
            if container.pid and process.alive(container.pid, container.pid_start):
                process.terminate(container.pid, container.pid_start, 0, signal.SIGKILL)
            session.warn(f"container {container.name} was not completely created: taken back")
            session.take_back(container)
        elif container.running and not process.alive(container.pid, container.pid_start):
            session.ended(container)
    for thing in session.state.unfinished:
        if isinstance(thing, Endpoint) and thing.phase == CHANGING:
            continue
        if isinstance(thing, Endpoint):
            session.warn(f"endpoint {thing.id[:12]} was left unfinished: removed")
            session.remove_endpoint(thing)
        elif isinstance(thing, Container):
            session.warn(f"container {thing.name} was being removed: done")
            try:
                session.forget_files(thing)
            except DatapathError as error:  # or no command would ever work again
                session.warn(str(error))
            session.delete(thing)
        elif isinstance(thing, Sandbox):
            session.delete(thing)
        elif isinstance(thing, Network):
            session.warn(f"network {thing.name} was left unfinished: removed")
            session.withdraw(thing)


def _rebuild(session: Session) -> None:
    """After a reboot, or if somebody removed devices or pins: build again what was promised."""
    realised = session.realised
    if not realised:
        forwarding.release(session.store)
        return
    programmed = [network for network in realised if not network.classic]
    unloaded = bool(programmed) and session.context.loaded is None

    def key_of(endpoint: Endpoint) -> str | None:
        return session.sandbox_key(endpoint.sandbox_id)

    if unloaded:
        _ = session.context.dataplane  # if they cannot be loaded, what is there stays
        session.warn(
            "the packet programs were missing on the host: loaded again, networks and ports with them"
        )
    for network in realised:
        driver, members = session.driver(network), session.state.endpoints_of_network(network.id)
        again = unloaded and not network.classic
        if again or network.device not in session.observed.names:
            if not again:
                session.warn(f"network {network.name} was missing on the host: built again")
            driver.delete_network(network)
            driver.create_network(network, session.mtu(network), members)
            if network.classic:
                _restore(session, [network])
        else:
            network = _apply_config(session, network)
            driver.update_network(network, members, _current_mtu(session, network), key_of)
    if unloaded:
        _restore(session, programmed)
    session.refresh_host()


def _restore(session: Session, networks: list[Network]) -> None:
    """The endpoints of running containers, their links and published ports, into empty maps."""
    for network in networks:
        driver = session.driver(network)
        for endpoint in session.state.endpoints_of_network(network.id):
            driver.restore(network, endpoint)
            session.publish(endpoint, endpoint.ports)
        driver.program_links(network, entries.link_entries(network, session.state))


def _apply_config(session: Session, network: Network) -> Network:
    """What daemon.json and the host say of the default network, as far as it may change while it is in use."""
    if network.name != "bridge":
        return network
    wanted = plan_default_bridge(session.state, session.facts, session.config)
    if wanted.options == network.options:
        return network
    wanted = replace(wanted, phase=network.phase)
    session.put(wanted)
    return wanted


def _current_mtu(session: Session, network: Network) -> int | None:
    """None: as it is, as there is no way out at the moment that would say otherwise."""
    return network.mtu or (session.facts.default_mtu if session.facts.default_route else None)
