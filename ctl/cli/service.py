# SPDX-License-Identifier: Apache-2.0
"""datapathctl service …: one name and address in front of several containers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import printable

from . import completing
from .command import Command, Group, format_option, host, no_trunc_option, quiet_option
from .formatting import created_at, mapping_text
from .golang.values import Labelled
from .network import print_documents
from .output import emit, fitted, for_each, listing
from .stats import passed_row

if TYPE_CHECKING:
    from datapath.model.services import Service
    from datapath.model.state import State
    from datapath.telemetry.stats import ServiceUse

COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Network": "NETWORK",
    "Mode": "MODE",
    "VIP": "VIP",
    "Backends": "BACKENDS",
    "Ports": "PORTS",
}
BACKENDS = {
    "Container": "CONTAINER",
    "Host": "HOST",
    "Address": "ADDRESS",
    "Weight": "WEIGHT",
    "State": "STATE",
    "Opened": "OPENED",
    "Failed": "FAILED",
    "PacketsIn": "PACKETS IN",
    "BytesIn": "BYTES IN",
    "PacketsOut": "PACKETS OUT",
    "BytesOut": "BYTES OUT",
}

publish_metavar = "[[IP:]PORT:]PORT"
seconds_help = "as in 90s or 3h"


def health_options(command: Any) -> Any:
    """The options that say how backends are checked, and how long drained ones keep their connections."""
    from datapath.model.health import HealthOptions

    words = (
        ("cmd", "CMD", "Check backends: a command in the container, for /bin/sh, which ends with 0."),
        ("tcp", "PORT", "Check backends: a connection to this port, which is accepted."),
        ("http", "[:PORT]/PATH", "Check backends: a GET, whose answer has a status below 400."),
        ("interval", "TIME", "Time between checks (default: 30s)."),
        ("timeout", "TIME", "Time that a check may take (default: 30s)."),
        ("retries", "N", "Failures in a row that make a backend unhealthy (default: 3)."),
        (
            "start-period",
            "TIME",
            "Time after a container's start in which failures do not count (default: 0s).",
        ),
    )

    @functools.wraps(command)
    def gathered(*given: Any, **asked: Any) -> Any:
        found = {name: asked.pop(f"health_{name}") for name in HealthOptions._fields if name != "none"}
        asked["health"] = HealthOptions(**found, none=asked.pop("no_healthcheck"))
        return command(*given, **asked)

    for option in (
        click.option(
            "--stop-grace-period", metavar="TIME", help="Time that connections of a drained container get."
        ),
        click.option("--no-healthcheck", is_flag=True, help="Do not check backends."),
        *(
            click.option(f"--health-{word}", metavar=metavar, help=help_)
            for word, metavar, help_ in words[::-1]
        ),
    ):
        gathered = option(gathered)
    return gathered


@click.group("service", cls=Group)
def service() -> None:
    """Manage services: one name in front of several containers.

    A container joins by `run --service`, or by its labels, and leaves when it ends. Nothing starts containers for a
    service.
    """


@service.command("create", cls=Command)
@click.argument("name")
@click.option(
    "--network",
    default="",
    metavar="NET",
    shell_complete=completing.own_network,
    help="Network of the service and of its containers.",
)
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar=publish_metavar,
    help="Publish a port or a range; an ACL may follow, as in 8081:80,allow=10.0.0.0/8.",
)
@click.option(
    "--endpoint-mode",
    default="vip",
    metavar="MODE",
    shell_complete=completing.words("vip", "dnsrr"),
    help="What the name resolves to: vip, an address of its own, or dnsrr, the containers' (default: vip).",
)
@click.option(
    "--algorithm",
    default="maglev",
    metavar="NAME",
    shell_complete=completing.words("maglev", "random", "least-conn"),
    help="How a container is chosen: maglev, random or least-conn (default: maglev).",
)
@click.option(
    "--affinity",
    default="",
    metavar="SECONDS",
    help=f"Time in which a client that comes again gets the same container, {seconds_help}.",
)
@click.option(
    "--dsr",
    is_flag=True,
    help="Answer clients outside from the container's host, not by the one that they have asked.",
)
@click.option(
    "--vip",
    "vips",
    multiple=True,
    metavar="IP",
    help="Address of the service (default: the lowest that is free).",
)
@click.option(
    "--selector",
    multiple=True,
    metavar="KEY=VALUE",
    help="Containers with this label are of the service; several: with all of them.",
)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the service.")
@health_options
def create(**asked: Any) -> None:
    """Create a service and print its ID."""
    from datapath.model.services import ServiceRequest

    click.echo(host().services.create(ServiceRequest(**asked)).id)


@service.command("ls", cls=Command)
@quiet_option
@no_trunc_option
@format_option()
def ls(quiet: bool, no_trunc: bool, format_: str) -> None:
    """List services."""
    state = host().shown()
    found = sorted(state.services.values(), key=lambda one: one.name)
    rows: Any = [service_row(one, state, no_trunc) for one in found]
    if not (format_ or quiet or no_trunc):
        rows = fitted(rows, COLUMNS, "Ports")
    emit(listing(rows, COLUMNS, format_, quiet=quiet))


def service_row(service: Service, state: State, no_trunc: bool) -> dict[str, Any]:
    """What `service ls` knows about a service."""
    from datapath.plan.backends import backends

    found = backends(service, state)
    up = sum(one.up for one in found)
    row = {
        "ID": service.id if no_trunc else service.short_id,
        "Name": service.name,
        "Network": state.networks[service.network_id].name,
        "Mode": str(service.mode),
        "Algorithm": str(service.algorithm),
        "VIP": ",".join(map(str, service.vips)),
        "Backends": f"{up}/{len(found)}",
        "Ports": ", ".join(map(mapping_text, service.ports)),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(service.labels.items())),
        "CreatedAt": created_at(service.created),
    }
    return Labelled(row, lambda name: service.labels.get(name, ""))


@service.command("ps", cls=Command)
@click.argument("name", metavar="SERVICE", shell_complete=completing.service)
@format_option(field="Container")
def ps(name: str, format_: str) -> None:
    """List the containers of a service.

    OPENED are the connections that were opened to a container since it is one of the service's, FAILED those that could
    not be. Only a container that is up gets new ones: not one that is draining, starting, that no check has found to
    work yet, or unhealthy. IN is what clients have sent to it since then, OUT what it has answered, open connections
    included; bytes are those from the IP header on. On a network of several hosts these are what this host has opened.
    """
    found = host().services.backends(name)
    columns = (
        BACKENDS if any(one.host for one in found) else {k: v for k, v in BACKENDS.items() if k != "Host"}
    )
    emit(listing([backend_row(one) for one in found], columns, format_))


def backend_row(one: ServiceUse) -> dict[str, Any]:
    """What `service ps` knows about a container of a service."""
    return {
        "Service": one.service,
        "Container": one.backend,
        "Host": one.host,
        "Address": ",".join(one.addresses),
        "Weight": one.weight,
        "State": one.state,
        "Opened": one.opened,
        "Failed": one.failed,
        **passed_row(one),
    }


@service.command("inspect", cls=Command)
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True, shell_complete=completing.service)
@format_option("-f", field="Spec.Name")
def inspect(names: tuple[str, ...], format_: str) -> None:
    """Show detailed information about services."""
    print_documents(names, host().services.inspect, format_)


@service.command("update", cls=Command)
@click.argument("name", metavar="SERVICE", shell_complete=completing.service)
@click.option("--publish-add", multiple=True, metavar=publish_metavar, help="Publish a port or a range.")
@click.option(
    "--publish-rm", multiple=True, metavar="[PORT:]PORT", help="Take a published port or range back."
)
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Set a label of the service.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label of the service.")
@click.option(
    "--algorithm",
    default="",
    metavar="NAME",
    shell_complete=completing.words("maglev", "random", "least-conn"),
    help="How a container is chosen: maglev, random or least-conn.",
)
@click.option(
    "--affinity",
    default="",
    metavar="SECONDS",
    help="Time in which a client that comes again gets the same container; 0: none.",
)
@click.option(
    "--dsr/--no-dsr",
    default=None,
    help="Answer clients outside from the container's host, or by the one that they have asked.",
)
@health_options
def update(name: str, **asked: Any) -> None:
    """Change a service and print its name."""
    from datapath.model.services import ServiceChange

    click.echo(printable(host().services.update(name, ServiceChange(**asked)).name))


@service.command("drain", cls=Command)
@click.argument("name", metavar="SERVICE", shell_complete=completing.service)
@click.argument(
    "containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=completing.running
)
def drain(name: str, containers: tuple[str, ...]) -> None:
    """Give containers no new connections.

    Connections that they have go on. It lasts until the container ends, or `undrain`.
    """
    for_each(containers, lambda one: host().services.drain(name, [one]))


@service.command("undrain", cls=Command)
@click.argument("name", metavar="SERVICE", shell_complete=completing.service)
@click.argument(
    "containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=completing.running
)
def undrain(name: str, containers: tuple[str, ...]) -> None:
    """Give drained containers new connections again."""
    for_each(containers, lambda one: host().services.undrain(name, [one]))


@service.command("rm", cls=Command)
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True, shell_complete=completing.service)
def rm(names: tuple[str, ...]) -> None:
    """Remove services.

    Their containers go on; connections through the service's address end.
    """
    for_each(names, lambda name: host().services.remove(name))
