# SPDX-License-Identifier: Apache-2.0
"""Behaviour lives here: what each command is going to do, decided before anything is changed.

Every `plan_…` takes a snapshot (`State`), what was observed of the host (`HostFacts`) and what was asked, and
returns the rows to write; or raises ConfigError, NotFoundError, ExistsError or InUseError. Pure: no I/O, no
clock, no randomness (`Fresh` brings times, ids and numbers; `PortContext` asks about the host's sockets).
"""

from __future__ import annotations

from datapath.model import HostFacts
from datapath.plan_containers import ExitPlan, RunPlan, generated_name, plan_exited, plan_remove, plan_run
from datapath.plan_endpoints import (
    ConnectPlan,
    DisconnectPlan,
    assign_gateways,
    gateway_mac,
    network_mtu,
    plan_connect,
    plan_disconnect,
    plan_endpoint,
    plan_gateway_endpoint,
    ready_network,
)
from datapath.plan_inspect import container_inspect, network_inspect
from datapath.plan_networks import (
    plan_default_bridge,
    plan_network_create,
    plan_network_prune,
    plan_network_remove,
)
from datapath.plan_ports import (
    PortContext,
    PortInUse,
    PortPlan,
    choose_ports,
    plan_port_add,
    plan_port_remove,
    plan_port_set,
    shown,
    ways_out,
)
from datapath.state import Fresh, State, plan_predefined

__all__ = [
    "ConnectPlan",
    "DisconnectPlan",
    "ExitPlan",
    "Fresh",
    "HostFacts",
    "PortContext",
    "PortInUse",
    "PortPlan",
    "RunPlan",
    "State",
    "assign_gateways",
    "choose_ports",
    "container_inspect",
    "gateway_mac",
    "generated_name",
    "network_inspect",
    "network_mtu",
    "plan_connect",
    "plan_default_bridge",
    "plan_disconnect",
    "plan_endpoint",
    "plan_exited",
    "plan_gateway_endpoint",
    "plan_network_create",
    "plan_network_prune",
    "plan_network_remove",
    "plan_port_add",
    "plan_port_remove",
    "plan_port_set",
    "plan_predefined",
    "plan_remove",
    "plan_run",
    "ready_network",
    "shown",
    "ways_out",
]
