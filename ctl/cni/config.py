# SPDX-License-Identifier: Apache-2.0
"""What a network's configuration and the runtime's wishes for one container mean, as requests of the library.

Keys of `runtimeConfig` are read without regard to case: containerd sends `HostPort`, podman `hostPort`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

from datapath.model.attachments import AttachmentRequest
from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import (
    AT_GATEWAY,
    EBPF,
    OPT_BESIDE,
    OPT_ENDPOINT_IFNAME,
    OPT_ICC,
    OPT_IFACE_PREFIX,
    OPT_MASQUERADE,
    OPT_MODE,
    OPT_MTU,
    OPT_NAME,
    OPT_RESOLVER,
    NetworkRequest,
)
from datapath.model.parsing import PORT_PROTOCOLS

from . import bandwidth, services
from .protocol import ENVIRONMENT, INVALID, Call, CniError, unsupported

OWNER = "cni"

# Keys of every plugin's configuration; what else begins with "cni.dev/" is the runtime's, too.
_GENERAL = {
    *("cniVersion", "cniVersions", "name", "type", "args", "ipam", "dns", "capabilities", "runtimeConfig"),
    *("prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins"),
}
# Keys of our own: what kind of value each has.
_OWN: Mapping[str, tuple[type, ...]] = {
    "network": (str,),
    "subnet": (str,),
    "gateway": (str,),
    "ipRange": (str,),
    "subnets": (list,),
    "ipv6": (bool,),
    "bridge": (str,),
    "mtu": (int,),
    "internal": (bool,),
    "icc": (bool,),
    "ipMasq": (bool,),
    "options": (dict,),
    "sharedPorts": (bool,),
    "service": (str,),
    **dict.fromkeys(bandwidth.KEYS, (int,)),
}
# Keys of the plugin `bridge` that change nothing here, and the values for which that is so.
_OF_BRIDGE: Mapping[str, tuple[object, ...]] = {
    "isGateway": (True,),
    "isDefaultGateway": (True, False),
    "hairpinMode": (True, False),
    "forceAddress": (False,),
    "promiscMode": (False,),
    "macspoofchk": (True, False),
    "enabledad": (False,),
    "vlan": (0,),
    "vlanTrunk": ([],),
    "preserveDefaultVlan": (True, False),
    "ipMasqBackend": ("", "iptables", "nftables"),
    "disableContainerInterface": (False,),
    "portIsolation": (False,),
}
# What a route of an IPAM plugin has, and what else may stand there: the values that every route has.
_HOP = ("dst", "gw")
_ROUTE: Mapping[str, object] = {"table": 254}
# Wishes that are served; and those that say nothing of the network, or that an IPAM plugin serves.
_WISHES = {"portmappings", "ips", "mac", "aliases", "dns", "bandwidth"}
_IGNORED = {"cgrouppath", services.ANNOTATIONS}
_OF_IPAM = {"ipranges"}
_CREATES = _OWN.keys() - {"network", "sharedPorts", "service", *bandwidth.KEYS}


def check(call: Call) -> None:
    """Refuses a configuration that cannot be served. CniError."""
    for key, value in call.config.items():
        if key in _OWN:
            if not isinstance(value, _OWN[key]) or (isinstance(value, bool) and bool not in _OWN[key]):
                raise CniError(INVALID, f"{key}: {json.dumps(value)} is no {_OWN[key][0].__name__}")
        elif key in _OF_BRIDGE:
            if value not in _OF_BRIDGE[key]:
                raise unsupported(key, value, "datapath has no Linux bridge")
        elif key not in _GENERAL and not key.startswith("cni.dev/"):
            raise unsupported(key, value, f"there are {', '.join(sorted(_OWN))}")
    if "network" in call.config and (besides := sorted(_CREATES & call.config.keys())):
        raise CniError(INVALID, f"network: that network is there already, so {besides[0]} cannot be chosen")
    for key, value in wishes(call).items():
        own = key in _OF_IPAM and "ipam" not in call.config
        if value and (own or key not in _WISHES | _IGNORED | _OF_IPAM):
            raise unsupported(f"runtimeConfig.{key}", value, f"there are {', '.join(sorted(_WISHES))}")


def wishes(call: Call) -> dict[str, Any]:
    """The runtime's wishes for this container, by their lower-case keys."""
    given = call.config.get("runtimeConfig") or {}
    if not isinstance(given, dict):
        raise CniError(INVALID, f"runtimeConfig: {json.dumps(given)} is no object")
    return {key.lower(): value for key, value in given.items()}


def network_name(call: Call) -> str:
    """What the network is called here."""
    return str(call.config.get("network") or call.config["name"])


def key(call: Call, container: str = "", ifname: str = "") -> str:
    """By which the attachment is known: of the call, or of another container of the same network."""
    return "/".join((call.config["name"], container or call.container, ifname or call.ifname))


def attachment(call: Call, ipam: Mapping[str, Any] | None) -> AttachmentRequest:
    """What the call asks for. `ipam`: the result of the plugin that manages addresses; None: that is for us to do."""
    if not _truth(call.args.get("IgnoreUnknown", "")):
        for name in call.args:
            if name not in ("IgnoreUnknown", "IP", "MAC"):
                raise CniError(ENVIRONMENT, f"CNI_ARGS: {name} is unknown: there are IP and MAC")
    given = wishes(call)
    listed = [one.get("address", "") for one in _ips(ipam)] if ipam is not None else _asked_ips(call, given)
    by_version: dict[int, str] = {}
    for text in listed:
        address = _interface(text)
        if address.version in by_version:
            raise unsupported("ips", listed, "a container has one address of each IP version on a network")
        by_version[address.version] = str(address.ip)
    aliases = given.get("aliases") or ()
    if isinstance(aliases, dict):  # podman sends those of all the container's networks
        aliases = aliases.get(call.config["name"]) or ()
    return AttachmentRequest(
        owner=OWNER,
        key=key(call),
        path=call.netns,
        sandbox=call.container,
        name=_name(call),
        network=None if "network" in call.config else _network(call, ipam),
        endpoint=EndpointRequest(
            network_name(call),
            ip=by_version.get(4, ""),
            ip6=by_version.get(6, ""),
            mac=str(given.get("mac") or _of_args(call, "mac") or call.args.get("MAC", "")),
            aliases=tuple(_strings("aliases", aliases)),
            driver_options=(
                f"{OPT_ENDPOINT_IFNAME}={call.ifname}",
                *_limits(call, given),
                *services.options(call, given, _of_args(call, "service")),
            ),
        ),
        ports=tuple(ports(given.get("portmappings"))),
        shared=shared(call),
        allots=ipam is not None,
        labels=services.labels(_of_args(call, "labels")),
    )


def beside(call: Call, previous: Mapping[str, Any]) -> AttachmentRequest:
    """What a call behind another plugin asks for: the ports of the container that this one's result is about, by a
    device and a network of their own, as its addresses and default routes are that plugin's. CniError."""
    for name in ("network", "ipam", "internal", "service"):
        if call.config.get(name):
            raise CniError(
                INVALID, f"{name}: the container is on another plugin's network, which has its own"
            )
    versions = {_interface(one.get("address", "")).version for one in _ips(previous)}
    if not versions:
        raise CniError(INVALID, "prevResult has no addresses: ports lead to a container that has one")
    config = {"ipv6": 6 in versions, "icc": False, "ipMasq": False, **call.config}
    network = _request(config, *_own_subnets(config))
    options = (f"{OPT_BESIDE}=true", f"{OPT_IFACE_PREFIX}=dp", *network.options)
    return AttachmentRequest(
        owner=OWNER,
        key=key(call),
        path=call.netns,
        sandbox=call.container,
        name=_name(call),
        network=replace(network, ipv4=network.ipv4 and 4 in versions, options=options),
        endpoint=EndpointRequest(network.name),
        ports=tuple(ports(wishes(call).get("portmappings"))),
        shared=shared(call),
    )


def shared(call: Call) -> bool:
    """Whether the runtime binds sockets of its own to published ports, as podman does: it names a pod and no
    namespace, which Kubernetes always has."""
    return bool(
        call.config.get("sharedPorts", "K8S_POD_NAME" in call.args and "K8S_POD_NAMESPACE" not in call.args)
    )


def _limits(call: Call, given: Mapping[str, Any]) -> Iterator[str]:
    """The container's bandwidth: what the runtime wishes, else what the configuration has."""
    configured = {name: call.config[name] for name in bandwidth.KEYS if name in call.config}
    return bandwidth.options(given.get("bandwidth") or configured)


def refuse_limits(call: Call) -> None:
    """Behind another plugin: the container's packets are that one's. CniError."""
    if wanted := list(_limits(call, wishes(call))):
        raise unsupported("bandwidth", wanted, "the container is on another plugin's network")


def _name(call: Call) -> str:
    """How users are shown the sandbox, which is what the others on the network find it by."""
    pod = "/".join(filter(None, (call.args.get("K8S_POD_NAMESPACE"), call.args.get("K8S_POD_NAME"))))
    return pod if pod.isprintable() and pod else call.container[: 12 if len(call.container) == 64 else None]


def ports(given: object) -> Iterator[str]:
    """Port mappings as Docker's `-p` has them; those without a host port are none. CniError."""
    for one in _list("portMappings", given):
        if not isinstance(one, dict):
            raise CniError(INVALID, f"portMappings: {json.dumps(one)} is no object")
        fields = {name.lower(): value for name, value in one.items()}
        host, inside = fields.get("hostport") or 0, fields.get("containerport")
        if not isinstance(host, int) or not isinstance(inside, int):
            raise CniError(INVALID, f"portMappings: {json.dumps(one)} has no ports")
        if not host:
            continue
        address = str(fields.get("hostip") or "")
        address = f"[{address}]" if ":" in address else address
        protocol = str(fields.get("protocol") or "tcp").lower()
        if protocol not in PORT_PROTOCOLS:
            raise unsupported(
                "runtimeConfig.portMappings", one, f"protocols are {' and '.join(PORT_PROTOCOLS)}"
            )
        yield f"{address}{':' if address else ''}{host}:{inside}/{protocol}"


def dns(call: Call, ipam: Mapping[str, Any] | None, resolver: str, domain: str) -> dict[str, Any]:
    """The result's `dns`: what the runtime wishes, else what the configuration has, else what the IPAM plugin says;
    else the resolver and the domain, if names are wanted."""
    names = {"nameservers": "nameservers", "servers": "nameservers", "domain": "domain", "search": "search"}
    names |= {"searches": "search", "options": "options"}
    found: dict[str, Any] = {}
    if resolver and (_declares_names(call.config) or wishes(call).get("aliases")):
        found = {"nameservers": [resolver], **({"search": [domain]} if domain else {})}
    for source in ((ipam or {}).get("dns"), call.config.get("dns"), wishes(call).get("dns")):
        if source is not None and not isinstance(source, dict):
            raise CniError(INVALID, f"dns: {json.dumps(source)} is no object")
        for name, value in (source or {}).items():
            if value and name.lower() in names:
                found[names[name.lower()]] = value
    return found


def _declares_names(config: Mapping[str, Any]) -> bool:
    """The configuration tells the runtime that containers may be given names here."""
    capabilities = config.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("aliases") is True


# ---- the network ---------------------------------------------------------------------------------------


def _network(call: Call, ipam: Mapping[str, Any] | None) -> NetworkRequest:
    return _request(call.config, *(_own_subnets(call.config) if ipam is None else _subnets_of(ipam)))


def _request(
    config: Mapping[str, Any], subnets: list[str], gateways: list[str], ranges: list[str]
) -> NetworkRequest:
    versions = {_interface(text).version for text in subnets}
    options = {str(name): value for name, value in config.get("options", {}).items()}
    for key_, option in (
        ("bridge", OPT_NAME),
        ("mtu", OPT_MTU),
        ("icc", OPT_ICC),
        ("ipMasq", OPT_MASQUERADE),
    ):
        if key_ in config and (config[key_] or key_ not in ("bridge", "mtu")):
            options[option] = config[key_]
    if _declares_names(config) and options.get(OPT_MODE, EBPF) == EBPF:  # podman: see the plugin for netavark
        options.setdefault(OPT_RESOLVER, AT_GATEWAY)
    return NetworkRequest(
        config["name"],
        subnets=tuple(subnets),
        gateways=tuple(gateways),
        ip_ranges=tuple(ranges),
        internal=bool(config.get("internal")),
        ipv4=4 in versions or not versions,
        ipv6=6 in versions or bool(config.get("ipv6")),
        options=tuple(f"{name}={_word(value)}" for name, value in options.items()),
        owner=OWNER,
    )


def _own_subnets(config: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Subnets, gateways and ranges that the configuration gives."""
    single = {name: config[name] for name in ("subnet", "gateway", "ipRange") if name in config}
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for one in ([single] if single else []) + list(config.get("subnets", ())):
        fields = {"subnet": one} if isinstance(one, str) else one
        if not isinstance(fields, dict) or fields.keys() - {"subnet", "gateway", "ipRange"}:
            raise CniError(
                INVALID, f"subnets: {json.dumps(one)} is no subnet: there are subnet, gateway and ipRange"
            )
        for name, there in zip(("subnet", "gateway", "ipRange"), found, strict=True):
            if name in fields:
                there.append(str(fields[name]))
    return found


def _subnets_of(ipam: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """The same as the addresses that an IPAM plugin has given imply it."""
    subnets, gateways = [], []
    for one in _ips(ipam):
        subnets.append(str(_interface(one.get("address", "")).network))
        if one.get("gateway"):
            gateways.append(str(one["gateway"]))
    if not subnets:
        raise CniError(INVALID, "the IPAM plugin has given no address: a container needs one here")
    for route in _list("routes", ipam.get("routes")):
        fields = route if isinstance(route, dict) else {}
        if fields.get("gw") and fields["gw"] not in gateways:
            raise unsupported("ipam.routes", route, "all routes lead to the network's gateway")
        if any(value and value != _ROUTE.get(name) for name, value in fields.items() if name not in _HOP):
            raise unsupported("ipam.routes", route, "there are dst and gw")
    return subnets, gateways, []


def _ips(ipam: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [one for one in _list("ips", ipam.get("ips")) if isinstance(one, dict)]


def _asked_ips(call: Call, given: Mapping[str, Any]) -> list[str]:
    asked = given.get("ips") or _of_args(call, "ips") or [x for x in call.args.get("IP", "").split(",") if x]
    return list(_strings("ips", asked))


def _of_args(call: Call, name: str) -> Any:
    """`args.cni` of the configuration, which came before runtimeConfig."""
    args = call.config.get("args")
    cni = args.get("cni") if isinstance(args, dict) else None
    return cni.get(name) if isinstance(cni, dict) else None


# ---- values --------------------------------------------------------------------------------------------


def _interface(text: object) -> Any:
    try:
        return ip_interface(str(text))
    except ValueError:
        raise CniError(INVALID, f"{json.dumps(text)} is no IP address") from None


def _list(name: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CniError(INVALID, f"{name}: {json.dumps(value)} is no list")
    return value


def _strings(name: str, value: object) -> Iterator[str]:
    for one in _list(name, list(value) if isinstance(value, tuple) else value):
        if not isinstance(one, str):
            raise CniError(INVALID, f"{name}: {json.dumps(one)} is no text")
        yield one


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _truth(text: str) -> bool:
    return text.lower() in ("1", "true")
