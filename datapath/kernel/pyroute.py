# SPDX-License-Identifier: Apache-2.0
"""pyroute2's rtnetlink, for what no usual command waits for: importing it takes longer than all that `links` does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import log
from datapath.kernel.netns import Netns, enter


@contextlib.contextmanager
def opened(netns: Netns = None) -> Iterator[Any]:
    """A socket in the namespace, with the thread in it too (for indexes and sysctls)."""
    from pyroute2 import IPRoute

    with enter(netns):
        with translated("open", "rtnetlink socket"):
            route = IPRoute(strict_check=True)
        try:
            yield route
        finally:
            route.close()


@contextlib.contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """pyroute2's errors and the system's as KernelError. The block is logged as one operation."""
    from pyroute2 import NetlinkError

    try:
        with log.operation(operation, subject):
            yield
    except NetlinkError as error:
        raise KernelError(operation, subject, abs(int(error.code))) from error
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0) from error
