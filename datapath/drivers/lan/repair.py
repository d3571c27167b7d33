# SPDX-License-Identifier: Apache-2.0
"""`reconcile`, the part about networks with a parent: the host's way to their members."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.drivers import registry
from datapath.drivers.base import Repair, Repairing
from datapath.model.checks import HOST_ROUTE
from datapath.model.findings import Check, Finding


def _lead(work: Repairing, finding: Finding) -> None:
    endpoint = work.state.endpoints[finding.about[0]]
    network = work.state.networks[endpoint.network_id]
    registry.find(network, work.context).restore(network, endpoint)


REPAIRS: Mapping[Check, Repair] = {HOST_ROUTE: _lead}
