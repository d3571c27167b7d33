# SPDX-License-Identifier: Apache-2.0
"""Networks of Docker's that stand for one that datapathctl has created, on several hosts perhaps: which, by Docker's
ids, as a note of the store. Docker tells a driver a network's options once, and later its id alone."""

from __future__ import annotations

import json

from datapath.errors import ConfigError, quoted
from datapath.host import Host
from datapath.model.fields import Fields, items, part, text
from datapath.store.sqlite import SQLiteStore

from . import protocol

OPTION = "com.datapath.network"
_NOTE = "networks that Docker's stand for"  # JSON: Docker's id -> name


def asked(fields: Fields) -> str:
    """The network that CreateNetwork names; "": it is one of Docker's own. ConfigError: something else is chosen, too,
    or Docker is to give out addresses."""
    options = dict(part(part(fields, "Options"), protocol.GENERIC))
    name = options.pop(OPTION, "")
    if not name:
        return ""
    if options:
        raise ConfigError(f"option {quoted(next(iter(options)))}: network {name} has its own options")
    if any(not text(pool, "Pool").endswith("/0") for pool in items(fields, "IPv4Data")):
        raise ConfigError(f"addresses are those of network {name}: add --ipam-driver null")
    return str(name)


def add(host: Host, ident: str, name: str) -> None:
    """From now on Docker's network is that one. NotFoundError, StateError."""
    host.networks.inspect(name)
    with host.changing() as tx:
        known: dict[str, str] = json.loads(tx.store.note(_NOTE) or "{}")
        tx.store.set_note(_NOTE, json.dumps({**known, ident: name}))


def find(host: Host, ident: str) -> str:
    """The name of the network that Docker's stands for; "": it is one of its own. StateError."""
    if not SQLiteStore.exists(host.settings.state_dir):
        return ""
    with SQLiteStore(host.settings.state_dir, create=False, reading=True) as store:
        known: dict[str, str] = json.loads(store.note(_NOTE) or "{}")
    return known.get(ident, "")


def remove(host: Host, ident: str) -> None:
    """Docker's network is gone; the other stays."""
    with host.changing(create=False, freeing=True) as tx:
        known: dict[str, str] = json.loads(tx.store.note(_NOTE) or "{}")
        known.pop(ident, None)
        tx.store.set_note(_NOTE, json.dumps(known) if known else None)
