# SPDX-License-Identifier: Apache-2.0
"""A watch of several prefixes over one connection, which goes on with another server where one goes away."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any

from datapath.errors import StateError
from datapath.store.cluster import Change, CompactedError, Entry, RestoredError
from datapath.store.etcd.gateway import Gateway, Reply

_PATIENCE = 30.0  # seconds without a word, after which the server is asked anew: the connection may be dead
_PAUSE = 0.1  # seconds before the next server is asked: they may all end what they have begun
_LONGEST = 1 << 26  # bytes of a message: etcd's own limit of a request is 1.5 MB


class EtcdWatch:
    """See `datapath.store.cluster.Watch`. `ranges`: first key and end, in base64; `root`: what keys begin with."""

    def __init__(
        self,
        gateway: Gateway,
        root: str,
        ranges: Sequence[tuple[str, ...]],
        since: int,
        patience: float = _PATIENCE,
    ) -> None:
        self._gateway, self._root, self._ranges = gateway, root, ranges
        self._told = dict.fromkeys(
            range(1, len(ranges) + 1), since
        )  # watchers do not keep step with each other
        self._patience = patience
        self._closed = threading.Event()
        self._answer: http.client.HTTPResponse | None = None

    @property
    def revision(self) -> int:
        """See Watch."""
        return min(self._told.values(), default=0)

    def close(self) -> None:
        """See Watch."""
        self._closed.set()
        answer = self._answer
        if answer is not None and answer.fp is not None:
            raw: Any = getattr(answer.fp, "raw", None)
            sock = getattr(raw, "_sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):  # it was at its end
                    sock.shutdown(2)  # SHUT_RDWR: whoever reads finds the end

    def __iter__(self) -> Iterator[Sequence[Change]]:
        while not self._closed.is_set():
            try:
                with self._gateway.stream("/v3/watch", self._requests(), self._patience) as self._answer:
                    if self._closed.is_set():
                        return
                    yield from self._batches(self._answer)
            except TimeoutError:
                yield ()
            except (OSError, http.client.HTTPException):
                self._gateway.turn()  # from where this one stopped
                self._closed.wait(_PAUSE)
            except ValueError:
                if self._closed.is_set():
                    return  # its file was closed while it was read
                raise
            finally:
                self._answer = None

    def _requests(self) -> bytes:
        """One watcher for each prefix, numbered from 1; etcd goes on with all of them when the request has ended."""
        return b"".join(
            json.dumps(
                {
                    "create_request": {
                        "key": first,
                        "range_end": end,
                        "start_revision": str(self._told[number] + 1),
                        "progress_notify": True,
                        "watch_id": str(number),
                    }
                }
            ).encode()
            for number, (first, end) in enumerate(self._ranges, 1)
        )

    def _batches(self, answer: http.client.HTTPResponse) -> Iterator[Sequence[Change]]:
        """What one connection says, until it ends."""
        while line := answer.readline(_LONGEST):
            message = json.loads(line)
            result = message.get("result")
            if result is None:
                raise http.client.HTTPException(str(message.get("error", "")))
            if result.get("canceled"):
                compacted = int(result.get("compact_revision", 0))
                if compacted:
                    raise CompactedError(compacted)
                raise StateError(f"cluster store: the watch was refused: {result.get('cancel_reason', '')}")
            number = int(result.get("watch_id", 0))
            changes = tuple(self._change(event) for event in result.get("events", ()))
            if changes:
                self._told[number] = max(change.revision for change in changes)
                yield changes
                continue
            reached = int(result.get("header", {}).get("revision", 0))
            if reached < self._told.get(number, 0):
                self._refuse_older()
            elif not result.get("created"):  # a word that all up to here has been told
                self._told[number] = reached

    def _refuse_older(self) -> None:
        """A server that is behind the others says an older revision, too. One that was restored would say nothing until
        it has come to where it was, and never what was written on the way."""
        first = self._ranges[0][0]
        reply = self._gateway.call("/v3/kv/range", {"key": first, "count_only": True})  # a quorum's answer
        reached = int(reply.get("header", {}).get("revision", 0))
        if reached < self.revision:
            raise RestoredError(reached)

    def _change(self, event: Reply) -> Change:
        pair = event["kv"]
        key = b64decode(pair["key"]).decode().removeprefix(self._root)
        revision = int(pair.get("mod_revision", 0))
        if event.get("type") == "DELETE":
            return Change(key, None, revision)
        value = b64decode(pair.get("value", "")).decode()
        entry = Entry(value, int(pair.get("create_revision", 0)), revision, int(pair.get("lease", 0)))
        return Change(key, entry, revision)
