# SPDX-License-Identifier: Apache-2.0
"""Where datapathctl was before `ctl.cli`: parents of containers that an earlier version started call it by this name
when the container ends."""

from .cli.main import main

if __name__ == "__main__":
    main()
