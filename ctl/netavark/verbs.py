# SPDX-License-Identifier: Apache-2.0
"""create, setup and teardown: each one call of the library."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from datapath.config.settings import Settings
from datapath.engine.attachments import Attached
from datapath.errors import ConfigError, DatapathError, printable
from datapath.host import Host
from datapath.model.networks import Network
from datapath.model.parsing import parse_prefix
from datapath.plan.ipam import overlapping

from . import config, podman


def serve(verb: str, request: Mapping[str, Any], path: str, environ: Mapping[str, str]) -> Any:
    """Does what is asked for; what netavark is told, None: nothing. ValueError: the text of an error."""
    try:
        host = Host.open(Settings.from_env(environ), warn)
        if verb == "create":
            return create(host, request, environ)
        if verb == "setup":
            return setup(host, request, path)
        return teardown(host, request)
    except DatapathError as error:
        raise ValueError(str(error)) from error
    except ExceptionGroup as group:
        raise ValueError(f"{group.message}: {'; '.join(map(str, group.exceptions))}") from group


def warn(line: str) -> None:
    """A line for the user: netavark passes it through."""
    print(f"datapath: {printable(line)}", file=sys.stderr)


def create(host: Host, request: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """A network is about to be known to podman: it is checked, and gets subnets if it has none. It is built when the
    first container comes, as podman does not say when it is removed."""
    if known := config.elsewhere(request):
        host.networks.inspect(known)
        return {**request}
    asked = config.network(request)
    others = podman.networks(environ)
    for text in asked.subnets:
        for name, prefixes in others.items():
            if name != asked.name and (other := overlapping(parse_prefix(text, "subnet"), prefixes)):
                raise ConfigError(f"subnet {text} overlaps {other} of podman's network {name}")
    avoid = [prefix for name, prefixes in others.items() if name != asked.name for prefix in prefixes]
    planned = host.networks.plan(asked, avoid)
    return {**request, "subnets": _subnets(request, planned), "ipam_options": {"driver": config.IPAM}}


def _subnets(request: Mapping[str, Any], planned: Network) -> list[dict[str, Any]]:
    """As podman has them; what it said of them itself stays."""
    given = {str(parse_prefix(str(one["subnet"]), "subnet")): one for one in request.get("subnets") or ()}
    return [
        {**given.get(str(subnet.prefix), {}), "subnet": str(subnet.prefix), "gateway": str(subnet.gateway)}
        for subnet in planned.subnets
    ]


def setup(host: Host, request: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The container is put onto the network; the network is built if it is the first."""
    return _status(host.attachments.add(config.attachment(request, path)))


def _status(attached: Attached) -> dict[str, Any]:
    """What has become of it, as netavark's own drivers say it."""
    network, endpoint = attached.network, attached.endpoint
    subnets = []
    for address, subnet in ((endpoint.ipv4, network.subnet4), (endpoint.ipv6, network.subnet6)):
        if address is not None and subnet is not None:
            gateway = {} if network.internal else {"gateway": str(subnet.gateway)}
            subnets.append({"ipnet": str(address), **gateway})
    return {
        "interfaces": {endpoint.ifname: {"mac_address": endpoint.mac, "subnets": subnets}},
        "dns_server_ips": [attached.resolver] if attached.resolver else [],
        "dns_search_domains": [network.domain] if attached.resolver and network.domain else [],
    }


def teardown(host: Host, request: Mapping[str, Any]) -> None:
    """The container is taken off the network, whatever of it is there; with the last one the network goes."""
    network = request.get("network")
    name = ""
    if isinstance(network, dict):
        name = str((network.get("options") or {}).get(config.OPT_NETWORK) or network.get("name") or "")
    host.attachments.remove(config.OWNER, config.key(request), name)
