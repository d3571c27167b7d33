# SPDX-License-Identifier: Apache-2.0
"""Networks of the cluster that this host has no part in, as the store has them at the moment. Nothing is changed, and a
store that does not answer keeps nobody waiting for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from datapath.config.daemon import DaemonConfig
from datapath.engine.link import Link
from datapath.errors import NotFoundError, PrivilegeError, StateError
from datapath.model.networks import Network
from datapath.model.rows import Row
from datapath.model.state import State

if TYPE_CHECKING:
    from datapath.engine.engine import Engine
    from datapath.store.cluster import Cluster

_SECONDS = 1.0


@contextmanager
def _asked(engine: Engine) -> Iterator[Cluster | None]:
    """The store, for a second; None: this host has none."""
    link = Link(DaemonConfig.load(engine.settings))
    try:
        if not link.configured:
            yield None
            return
        store = link.store("a network of several hosts")
        with store.within(_SECONDS):
            yield store
    finally:
        link.close()


def all_networks(engine: Engine) -> list[Network]:
    """Those of this host and those that only others take part in, by name. If the store does not answer, the user is
    warned, and gets this host's."""
    found = dict(engine.snapshot().networks)
    try:
        with _asked(engine) as store:
            if store is not None:
                from datapath.cluster import networks as verbs

                found = {one.id: one for one in verbs.networks(store)} | found
    except (StateError, PrivilegeError) as error:
        engine.warn(f"networks that only other hosts take part in are not shown: {error}")
    return sorted(found.values(), key=lambda network: network.name)


def inspect(engine: Engine, name: str, verbose: bool = False) -> dict[str, Any]:
    """Docker's JSON of a network; `verbose`: with services. NotFoundError: neither this host nor the cluster has one
    of that name or id; StateError: the store does not answer."""
    import datapath.drivers.registry  # noqa: F401 - plans ask what the network's driver is like
    from datapath.plan.inspect import network_inspect

    state = engine.snapshot()
    try:
        found = state.network(name)
        return network_inspect(found, state, _transports(state, found), verbose)
    except NotFoundError as missing:
        with _asked(engine) as store:
            if store is None:
                raise
            from datapath.cluster import addresses
            from datapath.cluster import networks as verbs

            try:
                network = verbs.find(store, name)
            except NotFoundError:
                raise missing from None
            part = addresses.part(store, [network.id])
    rows: tuple[Row, ...] = (network, *part.rows)
    return network_inspect(network, State().including(*rows), verbose=verbose)


def _transports(state: State, network: Network) -> dict[str, str]:
    """See `announced.transports`. The host is looked at only if the answer depends on it."""
    from datapath.drivers.overlay.spec import transport
    from datapath.model.networks import AUTO, DIRECT

    if not network.spans or transport(network) not in (DIRECT, AUTO):
        return {}
    from datapath.drivers.overlay import announced
    from datapath.engine.transaction import devices_of
    from datapath.kernel import observe

    return announced.transports(state, network, observe.host(devices_of(state)))


def require(engine: Engine, name: str) -> None:
    """NotFoundError: neither this host nor the cluster has a network of that name or id. ConfigError: several ids begin
    so."""
    try:
        engine.snapshot().network(name)
    except NotFoundError as missing:
        with _asked(engine) as store:
            if store is None:
                raise
            from datapath.cluster import networks as verbs

            try:
                verbs.find(store, name)
            except NotFoundError:
                raise missing from None
