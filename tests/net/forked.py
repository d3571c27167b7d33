# SPDX-License-Identifier: Apache-2.0
"""datapathctl without its start-up: the same program, forked from the test process, which has it loaded.

Everything else is as in a process of its own: namespace, environment, arguments, standard streams, exit code.
It spares a tenth of a second a command, which is half of the suite's time. What a command does when it is started
is tested by those tests that start it: DATAPATHCTL, or `preloaded = False`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

TREE = Path(__file__).resolve().parents[2]
_NOT_LOADED = (
    *("datapath.bench", "datapath.kernel._build"),
    *("ctl.cli.bench", "ctl.cli.demo", "ctl.cli.cluster_demo"),
)


_forking = threading.RLock()


@contextlib.contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The state database in a folder. Meanwhile no other thread forks: what this one held of SQLite's locks would be
    held in the child for good."""
    with _forking, contextlib.closing(sqlite3.connect(folder / "datapath.db")) as opened:
        yield opened


@functools.cache
def _load() -> None:
    """Whatever a command may import, and makes of types: how rows are read, and the layouts of maps."""
    for folder in ("datapath", "ctl/cli", "ctl/agent", "ctl/docker"):
        for path in (TREE / folder).rglob("*.py"):
            name = ".".join(path.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith(_NOT_LOADED):
                importlib.import_module(name)
    importlib.import_module("pyroute2")
    from datapath.dataplane.layout import MAPS
    from datapath.kernel import abi
    from datapath.model import codec
    from datapath.model.kinds import KINDS

    for kind in KINDS:
        with contextlib.suppress(ValueError):  # it has no fields
            codec.from_object(kind.cls, {})
    for name in {struct for structs in MAPS.values() for struct in structs if struct}:
        abi.layout(name)


# Called in the child before the command begins.
in_child: list[Callable[[], None]] = []


def datapathctl(
    argv: Sequence[str],
    netns: str,
    env: Mapping[str, str],
    timeout: float,
    uts: str = "",
    mounts: str = "",
) -> subprocess.CompletedProcess[str]:
    """The command line with these arguments. `uts`, `mounts`: the namespaces of the host's name and of its file
    systems, by their paths."""

    def work() -> int:
        from ctl.cli import main

        return main.run(argv)

    return call(work, argv, netns, env, timeout, uts, mounts)


def call(
    work: Callable[[], int],
    argv: Sequence[str],
    netns: str,
    env: Mapping[str, str],
    timeout: float,
    uts: str = "",
    mounts: str = "",
) -> subprocess.CompletedProcess[str]:
    """Whatever it is, in the child; what it returns is the exit code. `argv`: how it is called in messages."""
    _load()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with _forking:
            pid = os.fork()
        if pid == 0:
            _become(work, (netns, uts, mounts), env, stdout.fileno(), stderr.fileno())
        watched = os.pidfd_open(pid)
        try:
            poll = select.poll()  # unlike select(), for any number of open files
            poll.register(watched, select.POLLIN)
            ended = poll.poll(timeout * 1000)
            if not ended:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(watched)
        texts = [os.pread(file.fileno(), 1 << 24, 0).decode() for file in (stdout, stderr)]
    if not ended:
        raise subprocess.TimeoutExpired(["datapathctl", *argv], timeout, *texts)
    return subprocess.CompletedProcess(["datapathctl", *argv], code, *texts)


def _become(
    work: Callable[[], int], spaces: tuple[str, str, str], env: Mapping[str, str], stdout: int, stderr: int
) -> NoReturn:
    code = 99
    try:
        gc.freeze()  # what the test process has: looking at it would copy its pages
        from datapath.kernel import syscalls

        for number, fd in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
            os.dup2(fd, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kinds, folder = (syscalls.CLONE_NEWNET, syscalls.CLONE_NEWUTS, syscalls.CLONE_NEWNS), os.getcwd()
        wanted = [(path, kind) for path, kind in zip(spaces, kinds, strict=True) if path]
        opened = [(os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind) for path, kind in wanted]
        for fd, kind in opened:
            syscalls.setns(fd, kind)
        os.chdir(folder)  # other mounts begin in their root
        os.environ.clear()
        os.environ.update(env)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for prepare in in_child:
            prepare()
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
