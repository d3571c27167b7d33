# SPDX-License-Identifier: Apache-2.0
"""run, exec, ps, logs, inspect, stop, rm: Docker's commands for containers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError, DatapathError, NotFoundError, quoted
from datapath.model.rows import OWNER

from .command import (
    Command,
    LazyGroup,
    complete_container,
    complete_network,
    complete_running,
    containers,
    format_option,
    host,
)
from .errors import StartError, leaves
from .network import print_documents
from .output import for_each

if TYPE_CHECKING:
    from datapath.model.endpoints import EndpointRequest


SECONDS = click.IntRange(0, 86400)
SECONDS.name = "number"

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


# Docker's second names: `container ls` is `ps`, all others are called as they are without `container`.
SECOND_NAMES = {
    "ls": ".ps:ps",
    **{name: f".container:{name}" for name in ("run", "logs", "inspect", "stop", "rm")},
    "exec": ".container:exec_",
    "port": ".port:port",
}


@click.group("container", cls=LazyGroup, where=SECOND_NAMES)
def container() -> None:
    """Docker's second names of the commands about containers."""


# ---- run ------------------------------------------------------------------------------


@click.command("run", cls=StartCommand)
@click.argument("argv", metavar="PROGRAM [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the ID.")
@click.option("--rm", "auto_remove", is_flag=True, help="Remove the container when it exits.")
@click.option("--name", default="", metavar="NAME", help="Name of the container.")
@click.option(
    "--network",
    "--net",
    "networks",
    multiple=True,
    metavar="NET",
    shell_complete=complete_network,
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
    "-e",
    "--env",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Set an environment variable; KEY alone passes on the caller's value.",
)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the container.")
@click.option(
    "--sysctl",
    "sysctls",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a kernel parameter of the container's network namespace, as in net.core.somaxconn=1024.",
)
@click.option("--rootfs", default="", metavar="DIR", help="Directory that becomes the root of the container.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal.")
@click.option(
    "--stop-signal", default="", metavar="SIGNAL", help="Signal that `stop` sends (default: SIGTERM)."
)
@click.pass_context
def run(ctx: click.Context, /, *, networks: tuple[str, ...], env: tuple[str, ...], **plain: Any) -> None:
    """Run a program of this host in a new container.

    The container has a network stack, mounts and a host name of its own. There are no images: its files are the
    host's, or those of --rootfs.
    """
    from datapath.model.containers import RunRequest

    first = {
        "ip": plain.pop("ip"),
        "ip6": plain.pop("ip6"),
        "mac": plain.pop("mac_address"),
        "aliases": plain.pop("network_alias"),
        "link_local_ips": plain.pop("link_local_ip"),
    }
    with starting():
        check_terminal(tty=plain["tty"] and not plain["detach"], interactive=plain["interactive"])
        request = RunRequest(networks=endpoints(networks, first), env=environment(env, os.environ), **plain)
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


def environment(words: tuple[str, ...], here: Mapping[str, str]) -> tuple[str, ...]:
    """KEY=VALUE as it is; KEY alone is handed on from here, if it is set."""
    for word in words:
        if not word.partition("=")[0]:
            raise ConfigError(f"invalid environment variable {quoted(word)}: expected KEY=VALUE, or KEY")
    return tuple(
        word if "=" in word else f"{word}={here[word]}" for word in words if "=" in word or word in here
    )


@click.command("exec", cls=StartCommand)
@click.argument("container", shell_complete=complete_running)
@click.argument("argv", metavar="PROGRAM [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Set an environment variable; KEY alone passes on the caller's value.",
)
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory of the command.")
@click.pass_context
def exec_(
    ctx: click.Context,
    container: str,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    interactive: bool,
    tty: bool,
    workdir: str,
) -> None:
    """Run a command in a running container."""
    with starting():
        check_terminal(tty=tty, interactive=interactive)
        code = containers().exec(
            container,
            argv,
            env=environment(env, os.environ),
            tty=tty,
            interactive=interactive,
            workdir=workdir,
        )
    ctx.exit(code)


# ---- looking --------------------------------------------------------------------------


@click.command("logs", cls=Command)
@click.argument("container", shell_complete=complete_container)
@click.option("-f", "--follow", is_flag=True, help="Follow the output.")
@click.option("-n", "--tail", default="all", metavar="N", help="Print only the last N lines (default: all).")
def logs(container: str, follow: bool, tail: str) -> None:
    """Print the output of a container."""
    if tail != "all" and not (tail.isascii() and tail.isdigit() and len(tail) < 10):
        raise ConfigError(f"invalid value {quoted(tail)} for --tail: expected a number of lines, or all")
    with open(1, "wb", closefd=False) as stream:
        for chunk in containers().logs(container, follow=follow, tail=None if tail == "all" else int(tail)):
            stream.write(chunk)
            stream.flush()


@click.command("inspect", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_container)
@format_option("-f")
@click.option(
    "--type", "kind", type=click.Choice(["container", "network"]), help="Look for this type of object only."
)
def inspect(names: tuple[str, ...], format_: str, kind: str | None) -> None:
    """Show detailed information about containers or networks."""

    def look(name: str) -> Mapping[str, Any]:
        if kind == "network":
            return host().networks.inspect(name)
        try:
            return containers().inspect(name)
        except NotFoundError:
            if kind == "container":
                raise
        try:
            return host().networks.inspect(name)
        except NotFoundError as error:
            raise NotFoundError(f"no such container or network: {quoted(name)}") from error

    print_documents(names, look, format_)


# ---- ending ---------------------------------------------------------------------------


@click.command("stop", cls=Command)
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_running)
@click.option(
    "-t",
    "--timeout",
    "--time",
    type=SECONDS,
    default=10,
    metavar="SECONDS",
    help="Seconds until a container is killed (default: 10).",
)
def stop(names: tuple[str, ...], timeout: int) -> None:
    """Stop running containers."""
    for_each(names, lambda name: containers().stop(name, timeout=timeout))


@click.command("rm", cls=Command)
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_container)
@click.option(
    "-f", "--force", is_flag=True, help="Kill running containers; do not fail if one does not exist."
)
def rm(names: tuple[str, ...], force: bool) -> None:
    """Remove containers."""

    def remove(name: str) -> None:
        try:
            containers().remove(name, force=force)
        except NotFoundError as missing:
            # It may be the name of another owner's sandbox: that is for its owner to remove, or forced.
            if not host().sandboxes.forget(name, OWNER, force):
                raise missing

    for_each(names, remove, missing_ok=force)
