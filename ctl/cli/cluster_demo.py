# SPDX-License-Identifier: Apache-2.0
"""`make cluster N=3`: shows a network that spans hosts, and what becomes of it when the store or a host dies.

The hosts are network namespaces with names of their own, joined by a bridge in one more namespace, as is the machine
with etcd; files are in a temporary folder. It is safe to run anywhere, and nothing of it outlives the demo.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from .demo import INSIDE, SECONDS, Failed, quiet, shown, step

FEWEST, MOST = 3, 20
STORE, OUTSIDE = "192.0.2.200", "192.0.2.254"
LEASE = 3  # seconds after which a host is thought dead


class Machine:
    """A namespace with a name, whose eth0 is plugged into the bridge of this one."""

    def __init__(self, name: str, number: int, stack: ExitStack) -> None:
        self.name, self.address, self.port = name, f"192.0.2.{number}", f"p{number}"
        holding = ["unshare", "--net", "--uts", "sh", "-c", f"hostname {name}; echo; exec sleep 3600"]
        holder = subprocess.Popen(holding, stdout=subprocess.PIPE)
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        holder.stdout.readline()  # now it is in its own namespaces
        self.inside: tuple[str, ...] = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        self.inside += (f"--uts=/proc/{holder.pid}/ns/uts",)
        pair = ("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        quiet("ip", *pair)
        quiet("ip", "link", "set", self.port, "master", "switch", "up")
        for words in ("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            quiet(*self.inside, "ip", *words.split())
        quiet(*self.inside, "ip", "route", "add", "default", "via", OUTSIDE)

    def start(self, stack: ExitStack, *argv: str) -> subprocess.Popen[str]:
        """Runs a command beside the demo, which ends it."""
        process = subprocess.Popen(
            [*self.inside, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process


class DemoHost(Machine):
    """One with datapathctl, and directories of its own."""

    def __init__(self, folder: Path, number: int, stack: ExitStack) -> None:
        super().__init__(f"h{number}", number, stack)
        self.folder = own = folder / self.name
        pins = own / "bpf"
        pins.mkdir(parents=True)
        quiet("mount", "-t", "bpf", "bpf", str(pins))
        stack.callback(quiet, "umount", str(pins))
        opts = {"discovery.ttl": str(LEASE), "discovery.heartbeat": "1"}
        settings = {"cluster-store": f"etcd://{STORE}:2379", "cluster-store-opts": opts}
        (own / "daemon.json").write_text(json.dumps({**settings, "cluster-advertise": "eth0"}))
        self.inside += (
            "env",
            f"DATAPATH_STATE_DIR={own}/state",
            f"DATAPATH_RUN_DIR={own}/run",
            f"DATAPATH_BPFFS={pins}/datapath",
            f"DATAPATH_CONFIG={own}/daemon.json",
        )
        stack.callback(subprocess.run, [*self.inside, "datapathctl", "down"], timeout=SECONDS)
        self.agent = self.start(stack, "datapathctl", "agent")

    def step(self, line: str) -> str:
        return step(line, where=self.name, inside=self.inside)

    def asked(self, *words: str) -> str:
        """What a command prints, which is not shown."""
        done = subprocess.run(
            [*self.inside, "datapathctl", *words], capture_output=True, text=True, timeout=SECONDS
        )
        return done.stdout

    def left(self) -> list[str]:
        """What is there after `down` that was not there before."""
        told = subprocess.run([*self.inside, "ip", "-brief", "link"], capture_output=True, text=True).stdout
        devices = [line.split("@")[0].split()[0] for line in told.splitlines()]
        files = [
            path for name in ("state", "run", "bpf/datapath") for path in (self.folder / name).rglob("*")
        ]
        return [f"{self.name}: {one}" for one in (*devices, *files) if one not in ("lo", "eth0")]

    def refused(self, line: str) -> None:
        """Shows a command that has to be refused, and why it is."""
        shown(f"{self.name}$ {line}")
        argv = [*self.inside, *line.split()]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
        print(done.stderr, end="", flush=True)
        if done.returncode == 0:
            raise Failed(f"{line}: it was not refused")


def until(what: str, question: object) -> None:
    """Waits for something to become true."""
    assert callable(question)
    end = time.monotonic() + SECONDS
    while not question():
        if time.monotonic() > end:
            raise Failed(f"{what}: it has not happened in {SECONDS} s")
        time.sleep(0.1)


def begin_store(store: Machine, folder: Path, stack: ExitStack) -> subprocess.Popen[str]:
    url = f"http://{STORE}:2379"
    words = ["etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error", "--unsafe-no-fsync"]
    words += ["--listen-peer-urls", "http://127.0.0.1:2380", "--listen-client-urls", url]
    words += ["--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--advertise-client-urls", url]
    words += ["--initial-cluster", "default=http://127.0.0.1:2380"]
    return store.start(stack, *words)


def play(folder: Path, count: int) -> None:
    """Runs the demo. Every process that it starts ends with it."""
    with ExitStack() as stack:
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ["ETCD_UNSUPPORTED_ARCH"] = "arm64"
        quiet("ip", "link", "set", "lo", "up")
        quiet("ip", "link", "add", "switch", "type", "bridge")
        quiet("ip", "address", "add", f"{OUTSIDE}/24", "dev", "switch")
        quiet("ip", "link", "set", "switch", "up")
        store = Machine("store", 200, stack)
        server = begin_store(store, folder, stack)
        hosts = [DemoHost(folder, number, stack) for number in range(1, count + 1)]
        until("etcd begins", lambda: "ok" in hosts[0].asked("cluster", "status").split())
        www = folder / "www"
        www.mkdir()
        (www / "index.html").write_text("Hello from a container on h1.\n")
        pings, pinged = show_network(hosts, www, stack)
        show_store(store, server, folder, hosts, pinged, stack)
        show_host(hosts)
        pings.send_signal(signal.SIGINT)
        said = pings.communicate(timeout=SECONDS)[0]
        shown("Pings from app to web, every 20 ms during all of it:")
        print(said[said.find("---") :].strip(), flush=True)
        if " 0% packet loss" not in said:
            raise Failed("packets were lost")
        for host in hosts[:-1]:
            host.asked("rm", "-f", *host.asked("ps", "-a", "-q").split())
        hosts[0].step("datapathctl network rm shop")
        for host in hosts:
            host.step("datapathctl down")
            host.agent.terminate()
            host.agent.wait(SECONDS)
        left = [one for host in hosts for one in host.left()]
        if left:
            raise Failed(f"something was left behind: {', '.join(left)}")
    shown("No packet was lost, and nothing is left.")


def show_network(hosts: list[DemoHost], www: Path, stack: ExitStack) -> tuple[subprocess.Popen[str], str]:
    """The network, a container on each host, a published port; pings from h2 to h1, which go on, and to whom."""
    first, second = hosts[:2]
    first.step("datapathctl network create -d overlay --subnet 10.20.0.0/24 shop")
    second.step("datapathctl network ls")
    serve = f"python3 -m http.server 80 --directory {www}"
    first.step(f"datapathctl run -d --name web --network shop -p 8080:80 {serve}")
    second.step("datapathctl run -d --name app --network shop sleep 3600")
    for host in hosts[2:]:
        host.step(f"datapathctl run -d --name on-{host.name} --network shop sleep 3600")
    web = first.step("datapathctl inspect -f '{{.NetworkSettings.Networks.shop.IPAddress}}' web")
    second.step(f"datapathctl exec app ping -c 3 -i 0.2 {web}")
    fetch = "curl -sS --retry 10 --retry-connrefused --max-time 5 -w 'HTTP %{http_code}\\n'"
    if not step(f"{fetch} http://{first.address}:8080/", where="outside").endswith("HTTP 200"):
        raise Failed("nobody outside got the page")
    first.step("datapathctl cluster hosts")
    pid = second.asked("inspect", "-f", "{{.State.Pid}}", "app").strip()
    argv = ["nsenter", "-t", pid, "--net", "ping", "-n", "-q", "-i", "0.02", web]
    pings = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    stack.callback(pings.wait)
    stack.callback(pings.kill)
    return pings, web


def show_store(
    store: Machine,
    server: subprocess.Popen[str],
    folder: Path,
    hosts: list[DemoHost],
    pinged: str,
    stack: ExitStack,
) -> None:
    """The store dies, and comes back."""
    first, second = hosts[:2]
    server.kill()
    server.wait()
    shown("--- The store is killed: containers go on, and new ones start.")
    second.step("datapathctl run -d --name later --network shop sleep 3600")
    second.step(f"datapathctl exec later ping -c 3 -i 0.2 {pinged}")
    first.refused("datapathctl network create -d overlay more")
    begin_store(store, folder, stack)
    shown("--- The store is back: it is told of what it has missed.")
    until("the store hears of it", lambda: "No problems found." in second.asked("doctor"))
    second.step("datapathctl doctor")


def show_host(hosts: list[DemoHost]) -> None:
    """A host dies, and is forgotten."""
    first, last = hosts[0], hosts[-1]
    last.agent.kill()
    quiet("ip", "link", "set", last.port, "down")
    shown(f"--- {last.name} is dead: the others notice by its lease.")
    ask = ("cluster", "hosts", "--format", "{{.Name}} {{.State}}")
    until(f"{last.name} is missed", lambda: f"{last.name} away" in first.asked(*ask))
    first.step("datapathctl cluster hosts")
    first.step(f"datapathctl cluster forget {last.name}")
    first.step("datapathctl cluster hosts")
    first.step("datapathctl doctor")
    quiet("ip", "link", "set", last.port, "up")


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("cluster: root is needed, to make the namespaces of the pretend hosts")
    words = [word for word in sys.argv[1:] if word != INSIDE]
    text = words[0] if words else str(FEWEST)
    if len(words) > 1 or not (text.isascii() and text.isdigit() and FEWEST <= int(text) <= MOST):
        sys.exit(f"cluster: the number of hosts must be {FEWEST} to {MOST}, not {' '.join(words)}")
    if shutil.which("etcd") is None:
        sys.exit("cluster: etcd is not installed (Debian: etcd-server)")
    if INSIDE not in sys.argv:
        argv = [
            "unshare",
            "--net",
            "--mount",
            sys.executable,
            "-m",
            f"{__package__}.cluster_demo",
            text,
            INSIDE,
        ]
        os.execvp(argv[0], argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="datapath-cluster-") as folder:
            play(Path(folder), int(text))
    except KeyboardInterrupt:
        sys.exit(130)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
