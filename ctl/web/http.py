# SPDX-License-Identifier: Apache-2.0
"""uvicorn, with bounds: how long a request may take to come, how long its headers are, how many connections there are.
And the process that runs it, as nobody."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from datapath.kernel import separate

from .app import Site
from .feed import Feed
from .files import File
from .key import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.kernel.separate import Socket

CONNECTIONS = 128  # a browser has some six at once
HEAD = 16 << 10  # bytes of a request line with its headers
PATIENCE = 10.0  # seconds for a request to come whole
_LINGER = 2.0
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Those that are too many are not even listened to."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What comes behind headers that are too long is thrown away: who still sends would not read the answer."""
        if not self._refused:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._go_on()

    def on_response_complete(self) -> None:
        """The next request has its time."""
        super().on_response_complete()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """Says which of the two it is."""
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refused = True
            self.transport.write(_REFUSAL)
            self.loop.call_later(_LINGER, self.transport.abort)
        else:
            super().send_400_response(msg)

    def _wait(self) -> None:
        self._go_on()
        self._deadline = self.loop.call_later(PATIENCE, self.transport.abort)

    def _go_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def run(opened: Socket, to_reader: Socket, key: Key, files: Mapping[str, File]) -> None:
    """Serves until the reader has gone. What is imported is imported before; nothing is read from files any more."""
    feed = Feed(to_reader)
    config = uvicorn.Config(
        Site(files, key, feed).app(),
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS + 1,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=HEAD,
    )
    config.load()
    separate.become_nobody()
    asyncio.run(_serve(uvicorn.Server(config), feed, opened))


async def _serve(server: uvicorn.Server, feed: Feed, opened: Socket) -> None:
    feeding = asyncio.ensure_future(feed.run())
    serving = asyncio.ensure_future(server.serve([opened]))
    await asyncio.wait([feeding, serving], return_when=asyncio.FIRST_COMPLETED)
