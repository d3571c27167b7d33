# SPDX-License-Identifier: Apache-2.0
"""Variables and labels: KEY=VALUE as an option, or as a line of a file of --env-file and --label-file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from datapath.errors import ConfigError, quoted

from .command import PathType

F = TypeVar("F", bound=Callable[..., Any])


def environment_options(command: F) -> F:
    """-e and --env-file."""
    one = click.option(
        "-e",
        "--env",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="Set a variable; without =VALUE pass on the caller's.",
    )
    file = click.option(
        "--env-file",
        "env_files",
        multiple=True,
        type=PathType(path_type=Path),
        metavar="FILE",
        help="Set the variables of this file, one a line; # begins a comment.",
    )
    return one(file(command))


def environment(words: Iterable[str], here: Mapping[str, str], files: Iterable[Path] = ()) -> tuple[str, ...]:
    """KEY=VALUE as it is; KEY alone is handed on from here, if it is set. Those of files come first."""
    given = (*lines(files, "environment variable"), *words)
    for word in given:
        if not word.partition("=")[0]:
            raise ConfigError(f"invalid environment variable {quoted(word)}: expected KEY=VALUE, or KEY")
    return tuple(
        word if "=" in word else f"{word}={here[word]}" for word in given if "=" in word or word in here
    )


def lines(files: Iterable[Path], what: str) -> Iterator[str]:
    """The lines of these files that say something. ConfigError."""
    for path in files:
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"cannot read {path}: {why}") from None
        for number, line in enumerate(text.split("\n"), start=1):
            line = line.removesuffix("\r").lstrip()
            if not line or line.startswith("#"):
                continue
            key = line.partition("=")[0]
            if not key or " " in key or "\t" in key:
                raise ConfigError(
                    f"{path}, line {number}: invalid {what} {quoted(line)}: expected KEY=VALUE, or KEY"
                )
            yield line
