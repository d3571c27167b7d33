# SPDX-License-Identifier: Apache-2.0
"""The kinds of rows: the one table that says what the store and its snapshots have to know of each. Pure.

A further kind is a dataclass with an id and a phase, and an entry here; schema, writing, reading, lookups and recovery
follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.peers import Block, Drain, Lapse, Owed, Peer, Remote
from datapath.model.policies import Policy
from datapath.model.rows import Row
from datapath.model.sandboxes import Sandbox
from datapath.model.services import Service


class Column(NamedTuple):
    """A value that the store keeps beside a row's JSON, because it has to hold a promise about it.

    `read` takes the value from the row; None: its attribute of that name. `optional`: it may be None, which any number
    of rows may have. `unique`: no two rows of the kind have the same. `refers_to`: the value is the id of a row of
    that table, which cannot be deleted before this one.
    """

    name: str
    value_type: type[str] | type[int] = str
    read: Callable[[Any], str | int | None] | None = None
    optional: bool = False
    unique: bool = False
    refers_to: str = ""


class Kind(NamedTuple):
    """One kind of row.

    `table`: its plural, as the store calls the table. `unique`: sets of columns whose values together no two rows
    share; one with None among them is shared by any number. `missing`: the sentence for a name that no row has.
    """

    cls: type[Any]
    table: str
    columns: tuple[Column, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    missing: str = "{} not found"

    @property
    def noun(self) -> str:
        """The kind in a sentence: "network"."""
        return self.cls.__name__.lower()

    def values(self, row: Row) -> dict[str, str | int | None]:
        """The columns' values of the row, by column."""
        return {c.name: c.read(row) if c.read else getattr(row, c.name) for c in self.columns}


# A kind stands behind those that its rows refer to.
KINDS = (
    Kind(
        Network,
        "networks",
        (
            Column("name", unique=True),
            # Neither 0 nor "" is the number or device of a network: they say that it has none.
            Column("number", int, lambda network: network.number or None, optional=True, unique=True),
            Column("device", str, lambda network: network.device or None, optional=True, unique=True),
        ),
        missing="network {} not found",
    ),
    Kind(Sandbox, "sandboxes", missing="sandbox {} not found"),
    Kind(
        Endpoint,
        "endpoints",
        (
            Column("network_id", refers_to="networks"),
            Column("sandbox_id", refers_to="sandboxes"),
            Column("number", int, unique=True),
            Column("slot", int),
            Column("ifname"),
            Column("host_ifname", unique=True),
            Column("mac"),
            # The address alone: the same one with another prefix length is taken too.
            Column("ipv4", str, lambda endpoint: endpoint.ipv4 and str(endpoint.ipv4.ip), optional=True),
            Column("ipv6", str, lambda endpoint: endpoint.ipv6 and str(endpoint.ipv6.ip), optional=True),
        ),
        unique=(
            *(("network_id", "sandbox_id"), ("sandbox_id", "ifname"), ("network_id", "slot")),
            *(("network_id", "ipv4"), ("network_id", "ipv6"), ("network_id", "mac")),
        ),
        missing="endpoint {} not found",
    ),
    Kind(
        Service,
        "services",
        (
            Column("name", unique=True),
            Column("network_id", refers_to="networks"),
            Column("number", int, unique=True),
            Column("vip4", str, lambda service: service.vip4 and str(service.vip4), optional=True),
            Column("vip6", str, lambda service: service.vip6 and str(service.vip6), optional=True),
        ),
        unique=(("network_id", "vip4"), ("network_id", "vip6")),
        missing="no such service: {}",
    ),
    Kind(Container, "containers", (Column("name", unique=True),), missing="No such container: {}"),
    Kind(Policy, "policies", (Column("name", unique=True),), missing="no such policy: {}"),
    Kind(Peer, "peers", (Column("number", int, unique=True),), missing="host {} not found"),
    Kind(
        Block,
        "blocks",
        (Column("network_id", refers_to="networks"), Column("peer", refers_to="peers")),
        missing="block {} not found",
    ),
    Kind(
        Remote,
        "remotes",
        (Column("network_id", refers_to="networks"), Column("peer", refers_to="peers")),
        missing="endpoint {} not found",
    ),
    Kind(Lapse, "lapses", missing="host {} has not stopped to say that it lives"),
    Kind(Drain, "drains", missing="host {} is not drained"),
    Kind(Owed, "owed", missing="nothing is owed to key {}"),
)


def kind_of(cls: type[Any], kinds: tuple[Kind, ...] = KINDS) -> Kind:
    """The kind of the rows that are of the class."""
    for kind in kinds:
        if kind.cls is cls:
            return kind
    raise TypeError(f"{cls.__name__} is no kind of row")
