# SPDX-License-Identifier: Apache-2.0
"""The tables of the SQLite store, as the kinds of rows ask for them.

A row is an object of the model as JSON, its `body`. The columns beside it are there for the promises that the database
itself keeps: which values are unique, and which rows others refer to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from datapath.model.codec import to_json
from datapath.model.kinds import Column, Kind
from datapath.model.rows import Row

APPLICATION_ID = 0x64706374  # "dpct" in the file's header
VERSION = 3  # of tables and rows; what takes an earlier one to it is in `steps`


def script(kinds: Iterable[Kind]) -> str:
    """The statements that make an empty database."""
    meta = "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID"
    marks = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}")
    return "".join(f"{statement};\n" for statement in (meta, *map(create_table, kinds), *marks))


def create_table(kind: Kind) -> str:
    """The statement that makes the kind's table, unless another command has made it."""
    unique = (f"UNIQUE ({', '.join(columns)})" for columns in kind.unique)
    lines = ("id TEXT PRIMARY KEY", *map(_definition, kind.columns), "body TEXT NOT NULL", *unique)
    return f"CREATE TABLE IF NOT EXISTS {kind.table} ({', '.join(lines)})"


def _definition(column: Column) -> str:
    parts = [column.name, "INTEGER" if column.value_type is int else "TEXT"]
    if not column.optional:
        parts.append("NOT NULL")
    if column.unique:
        parts.append("UNIQUE")
    if column.refers_to:
        # A transaction may delete what a row refers to before the row itself.
        parts.append(f"REFERENCES {column.refers_to}(id) DEFERRABLE INITIALLY DEFERRED")
    return " ".join(parts)


def tables(db: sqlite3.Connection) -> set[str]:
    """The names of the tables that the database has: it may have been made before some of the kinds."""
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def upsert(kind: Kind, row: Row) -> tuple[str, tuple[str | int | None, ...]]:
    """The statement that writes the row, new or not, and its values."""
    values = {"id": row.id, **kind.values(row), "body": to_json(row)}
    marks = ", ".join("?" * len(values))
    updates = ", ".join(f"{name} = excluded.{name}" for name in values if name != "id")
    insert = f"INSERT INTO {kind.table} ({', '.join(values)}) VALUES ({marks})"
    return f"{insert} ON CONFLICT (id) DO UPDATE SET {updates}", tuple(values.values())


def delete(kind: Kind, row: Row) -> tuple[str, tuple[str]]:
    """The statement that removes the row, and its values."""
    return f"DELETE FROM {kind.table} WHERE id = ?", (row.id,)
