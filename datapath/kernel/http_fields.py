# SPDX-License-Identifier: Apache-2.0
"""The header fields of an HTTP message, as RFC 9112 has them.

email.parser, which http.client asks, takes longer to import than all else that a server needs.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def parse(lines: bytes) -> dict[str, list[str]]:
    """Values by name, in small letters. ValueError: a line is no field; one that continues the line before is none."""
    found: dict[str, list[str]] = {}
    for line in lines.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if line and not (colon and _NAME.fullmatch(name)):
            raise ValueError(f"{line[:100]!r} is no header field")
        if line:
            found.setdefault(name.lower(), []).append(value.strip(" \t"))
    return found
