# SPDX-License-Identifier: Apache-2.0
"""HTTP over a Unix socket: how Docker's daemon is asked without its client."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from datapath.errors import DatapathError


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """One connection that stays open. `timeout`: seconds for an answer."""

    def __init__(self, path: str, timeout: float = 60) -> None:
        self._connection = _Connection(path, timeout)

    def ask(self, method: str, url: str, body: Any = None) -> Any:
        """The answer's JSON, or None. `body`: bytes (a tar file) or what becomes JSON. DatapathError if refused."""
        raw = isinstance(body, bytes)
        data = body if raw or body is None else json.dumps(body).encode()
        kind = "application/x-tar" if raw else "application/json"
        try:
            self._connection.request(method, url, data, {"Content-Type": kind} if data is not None else {})
            with self._connection.getresponse() as answer:
                said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise DatapathError(f"docker: {method} {url}: {error}") from error
        if answer.status >= 400:
            raise DatapathError(f"docker: {method} {url}: {said.decode(errors='replace').strip()}")
        try:
            return json.loads(said)
        except ValueError:
            return None

    def close(self) -> None:
        self._connection.close()
