# SPDX-License-Identifier: Apache-2.0
"""etcd's JSON gateway: requests to whichever server answers, over HTTP or HTTPS, with or without a user.

The gateway is part of etcd since 3.0 and on by default; paths below /v3 are there since 3.4. Its JSON is protobuf's:
64-bit numbers are strings, bytes are base64, and what is zero or empty is left out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from datapath.errors import ConfigError, PrivilegeError, StateError, printable
from datapath.model.clusters import ClusterStore
from datapath.store.cluster import UncertainError
from datapath.store.etcd.http import (
    Connection,
    Dial,
    DisconnectedError,
    HTTPError,
    NoHTTPError,
    dial_by_library,
)

if TYPE_CHECKING:
    import ssl

    from datapath.store.etcd.stream import Stream

Reply = dict[str, Any]

_CONNECT = 1.5  # seconds for one server, so that the next can be tried within TIMEOUT
TIMEOUT = 5.0  # seconds until a request fails
# gRPC's codes, by which etcd says what was wrong (google.golang.org/grpc/codes)
_INVALID, _PERMISSION, _EXHAUSTED, _PRECONDITION, _UNAVAILABLE, _UNAUTHENTICATED = 3, 7, 8, 9, 14, 16
_NAMED = b"CommonName of client"  # how the gateway's refusal begins that is no JSON
_OK = 200  # of HTTP's status codes


class RefusedError(StateError):
    """The store has answered that it does not do that. `code`: gRPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Gateway:
    """The servers of one store, of which one is asked until it does not answer. For one thread at a time. `dial` makes
    its connections."""

    def __init__(self, where: ClusterStore, dial: Dial = dial_by_library) -> None:
        self.where, self.dial = where, dial
        self._context = _tls(where) if where.tls else None
        self._at = 0
        self._connection: Connection | None = None
        self._token = ""
        self._end = math.inf  # of all calls together, by time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Calls of the block end so many seconds from now at the latest; those of an outer one still count."""
        before = self._end
        self._end = min(before, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._end = before

    def call(self, path: str, body: Reply, *, writes: bool = False) -> Reply:
        """The answer to one request. StateError: no server has answered within TIMEOUT seconds, or all have
        refused; UncertainError: the same after a request that `writes` was sent; PrivilegeError."""
        found: Reply = self._somewhere(lambda: self._ask(path, body, writes))
        return found

    def stream(self, path: str, body: bytes) -> Stream:
        """An answer without an end, on a connection of its own. Errors as those of `call`."""
        from datapath.store.etcd.stream import Stream

        def begin() -> Stream:
            connection = self._connect()
            try:
                connection.connect()
                self._authenticate(connection)
                found = Stream(connection, path, body, self._headers())
                if found.refused:
                    self._refuse(found.refused)
            except BaseException:
                connection.close()
                raise
            return found

        found: Stream = self._somewhere(begin)
        return found

    def one(self, place: int, path: str) -> Reply:
        """The answer of one server, by its place, and of no other."""
        connection = self._connect(place)
        try:
            return self._exchange(connection, path, {})
        except (OSError, HTTPError) as error:
            raise StateError(_why(error)) from error
        finally:
            connection.close()

    # ---- one server after the other ----------------------------------------------------------

    def _somewhere(self, ask: Any) -> Any:
        """`ask`, which may be done with any server, until one has answered."""
        end = min(time.monotonic() + TIMEOUT, self._end)
        problem = "no answer in time"
        tries = 0
        while True:
            if time.monotonic() >= self._end:
                raise StateError(f"cluster store {self.where} does not answer: {problem}")
            try:
                return ask()
            except RefusedError as error:
                if error.code == _UNAUTHENTICATED and self._token:
                    self._token = ""  # it is not known there, or has ended: a new one is asked for
                elif error.code == _UNAVAILABLE:
                    problem = str(error)
                else:
                    raise self._translated(error) from error
            except UncertainError:
                self.turn()
                raise
            except (OSError, HTTPError) as error:
                problem = problem if isinstance(error, TimeoutError) else _why(error)
            self.turn()
            tries += 1
            if time.monotonic() >= end or tries >= 2 + 50 * TIMEOUT:
                raise StateError(f"cluster store {self.where} does not answer: {problem}")
            if tries % len(self.where.servers) == 0:
                time.sleep(min(0.1, max(end - time.monotonic(), 0)))  # all have been asked once

    def turn(self) -> None:
        """From now on the next server is asked."""
        self.close()
        self._at = (self._at + 1) % len(self.where.servers)

    def _connect(self, place: int | None = None) -> Connection:
        host, port = self.where.servers[self._at if place is None else place]
        return Connection(host, port, self._patience(_CONNECT), self.dial, self._context)

    def _patience(self, seconds: float) -> float:
        """Or what is left of the time; never 0, which would be none at all."""
        return max(min(seconds, self._end - time.monotonic()), 0.001)

    def _ask(self, path: str, body: Reply, writes: bool) -> Reply:
        kept = self._connection is not None
        if self._connection is None:
            self._connection = self._connect()
            self._connection.connect()
        connection = self._connection
        self._authenticate(connection)
        try:
            if connection.sock is not None:
                connection.sock.settimeout(self._patience(TIMEOUT / min(len(self.where.servers), 2)))
            return self._exchange(connection, path, body)
        except RefusedError as error:
            # What is not known of a request that ran into a time-out, the server says in these words.
            if writes and error.code == _UNAVAILABLE and "no leader" not in str(error):
                raise UncertainError(f"cluster store {self.where}: {error}") from error
            raise
        except (OSError, HTTPError) as error:
            closed = kept and isinstance(error, (BrokenPipeError, DisconnectedError))
            if writes and not closed:
                raise UncertainError(f"cluster store {self.where}: {_why(error)}") from error
            raise

    def _exchange(self, connection: Connection, path: str, body: Reply) -> Reply:
        status, said = connection.post(path, json.dumps(body).encode(), self._headers())
        if status != _OK:
            self._refuse(said)
        try:
            found = json.loads(said)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise HTTPError("what answers is no etcd")
        return found

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})

    def _authenticate(self, connection: Connection) -> None:
        """Gets a token, if a user is named and there is none."""
        if not self.where.user or self._token:
            return
        try:
            password = Path(self.where.password_file).read_text("utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"kv.passwordfile {self.where.password_file} cannot be read: {error}") from None
        found = self._exchange(
            connection, "/v3/auth/authenticate", {"name": self.where.user, "password": password}
        )
        self._token = str(found.get("token", ""))

    def _refuse(self, said: bytes) -> None:
        """Raises what the answer says."""
        try:
            found = json.loads(said)
            code, message = int(found.get("code", 0)), str(found.get("message") or found.get("error"))
        except (ValueError, AttributeError, TypeError):
            if said.startswith(_NAMED):
                raise ConfigError(
                    f"kv.certfile {self.where.cert_file} has a CommonName, which an etcd with users does not take on "
                    "this way: use a certificate without one"
                ) from None
            raise HTTPError("what answers is no etcd") from None
        raise RefusedError(code, printable(message.removeprefix("etcdserver: ")))

    def _translated(self, error: RefusedError) -> Exception:
        """The error as users are told it."""
        text = str(error)
        anonymous = error.code == _INVALID and (
            "user name is empty" in text or "authentication failed" in text
        )
        if anonymous and not self.where.user:
            return PrivilegeError(f"cluster store {self.where} wants a user: kv.username, kv.passwordfile")
        if anonymous or error.code in (_PERMISSION, _UNAUTHENTICATED):
            who = self.where.user or "this client"
            return PrivilegeError(f"cluster store {self.where} does not let {who} do this: {text}")
        if error.code == _EXHAUSTED and "space" in text:
            return StateError(f"cluster store {self.where} is full: {text}")
        return RefusedError(error.code, f"cluster store {self.where}: {text}")


def _tls(where: ClusterStore) -> ssl.SSLContext:
    """ConfigError names the file that cannot be used."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=where.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"kv.cacertfile {where.ca_file} cannot be used: {_why(error)}") from None
    if where.cert_file:
        try:
            context.load_cert_chain(where.cert_file, where.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"kv.certfile {where.cert_file} with kv.keyfile {where.key_file} cannot be used: {_why(error)}"
            ) from None
    return context


def _why(error: Exception) -> str:
    """In few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if (verify := getattr(error, "verify_message", None)) is not None:  # of ssl.SSLCertVerificationError
        return f"its certificate is not accepted: {verify}"
    if (reason := getattr(error, "reason", None)) is not None:  # of ssl.SSLError
        return f"TLS: {reason}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, NoHTTPError):
        return "it does not speak HTTP as an etcd does (TLS needs kv.cacertfile)"
    return str(error) or type(error).__name__
