# SPDX-License-Identifier: Apache-2.0
"""Mistakes and Docker's words: what is typed, and the exact line that it gets."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from ctl.cli import main, reference
from ctl.cli.words import COMMANDS, OPTIONS

DATA = Path(__file__).with_name("data")
ROWS = [
    row.split("\n", 1) for row in (DATA / "mistakes.txt").read_text().removesuffix("\n").split("\n\n$ ")[1:]
]
DOCKER: dict[str, list[str]] = {}
for line in (DATA / "docker_words.txt").read_text().splitlines():
    if ": " in line and not line.startswith("#"):
        DOCKER.setdefault(line.split(": ")[0], []).extend(line.split(": ")[1].split())


@pytest.mark.parametrize(("typed", "answer"), ROWS, ids=[typed for typed, _ in ROWS])
def test_a_mistake_gets_this_line(
    typed: str,
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("STATE_DIR", "RUN_DIR", "BPFFS"):
        monkeypatch.setenv(f"DATAPATH_{name}", str(tmp_path / name))
    monkeypatch.setattr("sys.stdin", None)
    code = main.run(shlex.split(typed))
    out, err = capsys.readouterr()
    assert (f"{code} {err}", out) == (
        f"{answer.partition(' ')[0]} datapathctl: {answer.partition(' ')[2]}\n",
        "",
    )
    assert list(tmp_path.iterdir()) == [], "nothing was touched"


GROUPS = ("", *(name for name, found in reference.commands() if isinstance(found, click.Group) and name))
SIGNS = (
    ("-x", "option '-x'"),
    ("--foo", "option '--foo'"),
    ("--foo=1", "option '--foo'"),
    ("-x --help", "option '-x'"),
    ("-", "command '-'"),
    ("-- -x", "command '-x'"),
    ("+x", "command '+x'"),
    ("+x --help", "command '+x'"),
    ("/x", "command '/x'"),
    ("=x", "command '=x'"),
)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("typed", "what"), SIGNS, ids=[typed for typed, _ in SIGNS])
def test_a_word_that_begins_with_a_sign_is_a_mistake_too(
    group: str, typed: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No reason to print the help."""
    code = main.run([*group.split(), *typed.split()])
    if group == "port":
        what = what.replace("command", "command or container")
    line = f"datapathctl: No such {what}. See '{' '.join(['datapathctl', *group.split()])} --help'.\n"
    assert (code, *capsys.readouterr()) == (2, "", line)


def test_there_are_as_many_as_the_first_hour_asks_for() -> None:
    assert len(ROWS) >= 120 and len({typed for typed, _ in ROWS}) == len(ROWS)


def command(path: str) -> click.Command | None:
    found: click.Command | None = main.cli
    for word in path.split():
        found = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
    return found


def options(path: str) -> set[str]:
    found = command(path)
    assert found is not None
    context = click.Context(found, help_option_names=["-h", "--help"])
    return {name for param in found.get_params(context) for name in (*param.opts, *param.secondary_opts)}


def test_every_command_of_dockers_is_there_or_has_a_line() -> None:
    for group, prefix in (("commands", ""), ("container", ""), ("network", "network ")):
        for word in DOCKER[group]:
            there = command(f"{'' if group == 'commands' else group} {word}") is not None
            assert there != (f"{prefix}{word}" in COMMANDS) or word in ("stats", "top"), word


@pytest.mark.parametrize("path", [key for key in DOCKER if key not in ("commands", "container", "network")])
def test_every_option_of_dockers_is_there_or_has_a_line(path: str) -> None:
    ours = "" if path == "options" else path
    told, there = OPTIONS.get(ours, {}).keys(), options(ours)
    assert set(DOCKER[path]) <= told | there
    assert not told & there, "there is no line for what is there"
    assert told <= {*DOCKER[path]}, "and none for what Docker does not have"


def test_no_answer_to_a_word_of_dockers_suggests_another_word(capsys: pytest.CaptureFixture[str]) -> None:
    """What is spelled alike is another thing: `top` is not `stop`, and --cap-add not --mac-address."""
    for word in COMMANDS:
        assert main.run(word.split()) == 2
    for path, told in OPTIONS.items():
        for name in told:
            assert main.run([*path.split(), name]) in (2, 125)
    said = capsys.readouterr().err
    assert said.count("\n") == len(COMMANDS) + sum(map(len, OPTIONS.values())) > 150
    assert "Did you mean" not in said and "No such" not in said


def test_every_line_is_a_clause_without_a_full_stop() -> None:
    for text in [*COMMANDS.values(), *(text for told in OPTIONS.values() for text in told.values())]:
        assert text.isprintable() and not text.endswith((".", "?")) and 4 < len(text) < 110, text
