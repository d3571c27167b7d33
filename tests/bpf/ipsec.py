# SPDX-License-Identifier: Apache-2.0
"""IPsec policies of the host, as its control plane tells the programs of them."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from datapath.dataplane import host_entries
from datapath.dataplane.convert import to_abi
from datapath.kernel import abi
from datapath.model.host import XfrmPolicies, XfrmPolicy
from tests.bpf.fixtures import Programs

Policies = Callable[..., None]


def policy(direction: str, source: str, destination: str, action: str = "protect", **more: Any) -> XfrmPolicy:
    usual: dict[str, Any] = {"proto": 0, "sport": (0, 0), "dport": (0, 0), "ifindex": 0, "priority": 0}
    prefixes = ip_network(source), ip_network(destination)
    return XfrmPolicy(direction, *prefixes, **{**usual, "narrowed": False, **more}, action=action)


def write(programs: Programs, *found: XfrmPolicy, blocked: frozenset[str] = frozenset()) -> None:
    """As a refresh does."""
    rows = host_entries.xfrm_entries(XfrmPolicies(found, blocked))
    programs.maps["xfrm_policies"].update_many({to_abi(k): to_abi(v) for k, v in rows.items()})
    flags = int(abi.HostFlag.HOST_XFRM_IN) | int(abi.HostFlag.HOST_XFRM_OUT)
    programs.maps["host"][0] = programs.maps["host"][0]._replace(flags=flags)
