# SPDX-License-Identifier: Apache-2.0
"""Faults inside a container's shim: what runs is `shim.main`, but for one of its system calls.

Imported by the shim itself, in place of shim.py, so it imports as little.
"""

from __future__ import annotations

import os
from errno import EIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Without those by which it looks for who is left: there are as many as processes.
_STEPS = (
    *("chdir", "close", "dup2", "execve", "fork", "fstat", "kill", "open", "pipe", "read", "replace"),
    "rmdir",
    *("set_inheritable", "setsid", "wait", "waitpid", "write"),
)
_CAN_FAIL = ("execve", "fork", "fstat", "open", "pipe", "replace", "rmdir")
_SIGKILL = 9


def boot(kind: str, number: int, count: str) -> str:
    """What Python is told to run. `kind`: "kill", or "error" where a call can fail, in the shim; "child" to kill the
    container's process before it runs the program; at its step `number`. `count`: a file that says how many steps
    there were."""
    return (
        "import sys; sys.path.append({!r}); from tests.net import shim_faults; "
        f"shim_faults.main({kind!r}, {number}, {count!r})"
    )


def main(kind: str, number: int, count: str) -> NoReturn:
    from datapath.runtime import shim

    real, pid, steps = os, os.getpid(), 0

    class Steps:
        def __getattr__(self, name: str) -> Any:
            function = getattr(real, name)
            counted = _CAN_FAIL if kind == "error" else _STEPS
            if name not in counted or (real.getpid() == pid) == (kind == "child"):
                return function

            def call(*arguments: Any) -> Any:
                nonlocal steps
                steps += 1
                fd = real.open(count, real.O_WRONLY | real.O_CREAT, 0o600)
                real.pwrite(fd, f"{steps:6} {name:20}".encode(), 0)
                real.close(fd)
                if steps == number:
                    if kind == "error":
                        raise OSError(EIO, real.strerror(EIO))
                    real.kill(real.getpid(), _SIGKILL)
                return function(*arguments)

            return call

    vars(shim)["os"] = Steps()
    shim.main()
