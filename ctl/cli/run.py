# SPDX-License-Identifier: Apache-2.0
"""datapathctl run and exec: programs in containers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError, DatapathError, quoted

from . import completing
from .command import Command, PathType, containers
from .errors import StartError, leaves
from .pairs import environment, environment_options, lines

if TYPE_CHECKING:
    from datapath.model.endpoints import EndpointRequest


# Docker's exit code for what goes wrong before the process runs; 126 and 127 are the process's own.
NOT_STARTED = 125


@contextmanager
def starting() -> Iterator[None]:
    """Gives the library's errors Docker's exit codes: 127 not found, 126 not executable, else 125."""
    try:
        yield
    except (DatapathError, ExceptionGroup) as error:
        errors = list(leaves(error))
        codes = [inner.exit_code for inner in errors if isinstance(inner, DatapathError)]
        code = next((code for code in codes if code in (126, 127)), NOT_STARTED)
        raise StartError(errors, code) from error


class StartCommand(Command):
    """`run` and `exec`: the first argument that is no option ends the options; mistakes end with 125."""

    usage_exit_code = NOT_STARTED
    allow_interspersed_args = False


user_option = click.option(
    "-u",
    "--user",
    default="",
    metavar="USER[:GROUP]",
    help="User of the program, by name or number, as the container's /etc/passwd has it.",
)
workdir_option = click.option(
    "-w", "--workdir", default="", metavar="DIR", help="Working directory of the program (default: /)."
)


# ---- run ------------------------------------------------------------------------------


@click.command("run", cls=StartCommand)
@click.argument("argv", metavar="PROGRAM [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the ID.")
@click.option(
    "--log-opt",
    "log_opts",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the log: max-size, as in 10m, and max-file, the number of files that are kept then.",
)
@click.option("--rm", "auto_remove", is_flag=True, help="Remove the container when it exits.")
@click.option("--name", default="", metavar="NAME", help="Name of the container.")
@click.option(
    "--network",
    "--net",
    "networks",
    multiple=True,
    metavar="NET",
    shell_complete=completing.joined,
    help='Network to join, "host", "none" or "container:NAME"; with options as in name=NET,ip=IP,alias=NAME.',
)
@click.option("--ip", default="", metavar="IP", help="IPv4 address on a user-defined network.")
@click.option("--ip6", default="", metavar="IP", help="IPv6 address on a user-defined network.")
@click.option("--mac-address", default="", metavar="MAC", help="MAC address of the container.")
@click.option(
    "--link-local-ip", multiple=True, metavar="IP", help="Additional link-local address (IPv4 or IPv6)."
)
@click.option(
    "--network-alias",
    "--net-alias",
    multiple=True,
    metavar="NAME",
    help="Additional name of the container on the network.",
)
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar="[[IP:]PORT:]PORT",
    help="Publish a port or a range; an ACL may follow, as in 8081:80,allow=10.0.0.0/8.",
)
@click.option(
    "-P", "--publish-all", is_flag=True, help="Publish every exposed port at a free port of the host."
)
@click.option("--expose", multiple=True, metavar="PORT", help="Expose a port or a range.")
@click.option("--link", "links", multiple=True, metavar="NAME[:ALIAS]", help="Link to another container.")
@click.option(
    "-h", "--hostname", default="", metavar="NAME", help="Host name of the container (default: its short ID)."
)
@click.option("--domainname", default="", metavar="NAME", help="Domain name of the container.")
@click.option("--add-host", multiple=True, metavar="HOST:IP", help="Add an entry to /etc/hosts.")
@click.option("--dns", multiple=True, metavar="IP", help="Address of a DNS server.")
@click.option("--dns-search", multiple=True, metavar="DOMAIN", help="DNS search domain.")
@click.option("--dns-option", "--dns-opt", multiple=True, metavar="OPTION", help="DNS option.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME[,weight=N]",
    shell_complete=completing.service,
    help="Service that the container is of; the weight is its share of connections (default: 1).",
)
@environment_options
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the container.")
@click.option(
    "--label-file",
    "label_files",
    multiple=True,
    type=PathType(path_type=Path),
    metavar="FILE",
    help="Labels from this file, one a line.",
)
@user_option
@workdir_option
@click.option(
    "--sysctl",
    "sysctls",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a kernel parameter of the container's network namespace, as in net.core.somaxconn=1024.",
)
@click.option(
    "--rootfs",
    metavar="DIR",
    type=PathType(file_okay=False),
    help="Directory that becomes the root of the container.",
)
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal.")
@click.option(
    "--stop-signal",
    default="",
    metavar="SIGNAL",
    shell_complete=completing.signal,
    help="Signal that `stop` sends (default: SIGTERM).",
)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    networks: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    labels: tuple[str, ...],
    label_files: tuple[Path, ...],
    **plain: Any,
) -> None:
    """Run a program of this host in a new container.

    The container has a network stack, mounts and a host name of its own. There are no images: its files are the
    host's, or those of --rootfs.
    """
    from datapath.model.containers import RunRequest

    plain["rootfs"] = plain["rootfs"] or ""

    first = {
        "ip": plain.pop("ip"),
        "ip6": plain.pop("ip6"),
        "mac": plain.pop("mac_address"),
        "aliases": plain.pop("network_alias"),
        "link_local_ips": plain.pop("link_local_ip"),
    }
    with starting():
        check_terminal(tty=plain["tty"] and not plain["detach"], interactive=plain["interactive"])
        request = RunRequest(
            networks=endpoints(networks, first),
            env=environment(env, os.environ, env_files),
            labels=(*lines(label_files, "label"), *labels),
            **plain,
        )
        running = containers().run(request)
        if request.detach:
            click.echo(running.container.id)
            return
    ctx.exit(running.wait())


def check_terminal(*, tty: bool, interactive: bool) -> None:
    """ConfigError when a terminal is to be handed on, and there is none."""
    if tty and interactive and not os.isatty(0):
        raise ConfigError("the input device is not a TTY: leave out -t")


def endpoints(networks: tuple[str, ...], first: Mapping[str, Any]) -> tuple[EndpointRequest, ...]:
    """The endpoints asked for by --network; the options of the old form belong to the first one."""
    from datapath.model.endpoints import EndpointRequest

    given = {name: value for name, value in first.items() if value}
    if not networks and not given:
        return ()
    asked = [EndpointRequest.parse(text) for text in networks] or [EndpointRequest("bridge")]
    flags = {"ip": "--ip", "ip6": "--ip6", "mac": "--mac-address", "aliases": "--network-alias"}
    flags["link_local_ips"] = "--link-local-ip"
    for name in given:
        if getattr(asked[0], name):
            raise ConfigError(
                f"conflicting options: {flags[name]} and the same in --network {quoted(networks[0])}"
            )
    return (replace(asked[0], **given), *asked[1:])


@click.command("exec", cls=StartCommand)
@click.argument("container", shell_complete=completing.running)
@click.argument("argv", metavar="PROGRAM [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@environment_options
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal.")
@user_option
@workdir_option
@click.pass_context
def exec_(
    ctx: click.Context,
    /,
    container: str,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    **plain: Any,
) -> None:
    """Run a command in a running container."""
    with starting():
        check_terminal(tty=plain["tty"], interactive=plain["interactive"])
        variables = environment(env, os.environ, env_files)
        code = containers().exec(container, argv, env=variables, **plain)
    ctx.exit(code)
