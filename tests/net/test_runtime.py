# SPDX-License-Identifier: Apache-2.0
"""Containers as processes: held, let go, looked after, entered, ended; and whose a port is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import KernelError, NotFoundError, NotSupportedError
from datapath.kernel import cgroup, netns, process, sockets, syscalls
from datapath.kernel.process import ExecError
from datapath.runtime import exec as runner
from datapath.runtime import exit_code, spawn
from datapath.runtime.spawn import Created, Spec
from datapath.store.locking import locked
from tests.net.hosts import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    """Everything happens in an empty network namespace, which stands for the host."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    yield
    syscalls.setns(own, syscalls.CLONE_NEWNET)
    os.close(own)


class Container:
    """Makes specs in a directory and ends what was started from them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.exit_file = directory / "exit"
        self.exited = directory / "exited"
        self.started: list[Created] = []
        for name in ("hosts", "resolv.conf", "hostname"):
            (directory / name).write_text(f"this is {name}\n")

    def spec(self, *argv: str, **more: Any) -> Spec:
        values: dict[str, Any] = {
            "argv": argv,
            "env": ENV | {"BOX": str(self.directory)},
            "hostname": "web",
            "hosts": str(self.directory / "hosts"),
            "resolv_conf": str(self.directory / "resolv.conf"),
            "hostname_file": str(self.directory / "hostname"),
            "log": str(self.log),
            "exit_file": str(self.exit_file),
            "exited": ("/bin/sh", "-c", f'echo "$WORD $0" > {self.exited}'),
            "exited_env": {"WORD": "code"},
        }
        return Spec(**(values | more))

    def spawn(self, *argv: str, **more: Any) -> Created:
        held = spawn.spawn(self.spec(*argv, **more))
        self.started.append(held)
        return held

    def run(self, script: str, **more: Any) -> Created:
        held = self.spawn("sh", "-c", script, **more)
        held.release()
        return held

    def output(self, script: str, **more: Any) -> str:
        """What the script wrote by the time that it had ended."""
        held = self.run(script, **more)
        self.finished(held)
        return self.log.read_text()

    def finished(self, held: Created) -> None:
        until(lambda: not process.alive(held.shim_pid, held.shim_start))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    for held in made.started:
        process.terminate(held.pid, held.start, 0)
        with contextlib.suppress(AssertionError):
            made.finished(held)
        process.terminate(held.shim_pid, held.shim_start, 0)
    for pid in processes_with(
        f"BOX={tmp_path}", "environ"
    ):  # started by callers of their own, in a failed test
        os.kill(pid, signal.SIGKILL)


def processes_with(marker: str, where: str = "cmdline") -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{name}/{where}").read_bytes():
                    found.append(int(name))
    return found


class TestSurroundings:
    def test_own_network_and_names(self, container: Container) -> None:
        shown = container.output("ls /sys/class/net; hostname; cat /etc/hosts /etc/resolv.conf /etc/hostname")
        expected = ["lo", "web", "this is hosts", "this is resolv.conf"]
        if Path("/etc/hostname").exists():
            expected.append("this is hostname")
        assert [line for line in shown.splitlines() if "cat:" not in line] == expected
        assert Path("/etc/hosts").read_text() != "this is hosts\n"

    def test_changes_of_the_files_are_seen(self, container: Container) -> None:
        held = container.run("until grep -q later /etc/hosts; do sleep 0.01; done; echo seen")
        with (container.directory / "hosts").open("a") as file:
            file.write("later\n")
        container.finished(held)
        assert container.log.read_text() == "seen\n"

    def test_environment_and_directory_are_exactly_the_given_ones(self, container: Container) -> None:
        held = container.spawn("/usr/bin/env", env={"A": "1", "ODD": "ü\udcff"}, workdir="/usr")
        held.release()
        container.finished(held)
        assert sorted(container.log.read_bytes().split(b"\n")) == [b"", b"A=1", b"ODD=\xc3\xbc\xff"]
        container.log.unlink()
        assert container.output("pwd", workdir="/usr") == "/usr\n"

    def test_no_stray_fds_and_clean_signals(self, container: Container) -> None:
        os.set_inheritable(stray := os.open("/dev/zero", os.O_RDONLY), True)
        try:
            shown = container.output("ls -l /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status")
        finally:
            os.close(stray)
        assert "/dev/zero" not in shown
        assert len([line for line in shown.splitlines() if " -> " in line]) == 4  # the fourth is ls's own
        masks = [int(line.split()[1], 16) for line in shown.splitlines() if line.startswith("Sig")]
        # 32 and 33 are the C library's own, which lets nobody touch them.
        assert [mask & ~(0b11 << 31) for mask in masks] == [0, 0]

    def test_cgroups_stay_reachable(self, container: Container) -> None:
        place = cgroup.mount_point()
        assert "cgroup.procs" in container.output(f"ls {place}")

    def test_its_mounts_stay_with_it(self, container: Container) -> None:
        container.output("mount -t tmpfs inside /mnt && touch /mnt/x && ls /mnt")
        assert container.log.read_text() == "x\n"
        assert "inside /mnt" not in Path("/proc/mounts").read_text()

    def test_joins_the_namespace_of_another(self, container: Container) -> None:
        first = container.run("sleep 60")
        second = container.spawn("sleep", "60", netns=first.netns, log=str(container.directory / "log2"))
        assert netns.identity(second.netns) == netns.identity(first.netns) != netns.identity()
        before = netns.cookie(second.netns)
        process.terminate(first.pid, first.start, 0)
        assert netns.cookie(second.netns) == before

    def test_shares_the_hosts_namespace(self, container: Container) -> None:
        subprocess.run(("ip", "link", "add", "seen0", "type", "veth", "peer", "name", "seen1"), check=True)
        assert "seen0" in container.output("ls /sys/class/net", netns="host")

    def test_missing_files_and_namespaces_are_told(self, container: Container) -> None:
        with pytest.raises(KernelError, match="join network namespace /nowhere: No such file"):
            container.spawn("true", netns="/nowhere")
        with pytest.raises(KernelError, match="open /nowhere/log: No such file"):
            container.spawn("true", log="/nowhere/log")
        for more, message in (
            ({"hosts": "/nowhere/hosts"}, "open /nowhere/hosts"),
            ({"workdir": "/nowhere"}, "change to /nowhere"),
            ({"rootfs": "/nowhere"}, "change root to /nowhere"),
        ):
            with pytest.raises(KernelError, match=message):
                container.spawn("true", **more).release()
        assert not container.exited.exists()


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None or b"\0/lib" in Path(busybox).read_bytes()[:4096]:  # names a dynamic loader
        pytest.skip("needs a static busybox")
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "ls", "cat", "mount", "stat", "readlink", "hostname", "test"):
        (root / "bin" / name).symlink_to("busybox")
    return root


class TestRootDirectory:
    def test_is_all_that_is_seen(self, container: Container, rootfs: Path) -> None:
        shown = container.output("ls -1 /; cat /etc/hosts; ls /sys/class/net; hostname", rootfs=str(rootfs))
        assert shown.split("\n")[:5] == ["bin", "dev", "etc", "proc", "sys"]
        assert shown.endswith("this is hosts\nlo\nweb\n")

    def test_devices_and_mounts(self, container: Container, rootfs: Path) -> None:
        shown = container.output(
            "cat /proc/mounts;"
            "for d in null zero full random urandom tty ptmx; do test -c /dev/$d && echo $d; done;"
            "echo x > /dev/null; readlink /dev/stdout; ls /sys/fs/cgroup > /dev/null && echo cgroups",
            rootfs=str(rootfs),
        )
        for place in ("/proc proc", "/sys sysfs", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs"):
            assert place in shown
        assert "null\nzero\nfull\nrandom\nurandom\ntty\nptmx\n/proc/self/fd/1\ncgroups\n" in shown
        assert str(container.directory) + "/root" not in Path("/proc/mounts").read_text()

    def test_links_cannot_lead_out_of_it(self, container: Container, rootfs: Path) -> None:
        victim = container.directory / "victim"
        (rootfs / "etc").mkdir()
        (rootfs / "etc/hosts").symlink_to("../../../../../../../../" + str(victim))
        (rootfs / "etc/resolv.conf").symlink_to(victim)
        (rootfs / "proc").symlink_to("/procfs")
        (rootfs / "procfs").mkdir()
        shown = container.output(f"cat /etc/hosts; cat {victim}", rootfs=str(rootfs))
        assert shown.splitlines()[0] == "this is resolv.conf"  # one file now, the last is on top
        assert not victim.exists()
        assert (rootfs / str(victim).lstrip("/")).read_text() == ""

    def test_command_is_looked_up_inside(self, container: Container, rootfs: Path) -> None:
        with pytest.raises(ExecError) as caught:
            container.spawn("python3", rootfs=str(rootfs)).release()
        assert caught.value.exit_code == 127

    def test_exec_enters_it(
        self, container: Container, rootfs: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        held = container.run("while :; do read -t 1 x; done", rootfs=str(rootfs), interactive=True)
        assert runner.exec_in(held.pid, held.start, ["ls", "-1", "/"], ENV) == 0
        assert capfd.readouterr().out == "bin\ndev\netc\nproc\nsys\n"


class TestLife:
    def test_held_until_released(self, container: Container) -> None:
        held = container.spawn("sh", "-c", "echo ran")
        assert process.alive(held.pid, held.start) and process.alive(held.shim_pid, held.shim_start)
        assert netns.identity(held.netns) != netns.identity()
        time.sleep(0.05)
        assert container.log.read_text() == ""
        held.release()
        container.finished(held)
        assert container.log.read_text() == "ran\n"

    @pytest.mark.parametrize(
        ("script", "code"),
        [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
    )
    def test_exit_code_is_recorded_and_reported(self, container: Container, script: str, code: int) -> None:
        container.output(script)
        assert exit_code.read(str(container.exit_file)) == code
        assert container.exited.read_text() == f"code {code}\n"

    def test_abort_leaves_nothing(self, container: Container) -> None:
        with container.spawn("sh", "-c", "echo ran") as held:
            pass
        held.abort()
        assert not process.alive(held.pid, held.start) and not process.alive(held.shim_pid, held.shim_start)
        assert (
            container.log.read_text() == ""
            and not container.exited.exists()
            and not container.exit_file.exists()
        )

    def test_caller_killed_just_after_letting_go_does_not_matter(self, container: Container) -> None:
        script = f"""
            import os, sys
            sys.path.insert(0, {str(ROOT)!r})
            from datapath.runtime.spawn import Spec, spawn
            held = spawn({container.spec("sh", "-c", "sleep 0.2; exit 4")!r})
            os.write(held._go, b"g")
            os.kill(os.getpid(), 9)
        """
        subprocess.run((sys.executable, "-c", textwrap.dedent(script)))
        until(lambda: container.exited.exists() and container.exited.read_text() == "code 4\n")

    def test_killed_caller_leaves_nothing(self, container: Container) -> None:
        script = f"""
            import sys, time
            sys.path.insert(0, {str(ROOT)!r})
            from datapath.runtime.spawn import Spec, spawn
            held = spawn({container.spec("true")!r})
            print(held.pid, held.start, held.shim_pid, held.shim_start, flush=True)
            time.sleep(3600)
        """
        caller = subprocess.Popen(
            (sys.executable, "-c", textwrap.dedent(script)), stdout=subprocess.PIPE, text=True
        )
        assert caller.stdout is not None
        pid, start, shim_pid, shim_start = map(int, caller.stdout.readline().split())
        assert process.alive(pid, start) and process.alive(shim_pid, shim_start)
        caller.kill()
        caller.wait()
        caller.stdout.close()
        until(lambda: not process.alive(pid, start) and not process.alive(shim_pid, shim_start))
        assert not container.exit_file.exists()

    @pytest.mark.parametrize(
        ("command", "code", "number"),
        [
            ("no-such-command", 127, errno.ENOENT),
            ("/no/such/command", 127, errno.ENOENT),
            ("/etc/passwd", 126, errno.EACCES),
            ("/etc", 126, errno.EACCES),
        ],
    )
    def test_command_that_cannot_run(
        self, container: Container, command: str, code: int, number: int
    ) -> None:
        held = container.spawn(command)
        with pytest.raises(ExecError) as caught:
            held.release()
        assert (caught.value.exit_code, caught.value.errno, caught.value.command) == (code, number, command)
        assert not process.alive(held.shim_pid, held.shim_start)
        assert not container.exited.exists() and not container.exit_file.exists()

    def test_leftovers_end_with_it(self, container: Container, tmp_path: Path) -> None:
        marker, go = f"4701.{os.getpid()}", tmp_path / "go"
        background = f"setsid sleep {marker} & (setsid unshare -m sleep {marker} &)"
        held = container.run(f"{background}; until [ -e {go} ]; do sleep 0.02; done; exit 3")
        with open(held.netns) as namespace:  # its number is no other's as long as this has it
            identity = os.stat(namespace.fileno()).st_ino
            until(lambda: len(processes_with(f"sleep\0{marker}")) == 2)
            go.touch()
            container.finished(held)
            assert processes_with(marker) == []
            assert exit_code.read(str(container.exit_file)) == 3
            assert not any(is_in(name, identity) for name in os.listdir("/proc") if name.isdigit())

    def test_killed_shim_leaves_the_container_but_not_its_code(self, container: Container) -> None:
        held = container.run("exec sleep 60")
        os.kill(held.shim_pid, signal.SIGKILL)
        until(lambda: not process.alive(held.shim_pid, held.shim_start))
        assert process.alive(held.pid, held.start)
        assert process.terminate(held.pid, held.start, 5)
        assert not process.alive(held.pid, held.start)
        assert exit_code.read(str(container.exit_file)) is None

    @pytest.mark.parametrize(
        ("known", "kept"),
        [(False, True), (True, True), (False, False)],
        ids=["forgotten", "to be recorded", "forgotten by a command that gave up the space which is kept"],
    )
    def test_nobody_is_told_of_the_end_of_a_container_that_was_forgotten(
        self, container: Container, tmp_path: Path, known: bool, kept: bool
    ) -> None:
        """The shim waits until the command is over that forgets it, and ends without having started anything, unless
        it may have kept that command from keeping space again."""
        if kept:
            (tmp_path / "reserve").touch()
        with locked(tmp_path / "lock"):
            held = container.run("exit 3", exited_env={"WORD": "code", "DATAPATH_STATE_DIR": str(tmp_path)})
            until(lambda: exit_code.read(str(container.exit_file)) == 3)
            if not known:
                container.exit_file.unlink()
            assert process.alive(held.shim_pid, held.shim_start)
        container.finished(held)
        assert container.exited.exists() == (known or not kept)

    def test_terminate(self, container: Container) -> None:
        polite = container.run("exec sleep 60")
        assert process.terminate(polite.pid, polite.start, 5)
        stubborn = container.run("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        until(lambda: "ready" in container.log.read_text())
        assert not process.terminate(stubborn.pid, stubborn.start, 0.1)
        assert not process.alive(stubborn.pid, stubborn.start)
        assert process.terminate(stubborn.pid, stubborn.start, 0)

    def test_terminate_spares_a_stranger_with_the_same_pid(self, container: Container) -> None:
        held = container.run("exec sleep 60")
        assert process.terminate(held.pid, held.start + 1, 0)
        assert process.alive(held.pid, held.start)
        assert not process.alive(held.pid, held.start + 1)

    def test_a_number_that_is_a_thread_of_somebody_by_now_is_no_process(self) -> None:
        """The process of that number has ended. Nobody is signalled, and nothing is refused."""
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            assert thread.native_id
            assert process.terminate(thread.native_id, 1, 0)
        finally:
            done.set()
            thread.join()

    def test_zombie_is_not_alive(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert process.start_time(pid) is None and not process.alive(pid, 0)
        os.waitpid(pid, 0)
        assert not process.alive(pid, 0) and not process.alive(0, 0)

    def test_shim_is_small_and_holds_little_open(self, container: Container) -> None:
        held = container.run("exec sleep 60")
        usage = Path(f"/proc/{held.shim_pid}/smaps_rollup").read_text().split("\n")
        private = next(int(line.split()[1]) for line in usage if line.startswith("Private_Dirty:"))
        assert private < 4000  # KiB; an import of typing alone doubles it

        def targets() -> set[str]:
            found = {os.readlink(entry) for entry in Path(f"/proc/{held.shim_pid}/fd").iterdir()}
            return {target for target in found if not target.startswith(("mnt:", "pipe:"))}

        watched = {str(container.log), f"{container.log}.times", str(container.directory)}
        until(lambda: targets() == {"/dev/null", *watched})
        assert os.readlink(f"/proc/{held.shim_pid}/cwd") == "/"


def is_in(pid: str, identity: int) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino == identity
    return False


class TestForeground:
    def test_output_goes_to_both_and_the_code_comes_back(
        self, container: Container, capfd: pytest.CaptureFixture[str]
    ) -> None:
        held = container.run("echo out; echo err >&2; exit 9", detach=False)
        assert held.wait() == 9
        assert container.exited.read_text() == "code 9\n"  # it had run when wait returned
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("out\n", "err\n")
        assert sorted(container.log.read_text().split()) == ["err", "out"]

    def test_large_input_and_output(self, container: Container) -> None:
        size = 3_000_000
        result = self.caller(container, "cat", input=b"x" * size, interactive=True)
        assert (result.returncode, len(result.stdout)) == (0, size)
        assert container.log.stat().st_size == size

    def test_without_interactive_there_is_no_input(self, container: Container) -> None:
        result = self.caller(container, "cat; echo end", input=b"unread")
        assert (result.returncode, result.stdout) == (0, b"end\n")

    def test_reader_that_leaves_early(self, container: Container) -> None:
        result = subprocess.run(
            ("sh", "-c", '"$@" | head -c 10', "sh", *self.command(container, "seq 100000; echo end")),
            capture_output=True,
            timeout=PATIENCE,
        )
        assert result.stdout == b"1\n2\n3\n4\n5\n"
        until(lambda: container.log.read_bytes().endswith(b"100000\nend\n"))

    def test_background_process_does_not_delay_the_end(self, container: Container) -> None:
        marker = f"4702.{os.getpid()}"
        result = self.caller(container, f"sleep {marker} & echo started; exit 4", input=b"")
        assert (result.returncode, result.stdout) == (4, b"started\n")
        assert processes_with(marker) == []

    def test_signals_reach_the_process(self, container: Container) -> None:
        script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
        caller = subprocess.Popen(self.command(container, script), stdout=subprocess.PIPE)
        until(lambda: container.log.exists() and "ready" in container.log.read_text())
        caller.terminate()
        assert caller.wait(PATIENCE) == 5
        assert caller.communicate()[0] == b"ready\ngot\n"

    def test_killed_shim_is_told(self, container: Container) -> None:
        held = container.run("exec sleep 60", detach=False)
        os.kill(held.shim_pid, signal.SIGKILL)
        assert held.wait() is None
        assert process.alive(held.pid, held.start)

    def test_killed_caller_does_not_end_it(self, container: Container, tmp_path: Path) -> None:
        go = tmp_path / "go"
        caller = subprocess.Popen(
            self.command(container, f"echo begun; until [ -e {go} ]; do sleep 0.02; done; echo done; exit 6"),
            stdout=subprocess.DEVNULL,
        )
        until(lambda: container.log.exists() and container.log.read_text() == "begun\n")
        caller.kill()
        caller.wait()
        go.touch()
        until(container.exited.exists)
        until(lambda: container.exited.read_text() == "code 6\n")
        assert container.log.read_text() == "begun\ndone\n"

    def caller(
        self, container: Container, script: str, *, input: bytes, **more: Any
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(container, script, **more), input=input, capture_output=True, timeout=PATIENCE
        )

    @staticmethod
    def command(container: Container, script: str, **more: Any) -> tuple[str, ...]:
        spec = container.spec("sh", "-c", script, detach=False, **more)
        program = f"""
            import sys
            sys.path.insert(0, {str(ROOT)!r})
            from datapath.runtime.spawn import Spec, spawn
            held = spawn({spec!r})
            held.release()
            sys.exit(held.wait())
        """
        return (sys.executable, "-c", textwrap.dedent(program))


class Terminal:
    """A user at a terminal who has typed a command."""

    def __init__(self, command: tuple[str, ...], rows: int, columns: int) -> None:
        ready, go = os.pipe()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.read(ready, 1)  # the size is set
            os.execv(command[0], command)
        self.shown = b""
        self.resize(rows, columns)
        os.write(go, b"!")
        os.close(ready)
        os.close(go)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            ready = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{text!r} did not appear: {self.shown!r}"
            try:
                self.shown += os.read(self.fd, 65536)
            except OSError:
                raise AssertionError(f"{text!r} did not appear: {self.shown!r}") from None
        self.shown = self.shown.partition(text)[2]

    def close(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


class TestTerminal:
    SHELL = "stty -echo; PS1=; trap 'echo resized' WINCH; trap 'echo interrupted' INT; echo ready; exec 3<&0;"
    LOOP = 'while :; do read line && eval "$line"; done'

    def test_run(self, container: Container) -> None:
        user = Terminal(
            TestForeground.command(container, self.SHELL + self.LOOP, tty=True, interactive=True), 31, 97
        )
        user.expect(b"ready")
        user.type(b"stty size; test -t 0 && test -t 1 && test -t 2 && echo all\n")
        user.expect(b"31 97")
        user.expect(b"all")
        user.type(b"\x03")
        user.expect(b"interrupted")
        user.resize(40, 120)
        user.expect(b"resized")
        user.type(b"stty size\n")
        user.expect(b"40 120")
        user.type(b"exit 11\n")
        assert user.close() == 11
        assert b"40 120" in container.log.read_bytes()

    def test_exec(self, container: Container) -> None:
        held = container.run("exec sleep 60")
        program = f"""
            import sys
            sys.path.insert(0, {str(ROOT)!r})
            from datapath.runtime.exec import exec_in
            sys.exit(exec_in({held.pid}, {held.start}, ["sh", "-c", {self.SHELL + self.LOOP!r}], {ENV!r},
                             tty=True, interactive=True))
        """
        user = Terminal((sys.executable, "-c", textwrap.dedent(program)), 31, 97)
        user.expect(b"ready")
        user.type(b"stty size; hostname\n")
        user.expect(b"31 97")
        user.expect(b"web")
        user.type(b"\x03")
        user.expect(b"interrupted")
        user.resize(40, 120)
        user.expect(b"resized")
        user.type(b"exit 12\n")
        assert user.close() == 12

    def test_detached_with_terminal_stays_and_logs(self, container: Container) -> None:
        held = container.run("tty; sleep 60", tty=True, interactive=True)
        until(lambda: "/dev/pts/" in container.log.read_text())
        assert process.alive(held.pid, held.start)

    def test_shell_without_anybody_waits(self, container: Container) -> None:
        held = container.spawn("sh", interactive=True)
        held.release()
        time.sleep(0.1)
        assert process.alive(held.pid, held.start)


class TestExec:
    def test_runs_inside(self, container: Container, capfd: pytest.CaptureFixture[str]) -> None:
        held = container.run("exec sleep 60")
        script = "hostname; ls /sys/class/net; cat /etc/hosts; pwd; echo $A; echo err >&2; exit 5"
        env = ENV | {"A": "1"}
        assert runner.exec_in(held.pid, held.start, ["sh", "-c", script], env, workdir="/usr") == 5
        captured = capfd.readouterr()
        assert captured.out == "web\nlo\nthis is hosts\n/usr\n1\n"
        assert captured.err == "err\n"

    def test_codes(self, container: Container) -> None:
        held = container.run("exec sleep 60")
        assert runner.exec_in(held.pid, held.start, ["sh", "-c", "kill -9 $$"], ENV) == 137
        for command, code in (("no-such-command", 127), ("/etc/passwd", 126)):
            with pytest.raises(ExecError) as caught:
                runner.exec_in(held.pid, held.start, [command], ENV)
            assert caught.value.exit_code == code
        with pytest.raises(KernelError, match="change to /nowhere"):
            runner.exec_in(held.pid, held.start, ["true"], ENV, workdir="/nowhere")
        with pytest.raises(NotFoundError):
            runner.exec_in(held.pid, held.start + 1, ["true"], ENV)

    def test_ends_with_the_container(self, container: Container, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        held = container.run(f"until [ -e {inside} ]; do sleep 0.02; done")
        command = ["sh", "-c", f"touch {inside}; exec sleep 3600"]
        assert runner.exec_in(held.pid, held.start, command, ENV) == 137


class TestPorts:
    def test_free_and_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 8080)), socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("0.0.0.0", 5353))
            loopback, other = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
            assert sockets.in_use("tcp", loopback, 8080)
            assert sockets.in_use("tcp", IPv4Address(0), 8080)
            assert sockets.in_use("tcp", None, 8080)
            assert not sockets.in_use("tcp", other, 8080)
            assert not sockets.in_use("udp", loopback, 8080)
            assert sockets.in_use("udp", other, 5353)
            assert not sockets.in_use("tcp", IPv4Address("192.0.2.1"), 8080)  # not an address of this host
            assert sockets.listening() == {("tcp", loopback, 8080), ("udp", IPv4Address(0), 5353)}
            assert sockets.listening(["udp"]) == {("udp", IPv4Address(0), 5353)}

    def test_both_families(self) -> None:
        with socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True):
            assert sockets.in_use("tcp", IPv4Address("127.0.0.1"), 8080)
            assert sockets.in_use("tcp", IPv6Address("::1"), 8080)
            assert sockets.listening(["tcp"]) == {("tcp", IPv6Address("::"), 8080)}
        with socket.create_server(("::1", 8081), family=socket.AF_INET6):
            assert not sockets.in_use("tcp", IPv4Address("127.0.0.1"), 8081)
            assert sockets.in_use("tcp", None, 8081)

    def test_bound_without_listening(self) -> None:
        with socket.socket() as tcp:
            tcp.bind(("127.0.0.1", 8080))
            assert sockets.in_use("tcp", IPv4Address("127.0.0.1"), 8080)

    def test_of_a_range_every_port_that_any_socket_has_is_suspect(self) -> None:
        """Bound, listening, at either end of a connection; in both families; at whatever address."""
        with contextlib.ExitStack() as stack:

            def made(kind: int, *address: Any) -> socket.socket:
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                opened = stack.enter_context(socket.socket(family, kind))
                opened.bind(address)
                return opened

            made(socket.SOCK_STREAM, "127.0.0.1", 8001)
            made(socket.SOCK_STREAM, "::1", 8002)
            made(socket.SOCK_STREAM, "127.0.0.1", 8003).listen()
            client = made(socket.SOCK_STREAM, "127.0.0.2", 8004)
            client.connect(("127.0.0.1", 8003))
            made(socket.SOCK_DGRAM, "127.0.0.1", 8005)
            made(socket.SOCK_DGRAM, "::", 8006)
            taken = {
                proto: [port for port in range(8000, 8033) if sockets.in_use(proto, None, port)]
                for proto in ("tcp", "udp")
            }
            assert taken == {"tcp": [8001, 8002, 8003, 8004], "udp": [8005, 8006]}
            # With the range's ends, as nothing tells of a program that refuses. Before Linux 6.8 nothing lists TCP
            # sockets that are only bound.
            listed = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 8)
            tcp = [8000, *taken["tcp"], 8032] if listed else [*range(8000, 8033)]
            assert list(sockets.suspects("tcp", 8000, 8032)) == tcp
            assert list(sockets.suspects("udp", 8000, 8032)) == [8000, *taken["udp"], 8032]
            assert list(sockets.suspects("tcp", 8000, 8003)) == [8000, 8001, 8002, 8003]

    def test_finished_connections_do_not_hold_a_port(self) -> None:
        with socket.create_server(("127.0.0.1", 8080)) as server:
            client = socket.create_connection(("127.0.0.1", 8080))
            accepted, _ = server.accept()
            accepted.close()  # the server's side goes to TIME_WAIT
            client.recv(1)
            client.close()
        assert not sockets.in_use("tcp", IPv4Address("127.0.0.1"), 8080)

    def test_holder_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 8080)):
            holder = sockets.holder("tcp", IPv4Address("127.0.0.1"), 8080)
            comm = Path("/proc/self/comm").read_text().rstrip("\n")
            assert holder == f"{comm} (pid {os.getpid()})"
            assert sockets.holder("tcp", None, 8080) == holder
        assert sockets.holder("tcp", None, 8080) == "a process"


class TestCgroup:
    def test_found_beside_or_below_the_old_controllers(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mounts"
        mounts.write_text(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
            "cgroup2 /sys/fs/cgroup/my\\040own cgroup2 rw 0 0\n"
        )
        assert cgroup.mount_point(str(mounts)) == "/sys/fs/cgroup/my own"

    def test_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
        with pytest.raises(NotSupportedError, match="cgroup2"):
            cgroup.mount_point(str(tmp_path / "mounts"))

    def test_of_this_machine(self) -> None:
        assert (Path(cgroup.mount_point()) / "cgroup.procs").exists()
