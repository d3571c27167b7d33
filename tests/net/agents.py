# SPDX-License-Identifier: Apache-2.0
"""An agent at work on a pretend host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.net.hosts import DATAPATHCTL, PATIENCE, Host, eventually


class Agent:
    """`datapathctl agent`, ready. `pid` is its own. `before`: a command that runs it."""

    def __init__(self, host: Host, *before: str) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears,
        ):
            hears.bind(f"{folder}/notify")
            hears.settimeout(PATIENCE)
            self._log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 - closed by close()
            command = ["env", f"NOTIFY_SOCKET={folder}/notify", *before, DATAPATHCTL, "agent"]
            self.process = host.start(command, stderr=self._log)
            self.pid = self.process.pid
            self.told = hears.recv(100).decode()
        assert self.told == "READY=1", self.said

    @property
    def said(self) -> list[str]:
        """The lines that it has written."""
        return Path(self._log.name).read_text().splitlines()

    def says(self, text: str) -> None:
        """Waits until a line has this text."""
        with eventually() as until:
            until(lambda: any(text in line for line in self.said) or self.process.poll() is not None)
        assert any(text in line for line in self.said), self.said

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it; its exit code."""
        os.kill(self.pid, number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()


@contextlib.contextmanager
def agent(host: Host, *before: str) -> Iterator[Agent]:
    """One that is there for the block."""
    with contextlib.closing(Agent(host, *before)) as one:
        yield one
