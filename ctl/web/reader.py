# SPDX-License-Identifier: Apache-2.0
"""The half of the page that may look: at maps and the store, once a second as long as somebody watches. It sends the
other half what has changed, and answers what that asks; nothing that it is asked changes anything."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datapath.errors import ConfigError, DatapathError
from datapath.host import Host
from datapath.model.flows import OUTSIDE, FlowFilter
from datapath.plan.policies.asking import Question
from datapath.telemetry.flows import flows
from datapath.telemetry.page import Painter, Picture, difference

from . import answers

if TYPE_CHECKING:
    from datapath.kernel.separate import Socket

EVERY = 1.0  # seconds between two looks
SHARE = 25  # one look in 25 times what it takes of a processor: 4 % at the most
COST_EVERY = 10.0
MOST = 20  # lines of what goes on, where it is asked for
LONGEST = 1 << 16  # bytes of a question
_CHUNK = 1 << 16


class Reader:
    """`opened`: the connection to the other half."""

    def __init__(self, host: Host, opened: Socket) -> None:
        self._host, self._socket = host, opened
        self._painter = Painter(host)
        self._sent: Picture = {}
        self._error = ""
        self._watched = False
        self._due = 0.0
        self._cost = (time.monotonic(), time.process_time())

    def run(self) -> None:
        """Until the other half has gone."""
        pending = b""
        while True:
            wait = max(self._due - time.monotonic(), 0.0) if self._watched else None
            if select.select([self._socket], [], [], wait)[0]:
                found = self._socket.recv(_CHUNK)
                if not found:
                    return
                *lines, pending = (pending + found).split(b"\n")
                if len(pending) > LONGEST:
                    return  # the other half is not what it was
                for line in lines:
                    self._hear(json.loads(line))
            if self._watched and time.monotonic() >= self._due:
                self._look()

    def _hear(self, said: Mapping[str, Any]) -> None:
        if "watch" in said:
            self._watched, self._due = said["watch"], 0.0
            self._cost = (time.monotonic(), time.process_time())
            return
        try:
            answer = {"answer": self._answer(said)}
        except (DatapathError, ExceptionGroup) as error:
            answer = {"error": _told(error)}
        self._say({"id": said["id"], **answer})

    def _say(self, what: Mapping[str, Any]) -> None:
        self._socket.sendall(json.dumps(what, separators=(",", ":")).encode() + b"\n")

    # ---- looks -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        began = time.process_time()
        try:
            now, self._error = self._painter.picture(), ""
        except (DatapathError, ExceptionGroup) as error:  # as while programs are exchanged, or after `down`
            now, self._error = {**self._sent}, _told(error)
        now["host"] = {
            "": {**now.get("host", {}).get("", {}), "name": os.uname().nodename, "error": self._error}
        }
        now["cost"] = self._costs(began)
        changed = difference(self._sent, now)
        if changed.put or changed.gone:
            self._say({"put": changed.put, "gone": changed.gone, "now": round(time.monotonic(), 1)})
        self._sent = now
        self._due = time.monotonic() + max(EVERY, SHARE * (time.process_time() - began))

    def _costs(self, began: float) -> dict[str, dict[str, Any]]:
        """Of this process, since it was said last: in percent of a processor, and in MB."""
        now, (since, used) = time.monotonic(), self._cost
        had = self._sent.get("cost", {})
        if had and now - since < COST_EVERY:
            return had
        self._cost = (now, began)
        percent = 100 * (began - used) / (now - since) if had else 0.0
        return {"reader": {"percent": round(percent, 1), "megabytes": memory()}}

    # ---- answers -----------------------------------------------------------------------------------------------

    def _answer(self, asked: Mapping[str, Any]) -> Any:
        if asked["ask"] == "look":
            self._look()
            return None
        if asked["ask"] == "flows":
            return answers.lines(flows(self._host, FlowFilter(**asked["filter"]), last=MOST).lines)
        return answers.why(self._host, self._question(**asked["question"]))

    def _question(self, source: str, destination: str, protocol: str, port: int | None) -> Question:
        """Somebody outside is asked about by the address of one who is there now."""
        protocol = "icmp" if protocol == "icmpv6" else protocol
        if OUTSIDE in (source, destination):
            wanted = FlowFilter(source=source, destination=destination, port=port, protocol=protocol)
            found = [one for one in flows(self._host, wanted, last=MOST).lines if one.source_address]
            if not found:
                raise ConfigError("nobody outside has such a connection now: which address is meant?")
            source = found[0].source_address if source == OUTSIDE else source
            destination = found[0].destination_address if destination == OUTSIDE else destination
            if found[0].published.startswith(":"):
                return Question(source, f"{found[0].published}/{protocol}")
        return Question(source, destination, protocol, port or None)


def memory() -> int:
    """Of this process, in MB."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1_000_000


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(one) for one in error.exceptions)
    return str(error)
