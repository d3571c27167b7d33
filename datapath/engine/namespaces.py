# SPDX-License-Identifier: Apache-2.0
"""The paths of sandboxes' network namespaces, those of other owners included."""

from __future__ import annotations

from datapath.errors import KernelError
from datapath.kernel import netns, process
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State


def path(state: State, sandbox_id: str) -> str | None:
    """The path of a sandbox's network namespace; None: nobody is in it (any more).

    That of our own containers' is found through whichever of its users is alive; that of somebody else's is the path
    that it was adopted by, as long as the namespace there is the same.
    """
    sandbox = state.sandboxes.get(sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return sandbox.key if sandbox.key and _is_same(sandbox) else None
    for container in state.users(sandbox_id):
        if container.running and process.alive(container.pid, container.pid_start):
            return f"/proc/{container.pid}/ns/net"
    return None


def _is_same(sandbox: Sandbox) -> bool:
    """The namespace that was adopted is at its path still."""
    try:
        return netns.is_namespace(sandbox.key) and sandbox.inode in (0, netns.identity(sandbox.key))
    except KernelError:
        return False  # it has just gone
