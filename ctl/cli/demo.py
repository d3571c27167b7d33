# SPDX-License-Identifier: Apache-2.0
"""`make demo`: shows the main use in a test host, so that it is safe to run anywhere.

The host is a network and mount namespace of its own, with a client outside at the other end of its
uplink; state, run directory and bpffs are in a temporary folder. Nothing of it outlives the demo.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HOST, CLIENT = "192.0.2.1", "192.0.2.2"
INSIDE = "--inside-the-pretend-host"
SECONDS = 60  # that any one command may take


class Failed(Exception):
    """A step of the demo did not do what it should."""


def shown(text: str) -> None:
    bold = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold[0]}{text}{bold[1]}", flush=True)


def quiet(*argv: str) -> None:
    """Runs a command of the preparation, without showing it."""
    subprocess.run(argv, check=True, timeout=SECONDS)


def step(line: str, *, where: str = "host", inside: tuple[str, ...] = ()) -> str:
    """Show a command line, run it, show what it prints and return that."""
    shown(f"{where}$ {line}")
    done = subprocess.run([*inside, *shlex.split(line)], stdout=subprocess.PIPE, text=True, timeout=SECONDS)
    print(done.stdout, end="\n" if done.stdout else "", flush=True)
    if done.returncode != 0:
        raise Failed(f"{line}: exit code {done.returncode}")
    return done.stdout.strip()


def play(folder: Path) -> None:
    """Runs the demo in the pretend host. Every process that it starts ends with it."""
    with ExitStack() as stack:
        client = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
        )
        stack.callback(client.wait)
        stack.callback(client.kill)
        assert client.stdout is not None
        client.stdout.readline()  # now it is in its own namespace
        outside = ("nsenter", f"--net=/proc/{client.pid}/ns/net")
        plug(client.pid, outside)

        pins = folder / "bpf"
        pins.mkdir()
        quiet("mount", "-t", "bpf", "bpf", str(pins))
        stack.callback(quiet, "umount", str(pins))
        os.environ.update(
            DATAPATH_STATE_DIR=str(folder / "state"),
            DATAPATH_RUN_DIR=str(folder / "run"),
            DATAPATH_BPFFS=str(pins / "datapath"),
            DATAPATH_CONFIG=str(folder / "daemon.json"),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        )
        (folder / "daemon.json").write_text("{}\n")
        www = folder / "www"
        www.mkdir()
        (www / "index.html").write_text("Hello from a container.\n")
        stack.callback(subprocess.run, ["datapathctl", "down"], timeout=SECONDS)
        perform(outside, www)


def plug(client: int, outside: tuple[str, ...]) -> None:
    """A cable between the host's eth0 and the client's."""
    quiet("ip", "link", "set", "lo", "up")
    quiet("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(client))
    quiet("ip", "address", "add", f"{HOST}/24", "dev", "eth0")
    quiet("ip", "link", "set", "eth0", "up")
    quiet(*outside, "ip", "address", "add", f"{CLIENT}/24", "dev", "eth0")
    quiet(*outside, "ip", "link", "set", "eth0", "up")
    quiet("ip", "route", "add", "default", "via", CLIENT)


def perform(outside: tuple[str, ...], www: Path) -> None:
    """What the audience sees."""
    step("datapathctl network create --subnet 10.10.0.0/24 shop")
    step(f"datapathctl run -d --name web --network shop python3 -m http.server 80 --directory {www}")
    step("datapathctl run -d --name app --network shop sleep 600")
    address = step("datapathctl inspect -f '{{.NetworkSettings.Networks.shop.IPAddress}}' web")
    step(f"datapathctl exec app ping -c 3 -i 0.2 {address}")

    step("datapathctl port add web 8081:80")
    # The server may need a moment to listen: refused connections are tried again.
    fetch = "curl -sS --retry 10 --retry-connrefused --max-time 5 -w 'HTTP %{http_code}\\n'"
    answer = step(f"{fetch} http://{HOST}:8081/", where="client", inside=outside)
    if not answer.endswith("HTTP 200"):
        raise Failed("the client did not get its page")

    step("datapathctl ps")
    step("datapathctl port ls web")
    step("datapathctl network ls")
    step("datapathctl network inspect shop")
    step("datapathctl stats")
    step("ip -brief address")
    for question in ("ip link show type bridge", "nft list ruleset"):
        if step(question):
            raise Failed(f"{question}: there should be nothing")

    step("datapathctl rm -f web app")
    step("datapathctl network rm shop")
    step("datapathctl down")
    devices = [line.split("@")[0].split()[0] for line in step("ip -brief link").splitlines()]
    left = [name for name in devices if name not in ("lo", "eth0")]
    for variable in ("DATAPATH_BPFFS", "DATAPATH_STATE_DIR", "DATAPATH_RUN_DIR"):
        left += map(str, Path(os.environ[variable]).rglob("*"))
    if left:
        raise Failed(f"something was left behind: {', '.join(left)}")
    shown("The client had its page, and nothing is left: lo and the cable were there before.")


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("demo: root is needed, to make the namespaces of the pretend host")
    if INSIDE not in sys.argv:
        argv = ["unshare", "--net", "--mount", sys.executable, "-m", f"{__package__}.demo", INSIDE]
        os.execvp(argv[0], argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="datapath-demo-") as folder:
            play(Path(folder))
    except KeyboardInterrupt:
        sys.exit(130)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
