# SPDX-License-Identifier: Apache-2.0
"""datapathctl: all commands, and the console script."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from . import errors
from .command import LazyGroup, PathType
from .errors import PROGRAM, ended

COMPLETE = "_DATAPATHCTL_COMPLETE"  # what completion scripts set
COMMANDS = {
    "network": ".network:network",
    "port": ".port:port",
    "ct": ".connection:ct",
    "flows": ".flows:flows",
    "why": ".why:why",
    "policy": ".policy:policy",
    "names": ".names:names",
    "service": ".service:service",
    "cluster": ".cluster:cluster",
    "container": ".container:container",
    "run": ".run:run",
    "ps": ".ps:ps",
    "exec": ".run:exec_",
    "logs": ".container:logs",
    "inspect": ".container:inspect",
    "start": ".container:start",
    "stop": ".container:stop",
    "rename": ".container:rename",
    "rm": ".container:rm",
    "bench": ".bench:bench",
    "stats": ".stats:stats",
    "top": ".top:top",
    "metrics": ".metrics:metrics",
    "trace": ".trace:trace",
    "web": ".web:web",
    "doctor": ".repair:doctor",
    "reconcile": ".repair:reconcile",
    "upgrade": ".repair:upgrade",
    "agent": ".agent:agent",
    "docker": ".docker:docker",
    "down": ".system:down",
    "version": ".system:version",
    "help": ".system:help_",
    "completion": ".system:completion",
    "_exited": ".system:exited",
}


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from datapath import __version__

        click.echo(f"{PROGRAM} version {__version__}")
        ctx.exit()


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        errors.debug()


@click.group(
    PROGRAM,
    cls=LazyGroup,
    where=COMMANDS,
    epilog='Docker\'s options apply. "datapathctl COMMAND --help" has examples. Manual: man datapathctl.',
    context_settings={"help_option_names": ["-h", "--help"]},  # `run` has a -h of its own, as Docker's
)
@click.option(
    "--state-dir",
    metavar="DIR",
    type=PathType(),
    help="Where state and logs are kept (or $DATAPATH_STATE_DIR; default: /var/lib/datapath).",
)
@click.option(
    "--run-dir",
    metavar="DIR",
    type=PathType(),
    help="Where files of containers are kept (or $DATAPATH_RUN_DIR; default: /run/datapath).",
)
@click.option(
    "--bpffs",
    metavar="DIR",
    type=PathType(),
    help="Where programs and maps are pinned (or $DATAPATH_BPFFS; default: /sys/fs/bpf/datapath).",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=PathType(),
    help="Configuration file (or $DATAPATH_CONFIG; default: /etc/datapath/daemon.json).",
)
@click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    envvar="DATAPATH_DEBUG",
    expose_value=False,
    callback=_debug,
    help="Log to stderr, and print tracebacks of internal errors (or $DATAPATH_DEBUG=1).",
)
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli(**directories: str | None) -> None:
    """Docker's container networking on eBPF: no Linux bridge, no iptables.

    Commands that Docker has take Docker's options. The host is the network namespace in which the command is started.
    """


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None when it was closed
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """One command, from its arguments to its exit code. Raises nothing."""
    return ended(lambda: _invoke(argv))


def _invoke(argv: Sequence[str]) -> int:
    if COMPLETE in os.environ:
        cli.main(list(argv), PROGRAM, COMPLETE)
    with cli.make_context(PROGRAM, list(argv)) as ctx:
        cli.invoke(ctx)
    return 0


if __name__ == "__main__":
    main()
