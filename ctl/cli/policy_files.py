# SPDX-License-Identifier: Apache-2.0
"""Files of policies, as commands are given them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.errors import ConfigError

if TYPE_CHECKING:
    from datapath.model.policies import Policy

STDIN = "-"


def read(path: str) -> tuple[Policy, ...]:
    """The policies of a file; "-": of the standard input. ConfigError: FILE:LINE and what is wrong; OSError."""
    from datapath.plan.policies.reading import read_policies
    from datapath.plan.policies.trees import MOST_BYTES

    name = "standard input" if path == STDIN else path
    if path == STDIN:
        raw = sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        with Path(path).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    try:
        return read_policies(raw.decode(), name)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: it is not UTF-8") from None
