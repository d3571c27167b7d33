# SPDX-License-Identifier: Apache-2.0
"""Who may see the page's data: who has the token, which is in a file that root alone reads, and in the address that is
printed. A browser brings it once, and has a cookie then that no script can read."""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import InUseError, KernelError

COOKIE = "datapathctl-web"
_BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """`path`: the file that has the token."""

    token: str
    path: Path
    _inode: int

    @property
    def cookie(self) -> str:
        """What a browser has instead: whoever reads it there does not know the token."""
        return hmac.digest(self.token.encode(), COOKIE.encode(), "sha256").hex()

    def opens(self, authorization: str, cookie: str) -> bool:
        """Whether one of the two that were sent is right; "": it was not sent. Takes the same time for any that is
        wrong."""
        bearer = hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())
        return bearer | hmac.compare_digest(cookie.encode(), self.cookie.encode())

    @property
    def there(self) -> bool:
        """Nobody has taken the file away, as `down` does."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False


@contextmanager
def kept(path: Path) -> Iterator[Key]:
    """A new token, as long as this lasts. InUseError: another process has one there; KernelError."""
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KernelError("open", str(path), error.errno or 0) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"another process serves the page: it has {path}") from None
        key = Key(secrets.token_hex(_BYTES), path, os.fstat(fd).st_ino)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{key.token}\n".encode(), 0)
        try:
            yield key
        finally:
            if key.there:
                with suppress(OSError):
                    path.unlink()
    finally:
        os.close(fd)
