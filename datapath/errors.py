# SPDX-License-Identifier: Apache-2.0
"""Every error that the library raises. A leaf: imports nothing of the project.

``str(error)`` is always one printable line that says what was wrong and, where it is not obvious,
what to do about it. ``exit_code`` is what a command line tool ends with.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Collection


def printable(text: str) -> str:
    """The text on one line: control characters, line breaks and stray bytes are shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str, limit: int = 64) -> str:
    """The text as a message may show it: in quotes, on one line, cut to `limit` characters."""
    shown = printable(text if len(text) <= limit else text[:limit] + "…")
    return '"' + shown.replace('"', '\\"') + '"'


def meant(word: str, known: Collection[str]) -> str | None:
    """The one word that may have been meant: two of its letters are exchanged, or it is nearly the same. None: a guess
    would mislead."""
    from difflib import get_close_matches

    if not 1 < len(word) < 64:
        return None
    exchanged = [name for name in known if name != word and sorted(name) == sorted(word)]
    found = exchanged or get_close_matches(word, known, 2, 0.8)
    return found[0] if found else None


class DatapathError(Exception):
    """Base of all errors of this library."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return printable(self.message)


class ConfigError(DatapathError):
    """The request or the configuration cannot be right. Found before anything was changed."""

    exit_code = 2


class NotFoundError(DatapathError):
    """No object has that name or id."""

    exit_code = 3


class ExistsError(DatapathError):
    """The name, address or port is already taken."""

    exit_code = 4


class InUseError(DatapathError):
    """The object cannot be removed or changed now, because something uses it."""

    exit_code = 5


class KernelError(DatapathError):
    """The kernel refused an operation. `errno` is 0 if it gave none."""

    exit_code = 10

    def __init__(self, operation: str, subject: str = "", errno: int = 0, detail: str = "") -> None:
        reason = detail
        if errno:
            name = _errno.errorcode.get(errno, str(errno))
            reason = f"{os.strerror(errno)} ({name})" + (f": {detail}" if detail else "")
        what = f"{operation} {subject}".strip()
        super().__init__(f"{what}: {reason}" if reason else what)
        self.operation = operation
        self.subject = subject
        self.errno = errno


class VerifierError(KernelError):
    """The kernel's verifier refused a program. `last_line` is the telling line, `log` all of it."""

    exit_code = 11

    def __init__(self, program: str, last_line: str, log: str = "") -> None:
        super().__init__("load", f"program {program}", detail=f"refused by the verifier: {last_line}")
        self.program = program
        self.last_line = last_line
        self.log = log


class NotSupportedError(KernelError):
    """The kernel lacks a feature. `since` names the first version that has it, if known."""

    exit_code = 12

    def __init__(self, feature: str, since: str = "") -> None:
        hint = f" (there since Linux {since})" if since else ""
        super().__init__(f"this kernel does not have {feature}{hint}")
        self.feature = feature
        self.since = since


class PrivilegeError(KernelError):
    """The caller lacks a privilege; the message names it."""

    exit_code = 13

    def __init__(self, message: str) -> None:
        super().__init__(message)


class StateError(DatapathError):
    """The state database is damaged, of another kind or version, or locked by somebody else for too long."""

    exit_code = 14


class PluginError(DatapathError):
    """A plugin of Docker's, which is the driver of a network or gives out its addresses, refused or did not answer."""

    exit_code = 15


class NewerStateError(StateError):
    """The state database is of a later version than this program knows. The message names the release that does."""
