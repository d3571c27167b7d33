# SPDX-License-Identifier: Apache-2.0
"""The nouns: networks, endpoints, sandboxes, containers, and what a user asks for.

Pure values: no I/O, no clock, no randomness. Mappings inside them are never changed in place.
Times are RFC 3339 in UTC, addresses `ipaddress` objects, ports in host order, ids 64 hex digits.
Rows of the store carry a `phase`: "creating" (intent written, kernel work not finished), "ready",
"removing" (the kernel work of taking it away may not be finished), or, endpoints only, "changing" (its
ports or default routes may not be what the row says).
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any

from datapath.errors import ConfigError, quoted
from datapath.model_words import (
    TRUE_WORDS,
    parse_address,
    parse_address_or_prefix,
    parse_protocol,
    port_range,
)
from datapath.model_words import Address as Address
from datapath.model_words import Interface as Interface
from datapath.model_words import Prefix as Prefix

CREATING, READY, REMOVING, CHANGING = "creating", "ready", "removing", "changing"

# Docker's driver options that mean something here.
OPT_NAME = "com.docker.network.bridge.name"
OPT_DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
OPT_ICC = "com.docker.network.bridge.enable_icc"
OPT_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPT_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPT_MTU = "com.docker.network.driver.mtu"
OPT_IFACE_PREFIX = "com.docker.network.container_iface_prefix"
OPT_ENDPOINT_IFNAME = "com.docker.network.endpoint.ifname"

# What forwards a bridge network's packets: our own option and its values.
OPT_MODE = "com.datapath.mode"
EBPF, IPTABLES, NFTABLES = MODES = ("ebpf", "iptables", "nftables")
# What pairs of devices join its members to the host, by the kernel's names: our own too.
OPT_DEVICE = "com.datapath.device"
VETH, NETKIT = PAIRS = ("veth", "netkit")


def short(ident: str) -> str:
    """The 12 digits of an id that users are shown."""
    return ident[:12]


# ---- networks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subnet:
    """One address range of a network. `configured`: the user chose it (else it came from a pool)."""

    prefix: Prefix
    gateway: Address | None = None
    ip_range: Prefix | None = None
    aux: Mapping[str, Address] = field(default_factory=dict)
    configured: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A set of endpoints that may talk. `number` is the kernel's index (0: the driver needs none), `device`
    the gateway device on the host, `realised` whether the kernel side has been built."""

    id: str
    name: str
    number: int
    driver: str = "bridge"
    scope: str = "local"
    created: str = ""
    subnets: tuple[Subnet, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    predefined: bool = False
    phase: str = CREATING
    realised: bool = False

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def icc(self) -> bool:
        """Members may talk to each other."""
        return self.options.get(OPT_ICC, "true") in TRUE_WORDS

    @property
    def masquerade(self) -> bool:
        """Packets to the outside leave with the host's address."""
        return self.options.get(OPT_MASQUERADE, "true") in TRUE_WORDS

    @property
    def mode(self) -> str:
        """One of MODES, for a bridge network; a classic one has a Linux bridge and packet filter rules."""
        return self.options.get(OPT_MODE, EBPF)

    @property
    def classic(self) -> bool:
        return self.mode != EBPF

    @property
    def pair(self) -> str:
        """One of PAIRS: the kind of each member's devices. The gateway device is a veth pair in any case."""
        return self.options.get(OPT_DEVICE, VETH)

    @property
    def mtu(self) -> int | None:
        """Bytes of an IP packet if the options say so; None: as large as the host's default route takes."""
        value = self.options.get(OPT_MTU, "")
        return int(value) or None if value else None

    @property
    def host_binding(self) -> Address | None:
        """The host address that ports are published at when the user names none; None: every address."""
        value = self.options.get(OPT_HOST_BINDING, "")
        address = ip_address(value) if value else None
        return None if address is None or address.is_unspecified else address

    @property
    def iface_prefix(self) -> str:
        """Containers' devices are called this and a number."""
        return self.options.get(OPT_IFACE_PREFIX, "eth")

    @property
    def subnet4(self) -> Subnet | None:
        return next((s for s in self.subnets if s.prefix.version == 4), None)

    @property
    def subnet6(self) -> Subnet | None:
        return next((s for s in self.subnets if s.prefix.version == 6), None)


# ---- ports ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortMapping:
    """`count` consecutive host ports and the container ports that they lead to.

    `host_ip` None: every address of the host. `host_port` 0: to be chosen. `host_port_last` not 0 (then
    `count` is 1): to be chosen from host_port … host_port_last. `allow` and `deny`: who may connect, the
    longest prefix decides; `filter`: the number of these rules in the packet programs, 0: there are none.
    """

    proto: str
    host_ip: Address | None
    host_port: int
    container_port: int
    count: int = 1
    host_port_last: int = 0
    allow: tuple[Prefix, ...] = ()
    deny: tuple[Prefix, ...] = ()
    filter: int = 0

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions that it is published for, where the container has them."""
        return (4, 6) if self.host_ip is None else (self.host_ip.version,)

    @property
    def open(self) -> PortMapping:
        """The same for everybody: what identifies the mapping."""
        return dataclasses.replace(self, allow=(), deny=(), filter=0)

    def admits(self, source: Address) -> bool:
        """A client with that address may connect, as the packet programs decide it."""
        rules = [(p.prefixlen, True) for p in self.allow if _inside(source, p)]
        rules += [(p.prefixlen, False) for p in self.deny if _inside(source, p)]
        return max(rules)[1] if rules else not self.allow

    @property
    def concrete(self) -> bool:
        """The host ports are known."""
        return self.host_port != 0 and self.host_port_last == 0

    @classmethod
    def parse(cls, text: str) -> PortMapping:
        """`[hostIP:][hostPort[-range]:]containerPort[-range][/proto]` as `docker run -p` takes it, and behind it
        `,allow=PREFIX` and `,deny=PREFIX` as often as wanted."""
        spec, comma, rules = text.partition(",")
        if comma:
            allow, deny = parse_rules(rules)
            return dataclasses.replace(cls.parse(spec), allow=allow, deny=deny)
        head, _, last = text.rpartition(":")
        ports, _, proto_text = last.partition("/")
        if not ports:
            raise ConfigError(f"no port specified: {quoted(text)}")
        proto = parse_protocol(proto_text, text)
        ip_text, colon, host = head.rpartition(":")
        host_ip = _host_ip(ip_text, text) if colon and ip_text else None
        try:
            first, last_port = port_range(ports)
            if first == 0:
                raise ValueError(ports)
        except ValueError:
            raise ConfigError(f"invalid containerPort {quoted(ports)} in {quoted(text)}") from None
        try:
            host_first, host_last = port_range(host) if host else (0, 0)
            if host_first == 0 and host_last != 0:
                raise ValueError(host)
        except ValueError:
            raise ConfigError(f"invalid hostPort {quoted(host)} in {quoted(text)}") from None
        count = last_port - first + 1
        if host_first and host_last - host_first != count - 1:
            if count != 1:
                message = f"invalid ranges specified for container and host Ports: {ports} and {host}"
                raise ConfigError(message + " (they must be equally long)")
            return cls(proto, host_ip, host_first, first, 1, host_last)
        return cls(proto, host_ip, host_first, first, count)

    def expand(self) -> Iterator[tuple[Address | None, int, int, str]]:
        """(host address, host port, container port, protocol) of each single port; needs concrete ports."""
        for i in range(self.count):
            host_port = self.host_port + i if self.host_port else 0
            yield self.host_ip, host_port, self.container_port + i, self.proto

    def at(self, host_port: int, count: int = 1) -> PortMapping:
        """The same mapping with its host port decided."""
        return dataclasses.replace(self, host_port=host_port, count=count, host_port_last=0)

    def __str__(self) -> str:
        ip = "" if self.host_ip is None else str(self.host_ip)
        if self.host_ip is not None and self.host_ip.version == 6:
            ip = f"[{ip}]"
        last = self.host_port_last or self.host_port + self.count - 1
        host = _range_text(self.host_port, last) if self.host_port else ""
        left = f"{ip}:{host}:" if ip else f"{host}:" if host else ""
        ports = f"{_range_text(self.container_port, self.container_port + self.count - 1)}/{self.proto}"
        return ",".join((f"{left}{ports}", *([self.rules] if self.rules else [])))

    @property
    def rules(self) -> str:
        """allow=10.0.0.0/8,deny=10.6.6.0/24; "" when everybody may connect."""
        return ",".join([f"allow={p}" for p in self.allow] + [f"deny={p}" for p in self.deny])


def parse_rules(text: str) -> tuple[tuple[Prefix, ...], tuple[Prefix, ...]]:
    """`allow=PREFIX,deny=PREFIX,…` as (allow, deny), each once; an address is a prefix too. "": no rules."""
    rules: dict[str, list[Prefix]] = {"allow": [], "deny": []}
    for word in text.split(",") if text else ():
        key, equals, value = word.partition("=")
        if key not in rules or not equals:
            raise ConfigError(f"invalid rule {quoted(word)} of a port: expected allow=PREFIX or deny=PREFIX")
        if value:  # as in `allow=`, which says that there is none
            rules[key].append(parse_address_or_prefix(value, f"{key} prefix"))
    both = set(rules["allow"]) & set(rules["deny"])
    if both:
        raise ConfigError(f"a port cannot both allow and deny {min(map(str, both))}")
    return tuple(dict.fromkeys(rules["allow"])), tuple(dict.fromkeys(rules["deny"]))


def _inside(address: Address, prefix: Prefix) -> bool:
    return address.version == prefix.version and address in prefix


def _host_ip(text: str, spec: str) -> Address:
    if text.startswith("[") != text.endswith("]"):
        raise ConfigError(f"invalid IP address {quoted(text)} in port {quoted(spec)}")
    return parse_address(text.removeprefix("[").removesuffix("]"), f"IP address in port {quoted(spec)}")


def _range_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


# ---- endpoints, sandboxes, containers -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Joins one sandbox to one network by a veth pair. `number` is never used twice on a host, `slot` is the
    member's place in its network. `gateway4`, `gateway6`: the sandbox's default route of that family is here.
    `ports` are the published ones, with concrete host ports; `static`: the user chose the address(es)."""

    id: str
    network_id: str
    sandbox_id: str
    number: int
    slot: int
    ifname: str
    host_ifname: str
    mac: str
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None
    aliases: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    gateway4: bool = False
    gateway6: bool = False
    gw_priority: int = 0
    ports: tuple[PortMapping, ...] = ()
    exposed: tuple[tuple[int, str], ...] = ()
    static4: bool = False
    static6: bool = False
    driver_options: Mapping[str, str] = field(default_factory=dict)
    host_ifindex: int = 0
    phase: str = CREATING

    @property
    def gateway(self) -> bool:
        """A default route of the sandbox is here."""
        return self.gateway4 or self.gateway6

    @property
    def ways(self) -> tuple[int, ...]:
        """The IP versions whose default route is here, and so the published ports."""
        return (4,) * self.gateway4 + (6,) * self.gateway6

    def serves(self, mapping: PortMapping) -> bool:
        """The mapping, or a part of it, leads here."""
        return any(version in self.ways for version in mapping.families)

    @property
    def linklocal(self) -> IPv6Address:
        """The address that the kernel gives the container's device (EUI-64 of its MAC)."""
        return linklocal_of(self.mac)


def linklocal_of(mac: str) -> IPv6Address:
    """fe80::/64 and the modified EUI-64 of the MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface_id = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface_id)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network stack, called after the container it was made for. `key` is /proc/PID/ns/net of its first
    process, "" while there is none, and "host" for the host's own."""

    id: str
    key: str = ""
    phase: str = CREATING


@dataclass(frozen=True, slots=True)
class Link:
    """--link: who has it may reach the container `server` (an id), also under the name `alias`."""

    server: str
    alias: str


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """What a user asks of one endpoint, as typed. In `Container.networks` the network is an id."""

    network: str
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    gw_priority: int = 0
    driver_options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> EndpointRequest:
        """The value of --network: a name, or Docker's long form `name=NET,alias=A,ip=…,mac-address=…`."""
        if "=" not in text:
            return cls(text)
        one = {"name": "network", "ip": "ip", "ip6": "ip6", "mac-address": "mac"}
        many = {"alias": "aliases", "link": "links", "driver-opt": "driver_options"}
        found: dict[str, Any] = {}
        if not text.isprintable():
            raise ConfigError(f"invalid --network {quoted(text)}")
        for part in next(csv.reader([text])):
            key, equals, value = part.partition("=")
            key, value = key.strip().lower(), value.strip()
            if not equals:
                raise ConfigError(f"invalid field {quoted(part)} of --network: expected key=value")
            if key in one:
                found[one[key]] = value
            elif key in many:
                found[many[key]] = (*found.get(many[key], ()), value)
            elif key == "gw-priority":
                if not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
                    raise ConfigError(f"invalid gw-priority {quoted(value)}: expected a whole number")
                found["gw_priority"] = int(value)
            else:
                raise ConfigError(f"invalid field key {quoted(key)} of --network")
        if not found.get("network"):
            raise ConfigError(f"network name is not specified in --network {quoted(text)}: add name=…")
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Container:
    """A process with a name and a network stack. `network_mode`: bridge, host, none, container:<id> or a
    user-defined network's name. `published` is as requested, `ports` what came of it (concrete; while the
    sandbox lives its gateway endpoint carries them). `pid_start`: field 22 of /proc/PID/stat, clock ticks."""

    id: str
    name: str
    created: str
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    network_mode: str = "bridge"
    networks: tuple[EndpointRequest, ...] = ()
    sandbox_id: str = ""
    pid: int = 0
    pid_start: int = 0
    shim_pid: int = 0
    status: str = "created"
    exit_code: int | None = None
    error: str = ""
    started: str = ""
    finished: str = ""
    exposed: tuple[tuple[int, str], ...] = ()
    published: tuple[PortMapping, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    links: tuple[Link, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    rootfs: str = ""
    auto_remove: bool = False
    tty: bool = False
    open_stdin: bool = False
    stop_signal: str = "SIGTERM"
    log_path: str = ""
    phase: str = CREATING

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def shares(self) -> bool:
        """Uses the stack of another container."""
        return self.network_mode.startswith("container:")


# ---- requests, one per command: strings as the user typed them ------------------------------------


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """network create. Gateways, ip ranges and aux addresses ("name=ip") belong to the subnet around them."""

    name: str
    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    aux_addresses: tuple[str, ...] = ()
    internal: bool = False
    ipv4: bool = True
    ipv6: bool = False
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    attachable: bool = False
    ipam_driver: str = "default"
    ipam_options: tuple[str, ...] = ()
    scope: str = ""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """run. No networks: the default one. A network may also be "host", "none" or "container:NAME"."""

    argv: tuple[str, ...]
    name: str = ""
    networks: tuple[EndpointRequest, ...] = ()
    publish: tuple[str, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    add_host: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    rootfs: str = ""
    auto_remove: bool = False
    detach: bool = False
    tty: bool = False
    interactive: bool = False
    stop_signal: str = ""


# ---- what the host looks like ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was observed of the host. `prefixes`: networks of its addresses and routes; a default route is
    no obstacle and ignored. `default_mtu`: of its default route's device, bytes."""

    prefixes: tuple[Prefix, ...] = ()
    addresses: frozenset[Address] = frozenset()
    default_mtu: int = 1500
    default_route: bool = True
    devices: frozenset[str] = frozenset()
    uplinks: tuple[str, ...] = ()
