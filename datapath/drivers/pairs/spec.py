# SPDX-License-Identifier: Apache-2.0
"""The options of networks whose members have a pair of devices each. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

from datapath.errors import ConfigError, quoted
from datapath.model.drivers import OptionParser, Spec
from datapath.model.networks import (
    AT_GATEWAY,
    MODES,
    OPT_ALLOW,
    OPT_BESIDE,
    OPT_DENY,
    OPT_DEVICE,
    OPT_DOMAIN,
    OPT_HOST_BINDING,
    OPT_ICC,
    OPT_IFACE_PREFIX,
    OPT_MASQUERADE,
    OPT_MODE,
    OPT_MTU,
    OPT_NAME,
    OPT_NAMES,
    OPT_RESOLVER,
    PAIRS,
    VETH,
    Network,
    NetworkRequest,
)
from datapath.model.parsing import parse_address, parse_bool
from datapath.model.ports import default_acl, parse_prefixes
from datapath.model.resolv import RESOLVER

_DEVICE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")  # the kernel's limit is 15 bytes
_IFACE_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,10}")  # leaves room for a number of four digits
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")  # of a domain
_LONGEST_DOMAIN = 100  # leaves room for a container's name


def _bad_value(name: str, value: str, why: str) -> ConfigError:
    return ConfigError(f"invalid value {quoted(value)} for option {name}: {why}")


def truth(name: str, value: str) -> str:
    """The parser of an option that is true or false."""
    return "true" if parse_bool(value, f"option {name}") else "false"


def _mtu(name: str, value: str) -> str:
    valid = value.isascii() and value.isdigit() and len(value) <= 5
    if not valid or not (int(value) == 0 or 68 <= int(value) <= 65535):
        raise _bad_value(name, value, "expected 68 to 65535 bytes")
    return str(int(value))


def _device(name: str, value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise _bad_value(name, value, "not a device name of 1 to 15 characters")
    return value


def _iface_prefix(name: str, value: str) -> str:
    if not _IFACE_PREFIX.fullmatch(value):
        raise _bad_value(name, value, "not the beginning of a device name")
    return value


def _host_binding(name: str, value: str) -> str:
    return str(parse_address(value, f"value for option {name}"))


def _domain(name: str, value: str) -> str:
    domain = value.lower().removeprefix(".").removesuffix(".")
    if len(domain) > _LONGEST_DOMAIN or not all(map(_LABEL.fullmatch, domain.split("."))):
        raise _bad_value(name, value, f"not a domain of up to {_LONGEST_DOMAIN} characters")
    return domain


def _one_of(*values: str) -> Callable[[str, str], str]:
    def parse(name: str, value: str) -> str:
        if value not in values:
            raise _bad_value(name, value, f"there are {', '.join(values)}")
        return value

    return parse


class PairSpec(Spec):
    """Docker's options of a bridge network, as far as they mean something here, and our own."""

    options: ClassVar[Mapping[str, OptionParser]] = {
        OPT_NAME: _device,
        OPT_ICC: truth,
        OPT_MASQUERADE: truth,
        OPT_HOST_BINDING: _host_binding,
        OPT_MTU: _mtu,
        OPT_IFACE_PREFIX: _iface_prefix,
        OPT_MODE: _one_of(*MODES),
        OPT_DEVICE: _one_of(*PAIRS),
        OPT_BESIDE: truth,
        OPT_ALLOW: parse_prefixes,
        OPT_DENY: parse_prefixes,
        OPT_NAMES: truth,
        OPT_DOMAIN: _domain,
        OPT_RESOLVER: _one_of(str(RESOLVER), AT_GATEWAY),
    }
    gateway_kind = VETH  # of the gateway device, as rtnetlink names it

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        mtu = int(options.get(OPT_MTU, "0"))
        if request.ipv6 and 0 < mtu < 1280:
            raise ConfigError(f"invalid mtu {mtu}: a network with IPv6 needs at least 1280 bytes")
        default_acl(options)

    def sysctls(self, network: Network) -> dict[str, str]:
        name, ipv6 = network.device, network.subnet6 is not None
        found = {
            f"net/ipv4/conf/{name}/forwarding": "1",
            f"net/ipv6/conf/{name}/disable_ipv6": str(int(not ipv6)),
        }
        return found | ({f"net/ipv6/conf/{name}/forwarding": "1"} if ipv6 else {})
