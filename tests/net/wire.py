# SPDX-License-Identifier: Apache-2.0
"""Sockets in any namespace, raw frames, captures and small servers, all inside the test's own process: a
socket stays in the namespace that it was made in."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from datapath.dataplane.programs import Dataplane
from datapath.kernel.netns import enter
from tests.bpf.packets import mac_bytes, packed
from tests.net.hosts import PATIENCE, TIMEOUT, Failed, Host, Namespace, Words, loses, words
from tests.softirqs import settle

ETH_P_ALL = 3
PACKET_IGNORE_OUTGOING = 23
QUIET = 0.2  # seconds after which an answer is not expected any more


class Place(Protocol):
    """A namespace to act in: a Host, a Namespace or a Container."""

    path: str


class Container:
    """A running container as a place, its facts read once."""

    def __init__(self, host: Host, name: str) -> None:
        facts = host.inspect(name)
        self.name = name
        self.id: str = facts["Id"]
        self.pid: int = facts["State"]["Pid"]
        self.path = f"/proc/{self.pid}/ns/net"
        self._networks: dict[str, Any] = facts["NetworkSettings"]["Networks"]

    def on(self, network: str | None = None) -> Any:
        return self._networks[network] if network else next(iter(self._networks.values()))

    @property
    def ip(self) -> str:
        return str(self.on()["IPAddress"])

    @property
    def ip6(self) -> str:
        return str(self.on()["GlobalIPv6Address"])

    @property
    def mac(self) -> str:
        return str(self.on()["MacAddress"])

    @property
    def gateway(self) -> str:
        return str(self.on()["Gateway"])

    def _argv(self, command: Words) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--uts", *words(command)]

    def try_(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._argv(command), capture_output=True, text=True, timeout=timeout)

    def sh(self, command: Words, timeout: float = TIMEOUT) -> str:
        done = self.try_(command, timeout)
        if done.returncode != 0:
            raise Failed(
                f"in {self.name}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout.strip()


def start_container(host: Host, name: str, options: Words = "", command: Words = "sleep 3600") -> Container:
    """Start a container."""
    host.run(name, options, command)
    return Container(host, name)


def device_mac(place: Place, device: str) -> str:
    argv = ["nsenter", f"--net={place.path}", "ip", "-j", "link", "show", device]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)[0]["address"])


def counters(host: Host) -> dict[str, int]:
    """Reason -> packets so far."""
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        return {name: packets for name, (packets, _) in found.counters_sum().items()}


def rises(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Of the reasons to drop: by how much each went up, those that did."""
    return {
        name: after[name] - count
        for name, count in before.items()
        if name.startswith("DROP_") and after[name] != count
    }


# ---- sockets ---------------------------------------------------------------------------------------


def opened(
    place: Place, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, proto: int = 0
) -> socket.socket:
    with enter(place.path):
        made = socket.socket(family, kind, proto)
    made.settimeout(PATIENCE)
    return made


KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Answer(NamedTuple):
    """`seen`: the client's address and port as the server sees them; `peer`: the server's as the client does."""

    seen: str
    seen_port: int
    peer: str
    peer_port: int


class Server:
    """Answers every connection or datagram with the address that it sees."""

    def __init__(self, place: Place, proto: str, port: int, address: str, device: str) -> None:
        self.proto = proto
        self.peers: list[tuple[str, int]] = []
        self.socket = opened(place, KINDS[proto], _family(address))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        self.socket.bind((address, port))
        self.port = int(self.socket.getsockname()[1])
        self.socket.settimeout(None)
        if proto == "tcp":
            self.socket.listen(128)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                if self.proto == "tcp":
                    connection, peer = self.socket.accept()
                else:
                    _, peer = self.socket.recvfrom(65535)
            except OSError:
                return
            if self._stopping:
                return
            self.peers.append((peer[0], peer[1]))
            text = f"{peer[0]} {peer[1]}\n".encode()
            with contextlib.suppress(OSError):
                if self.proto == "tcp":
                    with connection:
                        connection.sendall(text)
                else:
                    self.socket.sendto(text, peer)

    def close(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):  # wakes the thread, of UDP too
            self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(0.5 if self.proto == "udp" else 2)
        self.socket.close()


@contextlib.contextmanager
def serving(
    place: Place, proto: str, port: int, address: str = "0.0.0.0", device: str = ""
) -> Iterator[Server]:
    server = Server(place, proto, port, address, device)
    try:
        yield server
    finally:
        server.close()


def call(
    place: Place,
    proto: str,
    address: str,
    port: int,
    *,
    source: tuple[str, int] | None = None,
    seconds: float = PATIENCE,
) -> Answer:
    """Ask a Server. Raises OSError when there is no answer. UDP: with an unconnected socket."""
    with opened(place, KINDS[proto], _family(address)) as client:
        client.settimeout(seconds)
        if source:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(source)
        if proto == "tcp":
            client.connect((address, port))
            data = client.recv(100)
            peer = client.getpeername()
        else:
            client.sendto(b"?", (address, port))
            data, peer = client.recvfrom(100)
    seen, seen_port = data.decode().split()
    return Answer(seen, int(seen_port), peer[0], peer[1])


def fails(place: Place, proto: str, address: str, port: int, seconds: float = QUIET) -> int:
    """Nobody answers: the errno that the client gets (ETIMEDOUT: nothing came back); 0: somebody does. `seconds`: for
    a server's program; what kernels answer by themselves is waited for as long as it takes."""
    with opened(place, KINDS[proto], _family(address)) as client:
        client.settimeout(seconds)
        if proto == "udp":  # so that it hears of unreachable hosts too, not only of ports
            client.setsockopt(*((41, 25) if ":" in address else (0, 11)), 1)  # IPV6_RECVERR, IP_RECVERR
        try:
            try:
                client.connect((address, port))
                if proto == "udp":
                    client.send(b"?")
                    client.recv(100)
            except TimeoutError:
                settle()
                client.setblocking(False)
                if proto == "udp":
                    client.recv(100)
                else:
                    client.connect((address, port))  # what became of it
        except BlockingIOError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or errno.ETIMEDOUT
    return 0


# ---- frames ----------------------------------------------------------------------------------------


class Tap:
    """A raw socket on a device: sends whole frames, and has every frame that arrives from its making on."""

    def __init__(self, place: Place, device: str = "eth0") -> None:
        with enter(place.path):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self.socket.setsockopt(263, PACKET_IGNORE_OUTGOING, 1)  # SOL_PACKET
            self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def frames(self) -> list[bytes]:
        """What has arrived since the last time."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(70000))
            except BlockingIOError:
                return found

    def wait_for(self, wanted: Callable[[bytes], bool], seconds: float = PATIENCE) -> list[bytes]:
        """What has arrived until such a frame has; AssertionError if it does not."""
        found: list[bytes] = []
        deadline = time.monotonic() + seconds
        while True:
            new = self.frames()
            found += new
            if any(map(wanted, new)):
                return found
            assert time.monotonic() < deadline, f"the frame did not come; others: {[f.hex() for f in found]}"
            time.sleep(0.001)

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def taps(*places: Place | tuple[Place, str]) -> Iterator[list[Tap]]:
    made: list[Tap] = []
    try:
        for place in places:
            made.append(Tap(*place) if isinstance(place, tuple) else Tap(place))
        yield made
    finally:
        for tap in made:
            tap.close()


def from_(frames: Iterable[bytes], container: Container) -> list[bytes]:
    """Those that name the container's MAC or one of its addresses: the kernel's own chatter is left out."""
    names = [mac_bytes(container.mac), packed(container.ip)] + (
        [packed(container.ip6)] if container.ip6 else []
    )
    return [frame for frame in frames if any(name in frame for name in names)]


def carrying(frames: Iterable[bytes], text: bytes) -> list[bytes]:
    return [frame for frame in frames if text in frame]


def unreachable(place: Container | Namespace, address: str, more: str = "") -> bool:
    """A ping is not answered."""
    return loses(lambda ping: place.try_(f"{ping} {more}"), address)
