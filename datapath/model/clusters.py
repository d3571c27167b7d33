# SPDX-License-Identifier: Apache-2.0
"""Where a cluster's store is, and where other hosts find this one, in Docker's words: `cluster-store`,
`cluster-store-opts` and `cluster-advertise` of daemon.json. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.model.parsing import Address, parse_address

if TYPE_CHECKING:
    from datapath.model.host import HostNetwork

_KEY = "cluster-store"
_OPTIONS_KEY = "cluster-store-opts"
_ADVERTISE_KEY = "cluster-advertise"
_PORT = 2379  # etcd's, as IANA has it
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*")
_PREFIX = re.compile(r"[a-zA-Z0-9._-]+(/[a-zA-Z0-9._-]+)*")
# Docker's names, and ours of what it did not have.
_CA, _CERT, _SECRET, _PATH = "kv.cacertfile", "kv.certfile", "kv.keyfile", "kv.path"
_USER, _PASSWORD = "kv.username", "kv.passwordfile"
_TTL, _HEARTBEAT = "discovery.ttl", "discovery.heartbeat"
_VXLAN_PORT = "vxlan.port"
_DEVICE = re.compile(r"[^\s/:\[\]]{1,15}")  # what a device may be called, without what stands before a port
_FILES = (_CA, _CERT, _SECRET, _PASSWORD)
_KNOWN = (*_FILES, _PATH, _USER, _TTL, _HEARTBEAT, _VXLAN_PORT)


class ClusterStore(NamedTuple):
    """`servers`: name or address, and port, of each member that clients may ask; the first that answers is asked.
    `prefix`: what all keys begin with, without the `/` at its end. Files are paths; "" is none. `ttl`: seconds after
    which a host that does not say that it lives is thought dead; it says so every `heartbeat` seconds. `port`:
    of UDP, where all hosts are to receive tunnels; 0: the usual one, or the cluster's."""

    servers: tuple[tuple[str, int], ...]
    prefix: str = "datapath/v1"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    ttl: int = 30
    heartbeat: int = 10
    port: int = 0

    @property
    def tls(self) -> bool:
        """Servers are asked over TLS."""
        return bool(self.ca_file or self.cert_file)

    def __str__(self) -> str:
        return "etcd://" + ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.servers)


def parse_cluster_store(text: str, options: Mapping[str, str]) -> ClusterStore:
    """`etcd://HOST:PORT[,HOST:PORT…][/PREFIX]` and Docker's options. ConfigError."""
    scheme, separator, rest = text.partition("://")
    if not separator or not rest:
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: expected etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")
    if scheme != "etcd":
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: {quoted(scheme)} is not served, only etcd")
    hosts, slash, prefix = rest.partition("/")
    unknown = next((name for name in options if name not in _KNOWN), None)
    if unknown is not None:
        raise ConfigError(f"{_OPTIONS_KEY}: {quoted(unknown)} is unknown: there are {', '.join(_KNOWN)}")
    for name in _FILES:
        if name in options and not options[name].startswith("/"):
            raise ConfigError(f"{_OPTIONS_KEY}: {name} {quoted(options[name])} is not an absolute path")
    if (_CERT in options) != (_SECRET in options):
        raise ConfigError(f"{_OPTIONS_KEY}: {_CERT} and {_SECRET} go together")
    if (_USER in options) != (_PASSWORD in options):
        raise ConfigError(f"{_OPTIONS_KEY}: {_USER} and {_PASSWORD} go together")
    prefix = options.get(_PATH, prefix).strip("/")
    if (slash or _PATH in options) and not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: {quoted(prefix)} cannot be the beginning of keys")
    ttl, heartbeat = _seconds(options, _TTL, 30), _seconds(options, _HEARTBEAT, 10)
    if heartbeat >= ttl:
        raise ConfigError(f"{_OPTIONS_KEY}: {_HEARTBEAT} {heartbeat} is not less than {_TTL} {ttl}")
    return ClusterStore(
        servers=tuple(_server(one, text) for one in hosts.split(",")),
        prefix=f"{prefix}/datapath/v1" if prefix else "datapath/v1",
        ca_file=options.get(_CA, ""),
        cert_file=options.get(_CERT, ""),
        key_file=options.get(_SECRET, ""),
        user=options.get(_USER, ""),
        password_file=options.get(_PASSWORD, ""),
        ttl=ttl,
        heartbeat=heartbeat,
        port=_port(options),
    )


def _server(text: str, whole: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT`, or either without a port."""
    bracket = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", text)
    found = bracket or plain
    if found is None:
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: {quoted(text)} is not HOST:PORT")
    host, port = found[1], int(found[2] or _PORT)
    if bracket is not None:
        host = str(parse_address(host, f"address in {_KEY}"))
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: {quoted(text)} is not HOST:PORT")
    if not 0 < port < 65536:
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: there is no port {port}")
    return host, port


def _port(options: Mapping[str, str]) -> int:
    text = options.get(_VXLAN_PORT)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ConfigError(f"{_OPTIONS_KEY}: invalid {_VXLAN_PORT} {quoted(text)}: expected 1 to 65535")
    return int(text)


def _seconds(options: Mapping[str, str], name: str, usual: int) -> int:
    text = options.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 86400 and len(text) <= 6):
        raise ConfigError(f"{_OPTIONS_KEY}: invalid {name} {quoted(text)}: expected 1 to 86400 seconds")
    return int(text)


# ---- this host, as others see it ------------------------------------------------------------------------


class Advertise(NamedTuple):
    """The address at which other hosts reach this one: one of its own, or the first of a device's. One of the two is
    there. A port is Docker's, by which hosts reached each other's daemon; nobody asks for one here."""

    address: Address | None = None
    device: str = ""

    def __str__(self) -> str:
        return self.device or str(self.address)


class Underlay(NamedTuple):
    """What carries packets to other hosts. `mtu`: bytes of an IP packet there; `ifindex`: of the device."""

    address: Address
    mtu: int
    ifindex: int


def parse_advertise(text: str) -> Advertise:
    """`ADDRESS[:PORT]` or `DEVICE[:PORT]`, an IPv6 address with a port in brackets. ConfigError."""
    expected = ConfigError(
        f"invalid {_ADVERTISE_KEY} {quoted(text)}: expected ADDRESS[:PORT] or DEVICE[:PORT]"
    )
    if text.count(":") > 1 and not text.startswith("["):
        return Advertise(_unicast(parse_address(text, f"address in {_ADVERTISE_KEY}"), text))
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?", text)
    if found is None:
        raise expected
    host, port = found[1], found[2]
    if port is not None and not 0 < int(port) < 65536:
        raise ConfigError(f"invalid {_ADVERTISE_KEY} {quoted(text)}: there is no port {port}")
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        return Advertise(_unicast(parse_address(host.strip("[]"), f"address in {_ADVERTISE_KEY}"), text))
    if not _DEVICE.fullmatch(host) or not host.isprintable():
        raise expected
    return Advertise(device=host)


def _unicast(address: Address, text: str) -> Address:
    if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local:
        raise ConfigError(f"invalid {_ADVERTISE_KEY} {quoted(text)}: other hosts cannot reach {address}")
    return address


def underlay(advertise: Advertise | None, observed: HostNetwork) -> Underlay:
    """The address that other hosts send to, and the device that has it. Without `cluster-advertise` it is the one that
    packets of the best default route leave with, IPv4 before IPv6, as nothing else says where other hosts are.
    ConfigError says what is missing on this host."""
    if advertise is None:
        return _by_default_route(observed)
    if advertise.device:
        index = next((i for i, name in observed.names.items() if name == advertise.device), None)
        if index is None:
            raise ConfigError(f"{_ADVERTISE_KEY}: there is no device {quoted(advertise.device)} on this host")
        address = observed.first_address(index)
        if address is None:
            raise ConfigError(
                f"{_ADVERTISE_KEY}: device {quoted(advertise.device)} has no address that other hosts could reach"
            )
        return _at(address, index, observed)
    holder = next((one for one in observed.addresses if one.interface.ip == advertise.address), None)
    if holder is None or advertise.address is None:
        raise ConfigError(f"{_ADVERTISE_KEY}: {advertise} is not an address of this host")
    return _at(advertise.address, holder.ifindex, observed)


def _by_default_route(observed: HostNetwork) -> Underlay:
    defaults = [route for route in observed.routes if not route.prefix.prefixlen and route.device]
    for route in sorted(defaults, key=lambda route: (route.prefix.version, route.metric)):
        uplink = next((one for one in observed.uplinks if one.ifindex == route.device), None)
        if uplink is None:
            continue
        address = uplink.ipv4 if route.prefix.version == 4 else uplink.ipv6
        if address is not None:
            return _at(address, route.device, observed)
    raise ConfigError(
        f'no default route says at which address other hosts reach this one: set "{_ADVERTISE_KEY}" in daemon.json'
    )


def _at(address: Address, ifindex: int, observed: HostNetwork) -> Underlay:
    device = observed.devices.get(ifindex)
    return Underlay(address, device.mtu if device else observed.default_mtu, ifindex)
