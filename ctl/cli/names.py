# SPDX-License-Identifier: Apache-2.0
"""datapathctl names …: what containers' names resolve to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import NotFoundError

from . import completing
from .command import Command, Group, format_option, host
from .output import emit, fitted, listing

if TYPE_CHECKING:
    from datapath.telemetry.names import Answer, Name

COLUMNS = {"Network": "NETWORK", "Name": "NAME", "Type": "TYPE", "Data": "DATA", "Container": "ONLY FOR"}
ANSWERS = {"Name": "NAME", "Type": "TYPE", "Status": "STATUS", "Data": "DATA", "Source": "SAYS"}


@click.group("names", cls=Group)
def names() -> None:
    """List containers' names, and ask for one as a container would."""


@names.command("ls", cls=Command)
@click.argument("network", required=False, shell_complete=completing.network)
@format_option(field="Name")
def ls(network: str | None, format_: str) -> None:
    """List the names that containers find each other by.

    They are listed as the packet programs have them, those of a link ONLY FOR its container. What was asked: `stats`.
    """
    from datapath.telemetry.names import all_names

    rows = [name_row(one) for one in all_names(host(), network or "")]
    emit(listing(rows if format_ else fitted(rows, COLUMNS, "Data"), COLUMNS, format_))


def name_row(one: Name) -> dict[str, Any]:
    """What `names ls` knows about a name and a type."""
    return {
        "Network": one.network,
        "Name": one.name,
        "Type": one.type,
        "Data": ",".join(one.data),
        "Container": one.container,
    }


@names.command("resolve", cls=Command)
@click.argument("container", shell_complete=completing.running)
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", required=False, shell_complete=completing.words("A", "AAAA", "PTR"))
@format_option(field="Data")
def resolve(container: str, name: str, kind: str | None, format_: str) -> None:
    """Print what a container would be answered, and by whom.

    NAME may be an address. Without TYPE both kinds of addresses are asked for. Nothing is sent from the container: of
    what is no container's name its upstream servers are asked by the host.
    """
    from datapath.telemetry.names import resolve as ask

    answers = ask(host(), container, name, kind or "")
    emit(listing([answer_row(one) for one in answers], ANSWERS, format_))
    if not any(one.data for one in answers):
        told = ", ".join(dict.fromkeys(f"{one.status} by {one.source}" for one in answers))
        raise NotFoundError(f"nothing was found for {name}: {told}")


def answer_row(one: Answer) -> dict[str, Any]:
    """What `names resolve` knows about an answer."""
    return {
        "Name": one.name,
        "Type": one.type,
        "Status": one.status,
        "Data": ",".join(one.data),
        "Source": one.source,
    }
