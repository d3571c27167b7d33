# SPDX-License-Identifier: Apache-2.0
"""rtnetlink(7): messages to the kernel about devices, addresses, routes and filters, and its answers.

Written by hand: a general library takes longer to import than a whole command, and half a millisecond a message.
Numbers are in host order, as netlink has them; addresses are as they lie in packets.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

# linux/netlink.h
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
_DUMP_INTR = 0x10
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, kind, flags, sequence, port
_ERRNO = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, kind
_KIND = 0x3FFF  # without the bits for "nested" and "network byte order"
_TRIES = 20

# linux/rtnetlink.h
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
GETRULE = 34
GETTFILTER = 46
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # struct rtmsg: family, dst_len, src_len, tos, table, proto, scope, type, flags
# struct fib_rule_hdr: family, dst_len, src_len, tos, table, action, flags
RULE = struct.Struct("=BBBBBxxBI")
TC = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info


def attribute(kind: int, payload: bytes) -> bytes:
    """struct nlattr and the payload, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, os.fsencode(value) + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def attributes(data: bytes) -> dict[int, bytes]:
    """The payloads of attributes by kind; of two of one kind, the last."""
    found = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _KIND] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _errno(body: bytes) -> int:
    """The errno that an answer or the end of a dump carries; 0: it was done."""
    return -int(_ERRNO.unpack_from(body)[0])


class Refused(OSError):
    """The kernel's refusal of the message at that `place` among those that were sent."""

    def __init__(self, number: int, place: int = 0) -> None:
        super().__init__(number, os.strerror(number))
        self.place = place


class Message(NamedTuple):
    """Something that is asked of the kernel. `flags`: REPLACE, EXCL, CREATE."""

    kind: int
    body: bytes
    flags: int = 0


class Rtnetlink:
    """A socket in the namespace that the calling thread is in. `protocol`: NETLINK_*, of another family of messages of
    the same form."""

    def __init__(self, protocol: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        # So that the kernel heeds what is asked for in a dump.
        self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def do(self, *messages: Message) -> None:
        """Sends all messages with one system call, and waits for the answers. The kernel does them in order, and does
        not stop at one that it refuses. Raises Refused for the first that it refused.
        """
        self._send(messages, _ACK)
        first: Refused | None = None
        answered = 0
        while answered < len(messages):
            for kind, _, body in self._receive():
                if kind == _ERROR:
                    number = _errno(body)
                    if number and first is None:
                        first = Refused(number, answered)
                    answered += 1
        if first is not None:
            raise first

    def get(self, message: Message) -> bytes:
        """Sends one question; the body of the answer. Refused: the kernel's errno."""
        self._send((message,), 0)
        for kind, _, body in self._receive():
            if kind == _ERROR:
                raise Refused(_errno(body))
            return body
        raise Refused(errno.EPROTO)

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers. Asked again, up to twenty times, if the list changed while it was read."""
        for _ in range(_TRIES):
            self._send((message,), _DUMP)
            found, whole = self._dumped()
            if whole:
                break
        return found

    def _dumped(self) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, body in self._receive():
                if flags & _DUMP_INTR:
                    whole = False
                if kind in (_DONE, _ERROR):
                    number = _errno(body)
                    if number > 0:
                        raise Refused(number)
                    return found, whole
                found.append(body)

    def _send(self, messages: Sequence[Message], flags: int) -> None:
        self._sequence += 1
        self._socket.send(
            b"".join(
                _HEADER.pack(16 + len(m.body), m.kind, _REQUEST | flags | m.flags, self._sequence, 0) + m.body
                for m in messages
            )
        )

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(kind, flags, body) of what one datagram has; all bodies are a multiple of four bytes long."""
        data = self._socket.recv(1 << 16)
        at = 0
        while at < len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if sequence == self._sequence:
                yield kind, flags, data[at + 16 : at + length]
            at += (length + 3) & ~3
