# SPDX-License-Identifier: Apache-2.0
"""Frames that are on their way: where a processor is busy its softirqs are left to a thread, and send has returned
before the frame has arrived."""

import os
import socket

from tests.conftest import SLOWNESS

_HOPS = 8  # more devices than any frame passes


def settle() -> None:
    """Frames that were sent have arrived, or never will.

    A processor takes what is queued there in turn. So a datagram that is queued on each, and comes out again, has all
    of it before it; and what that led to, at the next device of its way, is before the one that follows.
    """
    allowed = os.sched_getaffinity(0)
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as marker:
            marker.bind(("127.0.0.1", 0))
            marker.settimeout(60 * SLOWNESS)
            for processor in sorted(allowed) * _HOPS:
                os.sched_setaffinity(0, {processor})
                marker.sendto(b"", marker.getsockname())
                marker.recv(1)
    finally:
        os.sched_setaffinity(0, allowed)
