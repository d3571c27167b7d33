# SPDX-License-Identifier: Apache-2.0
"""News of a network namespace: that its links, addresses, routes, rules or IPsec policies have changed, from netlink.

What has changed is not read from the messages: whoever hears of news observes the whole. So messages may be lost, and
a storm of them costs no more than its first hundred.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from datapath.errors import KernelError
from datapath.kernel.facts import translated
from datapath.kernel.xfrm import NETLINK_XFRM, NO_XFRM

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1  # linux/netlink.h
_ROUTE, _BUFFER = 0, 1 << 16  # NETLINK_ROUTE; bytes that wait at most
# RTNLGRP_* of linux/rtnetlink.h: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, NEXTHOP
_OF_ROUTE = (1, 5, 7, 8, 9, 11, 19, 32)
_POLICY = (4,)  # XFRMNLGRP_POLICY of linux/xfrm.h


class Events:
    """The sockets that hear of changes in the calling thread's namespace from now on. A context manager."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack, translated("listen to", "rtnetlink"):
            self._sockets = [stack.enter_context(_listening(_ROUTE, _OF_ROUTE))]
            try:
                self._sockets.append(stack.enter_context(_listening(NETLINK_XFRM, _POLICY)))
            except OSError as error:
                if error.errno not in NO_XFRM:
                    raise
            self._stack = stack.pop_all()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def filenos(self) -> list[int]:
        """What is to be polled for reading."""
        return [one.fileno() for one in self._sockets]

    def drain(self) -> int:
        """Takes all messages that wait away; how many there were, 1 at least for those that were lost. KernelError."""
        return sum(map(_drained, self._sockets))


def _listening(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        opened.close()
        raise
    return opened


def _drained(opened: socket.socket) -> int:
    found = 0
    while True:
        try:
            opened.recv(1, socket.MSG_DONTWAIT)  # the rest of the message goes
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # messages were lost: what they were about is looked at anyhow
                raise KernelError("listen to", "netlink", error.errno or 0) from error
        found += 1
