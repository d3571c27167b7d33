# SPDX-License-Identifier: Apache-2.0
"""A kernel that is too old. Run in a lab machine that has one, and nowhere else."""

from __future__ import annotations

from datapath.errors import NotSupportedError
from tests.net.conftest import host
from tests.net.hosts import Host

__all__ = ["host"]


def test_a_kernel_that_is_too_old_is_refused_with_one_line(host: Host) -> None:
    """S29. One line that names what is missing, an exit code of its own, and nothing was changed."""
    devices = host.sh("ip -brief link")
    done = host.try_ctl("network create red")
    print(f"datapathctl: exit code {done.returncode}: {done.stderr.strip()}")
    assert done.returncode == NotSupportedError.exit_code
    for command in ("network create red", "run -d --name a sleep 3600"):
        assert host.refused(command).startswith("datapathctl: this kernel does not have ")
    assert host.sh("ip -brief link") == devices
    assert host.ctl("ps -aq") == ""
    assert "red" not in host.ctl("network ls")
