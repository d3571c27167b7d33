# SPDX-License-Identifier: Apache-2.0
"""The console script. Parents of containers that an earlier version started call it by this name when the container
ends.

Docker waits while a service manager starts its driver, so that command does without the parser of command lines, which
takes a quarter of the time.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

SERVICE = ["docker", "serve"]  # the command of the unit; with options the parser reads it


def main() -> NoReturn:
    """One command; ends with its exit code."""
    if sys.argv[1:] == SERVICE and "DATAPATH_DEBUG" not in os.environ:
        sys.exit(_serve())
    from .cli.main import main

    main()


def _serve() -> int:
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
