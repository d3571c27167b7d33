# SPDX-License-Identifier: Apache-2.0
"""Frames that are on their way: where a processor is busy its softirqs are left to a thread, and send has returned
before the frame has arrived."""

import os
import socket

from tests.conftest import SLOWNESS

_HOPS = 8  # more devices than any frame passes
_ROUNDS = 2


def settle() -> None:
    """Frames that were sent have arrived, or never will.

    A processor takes what is queued there in turn. So a datagram that is queued on each, and comes out again, has all
    of it before it; and what that led to, at the next device of its way, is before the one that follows. A frame stays
    on its processor, by which the next device is told of it too; what has gone over to another one after all is found
    in a second round. (All hops on one first: where the machine is busy, each move to another waits for others.)
    """
    allowed = os.sched_getaffinity(0)
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as marker:
            marker.bind(("127.0.0.1", 0))
            marker.settimeout(60 * SLOWNESS)
            for processor in sorted(allowed) * _ROUNDS:
                os.sched_setaffinity(0, {processor})
                for _ in range(_HOPS):
                    marker.sendto(b"", marker.getsockname())
                    marker.recv(1)
    finally:
        os.sched_setaffinity(0, allowed)
