# SPDX-License-Identifier: Apache-2.0
"""datapathctl port …: the published ports of running containers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from datapath.errors import ConfigError, DatapathError, NotFoundError, meant, printable, quoted

from . import completing
from .command import Command, Group, containers, format_option, no_trunc_option
from .errors import raise_all
from .formatting import address_text, first_port
from .output import emit, fitted, listing
from .words import COMMANDS

if TYPE_CHECKING:
    from datapath.model.ports import PortMapping
    from datapath.runtime.containers import PublishedPort


COLUMNS = {
    "Number": "NUMBER",
    "Container": "CONTAINER",
    "HostIp": "HOST IP",
    "HostPort": "HOST PORT",
    "ContainerPort": "CONTAINER PORT",
    "Protocol": "PROTOCOL",
    "ACL": "ACL",
}
INACTIVE = "inactive (on no network)"


class PortGroup(Group):
    """`port CONTAINER [PORT]` is Docker's own form: a word that is no command is a container."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if self.get_command(ctx, word) or ctx.resilient_parsing or f"port {word}" in COMMANDS:
            return super().resolve_command(ctx, args)
        if word and not word[0].isalnum():
            raise _no_such(word, None, ctx)
        return "", show, args

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            *super().shell_complete(ctx, incomplete),
            *completing.running(ctx, show.params[0], incomplete),
        ]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "| CONTAINER [PORT[/PROTOCOL]]"]


@click.group("port", cls=PortGroup)
def port() -> None:
    """Manage the published ports of running containers.

    With a container's name instead of a command, print where its ports are published, as Docker does.
    """


def _no_such(word: str, hint: str | None, ctx: click.Context | None) -> click.UsageError:
    said = f" Did you mean {hint!r}?" if hint else ""
    return click.UsageError(f"No such command or container {word!r}.{said}", ctx)


class _Unnamed(click.Context):
    """That of a command without a name: its path is its group's."""

    @property
    def command_path(self) -> str:
        return super().command_path.rstrip()


class Shown(Command):
    """`port CONTAINER`."""

    context_class = _Unnamed

    def examples(self, ctx: click.Context) -> str:
        return "port show"


@click.command("", cls=Shown)
@click.argument("container")
@click.argument("wanted", metavar="[PORT[/PROTOCOL]]", default="")
@click.pass_context
def show(ctx: click.Context, /, container: str, wanted: str) -> None:
    """Print where the ports of a container are published."""
    from datapath.model.parsing import parse_expose

    try:
        asked = parse_expose(wanted) if wanted else ()
    except ConfigError:
        raise ConfigError(f"invalid port {quoted(wanted)}: expected PORT[/tcp or /udp]") from None
    try:
        found = containers().ports(container)
    except NotFoundError:
        raise _no_such(container, meant(container, port.list_commands(ctx)), ctx.parent) from None
    lines: dict[tuple[int, str], list[str]] = {}
    for one in filter(lambda one: one.active, found):
        for address, host_port, inside, proto in one.mapping.expand():
            text = address_text(address)
            shown = f"[{text}]:{host_port}" if ":" in text else f"{text}:{host_port}"
            lines.setdefault((inside, proto), []).append(shown)
    for inside, proto in asked:
        if (inside, proto) not in lines:
            raise NotFoundError(f"No public port '{inside}/{proto}' published for {container}")
    for key in asked or lines:
        for line in lines[key]:
            click.echo(line if asked else f"{key[0]}/{key[1]} -> {line}")


@port.command("ls", cls=Command)
@click.argument("container", required=False, shell_complete=completing.running)
@no_trunc_option
@format_option(field="HostPort")
def ls(container: str | None, no_trunc: bool, format_: str) -> None:
    """List published ports.

    Those of CONTAINER, or of all running containers; each container numbers its own. HOST IP is "all" for a port that
    is published at all addresses of both families. A port that leads nowhere, as its container is on no network that
    could carry it, is shown as inactive.
    """
    rows = port_rows(containers().ports(container))
    columns = COLUMNS if all(row["State"] == "active" for row in rows) else {**COLUMNS, "State": "STATE"}
    if not (format_ or no_trunc):
        rows = [dict(row) for row in fitted(rows, columns, "ACL")]
    emit(listing(rows, columns, format_))


def port_rows(found: Iterable[PublishedPort]) -> list[dict[str, Any]]:
    """What `port ls` knows about these: one that is published for both families is one row."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for one in found:
        row = mapping_row(one.container, one.number, one.mapping, one.active)
        known = rows.setdefault((one.container, one.number), row)
        if known["HostIp"] != row["HostIp"]:
            known["HostIp"] = "all"
    return list(rows.values())


def mapping_row(container: str, number: int, mapping: PortMapping, active: bool = True) -> dict[str, Any]:
    """What `port ls` knows about a mapping."""
    return {
        "Number": number,
        "Container": container,
        "HostIp": address_text(mapping.host_ip),
        "HostPort": first_port(mapping.host_port, mapping.count),
        "ContainerPort": first_port(mapping.container_port, mapping.count),
        "Count": mapping.count,
        "Protocol": mapping.proto,
        "ACL": mapping.acl_text or "all",
        "State": "active" if active else INACTIVE,
    }


@port.command("add", cls=Command)
@click.argument("container", shell_complete=completing.running)
@click.argument("ports", metavar="[[IP:]PORT:]PORT[,ACL]...", nargs=-1, required=True)
def add(container: str, ports: tuple[str, ...]) -> None:
    """Publish ports or ranges.

    Prints each that was published. The ACL says which sources may connect, as in
    allow=10.0.0.0/8,deny=10.6.6.0/24: the longest matching prefix decides. A source that matches no prefix may
    connect, unless the ACL has an allow= entry.
    """
    _each(ports, lambda spec: containers().port_add(container, spec))


@port.command("rm", cls=Command)
@click.argument("container", shell_complete=completing.running)
@click.argument("what", metavar="NUMBER|PORTS...", nargs=-1, required=True, shell_complete=completing.port)
def rm(container: str, what: tuple[str, ...]) -> None:
    """Unpublish ports.

    Each is given by its number in `port ls`, or as it was published. Prints what was taken back.
    """
    numbers = sorted(
        (word for word in what if word.isdigit()), key=int, reverse=True
    )  # each moves those behind it
    others = [word for word in what if not word.isdigit()]
    _each((*numbers, *others), lambda word: containers().port_remove(container, word))


@port.command("set", cls=Command)
@click.argument("container", shell_complete=completing.running)
@click.argument("what", metavar="NUMBER|PORTS", shell_complete=completing.port)
@click.argument("acl", default="")
def set_(container: str, what: str, acl: str) -> None:
    """Change the ACL of a published port.

    The ACL says which sources may connect, as in allow=10.0.0.0/8,deny=10.6.6.0/24: the longest matching prefix
    decides. A source that matches no prefix may connect, unless the ACL has an allow= entry. Without an ACL every
    source may connect. Connections from sources that are no longer allowed end.
    """
    click.echo(printable(str(containers().port_set(container, what, acl))))


def _each(words: Iterable[str], act: Callable[[str], PortMapping]) -> None:
    """Do it for each and print what it was done for; all failures are raised at the end."""
    errors: list[Exception] = []
    for word in words:
        try:
            click.echo(printable(str(act(word))))
        except (DatapathError, ExceptionGroup) as error:
            errors.append(error)
    raise_all(errors)
