# SPDX-License-Identifier: Apache-2.0
"""docker: the network driver for Docker, and its units."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from .agent import program_of, program_option, root_of, root_option
from .command import Command, Group, PathType
from .errors import PROGRAM

_DURATION = re.compile(r"(0|[1-9][0-9]{0,5})(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SOCKET_UNIT = "datapath-docker.socket"


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # it has none before click 8.4
    """A duration as Docker writes it, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(value)
        if found is None or (not found[2] and found[1] != "0"):
            self.fail(f"{value!r} is not a duration such as 30s or 5m.", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]


@click.group("docker", cls=Group)
def docker() -> None:
    """Be a network driver for Docker.

    Docker then takes "docker network create -d datapath".
    """


@docker.command("serve", cls=Command)
@click.option(
    "--socket",
    type=PathType(),
    metavar="PATH",
    help="Listen there; Docker looks for /run/docker/plugins/datapath.sock (default: the socket that is passed by the "
    "service manager).",
)
@click.option(
    "--idle",
    type=Duration(),
    metavar="TIME",
    help='End when nothing was asked for so long, such as "30s"; 0: never (default: 30s if the socket is passed, else '
    "never).",
)
@click.pass_context
def serve(ctx: click.Context, socket: str | None, idle: float | None) -> None:
    """Answer Docker's requests.

    Stays until it is ended, or idle. Containers need no process of it: their packets, ports and addresses do not.
    """
    from datapath.config.settings import Settings

    from ..docker import server

    settings = Settings.from_env(os.environ, **ctx.find_root().params)
    if idle is None:
        idle = 0.0 if socket else server.IDLE
    server.serve(settings, Path(socket).absolute() if socket else None, idle or None, server.say)


@docker.command("install", cls=Command)
@root_option
@program_option
@click.pass_context
def install(ctx: click.Context, root: str, program: str) -> None:
    """Make Docker know the driver.

    Writes the units of the socket and the service for systemd, with the directories that this command is given, and
    starts the socket: the service is started by it when Docker asks. Without systemd it says what to do.
    """
    from datapath.config.settings import Settings

    from .. import units
    from ..docker.protocol import SOCKET

    path, settings = root_of(root), Settings.from_env(os.environ, **ctx.find_root().params)
    for written in units.install(path, units.files(units.DOCKER, program_of(program), settings)):
        click.echo(written)
    if units.manager(path):
        units.tell(("daemon-reload",), ("enable", "--now", "--quiet", _SOCKET_UNIT))
    elif path == Path("/"):
        line = f"no systemd runs here: start '{PROGRAM} docker serve --socket {SOCKET}' before Docker asks"
        click.echo(f"WARNING: {line}", err=True)


@docker.command("uninstall", cls=Command)
@root_option
def uninstall(root: str) -> None:
    """Take the driver away from Docker again.

    Ends the socket and the service, and removes their units. Networks and containers stay; Docker cannot change them
    any more.
    """
    from .. import units

    path = root_of(root)
    if units.manager(path):
        units.tell(
            ("disable", "--now", "--quiet", _SOCKET_UNIT), ("stop", "--quiet", "datapath-docker.service")
        )
    for removed in units.uninstall(path, units.DOCKER):
        click.echo(removed)
    if units.manager(path):
        units.tell(("daemon-reload",))
