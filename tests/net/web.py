# SPDX-License-Identifier: Apache-2.0
"""The page of a pretend host as a process of its own, and who asks it: curl."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.net.hosts import DATAPATHCTL, Host, Words, eventually, words

URL = "http://127.0.0.1:8717"


class Answer(NamedTuple):
    """What curl got; `headers` by their names in lower case."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    """`datapathctl web` on a host."""

    def __init__(self, host: Host, options: Words = "") -> None:
        self.host = host
        command = [DATAPATHCTL, "web", *words(options)]
        self.process = host.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        self.told = self.process.stdout.readline()
        assert self.told, self.process.stderr and self.process.stderr.read()
        self.token_file = Path(self.told.partition("token: ")[2].rstrip().removesuffix(")"))
        self.token = self.token_file.read_text().strip()

    def curl(self, path: str, *options: str, token: bool = True, url: str = URL) -> Answer:
        """What is answered to a request for it, whatever that is."""
        headers = ["-H", f"Authorization: Bearer {self.token}"] if token else []
        done = self.host.try_(["curl", "-s", "-i", "--path-as-is", *headers, *options, url + path])
        head, _, body = done.stdout.partition("\n\n")  # text: its \r\n are \n
        first, *lines = head.split("\n")
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        status = int(first.split()[1]) if first else 0
        return Answer(status, {name.lower(): value for name, value in fields.items()}, body)

    def ask(self, path: str) -> Any:
        """The JSON of an answer that has to be given."""
        found = self.curl(path)
        assert found.status == 200, found
        return found.json

    def picture(self) -> Any:
        """All that the page shows, as of now."""
        return self.ask("/picture")["put"]

    def children(self) -> dict[int, int]:
        """Pids of the two processes below it, as far as they have not just ended -> the users that they are."""
        users = dict[int, int]()
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                users[int(pid)] = int(status(int(pid))["Uid"].split()[0])
        return users

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def served(host: Host, options: Words = "") -> Iterator[Page]:
    """As long as this lasts, and ready when it begins."""
    page = Page(host, options)
    try:
        with eventually() as until:
            until(lambda: len(page.children()) == 2)
        yield page
    finally:
        page.end()
