# SPDX-License-Identifier: Apache-2.0
"""The option `parent`, as networks of macvlan and ipvlan have it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from datapath.errors import ConfigError, InUseError
from datapath.model.drivers import OptionParser, spec_of
from datapath.model.networks import OPT_PARENT, Network

_MAX_NAME = 15  # bytes, the kernel's limit


def parent_option(driver: str) -> OptionParser:
    """The option's parser, which speaks of networks of that driver."""

    def parse(name: str, value: str) -> str:
        if value == "lo":
            raise ConfigError(f"loopback interface is not a valid {driver} parent link")
        if (
            not 0 < len(value.encode()) <= _MAX_NAME
            or "/" in value
            or not value.isprintable()
            or " " in value
        ):
            raise ConfigError(f"option {name}: a device has a name of 1 to {_MAX_NAME} characters")
        return value

    return parse


def one_of(values: tuple[str, ...], refusal: str) -> Callable[[str, str], str]:
    """The parser of an option with these values. `refusal`: Docker's words for another one, with a place for it."""

    def parse(name: str, value: str) -> str:
        if value not in values:
            raise ConfigError(refusal.format(value))
        return value

    return parse


def split_vlan(name: str) -> tuple[str, int]:
    """`eth0.10` as device and VLAN number, with Docker's words for what cannot be one. ConfigError."""
    below, dot, number = name.partition(".")
    if not dot:
        raise ConfigError(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
    if not below or "." in number:
        raise ConfigError(
            f"required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received {name}"
        )
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"unable to parse a valid vlan id from: {number} (ex. eth0.10 for vlan 10)")
    if not 1 <= int(number) <= 4094:
        raise ConfigError(f"vlan id must be between 1-4094, received: {int(number)}")
    return below, int(number)


def check_parent(
    options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
) -> tuple[str, bool]:
    """(the parent that the options name, whether it is to be made as a VLAN of another device). InUseError: another
    network has it; ConfigError."""
    wanted = options.get(OPT_PARENT, "")
    holder = next((n for n in networks if wanted and n.parent == wanted and spec_of(n).traits.lan), None)
    if holder is not None:
        raise InUseError(f"network {holder.name} is already using parent interface {wanted}")
    if not wanted or wanted in there:
        return wanted, False
    below, _ = split_vlan(wanted)
    if below not in there:
        raise ConfigError(f"-o parent={wanted}: there is no device {below} on this host")
    return wanted, True
