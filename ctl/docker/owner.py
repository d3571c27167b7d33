# SPDX-License-Identifier: Apache-2.0
"""Docker as an owner of networks and sandboxes: what `doctor` can say of it, and the names that users know.

After a crash of dockerd, or while nobody answered it, its requests are missing for good. So what it does not know any
more it is asked about: never within a transaction, which a request of its may be waiting for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from datapath.config.settings import Settings
from datapath.engine.transaction import Owner, Transaction
from datapath.model.checks import FORGOTTEN, FORGOTTEN_NETWORK
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.state import State

from . import OWNER

if TYPE_CHECKING:
    from .daemon import Known


_AGAIN = 0.5  # seconds: between our answer that something is made and the daemon's own knowledge of it


class DockerOwner(Owner):
    """`environment` says where the daemon listens, as its client's does."""

    name = OWNER

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._known: Known | None = None
        self._forgotten: frozenset[str] = frozenset()  # ids of endpoints and networks

    def look(self, state: State) -> None:
        from . import daemon

        self._forgotten = frozenset()
        if not _of_docker(state):
            return
        self._known = daemon.ask(self._environment)
        forgotten = _forgotten(state, self._known)
        if forgotten:
            time.sleep(_AGAIN)
            self._known = daemon.ask(self._environment)
            forgotten &= _forgotten(state, self._known)
        self._forgotten = forgotten

    def named(self, state: State) -> State:
        if not _of_docker(state):
            return state
        from . import daemon, names

        return names.named(state, self._known or daemon.ask(self._environment) or daemon.NOTHING)

    def check(self, settings: Settings, state: State, alive: frozenset[str]) -> Iterator[Finding]:
        for endpoint in state.endpoints.values():
            if endpoint.id in self._forgotten:
                subject = f"endpoint {endpoint.id[:12]} of docker on network {_name(state, endpoint)}"
                yield Finding(FORGOTTEN, subject, "Docker has no such endpoint", (endpoint.id,))
        for network in state.networks.values():
            if network.id in self._forgotten:
                yield Finding(FORGOTTEN_NETWORK, f"network {network.name}", "Docker has no such network")

    def repairs(self) -> Mapping[Check, Callable[[Transaction, Finding], None]]:
        return {FORGOTTEN: _forget}


def _of_docker(state: State) -> bool:
    owners = {network.owner for network in state.networks.values()}
    return OWNER in owners | {sandbox.owner for sandbox in state.sandboxes.values()}


def _forgotten(state: State, known: Known | None) -> frozenset[str]:
    """Of endpoints and networks of Docker's, the ids of those that it does not know; without a daemon that is not
    known. An endpoint that is in somebody's sandbox is that of another daemon, and so is its network."""
    if known is None:
        return frozenset()
    mine = [
        e for e in state.endpoints.values() if state.owner(e) == OWNER and e.owner_key not in known.endpoints
    ]
    from datapath.drivers.inside.driver import waiting_name
    from datapath.kernel.links import Links

    with Links() as links:
        gone = [e.id for e in mine if links.index(waiting_name(e)) is not None]
    others = {e.network_id for e in mine if e.id not in gone} | known.networks.keys()
    gone += [n.id for n in state.networks.values() if n.owner == OWNER and n.id not in others]
    return frozenset(gone)


def _name(state: State, endpoint: Endpoint) -> str:
    return state.networks[endpoint.network_id].name


def _forget(tx: Transaction, finding: Finding) -> None:
    from datapath.engine import endpoints

    endpoint = tx.state.endpoints.get(finding.about[0])
    if endpoint is not None:
        endpoints.evict(tx, endpoint)
