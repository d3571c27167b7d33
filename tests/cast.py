# SPDX-License-Identifier: Apache-2.0
"""A recording of a terminal (asciicast v2, what asciinema plays): the first five minutes with datapathctl.

The recording is the script: `python -m tests.cast FILE` types its commands again in a pretend host (`transcripts`), and
writes what came. tests/net/test_transcripts.py plays it back in the same way and compares. Commands that install a
package are not typed again; `make test-packages` types them in fresh roots.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests import transcripts

PROMPT = "# "
KEY, PAUSE = 0.04, 1.2  # seconds a key, and between a command's end and the next one
INSTALLS = ("apt ", "apt-get ")
REFUSED = "Couldn't connect to server"


class Typed(NamedTuple):
    """A command, what it printed, and for how many seconds it ran."""

    command: str
    output: str
    seconds: float


def read(cast: Path) -> Iterator[Typed]:
    """The commands of a recording."""
    header, *lines = cast.read_text().splitlines()
    assert json.loads(header)["version"] == 2
    command, output, began, ended = "", "", 0.0, 0.0
    for when, kind, data in [*(json.loads(line) for line in lines), [0.0, "i", ""]]:
        if kind == "i":
            if command:
                yield Typed(command, output, ended - began)
            command, output, began = data.removesuffix("\r"), "", when
        elif data != f"{PROMPT}{command}\r\n":
            output, ended = output + data.replace("\r\n", "\n"), when


def write(cast: Path, played: list[Typed]) -> None:
    """As if somebody had typed it."""
    header = {"version": 2, "width": 120, "height": 40, "title": "datapath: the first five minutes"}
    lines, now = [json.dumps(header)], 0.0

    def event(kind: str, data: str) -> None:
        lines.append(json.dumps([round(now, 3), kind, data], ensure_ascii=False))

    for typed in played:
        now += PAUSE + KEY * len(typed.command)
        event("i", f"{typed.command}\r")
        event("o", f"{PROMPT}{typed.command}\r\n")
        now += typed.seconds
        if typed.output:
            event("o", typed.output.rstrip("\n").replace("\n", "\r\n") + "\r\n")
    cast.write_text("\n".join(lines) + "\n")


def play(cast: Path, anew: bool = False) -> Iterator[tuple[Typed, Typed]]:
    """Each command as it was recorded, and as it came; `anew`, whatever was recorded."""
    with transcripts.pretend_host() as shell:
        for typed in read(cast):
            if typed.command.startswith(INSTALLS):
                yield typed, typed
                continue
            began = time.monotonic()
            got = shell.type(typed.command)
            while anew and REFUSED in got:  # the server has just been started
                got, began = shell.type(typed.command), time.monotonic()
            if not anew:
                got = transcripts.typed(shell, transcripts.Step(typed.command, typed.output, ""), got)
            yield typed, Typed(typed.command, got, time.monotonic() - began)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write(place, [came for _, came in play(place, anew=True)])
