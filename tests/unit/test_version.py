# SPDX-License-Identifier: Apache-2.0
"""Rows that the version before has written are read as they were meant: what upgrade relies on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datapath.kernel._libbpf import ffi

# Struct -> its size, and its fields with place and size, in bytes, as the version before had them under today's names.
BEFORE = json.loads(Path(__file__).with_name("layout_before.json").read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_each_field_that_the_version_before_had_lies_where_it_did(name: str) -> None:
    """If it fails because a row has to change, the maps of the version before are not understood any more: what
    datapath.dataplane.version says of layouts and names before goes, and so does layout_before.json."""
    kind = ffi.typeof(f"struct {name}")
    assert ffi.sizeof(kind) == BEFORE[name]["size"]
    fields = {field: [info.offset, ffi.sizeof(info.type)] for field, info in kind.fields if field != "pad"}
    assert {field: fields.get(field) for field in BEFORE[name]["fields"]} == BEFORE[name]["fields"]


def test_what_is_new_in_a_row_was_padding() -> None:
    for name, before in BEFORE.items():
        taken = [range(at, at + size) for at, size in before["fields"].values()]
        for field, info in ffi.typeof(f"struct {name}").fields:
            if field != "pad" and field not in before["fields"]:
                place = range(info.offset, info.offset + ffi.sizeof(info.type))
                assert not any(set(place) & set(other) for other in taken), (name, field)
