# SPDX-License-Identifier: Apache-2.0
"""down, version, help, completion, and the command that a container's shim calls at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from datapath.errors import printable

from .command import Command, containers, dry_run_option, format_option, host
from .output import emit, listing, table


@click.command("down", cls=Command)
@click.option(
    "-f", "--force", is_flag=True, help="Also remove what belongs to Docker, podman or other owners."
)
@dry_run_option
def down(force: bool, dry_run: bool) -> None:
    """Remove all containers, networks and programs.

    Containers are stopped; no device, namespace, program or pin is left.
    """
    if dry_run:
        host().refuse_foreign(force)
        emit("\n".join(map(printable, _everything())) or "There is nothing to remove.")
        return
    host().down(force)


def _everything() -> Iterator[str]:
    """What `down` takes away, a line each."""
    state, settings = host().snapshot(), host().settings
    for container in sorted(state.containers.values(), key=lambda found: found.name):
        yield f"container {container.name} ({container.status})"
    for sandbox in host().sandboxes.all():
        yield f"sandbox {sandbox.label} of {sandbox.owner}"
    for network in host().networks.all():
        if not network.predefined or (network.built and network.name == "bridge"):
            yield f"network {network.name}"
    for path, what in (
        (settings.bpffs, "packet programs, their maps and links"),
        (settings.state_dir, "state and logs"),
        (settings.run_dir, "files of containers"),
    ):
        if path.is_dir():
            yield f"{what}: {path}"


@click.command("version", cls=Command)
@format_option("-f", "Version")
def version(format_: str) -> None:
    """Show version information."""
    from datapath import __version__

    found: dict[str, Any] = {
        "Version": __version__,
        "Kernel": os.uname().release,
        "Python": sys.version.split()[0],
    }
    if format_:
        emit(listing([found], {key: key.upper() for key in found}, format_))
    else:
        emit(table((), [(f"{key}:", str(value)) for key, value in found.items()]))


def _complete_commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    found: click.Command | None = ctx.find_root().command
    for word in ctx.params.get("words") or ():
        found = found.get_command(ctx, word) if isinstance(found, click.Group) else None
    names = found.list_commands(ctx) if isinstance(found, click.Group) else []
    return [
        CompletionItem(name) for name in names if name.startswith(incomplete) and not name.startswith("_")
    ]


@click.command("help", cls=Command)
@click.argument("words", metavar="[COMMAND...]", nargs=-1, shell_complete=_complete_commands)
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command.

    `help network create` is `network create --help`.
    """
    found, inner = ctx.find_root().command, ctx.find_root()
    for word in words:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"'{inner.command_path}' has no commands, and so no '{word}'.", ctx)
        found = found.resolve_command(inner, [word])[1] or found
        inner = click.Context(found, inner, found.name)
    click.echo(found.get_help(inner))


SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Command)
@click.argument("shell", required=False, metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print a shell's completion script.

    For the shell that runs: source <(datapathctl completion bash). To install it, write it to
    /usr/share/bash-completion/completions/datapathctl, /usr/share/zsh/vendor-completions/_datapathctl or
    /usr/share/fish/vendor_completions.d/datapathctl.fish.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    if shell is None:
        raise click.UsageError("Missing shell: bash, zsh or fish.", ctx)
    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "datapathctl", "_DATAPATHCTL_COMPLETE")
    # Not bash's own source(): it starts a bash only to ask for its version.
    emit(ShellComplete.source(script))


@click.command("_exited", cls=Command, hidden=True)
@click.argument("container_id")
@click.argument("exit_code", type=int)
def exited(container_id: str, exit_code: int) -> None:
    """Record that the main process of a container has ended, and release its resources."""
    containers().exited(container_id, exit_code)
