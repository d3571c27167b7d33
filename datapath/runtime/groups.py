# SPDX-License-Identifier: Apache-2.0
"""The control groups of detached containers: datapath/ID, with their shims in datapath.

In its caller's a container would end with it: with a unit of systemd whose command has started it, or a session of ssh.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from datapath.config.settings import Settings
from datapath.kernel import cgroup

_ALL = "datapath"


def of(settings: Settings, container_id: str) -> Path:
    """The directory of a container's control group, which need not be there. NotSupportedError."""
    root = settings.cgroup or Path(cgroup.mount_point())
    return root / _ALL / container_id


def remove(settings: Settings, *container_ids: str) -> None:
    """Removes the groups of containers that have ended, and that of all shims if they were the last; none that
    something is in."""
    parent = of(settings, "")
    for path in (*(parent / name for name in container_ids), parent):
        with suppress(OSError):
            path.rmdir()
