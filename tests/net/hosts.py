# SPDX-License-Identifier: Apache-2.0
"""A pretend host for the end-to-end tests: a network namespace with an uplink, a machine outside, and
directories of its own, so that the machine's own network is never touched."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import features
from datapath.model.networks import OPT_DEVICE
from tests.conftest import SLOWNESS as SLOWNESS  # others import it from here
from tests.net import forked

TREE = Path(__file__).resolve().parents[2]
DATAPATHCTL = str(Path(sys.executable).with_name("datapathctl"))  # runs this tree: see PYTHONPATH below
HOST, OUTSIDE, FAR = "192.0.2.1", "192.0.2.2", "203.0.113.5"
# How programs are attached where a test does not say: `DATAPATH_ATTACH=clsact make test-net` is the whole layer again.
ATTACH = os.environ.get("DATAPATH_ATTACH", "auto")
# What joins containers to networks that tests create: `make lab KERNEL=6.12 TEST_DEVICE=netkit TESTS=…`.
DEVICE = os.environ.get("TEST_DEVICE")
needs_tcx = pytest.mark.skipif(not features.has_tcx(), reason="this kernel has no tcx")
BOTH_WAYS = (pytest.param("tcx", marks=needs_tcx), "clsact")  # for a test of each
# Bounds, in seconds, of what is waited for. A machine may be busy: they only exist so that what is broken ends.
# (`make compare-host`, many of whose cases are known to fail, has less.)
PATIENCE = float(os.environ.get("TEST_PATIENCE", "60")) * SLOWNESS
TIMEOUT = 2 * PATIENCE  # of any one command

Words = str | Sequence[str]


def words(command: Words) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


class Failed(AssertionError):
    """A command that should have worked did not."""


class Namespace:
    """A network namespace that lives as long as this object; commands run inside it. `hostname`: what they find the
    machine to be called; "": as this one is."""

    def __init__(self, env: dict[str, str] | None = None, hostname: str = "") -> None:
        self.env, self.hostname = env, hostname
        self.background: list[subprocess.Popen[str]] = []
        own = ["--uts"] if hostname else []
        named = f"hostname {shlex.quote(hostname)}; " if hostname else ""
        self._holder = subprocess.Popen(
            ["unshare", "--net", *own, "sh", "-c", f"{named}echo; exec sleep 3600"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # now it is in its own namespace
        self.pid = self._holder.pid
        self.path = f"/proc/{self.pid}/ns/net"
        self.uts = f"/proc/{self.pid}/ns/uts" if hostname else ""
        self.sh("ip link set lo up")

    def within(self, command: Words) -> list[str]:
        """The command as it is run from outside."""
        # nsenter, not `ip netns exec`: that one remounts /sys and hides the control groups.
        named = [f"--uts={self.uts}"] if self.uts else []
        return ["nsenter", f"--net={self.path}", *named, *words(command)]

    def try_(
        self, command: Words, input: str | None = None, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever its exit code is."""
        return subprocess.run(
            self.within(command), env=self.env, input=input, capture_output=True, text=True, timeout=timeout
        )

    def sh(self, command: Words, input: str | None = None, timeout: float = TIMEOUT) -> str:
        """What the command prints; it has to succeed."""
        done = self.try_(command, input, timeout)
        if done.returncode != 0:
            raise Failed(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start(self, command: Words, **more: Any) -> subprocess.Popen[str]:
        """Run a command in the background; it ends with the namespace."""
        options: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "text": True,
        } | more
        process: subprocess.Popen[str] = subprocess.Popen(
            self.within(command), env=self.env, start_new_session=True, **options
        )
        self.background.append(process)
        return process

    def end_background(self) -> None:
        """Ends what `start` has started."""
        for process in self.background:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.background.clear()

    def close(self) -> None:
        self.end_background()
        self._holder.kill()
        self._holder.wait()


class Host(Namespace):
    """The pretend host. `outside` is a machine at the other end of its uplink, eth0; it has no route to any
    container, and a far address behind it (203.0.113.5), so that a default route and a router are involved.

    datapathctl is forked from the test process, which has it loaded (see `forked`); it is started where a test says
    so, and where that is what it is about."""

    preloaded = True

    def __init__(
        self,
        folder: Path,
        attach: str = ATTACH,
        config: dict[str, Any] | None = None,
        hostname: str = "",
    ) -> None:
        self.folder = folder
        self.bpffs = folder / "bpf"
        self.bpffs.mkdir()
        subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True)
        self.config = folder / "daemon.json"
        self.configure(config or {})
        self._mode = getattr(config, "mode", "ebpf")  # of the network of containers that name none
        self._has_plain = False
        super().__init__(
            {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(TREE),
                "DATAPATH_STATE_DIR": str(folder / "state"),
                "DATAPATH_RUN_DIR": str(folder / "run"),
                "DATAPATH_BPFFS": str(self.bpffs / "datapath"),
                "DATAPATH_CONFIG": str(self.config),
                "DATAPATH_ATTACH": attach,
            },
            hostname,
        )
        self._plug()

    def _plug(self) -> None:
        """Gives the host its uplink, and the machine outside."""
        self.outside = Namespace()
        self.sh(
            "ip -batch -",
            f"link add eth0 type veth peer name eth0 netns {self.outside.pid}\naddress add {HOST}/24 dev eth0\n",
        )
        # The uplink's link-local address is in a row of `devices` once it is fit for use, which duplicate address
        # detection would make it a second or two later, amid the test. Other addresses have it as ever.
        self.sh("sysctl -q -w net.ipv6.conf.eth0.accept_dad=0")
        self.sh("ip link set eth0 up")
        self.outside.sh(
            "ip -batch -",
            f"address add {OUTSIDE}/24 dev eth0\naddress add {FAR}/32 dev lo\nlink set eth0 up\n",
        )
        self._settle_uplink()
        self.sh(f"ip route add default via {OUTSIDE}")

    def _unplug(self) -> None:
        """Takes the machine outside away."""
        self.outside.close()

    def _settle_uplink(self) -> None:
        """Waits for the uplink's link-local address, which the kernel gives it when it notices the carrier."""
        with eventually() as until:
            until(lambda: "fe80::" in self.sh("ip -6 route show table local type local dev eth0"))
        self.sh("sysctl -q -w net.ipv6.conf.eth0.accept_dad=1")

    def configure(self, config: dict[str, Any]) -> None:
        """Write the daemon.json."""
        if DEVICE:
            options = config.get("default-network-opts", {})
            bridge = {OPT_DEVICE: DEVICE, **options.get("bridge", {})}
            config = {**config, "default-network-opts": {**options, "bridge": bridge}}
        self.config.write_text(json.dumps(config))

    # ---- datapathctl -----------------------------------------------------------------------

    def try_ctl(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        if self.preloaded:
            return forked.datapathctl(words(command), self.path, self.env or {}, timeout, self.uts)
        return self.try_([DATAPATHCTL, *words(command)], timeout=timeout)

    def ctl(self, command: Words, timeout: float = TIMEOUT) -> str:
        done = self.try_ctl(command, timeout)
        if done.returncode != 0:
            raise Failed(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def refused(self, command: Words) -> str:
        """The one line that a command prints which must be refused."""
        done = self.try_ctl(command)
        lines = done.stderr.strip().splitlines()
        assert done.returncode != 0, f"{command} was not refused: {done.stdout}"
        assert len(lines) == 1 and "Traceback" not in done.stderr, f"{command}: not one line:\n{done.stderr}"
        return lines[0]

    def run(self, name: str, options: Words = "", command: Words = "sleep 3600") -> str:
        """Start a container in the background; its id."""
        chosen = words(options)
        if self._mode != "ebpf" and not any(word.startswith(("--network", "--net")) for word in chosen):
            if not self._has_plain:
                self.ctl("network create --ipv6 --subnet 172.31.0.0/16 --subnet fd31::/64 plain")
                self._has_plain = True
            chosen = ["--network", "plain", *chosen]
        return self.ctl(["run", "-d", "--name", name, *chosen, *words(command)])

    def inspect(self, name: str) -> Any:
        return json.loads(self.ctl(["inspect", name]))[0]

    def network(self, name: str) -> Any:
        return json.loads(self.ctl(["network", "inspect", name]))[0]

    def address(self, name: str, network: str | None = None) -> str:
        """A container's IPv4 address on a network; on which `run` has put it, if it was told of none."""
        return str(self.inspect(name)["NetworkSettings"]["Networks"][network or self.usual]["IPAddress"])

    @property
    def usual(self) -> str:
        """The network of containers that name none."""
        return "bridge" if self._mode == "ebpf" else "plain"

    def process(self, name: str) -> int:
        """The id of a container's main process, straight from the state database: it takes a millisecond."""
        with forked.database(self.folder / "state") as opened:
            row = opened.execute("SELECT body FROM containers WHERE name = ?", (name,)).fetchone()
        assert row is not None, f"no container {name}"
        return int(json.loads(row[0])["pid"])

    def try_in(self, name: str, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run a command in a container's namespaces, without datapathctl's start-up time."""
        argv = ["nsenter", "-t", str(self.process(name)), "--net", "--mount", "--uts", *words(command)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout)

    def in_(self, name: str, command: Words, timeout: float = TIMEOUT) -> str:
        done = self.try_in(name, command, timeout)
        if done.returncode != 0:
            raise Failed(f"in {name}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def drops(self) -> dict[str, int]:
        """Reason -> packets, of what was dropped so far."""
        rows = [json.loads(line) for line in self.ctl("stats --all --format json").splitlines()]
        return {r["Counter"]: r["Packets"] for r in rows if r.get("Counter", "").startswith("DROP_")}

    def close(self) -> None:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.try_ctl("down")
        finally:
            self._unplug()
            super().close()
            subprocess.run(["umount", str(self.bpffs)], check=False)


def ordinary(host: Host) -> float:
    """Seconds that a command takes now which waits for the machine alone, ten times: what may be added to a bound of
    one that waits for something else."""
    began = time.monotonic()
    host.ctl("network ls")
    return 10 * (time.monotonic() - began)


def write_as_version_1(host: Host) -> None:
    """The state database becomes one of version 1."""
    with forked.database(host.folder / "state") as opened:
        opened.execute("UPDATE networks SET body = replace(body, '\"built\":', '\"realised\":')")
        for table in ("endpoints", "containers"):
            opened.execute(f"UPDATE {table} SET body = replace(body, '\"acl\":', '\"filter\":')")
        opened.execute("DELETE FROM meta WHERE key = 'release'")
        opened.execute("PRAGMA user_version = 1")
        opened.commit()


def store_version(host: Host) -> int:
    """That of the state database: of a copy, as on a full disk there is no room for the index of its journal."""
    with tempfile.TemporaryDirectory(dir=host.folder) as folder:
        for path in (host.folder / "state").glob("datapath.db*"):
            if path.name in ("datapath.db", "datapath.db-wal"):
                shutil.copy(path, folder)
        with forked.database(Path(folder)) as opened:
            return int(opened.execute("PRAGMA user_version").fetchone()[0])


def ping(address: str, count: int = 1, seconds: float = PATIENCE) -> str:
    """Sends all at once: else ping waits for the last answer no longer than twice as long as for the slowest before."""
    return f"ping -n -q -c {count} -l {count} -i {seconds:g} -W {seconds:g} {address}"


def reaches(run: Callable[[str], subprocess.CompletedProcess[str]], address: str, count: int = 1) -> bool:
    """Every one of `count` pings is answered."""
    return run(ping(address, count)).returncode == 0


def loses(run: Callable[[str], subprocess.CompletedProcess[str]], address: str) -> bool:
    """A ping is not answered, without waiting long for it."""
    return run(ping(address, seconds=0.2)).returncode != 0


@contextlib.contextmanager
def eventually(seconds: float = PATIENCE) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """`until(question)` asks until the answer is true, and returns it; AssertionError after so many seconds."""

    def until(question: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < deadline, "did not become true in time"
            time.sleep(0.02)
        return answer

    yield until


def pinging(
    place: Namespace, address: str, ident: int, interval: float = 0.001, within: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Pings from now on until `sent_and_lost`. `within`: a command that runs it elsewhere."""
    argv = [
        *within,
        sys.executable,
        str(Path(__file__).with_name("pinger.py")),
        address,
        str(ident),
        str(interval),
    ]
    process = place.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def sent_and_lost(process: subprocess.Popen[str]) -> tuple[int, int]:
    sent, lost = process.communicate("", timeout=TIMEOUT)[0].split()
    return int(sent), int(lost)


# A server for one port: answers every TCP connection or UDP packet with the address that it sees, then "\n".
ECHO = """
import socket, sys
proto, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
if proto == "tcp":
    server.listen(64)
print("ready", flush=True)
while True:
    if proto == "tcp":
        connection, peer = server.accept()
        connection.sendall((peer[0] + "\\n").encode())
        connection.close()
    else:
        data, peer = server.recvfrom(65535)
        server.sendto((peer[0] + "\\n").encode(), peer)
"""

# A client: connects (or sends), prints what it hears, and the peer's address as the socket tells it.
ASK = """
import socket, sys
proto, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
client = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
client.settimeout(float(sys.argv[4]))
if proto == "tcp":
    client.connect((address, port))
    print(client.recv(100).decode().strip(), *client.getpeername()[:2])
else:
    client.sendto(b"?", (address, port))
    data, peer = client.recvfrom(100)
    print(data.decode().strip(), *peer[:2])
"""


def echo_server(proto: str, port: int, address: str = "0.0.0.0") -> list[str]:
    return ["python3", "-u", "-c", ECHO, proto, address, str(port)]


def ask(proto: str, address: str, port: int, seconds: float = PATIENCE) -> list[str]:
    return ["python3", "-c", ASK, proto, address, str(port), str(seconds)]
