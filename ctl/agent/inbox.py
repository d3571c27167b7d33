# SPDX-License-Identifier: Apache-2.0
"""What the threads that ask a cluster's store tell the agent's loop."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datapath.cluster.addresses import Part
    from datapath.store.cluster import Change


@dataclass(frozen=True, slots=True)
class Listed:
    """All that there is of the networks that the host takes part in."""

    part: Part


@dataclass(frozen=True, slots=True)
class Changed:
    """What has changed since."""

    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing more is heard of changes: the store is to be listed again. `why`: it does not answer; "": it does not
    know what has changed. `restored`: it is not as far as it was."""

    why: str = ""
    restored: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """The store has answered, and knows that the host lives."""


@dataclass(frozen=True, slots=True)
class Away:
    """The store has not answered, or could not be told what is this host's; and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the journal."""

    line: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in the program itself, which has ended the thread."""

    error: Exception


Message = Listed | Changed | Lost | Reached | Away | Note | Failure


class Inbox:
    """Messages with whom they are from, in the order in which they came. Its descriptor can be read while there are
    some. Any thread may put some in, also once it is closed."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[object, Message]] = deque()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def put(self, source: object, message: Message) -> None:
        self._waiting.append((source, message))
        with contextlib.suppress(OSError):  # it is closed
            os.eventfd_write(self._fd, 1)

    def take(self) -> list[tuple[object, Message]]:
        """All that wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        found = []
        while self._waiting:
            found.append(self._waiting.popleft())
        return found

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
