# SPDX-License-Identifier: Apache-2.0
"""The agent of one host, from its start to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from datapath.config.settings import Settings
from datapath.kernel import features, heap
from datapath.kernel.events import Events
from datapath.store.sole import AGENT, Sole

from . import loop
from .follower import Follower
from .health import Health
from .membership import Membership
from .renewal import Renewal, Renewed


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `say` takes lines for the journal. InUseError: this host has an agent. PrivilegeError,
    StateError, KernelError."""
    features.require()
    heap.spare()
    sole = Sole(settings.state_dir / AGENT, "another agent")
    sole.inherit()
    with sole, Events() as events:
        follower = Follower(settings, events, sole, say)
        try:
            with (
                Membership(settings, follower.host, say) as membership,
                Health(settings, follower.host, say) as health,
            ):
                loop.run((follower, membership, health, Renewal()), say)
            return
        except Renewed as why:
            say(f"{why}: starting again")
            sole.hand_on()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
