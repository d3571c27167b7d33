# SPDX-License-Identifier: Apache-2.0
"""Carries rows over into maps of another layout while packets pass: a part of an `upgrade` from a version that lays
maps out otherwise.

The new programs get maps of their own, which wait beside those that they take the place of. Rows are copied while the
old programs run, and what these have changed since is added once the new ones do. Each old map goes as soon as that is
done for it; whoever comes after a kill does the same for those that are left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from datapath.dataplane import version
from datapath.dataplane.layout import MAPS, TOLD_MAPS
from datapath.dataplane.pins import listed
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, bpffs
from datapath.kernel.bpf_maps import BPF_NOEXIST, RawMap, cut

_LAG = 50_000_000  # ns by which the clock that programs read may be behind
_GC = ("gc_timers", "confirmed")  # the timer, and the queue of its work, which is the last to take its place
_CONN = abi.layout("conn")
_SEEN, _STATE, _FIN = (_CONN.offset(name) for name in ("last_seen", "state", "fin"))
_FLAGS = _CONN.select("flags")
_ORIGINAL = int(abi.ConnFlag.CONN_ORIGINAL)


def check(root: Path, anew: Collection[str]) -> None:
    """KernelError: rows of one of these maps cannot be carried over."""
    for name in _with_rows(anew):
        version.conversions(root, name)


def begin(root: Path, anew: Collection[str]) -> int:
    """Copies what the programs have written into the maps, while the old ones run. When that began, as `settle` wants
    to know it. The conntrack GC rests from now on: what it ended now would be ended twice."""
    if "gc_timers" in anew:
        _stop_timer(root)
    began = time.monotonic_ns() - _LAG
    for name in _with_rows(anew):
        _copy(root, name)
    with _opened(root, version.NEXT_MAP + min(anew)) as one:
        bpffs.pin(one.fd, root / "maps" / version.carried_mark(version.installed().layout))
    return began


def settle(root: Path, began: int) -> bool:
    """Once only the new programs run: writes what the old ones have changed since `began` (0: that is not known), and
    puts each map in its place. Whether endpoints' connections are to be counted again."""
    waiting = {
        name.removeprefix(version.NEXT_MAP)
        for name in listed(root / "maps")
        if name.startswith(version.NEXT_MAP)
    } - {version.installed().layout}
    for name in sorted(waiting.difference(_GC)):
        if name in _with_rows(waiting):
            _complete(root, name, began)
        _take_place(root, name)
    if waiting.intersection(_GC):
        _refill_queue(root)
        for name in _GC:
            _take_place(root, name)
    return bool(waiting & {"quotas", "arrivals"})


def drop(root: Path) -> None:
    """Takes back what was begun and is not complete."""
    if not (root / "maps").is_dir():
        return
    marks = {name for name in listed(root / "programs") if version.is_mark(name)}
    if len(marks) > 1:
        bpffs.unpin(root / "programs" / version.installed().mark)
    for name in listed(root / "maps"):
        if name.startswith(version.NEXT_MAP):
            bpffs.unpin(root / "maps" / name)


def _with_rows(names: Collection[str]) -> list[str]:
    """Those of the maps whose rows the programs write, and nobody else can."""
    return sorted(name for name in names if name in MAPS and name not in TOLD_MAPS)


@contextmanager
def _opened(root: Path, pin: str) -> Iterator[RawMap]:
    """A pinned map, whatever its layout."""
    fd = bpffs.get_pinned(root / "maps" / pin)
    if fd is None:
        raise KernelError("open map", pin, detail="it is not pinned")
    info = bpf_maps.map_info(fd, pin)
    opened = RawMap(fd, pin, int(info.key_size), int(info.value_size))
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _pair(root: Path, name: str) -> Iterator[tuple[RawMap, RawMap]]:
    """The map that is pinned, and the one that takes its place."""
    with ExitStack() as stack:
        before = stack.enter_context(_opened(root, name))
        yield before, stack.enter_context(_opened(root, f"{version.NEXT_MAP}{name}"))


def _copy(root: Path, name: str) -> None:
    keys, values = version.conversions(root, name)
    with _pair(root, name) as (before, now):
        if before.copies > 1:
            for index in range(min(before.max_entries, now.max_entries)):
                key = index.to_bytes(4, "little")
                now.set_raw(key, values.apply(before.lookup_raw(key) or b""))
            return
        for old_keys, old_values, _ in before.batches():
            now.update_raw(keys.apply(old_keys), values.apply(old_values))


def _complete(root: Path, name: str, began: int) -> None:
    """Adds rows that came since, and merges into those of connections what the old programs have seen of them."""
    keys, values = version.conversions(root, name)
    with _pair(root, name) as (before, now):
        if before.copies > 1:
            return  # counters: they were copied, and what came since is not counted
        there = {key for packed, _, _ in now.batches() for key in cut(packed, keys.now)}
        for old_keys, old_values, _ in before.batches():
            rows = zip(
                cut(keys.apply(old_keys), keys.now), cut(values.apply(old_values), values.now), strict=True
            )
            for key, row in rows:
                if key not in there and now.set_raw(key, row, BPF_NOEXIST):
                    continue
                if MAPS[name][1] == "conn" and _seen(row) >= began:
                    known = now.lookup_raw(key)
                    merged = _merged(row, known) if known else row
                    if known and merged != known:
                        now.set_raw(key, merged)


def _seen(conn: bytes) -> int:
    return int.from_bytes(conn[_SEEN : _SEEN + 8], "little")


def _merged(before: bytes, now: bytes) -> bytes:
    """A connection's row as both have left it: of the later one, but no end that either has seen is forgotten."""
    row = bytearray(before if _seen(before) > _seen(now) else now)
    row[_STATE] = max(before[_STATE], now[_STATE])
    row[_FIN] = before[_FIN] | now[_FIN]
    return bytes(row)


def _take_place(root: Path, name: str) -> None:
    with suppress(FileNotFoundError):  # it has, before this process
        os.replace(root / "maps" / f"{version.NEXT_MAP}{name}", root / "maps" / name)


def _stop_timer(root: Path) -> None:
    """A written row of an array gives up the timer in it; `ticked` 0: whoever asks next starts it again."""
    with _opened(root, "gc_timers") as timers:
        timers.set_raw(bytes(4), bytes(len(timers.lookup_raw(bytes(4)) or b"")))


def _refill_queue(root: Path) -> None:
    """Queues every confirmed connection for the GC, which does not run yet, and says how many there are."""
    pinned = listed(root / "maps")

    def pin(name: str) -> str:
        return name if f"{version.NEXT_MAP}{name}" not in pinned else f"{version.NEXT_MAP}{name}"

    with ExitStack() as stack:
        conns, queue, timers = (
            stack.enter_context(_opened(root, pin(name))) for name in ("conns", "confirmed", "gc_timers")
        )
        wanted: dict[bytes, None] = {}
        while key := queue.pop_raw():
            wanted[key] = None
        size = abi.layout("tuple").size
        for keys, values, _ in conns.batches():
            flags = _FLAGS.iter_unpack(values)
            wanted |= {k: None for k, (f,) in zip(cut(keys, size), flags, strict=True) if f & _ORIGINAL}
        for number, key in enumerate(wanted):
            try:
                queue.set_raw(b"", key)
            except KernelError:  # it is full: new programs have queued some themselves meanwhile
                wanted = dict.fromkeys(list(wanted)[:number])
                break
        layout = abi.layout("gc_timer")
        timers.set_raw(bytes(4), layout.pack(layout.type(queued=len(wanted))))
