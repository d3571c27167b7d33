# SPDX-License-Identifier: Apache-2.0
"""The specification of macvlan networks: addresses on the network that one of the host's devices is on. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import ClassVar

from datapath.drivers.pairs.spec import PairSpec, truth
from datapath.errors import ConfigError, InUseError
from datapath.model.devices import MACVLAN
from datapath.model.drivers import OptionParser, Spec, Traits
from datapath.model.networks import (
    OPT_HOST_ACCESS,
    OPT_IFACE_PREFIX,
    OPT_MACVLAN_MODE,
    OPT_MTU,
    OPT_PARENT,
    Network,
    NetworkRequest,
)
from datapath.model.rows import short

BRIDGE, PASSTHRU = "bridge", "passthru"
_MODES = (BRIDGE, "private", "vepa", PASSTHRU)
_MAX_NAME = 15  # bytes, the kernel's limit


def _mode(name: str, value: str) -> str:
    if value not in _MODES:
        raise ConfigError(
            f"requested macvlan mode '{value}' is not valid, 'bridge' mode is the macvlan driver default"
        )
    return value


def _parent(name: str, value: str) -> str:
    if value == "lo":
        raise ConfigError("loopback interface is not a valid macvlan parent link")
    if not 0 < len(value.encode()) <= _MAX_NAME or "/" in value or not value.isprintable() or " " in value:
        raise ConfigError(f"option {name}: a device has a name of 1 to {_MAX_NAME} characters")
    return value


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


class MacvlanSpec(Spec):
    """Docker's options of a macvlan network, and our own."""

    name = "macvlan"
    traits = Traits(acl=False, pair=MACVLAN, published=False, lan=True)
    options: ClassVar[Mapping[str, OptionParser]] = {
        OPT_PARENT: _parent,
        OPT_MACVLAN_MODE: _mode,
        OPT_HOST_ACCESS: truth,
        OPT_MTU: PairSpec.options[OPT_MTU],
        OPT_IFACE_PREFIX: PairSpec.options[OPT_IFACE_PREFIX],
    }

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        mode = options.get(OPT_MACVLAN_MODE, BRIDGE)
        if options.get(OPT_HOST_ACCESS) == "true" and mode != BRIDGE:
            raise ConfigError(f"{OPT_HOST_ACCESS}=true needs {OPT_MACVLAN_MODE}={BRIDGE}, not {mode}")
        mtu = int(options.get(OPT_MTU, "0"))
        if request.ipv6 and 0 < mtu < 1280:
            raise ConfigError(f"invalid mtu {mtu}: a network with IPv6 needs at least 1280 bytes")

    def device(
        self, ident: str, options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
    ) -> str:
        """The parent, if it is to be made: a VLAN's device, or one that leads nowhere where none is named."""
        wanted = options.get(OPT_PARENT, "")
        if not wanted:
            return f"dm-{short(ident)}"
        holder = next((n for n in networks if n.driver == self.name and parent(n) == wanted), None)
        if holder is not None:
            raise InUseError(f"network {holder.name} is already using parent interface {wanted}")
        if wanted in there:
            return ""
        below, _ = split_vlan(wanted)
        if below not in there:
            raise ConfigError(f"-o parent={wanted}: there is no device {below} on this host")
        return wanted

    def devices(self, network: Network) -> tuple[str, ...]:
        made = (network.device,) if network.device else ()
        return (*made, stand_in(network)) if host_access(network) else made


def parent(network: Network) -> str:
    """The device that the members' stand on."""
    return network.options.get(OPT_PARENT) or network.device


def mode(network: Network) -> str:
    """One of Docker's four."""
    return network.options.get(OPT_MACVLAN_MODE, BRIDGE)


def host_access(network: Network) -> bool:
    """The host and the members reach each other."""
    return network.options.get(OPT_HOST_ACCESS) == "true"


def stand_in(network: Network) -> str:
    """The device by which they do."""
    return f"dp-{network.short_id}"


def far_end(network: Network) -> str:
    """The other end of a parent that leads nowhere."""
    return f"dn-{network.short_id}"


MACVLAN_SPEC = MacvlanSpec()
