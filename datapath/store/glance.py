# SPDX-License-Identifier: Apache-2.0
"""Whether the end of a container has been recorded, for a command that has nothing else to do: it learns it before it
loads what would be done otherwise, which takes most of its time."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

from datapath.errors import StateError
from datapath.store.locking import locked

_ROW = "SELECT json_extract(body, '$.status'), json_extract(body, '$.phase') FROM containers WHERE id = ?"


def knows_end(folder: str, container: str) -> bool:
    """The state in that directory says of the container with this id that it has ended, or no more of it at all; asked
    when the command that is changing it, if there is one, is over. False: it does not, or that cannot be told. That
    command may have found the lock taken when it wanted to keep space again: then that is done here."""
    path = f"{folder}/datapath.db"
    try:
        with locked(f"{folder}/lock", create=False):
            if not os.path.exists(path):
                return True
            spent = not os.path.lexists(f"{folder}/reserve")
            with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=rw", uri=True)) as db:
                row = db.execute(_ROW, (container,)).fetchone()
    except FileNotFoundError:  # the lock is removed after the database
        return not os.path.lexists(path)
    except (OSError, StateError, sqlite3.Error):
        return False
    known: bool = row is None or row == ("exited", "ready")
    if known and spent:  # whoever has more to do sees to that itself
        from pathlib import Path

        from datapath.store import reserve

        reserve.restore(Path(folder))
    return known


def _quoted(path: str) -> str:
    """As a URI has it. What would do it for any text takes longer to import than all the rest here."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
