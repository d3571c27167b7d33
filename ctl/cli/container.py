# SPDX-License-Identifier: Apache-2.0
"""logs, inspect, start, stop, rename, rm: Docker's commands about containers that there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from datapath.errors import ConfigError, NotFoundError, quoted
from datapath.model.rows import OWNER

from . import completing
from .command import (
    Command,
    LazyGroup,
    containers,
    format_option,
    host,
)
from .formatting import moment
from .network import print_documents
from .output import for_each

SECONDS = click.IntRange(0, 86400)
SECONDS.name = "number"

# Docker's second names: `container ls` is `ps`, all others are called as they are without `container`.
SECOND_NAMES = {
    "ls": ".ps:ps",
    **{name: f".container:{name}" for name in ("logs", "inspect", "start", "stop", "rename", "rm")},
    "run": ".run:run",
    "exec": ".run:exec_",
    "port": ".port:port",
}


@click.group("container", cls=LazyGroup, where=SECOND_NAMES)
def container() -> None:
    """Docker's second names of the commands about containers."""


# ---- looking --------------------------------------------------------------------------


@click.command("logs", cls=Command)
@click.argument("container", shell_complete=completing.container)
@click.option("-f", "--follow", is_flag=True, help="Follow the output.")
@click.option("-n", "--tail", default="all", metavar="N", help="Print only the last N lines (default: all).")
@click.option("-t", "--timestamps", is_flag=True, help="Print before each line when it was written.")
@click.option(
    "--since",
    default="",
    metavar="TIME",
    help="Print only what was written since then: 10m, or 2026-11-27T06:00:00Z.",
)
@click.option(
    "--until", default="", metavar="TIME", help="Print only what was written until then: 10m, or a time."
)
def logs(container: str, follow: bool, tail: str, timestamps: bool, since: str, until: str) -> None:
    """Print the output of a container."""
    from datapath.runtime.logs import LogRequest

    if tail != "all" and not (tail.isascii() and tail.isdigit() and len(tail) < 10):
        raise ConfigError(f"invalid value {quoted(tail)} for --tail: expected a number of lines, or all")
    request = LogRequest(
        follow=follow,
        tail=None if tail == "all" else int(tail),
        since=moment(since, "--since") if since else None,
        until=moment(until, "--until") if until else None,
        timestamps=timestamps,
    )
    with open(1, "wb", closefd=False) as stream:
        for chunk in containers().logs(container, request):
            stream.write(chunk)
            stream.flush()


@click.command("inspect", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completing.container)
@format_option("-f")
@click.option(
    "--type", "kind", type=click.Choice(["container", "network"]), help="Look for this type of object only."
)
def inspect(names: tuple[str, ...], format_: str, kind: str | None) -> None:
    """Show detailed information about containers or networks."""

    def look(name: str) -> Mapping[str, Any]:
        if kind == "network":
            return host().networks.inspect(name)
        try:
            return containers().inspect(name)
        except NotFoundError:
            if kind == "container":
                raise
        try:
            return host().networks.inspect(name)
        except NotFoundError as error:
            raise NotFoundError(f"no such container or network: {quoted(name)}") from error

    print_documents(names, look, format_)


# ---- changing -------------------------------------------------------------------------


@click.command("start", cls=Command)
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=completing.ended)
def start(names: tuple[str, ...]) -> None:
    """Start containers again that have ended.

    In the background, with the options of their `run`, the networks and ports that came later, and the addresses that
    they had, if nobody has these meanwhile.
    """
    for_each(names, lambda name: containers().start(name))


@click.command("rename", cls=Command)
@click.argument("container", shell_complete=completing.container)
@click.argument("name", metavar="NEW_NAME")
def rename(container: str, name: str) -> None:
    """Rename a container."""
    containers().rename(container, name)


@click.command("stop", cls=Command)
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=completing.running)
@click.option(
    "-t",
    "--timeout",
    "--time",
    type=SECONDS,
    default=10,
    metavar="SECONDS",
    help="Seconds until a container is killed (default: 10).",
)
@click.option(
    "-s",
    "--signal",
    default="",
    metavar="SIGNAL",
    shell_complete=completing.signal,
    help="Signal to send first (default: that of `run --stop-signal`).",
)
def stop(names: tuple[str, ...], timeout: int, signal: str) -> None:
    """Stop running containers."""
    for_each(names, lambda name: containers().stop(name, timeout=timeout, signal_name=signal))


@click.command("rm", cls=Command)
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=completing.container)
@click.option(
    "-f", "--force", is_flag=True, help="Kill running containers; do not fail if one does not exist."
)
@click.option("-v", "--volumes", is_flag=True, help="Accepted for compatibility with Docker.")
def rm(names: tuple[str, ...], force: bool, volumes: bool) -> None:
    """Remove containers."""

    def remove(name: str) -> None:
        try:
            containers().remove(name, force=force)
        except NotFoundError as missing:
            # It may be the name of another owner's sandbox: that is for its owner to remove, or forced.
            with suppress(NotFoundError):
                name = host().shown().sandbox(name).id
            if not host().sandboxes.forget(name, OWNER, force):
                raise missing

    for_each(names, remove, missing_ok=force)
