# SPDX-License-Identifier: Apache-2.0
"""One request to a plugin of Docker's: HTTP over a Unix socket, TCP or TLS, as moby's pkg/plugins has it.

A request is a POST of JSON, or of nothing; the answer is read within a deadline and up to a size, whatever is at the
other end.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from datapath.model.plugins import Plugin

LARGEST = 1 << 20  # bytes of an answer: a real one has less than a thousand
_ACCEPT = "application/vnd.docker.plugins.v1.2+json"
_HOST = "plugin.moby.localhost"


class _UnixConnection(http.client.HTTPConnection):
    """To the socket at a path; `seconds`: for one piece of an answer."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Unanswered(Exception):
    """The plugin could not be reached, or has not answered: it may be asked again. Its text says why."""


class Unusable(Exception):
    """What the plugin has answered, or how it is to be reached, cannot be used. Its text says why."""


class Answer(NamedTuple):
    """What a plugin has answered: the status of HTTP, and its body."""

    status: int
    body: bytes


def ask(plugin: Plugin, method: str, fields: Mapping[str, Any] | None, seconds: float) -> Answer:
    """Asks once, and waits no longer than so many seconds. `fields` None: a request without a body. Unanswered,
    Unusable."""
    connection = _connection(plugin, seconds)
    body = b"" if fields is None else json.dumps(fields).encode() + b"\n"
    late = threading.Event()
    timer = threading.Timer(seconds, _cut, (connection, late))
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", f"/{method}", body, {"Accept": _ACCEPT, "Host": _HOST})
        with connection.getresponse() as response:
            said = response.read(LARGEST + 1)
            status = response.status
    except http.client.RemoteDisconnected as error:
        raise Unanswered(_late(seconds) if late.is_set() else "it closed the connection") from error
    except TimeoutError as error:
        raise Unanswered(_late(seconds)) from error
    except ssl.SSLError as error:
        raise Unusable(f"TLS: {error.reason or error}") from error
    except (http.client.HTTPException, ValueError) as error:
        if late.is_set():
            raise Unanswered(_late(seconds)) from error
        raise Unusable(f"its answer is no HTTP: {type(error).__name__}") from error
    except OSError as error:
        raise Unanswered(_late(seconds) if late.is_set() else error.strerror or str(error)) from error
    finally:
        timer.cancel()
        connection.close()
    if late.is_set():
        raise Unanswered(_late(seconds))
    if len(said) > LARGEST:
        raise Unusable(f"its answer has more than {LARGEST} bytes")
    return Answer(status, said)


def _late(seconds: float) -> str:
    return f"no answer within {seconds:.3g} s"


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """Ends an exchange that takes too long, however it drips."""
    late.set()
    opened = connection.sock
    if opened is not None:
        try:
            opened.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is at its end by itself


def _connection(plugin: Plugin, seconds: float) -> http.client.HTTPConnection:
    """One that is not open yet. `tcp` is HTTP without TLS, as in Docker. Unusable: the address is none."""
    try:
        url = urlsplit(plugin.address)
        port = url.port
    except ValueError as error:
        raise Unusable(f"its address {plugin.address!r} is none: {error}") from None
    if url.scheme == "unix":
        path = url.netloc + url.path
        if not path.startswith("/"):
            raise Unusable(f"its address {plugin.address!r} is none: no absolute path")
        return _UnixConnection(path, seconds)
    if url.scheme not in ("tcp", "http", "https") or not url.hostname:
        raise Unusable(
            f"its address {plugin.address!r} is none: expected unix://, tcp://, http:// or https://"
        )
    if url.scheme == "https":
        return http.client.HTTPSConnection(url.hostname, port, timeout=seconds, context=_tls(plugin))
    return http.client.HTTPConnection(url.hostname, port, timeout=seconds)


def _tls(plugin: Plugin) -> ssl.SSLContext:
    """What the plugin's certificate has to be, and ours. Unusable: a file of them cannot be read."""
    try:
        context = ssl.create_default_context(cafile=plugin.ca or None)
        if plugin.certificate or plugin.key:
            context.load_cert_chain(plugin.certificate, plugin.key or None)
    except (OSError, ssl.SSLError) as error:
        raise Unusable(f"its TLS files cannot be used: {error}") from None
    if not plugin.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
