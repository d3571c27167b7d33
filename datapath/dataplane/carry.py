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
from struct import Struct as Unpacker

from datapath.dataplane import version
from datapath.dataplane.former import Struct
from datapath.dataplane.layout import MAPS, POLICY_MAPS, TOLD_MAPS
from datapath.dataplane.pins import listed
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, bpffs
from datapath.kernel.bpf_maps import BPF_NOEXIST, RawMap, cut

_LAG = 50_000_000  # ns by which the clock that programs read may be behind
_QUICK = 50_000_000  # ns that a round takes which leaves little to be done
_ROUNDS = 4
_GC = ("gc_timers", "confirmed")  # the timer, and the queue of its work, which is the last to take its place
_CONN = abi.layout("conn")
_SEEN, _STATE, _FIN = (_CONN.offset(name) for name in ("last_seen", "state", "fin"))
_COUNTS = tuple(_CONN.offset(name) for name in ("packets", "bytes"))
_FLAGS = _CONN.select("flags")
_ORIGINAL = int(abi.ConnFlag.CONN_ORIGINAL)


def check(root: Path, anew: Collection[str]) -> None:
    """KernelError: rows of one of these maps cannot be carried over."""
    for name in _with_rows(anew):
        version.conversions(root, name)


def copy_policies(root: Path, anew: Collection[str]) -> None:
    """Copies what is in force into those of these maps that are of policies, before anybody writes others: these would
    come into force at once, for the old programs too, which have not all of their rows. No packet changes them."""
    for name in sorted(POLICY_MAPS.intersection(anew)):
        _copy(root, name, 0)


def begin(root: Path, anew: Collection[str]) -> int:
    """Copies what the programs have written into the maps, while the old ones run; again what has changed meanwhile,
    until that is little. When the last round began, as `settle` wants to know it. The conntrack GC rests from now on:
    what it ended now would be ended twice."""
    if "gc_timers" in anew:
        _stop_timer(root)
    began = since = 0
    for _ in range(_ROUNDS):
        began, since = time.monotonic_ns(), began
        for name in _with_rows(anew):
            _copy(root, name, since)
        if time.monotonic_ns() - began < _QUICK:
            break
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
    """Those of the maps whose rows nobody else can write: the programs have, or those in force are one of several
    generations."""
    return sorted(name for name in names if name in MAPS and name not in TOLD_MAPS - POLICY_MAPS)


@contextmanager
def _opened(root: Path, pin: str) -> Iterator[RawMap]:
    """A pinned map, whatever its layout."""
    with bpf_maps.opened(root / "maps" / pin) as found:
        yield found


@contextmanager
def _pair(root: Path, name: str) -> Iterator[tuple[RawMap, RawMap]]:
    """The map that is pinned, and the one that takes its place."""
    with ExitStack() as stack:
        before = stack.enter_context(_opened(root, name))
        yield before, stack.enter_context(_opened(root, f"{version.NEXT_MAP}{name}"))


def _copy(root: Path, name: str, since: int) -> None:
    _, values = version.conversions(root, name)
    with _pair(root, name) as (before, now):
        if before.is_array and before.copies > 1:
            for index in range(min(before.max_entries, now.max_entries)):
                key = index.to_bytes(4, "little")
                now.set_raw(key, values.apply(before.lookup_raw(key) or b""))
            return
        for packed, rows in _converted(root, name, before, since):
            now.update_raw(packed, rows)


def _complete(root: Path, name: str, since: int) -> None:
    """Adds rows that came since, and merges into those of connections what the old programs have seen of them."""
    keys, values = version.conversions(root, name)
    with _pair(root, name) as (before, now):
        if before.copies > 1:
            return  # counters: they were copied, and what came since is not counted
        for packed, rows in _converted(root, name, before, since):
            for key, row in zip(cut(packed, keys.now), cut(rows, values.now), strict=True):
                known = now.lookup_raw(key)
                if known is None:
                    now.set_raw(key, row, BPF_NOEXIST)
                elif MAPS[name][1] == "conn" and (merged := _merged(row, known)) != known:
                    now.set_raw(key, merged)


def _converted(root: Path, name: str, before: RawMap, since: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values as this version has them, batch by batch; of connections those with a packet since then, if that
    is known: of a full table few have."""
    keys, values = version.conversions(root, name)
    recent = version.former_conn(root) if MAPS[name][1] == "conn" and since else None
    for packed, rows, _ in before.batches():
        if recent is not None:
            packed, rows = _recent(before, packed, rows, recent, since - _LAG)
        yield keys.apply(packed), values.apply(rows)


def _recent(table: RawMap, packed: bytes, rows: bytes, conn: Struct, since: int) -> tuple[bytes, bytes]:
    """Those of a table's rows that were seen since then; and the row of each one's opposite direction, as a
    connection's state is kept in the original one, whichever had the packet."""
    seen, other = conn.fields["last_seen"], conn.fields["other"]
    fields = Unpacker(f"<{seen.offset}xQ{conn.size - seen.offset - 8}x").iter_unpack(rows)
    found = dict[bytes, bytes]()
    for key, row, (when,) in zip(cut(packed, other.size), cut(rows, conn.size), fields, strict=True):
        if when >= since:
            found[key] = row
            opposite = row[other.offset : other.offset + other.size]
            if opposite not in found and (of_opposite := table.lookup_raw(opposite)):
                found[opposite] = of_opposite
    return b"".join(found), b"".join(found.values())


def _number(conn: bytes, at: int) -> int:
    return int.from_bytes(conn[at : at + 8], "little")


def _merged(before: bytes, now: bytes) -> bytes:
    """A connection's row as both have left it: of the later one, but no end that either has seen is forgotten, nor what
    the one that has counted more has counted."""
    row = bytearray(before if _number(before, _SEEN) > _number(now, _SEEN) else now)
    row[_STATE] = max(before[_STATE], now[_STATE])
    row[_FIN] = before[_FIN] | now[_FIN]
    for at in _COUNTS:
        row[at : at + 8] = max(_number(before, at), _number(now, at)).to_bytes(8, "little")
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
