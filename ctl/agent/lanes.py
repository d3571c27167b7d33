# SPDX-License-Identifier: Apache-2.0
"""How many checks are under way at once, and who is next. Those who may well not answer get half of the places: so many
of them as there may be, others are checked in time. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Lane(Generic[T]):
    """`places`: checks at once."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[bool, deque[T]] = {False: deque(), True: deque()}
        self._there: dict[T, bool] = {}  # who waits or has a place, and whether as a suspect
        self._busy: dict[T, bool] = {}

    def join(self, one: T, suspect: bool) -> None:
        """It wants a place."""
        if one not in self._there:
            self._there[one] = suspect
            self._waiting[suspect].append(one)

    def next(self) -> Iterator[T]:
        """Those who get a place now."""
        for suspect, waiting in self._waiting.items():
            while waiting and self._room(suspect):
                one = waiting.popleft()
                self._busy[one] = suspect
                yield one

    def _room(self, suspect: bool) -> bool:
        if len(self._busy) >= self._places:
            return False
        return not suspect or sum(self._busy.values()) < self._places // 2

    def leave(self, one: T) -> None:
        """It needs its place no more."""
        if one in self._there:
            suspect = self._there.pop(one)
            if self._busy.pop(one, None) is None:
                self._waiting[suspect].remove(one)
