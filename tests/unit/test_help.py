# SPDX-License-Identifier: Apache-2.0
"""What commands say of themselves: sentences, examples that are right, and the pages made of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ctl.cli import main, reference
from ctl.cli.examples import EXAMPLES
from datapath.kernel import abi
from datapath.model.reasons import MEANINGS

REFERENCE = Path(__file__).parents[2] / "docs/reference"
COMMANDS = dict(reference.commands())


def shown(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS)
def test_every_help_is_made_of_sentences(words: str) -> None:
    """With a capital and a full stop, of the command and of each option; the first fits into the list of commands."""
    command = COMMANDS[words]
    texts = [text for _, text in reference.option_rows(command)]
    for text in [*texts, *(command.help or "").split("\n\n")]:
        text = " ".join(text.split())
        assert re.fullmatch(r"[A-Z`\"-].*[.:]", text), text
    first = (command.help or "").split("\n")[0]
    assert first.endswith(".") and (len(first) <= 62 or not words), first


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_an_example_that_is_right(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its words and options are there, as the command line itself reads them."""
    assert EXAMPLES[words]
    out = shown(words, capsys)
    for line in EXAMPLES[words]:
        assert f"\n  datapathctl {line}\n" in out
        argv = shlex.split(line.partition(" > ")[0])
        assert argv[: len(words.split())] == words.split() or words in ("", "bench", "container")
        command: click.Command = main.cli
        context = click.Context(command, info_name="datapathctl", **command.context_settings)
        while isinstance(command, click.Group) and argv:
            _, found, argv = command.resolve_command(context, argv)
            assert found is not None
            command, context = found, click.Context(found, context, info_name=found.name)
        if not isinstance(command, click.Group):
            command.make_context(context.info_name, list(argv), parent=context.parent)


def test_a_container_in_place_of_a_command_of_port_has_the_groups_name_and_its_own_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shown("port web", capsys)
    assert out.startswith("Usage: datapathctl port [OPTIONS] CONTAINER [PORT[/PROTOCOL]]\n")
    assert out.endswith("".join(f"  datapathctl {line}\n" for line in EXAMPLES["port show"]))


def test_examples_are_of_commands() -> None:
    others = {"container", "port show", "_exited"}
    assert EXAMPLES.keys() - others == COMMANDS.keys()


def test_h_is_help_everywhere_but_for_run(capsys: pytest.CaptureFixture[str]) -> None:
    for words in COMMANDS:
        if words != "run":
            assert main.run([*words.split(), "-h"]) == 0
            assert capsys.readouterr().out == shown(words, capsys)
    assert main.run(["run", "-h"]) == 125
    assert "Option '-h' requires an argument" in capsys.readouterr().err


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("", "run", "network", "network create"):
        assert main.run(["help", *words.split()]) == 0
        assert capsys.readouterr().out == shown(words, capsys)


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_what_the_program_says(name: str) -> None:
    """`python -m ctl.cli.reference docs/reference` writes it again."""
    assert (REFERENCE / name).read_text() == reference.PAGES[name]()


def test_the_reference_has_every_command_and_option_that_click_has() -> None:
    page = (REFERENCE / "commands.md").read_text()
    parts = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))

    def look(command: click.Command, path: tuple[str, ...]) -> None:
        part = parts[" ".join(path) or "datapathctl"]
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert all(re.search(rf"`[^`]*(?<![\w-]){name}(?![\w-])", part) for name in param.opts), (
                    param.opts
                )
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                if not inner.hidden and (*path, name) != ("container",):
                    look(inner, (*path, name))

    look(main.cli, ())
    assert len(parts) == len(COMMANDS)


def test_every_reason_of_the_packet_programs_has_its_meaning() -> None:
    assert list(MEANINGS) == [reason.name for reason in abi.Reason]
    for name, meaning in MEANINGS.items():
        assert meaning.packet and (meaning.look or not name.startswith("DROP_"))
