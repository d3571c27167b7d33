# SPDX-License-Identifier: Apache-2.0
"""Watches of etcd by its JSON gateway: one connection for each prefix, and a message in each line."""

from __future__ import annotations

import json
import os
import select
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from datapath.errors import StateError
from datapath.store.cluster import Change, CompactedError, Entry, RestoredError
from datapath.store.etcd.gateway import Gateway, Reply
from datapath.store.etcd.http import HTTPError
from datapath.store.etcd.stream import Stream

# Seconds without a word, after which the server is asked anew: one that is alive says where it is every 10 minutes, and
# one that is gone without a word the connection notices.
_PATIENCE = 900.0
_PAUSE = 0.1  # seconds before the next server is asked: they may all end what they have begun


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
        self._told = dict.fromkeys(ranges, since)  # they do not keep step with each other
        self._patience = patience
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._ended)

    @property
    def revision(self) -> int:
        """See Watch."""
        return min(self._told.values(), default=0)

    def close(self) -> None:
        """See Watch."""
        os.eventfd_write(self._ended, 1)

    def __iter__(self) -> Iterator[Sequence[Change]]:
        while not self._waited(0):
            try:
                with self._streams() as streams:
                    yield from self._batches(streams)
            except (OSError, EOFError, HTTPError):
                self._gateway.turn()  # from where this one stopped
                self._waited(_PAUSE)

    def _waited(self, seconds: float) -> bool:
        """The watch was closed, now or within that time."""
        return bool(select.select([self._ended], [], [], seconds)[0])

    @contextmanager
    def _streams(self) -> Iterator[dict[int, tuple[Stream, tuple[str, ...]]]]:
        """One for each range, by its descriptor."""
        with ExitStack() as stack:
            found = {}
            for one in self._ranges:
                stream = stack.enter_context(closing(self._gateway.stream("/v3/watch", self._request(one))))
                found[stream.fileno()] = (stream, one)
            yield found

    def _request(self, one: tuple[str, ...]) -> bytes:
        asked = {"key": one[0], "range_end": one[1], "start_revision": str(self._told[one] + 1)}
        return json.dumps({"create_request": {**asked, "progress_notify": True}}).encode()

    def _batches(self, streams: dict[int, tuple[Stream, tuple[str, ...]]]) -> Iterator[Sequence[Change]]:
        """What the servers say, until one of them ends it."""
        poll = select.poll()
        for fd in (self._ended, *streams):
            poll.register(fd, select.POLLIN)
        ready = list(streams)  # an answer has perhaps come with its head
        heard = time.monotonic()
        while True:
            for fd in ready:
                stream, one = streams[fd]
                changes = [change for line in stream.lines() for change in self._changes(one, line)]
                if changes:
                    yield changes
            left = heard + self._patience - time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(left, 0) * 1000)]
            if self._ended in ready:
                return
            if not ready:
                yield ()
                return
            heard = time.monotonic()

    def _changes(self, one: tuple[str, ...], line: bytes) -> Sequence[Change]:
        """Those of a message."""
        message = json.loads(line)
        result = message.get("result")
        if result is None:
            raise HTTPError(str(message.get("error", "")))
        if result.get("canceled"):
            compacted = int(result.get("compact_revision", 0))
            if compacted:
                raise CompactedError(compacted)
            raise StateError(f"cluster store: the watch was refused: {result.get('cancel_reason', '')}")
        changes = tuple(self._change(event) for event in result.get("events", ()))
        reached = int(result.get("header", {}).get("revision", 0))
        if changes:
            self._told[one] = max(change.revision for change in changes)
        elif reached < self._told[one]:
            self._refuse_older(self._told[one])
        elif not result.get("created"):  # a word that all up to here has been told
            self._told[one] = reached
        return changes

    def _refuse_older(self, told: int) -> None:
        """A server that is behind the others says an older revision, too. One that was restored would say nothing until
        it has come to where it was, and never what was written on the way."""
        first = self._ranges[0][0]
        reply = self._gateway.call("/v3/kv/range", {"key": first, "count_only": True})  # a quorum's answer
        reached = int(reply.get("header", {}).get("revision", 0))
        if reached < told:
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
