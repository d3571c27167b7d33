# SPDX-License-Identifier: Apache-2.0
"""Docker's JSON for `network inspect` and `inspect`: names, nesting and order of keys are Docker's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datapath.model.containers import Container
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network, Subnet
from datapath.model.ports import PortMapping
from datapath.model.rows import short
from datapath.model.state import State
from datapath.plan.inspect_services import services_of
from datapath.plan.ports import egress_endpoints, shown

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


def network_inspect(
    network: Network, state: State, transports: Mapping[str, str] | None = None, verbose: bool = False
) -> dict[str, Any]:
    """One network. A `bridge` without addresses can be shown with those that it is going to have. `transports`: how
    packets go to other hosts, by id, where the network leaves that to be found out for each. `verbose`: with its
    services."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": network.scope,
        "Driver": network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": dict(network.ipam_options),
            "Config": [_ipam_config(subnet) for subnet in network.subnets],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": _members(network, state),
        "Options": {**network.options, **network.generic},
        "Labels": dict(network.labels),
        **_peers(network, state, transports or {}),
        **({"Services": services_of(network, state)} if verbose else {}),
    }


def _peers(network: Network, state: State, transports: Mapping[str, str]) -> dict[str, Any]:
    """The hosts that take part in a network of several, as Docker lists them; and the way of packets to them."""
    if not network.spans:
        return {}
    hosts = {block.peer for block in state.blocks_of_network(network.id)}
    peers = sorted((state.peers[one] for one in hosts if one in state.peers), key=lambda peer: peer.name)
    return {
        "Peers": [
            {
                "Name": peer.name,
                "IP": str(peer.address),
                **({"Transport": transports[peer.id]} if peer.id in transports else {}),
            }
            for peer in peers
        ]
    }


def _ipam_config(subnet: Subnet) -> dict[str, Any]:
    config: dict[str, Any] = {"Subnet": str(subnet.prefix)}
    if subnet.ip_range is not None:
        config["IPRange"] = str(subnet.ip_range)
    if subnet.gateway is not None:
        config["Gateway"] = str(subnet.gateway)
    if subnet.aux:
        config["AuxiliaryAddresses"] = {name: str(address) for name, address in subnet.aux.items()}
    return config


def _members(network: Network, state: State) -> dict[str, Any]:
    if not traits(network).endpoints:
        running = [c for c in state.containers.values() if c.running and c.network_mode == network.name]
        return {c.id: _member(c.name, "", "", "", "") for c in running}
    members = {}
    for endpoint in state.endpoints_of_network(network.id):
        members[endpoint.sandbox_id] = _member(
            state.holder_name(endpoint),
            endpoint.id,
            endpoint.mac,
            str(endpoint.ipv4 or ""),
            str(endpoint.ipv6 or ""),
        )
    return members


def _member(name: str, endpoint_id: str, mac: str, ipv4: str, ipv6: str) -> dict[str, str]:
    return {
        "Name": name,
        "EndpointID": endpoint_id,
        "MacAddress": mac,
        "IPv4Address": ipv4,
        "IPv6Address": ipv6,
    }


def container_inspect(container: Container, state: State) -> dict[str, Any]:
    """One container."""
    return {
        "Id": container.id,
        "Created": container.created,
        "Path": container.argv[0],
        "Args": list(container.argv[1:]),
        "State": {
            "Status": container.status,
            "Running": container.running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": container.pid if container.running else 0,
            "ExitCode": container.exit_code or 0,
            "Error": container.error,
            "StartedAt": container.started or _NEVER,
            "FinishedAt": container.finished or _NEVER,
        },
        "Image": "",
        "LogPath": container.log_path,
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": "",
        "Platform": "linux",
        "HostConfig": _host_config(container, state),
        "Config": _config(container),
        "NetworkSettings": _network_settings(container, state),
    }


def _host_config(container: Container, state: State) -> dict[str, Any]:
    return {
        "NetworkMode": container.network_mode,
        "PortBindings": _requested_bindings(container.published),
        "LogConfig": {"Type": "file", "Config": dict(container.log_opts)},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": container.auto_remove,
        "Sysctls": dict(container.sysctls) or None,
        "Dns": list(container.dns),
        "DnsOptions": list(container.dns_options),
        "DnsSearch": list(container.dns_search),
        "ExtraHosts": [f"{name}:{address}" for name, address in container.extra_hosts],
        "Links": [
            f"/{state.containers[link.server].name}:/{container.name}/{link.alias}"
            for link in container.links
            if link.server in state.containers
        ],
        "PublishAllPorts": container.publish_all,
    }


def _config(container: Container) -> dict[str, Any]:
    return {
        "Hostname": container.hostname,
        "Domainname": container.domainname,
        "User": container.user,
        "AttachStdin": container.open_stdin,
        "ExposedPorts": {f"{port}/{proto}": {} for port, proto in container.exposed},
        "Tty": container.tty,
        "OpenStdin": container.open_stdin,
        "StdinOnce": container.open_stdin,
        "Env": list(container.env),
        "Cmd": list(container.argv),
        "Image": "",
        "Volumes": None,
        "WorkingDir": container.workdir,
        "Entrypoint": None,
        "Labels": dict(container.labels),
        "StopSignal": container.stop_signal,
        "Rootfs": container.rootfs,
    }


def _requested_bindings(mappings: Iterable[PortMapping]) -> dict[str, list[dict[str, Any]]]:
    """As the user asked: an open choice of host port is "" or a range."""
    bindings: dict[str, list[dict[str, Any]]] = {}
    for mapping in mappings:
        for address, host_port, port, proto in mapping.expand():
            shown = str(host_port or "")
            if mapping.host_port_last:
                shown = f"{mapping.host_port}-{mapping.host_port_last}"
            binding = {"HostIp": str(address or ""), "HostPort": shown, **_acl(mapping)}
            bindings.setdefault(f"{port}/{proto}", []).append(binding)
    return bindings


def _published(endpoints: Iterable[Endpoint], exposed: Iterable[tuple[int, str]]) -> dict[str, Any]:
    """`null` for a port that is exposed but not published."""
    ports: dict[str, Any] = {f"{port}/{proto}": None for port, proto in exposed}
    egress = egress_endpoints(endpoints)
    mappings = dict.fromkeys(mapping for endpoint in egress for mapping in endpoint.ports)
    for mapping in (one for whole in mappings for one in shown(whole, egress)):
        for address, host_port, port, proto in mapping.expand():
            binding = {"HostIp": str(address), "HostPort": str(host_port), **_acl(mapping)}
            name = f"{port}/{proto}"
            ports[name] = [*(ports.get(name) or []), binding]
    return ports


def _acl(mapping: PortMapping) -> dict[str, list[str]]:
    """Who may connect: not Docker's, and only there if it is not everybody."""
    rules = {"Allow": list(map(str, mapping.allow)), "Deny": list(map(str, mapping.deny))}
    return rules if mapping.acl_text else {}


def _network_settings(container: Container, state: State) -> dict[str, Any]:
    endpoints = () if container.shares else state.endpoints_of_sandbox(container.sandbox_id)
    sandbox = state.sandboxes.get(container.sandbox_id)
    by_network = {endpoint.network_id: endpoint for endpoint in endpoints}
    networks: dict[str, Any] = {}
    legacy = _endpoint_settings(EndpointRequest(""), None, None, container)
    for asked in container.networks:
        network = state.networks.get(asked.network)
        name = network.name if network else asked.network
        networks[name] = _endpoint_settings(asked, network, by_network.get(asked.network), container)
        if name == "bridge":
            legacy = networks[name]
    keep = (
        *("EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress"),
        *("IPPrefixLen", "IPv6Gateway", "MacAddress"),
    )
    return {
        "Bridge": "",
        "SandboxID": container.sandbox_id if sandbox else "",
        "SandboxKey": sandbox.key if sandbox else "",
        "Ports": _published(endpoints, container.exposed if container.running else ()),
        **{key: legacy[key] for key in keep},
        "Networks": networks,
    }


def _endpoint_settings(
    asked: EndpointRequest, network: Network | None, endpoint: Endpoint | None, container: Container
) -> dict[str, Any]:
    """What was asked of an endpoint and, while it exists, what it has."""
    parts = (
        ("IPv4Address", asked.ip),
        ("IPv6Address", asked.ip6),
        ("LinkLocalIPs", list(asked.link_local_ips)),
    )
    fixed = {key: value for key, value in parts if value}
    ipv4, ipv6 = (endpoint.ipv4, endpoint.ipv6) if endpoint else (None, None)
    routed = network if endpoint and network and not (network.internal or network.beside) else None
    via4 = routed.subnet4.gateway if routed and routed.subnet4 else None
    via6 = routed.subnet6.gateway if routed and routed.subnet6 else None
    if endpoint and endpoint.joined:
        via4, via6 = endpoint.joined.gateway4, endpoint.joined.gateway6
    user_defined = network is not None and not network.predefined
    names = (container.name, *asked.aliases, short(container.id), container.hostname)
    return {
        "IPAMConfig": fixed or None,
        "Links": list(asked.links) or None,
        "Aliases": list(asked.aliases) or None,
        "DriverOpts": dict(endpoint.driver_options) or None if endpoint else None,
        "GwPriority": asked.gw_priority,
        "NetworkID": asked.network,
        "EndpointID": endpoint.id if endpoint else "",
        "Gateway": str(via4 or ""),
        "IPAddress": str(ipv4.ip) if ipv4 else "",
        "MacAddress": endpoint.mac if endpoint else "",
        "IPPrefixLen": ipv4.network.prefixlen if ipv4 else 0,
        "IPv6Gateway": str(via6 or ""),
        "GlobalIPv6Address": str(ipv6.ip) if ipv6 else "",
        "GlobalIPv6PrefixLen": ipv6.network.prefixlen if ipv6 else 0,
        "DNSNames": list(dict.fromkeys(n for n in names if n)) if user_defined else None,
    }
