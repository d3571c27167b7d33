# SPDX-License-Identifier: Apache-2.0
"""What a shell offers for the values of arguments and options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from .command import containers, host

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def among(names: Callable[[click.Context], Iterable[str]], *, comma: bool = False) -> Complete:
    """One of these words, which are asked for then; with `comma` several, with commas between. Errors are passed over:
    a shell in the middle of a line is no place for messages."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, separator, last = incomplete.rpartition(",") if comma else ("", "", incomplete)
        try:
            return [
                CompletionItem(f"{before}{separator}{name}") for name in names(ctx) if name.startswith(last)
            ]
        except Exception:
            return []

    return complete


def words(*names: str, comma: bool = False) -> Complete:
    """One of these words."""
    return among(lambda ctx: names, comma=comma)


def keys(*names: str, **values: Iterable[str]) -> Complete:
    """KEY=VALUE with one of these keys, or of those that have known values."""
    pairs = [f"{key.replace('_', '-')}={value}" for key, known in values.items() for value in known]
    return words(*pairs, *(f"{name}=" for name in names))


def _networks(ctx: click.Context, predefined: bool = True) -> list[str]:
    return [one.name for one in host(ctx).networks.all() if predefined or not one.predefined]


def _ports(ctx: click.Context) -> list[str]:
    found = containers(ctx).ports(ctx.params["container"])
    return [word for one in found for word in (str(one.number), str(one.mapping.open))]


def _plugins() -> list[str]:
    from datapath.config.settings import Settings
    from datapath.drivers.remote import places

    return places.names(Settings.from_env(os.environ).plugin_dirs)


def _drivers(ctx: click.Context) -> list[str]:
    import datapath.drivers.registry  # noqa: F401 - who registers them
    from datapath.model.drivers import creatable

    return [*creatable(), *_plugins()]


def _driver_options(ctx: click.Context) -> list[str]:
    import datapath.drivers.registry  # noqa: F401
    from datapath.model.drivers import named

    found = [spec.options for spec in named(str(ctx.params.get("driver") or "bridge"))]
    return sorted({f"{option}=" for options in found for option in options})


def _joined(ctx: click.Context) -> list[str]:
    """The networks, and the containers whose stack can be shared."""
    return [*_networks(ctx), *(f"container:{one.name}" for one in containers(ctx).ps())]


network = among(_networks)
service = among(lambda ctx: [one.name for one in host(ctx).services.all()])
policy = among(lambda ctx: [one.name for one in host(ctx).policies.all()])
peer = among(lambda ctx: [one.name for one in host(ctx).snapshot().peers.values()])
own_network = among(lambda ctx: _networks(ctx, predefined=False))
joined = among(_joined)
container = among(lambda ctx: [one.name for one in containers(ctx).ps(all=True)])
running = among(lambda ctx: [one.name for one in containers(ctx).ps()])
ended = among(lambda ctx: [one.name for one in containers(ctx).ps(all=True) if not one.running])
port = among(_ports)
driver = among(_drivers)
ipam_driver = among(lambda ctx: ["default", "null", *_plugins()])
driver_option = among(_driver_options)
signal = words("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2")
