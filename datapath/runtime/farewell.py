# SPDX-License-Identifier: Apache-2.0
"""Whether the end of a container is still to be told, as its shim asks before it becomes the command that tells it,
which costs more than all that a shim has done. Imports only what is built into the interpreter."""

from __future__ import annotations

import fcntl
import os
from _struct import pack  # type: ignore[import-not-found, unused-ignore]


def is_unheard(state_dir: str, exit_file: str) -> bool:
    """Nobody wants to know: the container was forgotten, by `rm -f` or `down`, and with it went the file with its exit
    code. Asked when the command that is changing something is over. False: that cannot be told; or the space that is
    kept for commands which take something away is not there (`store.reserve`), as the one that gave it up may have
    been about to make it again when the lock was taken here, and did not: the command that tells of the end does."""
    try:
        lock = os.open(state_dir + "/lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return not os.path.lexists(exit_file) and not os.path.lexists(state_dir + "/lock")
    try:
        # As store.locking has it: only one process at a time asks for the other lock.
        fcntl.fcntl(lock, fcntl.F_OFD_SETLKW, pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = os.path.lexists(state_dir + "/reserve") or not os.path.lexists(state_dir + "/lock")
        return kept and not os.path.lexists(exit_file)
    except OSError:
        return False
    finally:
        os.close(lock)  # gives up both
