# SPDX-License-Identifier: Apache-2.0
"""The classes of commands and groups, with Docker's syntax of flags, and how a command opens the library."""

from __future__ import annotations

import copy
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import click
from click.core import ParameterSource

from datapath.errors import printable

from .words import unknown_command, unknown_option, words

if TYPE_CHECKING:
    from datapath.host import Host
    from datapath.runtime.containers import Containers

F = TypeVar("F", bound=Callable[..., Any])
_JSON = "as_json"


def host(ctx: click.Context | None = None) -> Host:
    """The network engine of this host, opened at first use with the options that come before the command."""
    root = (ctx or click.get_current_context()).find_root()
    if root.obj is None:
        from datapath.config.settings import Settings
        from datapath.host import Host

        from ..docker.owner import DockerOwner

        owners = (DockerOwner(os.environ),)
        root.obj = Host.open(Settings.from_env(os.environ, **root.params), _once(warn), owners)
    return cast("Host", root.obj)


def containers(ctx: click.Context | None = None) -> Containers:
    """The containers on it."""
    from datapath.runtime.containers import Containers

    package = __package__.rpartition(".")[0]
    return Containers(host(ctx), (sys.executable, "-m", f"{package}.main", "_exited"))


def warn(line: str) -> None:
    """What the user should know although it is no error."""
    click.echo(f"WARNING: {printable(line)}", err=True)


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """What is true of several things that a command is about, as of a plugin of their network, is said once."""
    said = set[str]()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


EMPTY = "it is empty: leave it out if it is not meant."

# Parameters that may be given empty. Everywhere else an empty value is a variable that was not set, and is refused: it
# would widen what is meant (`--rootfs "$DIR"` the host's files, `ct flush --container "$NAME"` every connection).
MAY_BE_EMPTY = {
    "format_": "the default output, as Docker's",
    "argv": "words of the container's command; the library refuses an empty first one",
}


def refuse_empty(ctx: click.Context, params: Sequence[click.Parameter]) -> None:
    """BadParameter if one of these was given an empty value."""
    for param in params:
        name = param.name or ""
        value = ctx.params.get(name)
        given = value if isinstance(value, tuple) else (value,)
        if (
            "" in given
            and name not in MAY_BE_EMPTY
            and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        ):
            raise click.BadParameter(EMPTY, ctx=ctx, param=param)


class WithExamples(click.Command):
    """A command with examples at the end of its help, and what else is to be said there."""

    def examples(self, ctx: click.Context) -> str:
        """Their key."""
        return words(ctx) or ctx.command_path.partition(" ")[2]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from .examples import EXAMPLES

        name = ctx.find_root().info_name
        with formatter.section("Examples"):
            for line in EXAMPLES.get(self.examples(ctx), ()):
                formatter.write(f"{'':{formatter.current_indent}}{name} {line}\n")
        super().format_epilog(ctx, formatter)


class Command(WithExamples):
    """A command whose switches may be written `--flag=true` and `--flag=false`, as Docker's may."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, self._plain(ctx, args))
            refuse_empty(ctx, self.get_params(ctx))
            return rest
        except click.NoSuchOption as error:
            raise unknown_option(error.option_name, ctx, option_names(self, ctx)) from None
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser does not say whose mistake it was
            raise

    def _plain(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The same arguments in click's words. What follows the first argument of `run` is not ours."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        named = {name: option for option in options for name in option.opts}
        plain: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*plain, word, *rest]
            name, equals, value = word.partition("=")
            option = named.get(name) if word.startswith("-") else None
            if option is not None and equals and option.is_flag:
                plain += _switch(ctx, option, name, value)
                continue
            plain.append(word)
            if not word.startswith("-") or word == "-":
                if not ctx.allow_interspersed_args:
                    return [*plain, *rest]
            elif _takes_next(word, named) and rest:
                plain.append(rest.pop(0))
        return plain


def option_names(command: click.Command, ctx: click.Context) -> list[str]:
    """What a user may have meant by an option that the command does not have."""
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    return [name for option in options if not option.hidden for name in option.opts]


def _switch(ctx: click.Context, option: click.Option, name: str, value: str) -> list[str]:
    if value.lower() in ("true", "t", "1"):
        return [name]
    if value.lower() in ("false", "f", "0"):
        return option.secondary_opts[:1]
    raise click.BadParameter(f"{value!r} is neither true nor false.", ctx=ctx, param=option)


def _takes_next(word: str, named: dict[str, click.Option]) -> bool:
    """Whether this word ends with an option that takes the next word as its value."""
    if word.startswith("--"):
        option = named.get(word)
        return option is not None and not option.is_flag
    for position, letter in enumerate(word[1:], start=2):
        option = named.get("-" + letter)
        if option is None:
            return False
        if not option.is_flag:
            return position == len(word)
    return False


class Group(WithExamples, click.Group):
    """A group that explains itself when it is called alone, unless it does something then, and knows Docker's second
    names."""

    second_names: ClassVar = {"list": "ls", "remove": "rm"}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self.second_names.get(cmd_name, cmd_name))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not (args or ctx.resilient_parsing or self.invoke_without_command):
            click.echo(ctx.get_help())
            ctx.exit()
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise unknown_option(error.option_name, ctx, option_names(self, ctx)) from None
        refuse_empty(ctx, self.get_params(ctx))
        return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise unknown_command(args[0], ctx, self.visible(ctx))
        return super().resolve_command(ctx, args)

    def visible(self, ctx: click.Context) -> list[str]:
        """The names of its commands, without those that no user types."""
        return [name for name in self.list_commands(ctx) if not name.startswith("_")]


class LazyGroup(Group):
    """A group whose commands are imported when they are wanted. `where`: name -> ".module:attribute"."""

    def __init__(self, *args: Any, where: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.where = where

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self.where})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self.second_names.get(cmd_name, cmd_name)
        if name in self.where and name not in self.commands:
            module, _, attribute = self.where[name].partition(":")
            self.add_command(
                _named(getattr(importlib.import_module(module, __package__), attribute), name), name
            )
        return super().get_command(ctx, name)


def _named(command: click.Command, name: str) -> click.Command:
    """The command, under the name that it has in a group."""
    if command.name == name:
        return command
    renamed = copy.copy(command)
    renamed.name = name
    return renamed


# ---- what several commands share ------------------------------------------------------


def format_option(short: str | None = None, field: str = "Name", more: str = "") -> Callable[[F], F]:
    """--format, for `inspect` also -f; `field` is for its help, `more` a format of this command's own. --json is
    --format json."""
    names = [short, "--format"] if short else ["--format"]
    other = f'"{more}", ' if more else ""
    format_ = click.option(
        *names,
        "format_",
        default="",
        callback=_format,
        metavar="FORMAT",
        shell_complete=_formats(more),
        help=f'Output format: "json", {other}or a template such as "{{{{.{field}}}}}".',
    )
    as_json = click.option(
        "--json", _JSON, is_flag=True, is_eager=True, expose_value=False, callback=_note_json, hidden=True
    )
    return lambda command: format_(as_json(command))


def _formats(more: str) -> Callable[..., Any]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        known = ("json", "table", *([more] if more else ()))
        return [word for word in known if word.startswith(incomplete)]

    return complete


def _note_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def _format(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value not in ("", "json"):
        from .output import listing

        listing((), {}, value)  # a mistake in it is told before anything is done
    if not ctx.meta.get(_JSON):
        return value
    if value not in ("", "json"):
        raise click.UsageError("--json and --format exclude each other.", ctx)
    return "json"


class PathType(click.Path):
    """The path of a file or directory; an empty one would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(EMPTY, param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number above 0; the words nan and inf, which are floats too, are none."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a valid number.", param, ctx)
        return found


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only the IDs.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would be removed, and change nothing."
)
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Do not truncate values.")
