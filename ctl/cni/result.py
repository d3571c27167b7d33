# SPDX-License-Identifier: Apache-2.0
"""What ADD answers, in the words of each version of the specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from datapath.engine.attachments import Attached
from datapath.model.networks import PAIRS, gateway_mac

from .protocol import Call

_END = re.compile(f"({'|'.join(PAIRS)})[0-9a-f]{{7}}")  # the host's end of a pair, as plans name it


def of(call: Call, attached: Attached, dns: Mapping[str, Any]) -> dict[str, Any]:
    """The result: the gateway device, the host's end, the container's end; its addresses and default routes."""
    network, endpoint, info = attached.network, attached.endpoint, attached.info
    devices = _devices(call, attached)
    addresses, routes = [], []
    for address in (endpoint.ipv4, endpoint.ipv6):
        if address is None:
            continue
        subnet = network.subnet4 if address.version == 4 else network.subnet6
        one: dict[str, Any] = {"address": str(address), "interface": len(devices) - 1}
        if subnet is not None and subnet.gateway is not None:
            one["gateway"] = str(subnet.gateway)
        if not call.at_least("1.0.0"):
            one["version"] = str(address.version)
        addresses.append(one)
    for gateway in (info.gateway4, info.gateway6):
        if gateway is not None:
            routes.append({"dst": "0.0.0.0/0" if gateway.version == 4 else "::/0", "gw": str(gateway)})
    return {
        "cniVersion": call.version,
        "interfaces": devices,
        "ips": addresses,
        "routes": routes,
        "dns": dict(dns),
    }


def beside(call: Call, attached: Attached, previous: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the plugin before, and the devices by which the container's ports are reached. Their addresses are
    none of the container's to anybody."""
    listed = previous.get("interfaces")
    return {
        **previous,
        "interfaces": [*(listed if isinstance(listed, list) else ()), *_devices(call, attached)],
    }


def _devices(call: Call, attached: Attached) -> list[dict[str, Any]]:
    network, endpoint, info = attached.network, attached.endpoint, attached.info
    devices: list[dict[str, Any]] = [
        {"name": network.device, "mac": gateway_mac(network)},
        {"name": endpoint.host_ifname},
        {"name": info.ifname, "mac": info.mac, "sandbox": call.netns},
    ]
    return [{**device, "mtu": info.mtu} for device in devices] if call.at_least("1.1.0") else devices


def is_of_another(previous: Mapping[str, Any]) -> bool:
    """The result is that of another plugin, which has made the container's device."""
    listed = previous.get("interfaces")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    ends = {str(one.get("name")) for one in found if not one.get("sandbox")}
    return any(one.get("sandbox") for one in found) and not any(_END.fullmatch(name) for name in ends)
