# SPDX-License-Identifier: Apache-2.0
"""Parses single arguments: addresses, prefixes, ports, truth values. All functions raise ConfigError. Pure."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from datapath.errors import ConfigError, quoted

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

# The numbers that IP headers have for protocols (IPPROTO_*), by name; and those of the protocols that have ports.
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
PORT_PROTOCOLS = {name: PROTOCOLS[name] for name in ("tcp", "udp")}

TRUE_WORDS = {"1", "t", "T", "TRUE", "true", "True"}
FALSE_WORDS = {"0", "f", "F", "FALSE", "false", "False"}
# What may stand in a hosts file, and be asked for.
HOSTNAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?")


def parse_bool(text: str, what: str) -> bool:
    """What Docker (Go's ParseBool) takes for a truth value."""
    if text in TRUE_WORDS:
        return True
    if text in FALSE_WORDS:
        return False
    raise ConfigError(f"invalid value {quoted(text)} for {what}: expected true or false")


def parse_address(text: str, what: str = "IP address") -> Address:
    """An address without prefix length or zone. A mapped one (::ffff:a.b.c.d) becomes IPv4."""
    try:
        if "%" in text:
            raise ValueError("zone")
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"invalid {what}: {quoted(text)}") from None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_interface(text: str, what: str) -> Interface:
    """An address with its prefix length, as in 10.0.0.1/16."""
    address, slash, length = text.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdigit()) or "%" in address:
            raise ValueError("no CIDR")
        return ip_interface(text)
    except ValueError:
        raise ConfigError(
            f"invalid {what} {quoted(text)}: invalid CIDR block notation: expected ADDRESS/LENGTH, as in 10.0.0.0/16"
        ) from None


def parse_prefix(text: str, what: str) -> Prefix:
    """A network in CIDR notation, host bits zero."""
    interface = parse_interface(text, what)
    if interface.ip != interface.network.network_address:
        raise ConfigError(f"invalid {what} {text}: it should be {interface.network}")
    return interface.network


def parse_address_or_prefix(text: str, what: str) -> Prefix:
    """A network in CIDR notation, or an address, which is a network of itself. IPv4 if it is a mapped one."""
    try:
        prefix = parse_prefix(text, what) if "/" in text else ip_network(parse_address(text))
    except ConfigError as error:
        if "/" in text:
            raise
        raise ConfigError(f"invalid {what} {quoted(text)}: expected an address, or ADDRESS/LENGTH") from error
    if isinstance(prefix, IPv6Network) and prefix.prefixlen >= 96:
        mapped = prefix.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, prefix.prefixlen - 96))
    return prefix


def parse_mac(text: str) -> str:
    """A unicast MAC address in lower case; `-` and `:` may separate its octets."""
    mac = text.replace("-", ":").lower()
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac):
        raise ConfigError(f"{quoted(text)} is not a valid mac address")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ConfigError(f"mac address {mac} is not a unicast address: choose one such as 02:42:ac:11:00:02")
    return mac


def parse_pair(text: str, what: str) -> tuple[str, str]:
    """`key=value`; the value may be empty or missing, the key not."""
    key, _, value = text.partition("=")
    if not key or not text.isprintable():
        raise ConfigError(f"invalid {what} {quoted(text)}: expected key=value")
    return key, value


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and int(text) <= 65535):
        raise ValueError(text)
    return int(text)


def port_range(text: str) -> tuple[int, int]:
    """ "80" or "80-90" as first and last; ValueError if it is neither."""
    first, dash, last = text.partition("-")
    start = _port(first)
    end = _port(last) if dash else start
    if end < start:
        raise ValueError(text)
    return start, end


def parse_protocol(text: str, spec: str) -> str:
    proto = text.lower() or "tcp"  # as Docker reads "80/"
    if proto == "sctp":
        raise ConfigError(f"protocol sctp is not available yet: {quoted(spec)} (tcp and udp are)")
    if proto not in PORT_PROTOCOLS:
        raise ConfigError(f"invalid proto {quoted(text)} in port {quoted(spec)}: expected tcp or udp")
    return proto


def parse_expose(text: str) -> tuple[tuple[int, str], ...]:
    """`port[-port][/proto]` of --expose, as single (port, proto) pairs."""
    ports, _, proto = text.partition("/")
    if ":" in text:
        raise ConfigError(f"invalid port format for --expose: {quoted(text)}")
    protocol = parse_protocol(proto, text)
    try:
        first, last = port_range(ports)
        if first == 0:
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"invalid range format for --expose: {quoted(text)}") from None
    return tuple((port, protocol) for port in range(first, last + 1))
