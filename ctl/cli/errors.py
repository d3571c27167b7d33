# SPDX-License-Identifier: Apache-2.0
"""The one place where errors become a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import click

from datapath.errors import DatapathError, printable

from .words import Told

PROGRAM = "datapathctl"
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE


class StartError(Exception):
    """`errors` kept a process from being started; the command ends with `exit_code`."""

    def __init__(self, errors: Sequence[BaseException], exit_code: int) -> None:
        super().__init__(*errors)
        self.errors = errors
        self.exit_code = exit_code


def ended(work: Callable[[], int]) -> int:
    """The exit code of this work, and what went wrong said on stderr. Raises nothing."""
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except SystemExit as done:  # the end of a completion
        return int(done.code or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BaseException as error:
        if isinstance(error, OSError):
            _discard_output()
        return report(error)


def debug() -> None:
    """From now on what is done is logged on stderr, and internal errors come with a traceback."""
    import logging

    logging.basicConfig(
        level=logging.DEBUG,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for chatty in ("matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.INFO)


def debugging() -> bool:
    """Whether `debug` was called: if not, nobody need import logging to know it."""
    logging = sys.modules.get("logging")
    return logging is not None and bool(logging.getLogger().isEnabledFor(logging.DEBUG))


def _discard_output() -> None:
    """What could not be written must not be tried again, and complained about, when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:
        pass


def report(error: BaseException) -> int:
    """Say on stderr what went wrong, one line for each error; the exit code of the first."""
    if isinstance(error, StartError):
        errors, code = list(error.errors), error.exit_code
    else:
        errors = list(leaves(error))
        code = exit_code(errors[0])
    if debugging() and INTERNAL_ERROR in map(exit_code, errors):
        import traceback

        traceback.print_exception(error)
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
        case Told():
            text = error.format_message()
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
            text = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
    return printable(" ".join(text.splitlines()))


def raise_all(errors: Sequence[Exception]) -> None:
    """Raises the one error, or all of them as a group; nothing if there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("several failures", errors)


def leaves(error: BaseException) -> Iterator[Any]:
    """The errors inside a group, however deep, each once."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
