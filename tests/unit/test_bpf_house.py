# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, of the packet side."""

from __future__ import annotations

import re
from pathlib import Path

BPF = Path(__file__).parents[2] / "bpf"
SOURCES = sorted(path for path in BPF.rglob("*.[ch]") if "trace" not in path.parts)
HOOKS = sorted(BPF.glob("*.bpf.c"))
WRITES = re.compile(r"\bbpf_(?:skb_store_bytes|skb_change_(?:head|tail)|l[34]_csum_replace)\b")
COUNTS = re.compile(r"&(?:counters|events)\b")
WRITERS = {
    "lib/rewrite.h",
    "lib/split.h",
    "lib/family.h",
    "lib/message.h",
    "lib/reply.h",
    "lib/encap.h",
    "lib/relay.h",
    "lib/virtual.h",
    "lib/asked.h",
}
# Those that act, each with whom it may call.
ACTING = {
    "lib/answers.h": {"lib/exits.h"},
    "lib/asking.h": {"lib/exits.h"},
    "lib/exits.h": set(),
    "lib/flows.h": {"lib/exits.h"},
    "lib/forward.h": {"lib/exits.h", "lib/hairpin.h"},
    "lib/groups.h": {"lib/exits.h"},
    "lib/hairpin.h": {"lib/exits.h"},
    "lib/inbound.h": {"lib/exits.h", "lib/forward.h"},
    "lib/nearby.h": {"lib/exits.h", "lib/forward.h"},
    "lib/outside.h": {"lib/inbound.h"},
    "lib/peers.h": {"lib/exits.h", "lib/forward.h", "lib/served.h"},
    "lib/served.h": {"lib/forward.h"},
    "lib/straight.h": {"lib/exits.h"},
    "lib/taken.h": {"lib/forward.h"},
}


def name(path: Path) -> str:
    return str(path.relative_to(BPF))


def test_few_headers_write_into_packets_and_one_counts() -> None:
    texts = {name(path): path.read_text() for path in SOURCES}
    assert {one for one, text in texts.items() if WRITES.search(text)} <= WRITERS
    assert {one for one, text in texts.items() if COUNTS.search(text)} <= {"lib/verdict.h"}


def test_a_header_that_answers_knows_none_that_acts() -> None:
    for path in [path for path in SOURCES if path not in HOOKS]:
        included = set(re.findall(r'#include "(.*)"', path.read_text()))
        assert included & ACTING.keys() <= ACTING.get(name(path), set()), path
        assert all((BPF / header).exists() for header in included), path


def test_a_file_has_one_subject() -> None:
    """Which cannot be counted, but its lines can. (The contract is one text however many subjects it has: cffi
    includes nothing, and an upgrade tells versions apart, and reads their rows, by this one file of each.)"""
    lines = {name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {one: many for one, many in lines.items() if many > (1200 if one == "abi.h" else 400)} == {}
