# SPDX-License-Identifier: Apache-2.0
"""The specification of macvlan networks: addresses on the network that one of the host's devices is on. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from datapath.drivers.lan.spec import check_parent, one_of, parent_option
from datapath.drivers.pairs.spec import PairSpec, truth
from datapath.errors import ConfigError
from datapath.model.devices import MACVLAN, VETH
from datapath.model.drivers import OptionParser, Spec, Traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import (
    BRIDGE,
    OPT_DOMAIN,
    OPT_HOST_ACCESS,
    OPT_ICC,
    OPT_IFACE_PREFIX,
    OPT_MACVLAN_MODE,
    OPT_MTU,
    OPT_NAMES,
    OPT_PARENT,
    PRIVATE,
    VEPA,
    Network,
    NetworkRequest,
)
from datapath.model.rows import short

PASSTHRU = "passthru"
_MODES = (BRIDGE, PRIVATE, VEPA, PASSTHRU)
_WRONG_MODE = "requested macvlan mode '{}' is not valid, 'bridge' mode is the macvlan driver default"


class MacvlanSpec(Spec):
    """Docker's options of a macvlan network, and our own."""

    name = "macvlan"
    traits = Traits(acl=False, pair=MACVLAN, published=False, lan=True)
    options: ClassVar[Mapping[str, OptionParser]] = {
        OPT_PARENT: parent_option(name),
        OPT_MACVLAN_MODE: one_of(_MODES, _WRONG_MODE),
        OPT_HOST_ACCESS: truth,
        OPT_ICC: truth,
        **{option: PairSpec.options[option] for option in (OPT_MTU, OPT_IFACE_PREFIX, OPT_NAMES, OPT_DOMAIN)},
    }
    gateway_kind = VETH  # as rtnetlink names it

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        mode = options.get(OPT_MACVLAN_MODE, BRIDGE)
        if options.get(OPT_HOST_ACCESS) == "true" and mode != BRIDGE:
            raise ConfigError(f"{OPT_HOST_ACCESS}=true needs {OPT_MACVLAN_MODE}={BRIDGE}, not {mode}")
        if options.get(OPT_ICC) == "false" and mode not in (BRIDGE, PRIVATE):
            raise ConfigError(f"{OPT_ICC}=false needs {OPT_MACVLAN_MODE}={BRIDGE} or {PRIVATE}, not {mode}")
        if options.get(OPT_ICC) == "false" and options.get(OPT_HOST_ACCESS) == "true":
            raise ConfigError(f"{OPT_HOST_ACCESS}=true needs {OPT_ICC}=true: the host is a member like any")
        mtu = int(options.get(OPT_MTU, "0"))
        if request.ipv6 and 0 < mtu < 1280:
            raise ConfigError(f"invalid mtu {mtu}: a network with IPv6 needs at least 1280 bytes")

    def device(
        self, ident: str, options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
    ) -> str:
        """The parent, if it is to be made: a VLAN's device, or one that leads nowhere where none is named."""
        wanted, made = check_parent(options, networks, there)
        if not wanted:
            return f"dm-{short(ident)}"
        return wanted if made else ""

    def is_internal(self, options: Mapping[str, str]) -> bool:
        return not options.get(OPT_PARENT)

    def traits_of(self, network: Network) -> Traits:
        """What may pass between members the programs have to know them for, too."""
        return _ASKING if network.named or not network.icc else self.traits

    def gateway_device(self, network: Network) -> str:
        """That of the devices by which members ask for names, and nothing else: it has no address."""
        return f"dq-{network.short_id}" if self.traits_of(network).questions else ""

    def resolver_device(self, endpoint: Endpoint) -> str:
        """The container's end of a pair."""
        return f"dns{endpoint.number}"

    def policed(self, network: Network) -> str:
        return "" if network.icc else parent(network)

    def sysctls(self, network: Network) -> dict[str, str]:
        name = self.gateway_device(network)
        return {f"net/ipv4/conf/{name}/forwarding": "1"} if name else {}

    def devices(self, network: Network) -> tuple[str, ...]:
        made = (network.device,) if network.device else ()
        return (*made, stand_in(network)) if host_access(network) else made


_ASKING = replace(MacvlanSpec.traits, questions=True)


def parent(network: Network) -> str:
    """The device that the members' stand on."""
    return network.parent or network.device


def mode(network: Network) -> str:
    """One of Docker's four. Members that may not talk to each other do not in the kernel's private mode: no frame, of
    broadcast and multicast neither, goes from one to another, though a switch sends it back."""
    wanted = network.options.get(OPT_MACVLAN_MODE, BRIDGE)
    return wanted if network.icc else PRIVATE


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
