# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/reference that are made from the program itself. `python -m ctl.cli.reference DIR` writes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from .errors import PROGRAM
from .examples import EXAMPLES
from .main import cli
from .stats import reason_rows

_MADE = "<!-- Made by python -m ctl.cli.reference: change the program, not this page. -->"


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that users type, by its words; without Docker's second names of the same."""
    yield " ".join(path), group
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if found is None or found.hidden or (path, name) == ((), "container"):
            continue
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


def signature(command: click.Command, words: str) -> str:
    """network create [OPTIONS] NETWORK"""
    arguments = [value(param) for param in command.params if isinstance(param, click.Argument)]
    rest = ["COMMAND"] if isinstance(command, click.Group) else arguments
    return " ".join([PROGRAM, *words.split(), "[OPTIONS]", *rest])


def value(param: click.Parameter) -> str:
    """The word for a parameter's value: the same with every version of click."""
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return "|".join(map(str, param.type.choices))
    name = (param.name or "").upper()
    return name if param.required or isinstance(param, click.Option) else f"[{name}]"


def option_rows(command: click.Command) -> Iterator[tuple[str, str]]:
    """The options that its help shows, each with its sentence."""
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            names = ", ".join([*param.opts, *param.secondary_opts])
            shown = names if param.is_flag else f"{names} {value(param)}"
            yield shown, param.help or ""


def commands_page() -> str:
    """docs/reference/commands.md"""
    lines = ["# Commands and options", "", _MADE, ""]
    lines += ["`-h` and `--help` explain each command (`run` has `--help` alone: its `-h` is Docker's).", ""]
    for words, command in commands():
        lines += [f"## {words or PROGRAM}", "", "```text", signature(command, words), "```", ""]
        lines += [cleandoc(command.help or ""), ""]
        rows = list(option_rows(command))
        if rows:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{_cell(shown)}` | {_cell(text)} |" for shown, text in rows]
            lines += [""]
        lines += ["```sh", *(f"{PROGRAM} {line}" for line in EXAMPLES[words]), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def reasons_page() -> str:
    """docs/reference/reasons.md"""
    rows = reason_rows()
    lines = [
        "# Reasons",
        "",
        _MADE,
        "",
        "What `stats` counts, as `stats --reasons` says it. What is not dropped:",
        "",
    ]
    lines += ["| counter | the packet |", "|---|---|"]
    lines += [
        f"| `{r['Counter']}` | {_cell(r['Meaning'])} |" for r in rows if not r["Counter"].startswith("DROP_")
    ]
    lines += ["", "What is dropped:", "", "| counter | because | where to look |", "|---|---|---|"]
    lines += [
        f"| `{r['Counter']}` | {_cell(r['Meaning'])} | {_cell(r['Look'])} |"
        for r in rows
        if r["Counter"].startswith("DROP_")
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"commands.md": commands_page, "reasons.md": reasons_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(sys.argv[1]) / name).write_text(page())
