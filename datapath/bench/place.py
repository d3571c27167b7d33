# SPDX-License-Identifier: Apache-2.0
"""Runs programs in a place: a network namespace, a control group, a core."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import DatapathError

# Ends with the process that started it, even by kill -9.
_TIED = ("setpriv", "--pdeathsig", "KILL")
_JOIN = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
_READY_TIMEOUT = 10.0  # seconds until a server listens
_TCP_LISTEN = "0A"
# What `make bench-deps` leaves out, and why.
_BY_HAND = {
    "systemd-resolved": "apt-get install systemd-resolved, on a machine whose /etc/resolv.conf it may take over "
    "(so make bench-deps does not)"
}


class ToolError(DatapathError):
    """A program did not do its work: what it said is in the message."""

    def __init__(self, argv: Sequence[str], said: str) -> None:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.casefold()] or lines or ["no output"]
        super().__init__(f"{Path(argv[0]).name}: {telling[-1]}")
        self.said = said


class MissingError(DatapathError):
    """A program that an experiment needs is not installed."""

    def __init__(self, program: str) -> None:
        name = Path(program).name
        super().__init__(f"{name} is not installed: {_BY_HAND.get(name, 'make bench-deps')}")


@dataclass(frozen=True, slots=True)
class Place:
    """`netns`: a path; `cgroup`: a directory, "" the caller's; `core`: -1 any."""

    netns: str
    cgroup: str = ""
    core: int = -1

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` here."""
        # nsenter, not `ip netns exec`: that one remounts /sys and hides the control groups.
        words = [*_TIED, "nsenter", f"--net={self.netns}"]
        if self.core >= 0:
            words += ["taskset", "-c", str(self.core)]
        if self.cgroup:
            words += ["sh", "-c", _JOIN, self.cgroup]
        return [*words, *argv]

    def run(self, argv: Sequence[str], timeout: float, input: str | None = None) -> str:
        """What the program prints. ToolError if it fails or takes longer."""
        try:
            done = subprocess.run(
                self.command(argv),
                input=input,
                stdin=subprocess.DEVNULL if input is None else None,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolError(argv, f"not done after {timeout:.0f} s") from error
        if done.returncode != 0:
            raise ToolError(argv, done.stdout + done.stderr or f"exit code {done.returncode}")
        return done.stdout

    def start(self, argv: Sequence[str], log: Path | None = None) -> subprocess.Popen[str]:
        """Starts a program in the background; its output goes to the log. End it with `end`."""
        with open(log or os.devnull, "ab") as output:
            return subprocess.Popen(
                self.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def write(self, settings: dict[str, str]) -> None:
        """Sets kernel settings of the namespace: paths below /proc/sys."""
        lines = "".join(f"echo {value} >/proc/sys/{path}\n" for path, value in settings.items())
        self.run(["sh", "-e"], 5, input=lines)

    @contextlib.contextmanager
    def serving(
        self, argv: Sequence[str], port: int, log: Path | None, udp: bool = False
    ) -> Iterator[subprocess.Popen[str]]:
        """The server, which runs while the block does; it listens at the port when the block begins."""
        process = self.start(argv, log)
        try:
            deadline = time.monotonic() + _READY_TIMEOUT
            while not _listens(process.pid, port, udp):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ToolError(argv, log.read_text() if log else "it does not listen")
                time.sleep(0.01)
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Kills a process that `start` has started, with its children, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _listens(pid: int, port: int, udp: bool) -> bool:
    """Whether the process's namespace has a socket at the port. It may not have entered its namespace yet."""
    for table in ("udp", "udp6") if udp else ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port and (udp or state == _TCP_LISTEN):
                return True
    return False


class Namespace:
    """A network namespace that lives as long as this object and, at most, as long as the process that made it."""

    def __init__(self) -> None:
        argv = [*_TIED, "unshare", "--net", "sh", "-c", "ip link set lo up && echo && exec sleep infinity"]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._holder.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._holder.stdout, selectors.EVENT_READ)
            up = selector.select(_READY_TIMEOUT) and self._holder.stdout.readline()
        if not up:
            self.close()
            raise DatapathError("a network namespace cannot be made: that needs root and iproute2")
        self.pid = self._holder.pid
        self.path = f"/proc/{self.pid}/ns/net"

    def sh(self, *lines: str, timeout: float = 10) -> str:
        return Place(self.path).run(["sh", "-e"], timeout, input="\n".join(lines))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()


def pin(pid: int, core: int) -> None:
    """Moves every thread of a process, and what it starts from now on, to one core."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})
