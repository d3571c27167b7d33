# SPDX-License-Identifier: Apache-2.0
"""What a kernel has is asked of the kernel, and the answer is the one that use gives."""

from __future__ import annotations

import os

from datapath.kernel import features, netns
from tests.net.hosts import Host


def test_s29_tcx_is_said_to_be_there_where_programs_are_attached_by_it(host: Host) -> None:
    host.ctl("network create red")
    links = os.listdir(host.bpffs / "datapath" / "links")
    assert any(name.startswith("from_host-") for name in links) == features.has_tcx()


def test_s29_netkit_is_said_to_be_there_where_a_device_can_be_made_and_asking_leaves_nothing(
    host: Host,
) -> None:
    with netns.enter(host.path):
        before = netns.identity()
        said = features.has_netkit()
        assert netns.identity() == before
    assert "probe" not in host.sh("ip -brief link")
    assert (host.try_("ip link add name tried type netkit").returncode == 0) == said
