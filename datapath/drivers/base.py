# SPDX-License-Identifier: Apache-2.0
"""The interface of a network driver that acts: the steps of the Container Network Model, in its order.

A network is created once; an endpoint is created on the host's side, joins a sandbox, is programmed for the outside,
and goes the same way back. Each step is separate, so that a sandbox that somebody else made and a device that
somebody else moves and addresses (Docker's plugin protocol, netavark, CNI) take the same way as `run`. Every step
that takes something away is idempotent and copes with an object that is only partly made: it cleans up after a killed
command. All errors are KernelError and its kinds, or an ExceptionGroup of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from datapath.errors import DatapathError, NotSupportedError
from datapath.model.drivers import Spec
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.networks import Network
from datapath.model.parsing import Address, Interface
from datapath.model.peers import Block, Peer, Remote
from datapath.model.ports import PortMapping
from datapath.model.services import Service
from datapath.model.state import State

if TYPE_CHECKING:
    from datapath.dataplane.entries import PortRanges
    from datapath.dataplane.name_entries import NameRows, Touched
    from datapath.dataplane.structs import AclKey, LinkKey, LinkValue
    from datapath.drivers.comparison import Comparison
    from datapath.drivers.context import Context, HostView
    from datapath.model.policies import By
    from datapath.plan.policies.rows import Rows


@dataclass(frozen=True, slots=True)
class JoinInfo:
    """What somebody needs who moves and addresses an endpoint's device himself, as libnetwork's Join answers.

    `source`: the device's name on the host, "" if it is in the sandbox already; `ifname`: what it is called in the
    sandbox; `prefix`: what such names begin with, before a number, "": the name was asked for; `addresses` with prefix
    length; `gateway4`, `gateway6`: next hops of the default routes, None: none is here; `mtu`: bytes of an IP packet;
    `sysctls`: settings that the device is to have before it is up, path below /proc/sys -> value;
    `resolver`: next hop of the route to 127.0.0.11/32 that the sandbox has, by which it asks for names; None: none is
    by this endpoint, and nobody would answer: it was handed over, or the programs are of a version without names.
    """

    source: str
    ifname: str
    mac: str
    addresses: tuple[Interface, ...]
    gateway4: Address | None
    gateway6: Address | None
    mtu: int
    sysctls: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "eth"
    resolver: Address | None = None


@dataclass(frozen=True, slots=True)
class Repairing:
    """What a repair works with. `path`: a sandbox's namespace, None: nobody is in it; `compare` looks again."""

    context: Context
    state: State
    view: Callable[[], HostView]
    path: Callable[[str], str | None]
    compare: Callable[[], Comparison]


Repair = Callable[[Repairing, Finding], None]


class ServicePart:
    """What a driver has of services. The defaults suit one that has none."""

    def require(self) -> None:
        """There can be services. NotSupportedError: the programs are of a version without."""

    def write(self, state: State, services: Iterable[Service]) -> None:
        """Makes the rows of these services what they have to be when the rows say `state`."""

    def remove(self, state: State, service: Service) -> None:
        """Takes a service away, whatever of it is there."""

    def sync(self, state: State) -> None:
        """Makes all rows about services what they have to be, whatever a killed command left."""

    def is_behind(self, state: State, service: Service) -> bool:
        """A backend of the service has another state than the rows say."""
        return False

    def end(self, state: State, service: Service, endpoint_ids: Iterable[str]) -> None:
        """Ends the service's connections to these endpoints."""


class PolicyPart:
    """What a driver has of policies. The defaults suit one that has none."""

    def active(self) -> bool:
        """Some are in force, or something is left of such."""
        return False

    def write(self, rows: Rows, former: Sequence[By]) -> None:
        """Puts the rows into force, or none if they say so. `former`: what numbers of rules mean that were counted by
        until now."""

    def sweep(self) -> None:
        """Takes away what a killed command left, and is not in force."""


class HostPart:
    """What a driver has on the host for all of its networks together. The defaults suit one that has nothing."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.services = ServicePart()
        self.policies = PolicyPart()

    def begin(self, view: HostView, upgrading: bool) -> None:
        """Before anything else of a changing command: completes what an earlier one of the whole host left."""

    def lost(self, view: HostView) -> bool:
        """Whether everything of `view.networks` has to be built again, after a reboot for one. Has prepared it then,
        so that what cannot be built is found before anything is taken away."""
        return False

    def refresh(self, view: HostView) -> None:
        """Follows changes of the host: its devices, addresses and routes."""

    def forget_network(self, view: HostView, network: Network) -> None:
        """After a network, of whichever driver, has been taken away."""

    def check_removal(self, network: Network) -> None:
        """Refuses that a user takes the network, of whichever driver, away, as that could not be done whole.
        PluginError."""

    def idle(self, view: HostView) -> None:
        """No network of any driver is built: gives back what was changed of the host for them."""

    def resolves(self, network: Network) -> bool:
        """Members of the network, which may be another driver's, are answered at the resolver's address."""
        return False

    def lead_to_resolver(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        """Makes the resolver's address, 127.0.0.11, be reached through the endpoint, if it is answered there."""

    def write_names(self, rows: NameRows, gone: Touched) -> None:
        """Writes rows about names, and takes away those of `gone` that are not among them."""

    def sync_names(self, view: HostView) -> None:
        """Makes all rows about names what they have to be, whatever a killed command left."""

    def prepare(self, view: HostView, network: Network) -> None:
        """Before anything else is done for a network that is to be built: what all of the driver's networks have
        together, so that nothing is changed if it cannot be had. InUseError names who has it."""

    def write_peers(self, before: HostView, after: HostView, rows: tuple[Peer | Block | Remote, ...]) -> None:
        """Writes what is new of these rows about other hosts, and takes away what is not so any more. `before`,
        `after`: the host with the rows as they were, or were not, and as they are to be."""

    def sync_peers(self, view: HostView) -> None:
        """Makes all rows about other hosts what they have to be, whatever a killed command left."""

    def write_network(self, view: HostView, network: Network) -> None:
        """Writes all that is known of other hosts' parts in a network that is being built."""

    def refresh_acls(self, view: HostView) -> None:
        """Follows changes of who may connect to published ports."""

    def finish(self, view: HostView) -> None:
        """At the end of a changing command: follows what has been published and what not any more."""

    def upgrade(self, view: HostView, fill: Callable[[], None]) -> bool:
        """Puts this version in place of the one that is at work; whether programs were replaced. `fill` writes what
        `doctor` would miss, once there is a place for it and before anything depends on it."""
        return False

    def remove(self, view: HostView) -> None:
        """Takes away all that is shared by the driver's networks; these are gone."""

    def look(self, view: HostView) -> dict[str, object]:
        """What a comparison needs to know: fields of `Observed` by name."""
        return {}


class Driver:
    """One driver at work in one command. The defaults suit a driver that builds nothing."""

    spec: ClassVar[Spec]

    def __init__(self, context: Context) -> None:
        self.context = context

    # ---- networks ------------------------------------------------------------------------

    def require(self, network: Network) -> None:
        """Refuses a network for which this host lacks something, before anything changes. NotSupportedError."""

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        """Builds what the network needs on the host. `mtu`: bytes of an IP packet. `members`: endpoints that it has
        already, when it is built again."""

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        """Makes what may change of a network take effect. `mtu` in bytes, None: as it is. `sandbox`: the path of an
        endpoint's namespace, None if nobody is in it."""

    def delete_network(self, network: Network) -> None:
        """Takes what was built for the network away."""

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        """Makes the endpoint's device and opens it for traffic; returns the endpoint with what is now known of it.

        `sandbox`: the path of a namespace; the container's end is made in there at once. None: it stays on the host,
        for `join` or for somebody else to move.
        """
        raise NotSupportedError(f"endpoints on networks of driver {network.driver}")

    def join(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint | None:
        """Puts the endpoint's device into the sandbox (the path of a namespace), if it is not in there, with its
        name, addresses and default routes. The endpoint with what has become known of it; None: nothing has."""
        return None

    def join_info(self, network: Network, endpoint: Endpoint, mtu: int) -> JoinInfo:
        """What `join` has done or, if the device is on the host still, what its owner has to do himself."""
        raise NotSupportedError(f"endpoints on networks of driver {network.driver}")

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        """Closes the endpoint and removes its device, wherever that is; its connections are forgotten. `sandbox`: the
        path of the namespace that it may be in; None: there is none any more."""

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        """Opens an endpoint, whose device is there, for traffic again: what knew of it is gone."""

    def set_routes(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        """Makes the sandbox's default routes lead through the endpoint, or not, as its flags say."""

    def open_links(self, network: Network, links: Mapping[LinkKey, LinkValue]) -> None:
        """Opens what `--link` opens on a network whose members may not talk to each other."""

    # ---- published ports -------------------------------------------------------------------

    def publish(
        self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...], reserved: PortRanges
    ) -> None:
        """Publishes ports of the endpoint. `reserved`: the rows of `number_entries`, these included.

        Ports that are published already get the ACL that the mappings have now.
        """

    def unpublish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: PortRanges,
        acls: frozenset[int],
    ) -> None:
        """Takes published ports back. `reserved`: how often each number is published without them, 0 if no more;
        `acls`: numbers of ACLs that no port uses without them."""

    def take_over_ports(
        self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...], reserved: PortRanges
    ) -> None:
        """Makes ports, which the endpoint and another one both had while they moved, the endpoint's own."""
        self.publish(network, endpoint, mappings, reserved)

    def sync_ports(
        self, network: Network, endpoint: Endpoint, reserved: PortRanges, acls: Mapping[AclKey, int]
    ) -> None:
        """Makes the endpoint's published ports what its row says, whatever a killed command left. `reserved` and
        `acls` are the whole host's."""

    def delete_acls(self, acls: frozenset[int]) -> None:
        """Removes ACLs that no port uses any more, by number."""

    def end_denied(self, endpoint: Endpoint, mappings: Iterable[PortMapping]) -> None:
        """Ends connections by way of these ports whose client may not connect any more."""

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        """Every difference between the desired state of these networks, all of this driver, and what was observed;
        causes before their consequences. Pure."""
        yield from ()

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        """The repair of what each check of `check` finds."""
        return {}


def attempt(failures: list[Exception], step: Callable[..., object], *args: object) -> None:
    """Does a step of taking something away; a failure does not keep the others from being done."""
    try:
        step(*args)
    except (DatapathError, ExceptionGroup) as error:
        failures.append(error)


def report(failures: list[Exception], message: str) -> None:
    """Raises the failures as an ExceptionGroup, if there are any."""
    if failures:
        raise ExceptionGroup(message, failures)
