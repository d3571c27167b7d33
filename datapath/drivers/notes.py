# SPDX-License-Identifier: Apache-2.0
"""What drivers note beside the rows: how settings of the host were, and what others have given out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Notes(Protocol):
    """Where settings of the host are noted that are to be put back as they were: the store."""

    def note(self, key: str) -> str | None: ...

    def set_note(self, key: str, value: str | None) -> None: ...

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]: ...
