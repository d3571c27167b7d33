# SPDX-License-Identifier: Apache-2.0
"""The manual's pages, into a folder: a page a command, by click-man, and those of packaging/man/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
from click_man.core import write_man_pages  # noqa: E402

import datapath  # noqa: E402
from ctl.cli.errors import PROGRAM  # noqa: E402
from ctl.cli.main import cli  # noqa: E402

REASON = re.compile(r"^\t((?:DROP_)?[A-Z0-9_]+) = \d+,[ \t]*(?:/\*(.*?)\*/)?", re.MULTILINE | re.DOTALL)
NOT_REASONS = ("DROP_FIRST", "REASON_COUNT")
# Commands of administrators are in section 8, where click-man knows of 1; and a page has no space in its name.
CORRECTIONS = (
    (re.compile(r'^\.TH "([^"]*)" "1"', re.MULTILINE), lambda m: f'.TH "{m[1].replace(" ", "-")}" "8"'),
    (re.compile(r"\\fB([^\\]*)\(1\)\\fP"), lambda m: rf"\fB{m[1].replace(' ', '-')}(8)\fP"),
    (re.compile(r"^(?=['.](?!TH|SH|PP|TP|B ))", re.MULTILINE), lambda m: r"\&"),  # text, and no request
)


def commands(folder: Path) -> None:
    _load(cli)
    write_man_pages(PROGRAM, cli, version=f"datapath {datapath.__version__}", target_dir=str(folder))
    for path in folder.glob(f"{PROGRAM}*.1"):
        text = path.read_text()
        for pattern, replacement in CORRECTIONS:
            text = pattern.sub(replacement, text)
        path.with_suffix(".8").write_text(text)
        path.unlink()


def _load(group: click.Group) -> None:
    """Its commands are imported when somebody wants them, and click-man does not ask; 0.4 trips over what is hidden."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        command.short_help = command.get_short_help_str(limit=200)  # a whole sentence
        command.params = [param for param in command.params if not getattr(param, "hidden", False)]
        if isinstance(command, click.Group):
            _load(command)


def reasons() -> str:
    """A paragraph a reason, by abi.h's own words."""
    text = (ROOT / "bpf/abi.h").read_text()
    enum = text[text.index("enum reason {") :].partition("};")[0]
    paragraphs = []
    for name, comment in REASON.findall(enum):
        if name not in NOT_REASONS:
            words = " ".join(word for word in comment.split() if word != "*")
            paragraphs.append(f".TP\n.B {name}\n{words or 'As its name says.'}")
    return "\n".join(paragraphs)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page in folder.glob("*.[0-9]"):
        page.unlink()
    commands(folder)
    for page in (ROOT / "packaging/man").iterdir():
        text = page.read_text().replace("@VERSION@", datapath.__version__)
        (folder / page.name).write_text(text.replace("@REASONS@\n", reasons() + "\n"))


if __name__ == "__main__":
    main()
