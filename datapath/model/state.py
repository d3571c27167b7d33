# SPDX-License-Identifier: Apache-2.0
"""A snapshot of every row, and how names find rows in it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

from datapath.errors import ConfigError, NotFoundError, meant, quoted
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.kinds import KINDS, Kind, kind_of
from datapath.model.networks import Network
from datapath.model.peers import Block, Drain, Lapse, Owed, Peer, Remote
from datapath.model.plugins import NoPlugins, Plugins
from datapath.model.policies import Policy
from datapath.model.ports import PortMapping
from datapath.model.rows import OWNER, Phase, Row, short
from datapath.model.sandboxes import Sandbox
from datapath.model.services import Service

Object = Row
R = TypeVar("R", bound=Row)
T = TypeVar("T")
K = TypeVar("K")

PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}  # name: driver
DEFAULT_DEVICE = "dp0"


class Fresh(NamedTuple):
    """What a plan must be given, being pure: the time (RFC 3339, UTC), new ids, new endpoint numbers, and what plugins
    answer. `allotted`: the addresses, one a family, that the next endpoint on a network of several hosts gets, by the
    network's id."""

    now: str
    new_id: Callable[[], str]
    next_number: Callable[[], int]
    allotted: Mapping[str, tuple[str, ...]] = {}
    plugins: Plugins = NoPlugins()


def plan_predefined(fresh: Fresh) -> tuple[Network, ...]:
    """The three networks of every installation. `bridge` gets its addresses when it is first used."""
    return tuple(
        Network(
            id=fresh.new_id(),
            name=name,
            number=1 if name == "bridge" else 0,
            driver=kind,
            created=fresh.now,
            ipv4=name == "bridge",
            device=DEFAULT_DEVICE if name == "bridge" else "",
            predefined=True,
            phase=Phase.READY,
            built=name != "bridge",
        )
        for name, kind in PREDEFINED.items()
    )


@dataclass(frozen=True)
class Snapshot:
    """The rows of one installation as of one moment, by class and id. It is never changed: `including` and `without`
    make another one. `kinds` are those that it has, in the order of `KINDS`. `judged`: somebody checks the health of
    services' backends, so that what the rows say of it holds."""

    tables: Mapping[type[Any], Mapping[str, Any]] = field(default_factory=dict)
    installation_id: str = ""
    kinds: tuple[Kind, ...] = field(default=KINDS, compare=False, repr=False)
    judged: bool = True

    def rows(self, cls: type[R]) -> Mapping[str, R]:
        """The rows of the class, by id, in the order in which they were first stored."""
        return self.tables.get(cls, {})

    def get(self, cls: type[R], name: str) -> R:
        """The row with that id, or else that name, or else the only one whose id begins so, as Docker does it.

        NotFoundError if there is none; ConfigError if several ids begin so.
        """
        rows = self.rows(cls)
        found = rows.get(name) or self.named(cls, name)
        if found is not None:
            return found
        matches = [row for ident, row in rows.items() if name and ident.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        kind = kind_of(cls, self.kinds)
        if matches:
            raise ConfigError(
                f"{kind.noun} {name} is ambiguous ({len(matches)} matches found based on ID prefix)"
            )
        shown = name if name.isprintable() and 0 < len(name) <= 64 and " " not in name else quoted(name)
        raise NotFoundError(kind.missing.format(shown) + self._meant(cls, name))

    def _meant(self, cls: type[Any], name: str) -> str:
        """Which name may have been meant, for the end of a sentence."""
        found = meant(name, list(filter(None, (getattr(row, "name", "") for row in self.rows(cls).values()))))
        return f'; did you mean "{found}"?' if found else ""

    def named(self, cls: type[R], name: str) -> R | None:
        """The row with exactly that name."""
        if cls not in self._by_name:
            table = self._by_name[cls] = {}
            for row in self.rows(cls).values():
                table[getattr(row, "name", "")] = row
            table.pop("", None)
        found: R | None = self._by_name[cls].get(name)
        return found

    @cached_property
    def _by_name(self) -> dict[type[Any], dict[str, Any]]:
        return {}

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """Room for what follows from all rows together, by the function that has found it: each is asked once."""
        return {}

    @property
    def unfinished(self) -> tuple[Row, ...]:
        """The rows that an interrupted command left for the next one to take back or complete: those that refer to
        others before the ones that they refer to."""
        tables: Iterable[Mapping[str, Row]] = (self.rows(kind.cls) for kind in reversed(self.kinds))
        return tuple(row for table in tables for row in table.values() if row.phase != Phase.READY)

    def including(self, *rows: Row) -> Self:
        """The snapshot with these rows added or replaced."""
        tables = dict(self.tables)
        for cls, some in _grouped(rows, type).items():
            kind_of(cls, self.kinds)  # a row of no kind is a mistake
            tables[cls] = {**self.tables.get(cls, {}), **{row.id: row for row in some}}
        return replace(self, tables=tables)

    def without(self, *rows: Row) -> Self:
        """The snapshot without these rows."""
        tables = dict(self.tables)
        for cls, some in _grouped(rows, type).items():
            gone = {row.id for row in some}
            tables[cls] = {ident: row for ident, row in self.tables.get(cls, {}).items() if ident not in gone}
        return replace(self, tables=tables)


class ClusterSnapshot(Snapshot):
    """A snapshot, with what is known of the other hosts of a cluster."""

    @property
    def peers(self) -> Mapping[str, Peer]:
        return self.rows(Peer)

    @property
    def blocks(self) -> Mapping[str, Block]:
        return self.rows(Block)

    @property
    def remotes(self) -> Mapping[str, Remote]:
        return self.rows(Remote)

    @property
    def lapses(self) -> Mapping[str, Lapse]:
        return self.rows(Lapse)

    @property
    def drains(self) -> Mapping[str, Drain]:
        return self.rows(Drain)

    @property
    def owed(self) -> Mapping[str, Owed]:
        return self.rows(Owed)

    def remotes_of_network(self, network_id: str) -> tuple[Remote, ...]:
        """The network's endpoints on other hosts."""
        return tuple(self._remotes.get(network_id, ()))

    def blocks_of_network(self, network_id: str) -> tuple[Block, ...]:
        """All hosts' blocks of the network's addresses."""
        return tuple(block for block in self.blocks.values() if block.network_id == network_id)

    @cached_property
    def _remotes(self) -> dict[str, list[Remote]]:
        return _grouped(self.remotes.values(), lambda remote: remote.network_id)


class ServiceSnapshot(ClusterSnapshot):
    """A snapshot, with the services of its networks, and policies."""

    @property
    def services(self) -> Mapping[str, Service]:
        return self.rows(Service)

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those that operators have applied."""
        return self.rows(Policy)

    @property
    def published(self) -> Iterable[PortMapping]:
        """All published ports of the host, of endpoints and of services."""
        for endpoint in self.rows(Endpoint).values():
            yield from endpoint.ports
        for service in self.services.values():
            yield from service.ports

    def services_of_network(self, network_id: str) -> tuple[Service, ...]:
        """The network's services, in the order in which they were made."""
        return tuple(self._services.get(network_id, ()))

    @cached_property
    def _services(self) -> dict[str, list[Service]]:
        return _grouped(self.services.values(), lambda s: s.network_id)


class State(ServiceSnapshot):
    """A snapshot, with the relations between its networks, endpoints and containers."""

    @property
    def networks(self) -> Mapping[str, Network]:
        return self.rows(Network)

    @property
    def sandboxes(self) -> Mapping[str, Sandbox]:
        return self.rows(Sandbox)

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        return self.rows(Endpoint)

    @property
    def containers(self) -> Mapping[str, Container]:
        return self.rows(Container)

    def network(self, name: str) -> Network:
        """By id, name or beginning of an id, as `get`; "default" is the network `bridge`."""
        return self.get(Network, "bridge" if name == "default" else name)

    def container(self, name: str) -> Container:
        """By id, name or beginning of an id, as `get`; a "/" before the name is Docker's. Another owner's is none, and
        the error says whose it is."""
        try:
            return self.get(Container, name.removeprefix("/"))
        except NotFoundError as missing:
            try:
                owner = self.sandbox(name).owner
            except (NotFoundError, ConfigError):
                raise missing from None
            shown = kind_of(Container, self.kinds).missing.format(name)
            raise NotFoundError(f"{shown}; that one belongs to {owner}") from None

    def sandbox(self, name: str) -> Sandbox:
        """One of another owner, also by its name or its owner's key. NotFoundError; ConfigError as `get`."""
        foreign = {ident: s for ident, s in self.sandboxes.items() if s.foreign and s.key}
        for sandbox in foreign.values():
            if name and name in (sandbox.id, sandbox.name, sandbox.owner_key):
                return sandbox
        return replace(self, tables={Sandbox: foreign}).get(Sandbox, name)

    def find_network(self, name: str) -> Network | None:
        """By its exact name."""
        return self.named(Network, name)

    def find_container(self, name: str) -> Container | None:
        """By its exact name."""
        return self.named(Container, name)

    # ---- relations ---------------------------------------------------------------------------------

    def endpoints_of_network(self, network_id: str) -> tuple[Endpoint, ...]:
        """The network's endpoints in the order of their slots."""
        return tuple(sorted(self._by_network.get(network_id, ()), key=lambda e: e.slot))

    def endpoints_of_sandbox(self, sandbox_id: str) -> tuple[Endpoint, ...]:
        """The sandbox's endpoints in the order in which they were made."""
        return tuple(sorted(self._by_sandbox.get(sandbox_id, ()), key=lambda e: e.number))

    def endpoint(self, sandbox_id: str, network_id: str) -> Endpoint | None:
        """The endpoint that joins the sandbox to the network."""
        return next((e for e in self._by_sandbox.get(sandbox_id, ()) if e.network_id == network_id), None)

    def users(self, sandbox_id: str) -> tuple[Container, ...]:
        """The containers in the sandbox, running or not; first the one that it was made for, if it still exists."""
        users = self._users.get(sandbox_id, ())
        return tuple(sorted(users, key=lambda c: (c.id != sandbox_id, c.created, c.id)))

    def alive(self, sandbox_id: str) -> bool:
        """A container in the sandbox is running."""
        return any(container.running for container in self._users.get(sandbox_id, ()))

    def holder(self, endpoint: Endpoint) -> Container | None:
        """The container that a message about the endpoint names: the first of its sandbox's users."""
        return next(iter(self.users(endpoint.sandbox_id)), None)

    def holder_name(self, endpoint: Endpoint) -> str:
        """The name of that container; of somebody else's sandbox what its owner calls it."""
        holder = self.holder(endpoint)
        if holder is not None:
            return holder.name
        sandbox = self.sandboxes.get(endpoint.sandbox_id)
        return sandbox.label if sandbox is not None else short(endpoint.id)

    def owner(self, endpoint: Endpoint) -> str:
        """Whose sandbox the endpoint is in."""
        sandbox = self.sandboxes.get(endpoint.sandbox_id)
        return sandbox.owner if sandbox is not None else OWNER

    @cached_property
    def _by_network(self) -> dict[str, list[Endpoint]]:
        return _grouped(self.endpoints.values(), lambda e: e.network_id)

    @cached_property
    def _by_sandbox(self) -> dict[str, list[Endpoint]]:
        return _grouped(self.endpoints.values(), lambda e: e.sandbox_id)

    @cached_property
    def _users(self) -> dict[str, list[Container]]:
        return _grouped(self.containers.values(), lambda c: c.sandbox_id)


def stack_of(state: State, name: str) -> str:
    """The id of the sandbox of a container, or of another owner's sandbox. NotFoundError; ConfigError: the beginning of
    an id means several."""
    try:
        return state.container(name).sandbox_id
    except NotFoundError:
        with suppress(NotFoundError):
            return state.sandbox(name).id
        raise


def _grouped(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return groups
