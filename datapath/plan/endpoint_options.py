# SPDX-License-Identifier: Apache-2.0
"""The driver options of endpoints, and settings of the kernel for containers. Pure; ConfigError for invalid ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from datapath.errors import ConfigError, quoted
from datapath.model.drivers import OptionParser, spec_of, traits
from datapath.model.endpoints import IFNAME, EndpointRequest
from datapath.model.limits import LIMIT_OPTIONS, limits_of, parse_bits
from datapath.model.networks import (
    OPT_ALLOW,
    OPT_DENY,
    OPT_ENDPOINT_IFNAME,
    OPT_ENDPOINT_SYSCTLS,
    OPT_FORWARDING,
    OPT_SERVICE,
    Network,
)
from datapath.model.parsing import parse_bool, parse_pair
from datapath.model.ports import default_acl, parse_prefixes
from datapath.model.services import parse_membership

_DEVICE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")
_NAME = re.compile(r"net(\.[a-zA-Z0-9_-]+){2,}")
_OF_DEVICE = re.compile(r"(net\.[a-z0-9]+\.(?:conf|neigh))\.([^.]+)\.(.+)")
_NO_DEVICES = ("all", "default", "lo")
FIRST = "eth0"  # what the device of the first network is called, unless an option says otherwise


def _ifname(name: str, value: str) -> str:
    if not _DEVICE.fullmatch(value) or value == "lo":
        raise ConfigError(f"invalid value {quoted(value)} for option {name}: not a device name")
    return value


def _sysctls(name: str, value: str) -> str:
    """`net.X.Y.IFNAME.Z=V,…`: the word IFNAME stands for the device of the endpoint."""
    for word in value.split(","):
        key, equals, setting = word.partition("=")
        parts = key.split(".")
        if not equals or not setting or not word.isprintable():
            raise ConfigError(f"invalid sysctl {quoted(word)} in option {name}: expected NAME=VALUE")
        if len(parts) != 5 or parts[0] != "net" or parts[3] != IFNAME or not _NAME.fullmatch(key):
            raise ConfigError(f"invalid sysctl {quoted(key)} in option {name}: expected net.X.Y.{IFNAME}.Z")
    return value


def _truth(name: str, value: str) -> str:
    return "true" if parse_bool(value, f"option {name}") else "false"


def _services(name: str, value: str) -> str:
    """`NAME[,weight=N];…`: services of the endpoint's network."""
    for text in value.split(";"):
        parse_membership(text, f"option {name}")
    return value


PARSERS: Mapping[str, OptionParser] = {
    OPT_ENDPOINT_IFNAME: _ifname,
    OPT_ENDPOINT_SYSCTLS: _sysctls,
    OPT_FORWARDING: _truth,
    OPT_SERVICE: _services,
    OPT_ALLOW: parse_prefixes,
    OPT_DENY: parse_prefixes,
    **{name: parse_bits for names in LIMIT_OPTIONS.values() for name in names},
}


def parse(given: Sequence[str], plugin: bool = False) -> dict[str, str]:
    """--driver-opt of `network connect`, and driver-opt= of --network. `plugin`: one may know others."""
    options = dict(parse_pair(text, "driver option") for text in given)
    for name in options:
        if name not in PARSERS and not plugin:
            known = ", ".join(PARSERS)
            raise ConfigError(f"endpoint option {quoted(name)} is not available: there are {known}")
    parsed = {n: PARSERS[n](n, value) if n in PARSERS else value for n, value in options.items()}
    default_acl(parsed)
    limits_of(parsed)
    return parsed


def refuse_limits(options: Mapping[str, str], network: Network) -> None:
    """How much may pass is for the packet programs to count. ConfigError where there are none."""
    if not traits(network).programs and (limits := limits_of(options)):
        name = LIMIT_OPTIONS[limits[0].direction][0]
        raise ConfigError(f"option {name} is not available: network {network.name} has no packet programs")


def refuse_forwarding(options: Mapping[str, str], network: Network) -> None:
    """A router is known on its link by a MAC address of its own. ConfigError where members have none there."""
    if options.get(OPT_FORWARDING) == "true" and spec_of(network).refuses_mac:
        raise ConfigError(
            f"option {OPT_FORWARDING} is not available: members of network {network.name} have no MAC address of "
            "their own"
        )


def sysctls(given: Iterable[str]) -> dict[str, str]:
    """--sysctl NAME=VALUE: those of the network namespace, which alone is a container's own."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ConfigError(
                f"sysctl {quoted(text)} is not allowed: there are those of a network namespace, net.…=VALUE"
            )
        if not value or not text.isprintable():
            raise ConfigError(f"invalid value for sysctl {name}: {quoted(value)}")
        found[name] = value
    return found


def with_device_sysctls(
    asked: Sequence[EndpointRequest], wanted: Mapping[str, str]
) -> tuple[tuple[EndpointRequest, ...], dict[str, str]]:
    """The endpoints with the settings of the first one's device, as Docker has it, and the other settings: a device
    has its own before it is up, and gets them again when it has to be made again."""
    rest, words = {}, []
    for name, value in wanted.items():
        match = _OF_DEVICE.fullmatch(name)
        if match is None or match[2] in _NO_DEVICES:
            rest[name] = value
        elif match[2] == FIRST and asked and "," not in value:
            words.append(f"{match[1]}.{IFNAME}.{match[3]}={value}")
        else:
            raise ConfigError(
                f"unable to determine network endpoint for sysctl {name}: "
                f"use driver option {OPT_ENDPOINT_SYSCTLS} to set per-interface sysctls"
            )
    if not words:
        return tuple(asked), rest
    first = asked[0]
    options = dict(parse_pair(text, "driver option") for text in first.driver_options)
    options[OPT_ENDPOINT_SYSCTLS] = ",".join(filter(None, (options.get(OPT_ENDPOINT_SYSCTLS), *words)))
    given = tuple(f"{name}={value}" for name, value in options.items())
    return (replace(first, driver_options=given), *asked[1:]), rest
