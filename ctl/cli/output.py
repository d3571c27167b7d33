# SPDX-License-Identifier: Apache-2.0
"""Tables, JSON and templates, as Docker prints them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from datapath.errors import ConfigError, DatapathError, NotFoundError, printable
from datapath.model.rows import OWNER

from .errors import leaves, raise_all

Row = Mapping[str, Any]

# Docker's tables: three spaces between columns, no column narrower than ten with its spaces.
_GAP = 3
_NARROWEST = 10
_DROP = "DROP_"


def strong(text: str) -> str:
    """In bold on a terminal, unless it has no such thing or NO_COLOR is set (no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, bold=True) if wanted and text else text


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Docker draws it, without a line break at its end. On a terminal the headings are bold, and the packet
    programs' drops."""
    lines = [*([headings] if headings else []), *rows]
    count = max(map(len, lines), default=0)
    cells = [[*map(printable, line), *[""] * (count - len(line))] for line in lines]
    widths = [max(_NARROWEST, *(len(cell) + _GAP for cell in column)) for column in zip(*cells, strict=True)]
    form = "".join(f"{{:<{width}}}" for width in widths)
    drawn = [(form.format(*line).rstrip(), line) for line in cells]
    return "\n".join(
        strong(text) if (number == 0 and headings) or line[0].startswith(_DROP) else text
        for number, (text, line) in enumerate(drawn)
    )


def template(source: str, *, heading: bool = False) -> Callable[[Any], str]:
    """The function that fills this template. ConfigError when it cannot be read or does not fit. `heading`: it is
    filled with the headings of a table."""
    from .golang.functions import FUNCTIONS, HEADING_FUNCTIONS
    from .template import Template, TemplateError

    try:
        parsed = Template(source, HEADING_FUNCTIONS if heading else FUNCTIONS)
    except TemplateError as error:
        raise ConfigError(f"template parsing error: {error}") from error

    def fill(data: Any) -> str:
        try:
            return parsed.render(data)
        except TemplateError as error:
            raise ConfigError(f"template error: {error}") from error

    return fill


def listing(rows: Sequence[Row], columns: Mapping[str, str], format_: str, *, quiet: bool = False) -> str:
    """What a command that lists prints.

    `columns` maps a row's keys to the headings of the default table, in order. `format_` is empty,
    "table", "json", "table TEMPLATE" or a template; `quiet` prints the first column and nothing else.
    """
    if quiet and not format_:
        return "\n".join(str(row[next(iter(columns))]) for row in rows)
    if format_.rstrip(" ") in ("", "table"):
        return table(list(columns.values()), [[str(row[key]) for key in columns] for row in rows])
    if format_ == "json":
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        return "\n".join(map(encode, rows))
    wanted = format_.replace("\\t", "\t").replace("\\n", "\n")
    drawn, _, rest = wanted.partition(" ")
    if drawn != "table":
        fill = template(wanted)
        return "\n".join(fill(row) for row in rows)
    from .golang.values import Labelled

    fill = template(rest.strip(" "))
    known = rows[0] if rows else columns
    headings = Labelled({key: columns.get(key, _heading(key)) for key in known}, _label_heading)
    head = template(rest.strip(" "), heading=True)(headings)
    return table(head.split("\t"), [fill(row).split("\t") for row in rows])


def fitted(rows: Sequence[Row], columns: Mapping[str, str], key: str) -> list[Row]:
    """The rows, with the values of one column cut to what the terminal's width leaves for them."""
    if not sys.stdout.isatty():
        return list(rows)
    left = max(_NARROWEST - _GAP, _left(rows, columns, (key,)))
    return [{**row, key: _cut(str(row[key]), left)} for row in rows]


def folded(rows: Sequence[Row], columns: Mapping[str, str], keys: Sequence[str]) -> list[Row]:
    """The rows, with columns of sentences broken into lines that the terminal's width leaves room for: a row each."""
    if not sys.stdout.isatty():
        return list(rows)
    width = max(2 * _NARROWEST, _left(rows, columns, keys) // len(keys))
    lines: list[Row] = []
    for row in rows:
        parts = {key: textwrap.wrap(str(row[key]), width) for key in keys}
        for number in range(max(1, *map(len, parts.values()))):
            first = row if number == 0 else dict.fromkeys(row, "")
            lines.append(
                {**first, **{key: [*found, *[""] * (number + 1)][number] for key, found in parts.items()}}
            )
    return lines


def _left(rows: Sequence[Row], columns: Mapping[str, str], keys: Sequence[str]) -> int:
    """What the terminal's width leaves for the values of these columns."""
    taken = 0
    for name, heading in columns.items():
        last = name == [*columns][-1]
        width = 0 if name in keys else max(len(heading), *(len(printable(str(row[name]))) for row in rows), 0)
        taken += width if last else width + _GAP if name in keys else max(_NARROWEST, width + _GAP)
    return shutil.get_terminal_size().columns - taken


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def with_owner(columns: Mapping[str, str], rows: Sequence[Row]) -> Mapping[str, str]:
    """The columns, and whose each row is if some are not our own: Docker's tables have no such column."""
    owners = {row["Owner"] for row in rows}
    return columns if owners <= {OWNER} else {**columns, "Owner": "OWNER"}


def _heading(key: str) -> str:
    """CreatedAt becomes CREATED AT."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).upper()


def _label_heading(name: str) -> str:
    """com.example.my-team becomes my team, as Docker has it."""
    return re.sub("[-_]", " ", name.rpartition(".")[2])


def documents(found: Sequence[Mapping[str, Any]], format_: str) -> str:
    """What `inspect` prints: one array, or with a template one line for each."""
    if format_ in ("", "json"):
        indent = 4 if not format_ else None
        separators = None if not format_ else (",", ":")
        return json.dumps(list(found), indent=indent, separators=separators, ensure_ascii=False)
    fill = template(format_)
    return "\n".join(fill(document) for document in found)


def emit(text: str) -> None:
    """Print it, unless there is nothing to print."""
    if text:
        click.echo(text)


def emit_parts(parts: Sequence[tuple[Sequence[Row], Mapping[str, str]]], format_: str) -> None:
    """Print several listings as one: those tables that have rows, with empty lines between, or JSON; a template is for
    the first."""
    if format_ in ("", "table"):
        emit("\n\n".join(listing(rows, columns, format_) for rows, columns in parts if rows))
        return
    for index, (rows, columns) in enumerate(parts):
        if format_ == "json" or index == 0:
            emit(listing(rows, columns, format_))


def for_each(names: Iterable[str], act: Callable[[str], object], *, missing_ok: bool = False) -> None:
    """Do it for every name and print each name that it was done for; all failures are raised at the end."""
    errors: list[Exception] = []
    for name in names:
        try:
            act(name)
        except* DatapathError as group:
            errors += [
                error for error in leaves(group) if not (missing_ok and isinstance(error, NotFoundError))
            ]
        else:
            click.echo(printable(name))
    raise_all(errors)
