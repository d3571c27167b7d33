# SPDX-License-Identifier: Apache-2.0
"""What the reader says, kept for those who come later, and sent to all browsers that watch: a whole picture first, and
then what has changed. Who comes again within two minutes gets only what he has missed."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datapath.telemetry.page import Picture, patch

from .reader import COST_EVERY, memory

if TYPE_CHECKING:
    from datapath.kernel.separate import Socket

WATCHERS = 32
QUEUE = 32  # events that wait for a browser before it is cut off: half a minute
ASKED = 8  # questions that wait for the reader
_KEPT = 120
_LONGEST = 64 << 20  # bytes of a line: a picture has a few MB at the most


class Busy(Exception):
    """There are as many as may be."""


class Watcher:
    """One browser. `overrun`: it did not take what was sent."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
        self.overrun = asyncio.Event()

    def send(self, event: bytes) -> None:
        """Never waits."""
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.overrun.set()


class Feed:
    """`opened`: the connection to the reader."""

    def __init__(self, opened: Socket) -> None:
        self._socket = opened
        self.picture: Picture = {}
        self._now = 0.0
        self._run = secrets.token_hex(4)  # another process counts anew
        self._number = 0
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._watchers: set[Watcher] = set()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._questions = 0
        self._writer: asyncio.StreamWriter | None = None
        self._cost = (time.monotonic(), time.process_time())

    async def run(self) -> None:
        """Until the reader has gone."""
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=_LONGEST)
        while line := await reader.readline():
            said = json.loads(line)
            if "id" in said:
                waiting = self._asked.pop(said["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(said)
            else:
                self._now = said["now"]
                self._tell(said["put"], said["gone"])
                self._weigh()

    def _tell(self, put: Mapping[str, Any], gone: Mapping[str, Any]) -> None:
        patch(self.picture, put, gone)
        self._number += 1
        event = self._event("change", {"put": put, "gone": gone, "now": self._now})
        self._recent.append((self._number, event))
        for watcher in self._watchers:
            watcher.send(event)

    def _event(self, kind: str, data: Mapping[str, Any]) -> bytes:
        text = json.dumps(data, separators=(",", ":"))
        return f"id: {self._run}-{self._number}\nevent: {kind}\ndata: {text}\n\n".encode()

    def _weigh(self) -> None:
        """What this process costs, beside what the reader says of itself."""
        now, used, (since, had) = time.monotonic(), time.process_time(), self._cost
        if now - since < COST_EVERY:
            return
        self._cost = (now, used)
        percent = round(100 * (used - had) / (now - since), 1)
        entry = {"percent": percent, "megabytes": memory()}
        if self.picture.get("cost", {}).get("server") != entry:
            self._tell({"cost": {"server": entry}}, {})

    # ---- browsers ----------------------------------------------------------------------------------------------

    def enter(self, last: str) -> Watcher:
        """Somebody who has seen all up to that id; "": nothing. Busy."""
        if len(self._watchers) >= WATCHERS:
            raise Busy
        watcher = Watcher()
        missed = self._missed(last)
        if missed is None:
            missed = [self._event("picture", self.whole())]
        for event in missed:
            watcher.send(event)
        self._watchers.add(watcher)
        if len(self._watchers) == 1:
            self._say({"watch": True})
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """It has gone."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._say({"watch": False})

    def _missed(self, last: str) -> list[bytes] | None:
        """None: that is not known any more."""
        run, _, number = last.partition("-")
        if run != self._run or not number.isascii() or not number.isdigit() or len(number) > 12:
            return None
        seen = int(number)
        if seen > self._number or seen + 1 < (self._recent[0][0] if self._recent else self._number + 1):
            return None
        missed = [event for at, event in self._recent if at > seen]
        return missed if len(missed) < QUEUE else None

    def whole(self) -> dict[str, Any]:
        """All of it."""
        return {"put": self.picture, "now": self._now}

    # ---- questions ---------------------------------------------------------------------------------------------

    async def ask(self, what: str, **words: Any) -> dict[str, Any]:
        """What the reader answers: {"answer": …} or {"error": …}. Busy."""
        if len(self._asked) >= ASKED:
            raise Busy
        self._questions += 1
        number = self._questions
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._say({"id": number, "ask": what, **words})
        try:
            found: dict[str, Any] = await self._asked[number]
        finally:
            self._asked.pop(number, None)
        return found

    def _say(self, what: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(what).encode() + b"\n")
