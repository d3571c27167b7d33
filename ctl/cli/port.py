# SPDX-License-Identifier: Apache-2.0
"""datapathctl port …: the published ports of running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datapath.errors import printable

from .command import Command, Group, complete_running, containers, format_option
from .formatting import address_text, port_range
from .output import emit, listing

if TYPE_CHECKING:
    from datapath.model.ports import PortMapping

COLUMNS = {
    "Number": "NUMBER",
    "Container": "CONTAINER",
    "HostIp": "HOST IP",
    "HostPort": "HOST PORT",
    "ContainerPort": "CONTAINER PORT",
    "Protocol": "PROTOCOL",
    "ACL": "ACL",
}


@click.group("port", cls=Group)
def port() -> None:
    """Manage the published ports of running containers."""


@port.command("ls", cls=Command)
@click.argument("container", required=False, shell_complete=complete_running)
@format_option(field="HostPort")
def ls(container: str | None, format_: str) -> None:
    """List published ports.

    Those of CONTAINER, or of all running containers; each container numbers its own.
    """
    found = containers().ports(container)
    emit(listing([mapping_row(p.container, p.number, p.mapping) for p in found], COLUMNS, format_))


def mapping_row(container: str, number: int, mapping: PortMapping) -> dict[str, str]:
    """What `port ls` knows about a mapping."""
    return {
        "Number": str(number),
        "Container": container,
        "HostIp": address_text(mapping.host_ip),
        "HostPort": port_range(mapping.host_port, mapping.count),
        "ContainerPort": port_range(mapping.container_port, mapping.count),
        "Protocol": mapping.proto,
        "ACL": mapping.acl_text or "all",
    }


@port.command("add", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("ports", metavar="[[IP:]PORT:]PORT[,ACL]")
def add(container: str, ports: str) -> None:
    """Publish a port or a range.

    Prints the port that was published. The ACL says which sources may connect, as in
    allow=10.0.0.0/8,deny=10.6.6.0/24: the longest matching prefix decides. A source that matches no prefix may
    connect, unless the ACL has an allow= entry.
    """
    click.echo(printable(str(containers().port_add(container, ports))))


@port.command("rm", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("what", metavar="NUMBER|PORTS")
def rm(container: str, what: str) -> None:
    """Unpublish a port.

    The port is given by its number in `port ls`, or as it was published.
    """
    click.echo(printable(str(containers().port_remove(container, what))))


@port.command("set", cls=Command)
@click.argument("container", shell_complete=complete_running)
@click.argument("what", metavar="NUMBER|PORTS")
@click.argument("acl", default="")
def set_(container: str, what: str, acl: str) -> None:
    """Change the ACL of a published port.

    The ACL says which sources may connect, as in allow=10.0.0.0/8,deny=10.6.6.0/24: the longest matching prefix
    decides. A source that matches no prefix may connect, unless the ACL has an allow= entry. Without an ACL every
    source may connect. Connections from sources that are no longer allowed end.
    """
    click.echo(printable(str(containers().port_set(container, what, acl))))
