# SPDX-License-Identifier: Apache-2.0
"""The files of the page, read before the process that sends them can read none."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class File(NamedTuple):
    """`packed`: by gzip."""

    kind: str
    content: bytes
    packed: bytes
    tag: str


def load() -> dict[str, File]:
    """By the path that a browser asks for."""
    found = {}
    for folder, prefix in (("page", "/"), ("vendor", "/vendor/")):
        for path in (_FOLDER / folder).iterdir():
            if path.suffix in KINDS:
                content = path.read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
                packed = gzip.compress(content, mtime=0)
                found[prefix + path.name] = File(KINDS[path.suffix], content, packed, tag)
    found["/"] = found.pop("/index.html")
    return found
