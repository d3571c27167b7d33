# SPDX-License-Identifier: Apache-2.0
"""datapathctl cluster …: what several hosts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import StateError
from datapath.model.rows import short

from . import completing
from .command import Command, Group, format_option, host, warn
from .output import emit, listing

if TYPE_CHECKING:
    from datapath.engine.members import HostRow
    from datapath.telemetry.cluster import Member

COLUMNS = {
    "Server": "SERVER",
    "Status": "STATUS",
    "Leader": "LEADER",
    "Version": "VERSION",
    "Size": "SIZE",
    "Time": "TIME",
}
HOST_COLUMNS = {
    "Name": "NAME",
    "ID": "ID",
    "Address": "ADDRESS",
    "State": "STATE",
    "Blocks": "BLOCKS",
    "Endpoints": "ENDPOINTS",
}


@click.group("cluster", cls=Group)
def cluster() -> None:
    """Show the hosts of a cluster and the store that they share."""


@cluster.command("status", cls=Command)
@format_option(field="Server")
def status(format_: str) -> None:
    """Ask each server of the store whether it is well.

    The servers are those of "cluster-store" in daemon.json. Exit code 14 if none answers.
    """
    from datapath.telemetry.cluster import status as ask

    found = ask(host().settings)
    rows = [member_row(one, bool(format_)) for one in found.members]
    emit(listing(rows, COLUMNS, format_))
    for alarm in found.alarms:
        warn(f"the store complains: {alarm}")
    if not found.cluster:
        raise StateError("no server of the cluster store answers")


def member_row(one: Member, exact: bool) -> dict[str, Any]:
    """What `cluster status` knows about a server; with `exact` numbers, of bytes and seconds."""
    row: dict[str, Any] = {
        "Server": one.name,
        "Status": one.error or "ok",
        "Leader": one.leader if exact else "yes" if one.leader else "",
        "Version": one.version,
        "Size": one.size,
        "Time": round(one.seconds, 6),
    }
    if not exact:
        row["Size"] = "" if one.error else f"{one.size / 1e6:.1f} MB"
        row["Time"] = "" if one.error else f"{one.seconds * 1e3:.1f} ms"
    return row


@cluster.command("hosts", cls=Command)
@format_option(field="Name")
def hosts(format_: str) -> None:
    """List the hosts of the cluster.

    A host is alive if its agent says so, and away if no agent has for as long as discovery.ttl of cluster-store-opts
    says; packets do not depend on it. One that is draining begins nothing on global networks. If the store does not
    answer, these are the hosts that this one knows.
    """
    from datapath.engine import members

    engine = host()
    found = members.hosts(engine.settings, engine.snapshot())
    emit(listing([host_row(one, bool(format_)) for one in found.rows], HOST_COLUMNS, format_))
    if found.why:
        warn(f"{found.why}: {_known(found.age)}")


def _known(age: float | None) -> str:
    if age is None:
        return "this is what this host has written down"
    return f"this is what this host knew {age:.0f} s ago"


def host_row(one: HostRow, exact: bool) -> dict[str, Any]:
    """What `cluster hosts` knows about a host; with `exact` more of it."""
    row: dict[str, Any] = {
        "Name": one.peer.name,
        "ID": one.peer.id if exact else short(one.peer.id),
        "Address": str(one.peer.address),
        "State": one.state,
        "Blocks": one.blocks,
        "Endpoints": one.endpoints,
    }
    if exact:
        more = {"Draining": one.draining, "Self": one.own, "Number": one.peer.number, "MTU": one.peer.mtu}
        return row | more | {"MacAddress": one.peer.mac, "WireGuardKey": one.peer.wireguard_key}
    row["Name"] += " *" if one.own else ""
    row["State"] += ", draining" if one.draining else ""
    return row


@cluster.command("drain-host", cls=Command)
@click.argument("name", metavar="HOST", shell_complete=completing.peer)
@click.option("--off", is_flag=True, help="Let it begin new things again.")
def drain_host(name: str, off: bool) -> None:
    """Let a host begin nothing more on global networks.

    What runs there goes on; services give it no new connections. HOST is a name, an id, or the beginning of one.
    """
    from datapath.engine import members

    click.echo(members.drain(host().settings, name, not off).name)


@cluster.command("rotate-key", cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also if there are hosts that will not hear of it at once.")
def rotate_key(force: bool) -> None:
    """Give this host another key for encrypted networks.

    Packets pass meanwhile. Prints the public key, which the other hosts are told by the store.
    """
    from datapath.engine import encryption

    with host().changing(create=False) as tx:
        click.echo(encryption.rotate(tx, force))


@cluster.command("forget", cls=Command)
@click.argument("name", metavar="HOST", shell_complete=completing.peer)
@click.option("-f", "--force", is_flag=True, help="Also if the host is alive, with all that it runs.")
def forget(name: str, force: bool) -> None:
    """Take a host that is gone out of the cluster.

    Its addresses may be given again, and its name and number. One that comes back joins anew, and keeps what has not
    been given to others. HOST is a name, an id, or the beginning of one.
    """
    from datapath.engine import members

    engine = host()
    found = members.forget(engine.settings, name, engine.snapshot().installation_id, force)
    click.echo(found.peer.name if found.peer else name)
