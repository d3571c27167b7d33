# SPDX-License-Identifier: Apache-2.0
"""How rows of an earlier version become rows of this one: by the names of fields."""

from __future__ import annotations

from pathlib import Path

import pytest
from datapath.kernel._libbpf import ffi

from datapath.dataplane import former, version
from datapath.dataplane.layout import (
    FIRST,
    HOOKS,
    LATER_MAPS,
    MAPS,
    OBJECT_FILES,
    OWN_MAPS,
    TAILS,
    TAILS_MAP,
    TAILS_OF,
    TOLD_MAPS,
    XDP_HOOK,
    tails_of,
)
from datapath.kernel import abi, libbpf

TEXT = (abi.OBJECTS / "abi.h").read_text()
NOW = former.parse(TEXT)
FORMERS = sorted((Path(__file__).parents[2] / "bpf" / "former").iterdir())


@pytest.mark.parametrize("name", NOW)
def test_a_struct_is_read_as_the_compiler_reads_it(name: str) -> None:
    kind = ffi.typeof(f"struct {name}")
    fields = {field: (info.offset, ffi.sizeof(info.type)) for field, info in kind.fields}
    found = {field: (at.offset, at.size * at.items) for field, at in NOW[name].fields.items()}
    assert (NOW[name].size, found) == (ffi.sizeof(kind), fields)


def test_every_map_is_known_by_what_is_in_it() -> None:
    declared = set().union(*(libbpf.declared_maps(abi.OBJECTS / f"{name}.bpf.o") for name in OBJECT_FILES))
    assert {name for name in declared if "." not in name} == (MAPS.keys() | OWN_MAPS.keys()) - {"config"}
    assert MAPS.keys() > TOLD_MAPS


def test_every_map_that_is_told_or_read_is_there_from_the_first_network_on() -> None:
    def declared(name: str) -> set[str]:
        return libbpf.declared_maps(abi.OBJECTS / f"{name}.bpf.o")

    with_the_first = set().union(*map(declared, FIRST), *LATER_MAPS.values())
    assert with_the_first >= (MAPS.keys() | {TAILS_MAP}) - {"config"}
    assert all(set(maps) <= declared(name) and name not in FIRST for name, maps in LATER_MAPS.items())


def test_a_program_that_is_loaded_later_has_an_object_file_of_its_own_and_somebody_who_needs_it() -> None:
    """It is attached, or the flag of a network leads to it."""
    later = OBJECT_FILES.keys() - set(FIRST)
    led_to = {name for names in TAILS_OF.values() for name in names}
    assert all(OBJECT_FILES[name] == (name,) for name in later)
    assert later == (HOOKS.keys() | {XDP_HOOK} | led_to) - set(FIRST)
    assert led_to | set(FIRST) >= TAILS.keys()
    assert tails_of({"NETWORK_ACTIVE", "NETWORK_OVERLAY"}) == {"to_peer", "from_peer"}


@pytest.mark.parametrize("path", FORMERS, ids=lambda path: str(path.name))
def test_every_layout_that_is_kept_can_be_carried_over(path: Path) -> None:
    before = former.parse(path.read_text())
    for name in former.changed(before, NOW):
        if name in MAPS and name not in TOLD_MAPS:
            for struct in MAPS[name]:
                if struct and struct in before:
                    former.conversion(before, NOW, struct)


def test_a_layout_is_found_by_its_digest() -> None:
    for path in FORMERS:
        assert version.former_structs(version.layout_of(path.read_text())) == former.parse(path.read_text())
    assert version.former_structs("0" * 16) is None


BEFORE = """
struct part {
	__u16 a;
	__u16 b;
};
struct row {
	__u8 small;
	__u8 pad[3];
	__u32 gone;
	__be16 port;
	__u8 pad2[2];
	struct part parts[2];
};
"""
NEW = """
struct part {
	__u16 b;
	__u16 pad;
	__u32 a;
};
struct row {
	__u64 small;
	__u32 more;
	struct part parts[3];
	__be16 port;
	__u8 pad[2];
};
"""


def test_rows_become_others_by_the_names_of_their_fields() -> None:
    found = former.conversion(former.parse(BEFORE), former.parse(NEW), "row")

    def before(number: int) -> bytes:
        parts = b"".join(value.to_bytes(2, "little") for value in (1, 2, 3, number))
        return bytes([number, 9, 9, 9]) + b"GONE" + b"\x1f\x90" + b"pp" + parts

    def now(number: int) -> bytes:
        parts = [(1, 2), (3, number), (0, 0)]
        packed = b"".join(b.to_bytes(4, "little") + a.to_bytes(4, "little") for a, b in parts)
        return number.to_bytes(8, "little") + bytes(4) + packed + b"\x1f\x90" + bytes(2)

    assert (found.before, found.now) == (20, 40)
    assert found.apply(before(7) + before(8) + before(200)) == now(7) + now(8) + now(200)
    assert found.apply(b"") == b""


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("__u64 small;", "__u16 small;", None),
        ("__u16 b;\n\t__u16 pad;", "__u8 b;\n\t__u8 pad[3];", "field b of struct part was __u16 and is __u8"),
        ("__be16 port;\n\t__u8 pad[2];", "__be32 port;", "field port of struct row was __be16 and is __be32"),
        ("__be16 port;", "__u16 port;", "field port of struct row was __be16 and is __u16"),
        ("struct part parts[3];", "struct part parts[1];", "parts of struct row had 2 items and has 1"),
    ],
)
def test_what_cannot_be_carried_over_is_said(before: str, after: str, why: str | None) -> None:
    assert before in NEW
    later = former.parse(NEW.replace(before, after))
    if why is None:
        former.conversion(former.parse(BEFORE), later, "row")
        return
    with pytest.raises(former.Refused, match=why):
        former.conversion(former.parse(BEFORE), later, "row")


GC = {"conns", "gc_timers", "confirmed"}


@pytest.mark.parametrize(
    ("before", "after", "maps"),
    [
        ("struct conn {\n", "struct conn {\n\t__u64 more;\n", {"pending", *GC}),
        ("struct gc_timer {\n", "struct gc_timer {\n\t__u64 more;\n", GC),
        ("struct external {\n", "struct external {\n\t__u64 more;\n", {"externals"}),
        ("struct external_key {\n", "struct external_key {\n\t__u64 more;\n", {"externals"}),
        ("struct event {\n", "struct event {\n\t__u64 more;\n", {"events"}),
        ("struct piece {\n", "struct piece {\n\t__u32 more;\n", {"fragments", "frag_queue"}),
        ("struct config {\n", "struct config {\n\t__u64 more;\n", set()),
        ("__u8 limited;\t /* likewise */", "__u8 pad;", set()),
        ("struct host {\n", "struct host {\n\t__u32 more;\n", {"host"}),
    ],
)
def test_the_maps_that_are_made_anew(before: str, after: str, maps: set[str]) -> None:
    """Those whose rows have another size or place; what was padding is none of them, nor what versions do not share."""
    assert TEXT.count(before) == 1
    assert former.changed(former.parse(TEXT.replace(before, after)), NOW) == maps
