# SPDX-License-Identifier: Apache-2.0
"""The parent of one container's main process: it lives as long as the container does.

Started by `sandbox.spawn` as a program of its own. There is one per container, so it imports the lightest
modules only: the built-in `_signal` and `marshal` instead of `signal` and `json`, no typing, no contextlib,
and ctypes only in the child, which execs soon after.

    fd 3  the spec (marshal: both ends are the same interpreter)
    fd 4  to the caller, lines: "ready PID SHIM", then "started" or "failed OPERATION\\tSUBJECT\\tERRNO",
          then (in the foreground) "exit CODE"
    fd 5  from the caller: one byte lets the child go on; end of file before that cancels

If the caller is killed before it has written the byte, everything ends and nothing is left. If this process is
killed, the container goes on, but its exit code will not be known, and output that passes through here has no
reader.
"""
# ruff: noqa: SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import marshal
import os
import select

from datapath.runtime.farewell import is_unheard
from datapath.runtime.logfile import LogFile
from datapath.runtime.report import describe
from datapath.runtime.stdio import StdioRelay, copy_window_size

TYPE_CHECKING = False  # typing itself would double what this program holds in memory
if TYPE_CHECKING:
    from typing import Any, NoReturn

SPEC, UP, GO = 3, 4, 5
_CHUNK = 65536
_ABORTED = b"aborted"
_IGNORED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT)


def main() -> NoReturn:
    os.closerange(6, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(UP, False)
    os.set_inheritable(GO, False)
    spec = marshal.loads(_read_all(SPEC))
    os.chdir("/")
    os.umask(0o022)
    if spec["cgroup"]:  # of the caller's only what waits for it is part
        _join(spec["cgroup"], os.path.dirname(spec["cgroup"]))
    for number in _IGNORED:
        _signal.signal(number, _signal.SIG_IGN)
    relay = StdioRelay()
    try:
        file = LogFile(spec["log"], spec["log_size"], spec["log_files"])
        log = file.fd
        stdio = _stdio(spec, log, relay)
    except OSError as error:
        _tell(b"failed " + describe(["open", spec["log"]], error))
        os._exit(1)
    failure, failure_end = os.pipe()
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(spec, stdio, failure_end, shim)
    os.close(failure_end)
    for fd in set(stdio) - {log, relay.inner}:
        os.close(fd)
    said = _read_all(failure)  # ends when the child has exec'ed, or is gone
    if said:
        os.waitpid(pid, 0)
        if said != _ABORTED:
            _tell(b"failed " + said)
        os._exit(0)
    namespace = _open_mounts(pid)
    _tell(b"started")
    if spec["detach"]:
        os.close(UP)
        os.close(GO)
    code = _watch(pid, relay, spec, file)
    file.look()
    written = _write_atomically(spec["exit_file"], f"{code}\n".encode())
    _end_members(namespace)
    _leave(spec["cgroup"])
    relay.drain()
    file.look()
    _finish(spec, code, written)


def _join(made: str, joined: str) -> None:
    """Makes the one control group and enters the other. Where that is not possible, we stay in the caller's."""
    try:
        os.makedirs(made, exist_ok=True)
        fd = os.open(joined + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"0")
    except OSError:
        pass
    os.close(fd)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, _CHUNK):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)


def _tell(line: bytes) -> None:
    try:
        os.write(UP, line + b"\n")
    except OSError:
        pass  # the caller is gone


def _write_atomically(path: str, content: bytes) -> bool:
    """Failure (the directory is gone) is not fatal: the code is then unknown. Whether it is written."""
    try:
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, content)
        os.close(fd)
        os.replace(path + ".new", path)
    except OSError:
        return False
    return True


def _finish(spec: Any, code: int, written: bool) -> NoReturn:
    """Tell the control plane, then the caller if it waits. Of a detached one nobody has to be told whose
    exit code, which was `written`, has been removed with the container."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    command = [*spec["exited"], str(code)]
    _signal.signal(_signal.SIGIO, _signal.SIG_IGN)  # one may be on its way
    if spec["exited"]:
        for number in (*_IGNORED, _signal.SIGCHLD):
            _signal.signal(number, _signal.SIG_DFL)
        if spec["detach"]:
            folder = spec["exited_env"].get("DATAPATH_STATE_DIR")
            if written and folder and is_unheard(folder, spec["exit_file"]):
                os._exit(0)
            os.execve(command[0], command, spec["exited_env"])
        try:
            os.waitpid(os.posix_spawn(command[0], command, spec["exited_env"]), 0)
        except OSError:
            pass  # the next command notices
    if not spec["detach"]:
        _tell(f"exit {code}".encode())
    os._exit(0)


# ---- while it runs ----------------------------------------------------------------


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _watch(pid: int, relay: StdioRelay, spec: Any, log: LogFile) -> int:
    """The main process's code, while data is moved and the log looked after. Whatever else dies meanwhile is reaped,
    since orphans come to us."""
    wake, wake_end = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_end, False)
    _signal.set_wakeup_fd(wake_end)
    for number in (_signal.SIGCHLD, _signal.SIGIO):
        _signal.signal(number, lambda *_: None)
    log.watch()
    log.woken()  # for what came before
    if spec["tty"] and not spec["detach"]:
        _signal.signal(_signal.SIGWINCH, lambda *_: copy_window_size(1, relay.terminal))
        copy_window_size(1, relay.terminal)
    watched = [wake] if spec["detach"] else [wake, GO]
    while True:
        try:
            while True:
                dead, status = os.waitpid(-1, os.WNOHANG)
                if dead == pid:
                    return _code(status)
                if dead == 0:
                    break
        except ChildProcessError:
            return 255  # cannot happen: the main process is ours
        ready = relay.step(watched, log.timeout)
        if not ready and log.timeout is not None:
            log.woken()
        if wake in ready and _signal.SIGIO in os.read(wake, _CHUNK):
            log.woken()
        if GO in ready:  # the caller is gone: its terminal is no longer ours to use
            watched.remove(GO)
            relay.forget(0, 1, 2)


def _stdio(spec: Any, log: int, relay: StdioRelay) -> tuple[int, int, int]:
    """The child's stdin, stdout, stderr. Detached and without a terminal, it writes to its log by itself."""
    outer = [] if spec["detach"] else [1]
    if spec["tty"]:
        relay.terminal, relay.inner = os.openpty()
        relay.add(relay.terminal, log, *outer)
        if outer and spec["interactive"]:
            relay.add(0, relay.inward(relay.terminal))
        return relay.inner, relay.inner, relay.inner
    if spec["interactive"]:
        stdin, writer = os.pipe()
        if outer:
            relay.add(0, relay.inward(writer))  # detached, it just stays open
    else:
        stdin = os.open("/dev/null", os.O_RDONLY)
    if not outer:
        return stdin, log, log
    stdout_source, stdout = os.pipe()
    stderr_source, stderr = os.pipe()
    relay.add(stdout_source, log, 1)
    relay.add(stderr_source, log, 2)
    return stdin, stdout, stderr


# ---- its end ------------------------------------------------------------------------


def _open_mounts(pid: int) -> int:
    """The container's mount namespace, held so that its number stays its own. -1: it has ended already."""
    try:
        return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _end_members(namespace: int) -> None:
    """Kill our descendants, and all else in the container's mount namespace (`exec`), until none is left."""
    inode = os.fstat(namespace).st_ino if namespace >= 0 else -1
    while members := _descendants(os.getpid()) | _inside(inode):
        for pid in members:
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                pass
        select.select([], [], [], 0.002)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # what is left is other people's to reap
    if namespace >= 0:
        os.close(namespace)


def _leave(group: str) -> None:
    """Removes the container's control group: whoever has recorded its end may have come before its last process."""
    try:
        if group:
            os.rmdir(group)
    except OSError:
        pass  # it is gone, or runs again


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                found.update(int(child) for child in (file.read() or b"").split())
    except OSError:
        pass  # gone meanwhile
    for child in list(found):
        found |= _descendants(child)
    return found


def _inside(inode: int) -> set[int]:
    found = set()
    for name in os.listdir("/proc") if inode >= 0 else ():
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/mnt").st_ino == inode:
                    found.add(int(name))
            except OSError:
                pass  # gone meanwhile, or a zombie
    return found


# ---- the child: namespaces, file system, exec -----------------------------------------


def _child(spec: Any, stdio: tuple[int, int, int], failure: int, shim: int) -> NoReturn:
    """`shim`: the pid of our parent, taken before the fork, as we may have been inherited by another process."""
    step = ["create", "namespaces"]
    try:
        from datapath.runtime import init

        os.setsid()
        if spec["cgroup"]:
            _join(spec["cgroup"], spec["cgroup"])
        init.unshare(spec, step)
        os.write(UP, f"ready {os.getpid()} {shim}\n".encode())
        if not os.read(GO, 1):
            os.write(failure, _ABORTED)
            os._exit(0)
        init.set_hostname(spec, step)
        init.setup_mounts(spec, step)
        init.exec_program(spec, stdio, step)
    except BaseException as error:
        os.write(failure, describe(step, error))
    finally:
        os._exit(1)
