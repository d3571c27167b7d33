# SPDX-License-Identifier: Apache-2.0
"""The example of docs/library.md, taken out of the page and run: it does, and prints, what the page says (S33)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.net.hosts import HOST, TIMEOUT, TREE, Host, ask

PAGE = (TREE / "docs/library.md").read_text()
# A /run of its own: `ip netns add` writes there, and a second run of the suite uses the same name.
ALONE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs run /run && exec "$0" "$@"']


def block(language: str) -> str:
    """The page's only code block in that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_s33_the_librarys_page_has_an_example_that_works(host: Host, tmp_path: Path) -> None:
    """The port is answered from outside while the example waits; afterwards all of it is gone."""
    script = tmp_path / "example.py"
    script.write_text(block("python"))
    promised = block("text").splitlines(keepends=True)
    pause = 1 + next(n for n, line in enumerate(promised) if "press Enter" in line)
    example = host.start(
        [*ALONE, sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert example.stdout is not None
    printed = [example.stdout.readline() for _ in range(pause)]
    if printed == promised[:pause]:
        assert host.outside.sh(ask("tcp", HOST, 8080)) == f"hello {HOST} 8080"
        assert host.ctl("network ls --filter name=shop --format {{.Owner}}") == "example"
    rest, errors = example.communicate("\n", timeout=TIMEOUT)
    assert ("".join(printed) + rest, errors, example.returncode) == ("".join(promised), "", 0)

    assert "shop" not in host.ctl("network ls") and "8080" not in host.ctl("port ls")
    assert host.try_ctl("doctor").stdout == "No problems found.\n"
    assert host.outside.try_(ask("tcp", HOST, 8080)).returncode != 0
