# SPDX-License-Identifier: Apache-2.0
"""The line in which a child reports an error to its parent. Part of the shim: imports nothing but os."""

from __future__ import annotations

import os


def describe(step: list[str], error: BaseException) -> bytes:
    """Operation, subject and errno (0: not a system error, the subject says more), separated by tabs."""
    number = (isinstance(error, OSError) and error.errno) or 0
    subject = step[1] if number else f"{step[1]}: {error!r}"
    fields = (text.replace("\t", " ").replace("\n", " ") for text in (step[0], subject, str(number)))
    return os.fsencode("\t".join(fields))
