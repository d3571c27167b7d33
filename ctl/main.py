# SPDX-License-Identifier: Apache-2.0
"""The console script. Parents of containers call it by this name when the container ends, those that an earlier version
started as well.

Two commands do without the parser of command lines: Docker waits while a service manager starts its driver, which the
parser takes a quarter of; and whoever has ended a container, by `rm -f`, `stop` or `down`, has recorded that
already, so that its parent's command needs nothing of what it would load.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself would take a quarter of the time that a container's parent needs here
if TYPE_CHECKING:
    from typing import NoReturn

SERVICE = ["docker", "serve"]  # the command of the unit; with options the parser reads it
EXITED = "_exited"  # the command of a container's parent: ID CODE


def main() -> NoReturn:
    """One command; ends with its exit code."""
    if "DATAPATH_DEBUG" not in os.environ:
        if sys.argv[1:] == SERVICE:
            sys.exit(_serve())
        if sys.argv[1:2] == [EXITED] and _is_known(*sys.argv[2:]):
            sys.exit()
    from .cli.main import main

    main()


def _is_known(*words: str) -> bool:
    """The end of the container that they are about is recorded already. False: it is not, or that cannot be told so
    quickly, or the words are not those that a container's parent has."""
    folder = os.environ.get("DATAPATH_STATE_DIR", "")
    if not os.path.isabs(folder) or len(words) != 2 or not words[1].isdecimal():
        return False
    from datapath.store import glance

    return glance.knows_end(folder, words[0])


def _serve() -> int:
    import gc

    gc.disable()  # nothing of what is imported is garbage
    from datapath.config.settings import Settings

    from .docker import server

    gc.enable()
    try:
        server.serve(Settings.from_env(os.environ), None, server.IDLE, server.say)
    except BaseException as error:
        from .cli.errors import report

        return report(error)
    return 0


if __name__ == "__main__":
    main()
