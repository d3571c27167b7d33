# SPDX-License-Identifier: Apache-2.0
"""Hosts behind a router, and routing daemons on all of them: the examples that are installed, with other addresses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.net.cluster import OUTSIDE, Cluster, Member
from tests.net.hosts import TIMEOUT, TREE, Namespace, eventually

EXAMPLES = TREE / "packaging/examples"
FRR = Path("/usr/lib/frr")
needs_bird = pytest.mark.skipif(not shutil.which("bird"), reason="bird2 is not installed")
needs_frr = pytest.mark.skipif(not (FRR / "bgpd").exists(), reason="frr is not installed")
BEHIND = "198.51.100"  # the link behind the router
ROUTER = f"{BEHIND}.254"


class FarMember(Member):
    """A host of the cluster on another link: the switch's namespace routes between the two."""

    def _plug(self) -> None:
        self.outside = self._switch
        self.vtep = f"{BEHIND}.{self.number}"
        self._switch.batch(
            f"link add far{self.number} type veth peer name eth0 netns {self.pid}",
            f"address add {ROUTER}/24 dev far{self.number}",
            f"link set far{self.number} up",
        )
        self._switch.sh("sysctl -q -w net.ipv4.ip_forward=1")
        self.sh("sysctl -q -w net.ipv6.conf.eth0.accept_dad=0")
        lines = (
            f"address add {self.vtep}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {ROUTER}",
        )
        self.sh("ip -batch -", input="".join(f"{line}\n" for line in lines))
        self._settle_uplink()


def far_member(cluster: Cluster) -> FarMember:
    """One more host of the cluster, behind the router."""
    number = len(cluster.hosts) + 1
    folder = cluster.folder / f"h{number}"
    folder.mkdir()
    made = FarMember(folder, cluster.switch, number, f"h{number}", cluster.settings)
    cluster.hosts.append(made)
    return made


def _address(host: Member) -> tuple[str, str]:
    """The host's, and the router's on its link."""
    return host.vtep, ROUTER if isinstance(host, FarMember) else OUTSIDE


@contextmanager
def _serving(machine: Namespace, argv: list[str], log: Path, socket: Path) -> Iterator[None]:
    """A daemon on the machine, from when it can be asked by its socket."""
    with log.open("w") as said:
        process = machine.start(argv, stdout=said, stderr=said)
    try:
        with eventually() as until:
            until(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@contextmanager
def bird(machine: Namespace, config: str, folder: Path) -> Iterator[None]:
    """BIRD on the machine."""
    file, socket = folder / "bird.conf", folder / "bird.ctl"
    file.write_text(config)
    argv = ["bird", "-f", "-c", str(file), "-s", str(socket), "-P", str(folder / "bird.pid")]
    with _serving(machine, argv, folder / "bird.log", socket):
        yield


@contextmanager
def frr(machine: Namespace, config: str) -> Iterator[None]:
    """Zebra and bgpd on the machine, as the user that they insist on, in a folder of his."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        (folder / "frr.conf").write_text(config)
        shutil.chown(folder, "frr", "frr")
        common = [
            "-f",
            str(folder / "frr.conf"),
            "--vty_socket",
            made,
            "-z",
            str(folder / "zserv"),
            "-P",
            "0",
        ]
        for name in ("zebra", "bgpd"):
            argv = [str(FRR / name), *common, "-i", str(folder / f"{name}.pid")]
            stack.enter_context(_serving(machine, argv, folder / f"{name}.log", folder / f"{name}.vty"))
        yield


def of_router(hosts: list[Member]) -> str:
    """What the router's BIRD is told: it passes on what each host says."""
    parts = [
        f"router id {OUTSIDE};\nprotocol device {{ }}\n",
        "protocol kernel { ipv4 { export all; import none; }; }\n",
    ]
    for host in hosts:
        own, router = _address(host)
        parts.append(
            f"protocol bgp {host.name} {{ local {router} as 65000; neighbor {own} as {65000 + host.number};\n"
            "  connect retry time 1; error wait time 1,2; connect delay time 1;\n"
            "  ipv4 { import all; export all; next hop self; }; }\n"
        )
    return "".join(parts)


def example(name: str, host: Member) -> str:
    """The example configuration, for this host."""
    own, router = _address(host)
    text = (EXAMPLES / name).read_text()
    for was, is_ in (("192.0.2.254", router), ("192.0.2.1;", f"{own};"), ("192.0.2.1\n", f"{own}\n")):
        text = text.replace(was, is_)
    return text.replace("65001", str(65000 + host.number))
