# SPDX-License-Identifier: Apache-2.0
"""datapathctl port …: the published ports of running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ctl.cli.command import Command, Front, Group, complete_running, format_option
from ctl.cli.output import emit, listing
from ctl.cli.words import address_text, span
from datapath.errors import printable

if TYPE_CHECKING:
    from datapath.model.ports import PortMapping

COLUMNS = {
    "Number": "NUMBER",
    "Container": "CONTAINER",
    "HostIp": "HOST IP",
    "HostPort": "HOST PORT",
    "ContainerPort": "CONTAINER PORT",
    "Protocol": "PROTOCOL",
    "Sources": "SOURCES",
}


@click.group("port", cls=Group)
def port() -> None:
    """Manage the published ports of running containers."""


@port.command("ls", cls=Command)
@click.argument("container", required=False, shell_complete=complete_running)
@format_option(field="HostPort")
@click.pass_obj
def ls(front: Front, container: str | None, format_: str) -> None:
    """List the published ports of a container, numbered; of all without one."""
    found = front.control.ports(container)
    emit(listing([mapping_row(p.container, p.number, p.mapping) for p in found], COLUMNS, format_))


def mapping_row(container: str, number: int, mapping: PortMapping) -> dict[str, str]:
    """What `port ls` knows about a mapping."""
    return {
        "Number": str(number),
        "Container": container,
        "HostIp": address_text(mapping.host_ip),
        "HostPort": span(mapping.host_port, mapping.count),
        "ContainerPort": span(mapping.container_port, mapping.count),
        "Protocol": mapping.proto,
        "Sources": mapping.rules or "all",
    }


@port.command("add", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("ports", metavar="[[IP:]PORT:]PORT[,RULES]")
@click.pass_obj
def add(front: Front, container: str, ports: str) -> None:
    """Publish a port of a running container, or a range, and print what it became.

    RULES say who may connect, as in allow=10.0.0.0/8,deny=10.6.6.0/24: the longest prefix decides; whoever
    matches none may if there is no allow.
    """
    click.echo(printable(str(front.control.port_add(container, ports))))


@port.command("rm", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("what", metavar="NUMBER|PORTS")
@click.pass_obj
def rm(front: Front, container: str, what: str) -> None:
    """Take a published port back, by its number in `port ls` or as it was published."""
    click.echo(printable(str(front.control.port_remove(container, what))))


@port.command("set", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("what", metavar="NUMBER|PORTS")
@click.argument("rules", default="")
@click.pass_obj
def set_(front: Front, container: str, what: str, rules: str) -> None:
    """Change who may connect to a published port.

    RULES are such as allow=10.0.0.0/8,deny=10.6.6.0/24: the longest prefix decides; whoever matches none may if
    there is no allow. Without RULES everybody may. Connections of who may not any more end.
    """
    click.echo(printable(str(front.control.port_set(container, what, rules))))
