# SPDX-License-Identifier: Apache-2.0
"""What takes a state database from each version to the next: the one place that knows how rows were written before.

A step changes tables and rows through SQL, and nothing else; all that are needed run in one transaction (`migration`).
It is never changed once it was released: whoever comes from three versions before takes all three.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Fields = dict[str, Any]


class Step(NamedTuple):
    """To `version`, from the one before it. `release`: the first of datapath that knows that version."""

    version: int
    release: str
    apply: Callable[[sqlite3.Connection], None]


def _names_of_now(db: sqlite3.Connection) -> None:
    """A network was `realised`, and a port's ACL its `filter`."""
    rewrite(db, "networks", lambda network: rename(network, "realised", "built"))

    def ports(row: Fields) -> None:
        for mapping in (*row.get("ports", ()), *row.get("published", ())):
            rename(mapping, "filter", "acl")

    for table in ("endpoints", "containers"):
        rewrite(db, table, ports)


def _services(db: sqlite3.Connection) -> None:
    """Nothing changes: containers and endpoints may name services, which a version before does not know. It would
    neither read these rows nor keep others from a service's address and ports."""


STEPS = (Step(2, "0.1.0", _names_of_now), Step(3, "0.1.0", _services))


def apply(db: sqlite3.Connection, steps: Iterable[Step]) -> None:
    """Takes the steps, one after the other, in the transaction of the caller. ValueError: a row cannot be read; it
    names the table and why."""
    for step in steps:
        step.apply(db)
        db.execute(f"PRAGMA user_version = {step.version}")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('release', ?)", (step.release,))


def rewrite(db: sqlite3.Connection, table: str, change: Callable[[Fields], None]) -> None:
    """Writes those rows of a table again whose fields `change` has changed. ValueError: a row is none."""
    changed = []
    for ident, body in db.execute(f"SELECT id, body FROM {table}").fetchall():
        try:
            row = json.loads(body)
            change(row)
            text = json.dumps(row, separators=(",", ":"))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"a row of {table} cannot be read: {error}") from None
        if json.loads(body) != row:
            changed.append((text, ident))
    db.executemany(f"UPDATE {table} SET body = ? WHERE id = ?", changed)


def rename(row: Fields, before: str, now: str) -> None:
    """Gives a field of the row, if it is there, its new name. ValueError: it is there under both."""
    if before in row and now in row:
        raise ValueError(f"a field under its old name {before!r} and its new one {now!r}")
    if before in row:
        row[now] = row.pop(before)
