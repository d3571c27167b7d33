# SPDX-License-Identifier: Apache-2.0
"""`reconcile`, the part about overlay networks: the devices for tunnels, and routes of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from datapath.drivers.base import Repair, Repairing
from datapath.drivers.overlay.device import EncryptedTunnels
from datapath.drivers.overlay.host import OverlayHost
from datapath.drivers.overlay.spec import OVERLAY
from datapath.drivers.registry import by_spec
from datapath.model.checks import ANNOUNCED, ENCRYPTION, TUNNEL
from datapath.model.findings import Check, Finding


def _tunnel(work: Repairing, finding: Finding) -> None:
    view = work.view()
    networks = by_spec(work.state.networks.values()).get(OVERLAY, [])
    OverlayHost(work.context).refresh(replace(view, networks=networks))


def _encryption(work: Repairing, finding: Finding) -> None:
    view = work.view()
    networks = by_spec(work.state.networks.values()).get(OVERLAY, [])
    EncryptedTunnels(work.context).follow(view, networks, sure=True)
    _tunnel(work, finding)


REPAIRS: Mapping[Check, Repair] = {TUNNEL: _tunnel, ANNOUNCED: _tunnel, ENCRYPTION: _encryption}
