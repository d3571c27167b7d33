# SPDX-License-Identifier: Apache-2.0
"""How an earlier version laid out what lies in maps, and how its rows become those of this version. Pure.

The layout is read from that version's abi.h, whose rules (fixed-width types, padding written out) make that plain. A
row becomes another by its fields' names: what both have is copied, in the byte order of the machine, and may have
become wider; what is new is zero, which has to mean "as before"; what is gone is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from datapath.dataplane.layout import MAPS, OWN_MAPS, VERSION_MAPS

_SIZES = {
    **dict.fromkeys(("__u8",), 1),
    **dict.fromkeys(("__u16", "__be16"), 2),
    **dict.fromkeys(("__u32", "__be32"), 4),
    **dict.fromkeys(("__u64",), 8),
    "struct bpf_timer": 16,
}
# Fields that had another name: (struct, name) -> the name before.
RENAMED: Mapping[tuple[str, str], str] = {}


class Refused(ValueError):
    """A change that cannot be carried over by the names of fields; the message says which."""


class Field(NamedTuple):
    """`kind`: of one of its `items`, of which each has `size` bytes; the first is at the byte `offset`."""

    kind: str
    offset: int
    size: int
    items: int


class Struct(NamedTuple):
    size: int
    fields: Mapping[str, Field]


Structs = Mapping[str, Struct]
# Bytes that are copied: from, to, how many.
Span = tuple[int, int, int]


def parse(text: str) -> Structs:
    """Every struct of an abi.h."""
    sizes, found = dict(_SIZES), dict[str, Struct]()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, flags=re.S):
        fields, at = dict[str, Field](), 0
        for kind, names in re.findall(r"((?:struct )?\w+) ([^;]+);", body):
            for one in names.split(","):
                label, _, count = one.strip().rstrip("]").partition("[")
                fields[label] = Field(kind, at, sizes[kind], int(count or 1))
                at += sizes[kind] * int(count or 1)
        found[name] = Struct(at, fields)
        sizes[f"struct {name}"] = at
    return found


class Conversion(NamedTuple):
    """Rows of `before` bytes become rows of `now` bytes."""

    before: int
    now: int
    spans: tuple[Span, ...]

    def apply(self, rows: bytes) -> bytes:
        """Rows that lie one after the other. All of them at once, a byte of a row at a time."""
        made = bytearray(len(rows) // self.before * self.now)
        for source, target, length in self.spans:
            for at in range(length):
                made[target + at :: self.now] = rows[source + at :: self.before]
        return bytes(made)


def conversion(before: Structs, now: Structs, name: str) -> Conversion:
    """How rows of `struct name` become this version's. Refused."""
    return Conversion(before[name].size, now[name].size, tuple(_spans(before, now, name)))


def _spans(before: Structs, now: Structs, name: str) -> Iterator[Span]:
    for label, field in now[name].fields.items():
        was = before[name].fields.get(RENAMED.get((name, label), label))
        if was is None or label.startswith("pad"):
            continue
        for item in range(_same_count(name, label, was, field)):
            source, target = was.offset + item * was.size, field.offset + item * field.size
            inner = field.kind.removeprefix("struct ")
            if was.kind == field.kind and inner != field.kind and inner in now:
                yield from ((source + a, target + b, length) for a, b, length in _spans(before, now, inner))
                continue
            # The bytes of a number in network order stand at its end when it grows; nobody has needed that.
            plain = was.kind.startswith("__u") and field.kind.startswith("__u") and field.size >= was.size
            if was.kind != field.kind and not plain:
                raise Refused(f"field {label} of struct {name} was {was.kind} and is {field.kind}")
            yield source, target, was.size


def _same_count(name: str, label: str, was: Field, field: Field) -> int:
    if field.items < was.items:
        raise Refused(f"field {label} of struct {name} had {was.items} items and has {field.items}")
    return was.items


def _grown(before: Structs, now: Structs, name: str) -> bool:
    """The struct is laid out as before, but for what its padding has become."""
    if name not in before or before[name].size != now[name].size:
        return False
    fields = now[name].fields
    for label, was in before[name].fields.items():
        if label.startswith("pad"):
            continue
        if fields.get(label) != was:
            return False
        inner = was.kind.removeprefix("struct ")
        if inner != was.kind and inner in before and not _grown(before, now, inner):
            return False
    return True


def changed(before: Structs, now: Structs) -> frozenset[str]:
    """The maps that rows of this version do not fit into: they are made anew. Maps that the version before did not have
    are not among them, nor those that versions do not share."""

    def fits(struct: str | None) -> bool:
        return struct is None or _grown(before, now, struct)

    found = {
        name
        for name, structs in {**MAPS, **OWN_MAPS}.items()
        if name not in VERSION_MAPS and any(one in before for one in structs) and not all(map(fits, structs))
    }
    if {"conns", "gc_timers", "confirmed"} & found:
        # The GC's queue has the keys of `conns`, and its timer runs on one of each.
        found |= {"conns", "gc_timers", "confirmed"}
    return frozenset(found)
