# SPDX-License-Identifier: Apache-2.0
"""Faults at the seam to the kernel and the store, inside a forked datapathctl (see forked.py).

Every step that changes something outside the process is counted: netlink requests, writes to BPF maps, pins,
links, filters, loads, packet filter rules, settings below /proc/sys, commits of the database, files, forks,
signals, requests to plugins. What DATAPATH_FAULT says happens at one of them:

    kill@N    the process is killed just before its step N; so after step N - 1
    error@N   step N fails, with an errno that it can have
    end@N     before step N the processes end whose ids DATAPATH_VICTIMS has

or, in the place of N, after:WORDS, which is the step behind the first that has these in its name.

DATAPATH_STEPS names a file that the steps are told to: of a program that goes on, and has an end of its own (`told`).

The program itself knows nothing of it: the layer is put around the functions by which it changes things, so a
command without a fault runs what is shipped. `last` tells the test what became of the newest command.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "DATAPATH_FAULT"
VICTIMS = "DATAPATH_VICTIMS"
STEPS = "DATAPATH_STEPS"

_BPF = {
    "bpf_obj_pin": errno.ENOSPC,
    "bpf_map_update_elem": errno.ENOMEM,
    "bpf_map_delete_elem": errno.ENOMEM,
    "bpf_map_lookup_and_delete_elem": errno.ENOMEM,
    "bpf_map_update_batch": errno.ENOMEM,
    "bpf_map_delete_batch": errno.ENOMEM,
    "link_create": errno.ENOMEM,
    "bpf_link_update": errno.ENOMEM,
    "bpf_tc_hook_create": errno.ENOMEM,
    "bpf_tc_hook_destroy": errno.EPERM,
    "bpf_tc_attach": errno.ENOMEM,
    "bpf_tc_detach": errno.EPERM,
    "bpf_object__load": errno.ENOMEM,
    "bpf_prog_test_run_opts": errno.ENOMEM,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FILES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename")

_SIZE = 256
_shared = mmap.mmap(-1, _SIZE)  # steps, the step that the fault was at, the name of that step


class Outcome(NamedTuple):
    """`steps` that were counted; `step`, if the fault came, says at what."""

    steps: int
    step: str


def last() -> Outcome:
    return _outcome(_shared[:])


def told(file: Path) -> Outcome:
    """The same of the program that was begun with this file, as far as it has come."""
    return _outcome(file.read_bytes())


def _outcome(shared: bytes) -> Outcome:
    steps, length = struct.unpack("II", shared[:8])
    return Outcome(steps, shared[8 : 8 + length].decode())


def install() -> None:
    """In the forked child: counts, and does what DATAPATH_FAULT says."""
    global _shared
    if path := os.environ.pop(STEPS, ""):
        with open(path, "w+b") as file:
            file.truncate(_SIZE)
            _shared = mmap.mmap(file.fileno(), _SIZE)
    _shared[:8] = bytes(8)
    kind, _, number = os.environ.pop(VARIABLE, "none@0").partition("@")
    victims = [int(pid) for pid in os.environ.pop(VICTIMS, "").split()]
    layer = _Layer(kind, number, victims)
    _around_libbpf(layer)
    _around_netlink(layer)
    _around_bridges(layer)
    _around_wireguard(layer)
    _around_filters(layer)
    _around_store(layer)
    _around_cluster(layer)
    _around_processes(layer)
    _around_plugins(layer)
    sys.addaudithook(layer.audit)


class _Layer:
    def __init__(self, kind: str, number: str, victims: list[int]) -> None:
        self.kind, self.victims = kind, victims
        self.behind = number.removeprefix("after:") if number.startswith("after:") else ""
        self.number = 0 if self.behind else int(number)
        self.pid, self.inside = os.getpid(), False
        self.answered = ""  # what a plugin has just answered: the next step says so

    def due(self, what: str) -> bool:
        """Counts a step. Kills the process if its time has come; true: the step has to fail."""
        if os.getpid() != self.pid or self.inside:
            return False
        steps = struct.unpack("I", _shared[:4])[0] + 1
        _shared[:4] = struct.pack("I", steps)
        if steps != self.number:
            if self.behind and self.behind in what:
                self.number, self.behind = steps + 1, ""
            self.answered = ""
            return False
        name = f"{what}{self.answered}".encode()[:200]
        _shared[4 : 8 + len(name)] = struct.pack("I", len(name)) + name
        if self.kind == "kill":
            os.kill(self.pid, signal.SIGKILL)
        if self.kind == "end":
            self.end()
        return self.kind == "error"

    def end(self) -> None:
        for pid in self.victims:
            fd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            select.select([fd], [], [], 60)
            os.close(fd)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Files: what Python opens, makes and removes it announces, and a hook may refuse it."""
        if event == "open":
            path, _, flags = arguments
            named = isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith(
                ("/dev/", "/proc/self")
            )
            if not (named and isinstance(flags, int) and flags & _WRITES):
                return
        elif event not in _FILES:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else str(arguments[0])
        if "__pycache__" in path:
            return
        if self.due(f"{event} {path}"):
            number = errno.EPERM if path.startswith("/proc/sys") or event == "os.remove" else errno.ENOSPC
            raise OSError(number, os.strerror(number), path)


def _around_libbpf(layer: _Layer) -> None:
    from datapath.kernel import bpf_calls

    module: Any = bpf_calls
    real = module.lib

    class Library:
        def __getattr__(self, name: str) -> Any:
            function = getattr(real, name)
            if name not in _BPF:
                return function

            def call(*arguments: Any) -> Any:
                if layer.due(name):
                    if name.endswith("_batch"):
                        arguments[-2][0] = 0
                    return -_BPF[name]
                return function(*arguments)

            return call

    module.lib = Library()


def _around_netlink(layer: _Layer) -> None:
    from datapath.kernel import devices, rtnetlink

    real, there = rtnetlink.Rtnetlink.do, devices.Devices._there

    def do(self: Any, *messages: Any) -> None:
        if layer.due(f"netlink {[message.kind for message in messages]}"):
            raise rtnetlink.Refused(errno.ENOMEM)
        real(self, *messages)

    def asked(self: Any, device: str | int) -> bool:
        """A question, although it looks like a change; asked as often as it takes."""
        layer.inside = True
        try:
            return there(self, device)
        finally:
            layer.inside = False

    rtnetlink.Rtnetlink.do = do  # type: ignore[method-assign]
    devices.Devices._there = asked  # type: ignore[method-assign]


def _around_bridges(layer: _Layer) -> None:
    from pyroute2 import IPRoute, NetlinkError

    for name in ("link", "addr", "brport"):
        real: Callable[..., Any] = getattr(IPRoute, name)

        def call(
            self: Any, command: str, *rest: Any, _real: Any = real, _name: str = name, **more: Any
        ) -> Any:
            if command not in ("get", "dump") and layer.due(f"pyroute2 {_name} {command}"):
                raise NetlinkError(errno.ENOMEM, "injected")
            return _real(self, command, *rest, **more)

        setattr(IPRoute, name, call)


def _around_wireguard(layer: _Layer) -> None:
    from datapath.errors import KernelError
    from datapath.kernel import wireguard

    real = wireguard.configure

    def configure(name: str, *settings: Any, **own: Any) -> None:
        if layer.due(f"wireguard {name} {sorted(own)}"):
            raise KernelError("configure", f"device {name}", errno.ENOMEM)
        real(name, *settings, **own)

    wireguard.configure = configure


def _around_filters(layer: _Layer) -> None:
    """A tool that is asked to change rules; forgetting connections."""
    from datapath.errors import KernelError
    from datapath.kernel import netfilter

    run, forget = netfilter._run, netfilter._forget_all

    def tool(argv: Any, text: str = "") -> str:
        before = layer.inside
        if text and layer.due(f"{argv[0]}: {text.splitlines()[:4]}"):
            raise KernelError("run", argv[0], detail="injected")
        layer.inside = True  # the pipes, the fork and whatever else it takes
        try:
            return run(argv, text)
        finally:
            layer.inside = before

    def forget_all(conntrack: Any, side: str, fields: Any) -> None:
        if layer.due(f"conntrack {side}"):
            raise KernelError("forget", "connections", errno.ENOMEM)
        forget(conntrack, side, fields)

    netfilter._run = tool
    netfilter._forget_all = forget_all


def _around_store(layer: _Layer) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            writes = sql == "COMMIT" or (
                not self.in_transaction and sql.startswith(("INSERT", "UPDATE", "DELETE"))
            )
            if writes and layer.due(f"database {sql.split()[0]}"):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorname = "SQLITE_FULL"
                raise error
            return super().execute(sql, *parameters)

    real = sqlite3.connect

    def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
        return real(*arguments, factory=Connection, **more)

    sqlite3.connect = connect  # type: ignore[assignment]


def _around_cluster(layer: _Layer) -> None:
    """Requests to the cluster's store: lost on their way, or done and the answer lost."""
    from datapath.store.etcd.gateway import Gateway

    real = Gateway._exchange

    def exchange(self: Any, connection: Any, path: str, body: Any) -> Any:
        if layer.due(f"ask {path}"):
            raise ConnectionResetError(errno.ECONNRESET, "injected")
        answer = real(self, connection, path, body)
        if layer.due(f"answer of {path}"):
            raise ConnectionResetError(errno.ECONNRESET, "injected")
        return answer

    Gateway._exchange = exchange  # type: ignore[method-assign]


def _around_processes(layer: _Layer) -> None:
    from datapath.runtime import spawn

    def around(holder: Any, name: str, number: int) -> None:
        real: Callable[..., Any] = getattr(holder, name)

        def call(*arguments: Any) -> Any:
            if layer.due(name):
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        setattr(holder, name, call)

    around(os, "fork", errno.EAGAIN)
    around(signal, "pidfd_send_signal", errno.EPERM)
    around(spawn.Created, "release", errno.EIO)


def _around_plugins(layer: _Layer) -> None:
    from datapath.kernel import plugin_http

    real = plugin_http.ask

    def ask(plugin: Any, method: str, *arguments: Any) -> Any:
        if layer.due(f"ask plugin {plugin.name} {method}"):
            raise plugin_http.Unanswered("a fault")
        found = real(plugin, method, *arguments)
        layer.answered = f" after {method}"
        return found

    setattr(plugin_http, "ask", ask)  # noqa: B010 - as above
