# SPDX-License-Identifier: Apache-2.0
"""A pretend host with a real dockerd and the driver, as a service manager starts it.

The daemon and all that it starts are in a process and a mount namespace of their own, so that they end together;
/run, a tmpfs, is shared with the pretend host. What a daemon keeps is in the host's folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import DatapathError
from datapath.kernel.unix_http import Api
from tests.net import forked
from tests.net.hosts import DATAPATHCTL, PATIENCE, TIMEOUT, Failed, Host, Words, eventually, words
from tests.net.runtimes import ENTER, remove_groups

needs_docker = pytest.mark.skipif(not shutil.which("dockerd"), reason="dockerd is not installed")
SOCKET = "/run/docker/plugins/datapath.sock"
IMAGE = "bb"
# Served by busybox's httpd in containers that are asked.
PAGE = "hello from the container\n"
HTTPD = "httpd -f -p 80 -h /www"

# What becomes the first process of the namespace: it reaps, or the daemon would wait for zombies when it is started
# again. After the program come the arguments of `enter`. On this machine's own root only /etc is another: dockerd 20.10
# writes a key there.
_BEGIN = f"""
set -e
{ENTER}
python=$1 init=$2
shift 2
if [ $# -gt 1 ]; then
    enter "$@"
else
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/up" "$1/work"
    mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/up,workdir=$1/work" /etc
fi
exec "$python" -c "$init"
"""
_INIT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print(flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""
_OUTER = (
    "mount -t tmpfs -o mode=755 tmpfs /run && mount --make-shared /run && mkdir /run/netns /run/lock && "
    'unshare --mount --propagation unchanged --pid --fork --kill-child --mount-proc "$@" & wait'
)
# What systemd does with a .socket unit: it listens, and starts the service when somebody connects.
_ACTIVATOR = """
import os, select, socket, subprocess, sys
path, argv = sys.argv[1], sys.argv[2:]
os.makedirs(os.path.dirname(path), exist_ok=True)
if os.path.exists(path):
    os.unlink(path)
opened = socket.socket(socket.AF_UNIX)
opened.bind(path)
opened.listen(1024)
os.dup2(opened.fileno(), 3)
print("ready", flush=True)
while True:
    select.select([3], [], [])
    command = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    subprocess.run(["sh", "-c", command, "sh", *argv], pass_fds=(3,), stdout=subprocess.DEVNULL)
"""
# The driver, which is killed at the worst time.
_FAULTY = """
import os, signal, sys
from ctl.cli import main
from datapath.kernel import unix_server
_, fault, seen, *sys.argv[1:] = sys.argv
answer = unix_server.Server._answer
def faulty(self, connection, request, keep):
    if fault != "answered" and request.path not in open(seen).read().split():
        open(seen, "a").write(request.path + chr(10))
        if fault == "unanswered":
            self._handle(request)
    else:
        if fault == "answered":
            self._accept = lambda: None  # the next request, which may come at once, is for the next process
        answer(self, connection, request, keep)
        if fault != "answered":
            return
    os.kill(os.getpid(), signal.SIGKILL)
unix_server.Server._answer = faulty
main.main()
"""


class DockerHost(Host):
    """Every command of it sees the daemon's /run, the driver too. `root`: of another release, of which the daemon and
    its client are; None: this machine's."""

    def __init__(
        self, folder: Path, *flags: str, idle: str = "5s", root: Path | None = None, **options: Any
    ) -> None:
        super().__init__(folder, **options)
        self._root = root
        self._scratch = Path(tempfile.mkdtemp())
        self.cgroup = f"{folder.name}-{os.getpid()}"  # below which those of its containers are
        self.version = ""  # the daemon's, once it was up
        assert self.env is not None
        self.flags, self.idle = flags, idle
        self._daemon: subprocess.Popen[str] | None = None
        self._driver: subprocess.Popen[str] | None = None
        self.log = folder / "dockerd.log"
        self._begin()

    def _begin(self) -> None:
        argv = ["nsenter", f"--net={self.path}", "unshare", "--mount", "sh", "-c", _OUTER, "sh"]
        python = "/usr/bin/python3" if self._root else sys.executable
        folders = [str(self._scratch), *([str(self._root), str(self.folder)] if self._root else [])]
        begin = ["bash", "-c", _BEGIN, "begin", python, _INIT, *folders]
        self._outer = subprocess.Popen(
            [*argv, *begin], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._outer.stdout is not None and self._outer.stdout.readline() == "\n"
        self._inner = _child(_child(self._outer.pid))

    # ---- commands ------------------------------------------------------------------------------------

    def try_(
        self, command: Words, input: str | None = None, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, *words(command)],
            env=self.env,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def try_ctl(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        if not self.preloaded:
            return super().try_ctl(command, timeout)
        return forked.datapathctl(words(command), self.path, self.env or {}, timeout, self.uts, self._mounts)

    @property
    def _mounts(self) -> str:
        outer = getattr(self, "_outer", None)
        return f"/proc/{outer.pid}/ns/mnt" if outer else ""

    @property
    def _enter(self) -> list[str]:
        mount = [f"--mount={self._mounts}"] if self._mounts else []
        named = [f"--uts={self.uts}"] if self.uts else []
        return ["nsenter", f"--net={self.path}", *named, *mount, f"--wd={os.getcwd()}"]

    def start(self, command: Words, **more: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "text": True,
        } | more
        argv = [*self._enter, *words(command)]
        process: subprocess.Popen[str] = subprocess.Popen(
            argv, env=self.env, start_new_session=True, **options
        )
        self.background.append(process)
        return process

    def docker(self, command: Words, timeout: float = TIMEOUT) -> str:
        """What Docker's client prints; it has to succeed."""
        done = self.try_docker(command, timeout)
        if done.returncode:
            raise Failed(
                f"docker {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}{self.said()}"
            )
        return done.stdout.strip()

    def try_docker(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        return self.try_([*self.client, *words(command)], timeout=timeout)

    def inside(self, command: Words) -> str:
        """A command where the daemon is: processes have the numbers that it knows."""
        return self.sh([*self._inside, *words(command)])

    def processes(self) -> list[list[str]]:
        """The command lines of all that are in the host's own network namespace."""
        found, mine = [], os.stat(self.path).st_ino
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.stat(path / "ns/net").st_ino == mine:
                    found.append((path / "cmdline").read_text().split("\0")[:-1])
        return found

    @property
    def client(self) -> list[str]:
        """Docker's client, of the daemon's own version."""
        program = "/usr/bin/docker" if self._root or os.path.exists("/usr/bin/docker") else "docker"
        return [*(self._inside if self._root else ()), program, "-H", "unix:///run/docker.sock"]

    @property
    def compose(self) -> list[str]:
        """Compose of the same release: a program of its own in this one, later a part of the client."""
        return [*self.client, "compose"] if self._root else ["docker-compose", *self.client[-2:]]

    @property
    def _inside(self) -> list[str]:
        """Where the daemon is."""
        return ["nsenter", "-t", str(self._inner), "--mount", "--pid", "--net", "--root", "--wd"]

    def exec(self, name: str, command: Words) -> str:
        return self.docker(["exec", name, *words(command)])

    def clean(self) -> bool:
        """`doctor` has nothing to say."""
        done = self.try_ctl("doctor")
        assert done.stdout == "No problems found.\n", done.stdout + done.stderr + self.said()
        return True

    def said(self) -> str:
        """The end of what the daemon and the driver have said."""
        driver = self.folder / "driver.log"
        parts = [path.read_text()[-3000:] for path in (self.log, driver) if path.exists()]
        return "\n--\n".join(["", *parts])

    # ---- the daemon ----------------------------------------------------------------------------------

    def up(self, *more: str) -> None:
        """The daemon is started, and answers."""
        data = self.folder / "data"
        argv = [
            *(*self._inside, "dockerd"),
            *("-H", "unix:///run/docker.sock", "--data-root", str(data), "--storage-driver", "vfs"),
            *("--config-file", str(self.folder / "none.json"), "--shutdown-timeout", "2"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.cgroup}"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            *self.flags,
            *more,
        ]
        (self.folder / "none.json").write_text("{}")
        with self.log.open("a") as log:
            self._daemon = subprocess.Popen(argv, stdout=log, stderr=log, text=True, start_new_session=True)
        api = Api(f"/proc/{self._outer.pid}/root/run/docker.sock")
        with eventually() as until:

            def answers() -> bool:
                assert self._daemon is not None and self._daemon.poll() is None, self.said()
                with contextlib.suppress(DatapathError):
                    api.ask("GET", "/_ping")
                    return True
                return False

            until(answers)
            self.version = api.ask("GET", "/version")["Version"]
            if not any(one["RepoTags"] for one in api.ask("GET", "/images/json")):
                api.ask("POST", f"/images/create?fromSrc=-&repo={IMAGE}", _image())

    def down(self, number: int = signal.SIGTERM) -> None:
        """The daemon gets a signal, and ends."""
        assert self._daemon is not None
        os.kill(_child(self._daemon.pid) or self._daemon.pid, number)
        self._daemon.wait(PATIENCE)
        self._daemon = None

    # ---- the driver ----------------------------------------------------------------------------------

    def serve(self, fault: str = "") -> None:
        """The driver is started whenever it is asked. `fault`: it is killed after each request that it has "answered",
        or at the first of each kind, "unanswered" or "unheard"."""
        program = [DATAPATHCTL]
        if fault:
            seen = self.folder / "seen"
            seen.write_text("")
            program = [sys.executable, "-c", _FAULTY, fault, str(seen)]
        argv = [sys.executable, "-c", _ACTIVATOR, SOCKET, *program, "docker", "serve", "--idle", self.idle]
        with (self.folder / "driver.log").open("a") as log:
            self._driver = self.start(argv, stdout=subprocess.PIPE, stderr=log)
        assert self._driver.stdout is not None and self._driver.stdout.readline() == "ready\n"

    def drivers(self) -> list[int]:
        """Processes of the driver that are there now."""
        return [_child(self._driver.pid)] if self._driver and _child(self._driver.pid) else []

    def kill_driver(self) -> None:
        """As it is; the next request starts another."""
        for pid in self.drivers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def unserve(self) -> None:
        """Nobody listens any more."""
        assert self._driver is not None
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        self._driver = None

    def seen(self, path: str) -> str:
        """A path below the daemon's /run, for who is outside of it."""
        return f"/proc/{self._outer.pid}/root{path}"

    def api(self) -> Api:
        """As the daemon asks the driver."""
        return Api(self.seen(SOCKET))

    def snapshot_names(self) -> list[str]:
        """Of sandboxes, as the rows have them: without asking the daemon."""
        with forked.database(self.folder / "state") as opened:
            rows = opened.execute("SELECT body FROM sandboxes").fetchall()
        found = (json.loads(body) for (body,) in rows)
        return [row.get("name", "") for row in found if row.get("owner") == "docker"]

    def reboot(self) -> None:
        """What is in memory goes: processes, the devices of our making, /run, the bpffs."""
        self.unserve()
        self._end_inside()
        for line in self.sh("ip -o link").splitlines():
            name = line.split(": ")[1].partition("@")[0]
            if name.startswith(("veth", "dp")):
                self.try_(f"ip link delete {name}")
        shutil.rmtree(self.bpffs / "datapath")
        self._begin()
        self.serve()

    def close(self) -> None:
        try:
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                self.try_ctl("down --force")
        finally:
            self._end_inside()
            self._scratch.rmdir()
            remove_groups(self.cgroup)
            super().close()

    def _end_inside(self) -> None:
        os.killpg(self._outer.pid, signal.SIGKILL)
        self._outer.wait()
        with eventually() as until:
            until(lambda: not os.path.exists(f"/proc/{self._inner}"))
        if self._daemon is not None:
            self._daemon.wait()
            self._daemon = None
        del self._outer


def _child(pid: int) -> int:
    """Its first child; 0: it has none."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(found[0]) if found else 0


def _image() -> bytes:
    """A root file system with a static busybox and a page."""
    buffer = io.BytesIO()
    busybox = os.path.realpath("/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in set(applets) - {"busybox"}:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        page = tarfile.TarInfo("www/index.html")
        page.size = len(PAGE)
        tar.addfile(page, io.BytesIO(PAGE.encode()))
        for name in ("etc", "tmp", "proc", "sys", "dev"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    return buffer.getvalue()
