# SPDX-License-Identifier: Apache-2.0
"""A name server that does what it is told, over UDP and TCP: `upstream.py LOG ADDRESS=ANSWER …`.

ANSWER is an IPv4 address, which every name then has (nx.* excepted, which does not exist; big.* has 60 and huge.* 300
of them, six.* an IPv6 address as well), or servfail, refused, nxdomain, silent, or hold:N, which answers over UDP only
when so many questions are there. LOG gets a line a question, "ADDRESS udp|tcp NAME TYPE PEER", and one a connection
that was reset, "ADDRESS reset . 0 PEER".
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
import threading
from ipaddress import IPv4Address, IPv6Address

A, PTR, AAAA, OPT = 1, 12, 28, 41
CODES = {"servfail": 2, "nxdomain": 3, "refused": 5}
SO_RCVBUFFORCE = 33


def name_at(message: bytes, at: int) -> tuple[str, int]:
    """The name, with a dot at its end, and where it ends."""
    labels = []
    while size := message[at]:
        labels.append(message[at + 1 : at + 1 + size].decode("latin-1"))
        at += 1 + size
    return "".join(f"{label}." for label in labels) or ".", at + 1


class Server:
    def __init__(self, address: str, answer: str) -> None:
        self.address, self.answer = address, answer
        self.held: list[tuple[bytes, tuple[object, ...]]] = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        where = socket.getaddrinfo(address, 53, family, socket.SOCK_DGRAM)[0][4]
        self.udp = socket.socket(family, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.tcp = socket.socket(family, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (self.udp, self.tcp):
            one.bind(where)
        self.tcp.listen(64)

    def reply(self, message: bytes, room: int) -> bytes | None:
        """What it says to the question, in so many bytes at most."""
        if self.answer == "silent":
            return None
        name, end = name_at(message, 12)
        kind = struct.unpack_from("!H", message, end)[0]
        code, records = CODES.get(self.answer, 0), []
        if name.lower().startswith("nx."):
            code = 3
        elif not code and kind == A:
            first = IPv4Address(self.answer) if "." in self.answer else IPv4Address("203.0.113.99")
            count = 60 if name.startswith("big.") else 300 if name.startswith("huge.") else 1
            records = [(first + number).packed for number in range(count)]
        elif not code and kind == AAAA and name.startswith("six."):
            records = [IPv6Address("2001:db8::80").packed]
        elif not code and kind == PTR:
            records = [b"\x04host\x08upstream\x04test\x00"]
        body = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 77, len(each)) + each for each in records)
        question = message[12 : end + 4]
        edns = struct.pack("!BHHIH", 0, OPT, 4096, 0, 0) if message[10:12] != b"\0\0" else b""
        flags, count = 0x8180 | code, len(records)
        if 12 + len(question) + len(body) + len(edns) > room:
            flags, body, count = flags | 0x0200, b"", 0
        return message[:2] + struct.pack("!HHHHH", flags, 1, count, 0, bool(edns)) + question + body + edns

    def over_udp(self) -> None:
        message, peer = self.udp.recvfrom(65535)
        self.note("udp", message, peer)
        if self.answer.startswith("hold:"):
            self.held.append((message, peer))
            if len(self.held) < int(self.answer.partition(":")[2]):
                return
        else:
            self.held = [(message, peer)]
        for message, peer in self.held:
            room = 512
            if message[10:12] != b"\0\0":
                room = struct.unpack_from("!H", message, name_at(message, 12)[1] + 4 + 3)[0]
            if said := self.reply(message, room):
                self.udp.sendto(said, peer)
        self.held = []

    def over_tcp(self) -> None:
        """Each connection in a thread: some stay open without a word."""
        threading.Thread(target=self.connected, args=self.tcp.accept(), daemon=True).start()

    def connected(self, connection: socket.socket, peer: tuple[object, ...]) -> None:
        with connection:
            stream = connection.makefile("rb")
            try:
                while len(head := stream.read(2)) == 2:
                    message = stream.read(int.from_bytes(head))
                    self.note("tcp", message, peer)
                    if said := self.reply(message, 65535):
                        connection.sendall(len(said).to_bytes(2) + said)
            except ConnectionResetError:
                log.write(f"{self.address} reset . 0 {peer[0]}\n")
            except OSError:
                pass

    def note(self, proto: str, message: bytes, peer: tuple[object, ...]) -> None:
        name, end = name_at(message, 12)
        kind = struct.unpack_from("!H", message, end)[0]
        log.write(f"{self.address} {proto} {name} {kind} {peer[0]}\n")


log = open(sys.argv[1], "a", buffering=1)  # noqa: SIM115 - until it is killed
ready = selectors.DefaultSelector()
for word in sys.argv[2:]:
    server = Server(*word.split("=", 1))
    ready.register(server.udp, selectors.EVENT_READ, server.over_udp)
    ready.register(server.tcp, selectors.EVENT_READ, server.over_tcp)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        key.data()
