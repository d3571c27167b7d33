# SPDX-License-Identifier: Apache-2.0
"""The paths of sandboxes' network namespaces, those of other owners included."""

from __future__ import annotations

from datapath.kernel import netns, process
from datapath.model.state import State


def path(state: State, sandbox_id: str) -> str | None:
    """The path of a sandbox's network namespace; None: nobody is in it (any more).

    That of our own containers' is found through whichever of its users is alive; that of somebody else's is the path
    that it was adopted by.
    """
    sandbox = state.sandboxes.get(sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return sandbox.key if sandbox.key and netns.is_namespace(sandbox.key) else None
    for container in state.users(sandbox_id):
        if container.running and process.alive(container.pid, container.pid_start):
            return f"/proc/{container.pid}/ns/net"
    return None
