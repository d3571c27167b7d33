# SPDX-License-Identifier: Apache-2.0
"""macvlan networks: each member has a MAC address and IP addresses of its own on the network that the parent device
is on, and the kernel hands its frames over. No bridge, no translation; the packet programs answer its questions for
names, and decide who may talk to whom where not all may.

As with Docker the host and its members do not reach each other, as the kernel hands no frame of the parent itself to
them, unless the network has `com.datapath.host_access=true`: then the host has a macvlan device too, and routes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from datapath.drivers.base import Repair, attempt, report
from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.driver import InsideDriver, addresses, names_inside, waiting_name
from datapath.drivers.lan.spec import split_vlan
from datapath.drivers.macvlan.questions import Questions
from datapath.drivers.macvlan.spec import (
    MACVLAN_SPEC,
    PASSTHRU,
    far_end,
    host_access,
    mode,
    parent,
    stand_in,
)
from datapath.errors import InUseError, KernelError, NotSupportedError
from datapath.kernel import features, macvlans, observe, ways
from datapath.kernel.links import Links
from datapath.model.devices import MACVLAN, VETH, VLAN
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.networks import OPT_PARENT, Network
from datapath.model.parsing import Interface

if TYPE_CHECKING:
    from datapath.dataplane.structs import LinkKey, LinkValue


class Macvlan(InsideDriver):
    """Driver macvlan."""

    spec = MACVLAN_SPEC

    @cached_property
    def _questions(self) -> Questions:
        return Questions(self.context)

    # ---- networks ------------------------------------------------------------------------

    def require(self, network: Network) -> None:
        if not features.has_kind(MACVLAN):
            raise NotSupportedError("macvlan devices (CONFIG_MACVLAN)")
        if OPT_PARENT in network.options and network.device and not features.has_kind(VLAN):
            raise NotSupportedError(f"VLANs (CONFIG_VLAN_8021Q), which {OPT_PARENT}={network.device} needs")

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        with ExitStack() as undo:
            undo.callback(self.delete_network, network)
            if OPT_PARENT not in network.options:
                macvlans.create_idle(network.device, far_end(network), network.mtu or 0)
            elif network.device:
                macvlans.create_vlan(network.device, *split_vlan(network.device))
            if host_access(network):
                macvlans.stand_in(stand_in(network), parent(network), mode(network), self._own6(network))
                for member in members:
                    self._lead(network, member)
            self._questions.create(network, members)
            undo.pop_all()

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        self._questions.update(network, members)

    def _own6(self, network: Network) -> tuple[Interface, ...]:
        """The host's IPv6 addresses at the parent, if members speak IPv6."""
        if not network.ipv6:
            return ()
        found = self.context.links.observe(every=True)
        index = next((i for i, name in found.names.items() if name == parent(network)), 0)
        return tuple(
            one.interface
            for one in found.addresses
            if one.ifindex == index and one.interface.version == 6 and not one.interface.is_link_local
        )

    def delete_network(self, network: Network) -> None:
        failures: list[Exception] = []
        attempt(failures, self._questions.delete, network)
        if host_access(network):
            attempt(failures, self._delete, stand_in(network), MACVLAN)
        if network.device:
            attempt(failures, self._delete, network.device, VLAN if OPT_PARENT in network.options else VETH)
        report(failures, f"network {network.name} could not be removed completely")

    def _delete(self, name: str, kind: str) -> None:
        """Another's device that has the name now stays."""
        device = macvlans.find(name)
        if device is not None and device.kind == kind:
            self.context.links.delete(device.ifindex)

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        # Before Linux 6.14 a name that the host has is taken for one that the namespace has, too.
        name = waiting_name(endpoint)
        with ExitStack() as undo:
            undo.callback(self.delete_endpoint, network, endpoint, sandbox)
            try:
                made = macvlans.create(
                    *(name, parent(network), mode(network), endpoint.mac), network.mtu or 0, sandbox
                )
            except KernelError as error:
                if mode(network) == PASSTHRU and error.errno in (errno.EINVAL, errno.EBUSY):
                    raise InUseError(
                        f"network {network.name} has the mode {PASSTHRU}: device {parent(network)} is for one container"
                    ) from error
                raise
            endpoint = replace(endpoint, mac=made.mac)
            if sandbox is not None:
                with Links(sandbox) as inside:
                    inside.rename(made.ifindex, endpoint.ifname)
            self._lead(network, endpoint)
            undo.pop_all()
        return endpoint

    def join(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint:
        macvlans.once_free(lambda: self._join(network, endpoint, sandbox))
        return self._questions.join(network, endpoint, sandbox)

    def _join(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        super().join(network, endpoint, sandbox)

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        self._lead(network, endpoint)
        self._questions.restore(network, endpoint)

    def open_links(self, network: Network, links: Mapping[LinkKey, LinkValue]) -> None:
        self._questions.open_links(network, links)

    def _lead(self, network: Network, endpoint: Endpoint) -> None:
        if host_access(network):
            for address in addresses(endpoint):
                ways.lead(stand_in(network), address.ip)

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        failures: list[Exception] = []
        attempt(failures, self._questions.leave, network, endpoint)
        attempt(failures, self._delete, waiting_name(endpoint), MACVLAN)
        if sandbox is not None:
            attempt(failures, self._delete_inside, network, endpoint, sandbox)
        if host_access(network):
            for address in addresses(endpoint):
                attempt(failures, ways.lead_no_more, stand_in(network), address.ip)
        report(failures, f"endpoint {endpoint.id[:12]} could not be removed completely")

    def _delete_inside(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        """A device of that name that was made by somebody in there stays: it has another MAC address."""
        macs, above = {endpoint.mac}, macvlans.find(parent(network))
        if mode(network) == PASSTHRU and above is not None:
            macs.add(above.mac)  # as a command that was killed may not have written down
        devices = observe.stack(sandbox).devices
        names = {*names_inside(endpoint, sandbox), endpoint.ifname, waiting_name(endpoint)}
        mine = [d for d in devices.values() if d.kind == MACVLAN and d.mac in macs and d.name in names]
        with Links(sandbox) as inside:
            inside.delete(*(device.ifindex for device in mine))

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.macvlan import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.lan import repair

        return {**InsideDriver.repairs(), **repair.REPAIRS}
