# SPDX-License-Identifier: Apache-2.0
"""What a service tells the manager that started it, as sd_notify(3) does: one datagram to the socket that it named."""

from __future__ import annotations

import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> bool:
    """Tells "READY=1" or the like; False: nobody wants to know, or it could not be told, which is no reason to stop."""
    path = os.environ.get(VARIABLE, "")
    if not path.startswith(("/", "@")):
        return False
    name = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
        try:
            opened.sendto(state.encode(), name)
        except OSError:
            return False
    return True
