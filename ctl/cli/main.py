# SPDX-License-Identifier: Apache-2.0
"""datapathctl: the commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

import click

from ctl.cli import bench, connection, container, network, port, repair, system, trace
from ctl.cli.command import Front, Group
from ctl.cli.output import leaves
from datapath.errors import DatapathError, printable

PROGRAM = "datapathctl"
COMPLETE = "_DATAPATHCTL_COMPLETE"  # what completion scripts set
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} version {version('datapath')}")
        ctx.exit()


@click.group(PROGRAM, cls=Group)
@click.option("--state-dir", metavar="DIR", help="DATAPATH_STATE_DIR, /var/lib/datapath")
@click.option("--run-dir", metavar="DIR", help="DATAPATH_RUN_DIR, /run/datapath")
@click.option("--bpffs", metavar="DIR", help="DATAPATH_BPFFS, /sys/fs/bpf/datapath")
@click.option("--config", "config_path", metavar="FILE", help="DATAPATH_CONFIG, /etc/datapath/daemon.json")
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Version.",
)
@click.pass_context
def cli(ctx: click.Context, /, **directories: str | None) -> None:
    """Docker's container networking on eBPF: no Linux bridge, no iptables.

    The host is the network namespace that this is started in.
    """
    ctx.obj = Front(**directories)


for _command in (
    network.network,
    port.port,
    connection.ct,
    container.run,
    container.ps,
    container.exec_,
    container.logs,
    container.inspect,
    container.stop,
    container.rm,
    bench.bench,
    system.stats,
    trace.trace,
    repair.doctor,
    repair.reconcile,
    repair.upgrade,
    system.down,
    system.version,
    system.completion,
    system.exited,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None when it was closed
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """One command, from its arguments to its exit code. Raises nothing."""
    try:
        code = _invoke(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except SystemExit as done:  # the end of a completion
        return int(done.code or 0)
    except BaseException as error:
        if os.environ.get("DATAPATH_TRACEBACK"):
            raise
        if isinstance(error, OSError):
            _discard_output()
        return _report(error)


def _invoke(argv: Sequence[str]) -> int:
    if COMPLETE in os.environ:
        cli.main(list(argv), PROGRAM, COMPLETE)
    try:
        with cli.make_context(PROGRAM, list(argv)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _discard_output() -> None:
    """What could not be written must not be tried again, and complained about, when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:
        pass


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong, one line for each error; the exit code of the first."""
    if isinstance(error, container.StartError):
        errors, code = list(error.errors), error.exit_code
    else:
        errors = list(leaves(error))
        code = exit_code(errors[0])
    for line in dict.fromkeys(map(message, errors)):
        click.echo(f"{PROGRAM}: {line}", err=True)
    return code


def exit_code(error: BaseException) -> int:
    """By class: the library's own code, 2 for wrong usage (Docker's 125 for run and exec)."""
    match error:
        case DatapathError() as ours:
            return ours.exit_code
        case click.UsageError(ctx=click.Context() as ctx):
            return cast(int, getattr(ctx.command, "usage_exit_code", error.exit_code))
        case click.ClickException() as usage:
            return usage.exit_code
        case KeyboardInterrupt() | click.Abort() | EOFError():
            return INTERRUPTED
        case OSError():
            return 1
    return INTERNAL_ERROR


def message(error: BaseException) -> str:
    """One printable line."""
    match error:
        case DatapathError():
            text = str(error)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else PROGRAM
            said = error.format_message()
            text = f"{said if said.endswith(('.', '?')) else said + '.'} See '{path} --help'."
        case click.ClickException():
            text = error.format_message()
        case KeyboardInterrupt() | click.Abort() | EOFError():
            text = "interrupted"
        case OSError() if error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        case _:
            text = f"internal error: {type(error).__name__}: {error} (DATAPATH_TRACEBACK=1 shows where)"
    return printable(" ".join(text.splitlines()))


if __name__ == "__main__":
    main()
