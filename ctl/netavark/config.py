# SPDX-License-Identifier: Apache-2.0
"""What podman says of a network and of a container on it, as requests of the library. ConfigError: it cannot be.

The names of fields are netavark's (`src/network/types.rs` there); a field that is null is as good as not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from datapath.errors import ConfigError, quoted
from datapath.model.attachments import AttachmentRequest
from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import (
    AT_GATEWAY,
    EBPF,
    OPT_DOMAIN,
    OPT_ENDPOINT_IFNAME,
    OPT_MODE,
    OPT_MTU,
    OPT_NAME,
    OPT_NAMES,
    OPT_RESOLVER,
    OPT_SERVICE,
    NetworkRequest,
)
from datapath.model.parsing import parse_address, parse_prefix

OWNER = "podman"
IPAM = "host-local"  # podman's own address management
OPT_NETWORK = "com.datapath.network"  # a network that datapathctl has created, which podman's stands for
DOMAIN = "dns.podman"  # containers of podman's own networks are found below it
# Options of podman's bridge driver that mean something here; no network of ours reaches another one anyway.
_OPTIONS = {"mtu": OPT_MTU}
_IGNORED = {"isolate"}
_ID = re.compile(r"[0-9a-f]{64}")  # as podman has them
_OURS = ("com.docker.network.", "com.datapath.")


def elsewhere(given: Mapping[str, Any]) -> str:
    """The network of datapathctl's, of several hosts perhaps, that podman's stands for; "": it is podman's own."""
    options = dict(given.get("options") or {})
    options.pop(OPT_SERVICE, None)
    name = str(options.pop(OPT_NETWORK, ""))
    if not name:
        return ""
    if options:
        raise ConfigError(f"option {quoted(next(iter(options)))}: network {name} has its own options")
    if given.get("subnets"):
        raise ConfigError(f"subnets are those of network {name}: they cannot be chosen")
    driver = (given.get("ipam_options") or {}).get("driver")
    if driver != "none":
        raise ConfigError(f"addresses are those of network {name}: add --ipam-driver none")
    return name


def network(given: Mapping[str, Any]) -> NetworkRequest:
    """The network, with the subnets that it has, if any."""
    _refuse_ipam(given)
    subnets, gateways = [], []
    for one in _list(given, "subnets"):
        prefix = parse_prefix(str(_field(one, "subnet")), "subnet")
        subnets.append(str(prefix))
        if one.get("gateway"):
            gateways.append(str(one["gateway"]))
    options = dict(_options(given))
    if given.get("dns_enabled") is False:
        options[OPT_NAMES] = "false"
    elif options.get(OPT_MODE, EBPF) == EBPF:  # others have no names
        # podman takes a network's resolver out of resolv.conf when the network is left: each has one of its own.
        options = {OPT_DOMAIN: DOMAIN, OPT_RESOLVER: AT_GATEWAY, **options}
    if given.get("network_interface"):
        options[OPT_NAME] = str(given["network_interface"])
    for route in _list(given, "routes"):
        if str(_field(route, "gateway")) not in gateways:
            raise ConfigError(
                f"route {json.dumps(route)} is not possible: all routes lead to the gateway of the network"
            )
    versions = {parse_prefix(text, "subnet").version for text in subnets}
    return NetworkRequest(
        str(_field(given, "name")),
        subnets=tuple(subnets),
        gateways=tuple(gateways),
        internal=given.get("internal") is True,
        ipv4=4 in versions or not versions,
        ipv6=6 in versions or (given.get("ipv6_enabled") is True and versions != {4}),
        options=tuple(f"{name}={value}" for name, value in options.items()),
        owner=OWNER,
        ident=ident if _ID.fullmatch(ident := str(given.get("id") or "")) else "",
    )


def _refuse_ipam(given: Mapping[str, Any]) -> None:
    driver = (given.get("ipam_options") or {}).get("driver") or IPAM
    if driver != IPAM:
        raise ConfigError(
            f"IPAM driver {quoted(str(driver))} is not possible: a container needs an address of {IPAM}"
        )


def _options(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in (given.get("options") or {}).items():
        if name == OPT_SERVICE:
            continue  # of each of its containers
        if name in _OPTIONS or name.startswith(_OURS):
            yield _OPTIONS.get(name, name), str(value)
        elif name not in _IGNORED:
            there = ", ".join((*_OPTIONS, *(f"{begin}…" for begin in _OURS)))
            raise ConfigError(f"option {quoted(name)} of driver datapath is unknown: there are {there}")


def key(given: Mapping[str, Any]) -> str:
    """By which an attachment is known."""
    there = given.get("network") or {}
    return f"{_field(given, 'container_id')}/{there.get('id') or _field(there, 'name')}"


def attachment(given: Mapping[str, Any], path: str) -> AttachmentRequest:
    """The container at the namespace's path, on the network."""
    there, wanted = _object(given, "network"), _object(given, "network_options")
    known = elsewhere(there)
    asked = None if known else network(there)
    addresses = {}
    for text in _list(wanted, "static_ips"):
        address = parse_address(str(text), "static_ips")
        addresses[address.version] = str(address)
    if asked is not None and (not asked.subnets or not addresses):
        raise ConfigError(f"network {asked.name} has no addresses: create it again, with driver datapath")
    options = {str(name): str(value) for name, value in (wanted.get("options") or {}).items()}
    if service := (there.get("options") or {}).get(OPT_SERVICE):
        options.setdefault(OPT_SERVICE, str(service))
    options[OPT_ENDPOINT_IFNAME] = str(_field(wanted, "interface_name"))
    container = str(_field(given, "container_id"))
    return AttachmentRequest(
        owner=OWNER,
        key=key(given),
        path=path,
        sandbox=container,
        name=str(given.get("container_name") or container[:12]),
        network=asked,
        endpoint=EndpointRequest(
            asked.name if asked is not None else known,
            ip=addresses.get(4, ""),
            ip6=addresses.get(6, ""),
            mac=str(wanted.get("static_mac") or ""),
            aliases=tuple(str(alias) for alias in _list(wanted, "aliases")),
            driver_options=tuple(f"{name}={value}" for name, value in options.items()),
            dns=tuple(str(server) for server in _list(there, "network_dns_servers")),
        ),
        ports=tuple(ports(_list(given, "port_mappings"))),
        shared=True,
        allots=asked is not None,
        again=True,
    )


def ports(mappings: list[Mapping[str, Any]]) -> Iterator[str]:
    """As Docker's `-p` has them."""
    for one in mappings:
        host, inside = _number(one, "host_port"), _number(one, "container_port")
        more = max(_number(one, "range"), 1) - 1
        address = str(one.get("host_ip") or "")
        address = f"[{address}]" if ":" in address else address
        span = f"{host}-{host + more}:{inside}-{inside + more}" if more else f"{host}:{inside}"
        yield f"{address}{':' if address else ''}{span}/{str(one.get('protocol') or 'tcp').lower()}"


def _number(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name) or 0
    if not isinstance(value, int):
        raise ConfigError(f"{name} is {json.dumps(value)}, which is no number")
    return value


def _field(given: Any, name: str) -> Any:
    if not isinstance(given, dict) or not given.get(name):
        raise ConfigError(f"{name} is missing in {quoted(json.dumps(given))}")
    return given[name]


def _object(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = _field(given, name)
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {quoted(json.dumps(found))}, which is no object")
    return found


def _list(given: Any, name: str) -> list[Any]:
    found = given.get(name) or []
    if not isinstance(found, list):
        raise ConfigError(f"{name} is {quoted(json.dumps(found))}, which is no list")
    return found
