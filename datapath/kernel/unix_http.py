# SPDX-License-Identifier: Apache-2.0
"""HTTP over a Unix socket: how Docker's daemon is asked without its client.

By version 1.0, whose answers are whole when the connection ends: http.client, which reads others, brings TLS and email
with it, and takes longer to import than the daemon to answer.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from datapath.errors import DatapathError

_CHUNK = 1 << 16


class Api:
    """Who serves the socket at `path`, asked by a connection each time. `timeout`: seconds of silence."""

    def __init__(self, path: str, timeout: float = 60) -> None:
        self._path, self._timeout = path, timeout

    def ask(self, method: str, url: str, body: Any = None) -> Any:
        """The answer's JSON, or None. `body`: bytes (a tar file) or what becomes JSON. DatapathError if refused."""
        raw = isinstance(body, bytes)
        data = body if raw else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {url} HTTP/1.0", "Host: localhost", f"Content-Length: {len(data)}"]
        if body is not None:
            lines.append(f"Content-Type: application/{'x-tar' if raw else 'json'}")
        try:
            status, said = _parsed(self._exchange("\r\n".join((*lines, "", "")).encode("ascii") + data))
        except (OSError, ValueError) as error:
            raise DatapathError(f"docker: {method} {url}: {error}") from error
        if status >= 400:
            raise DatapathError(f"docker: {method} {url}: {said.decode(errors='replace').strip()}")
        try:
            return json.loads(said)
        except ValueError:
            return None

    def _exchange(self, request: bytes) -> bytes:
        """All that is answered. OSError."""
        found = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
            opened.settimeout(self._timeout)
            opened.connect(self._path)
            opened.sendall(request)
            while part := opened.recv(_CHUNK):
                found.append(part)
        return b"".join(found)


def _parsed(answer: bytes) -> tuple[int, bytes]:
    """Status and body. ValueError: it is no answer, or not whole."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    version, _, status = lines[0].partition(" ")
    if not end or not version.startswith("HTTP/1."):
        raise ValueError("the connection was closed without an answer")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and int(value) != len(body):
            raise ValueError(f"the answer ended after {len(body)} of {int(value)} bytes")
    return int(status[:3]), body
