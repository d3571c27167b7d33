# SPDX-License-Identifier: Apache-2.0
"""Has a process of datapathctl that a test starts take wireguard-go: see this folder's package."""

import os
import sys

if os.environ.get("TEST_WIREGUARD_GO") and any("ctl" in word for word in sys.orig_argv[1:4]):
    from tests.net.wireguard_go import install

    install()
