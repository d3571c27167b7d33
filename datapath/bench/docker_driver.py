# SPDX-License-Identifier: Apache-2.0
"""This datapath's driver for a topology's Docker daemon, as a service manager starts it: when the daemon first asks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from datapath.bench.place import end
from datapath.kernel.unix_server import listening

# It listens as file descriptor 3, and is told so as sd_listen_fds(3) says.
_SCRIPT = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'
_IDLE = "1h"  # of a driver that is not to end by itself
_TIED = ("setpriv", "--pdeathsig", "KILL")


class Driver:
    """Listens at `path` until it is closed. `program` is how datapathctl is started, in the namespaces of the process
    that `target` names and in the network namespace `netns`."""

    def __init__(
        self,
        path: Path,
        program: Sequence[str],
        netns: str,
        target: Callable[[], int],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self._argv = ("sh", "-c", _SCRIPT, "sh", *program, "docker", "serve", "--idle", _IDLE)
        self._netns, self._target, self._log = netns, target, log
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            **environment,
        }  # no more than a service's
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._woken, self._wake = os.pipe()
        self._ended = False
        self._stack = ExitStack()
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        self._stack.callback(os.close, folder)
        # As it is called itself, it may be too long for a socket.
        short = Path(f"/proc/self/fd/{folder}") / path.name
        self._socket = self._stack.enter_context(listening(short))
        self._thread = threading.Thread(target=self._run, name="activation", daemon=True)
        self._thread.start()

    def sleep(self) -> None:
        """The process ends, as when it was idle for long; the next request starts another."""
        with self._lock:
            process = self._process
            for pid in _children(process.pid) if process and process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        if process:
            process.wait()

    def close(self) -> None:
        self._ended = True
        os.write(self._wake, b".")
        with self._lock:
            if self._process:
                end(self._process)
        self._thread.join()
        self._stack.close()
        os.close(self._woken)
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            select.select([self._socket.fileno(), self._woken], [], [])
            with self._lock:
                if self._ended:
                    return
                self._process = self._start()
            self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        target = self._target()
        spaces = f"--net={self._netns}", f"--mount=/proc/{target}/ns/mnt", f"--pid=/proc/{target}/ns/pid"
        argv = (*_TIED, "nsenter", *spaces, *self._argv)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv,
                stdin=self._socket.fileno(),
                stdout=log,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
            )


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
