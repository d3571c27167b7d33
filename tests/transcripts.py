# SPDX-License-Identifier: Apache-2.0
"""Transcripts in the documents: each console block is typed again in a pretend host, and what comes is compared.

`python -m tests.transcripts docs/tour.md` types a page's commands and says what differs; `--record` writes what came
into the page. A page's host is the one that the first block of docs/tour.md makes; `<!-- host: PAGE -->`: with what the
block of that page adds. Its `<!-- before: COMMAND -->` lines are typed first. What no two runs have in common is masked
(`masked`). A block says by a word after `console` what of its output counts: `numbers`, everything but the numbers and
the order of lines; `first`, the first line alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.net.runtimes import remove_groups

ROOT = Path(__file__).parents[1]
PLAY = "/tmp/play"  # what pages call the folder that everything of theirs is in
GROUPS = "datapath-play"  # what docs/docker.md calls those of Docker's containers
PATIENCE = 120.0  # seconds for one command
_SETUP = re.compile(r"^```sh setup\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```console ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HOST = re.compile(r"^<!-- host: (.*) -->$", re.MULTILINE)
_BEFORE = re.compile(r"^<!-- before: (.*) -->$", re.MULTILINE)
# What only looks is typed again until it shows what it should: what it asks may just have been started.
_LOOKS = re.compile(
    r"(outside |datapathctl exec \w+ )?(curl|cat|nc|ip|ping|traceroute) |"
    r"datapathctl (run --rm .* curl|logs|ps|ct ls|ct stats|stats|flows|port ls|network ls|doctor)"
)
_END = "--end of the answer--"

_MASKS = [
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\bveth[0-9a-f]{7}\b"), "vethID"),
    (re.compile(r"@if\d+"), "@ifN"),
    (re.compile(r"\b(?!02:42:ac|02:42:0a)(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "MAC"),
    (re.compile(r"\bfe80::[0-9a-f:]+|\bfd[0-9a-f]{2}:[0-9a-f]{1,4}:[0-9a-f]{1,4}::"), "ADDRESS"),
    (re.compile(r"\d+/\w{3}/\d{4} \d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r"(?:[\d.]+/)+[\d.]+ ms|\b\d+(?:\.\d+)? ?ms\b|after \d+ milliseconds"), "TIME"),
    (re.compile(r"\b(?:About an?|Less than a|\d+) (?:second|minute)s?(?: ago)?\b"), "TIME"),
    (re.compile(r"\d+(?:\.\d+)?%"), "N%"),
    (re.compile(r" {2,}"), "  "),
]
_NUMBER = re.compile(r"\b\d[\d.,]*(?:[smhd]\b)?|\*+")


def masked(text: str, counts: str = "") -> list[str]:
    """The lines of an output, without what differs from run to run."""
    lines = text.strip("\n").split("\n")
    if counts == "first":
        lines = lines[:1]
    for pattern, word in _MASKS:
        lines = [pattern.sub(word, line) for line in lines]
    if counts == "numbers":
        lines = sorted(re.sub(r" +", " ", _NUMBER.sub("N", line)) for line in lines)
    return [line.rstrip() for line in lines]


@dataclass(frozen=True)
class Step:
    """One command of a page, and what it should print; `counts` is the word of its block."""

    command: str
    output: str
    counts: str


def steps(block: str, counts: str) -> Iterator[Step]:
    """The commands of one block, each with the lines below it."""
    command, lines = "", list[str]()
    for line in [*block.rstrip("\n").split("\n"), "# "]:
        if not line.startswith("# "):
            lines.append(line)
            continue
        if command:
            yield Step(command, "\n".join(lines), counts)
        command, lines = line.removeprefix("# "), []


class Shell:
    """A shell on a pretend host of its own, in which commands are typed one by one. Everything that was started there
    ends with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="play-")
        self._shell = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "--norc",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.type(f"export PATH={Path(sys.executable).parent}:$PATH COLUMNS=200 LC_ALL=C.UTF-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shell.poll() is None:
            self.type("datapathctl down")
        self._shell.kill()
        self._shell.communicate()
        self._folder.cleanup()
        remove_groups(GROUPS)

    def type(self, command: str) -> str:
        """What it prints."""
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f"{self._here(command)}\necho; echo '{_END}'\n")
        self._shell.stdin.flush()
        lines = list[str]()
        for line in self._shell.stdout:
            if line == f"{_END}\n":
                return "".join(lines).removesuffix("\n").replace(self._folder.name, PLAY)
            lines.append(line)
        raise RuntimeError(f"the shell has ended at: {command}")

    def _here(self, command: str) -> str:
        return command.replace(PLAY, self._folder.name)


def pretend_host(*pages: str) -> Shell:
    """A shell on the host that docs/tour.md makes, and then these pages."""
    shell = Shell()
    for page in ("docs/tour.md", *pages):
        setup = _SETUP.search((ROOT / page).read_text())
        assert setup
        shell.type(setup[1])
    return shell


def replay(page: Path) -> Iterator[tuple[Step, str]]:
    """Each command of a page, in turn, and what it printed."""
    text = page.read_text()
    with pretend_host(*_HOST.findall(text)) as shell:
        for command in _BEFORE.findall(text):
            shell.type(command)
        for counts, block in _BLOCK.findall(text):
            for step in steps(block, counts):
                yield step, typed(shell, step)


def typed(shell: Shell, step: Step, got: str | None = None) -> str:
    """What a command prints (`got`: the first time). One that only looks is typed again for a while if it shows
    something else."""
    until = time.monotonic() + PATIENCE / 4
    got = shell.type(step.command) if got is None else got
    while differs(step, got) and _LOOKS.match(step.command) and time.monotonic() < until:
        time.sleep(0.5)
        got = shell.type(step.command)
    return got


def differs(step: Step, got: str) -> bool:
    """Whether it printed something else than the page says."""
    return masked(step.output, step.counts) != masked(got, step.counts)


def record(page: Path) -> None:
    """Writes what came, where it differs, into the page."""
    came = replay(page)

    def block(match: re.Match[str]) -> str:
        counts, body = match.groups()
        lines = []
        for _ in steps(body, counts):
            step, got = next(came)
            shown = got if counts or differs(step, got) else step.output
            shown_lines = shown.strip("\n").split("\n") if shown.strip("\n") else []
            lines += [f"# {step.command}", *(line.rstrip() for line in shown_lines)]
        return f"```console{' ' if counts else ''}{counts}\n" + "\n".join(lines) + "\n```"

    text = _BLOCK.sub(block, page.read_text())
    for _ in came:
        raise AssertionError("more commands than blocks")
    page.write_text(text)


def main() -> int:
    """1: a page says something else than what came."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("pages", nargs="+", type=Path)
    options = parser.parse_args()
    wrong = 0
    for page in options.pages:
        if options.record:
            record(page)
            continue
        for step, got in replay(page):
            if differs(step, got):
                wrong += 1
                print(f"{page}: # {step.command}\n--- the page\n{step.output}\n--- came\n{got}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
