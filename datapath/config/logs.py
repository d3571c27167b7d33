# SPDX-License-Identifier: Apache-2.0
"""`log-opts` of daemon.json and --log-opt of `run`: how large a container's log may become. Docker's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from datapath.errors import ConfigError, quoted

_SIZE = re.compile(r"([0-9]{1,15})([kmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def log_options(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The options, checked. ConfigError."""
    found = dict(pairs)
    for name, value in found.items():
        if name == "max-size":
            log_size(found)
        elif name != "max-file":
            raise ConfigError(f"unknown log option {quoted(name)}: there are max-file, max-size")
        elif not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= 1000 and len(value) < 9):
            raise ConfigError(f"invalid max-file {quoted(value)}: expected 1 to 1000 files")
    if int(found.get("max-file", "1")) > 1 and not log_size(found):
        raise ConfigError("max-file has no meaning without max-size")
    return found


def log_size(options: Mapping[str, str]) -> int:
    """`max-size` in bytes; 0: without end. ConfigError."""
    text = options.get("max-size", "-1")
    found = _SIZE.fullmatch(text)
    if text == "-1":
        return 0
    if found is None or not int(found[1]):
        raise ConfigError(f"invalid max-size {quoted(text)}: expected a size such as 10m, or -1")
    return int(found[1]) * _UNITS[found[2].lower()]
