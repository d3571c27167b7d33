# SPDX-License-Identifier: Apache-2.0
"""The host's sockets: which ports they have and who owns them, and closing those whose peer is gone."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import log
from datapath.model.parsing import PORT_PROTOCOLS, PROTOCOLS

Address = IPv4Address | IPv6Address

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_TCP_LISTEN = "0A"
_UDP_ESTABLISHED = "01"
_FEW = 16  # ports that are as quickly tried as looked up


def in_use(proto: str, address: Address | None, port: int) -> bool:
    """Whether a socket stands in the way of the port at the address; None is every address of both families.

    The kernel is asked by trying to bind, which sees what no list shows (bound but not listening sockets) and
    costs the same with one socket or a million. An address that the host does not have is in nobody's use.
    """
    if address is None:
        return _refused(proto, IPv4Address(0), port) or _refused(proto, IPv6Address(0), port)
    return _refused(proto, address, port)


def _refused(proto: str, address: Address, port: int) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, _KINDS[proto]) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if proto == "tcp":  # connections in TIME_WAIT do not hold a port; a listening socket still does
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((str(address), port))
            if proto == "tcp":  # two may bind with SO_REUSEADDR, but only one may listen
                probe.listen(1)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EPERM, errno.EACCES):  # EPERM: a program at the bind hook
            return True
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return False
        raise KernelError("try", f"{proto} port {port} of {address}", error.errno or 0) from error
    return False


def dial(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection, made within so many seconds, which is then its time-out. OSError."""
    plain: Any = host.encode("ascii")  # for text Python first loads what names in other alphabets are like
    return socket.create_connection((plain, port), timeout)


def suspects(proto: str, first: int, last: int) -> Iterable[int]:
    """Those of the ports from `first` to `last` that `in_use` can be true of; all of them if there are few.

    Every socket that has one of the ports, at whatever address, in whatever state. Where the kernel does not list
    sockets that are only bound (TCP before 6.8), all ports are suspect.
    """
    ports = range(first, last + 1)
    if len(ports) < _FEW:
        return ports
    with socket.socket(socket.AF_INET, _KINDS[proto]) as bound, _diag() as diag:
        bound.bind(("", 0))  # found again if such sockets are listed
        known = bound.getsockname()[1]
        number = PROTOCOLS[proto]
        if known not in _local_ports(diag, socket.AF_INET, number, (known, known)):
            return ports
        families = (socket.AF_INET, socket.AF_INET6)
        found = [_local_ports(diag, family, number, (first, last)) for family in families]
    # The ends of the range too: a program at the bind hook that refuses is not in any list.
    return sorted({first, last}.union(*found))


def listening(protocols: Iterable[str] = ("tcp", "udp")) -> frozenset[tuple[str, Address, int]]:
    """Listening TCP and bound UDP sockets of the calling thread's namespace. Slow with many connections."""
    return frozenset((proto, address, port) for proto, address, port, _ in _rows(protocols))


def _rows(protocols: Iterable[str]) -> Iterator[tuple[str, Address, int, int]]:
    """(protocol, address, port, inode)."""
    for proto in protocols:
        for suffix in ("", "6"):
            try:
                with open(f"/proc/thread-self/net/{proto}{suffix}", encoding="ascii") as file:
                    next(file)
                    for line in file:
                        fields = line.split()
                        if (fields[3] == _TCP_LISTEN) if proto == "tcp" else (fields[3] != _UDP_ESTABLISHED):
                            address, _, port = fields[1].partition(":")
                            yield proto, _address(address), int(port, 16), int(fields[9])
            except FileNotFoundError:  # no IPv6
                continue
            except OSError as error:
                raise KernelError("list", f"{proto} sockets", error.errno or 0) from error


def _address(text: str) -> Address:
    """Written as 32-bit words in the machine's own byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return IPv4Address(packed) if len(words) == 1 else IPv6Address(packed)


def holder(proto: str, address: Address | None, port: int) -> str:
    """The process that has the port, for an error message: "nginx (pid 123)", or "a process"."""
    return find_holder(proto, address, port) or "a process"


def find_holder(proto: str, address: Address | None, port: int) -> str | None:
    """The same; None: no process that can be seen has it, but another PID namespace's, or the kernel itself. Looks at
    the fds of every process."""
    inodes = {
        inode for _, bound, number, inode in _rows((proto,)) if number == port and _overlap(address, bound)
    }
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if inodes & _socket_inodes(pid):
                with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
                    return f"{file.read().rstrip()} (pid {pid})"
        except OSError:
            continue  # gone meanwhile
    return None


def _socket_inodes(pid: str) -> set[int]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def _overlap(wanted: Address | None, bound: Address) -> bool:
    return wanted is None or wanted == bound or wanted.is_unspecified or bound.is_unspecified


# ---- sockets whose peer is gone ---------------------------------------------------------------------------

_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21  # linux/sock_diag.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBBI48s")  # struct inet_diag_req_v2, its id as bytes
_ID_IN_MESSAGE = slice(4, 52)  # of struct inet_diag_msg
_COOKIE_IN_ID = slice(40, 48)
_ALL_STATES = 0xFFFFFFFF
_BYTECODE, _S_GE, _S_LE = 1, 2, 3  # linux/inet_diag.h, INET_DIAG_REQ_BYTECODE and its operations
_CHOOSE = struct.Struct("=BBHBBHBBHBBH")


def destroy(cookies: frozenset[int]) -> int:
    """Ends the sockets of the calling thread's namespace that have one of these cookies, TCP and UDP.

    Their owners get ECONNABORTED (sock_diag(7), SOCK_DESTROY). A kernel without CONFIG_INET_DIAG_DESTROY leaves them.
    Returns how many were ended.
    """
    ended = 0
    with log.operation("destroy sockets", "of peers that are gone", len(cookies)), _diag() as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for proto in PORT_PROTOCOLS.values():
                for ident in list(_identities(diag, family, proto)):
                    if int.from_bytes(ident[_COOKIE_IN_ID], "little") in cookies:
                        _send(diag, _SOCK_DESTROY, _NLM_F_ACK, family, proto, ident)
                        ended += _acknowledged(diag)
    return ended


def _diag() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4)  # NETLINK_SOCK_DIAG


def _local_ports(diag: socket.socket, family: int, proto: int, ports: tuple[int, int]) -> set[int]:
    """Of all sockets, those from the first to the last of `ports`; the kernel chooses them, a million or none."""
    # Two comparisons of the local port (struct inet_diag_bc_op), each with where to go on if it is true or not.
    choose = _CHOOSE.pack(_S_GE, 8, 20, 0, 0, ports[0], _S_LE, 8, 12, 0, 0, ports[1])
    attribute = struct.pack("=HH", 4 + len(choose), _BYTECODE) + choose
    found = {int.from_bytes(ident[0:2], "big") for ident in _identities(diag, family, proto, attribute)}
    return {port for port in found if ports[0] <= port <= ports[1]}


def _send(
    diag: socket.socket, kind: int, flags: int, family: int, proto: int, ident: bytes, more: bytes = b""
) -> None:
    body = _REQUEST.pack(family, proto, 0, 0, _ALL_STATES, ident) + more
    diag.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body)


def _identities(diag: socket.socket, family: int, proto: int, more: bytes = b"") -> Iterator[bytes]:
    """The struct inet_diag_sockid of every socket; `more`: an attribute that chooses among them."""
    _send(diag, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, family, proto, bytes(48), more)
    while True:
        data = diag.recv(1 << 18)
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                return
            yield data[_HEADER.size : length][_ID_IN_MESSAGE]
            data = data[(length + 3) & ~3 :]


def _acknowledged(diag: socket.socket) -> bool:
    """Whether the kernel did it; False too if the socket has closed meanwhile."""
    data = diag.recv(1 << 16)
    return int.from_bytes(data[_HEADER.size : _HEADER.size + 4], "little", signed=True) == 0
