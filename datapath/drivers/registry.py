# SPDX-License-Identifier: Apache-2.0
"""The table of drivers: their specifications, and their classes, which are imported when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from datapath.drivers.base import Driver, HostPart
from datapath.drivers.context import Context
from datapath.drivers.ebpf.spec import EBPF_BRIDGE
from datapath.drivers.host import HOST, Host
from datapath.drivers.ipvlan.spec import IPVLAN_SPEC
from datapath.drivers.linuxbridge.spec import LINUX_BRIDGE
from datapath.drivers.macvlan.spec import MACVLAN_SPEC
from datapath.drivers.null import NULL, Null
from datapath.drivers.overlay.spec import OVERLAY
from datapath.drivers.remote.spec import PLUGIN
from datapath.model import drivers as specs
from datapath.model.drivers import Spec
from datapath.model.networks import Network


class Entry(NamedTuple):
    """Where the class of a driver is, and what it has on the host for all of its networks."""

    driver: Callable[[], type[Driver]]
    host_part: Callable[[], type[HostPart]]


_ENTRIES: dict[Spec, Entry] = {}


def register(
    spec: Spec,
    driver: Callable[[], type[Driver]],
    host_part: Callable[[], type[HostPart]] = lambda: HostPart,
) -> None:
    """Makes a driver known to plans, commands and `doctor`. `driver` and `host_part` are called when they are
    needed, so that a command imports what it uses."""
    specs.register(spec)
    _ENTRIES[spec] = Entry(driver, host_part)


def unregister(spec: Spec) -> None:
    """Takes a registration back."""
    specs.unregister(spec)
    _ENTRIES.pop(spec, None)


def _in_module(module: str, name: str) -> Callable[[], Any]:
    @cache
    def load() -> Any:
        return getattr(import_module(module), name)

    return load


_ROOM = "datapath.drivers"
register(
    EBPF_BRIDGE,
    _in_module(f"{_ROOM}.ebpf.driver", "EbpfBridge"),
    _in_module(f"{_ROOM}.ebpf.host", "EbpfHost"),
)
register(
    LINUX_BRIDGE,
    _in_module(f"{_ROOM}.linuxbridge.driver", "LinuxBridge"),
    _in_module(f"{_ROOM}.linuxbridge.forwarding", "Forwarding"),
)
register(
    OVERLAY,
    _in_module(f"{_ROOM}.overlay.driver", "Overlay"),
    _in_module(f"{_ROOM}.overlay.host", "OverlayHost"),
)
register(MACVLAN_SPEC, _in_module(f"{_ROOM}.macvlan.driver", "Macvlan"))
register(IPVLAN_SPEC, _in_module(f"{_ROOM}.ipvlan.driver", "Ipvlan"))
register(
    PLUGIN, _in_module(f"{_ROOM}.remote.driver", "Remote"), _in_module(f"{_ROOM}.remote.host", "PluginHost")
)
register(HOST, lambda: Host)
register(NULL, lambda: Null)


def class_of(spec: Spec) -> type[Driver]:
    """The driver of the network; one that does nothing if the driver is not installed any more."""
    return _ENTRIES[spec].driver() if spec in _ENTRIES else Driver


def find(network: Network, context: Context) -> Driver:
    """The network's driver, at work in this command."""
    return class_of(specs.spec_of(network))(context)


def host_parts(context: Context) -> dict[Spec, HostPart]:
    """What each driver whose members have devices has on the host, by its spec."""
    return {spec: _ENTRIES[spec].host_part()(context) for spec in with_endpoints()}


def with_endpoints() -> list[Spec]:
    """The specs of all drivers whose members have devices."""
    return [spec for spec in _ENTRIES if spec.traits.endpoints]


def by_spec(networks: Iterable[Network]) -> dict[Spec, list[Network]]:
    """The networks that are built, by their driver's spec. The driver of the packet programs has all that these
    know, beside the drivers that have more to do for theirs."""
    found: dict[Spec, list[Network]] = {}
    for network in specs.built(networks):
        spec = specs.spec_of(network)
        found.setdefault(spec, []).append(network)
        if specs.traits(network).told and spec is not EBPF_BRIDGE:
            found.setdefault(EBPF_BRIDGE, []).append(network)
    return found
