# SPDX-License-Identifier: Apache-2.0
"""A wheel for any distribution with glibc: auditwheel puts libraries into it, this the licences that they are under.

wheel.py WHEEL FOLDER
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Library that may be brought along: its package of Debian's, its licence, and the texts that this is written in.
BROUGHT = {
    "libbpf": ("libbpf1", "(LGPL-2.1-only OR BSD-2-Clause)", ("LGPL-2.1",)),
    "libelf": ("libelf1", "(GPL-2.0-or-later OR LGPL-3.0-or-later)", ("GPL-2", "GPL-3", "LGPL-3")),
    "libz": ("zlib1g", "Zlib", ()),
}
DOC, TEXTS = Path("/usr/share/doc"), Path("/usr/share/common-licenses")


def main() -> None:
    built, folder = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        run("auditwheel", "repair", "-w", scratch, built)
        (repaired,) = Path(scratch).glob("*.whl")
        run("wheel", "unpack", "-d", scratch, repaired)
        (unpacked,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        add_licences(unpacked)
        run("wheel", "pack", "-d", folder, unpacked)


def run(name: str, *words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", name, *words], check=True)


def add_licences(unpacked: Path) -> None:
    """Of every library that is in there: its copyright file, the texts, and the expression in the metadata."""
    (info,) = unpacked.glob("*.dist-info")
    expressions, texts = [], {}
    for library in unpacked.glob("*.libs/*.so*"):
        package, expression, names = BROUGHT[library.name.partition("-")[0].partition(".")[0]]
        expressions.append(expression)
        texts[f"{package}.copyright"] = DOC / package / "copyright"
        texts |= {f"{name}.txt": TEXTS / name for name in names}
    lines = []
    for name, path in texts.items():
        (info / "licenses" / name).write_bytes(path.read_bytes())
        lines.append(f"License-File: {name}\n")
    metadata = info / "METADATA"
    text, count = re.subn(
        r"^(License-Expression: .*)\n",
        lambda m: " AND ".join((m[1], *expressions)) + "\n",
        metadata.read_text(),
        count=1,
        flags=re.MULTILINE,
    )
    assert count == 1
    metadata.write_text(text.replace("\nLicense-File: ", "\n" + "".join(lines) + "License-File: ", 1))


if __name__ == "__main__":
    main()
