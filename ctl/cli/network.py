# SPDX-License-Identifier: Apache-2.0
"""datapathctl network …"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import DatapathError, NotFoundError, printable

from . import completing
from .command import (
    Command,
    Group,
    containers,
    dry_run_option,
    format_option,
    host,
    no_trunc_option,
    quiet_option,
)
from .errors import raise_all
from .filters import Filters, has_label
from .formatting import created_at
from .golang.values import Labelled
from .output import documents, emit, for_each, listing, with_owner

if TYPE_CHECKING:
    from datapath.model.networks import Network

PRIORITY = click.IntRange(-999_999_999, 999_999_999)
PRIORITY.name = "integer"

COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE"}


@click.group("network", cls=Group)
def network() -> None:
    """Manage networks."""


@network.command("create", cls=Command)
@click.argument("name", metavar="NETWORK")
@click.option(
    "-d",
    "--driver",
    default="bridge",
    metavar="DRIVER",
    shell_complete=completing.driver,
    help="Driver of the network (default: bridge).",
)
@click.option("--subnet", multiple=True, metavar="CIDR", help="Subnet in CIDR notation, as in 10.0.0.0/16.")
@click.option("--gateway", multiple=True, metavar="IP", help="Gateway address of the subnet.")
@click.option(
    "--ip-range", multiple=True, metavar="CIDR", help="Allocate container addresses from this range."
)
@click.option(
    "--aux-address", multiple=True, metavar="NAME=IP", help="Address that is given to no container."
)
@click.option(
    "-o",
    "--opt",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.driver_option,
    help="Option of the driver.",
)
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the network.")
@click.option("--internal", is_flag=True, help="Connect only the members and the host.")
@click.option("--ipv4/--no-ipv4", default=True, help="Assign IPv4 addresses (default: yes).")
@click.option("--ipv6", is_flag=True, help="Assign IPv6 addresses.")
@click.option("--attachable", is_flag=True, help="Allow containers to be attached manually.")
@click.option("--scope", default="", metavar="SCOPE", help="Scope of the network (default: the driver's).")
@click.option(
    "--ipam-driver",
    default="default",
    metavar="DRIVER",
    shell_complete=completing.ipam_driver,
    help="IPAM driver (default: default).",
)
@click.option("--ipam-opt", multiple=True, metavar="KEY=VALUE", help="Option of the IPAM driver.")
def create(
    *,
    subnet: tuple[str, ...],
    gateway: tuple[str, ...],
    ip_range: tuple[str, ...],
    aux_address: tuple[str, ...],
    opt: tuple[str, ...],
    label: tuple[str, ...],
    ipam_opt: tuple[str, ...],
    **plain: Any,
) -> None:
    """Create a network and print its ID."""
    from datapath.model.networks import NetworkRequest

    request = NetworkRequest(
        subnets=subnet,
        gateways=gateway,
        ip_ranges=ip_range,
        aux_addresses=aux_address,
        options=opt,
        labels=label,
        ipam_options=ipam_opt,
        **plain,
    )
    click.echo(host().networks.create(request).id)


@network.command("ls", cls=Command)
@quiet_option
@no_trunc_option
@format_option()
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.keys(
        *("driver", "id", "label", "name"),
        scope=("local", "global"),
        type=("builtin", "custom"),
        dangling=("true", "false"),
    ),
    help='List only what matches, such as "driver=bridge".',
)
def ls(quiet: bool, no_trunc: bool, format_: str, filters: tuple[str, ...]) -> None:
    """List networks."""
    known = {"driver", "id", "name", "label", "scope", "type", "dangling"}
    wanted = Filters(filters, known, patterns={"id", "name"})
    rows = [network_row(found, no_trunc) for found in host().networks.everywhere() if _wanted(wanted, found)]
    emit(listing(rows, with_owner(COLUMNS, rows), format_, quiet=quiet))


def network_row(network: Network, no_trunc: bool) -> dict[str, str]:
    """What `network ls` knows about a network, under Docker's keys."""
    row = {
        "CreatedAt": created_at(network.created),
        "Driver": network.driver,
        "ID": network.id if no_trunc else network.short_id,
        "IPv4": str(network.ipv4).lower(),
        "IPv6": str(network.ipv6).lower(),
        "Internal": str(network.internal).lower(),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(network.labels.items())),
        "Name": network.name,
        "Owner": network.owner,
        "Scope": network.scope,
    }
    return Labelled(row, lambda name: network.labels.get(name, ""))


def _wanted(filters: Filters, network: Network) -> bool:
    return (
        filters.matching("id", network.id)
        and filters.matching("name", network.name)
        and filters.equal("driver", network.driver)
        and filters.equal("scope", network.scope)
        and filters.equal("type", "builtin" if network.predefined else "custom", {"builtin", "custom"})
        and filters.every("label", lambda label: has_label(network.labels, label))
        and filters.truth("dangling", lambda: not network.predefined and not _members(network.id))
    )


def _members(name: str) -> Mapping[str, Any]:
    members: Mapping[str, Any] = host().networks.inspect(name)["Containers"]
    return members


@network.command("inspect", cls=Command)
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=completing.network)
@format_option("-f")
@click.option("-v", "--verbose", is_flag=True, help="Show the network's services, too.")
def inspect(names: tuple[str, ...], format_: str, verbose: bool) -> None:
    """Show detailed information about networks."""
    look = host().networks.inspect
    print_documents(names, (lambda name: look(name, verbose=True)) if verbose else look, format_)


def print_documents(names: tuple[str, ...], look: Any, format_: str) -> None:
    """Print those that are there, then raise what was said about the others."""
    found, errors = [], []
    for name in names:
        try:
            found.append(look(name))
        except NotFoundError as error:
            errors.append(error)
    if found or format_ in ("", "json"):
        emit(documents(found, format_))
    raise_all(errors)


@network.command("rm", cls=Command)
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=completing.own_network)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Do not fail if a network does not exist, belongs to another owner, or its plugin does not answer.",
)
def rm(names: tuple[str, ...], force: bool) -> None:
    """Remove networks."""
    for_each(names, lambda name: host().networks.remove(name, force=force), missing_ok=force)


@network.command("prune", cls=Command)
@click.option("-f", "--force", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.keys("until", "label", "label!"),
    help='Remove only what matches, such as "until=24h".',
)
@dry_run_option
def prune(force: bool, filters: tuple[str, ...], dry_run: bool) -> None:
    """Remove all networks that no container uses."""
    if dry_run:
        emit("\n".join(printable(found.name) for found in host().networks.prunable(filters)))
        return
    if not force:
        asked = bool(sys.stdin) and sys.stdin.isatty()
        if asked:
            click.echo("WARNING! This will remove all custom networks not used by at least one container.")
            click.echo("Are you sure you want to continue? [y/N] ", nl=False)
        answer = sys.stdin.readline() if sys.stdin else ""
        if not answer and not asked:
            raise DatapathError("network prune: nobody can be asked here: -f does not ask")
        if answer.strip().lower() not in ("y", "yes"):
            if asked and not answer:
                click.echo()  # Ctrl-D leaves the cursor behind the question
            raise DatapathError("network prune has been cancelled (-f does not ask)")
    removed = host().networks.prune(filters)
    if removed:
        click.echo("Deleted Networks:")
        emit("\n".join(gone.name for gone in removed))


@network.command("connect", cls=Command)
@click.argument("network", shell_complete=completing.network)
@click.argument("container", shell_complete=completing.container)
@click.option("--ip", default="", metavar="IP", help="IPv4 address of the container.")
@click.option("--ip6", default="", metavar="IP", help="IPv6 address of the container.")
@click.option("--mac-address", "mac", default="", metavar="MAC", help="MAC address of the container.")
@click.option(
    "--link-local-ip",
    "link_local_ips",
    multiple=True,
    metavar="IP",
    help="Additional link-local address of the container (IPv4 or IPv6).",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Additional name of the container on this network.",
)
@click.option("--link", "links", multiple=True, metavar="NAME[:ALIAS]", help="Link to another container.")
@click.option(
    "--gw-priority",
    type=PRIORITY,
    default=0,
    metavar="N",
    help="The network with the highest priority has the default route.",
)
@click.option(
    "--driver-opt", "driver_options", multiple=True, metavar="KEY=VALUE", help="Option of the driver."
)
def connect(container: str, **asked: Any) -> None:
    """Connect a container to a network."""
    from datapath.model.endpoints import EndpointRequest

    containers().connect(container, EndpointRequest(**asked))


@network.command("disconnect", cls=Command)
@click.argument("network", shell_complete=completing.network)
@click.argument("container", shell_complete=completing.container)
@click.option("-f", "--force", is_flag=True, help="Also if the container has stopped or is half removed.")
def disconnect(network: str, container: str, force: bool) -> None:
    """Disconnect a container from a network."""
    containers().disconnect(network, container, force=force)
