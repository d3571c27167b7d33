# SPDX-License-Identifier: Apache-2.0
"""Looks at the pinned programs for `doctor`: changes nothing, loads nothing, and copes with missing pins."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datapath.dataplane import convert, version
from datapath.dataplane.attach import filter_place
from datapath.dataplane.layout import (
    COUNTED_MAPS,
    FIRST,
    HOOKS,
    MAPS,
    OBJECT_FILES,
    SOCKET_HOOKS,
    TAILS,
    TAILS_MAP,
    VERSION_MAPS,
)
from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_links, bpf_maps, bpffs, libbpf
from datapath.model.observed import Programs

# The maps that this side writes; the others belong to the programs.
_TOLD = (
    *("networks", "devices", "endpoints", "members", "ports", "origins", "reserved", "addresses", "acls"),
    *("limits", "links", "quotas", "host", "xfrm_policies", "local_prefixes", "routers", "bindings"),
    *("names", "long_names", "name_sets", "resolvers", "subnets", "host_routed", "parents"),
    *("peers", "vteps", "vnis", "overlays", "remote_addrs", "remote_blocks", "tunnel"),
    *("services", "slots", "backends"),
)


def _as_it_is(value: Any) -> Any:
    return value


# How a row of a map becomes one of `structs`, its key and its value, where a field has another type there.
_CONVERSIONS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "xfrm_policies": (convert.xfrm_key, convert.xfrm_policy_value),
    "devices": (_as_it_is, convert.device_value),
    "names": (convert.name_key, convert.name_value),
    "long_names": (convert.long_name_key, convert.name_value),
    "name_sets": (_as_it_is, convert.name_set_value),
    "resolvers": (_as_it_is, convert.resolver_value),
    "overlays": (_as_it_is, convert.overlay_value),
    "peers": (_as_it_is, convert.peer_value),
    "services": (_as_it_is, convert.service_value),
    "slots": (_as_it_is, convert.slots_value),
    "backends": (_as_it_is, convert.backend_value),
}


def programs(root: Path, indexes: Iterable[int]) -> Programs:
    """What is pinned below the folder `root`, and where it runs. `indexes`: devices to look for clsact filters at."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not bpffs.is_bpffs(existing):
        return Programs(missing=("maps", "programs"))
    pinned = {folder: _names(root / folder) for folder in ("maps", "programs", "links")}
    wanted = [f"programs/{name}" for one in FIRST for name in OBJECT_FILES[one]]
    wanted += [f"maps/{name}" for name in (*MAPS, TAILS_MAP)]
    missing = [pin for pin in wanted if not (root / pin).exists()]
    broken: dict[str, str] = {}
    outdated = Dataplane(root).outdated
    if version.marked(pinned["programs"]) is None:
        missing.append("programs/version")
    maps: dict[str, Any] = {}
    flood_rate = 0
    try:
        version.check(root)
        maps, flood_rate = _maps(root, pinned["maps"] - ({"config"} if outdated else set()), broken)
    except KernelError as error:
        if not version.to_carry(root):  # else `upgrade` is all that is needed
            broken["programs"] = str(error)
    own = {name: {number} for name, number in _program_ids(root / "programs", broken).items()}
    for name, number in _program_ids(root / version.NEXT, broken).items():
        own.setdefault(name, set()).add(number)  # in the middle of an upgrade
    attached, sockets, group, foreign = _links(root, pinned["links"], own, broken)
    return Programs(
        mounted=True,
        pinned=pinned,
        missing=() if outdated else tuple(missing),
        outdated=outdated,
        upgrading=(root / version.NEXT).exists(),
        maps=maps,
        attached=frozenset(attached | _filters(own, indexes)),
        sockets=frozenset(sockets),
        group=group,
        foreign=frozenset(foreign),
        tails=_tails(root / "maps", own, broken),
        broken=broken,
        flood_rate=flood_rate,
    )


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _maps(root: Path, names: frozenset[str], broken: dict[str, str]) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    flood_rate = 0
    with Dataplane(root) as dataplane:
        for name in (*_TOLD, *COUNTED_MAPS, "config"):
            if name not in names:
                continue
            try:
                opened = getattr(dataplane, name)
                if name == "config":
                    flood_rate = opened[0].flood_rate
                elif name in COUNTED_MAPS:  # by their network: how many there are
                    found[name] = {(number,): (count,) for number, count in _by_network(opened).items()}
                elif name == "host":
                    found[name] = {(0,): convert.host_value(opened[0])}
                elif name == "tunnel":
                    found[name] = {(0,): convert.tunnel_value(opened[0])}
                elif name == "networks":
                    found[name] = {(index,): convert.network_value(opened[index]) for index in opened.used()}
                else:
                    of_key, of_value = _CONVERSIONS.get(name, (_as_it_is, _as_it_is))
                    found[name] = {of_key(key): of_value(value) for key, value in opened.read_all()}
            except KernelError as error:
                broken[f"maps/{name}"] = str(error)
    return found, flood_rate


def _by_network(rows: bpf_maps.Map) -> Counter[int]:
    """How many rows of `flows` or `edges` each network has."""
    key = abi.layout(MAPS[rows.name][0] or "")
    return sum((Counter(key.column(keys, "network")) for keys, _, _ in rows.batches()), Counter[int]())


def _program_ids(folder: Path, broken: dict[str, str]) -> dict[str, int]:
    found = {}
    for name in _names(folder) - VERSION_MAPS - {"moving"}:
        with _pin(folder / name, broken) as fd:
            if fd is not None:
                found[name] = libbpf.program_id(fd)
    return found


def _links(
    root: Path, names: frozenset[str], own: Mapping[str, set[int]], broken: dict[str, str]
) -> tuple[set[tuple[str, int]], set[str], int, set[str]]:
    """Attachments to devices; socket hooks, and their control group; pins with another's program."""
    attached: set[tuple[str, int]] = set()
    sockets: set[str] = set()
    foreign: set[str] = set()
    group = 0
    for name in names:
        hook, _, number = name.rpartition("-")
        programs = own.get(name if name in SOCKET_HOOKS else hook, set())
        with _pin(root / "links" / name, broken) as fd:
            if fd is None:
                continue
            runs, target = bpf_links.link_info(fd)
        if runs not in programs:
            foreign.add(name)
        elif name in SOCKET_HOOKS:
            sockets.update([name] if target else [])
            group = target or group
        elif number.isdigit() and target == int(number):
            attached.add((hook, target))
    return attached, sockets, group, foreign


def _tails(folder: Path, own: Mapping[str, set[int]], broken: dict[str, str]) -> frozenset[str]:
    """The programs that are in their places in the map of those that others go on in."""
    if not (folder / TAILS_MAP).exists():
        return frozenset()
    try:
        with bpf_maps.opened(folder / TAILS_MAP) as tails:
            there = {
                name: tails.lookup_raw(bpf_maps.number(abi.Tail[place])) for name, place in TAILS.items()
            }
    except KernelError as error:
        broken[f"maps/{TAILS_MAP}"] = str(error)
        return frozenset()
    return frozenset(
        name for name, found in there.items() if found in {bpf_maps.number(one) for one in own.get(name, ())}
    )


def _filters(own: Mapping[str, set[int]], indexes: Iterable[int]) -> set[tuple[str, int]]:
    found = set()
    for index in indexes:
        for name, hook in HOOKS.items():
            running = bpf_links.clsact_program(*filter_place(index, hook.direction))
            if running and running in own.get(name, ()):
                found.add((name, index))
    return found


@contextlib.contextmanager
def _pin(path: Path, broken: dict[str, str]) -> Iterator[int | None]:
    """An fd of a pin; None: it cannot be opened, and `broken` says why."""
    try:
        fd = bpffs.get_pinned(path)
    except KernelError as error:
        broken[f"{path.parent.name}/{path.name}"] = str(error)
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
