# SPDX-License-Identifier: Apache-2.0
"""The specification of a network driver, which plans and `doctor` ask, and the table of all drivers.

A driver answers for itself: nothing outside `datapath.drivers` asks for its name or kind. The driver that acts is
`datapath.drivers.base.Driver`; both are registered together by `datapath.drivers.registry.register`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from datapath.errors import NotFoundError, quoted
from datapath.model.endpoints import Endpoint
from datapath.model.networks import OPT_NAME, Network, NetworkRequest
from datapath.model.parsing import Address
from datapath.model.rows import short

# (name, value as typed) -> the value as it is stored; ConfigError if it cannot be one
OptionParser = Callable[[str, str], str]


class Scope(StrEnum):
    """How far a network reaches: one host, or all hosts of a cluster."""

    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Traits:
    """What the networks of a driver are like.

    `endpoints`: members join by a device and addresses of their own; else the network is only a name for a way to
    run a container. `host_stack`: members share the host's own stack. `create`: users may create such networks;
    else there is the predefined one. `acl`: published ports may say who may connect (allow=, deny=). `programs`:
    the packet programs forward its packets. `pair`: the kind of device of each member's host end, or of its only
    one. `published`: members' ports may be published; else they are reached at their own addresses, and what is asked
    for is passed over, as Docker does. `lan`: members are on a network that the host is on too, by a device of its
    own: its addresses and routes may lie in the subnet, of which the gateway is no address of the host's. `questions`:
    the packet programs answer members' questions for names, and others hand over all else.
    """

    endpoints: bool = True
    host_stack: bool = False
    create: bool = True
    acl: bool = True
    programs: bool = False
    pair: str = "veth"
    published: bool = True
    lan: bool = False
    questions: bool = False

    @property
    def told(self) -> bool:
        """The packet programs know the network and its members."""
        return self.programs or self.questions


class Spec:
    """What is asked of a driver before anything is changed. Subclasses set attributes and override methods; the
    defaults suit a local driver whose members have devices."""

    name = ""  # what `network create --driver` takes
    scope = Scope.LOCAL
    traits = Traits()
    # Devices that all networks of the driver have together on the host, and the programs that take what comes out.
    shared_devices: ClassVar[Mapping[str, str]] = {}
    plugin = False  # that of all networks whose driver is a plugin, by whatever name
    # What -o takes: the option's name and what parses its value.
    options: ClassVar[Mapping[str, OptionParser]] = {}
    # Why members cannot have a MAC address that was chosen for them, in Docker's words; "": they can.
    refuses_mac = ""
    # Why `network connect` and `disconnect` are refused where there are no endpoints, in Docker's words.
    refuses_connect = "containers cannot be connected to this network"
    refuses_disconnect = "containers cannot be disconnected from this network"

    def serves(self, options: Mapping[str, str]) -> bool:
        """Whether a network of the driver's name with these options is this spec's: several may share a name, as
        the modes of driver bridge do."""
        return True

    def offers(self, network: Network) -> bool:
        """Whether the network is this spec's."""
        return self.name == network.driver and not network.plugin and self.serves(network.options)

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        """Refuses what `network create` asks for and this driver cannot do. ConfigError, before anything changes.
        `options` are parsed."""

    def device(
        self, ident: str, options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
    ) -> str:
        """The name of the gateway device that a new network of that id is to have on the host, of which nobody may
        have one; "": it needs none. `there`: names of the host's devices. ConfigError, NotFoundError."""
        return options.get(OPT_NAME) or f"dp-{short(ident)}"

    def beneath(self, options: Mapping[str, str], there: Container[str]) -> str:
        """The name of a device that is to be made for a new network to stand on; "": none."""
        return ""

    def is_internal(self, options: Mapping[str, str]) -> bool:
        """A network with these options leads nowhere, whether that is asked for or not."""
        return False

    def next_hop(self, network: Network, version: int) -> Address | None:
        """Where members' default routes of that IP version lead; None: there is none. The unspecified address: to no
        gateway, as everybody is on their device's link."""
        subnet = network.subnet4 if version == 4 else network.subnet6
        return subnet.gateway if subnet else None

    def gateway_device(self, network: Network) -> str:
        """The name of the network's gateway device on the host; "": it has none."""
        return network.device

    def resolver_device(self, endpoint: Endpoint) -> str:
        """The name in its sandbox of the device by which the endpoint asks for names."""
        return endpoint.ifname

    def policed(self, network: Network) -> str:
        """The name of the device at which the packet programs decide which members may talk to each other, where others
        hand over what they send; "": there is none, or all may."""
        return ""

    def devices(self, network: Network) -> tuple[str, ...]:
        """All devices that the network has on the host, beside its members'."""
        return (network.device,) if network.device else ()

    def traits_of(self, network: Network) -> Traits:
        """The traits of one network, whose options may change them."""
        return self.traits

    def sysctls(self, network: Network) -> dict[str, str]:
        """Settings of the network's gateway device that have to be so: path below /proc/sys -> value."""
        return {}

    def path_mtu(self, network: Network, underlay: int, version: int) -> int:
        """Bytes of an IP packet of the network that get to other hosts, whose packets of that IP version may have
        `underlay` bytes; 0: there are no others."""
        return 0


_SPECS: list[Spec] = []


def register(spec: Spec) -> None:
    """Makes a driver's specification known; `datapath.drivers.registry.register` calls it. Twice is fine."""
    if spec not in _SPECS:
        _SPECS.append(spec)


def unregister(spec: Spec) -> None:
    """Takes a registration back, as a test does with a driver of its own."""
    _SPECS.remove(spec)


def named(name: str) -> list[Spec]:
    """The specs of the drivers of that name; none: there is no such driver."""
    return [spec for spec in _SPECS if spec.name == name and not spec.plugin]


def creatable() -> list[str]:
    """The names that `network create --driver` takes."""
    return list(dict.fromkeys(spec.name for spec in _SPECS if spec.traits.create and not spec.plugin))


def of_plugins() -> Spec:
    """That of networks whose driver is a plugin."""
    return next(spec for spec in _SPECS if spec.plugin)


def chosen(name: str, options: Mapping[str, str]) -> Spec:
    """The spec for a network of that driver with these options. NotFoundError: nothing offers that driver."""
    found = next((spec for spec in named(name) if spec.serves(options)), None)
    if found is None:
        raise NotFoundError(
            f"network driver {quoted(name)} does not exist: there is {', '.join(creatable())}"
        )
    return found


class Unknown(Spec):
    """Of networks whose driver nothing offers any more: they can be shown and removed, no more."""

    traits = Traits(endpoints=False, create=False)
    refuses_connect = refuses_disconnect = "the network's driver is not there any more"


UNKNOWN = Unknown()


def spec_of(network: Network) -> Spec:
    """The spec of the network's driver; UNKNOWN: nothing offers that driver any more."""
    for spec in _SPECS:  # a command asks this a hundred times
        if spec.offers(network):
            return spec
    return UNKNOWN


def traits(network: Network) -> Traits:
    """What the network is like."""
    return spec_of(network).traits_of(network)


def built(networks: Iterable[Network]) -> list[Network]:
    """Those of the networks whose kernel side is built and whose members have devices."""
    return [n for n in networks if n.built and traits(n).endpoints]
