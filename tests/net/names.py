# SPDX-License-Identifier: Apache-2.0
"""What tests of names ask, and whom: a pretend host with a resolv.conf of its own, upstream servers, dig, both libcs,
and questions as bytes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datapath.bench.workloads import QUESTIONS, QUESTIONS_MUSL
from datapath.kernel import netns, syscalls
from tests.net import forked
from tests.net.hosts import PATIENCE, TIMEOUT, Host, Namespace, Words, words

LOCAL = "127.0.0.11"
A, PTR, MX, TXT, AAAA, SRV, HTTPS, ANY = 1, 12, 15, 16, 28, 33, 65, 255
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
LIBCS = {"glibc": QUESTIONS, "musl": QUESTIONS_MUSL}


class NamedHost(Host):
    """A host whose /etc/resolv.conf is a file of its own: commands run in a mount namespace that has it there."""

    def __init__(self, folder: Path, resolv_conf: str, **more: Any) -> None:
        self._mounts: subprocess.Popen[bytes] | None = None
        super().__init__(folder, **more)
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text(resolv_conf)
        script = f"mount --bind {self.resolv_conf} /etc/resolv.conf && echo && exec sleep 3600"
        self._mounts = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self._mounts.stdout is not None and self._mounts.stdout.readline()

    @property
    def mount_namespace(self) -> str:
        assert self._mounts
        return f"/proc/{self._mounts.pid}/ns/mnt"

    def _here(self, command: Words) -> list[str]:
        if self._mounts is None:
            return words(command)
        return ["nsenter", f"--mount={self.mount_namespace}", *words(command)]

    def try_(
        self, command: Words, input: str | None = None, timeout: float = TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        return super().try_(self._here(command), input, timeout)

    def start(self, command: Words, **more: Any) -> subprocess.Popen[str]:
        return super().start(self._here(command), **more)

    def enter_mounts(self) -> None:
        """For a forked child: what it does is done in the host's mount namespace."""
        opened = os.open(self.mount_namespace, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(opened, syscalls.CLONE_NEWNS)
        os.close(opened)

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """What is forked meanwhile is in the host's mount namespace."""
        forked.in_child.append(self.enter_mounts)
        try:
            yield
        finally:
            forked.in_child.remove(self.enter_mounts)

    def try_ctl(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        with self.forking() if self._mounts and self.preloaded else contextlib.nullcontext():
            return super().try_ctl(command, timeout)

    def shim(self, name: str) -> int:
        """The id of the process that stands between us and a container's main process."""
        with forked.database(self.folder / "state") as opened:
            row = opened.execute("SELECT body FROM containers WHERE name = ?", (name,)).fetchone()
        return int(json.loads(row[0])["shim_pid"])

    def close(self) -> None:
        super().close()
        if self._mounts:
            self._mounts.kill()
            self._mounts.wait()

    def resolvers(self, text: str) -> None:
        """The host's resolv.conf says something else from now on. Written in place: it is mounted."""
        self.resolv_conf.write_text(text)


@dataclass
class Asked:
    """A question as an upstream got it."""

    address: str
    proto: str
    name: str
    type: int
    peer: str


class Upstreams:
    """Servers in a namespace, or where `within` runs a command; what they were asked is in `log`."""

    def __init__(self, place: Namespace, log: Path, *answers: str, within: Sequence[str] = ()) -> None:
        self._log = log
        argv = [*within, sys.executable, str(Path(__file__).with_name("upstream.py")), str(log), *answers]
        process = place.start(argv, stdout=subprocess.PIPE, stderr=None)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        self.process = process

    def asked(self, name: str = "") -> list[Asked]:
        """All questions for the name, or all."""
        return [each for each in self._noted() if each.proto != "reset" and name in ("", each.name[:-1])]

    def resets(self) -> int:
        """How many connections were reset before they had ended."""
        return sum(each.proto == "reset" for each in self._noted())

    def _noted(self) -> list[Asked]:
        lines = [line.split() for line in self._log.read_text().splitlines()]
        return [Asked(line[0], line[1], line[2], int(line[3]), line[4]) for line in lines]

    def whom(self, name: str) -> list[str]:
        """The servers that were asked for it, in order."""
        return [each.address for each in self.asked(name)]


# ---- dig and the libcs ------------------------------------------------------------------------


@dataclass
class Reply:
    """What dig printed of an answer. `answers`: (owner, TTL, type, data)."""

    status: str
    flags: set[str]
    question: str = ""
    answers: list[tuple[str, int, str, str]] = field(default_factory=list)
    text: str = ""

    @property
    def data(self) -> list[str]:
        return sorted(data for *_, data in self.answers)


# Runs a command where somebody asks.
Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


def dig(host: Host, container: str, *asked: str, options: Words = "") -> list[Reply]:
    """An answer for each of `asked`, which are like "web AAAA". `options` are for all; each question is sent once."""
    return dig_by(partial(host.try_in, container), *asked, options=options)


def dig_by(run: Run, *asked: str, options: Words = "") -> list[Reply]:
    """The same, wherever that is."""
    argv = ["dig", "+noall", "+comments", "+question", "+answer", "+tries=1", f"+time={PATIENCE:.0f}"]
    done = run([*argv, *words(options), *(word for each in asked for word in words(each))])
    replies = [_reply(text) for text in done.stdout.split(";; Got answer:")[1:]]
    assert len(replies) == len(asked), f"dig {' '.join(asked)}:\n{done.stdout}{done.stderr}"
    return replies


def _reply(text: str) -> Reply:
    head = re.search(r"status: (\w+)", text)
    flags = re.search(r"flags: ([a-z ]*);", text)
    assert head and flags, text
    reply = Reply(head[1], set(flags[1].split()), text=text)
    for line in text.splitlines():
        if line.startswith(";") and not line.startswith((";;", "; ")) and line.count("IN"):
            reply.question = line[1:].split()[0]
        elif line and not line.startswith(";"):
            owner, ttl, _, kind, data = line.split(None, 4)
            reply.answers.append((owner, int(ttl), kind, data))
    return reply


def one(host: Host, container: str, asked: str, options: Words = "") -> Reply:
    return dig(host, container, asked, options=options)[0]


def looked_up(host: Host, container: str, name: str, env: Words = "") -> dict[str, list[str] | str]:
    """What getaddrinfo() finds in each libc: its addresses, or what it says."""
    return looked_up_by(partial(host.try_in, container), name, env)


def looked_up_by(run: Run, name: str, env: Words = "") -> dict[str, list[str] | str]:
    """The same, wherever that is."""
    found: dict[str, list[str] | str] = {}
    for libc, program in LIBCS.items():
        done = run(["env", *words(env), program, "lookup", "0", name])
        found[libc] = sorted(done.stdout.split()) if done.returncode == 0 else done.stderr.strip()
    return found


def both(*addresses: str) -> dict[str, list[str]]:
    """What `looked_up` finds if both libcs find the same."""
    return dict.fromkeys(LIBCS, sorted(addresses))


# ---- bytes ------------------------------------------------------------------------------------


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, kind: int = A, ident: int = 1, flags: int = 0x0100) -> bytes:
    return struct.pack("!HHHHHH", ident, flags, 1, 0, 0, 0) + wire(name) + struct.pack("!HH", kind, 1)


def reverse(address: str) -> str:
    from ipaddress import ip_address

    return ip_address(address).reverse_pointer


@dataclass
class Message:
    """An answer: its id, what it says, and the addresses of its records."""

    ident: int
    code: int
    addresses: list[str]


def parsed(message: bytes) -> Message:
    ident, flags, _, count, *_ = struct.unpack_from("!HHHHHH", message)
    assert flags & 0x8000, "no answer"
    at = message.index(b"\0", 12) + 5
    addresses = []
    for _ in range(count):
        _, kind, _, _, size = struct.unpack_from("!HHHIH", message, at)
        at += 12
        if kind in (A, AAAA):
            family = socket.AF_INET if kind == A else socket.AF_INET6
            addresses.append(socket.inet_ntop(family, message[at : at + size]))
        at += size
    return Message(ident, flags & 15, sorted(addresses))


class Asker:
    """A container as a place to ask from, in the test's own process: a socket stays where it was made."""

    def __init__(self, host: Host, container: str) -> None:
        self.path = f"/proc/{host.process(container)}/ns/net"

    def socket(
        self, kind: int = socket.SOCK_DGRAM, to: str = LOCAL, source: str = "", port: int = 53
    ) -> socket.socket:
        with netns.enter(self.path):
            made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, kind)
        made.settimeout(PATIENCE)
        if source:
            made.bind((source, 0))
        made.connect((to, port))
        return made

    def raw(self, message: bytes, to: str = LOCAL, source: str = "") -> bytes:
        """The answer to one question, over UDP."""
        with self.socket(to=to, source=source) as opened:
            opened.send(message)
            return opened.recv(65535)

    def ask(self, name: str, kind: int = A, to: str = LOCAL) -> Message:
        return parsed(self.raw(question(name, kind), to))

    def over_tcp(self, *messages: bytes) -> list[bytes]:
        """The answers over one connection, all questions in one segment."""
        with self.socket(socket.SOCK_STREAM) as opened:
            opened.sendall(b"".join(len(each).to_bytes(2) + each for each in messages))
            stream = opened.makefile("rb")
            return [stream.read(int.from_bytes(stream.read(2))) for _ in messages]


class Sniffer:
    """All packets of a device from now on, both ways."""

    def __init__(self, place: Namespace, device: str = "eth0") -> None:
        with netns.enter(place.path):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((device, 0))
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(65535))
        return found

    def carry(self, text: str) -> list[bytes]:
        """Those that have the text."""
        return [frame for frame in self.packets() if text.encode() in frame]

    def close(self) -> None:
        self._socket.close()
