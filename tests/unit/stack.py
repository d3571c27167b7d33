# SPDX-License-Identifier: Apache-2.0
"""How much stack the packet programs take, read from their object files as the verifier adds it up.

All functions of a chain of calls share 512 bytes, callbacks of bpf_loop too, and the chain has at most eight of them
(MAX_BPF_STACK, MAX_CALL_FRAMES of linux/bpf_verifier.h). Before Linux 6.9 each function's share is a multiple of 32
bytes.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

LIMIT, FRAMES = 512, 8
_ROUND = 32
_CALL, _LOCAL = 0x85, 0x10  # BPF_JMP | BPF_CALL; the source register BPF_PSEUDO_CALL in the upper half


class Function(NamedTuple):
    section: str
    begin: int
    end: int
    name: str


class Chain(NamedTuple):
    """The chain of calls that takes most. `functions`: with the bytes that each uses."""

    stack: int
    functions: tuple[tuple[str, int], ...]


class Program:
    """One object file."""

    def __init__(self, path: Path) -> None:
        self._functions = _functions(path)
        self._depth: dict[str, int] = defaultdict(int)
        self._calls: dict[str, set[str]] = defaultdict(set)
        self._read(_output("llvm-objdump", "-dr", str(path)))

    def entries(self) -> list[str]:
        """What is attached: functions that are not in the section that all share."""
        return [function.name for function in self._functions if function.section != ".text"]

    def worst(self, name: str) -> Chain:
        return self._worst(name, ())

    def _worst(self, name: str, before: tuple[str, ...]) -> Chain:
        own = -(-max(self._depth[name], 1) // _ROUND) * _ROUND
        below = [self._worst(callee, (*before, name)) for callee in self._calls[name] - {*before, name}]
        deepest = max(below, default=Chain(0, ()), key=lambda chain: chain.stack)
        return Chain(own + deepest.stack, ((name, self._depth[name]), *deepest.functions))

    def frames(self, name: str, before: tuple[str, ...] = ()) -> int:
        """How many functions the longest chain has."""
        callees = self._calls[name] - {*before, name}
        return 1 + max((self.frames(callee, (*before, name)) for callee in callees), default=0)

    def _at(self, section: str, place: int) -> str:
        found = (f.name for f in self._functions if f.section == section and f.begin <= place < f.end)
        return next(found, "")

    def _read(self, listing: str) -> None:
        section = current = text = ""
        number = place = 0
        is_call = False
        for line in listing.splitlines():
            if found := re.match(r"Disassembly of section (\S+):", line):
                section = found[1]
            elif found := re.match(r"\s+(\d+):\s+((?:[0-9a-f]{2}\s){8})\s*(.*)", line):
                before, text = text, found[3]
                place = int(found[1])
                raw = bytes.fromhex(found[2])
                number = int.from_bytes(raw[4:], "little", signed=True)
                current = self._at(section, place * 8)
                offsets = [int(offset) for offset in re.findall(r"r10 - (\d+)", text)]
                if before.endswith("= r10") and (moved := re.match(r"r\d \+= -(\d+)$", text)):
                    offsets.append(int(moved[1]))
                self._depth[current] = max(self._depth[current], *offsets, 0)
                is_call = raw[0] == _CALL
                if is_call and raw[1] == _LOCAL and number != -1:  # -1 is filled in by a relocation
                    self._calls[current].add(self._at(section, (place + 1 + number) * 8))
            elif found := re.match(r"\s+[0-9a-f]+:\s+R_BPF_\S+\s+(\S+)", line):
                self._relocated(current, found[1], (number + 1) * 8 if is_call else number)

    def _relocated(self, current: str, symbol: str, place: int) -> None:
        """A call, or a callback's address. One of .text says by a number where it is."""
        if symbol == ".text":
            symbol = self._at(".text", place)
        if any(function.name == symbol for function in self._functions):
            self._calls[current].add(symbol)


def _functions(path: Path) -> list[Function]:
    sections = dict(re.findall(r"\[\s*(\d+)\]\s+(\S+)", _output("llvm-readelf", "-SW", str(path))))
    found = []
    for line in _output("llvm-readelf", "-sW", str(path)).splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] == "FUNC":
            begin = int(words[1], 16)
            found.append(Function(sections[words[6]], begin, begin + int(words[2]), words[7]))
    return found


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
