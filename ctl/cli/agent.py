# SPDX-License-Identifier: Apache-2.0
"""agent: the optional resident process, and its unit file."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from datapath.errors import ConfigError, printable, quoted

from .command import Command, Group
from .errors import PROGRAM

root_option = click.option(
    "--root",
    metavar="DIR",
    default="/",
    help="Where the file system that is meant begins (default: /), as for building a package.",
)


program_option = click.option(
    "--program", metavar="FILE", default="", help="Where datapathctl will be (default: where this one is)."
)


def program_of(text: str) -> str:
    """The path of datapathctl for a unit. ConfigError."""
    found = text or str(Path(shutil.which(sys.argv[0]) or sys.argv[0]).absolute())
    if not Path(found).is_absolute():
        raise ConfigError(f"--program must be an absolute path, not {quoted(found)}")
    return found


def root_of(text: str) -> Path:
    """What --root names. ConfigError."""
    if not text or "\0" in text or not Path(text).is_dir():
        raise ConfigError(f"--root must be a directory that is there, not {quoted(text)}")
    return Path(text).absolute()


@click.group("agent", cls=Group, invoke_without_command=True)
@click.pass_context
def agent(ctx: click.Context) -> None:
    """Follow the changes of the host's network at once.

    Stays until it is ended. Listens to the kernel, and tells the packet programs of new and lost addresses, outside
    devices, routes and IPsec policies within 100 ms. Optional: without it they are told by the next command that
    changes something. It checks the health of services' containers too, which nobody does without it. One for each
    state directory.
    """
    if ctx.invoked_subcommand is not None:
        return
    from datapath.config.settings import Settings

    from ..agent.main import serve

    serve(Settings.from_env(os.environ, **ctx.find_root().params), _say)


def _say(line: str) -> None:
    """A line for the journal."""
    click.echo(f"{PROGRAM} agent: {printable(line)}", err=True)


@agent.command("install", cls=Command)
@root_option
@program_option
@click.pass_context
def install(ctx: click.Context, root: str, program: str) -> None:
    """Write the unit file of the agent for systemd.

    The directories that this command is given are in it. It is started by: systemctl enable --now datapathctl-agent.
    """
    from datapath.config.settings import Settings

    from .. import units

    settings = Settings.from_env(os.environ, **ctx.find_root().params)
    for path in units.install(root_of(root), units.files(units.AGENT, program_of(program), settings)):
        click.echo(path)


@agent.command("uninstall", cls=Command)
@root_option
def uninstall(root: str) -> None:
    """Remove the unit file of the agent.

    An agent that is at work goes on: systemctl disable --now datapathctl-agent ends it.
    """
    from .. import units

    for path in units.uninstall(root_of(root), units.AGENT):
        click.echo(path)
