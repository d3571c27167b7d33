# SPDX-License-Identifier: Apache-2.0
"""The transaction of one changing command, which keeps the rows of the store and the kernel consistent.

A change begins by writing rows with the phase "creating" or "removing" and ends by writing "ready" or
deleting them; so a killed command leaves something that the next one completes or rolls back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import cached_property

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.drivers import registry
from datapath.drivers.base import Driver, HostPart
from datapath.drivers.context import Context, HostView
from datapath.engine import namespaces
from datapath.engine.link import Link
from datapath.errors import ConfigError, NotFoundError
from datapath.model import drivers
from datapath.model.drivers import Spec
from datapath.model.findings import Check, Finding
from datapath.model.host import HostNetwork
from datapath.model.networks import Network
from datapath.model.observed import HostFacts
from datapath.model.resolv import NameFacts, servers
from datapath.model.state import Fresh, Object, State
from datapath.plan.endpoints import network_mtu
from datapath.store.base import Store


def now() -> str:
    """The time as the model writes it: RFC 3339, UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def devices_of(state: State) -> set[str]:
    """The names of the devices that networks and endpoints have on the host: a driver may have routes over them."""
    specs = {network.id: drivers.spec_of(network) for network in state.networks.values()}
    networks = {name for one in state.networks.values() for name in specs[one.id].devices(one)}
    networks |= {name for spec in specs.values() for name in spec.shared_devices}
    networks |= {name for one in state.networks.values() if (name := specs[one.id].gateway_device(one))}
    return networks | {endpoint.host_ifname for endpoint in state.endpoints.values()}


def name_facts(config: DaemonConfig, observed: HostNetwork) -> NameFacts:
    """What rows about names need to know: of daemon.json, and of the host's resolv.conf and devices."""
    links = {name: index for index, name in observed.names.items()}
    asked = servers(config.dns, observed.resolv.nameservers)
    return NameFacts(config.datapath.dns_ttl, asked, links)


class Owner:
    """A runtime that makes sandboxes: what the engine asks of it. The defaults suit one that lives elsewhere and is
    not asked."""

    name = ""  # as in the rows' `owner`

    def look(self, state: State) -> None:
        """Before `check`, and outside of a transaction: the place to ask others about what they own."""

    def named(self, state: State) -> State:
        """The state with what users call the owner's sandboxes now, for showing it and nothing else. Outside of a
        transaction, unless `look` came before."""
        return state

    def recover(self, tx: Transaction) -> None:
        """Takes back what an earlier command of the runtime left unfinished, and notices what has ended."""

    def check(self, settings: Settings, state: State, alive: frozenset[str]) -> Iterator[Finding]:
        """What `doctor` has to say about the runtime's containers. `alive`: those whose process is there, by id."""
        yield from ()

    def leftovers(self, settings: Settings) -> Iterator[Finding]:
        """What is left of the runtime's containers although the store is gone."""
        yield from ()

    def repairs(self) -> Mapping[Check, Callable[[Transaction, Finding], None]]:
        """The repair of what each check of `check` finds."""
        return {}


class Transaction:
    """What the verbs of `engine` work with: the store, locked; the snapshot of its rows, kept up to date; the host as
    it was observed; the drivers. `warn` takes lines that the user should see. Made by `engine.Engine.changing`."""

    def __init__(
        self,
        settings: Settings,
        config: DaemonConfig,
        store: Store,
        context: Context,
        owners: Mapping[str, Owner],
        warn: Callable[[str], None],
    ) -> None:
        self.settings, self.config, self.store, self.context = settings, config, store, context
        self.owners, self.warn = owners, warn
        self.state: State = store.load()
        self.link = Link(config)
        # Addresses that the next endpoint on a network of several hosts gets, by the network's id.
        self.allotted: dict[str, tuple[str, ...]] = {}
        context.notes, context.ours = store, lambda: devices_of(self.state)
        context.called = lambda endpoint: self.state.holder_name(endpoint)

    # ---- rows ----------------------------------------------------------------------------

    def journal(self, *objects: Object) -> None:
        """Writes rows that say what the command is about to change in the kernel, without waiting for the disk: a
        failure of the whole machine that takes the rows back takes the changes too."""
        self.commit(*objects, durable=False)

    def commit(self, *objects: Object, durable: bool = True, gone: Sequence[Object] = ()) -> None:
        """Writes rows, and deletes those that are `gone`, all or none."""
        if not objects and not gone:
            return
        with self.store.transaction(durable=durable):
            for thing in gone:
                self.store.delete(thing)
            for thing in objects:
                self.store.put(thing)
        self.state = self.state.without(*gone).including(*objects)

    def delete(self, *objects: Object) -> None:
        """Deletes rows, all or none."""
        self.commit(gone=objects)

    @property
    def fresh(self) -> Fresh:
        """What a plan may not make itself."""
        return Fresh(
            now(), lambda: os.urandom(32).hex(), self.store.next_number, self.allotted, self.context.plugins
        )

    @contextmanager
    def planning(self, network: str) -> Iterator[None]:
        """One transaction of the store for the number of an endpoint on the network and the row that has it. None where
        a plugin gives out addresses: what it has given is noted whatever becomes of the plan."""
        leased = False
        with suppress(NotFoundError, ConfigError):  # which is for the plan to say
            leased = self.state.network(network).leased
        with nullcontext() if leased else self.store.transaction(durable=False):
            yield

    # ---- the host ------------------------------------------------------------------------

    @cached_property
    def observed(self) -> HostNetwork:
        """The host's network as it was when the command looked."""
        return self.context.links.observe(devices_of(self.state))

    def look_again(self) -> None:
        """Observes the host anew when it is asked for next: devices are gone that were there."""
        for seen in ("observed", "facts", "names"):
            self.__dict__.pop(seen, None)

    @cached_property
    def facts(self) -> HostFacts:
        """The same as plans need it: without what is ours, unless a plan would be in its way."""
        observed = self.observed
        ours = {subnet.prefix for network in self.state.networks.values() for subnet in network.subnets}
        prefixes = {one.interface.network for one in observed.addresses} | set(observed.prefixes)
        return HostFacts(
            prefixes=tuple(prefixes - ours),
            addresses=observed.ips,
            local_prefixes=observed.local_prefixes,
            learned=observed.learned,
            default_mtu=observed.default_mtu,
            default_route=observed.default_route,
            devices=frozenset(observed.names.values()),
            uplinks=tuple(uplink.name for uplink in observed.uplinks),
        )

    @cached_property
    def names(self) -> NameFacts:
        """What rows about names need to know."""
        return name_facts(self.config, self.observed)

    @property
    def built(self) -> list[Network]:
        """The networks whose kernel side is built and whose members have devices."""
        return drivers.built(self.state.networks.values())

    def path(self, sandbox_id: str) -> str | None:
        """The path of a sandbox's namespace; None: nobody is in it."""
        return namespaces.path(self.state, sandbox_id)

    # ---- drivers -------------------------------------------------------------------------

    def driver(self, network: Network) -> Driver:
        """The network's driver."""
        return registry.find(network, self.context)

    def mtu(self, network: Network) -> int:
        """Bytes of an IP packet on the network."""
        return network_mtu(network, self.facts)

    @cached_property
    def _parts(self) -> dict[Spec, HostPart]:
        return registry.host_parts(self.context)

    def view(self) -> HostView:
        """The host with the networks of all drivers."""
        return self._view(self.state, self.built)

    def _view(self, state: State, networks: list[Network]) -> HostView:
        return HostView(state, networks, self.observed, self.store, self.warn, self.names)

    def parts(self, without: Network | None = None) -> list[tuple[HostPart, HostView]]:
        """What each driver has on the host for all of its networks, with the view to give it. `without`: a network that
        is being taken away."""
        state = self.state if without is None else self.state.without(without)
        networks = registry.by_spec(state.networks.values())
        return [(part, self._view(state, networks.get(spec, []))) for spec, part in self._parts.items()]

    def refresh_acls(self) -> None:
        """After who may connect to published ports has changed."""
        for part, view in self.parts():
            part.refresh_acls(view)
