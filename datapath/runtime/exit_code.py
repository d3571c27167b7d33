# SPDX-License-Identifier: Apache-2.0
"""The exit code that a container's shim records in a file at its end."""

from __future__ import annotations

from datapath.errors import KernelError


def read(path: str) -> int | None:
    """The recorded code; None: the shim has not recorded one (yet). KernelError."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise KernelError("read", path, error.errno or 0) from error
