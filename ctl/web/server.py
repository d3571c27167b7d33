# SPDX-License-Identifier: Apache-2.0
"""The process that `datapathctl web` is: it has the socket and the token, and two children. One looks at the host, the
other one speaks to browsers; when one of the two has ended, both are started anew, and pages that are open go on."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from datapath.errors import ConfigError, DatapathError
from datapath.host import Host
from datapath.kernel import features, separate
from datapath.kernel.ending import signals
from datapath.kernel.notify import notify

from . import files, key
from .listen import Listen, opened
from .reader import Reader

if TYPE_CHECKING:
    from datapath.kernel.separate import Socket

_LOOK = 1.0  # seconds between two looks for the token's file
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before children are started again that did not live for long
_LONG = 10.0
_TRIES = 20


def serve(
    host: Host, listen: Listen, announce: Callable[[key.Key], None], say: Callable[[str], None]
) -> None:
    """Until SIGTERM or SIGINT, or until `down`. `announce` is told when browsers may come. ConfigError: what it needs
    is not installed; InUseError: another process does this already, or listens there. PrivilegeError, KernelError."""
    try:
        from . import http
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs {error.name}: pip install 'datapathctl[web]' (starlette and uvicorn)"
        ) from None
    features.require()
    with ExitStack() as stack:
        stop, _ = stack.enter_context(signals())
        kept = stack.enter_context(key.kept(host.settings.page_token))
        listener = stack.enter_context(opened(listen))
        loaded = files.load()

        def speak(end: Socket) -> None:
            http.run(listener, end, kept, loaded)

        announce(kept)
        notify("READY=1")
        _supervise(host, stop, kept, listener.fileno(), speak, say)
        notify("STOPPING=1")


def _supervise(
    host: Host,
    stop: int,
    kept: key.Key,
    listener: int,
    speak: Callable[[Socket], None],
    say: Callable[[str], None],
) -> None:
    short = 0
    while True:
        began = time.monotonic()
        children = _start(host, listener, speak, say)
        try:
            going_on = _wait(stop, kept, children)
        finally:
            _end(children)
        if not going_on:
            return
        short = 0 if time.monotonic() - began > _LONG else short + 1
        if short > _TRIES:
            raise ConfigError("the processes of the page end as soon as they are started")
        say("a process of the page has ended: both are started again")
        if select.select([stop], [], [], _PAUSES[min(short, len(_PAUSES) - 1)])[0]:
            return


def _start(
    host: Host, listener: int, speak: Callable[[Socket], None], say: Callable[[str], None]
) -> dict[int, int]:
    """Children by descriptors that tell when they end."""
    ours, theirs = separate.pair()

    def read() -> None:
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                Reader(host, ours).run()
        except DatapathError as error:
            say(str(error))
            raise

    with ours, theirs:
        pids = [
            separate.child(read, {ours.fileno()}),
            separate.child(lambda: speak(theirs), {theirs.fileno(), listener}),
        ]
    return {os.pidfd_open(pid): pid for pid in pids}


def _wait(stop: int, kept: key.Key, children: dict[int, int]) -> bool:
    """False: it is over."""
    while True:
        ready = select.select([stop, *children], [], [], _LOOK)[0]
        if stop in ready or not kept.there:
            return False
        if ready:
            return True


def _end(children: dict[int, int]) -> None:
    for fd, pid in children.items():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
