# SPDX-License-Identifier: Apache-2.0
"""Packet sockets that run a BPF program for what a device receives, and receive nothing themselves."""

from __future__ import annotations

import socket
from types import TracebackType

from datapath.errors import KernelError
from datapath.kernel import netns

_ETH_P_ALL = 3  # linux/if_ether.h
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23  # linux/socket.h, linux/if_packet.h
_SO_ATTACH_BPF = 50  # asm-generic/socket.h


class Tap:
    """A packet socket at a device of a namespace. `cookie`: the namespace's, `ifindex`: the device's index in it.

    The program, a socket filter that returns 0, runs for every packet that comes in at the device. KernelError:
    there is no such device, or the kernel refuses.
    """

    def __init__(self, where: netns.Netns, ifname: str, program_fd: int) -> None:
        try:
            with netns.enter(where):
                self.ifindex = socket.if_nametoindex(ifname)
                self.cookie = netns.cookie()
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                # Without this each packet that goes out would be cloned for the socket.
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program_fd)
                self._socket.bind((ifname, _ETH_P_ALL))
        except OSError as error:
            raise KernelError("trace", f"device {ifname}", error.errno or 0) from error

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
