# SPDX-License-Identifier: Apache-2.0
"""abi.h means the same to everybody: to clang in every object, to the compiler of the extension, to Python."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from datapath.kernel._libbpf import ffi

from datapath.dataplane.layout import HOOKS, MAPS, OBJECT_FILES
from datapath.kernel import abi, bpf_maps, libbpf
from tests.bpf.fixtures import private_bpffs

SOURCE = Path(__file__).parents[2] / "bpf" / "abi.h"
TEXT = re.sub(r"/\*.*?\*/", "", SOURCE.read_text(), flags=re.S)
STRUCTS = re.findall(r"^struct (\w+) \{", TEXT, flags=re.M)
ENUMS = re.findall(r"^enum (\w+) \{(.*?)\n\};", TEXT, flags=re.M | re.S)
NAME_LENGTH = 15  # BPF_OBJ_NAME_LEN without the end


@functools.cache
def btf(name: str) -> list[dict[str, Any]]:
    path = abi.OBJECTS / f"{name}.bpf.o"
    done = subprocess.run(
        ["bpftool", "btf", "dump", "file", str(path), "-j"], capture_output=True, text=True, check=True
    )
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


@functools.cache
def named(name: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The object's types that have a name, by kind and name."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in btf(name):
        if "name" in one:
            found.setdefault((one["kind"], one["name"]), []).append(one)
    return found


def in_object(name: str, kind: str, which: str) -> dict[str, Any] | None:
    found = named(name).get((kind, which), [])
    assert len(found) <= 1
    return found[0] if found else None


def test_objects_were_built_from_this_contract() -> None:
    assert (abi.OBJECTS / "abi.h").read_bytes() == SOURCE.read_bytes()


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_is_the_same_in_every_object(struct: str) -> None:
    kind = ffi.typeof(f"struct {struct}")
    wanted = (ffi.sizeof(kind), [(field, info.offset * 8) for field, info in kind.fields])
    seen = {name: found for name in OBJECT_FILES if (found := in_object(name, "STRUCT", struct))}
    # Nothing names the type of what is in a ring buffer; `test_every_drop_may_be_reported` reads it for real.
    assert seen or struct == "event", "no object uses it"
    for name, found in seen.items():
        assert (found["size"], [(m["name"], m["bits_offset"]) for m in found["members"]]) == wanted, name


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_survives_python(struct: str) -> None:
    """Every byte that is not padding comes back from Python as it went in; padding comes back as zero."""
    layout = abi.layout(struct)
    kind = ffi.typeof(f"struct {struct}")
    assert layout.size == ffi.sizeof(kind)
    raw = bytes(range(1, 1 + layout.size % 256)) if layout.size < 256 else bytes(layout.size)
    padding = {
        i
        for field, info in kind.fields
        if field == "pad" or info.type.cname == "struct bpf_timer"
        for i in range(info.offset, info.offset + ffi.sizeof(info.type))
    }
    nested = [(info.offset, info.type) for _, info in kind.fields if info.type.kind == "struct"]
    for start, inner in nested:
        padding |= {
            start + info.offset + i
            for field, info in inner.fields or ()
            if field == "pad"
            for i in range(ffi.sizeof(info.type))
        }
    wanted = bytes(0 if i in padding else byte for i, byte in enumerate(raw))
    assert layout.pack(layout.unpack(raw)) == wanted


def test_a_run_of_ports_is_packed_as_its_rows_are() -> None:
    layout = abi.layout("port_key")
    first = abi.port_key(IPv4Address("192.0.2.1"), 250, 6)  # over the end of the lower byte
    rows = b"".join(layout.pack(first._replace(port=250 + i)) for i in range(20))
    assert layout.pack_range(first, 20, "port") == rows
    assert layout.pack_range(first, 2) == layout.pack(first) * 2


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_has_no_hidden_padding(struct: str) -> None:
    """A key is compared byte by byte: what the compiler puts in between would be part of it."""
    at = 0
    for field, info in ffi.typeof(f"struct {struct}").fields:
        assert info.offset == at, field
        at += ffi.sizeof(info.type)
    assert at == ffi.sizeof(f"struct {struct}")


@pytest.mark.parametrize("enum", [name for name, _ in ENUMS])
def test_enum_is_the_same_in_every_object(enum: str) -> None:
    wanted = dict(ffi.typeof(f"enum {enum}").relements)
    for name in OBJECT_FILES:
        found = in_object(name, "ENUM", enum)
        if found:
            assert {v["name"]: v["val"] for v in found["values"]} == wanted, name


def test_every_reason_has_a_name_of_its_own() -> None:
    body = dict(ENUMS)["reason"]
    pairs = [(name, int(value)) for name, value in re.findall(r"(\w+) = (\d+)", body)]
    reasons = [(name, value) for name, value in pairs if name not in ("DROP_FIRST", "REASON_COUNT")]
    assert len({name for name, _ in reasons}) == len({value for _, value in reasons}) == len(reasons)
    assert {reason.name: int(reason) for reason in abi.Reason} == dict(reasons)
    assert max(value for _, value in reasons) < dict(pairs)["REASON_COUNT"]
    drops = {name for name, value in reasons if value >= abi.DROP_FIRST}
    assert drops == {name for name, _ in reasons if name.startswith("DROP_")}


def test_every_reason_is_used() -> None:
    """One that nothing counts would promise what is not looked at."""
    text = "".join(path.read_text() for path in SOURCE.parent.rglob("*.[ch]") if path != SOURCE)
    unused = [reason.name for reason in abi.Reason if not re.search(rf"\b{reason.name}\b", text)]
    assert unused == []


@pytest.mark.parametrize("name", OBJECT_FILES)
def test_names_fit_the_kernel(name: str) -> None:
    """Names of programs and maps, and that they are those that Python knows."""
    with private_bpffs() as pins:
        programs, maps = libbpf.load_object(
            abi.OBJECTS / f"{name}.bpf.o", pins=pins, config=abi.config(), sizes={"conns": 64, "pending": 64}
        )
        try:
            names = [*(program.name for program in programs), *maps]
            assert [one for one in names if len(one) > NAME_LENGTH] == []
            assert tuple(sorted(program.name for program in programs)) == tuple(sorted(OBJECT_FILES[name]))
            # Python reads events, and nothing of what the programs note for themselves.
            assert set(maps) - set(MAPS) <= {
                "confirmed",
                "flow_queue",
                "cuts",
                "events",
                "frames",
                "new_fragments",
                "no_sources",
                "name_rooms",
                "askings",
                "message_rooms",
                "tails",
                "ways",
                "tx_flows",
                "rx_flows",
                "tx_wides",
                "rx_wides",
                "host_flows",
                "openings",
                "scratches",
                "gc_timers",
            }
            for one in set(maps) & set(MAPS):
                bpf_maps.Map(maps.pop(one), one, *MAPS[one]).close()
        finally:
            for fd in (*(program.fd for program in programs), *maps.values()):
                os.close(fd)
    if name in HOOKS:
        assert [program.name for program in programs] == [name]
