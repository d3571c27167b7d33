# SPDX-License-Identifier: Apache-2.0
"""A snapshot of everything that was promised, and how names find objects in it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from datapath.errors import ConfigError, NotFoundError, quoted
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.rows import READY
from datapath.model.sandboxes import Sandbox

Object = Network | Sandbox | Endpoint | Container
T = TypeVar("T")

PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}  # name: driver
DEFAULT_DEVICE = "dp0"


@dataclass(frozen=True)
class Fresh:
    """What a plan may not make itself: the time (RFC 3339, UTC), new ids and new endpoint numbers."""

    now: str
    new_id: Callable[[], str]
    next_number: Callable[[], int]


def plan_predefined(fresh: Fresh) -> tuple[Network, ...]:
    """The three networks of every installation. `bridge` gets its addresses when it is first used."""
    return tuple(
        Network(
            id=fresh.new_id(),
            name=name,
            number=1 if name == "bridge" else 0,
            driver=driver,
            created=fresh.now,
            ipv4=name == "bridge",
            device=DEFAULT_DEVICE if name == "bridge" else "",
            predefined=True,
            phase=READY,
            realised=name != "bridge",
        )
        for name, driver in PREDEFINED.items()
    )


@dataclass(frozen=True)
class State:
    """Objects by id. Never changed: `including` and `without` make new ones."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    sandboxes: Mapping[str, Sandbox] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    containers: Mapping[str, Container] = field(default_factory=dict)
    installation_id: str = ""

    # ---- lookups: full id, then name, then unique beginning of an id, as Docker does -------------

    def network(self, name: str) -> Network:
        """NotFoundError if there is none; ConfigError if an abbreviated id means several."""
        if name == "default":
            name = "bridge"
        return _lookup(name, self.networks, self._network_names, "network", "network {} not found")

    def container(self, name: str) -> Container:
        """NotFoundError if there is none; ConfigError if an abbreviated id means several."""
        name = name.removeprefix("/")
        return _lookup(name, self.containers, self._container_names, "container", "No such container: {}")

    def find_network(self, name: str) -> Network | None:
        """By its exact name."""
        return self._network_names.get(name)

    def find_container(self, name: str) -> Container | None:
        """By its exact name."""
        return self._container_names.get(name)

    @cached_property
    def _network_names(self) -> dict[str, Network]:
        return {network.name: network for network in self.networks.values()}

    @cached_property
    def _container_names(self) -> dict[str, Container]:
        return {container.name: container for container in self.containers.values()}

    # ---- relations ---------------------------------------------------------------------------------

    def endpoints_of_network(self, network_id: str) -> tuple[Endpoint, ...]:
        """In the order of their slots."""
        return tuple(sorted(self._by_network.get(network_id, ()), key=lambda e: e.slot))

    def endpoints_of_sandbox(self, sandbox_id: str) -> tuple[Endpoint, ...]:
        """In the order in which they were made."""
        return tuple(sorted(self._by_sandbox.get(sandbox_id, ()), key=lambda e: e.number))

    def endpoint(self, sandbox_id: str, network_id: str) -> Endpoint | None:
        """The one that joins this sandbox to this network."""
        return next((e for e in self._by_sandbox.get(sandbox_id, ()) if e.network_id == network_id), None)

    def users(self, sandbox_id: str) -> tuple[Container, ...]:
        """Containers with this network stack, running or not; its owner first, if it still exists."""
        users = self._users.get(sandbox_id, ())
        return tuple(sorted(users, key=lambda c: (c.id != sandbox_id, c.created, c.id)))

    def alive(self, sandbox_id: str) -> bool:
        """Some container that runs has this network stack."""
        return any(container.running for container in self._users.get(sandbox_id, ()))

    def holder(self, endpoint: Endpoint) -> Container | None:
        """Whom to name when the endpoint is in somebody's way: the sandbox's owner, else a sharer."""
        return next(iter(self.users(endpoint.sandbox_id)), None)

    @cached_property
    def _by_network(self) -> dict[str, list[Endpoint]]:
        return _grouped(self.endpoints.values(), lambda e: e.network_id)

    @cached_property
    def _by_sandbox(self) -> dict[str, list[Endpoint]]:
        return _grouped(self.endpoints.values(), lambda e: e.sandbox_id)

    @cached_property
    def _users(self) -> dict[str, list[Container]]:
        return _grouped(self.containers.values(), lambda c: c.sandbox_id)

    @property
    def unfinished(self) -> tuple[Object, ...]:
        """What an interrupted command left behind, dependants first: to be taken back or completed."""
        rows: tuple[Iterable[Object], ...] = (
            *(self.containers.values(), self.endpoints.values()),
            *(self.sandboxes.values(), self.networks.values()),
        )
        return tuple(row for table in rows for row in table if row.phase != READY)

    # ---- other snapshots -----------------------------------------------------------------------------

    def including(self, *objects: Object) -> State:
        """The snapshot with these objects added or replaced."""
        tables = self._tables()
        for thing in objects:
            tables[type(thing)][thing.id] = thing
        return self._made_of(tables)

    def without(self, *objects: Object) -> State:
        """The snapshot without these objects."""
        tables = self._tables()
        for thing in objects:
            tables[type(thing)].pop(thing.id, None)
        return self._made_of(tables)

    def _tables(self) -> dict[type[Object], dict[str, Any]]:
        return {
            Network: dict(self.networks),
            Sandbox: dict(self.sandboxes),
            Endpoint: dict(self.endpoints),
            Container: dict(self.containers),
        }

    def _made_of(self, tables: dict[type[Object], dict[str, Any]]) -> State:
        return State(
            networks=tables[Network],
            sandboxes=tables[Sandbox],
            endpoints=tables[Endpoint],
            containers=tables[Container],
            installation_id=self.installation_id,
        )


def _grouped(things: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return groups


def _lookup(name: str, by_id: Mapping[str, T], by_name: Mapping[str, T], kind: str, missing: str) -> T:
    found = by_id.get(name) or by_name.get(name)
    if found is not None:
        return found
    matches = [thing for ident, thing in by_id.items() if name and ident.startswith(name)]
    if len(matches) > 1:
        raise ConfigError(f"{kind} {name} is ambiguous ({len(matches)} matches found based on ID prefix)")
    if not matches:
        shown = name if name.isprintable() and 0 < len(name) <= 64 and " " not in name else quoted(name)
        raise NotFoundError(missing.format(shown))
    return matches[0]
