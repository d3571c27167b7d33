# SPDX-License-Identifier: Apache-2.0
"""What browsers are answered. The page itself is no secret; what it shows takes the token, or the cookie that it was
exchanged for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import meanings
from .feed import Busy, Feed, Watcher
from .files import File
from .key import COOKIE, Key

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Names of this host alone. A page of somebody else's whose own name comes to mean this host's address (DNS rebinding)
# still asks for that name. Any port: that of a tunnel's other end may be another.
_HOST = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")
_BEAT = 15.0  # seconds after which something is said, so that a connection that has gone is noticed
_WORD = 300  # characters: names have fewer
_FILTER = ("network", "source", "destination", "protocol", "verdict")


Answer = Callable[[Request], Awaitable[Response]]


class Guard:
    """Refuses what no page of this host's would ask, before anything else is looked at, and says with each answer what
    its page may do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                had = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(one for one in more if one[0] not in had)]
            await send(message)

        refused = _refused(scope)
        await (refused or self._app)(scope, receive, with_headers)


def _refused(scope: Scope) -> Response | None:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    hosts, origins = headers.get("host", []), headers.get("origin", [])
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].lower()):
        return _plain(403, "this is served to localhost alone")
    if any(origin != f"http://{hosts[0]}" for origin in origins):
        return _plain(403, "another page's script has asked")
    if scope["method"] not in ("GET", "HEAD"):
        return _plain(405, "nothing here takes changes", {"Allow": "GET, HEAD"})
    if "transfer-encoding" in headers or headers.get("content-length", ["0"]) != ["0"]:
        return _plain(413, "nothing here takes a body", {"Connection": "close"})
    return None


def _plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status, {"Cache-Control": "no-store", **(headers or {})})


class Stream(Response):
    """Events as long as both sides are there. `transport`: cut if the browser takes nothing any more, as what has been
    written to it already would keep it."""

    def __init__(self, feed: Feed, watcher: Watcher, transport: asyncio.Transport) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._feed, self._watcher, self._transport = feed, watcher, transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(one) for one in (_gone(receive), self._watcher.overrun.wait())]
        writing = asyncio.ensure_future(self._write(send))
        try:
            await asyncio.wait([*tasks, writing], return_when=asyncio.FIRST_COMPLETED)
            if self._watcher.overrun.is_set():
                self._transport.abort()
        finally:
            self._feed.leave(self._watcher)
            for task in (*tasks, writing):
                task.cancel()
            await asyncio.gather(*tasks, writing, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = b"retry: 1000\n\n"
        while True:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            try:
                body = await asyncio.wait_for(self._watcher.queue.get(), _BEAT)
            except TimeoutError:
                body = b":\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Site:
    """All that is answered."""

    def __init__(self, files: Mapping[str, File], key: Key, feed: Feed) -> None:
        self._files, self._key, self._feed = files, key, feed

    def app(self) -> ASGIApp:
        """As an ASGI server takes it."""
        answers = {
            "/session": self._session,
            "/events": self._events,
            "/picture": self._picture,
            "/meanings": self._meanings,
            "/flows": self._flows,
            "/why": self._why,
        }
        routes = [Route(path, self._known(answer)) for path, answer in answers.items()]
        routes += [Route(path, self._file) for path in self._files]
        return Guard(Starlette(routes=routes, exception_handlers={Busy: _busy, 404: _missing}))

    def _known(self, answer: Answer) -> Answer:
        """Only to who has the token."""

        async def asked(request: Request) -> Response:
            site = request.headers.get("sec-fetch-site", "same-origin")
            if site not in ("same-origin", "none"):
                return _plain(403, "another page has asked")
            authorization = request.headers.get("authorization", "")
            if not self._key.opens(authorization, request.cookies.get(COOKIE, "")):
                return _plain(
                    401, "the token is missing, or is another: open the address that datapathctl web prints"
                )
            return await answer(request)

        return asked

    async def _file(self, request: Request) -> Response:
        file = self._files[request.url.path]
        headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        packed = "gzip" in request.headers.get("accept-encoding", "")
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(file.packed if packed else file.content, headers=headers, media_type=file.kind)

    async def _session(self, request: Request) -> Response:
        """For who brings the token, a cookie that lasts as long as the browser is open."""
        answer = Response(status_code=204, headers={"Cache-Control": "no-store"})
        answer.set_cookie(COOKIE, self._key.cookie, httponly=True, samesite="strict", path="/")
        return answer

    async def _events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        watcher = self._feed.enter(request.headers.get("last-event-id", ""))
        return Stream(self._feed, watcher, request.state.transport)

    async def _picture(self, request: Request) -> Response:
        await self._feed.ask("look")
        return _json(self._feed.whole())

    async def _meanings(self, request: Request) -> Response:
        return _json(meanings())

    async def _flows(self, request: Request) -> Response:
        asked = request.query_params
        port = _number(asked.get("port", ""))
        words = {name: _word(asked.get(name, "")) for name in _FILTER}
        if None in words.values() or port is None:
            return _json({"error": "that is no question"}, 400)
        return await self._answered("flows", filter={**words, **({"port": port} if port else {})})

    async def _why(self, request: Request) -> Response:
        asked = request.query_params
        port = _number(asked.get("port", ""))
        words = {name: _word(asked.get(name, "")) for name in ("source", "destination", "protocol")}
        if None in words.values() or port is None or not words["source"] or not words["destination"]:
            return _json({"error": "that is no question"}, 400)
        return await self._answered("why", question={**words, "port": port})

    async def _answered(self, what: str, **words: object) -> Response:
        found = await self._feed.ask(what, **words)
        if "error" in found:
            return _json({"error": found["error"]}, 422)
        return _json(found["answer"])


def _json(content: object, status: int = 200) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store"})


async def _busy(request: Request, error: Exception) -> Response:
    return _plain(503, "too many ask at the same time", {"Retry-After": "2"})


async def _missing(request: Request, error: Exception) -> Response:
    return _plain(404, "there is nothing of that name")


def _word(text: str) -> str | None:
    """None: no name looks so."""
    return text if len(text) <= _WORD and text.isprintable() and not text.startswith("-") else None


def _number(text: str) -> int | None:
    """Of a port, 0: none was named; None: it is no number of a port."""
    if not text:
        return 0
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 65536 else None
