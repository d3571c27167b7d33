# SPDX-License-Identifier: Apache-2.0
"""The private key of this host's encrypted tunnels: a file of the state directory that only its owner can read. It is
in no database, no log and no other host's hands.

While the key is being changed the file has two, the new one last: which of them is in force is for this host's row to
say, which other hosts know.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datapath.errors import StateError
from datapath.store.database import sync_folder

NAME = "wireguard.key"


class TunnelKey:
    """Both are base64; the private one is not shown by accident."""

    __slots__ = ("private", "public")

    def __init__(self, private: str, public: str) -> None:
        self.private, self.public = private, public

    def __repr__(self) -> str:
        return f"TunnelKey({self.public})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TunnelKey) and self.private == other.private

    def __hash__(self) -> int:
        return hash(self.private)


def read(state_dir: Path) -> tuple[TunnelKey, ...]:
    """The keys, none if there is no file. StateError: something else is there."""
    path = state_dir / NAME
    try:
        lines = path.read_text("ascii").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StateError(f"cannot read {path}: {why}") from None
    pairs = [line.split() for line in lines]
    if not pairs or any(len(pair) != 2 or len(pair[0]) != 44 or len(pair[1]) != 44 for pair in pairs):
        raise StateError(f"{path} is no file of keys: remove it, and this host gets another key")
    return tuple(TunnelKey(private, public) for private, public in pairs)


def write(state_dir: Path, keys: Sequence[TunnelKey]) -> None:
    """In place of those that are there, all or nothing, and on the disk when it returns. StateError."""
    path = state_dir / NAME
    new = path.with_name(NAME + ".new")
    try:
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_WRONLY, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.writelines(f"{key.private} {key.public}\n" for key in keys)
            file.flush()
            os.fsync(fd)
        new.rename(path)
        sync_folder(state_dir)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error


def discard(state_dir: Path) -> None:
    """Removes the file, and what a killed command has left of one. StateError."""
    for name in (NAME, NAME + ".new"):
        try:
            (state_dir / name).unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot remove {state_dir / name}: {error.strerror}") from error
