# SPDX-License-Identifier: Apache-2.0
"""A cluster's store in etcd v3: lists, transactions, leases, watches."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from datapath.errors import DatapathError
from datapath.model.clusters import ClusterStore
from datapath.store.cluster import (
    MAX_OPERATIONS,
    Condition,
    Delete,
    DeleteAll,
    Empty,
    Entry,
    Holds,
    Listing,
    Member,
    Outcome,
    Present,
    Status,
    Unchanged,
    Write,
)
from datapath.store.etcd.gateway import Gateway, RefusedError, Reply
from datapath.store.etcd.http import Dial, dial_by_library

if TYPE_CHECKING:
    from datapath.store.etcd.watch import EtcdWatch

_PAGE = 1000  # keys of one range of a request
_FEW = 100  # keys that are told of a prefix that was to be empty
_NOT_FOUND = 5  # gRPC's code
_ALARMS = {"NOSPACE": "its disk quota is used up", "CORRUPT": "its data is damaged"}


class EtcdCluster:
    """See `datapath.store.cluster.Cluster`."""

    def __init__(self, where: ClusterStore, dial: Dial = dial_by_library) -> None:
        self._gateway = Gateway(where, dial)
        self._root = f"{where.prefix}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self._gateway.where)

    def close(self) -> None:
        """Gives up the connection; watches have their own."""
        self._gateway.close()

    def list(self, *prefixes: str) -> Listing:
        """See Cluster. Read in pages, each of what is left of all ranges, and all of the first one's revision."""
        entries: dict[str, Entry] = {}
        revision = 0
        ranges = [self._range(prefix) for prefix in prefixes or ("",)]
        while ranges:
            here, later = ranges[:MAX_OPERATIONS], ranges[MAX_OPERATIONS:]
            asked: list[Reply] = [
                {"key": _encoded(first), "range_end": _encoded(end), "limit": _PAGE} for first, end in here
            ]
            for request in asked if revision else ():
                request["revision"] = revision
            reply = self._gateway.call("/v3/kv/txn", {"success": [{"request_range": one} for one in asked]})
            revision = revision or _revision(reply)
            ranges = []
            for (_, end), response in zip(here, reply.get("responses", ()), strict=True):
                found = response.get("response_range", {})
                pairs = found.get("kvs", ())
                for pair in pairs:
                    entries[self._key(pair)] = entry(pair)
                if found.get("more"):
                    ranges.append((b64decode(pairs[-1]["key"]) + b"\0", end))
            ranges += later
        return Listing(revision, entries)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """See Cluster."""
        with self._gateway.within(seconds):
            yield

    def txn(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> Outcome:
        """See Cluster."""
        if max(len(conditions), len(writes)) > MAX_OPERATIONS:
            raise ValueError(f"a transaction has at most {MAX_OPERATIONS} operations")
        request = {
            "compare": [self._condition(one) for one in conditions],
            "success": [self._write(one) for one in writes],
            "failure": [{"request_range": self._look(one)} for one in conditions],
        }
        reply = self._gateway.call("/v3/kv/txn", request, writes=bool(writes))
        found: dict[str, Entry] = {}
        succeeded = bool(reply.get("succeeded"))
        for response in () if succeeded else reply.get("responses", ()):
            for pair in response.get("response_range", {}).get("kvs", ()):
                found[self._key(pair)] = entry(pair)
        return Outcome(succeeded, _revision(reply), found)

    @contextmanager
    def watch(self, prefixes: Sequence[str], since: int) -> Iterator[EtcdWatch]:
        """See Cluster. Each has a connection of its own."""
        ranges = [tuple(map(_encoded, self._range(prefix))) for prefix in prefixes]
        from datapath.store.etcd.watch import EtcdWatch

        with Gateway(self._gateway.where, self._gateway.dial) as gateway:
            found = EtcdWatch(gateway, self._root, ranges, since)
            try:
                yield found
            finally:
                found.close()

    def grant(self, seconds: int) -> int:
        """See Cluster."""
        return int(self._gateway.call("/v3/lease/grant", {"TTL": seconds}, writes=True)["ID"])

    def keep_alive(self, lease: int) -> bool:
        """See Cluster."""
        reply = self._gateway.call("/v3/lease/keepalive", {"ID": str(lease)})
        return int(reply.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        """See Cluster."""
        try:
            self._gateway.call("/v3/lease/revoke", {"ID": str(lease)})
        except RefusedError as error:
            if error.code != _NOT_FOUND:
                raise

    def status(self) -> Status:
        """See Cluster."""
        members = []
        cluster, revision = "", 0
        for place, (host, port) in enumerate(self._gateway.where.servers):
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            began = time.monotonic()
            try:
                reply = self._gateway.one(place, "/v3/maintenance/status")
            except DatapathError as error:
                members.append(Member(name, error=str(error)))
                continue
            seconds = time.monotonic() - began
            header = reply.get("header", {})
            cluster = f"{int(header.get('cluster_id', 0)):x}"
            revision = max(revision, _revision(reply))
            leader = reply.get("leader") == header.get("member_id")
            members.append(
                Member(name, "", str(reply.get("version", "")), leader, int(reply.get("dbSize", 0)), seconds)
            )
        told = self._gateway.call("/v3/maintenance/alarm", {}).get("alarms", ()) if cluster else ()
        alarms = tuple(dict.fromkeys(_ALARMS.get(str(one.get("alarm")), "an alarm") for one in told))
        return Status(tuple(members), cluster, revision, alarms)

    # ---- keys ----------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return _encoded((self._root + key).encode())

    def _key(self, pair: Reply) -> str:
        return b64decode(pair["key"]).decode().removeprefix(self._root)

    def _range(self, prefix: str) -> tuple[bytes, bytes]:
        """The first key that begins with the prefix, and the first after all of them."""
        first = (self._root + prefix).encode()
        return first, first[:-1] + bytes([first[-1] + 1])  # UTF-8 has no byte 0xff

    def _all(self, prefix: str) -> Reply:
        first, end = self._range(prefix)
        return {"key": _encoded(first), "range_end": _encoded(end)}

    def _condition(self, one: Condition) -> Reply:
        if isinstance(one, Empty):  # of no key, as of one that is not there: each that is there was created
            return self._all(one.prefix) | {"target": "CREATE", "create_revision": "0"}
        key = {"key": self._name(one.key)}
        if isinstance(one, Unchanged):
            return key | {"target": "MOD", "mod_revision": str(one.modified)}
        if isinstance(one, Holds):
            return key | {"target": "VALUE", "value": _encoded(one.value.encode())}
        there = {"result": "GREATER"} if isinstance(one, Present) else {}
        return key | {"target": "CREATE", "create_revision": "0"} | there

    def _look(self, one: Condition) -> Reply:
        if isinstance(one, Empty):
            return self._all(one.prefix) | {"limit": _FEW}
        return {"key": self._name(one.key)}

    def _write(self, one: Write) -> Reply:
        if isinstance(one, DeleteAll):
            return {"request_delete_range": self._all(one.prefix)}
        if isinstance(one, Delete):
            return {"request_delete_range": {"key": self._name(one.key)}}
        put = {"key": self._name(one.key), "value": _encoded(one.value.encode())}
        return {"request_put": put | ({"lease": str(one.lease)} if one.lease else {})}


def _encoded(raw: bytes) -> str:
    return b64encode(raw).decode()


def _revision(reply: Reply) -> int:
    """That of the store when it answered."""
    return int(reply.get("header", {}).get("revision", 0))


def entry(pair: Any) -> Entry:
    """A KeyValue of etcd's."""
    return Entry(
        b64decode(pair.get("value", "")).decode(),
        int(pair.get("create_revision", 0)),
        int(pair.get("mod_revision", 0)),
        int(pair.get("lease", 0)),
    )


def to_json(*messages: Reply) -> bytes:
    """Several messages of one stream, one after the other."""
    return b"".join(json.dumps(message).encode() for message in messages)
