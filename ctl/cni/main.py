# SPDX-License-Identifier: Apache-2.0
"""The plugin's process, from the environment and stdin to one JSON text on stdout and an exit code."""

from __future__ import annotations

import os
import sys

from .protocol import VERBS, VERSIONS, Call, CniError


def main() -> None:
    """As the executable runs it."""
    sys.exit(run())


def run() -> int:
    """The exit code."""
    if "CNI_COMMAND" not in os.environ:
        print(
            f"datapath is a CNI plugin: container runtimes call it. Versions: {', '.join(VERSIONS)}",
            file=sys.stderr,
        )
        return 1
    call = Call(os.environ, sys.stdin.buffer.read())
    try:
        answer = _answer(call)
    except CniError as error:
        print(error.text(call.version))
        return 1
    if answer:
        print(answer)
    return 0


def _answer(call: Call) -> str:
    if call.verb == "VERSION":
        from .version import version

        return version(call)
    call.check()
    if call.verb == "STATUS":
        from .version import status

        return status(call)
    assert call.verb in VERBS
    from .verbs import serve

    return serve(call)
