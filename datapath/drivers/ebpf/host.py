# SPDX-License-Identifier: Apache-2.0
"""The packet programs on a host: loaded once for all networks, and attached to its uplinks and loopback device."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

from datapath.config.tuning import different, drift
from datapath.dataplane import upgrade, version
from datapath.dataplane.attach import HOOK_OF
from datapath.dataplane.convert import to_abi
from datapath.dataplane.host_entries import parent_entries, policed, uplink_devices
from datapath.dataplane.layout import HOOKS, POLICY_HOOK, UPLINK_HOOKS, UPLINK_KINDS, Setup
from datapath.dataplane.name_entries import NameRows, Touched
from datapath.dataplane.name_owners import host_is_asked, is_told
from datapath.dataplane.programs import Dataplane
from datapath.drivers.base import HostPart
from datapath.drivers.context import Context, HostView
from datapath.drivers.ebpf import addresses, flows, names, policies, services
from datapath.errors import KernelError
from datapath.kernel import abi, macvlans
from datapath.kernel.devices import find_index, name_of
from datapath.kernel.links import LOOPBACK
from datapath.model.drivers import built, spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.resolv import RESOLVER

_PARENT = int(abi.DeviceKind.DEVICE_PARENT)
_CANNOT_ATTACH = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)  # it is the device's fault


class EbpfHost(HostPart):
    """What the packet programs have on the host for all networks together."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.services = services.EbpfServices(context)
        self.policies = policies.EbpfPolicies(context)
        self._upgrading = False  # the command is one that replaces programs of another version

    def begin(self, view: HostView, upgrading: bool) -> None:
        """Finishes an upgrade that was cut short; tells of a version, and of settings, that came after the programs
        were loaded, unless they are being upgraded."""
        self._upgrading = upgrading
        settings, tuning = self.context.settings, self.context.tuning
        loaded = self.context.loaded
        if loaded is not None and upgrade.pending(settings.bpffs) and upgrade.finish(loaded):
            view.warn("the packet programs were being replaced: done")
        if loaded is None or upgrading:
            return
        if loaded.outdated:
            view.warn("the packet programs are of another version: `datapathctl upgrade` replaces them")
            return
        actual = loaded.setup()
        if found := drift(tuning, actual.config, actual.sizes):
            view.warn(f"the packet programs were loaded with other settings: {found}")

    def lost(self, view: HostView) -> bool:
        """Loads the programs if networks need them and they are gone: if they cannot be, all stays as it is."""
        if not view.networks or self.context.loaded is not None:
            return False
        _ = self.context.dataplane
        view.warn("the packet programs were missing on the host: loaded again, networks and ports with them")
        return True

    # ---- what follows the host -------------------------------------------------------------

    def refresh(self, view: HostView) -> None:
        dataplane = self.context.loaded
        if dataplane is None:
            return
        dataplane.tell_host(view.observed)
        self._note_others(dataplane, view)
        self._attach_uplinks(dataplane, view)
        self.refresh_acls(view)
        addresses.tell(dataplane, view)
        addresses.tell_prefixes(dataplane, view)
        names.tell_subnets(dataplane, view)
        if host_is_asked(view.state, view.names, view.observed):
            self._attach_loopback(dataplane)  # before rows say that it is asked
        if not (self._upgrading and dataplane.outdated):  # else `upgrade` does, unless it is refused
            names.follow(dataplane, view)

    def _note_others(self, dataplane: Dataplane, view: HostView) -> None:
        """Gateway devices of networks that others forward: the programs keep their containers from these."""
        kind = int(abi.DeviceKind.DEVICE_GATEWAY)
        others = [n for n in built(view.state.networks.values()) if not (traits(n).programs or traits(n).lan)]
        for network in others:
            index = self.context.links.index(network.device)
            wanted = {abi.device_key(index)} if index is not None else set()
            dataplane.devices.delete_many(_gateways_of(dataplane, network) - wanted)
            for key in wanted:
                dataplane.devices[key] = abi.device(kind=kind, network=network.number)

    def _attach_uplinks(self, dataplane: Dataplane, view: HostView) -> None:
        """To new uplinks; those that are none any more, or of another kind, are given up."""
        served = [uplink for uplink in view.observed.uplinks if not uplink.unserved]
        parents = parent_entries(view.networks, macvlans.find) if dataplane.has("parents") else {}
        wanted = {to_abi(k): to_abi(v) for k, v in uplink_devices(served, parents).items()}
        wanted |= _tunnels(view.networks)
        known: dict[Any, Any] = {}
        for kind in UPLINK_KINDS:
            known |= dataplane.devices.having("kind", int(abi.DeviceKind[kind]))
        for key, value in known.items():
            if key not in wanted:
                dataplane.detach(HOOK_OF[value.kind], key.ifindex)  # it may be there still, without a route
                if value.kind == _PARENT:
                    dataplane.detach(POLICY_HOOK, key.ifindex)
                dataplane.detach_xdp(key.ifindex)
                dataplane.devices.pop(key, None)
        deciding = policed(view.networks, parents)
        hooks = {HOOK_OF[value.kind] for value in wanted.values()} | ({POLICY_HOOK} if deciding else set())
        dataplane.need(*sorted(hooks))
        dataplane.devices.update_many(
            {key: value for key, value in wanted.items() if known.get(key) != value}
        )
        if dataplane.has("parents"):
            dataplane.parents.update_many(parents)
            dataplane.parents.delete_many(set(dataplane.parents) - parents.keys())
        unserved = {u.ifindex: u.unserved for u in view.observed.uplinks if u.unserved}
        for key, value in wanted.items():
            try:
                self._attach_uplink(dataplane, key.ifindex, value.kind, known.get(key))
                if key.ifindex in deciding:
                    dataplane.attach(POLICY_HOOK, key.ifindex)
                elif key in known and known[key].kind == _PARENT != value.kind:
                    dataplane.detach(POLICY_HOOK, key.ifindex)
            except KernelError as error:
                if error.errno not in _CANNOT_ATTACH:
                    raise
                if name_of(None, key.ifindex):  # else it has just gone
                    unserved[key.ifindex] = str(error)
        for index in sorted(dataplane.note_unserved(unserved.keys())):
            view.warn(f"device {name_of(None, index)} is not served: {unserved[index]}")

    @staticmethod
    def _attach_uplink(dataplane: Dataplane, ifindex: int, kind: int, known: Any) -> None:
        """In place of another hook, if it was a device of another kind: as a filter that takes the other's place, else
        beside it for a moment, in which both see packets that either leaves alone."""
        hook, other = HOOK_OF[kind], HOOK_OF[known.kind] if known is not None else ""
        dataplane.attach(hook, ifindex)
        if other and other != hook:
            dataplane.replaced(other, ifindex)

    def forget_network(self, view: HostView, network: Network) -> None:
        dataplane = self.context.loaded
        if dataplane is None:
            return
        if traits(network).lan:
            self._attach_uplinks(dataplane, view)  # its parent is an uplink like any
        else:
            gateways = (subnet.gateway for subnet in network.subnets if subnet.gateway)
            dataplane.addresses.delete_many(abi.address_key(address) for address in gateways)
        dataplane.devices.delete_many(_gateways_of(dataplane, network))
        names.tell_subnets(dataplane, view)
        names.forget_counts(dataplane, network)
        flows.forget(dataplane, network)

    def resolves(self, network: Network) -> bool:
        loaded = self.context.loaded
        # Those of another version may let anything pass where only questions are to.
        knows = traits(network).programs or (loaded is not None and not loaded.outdated)
        return traits(network).told and knows and names.answered(loaded)

    def lead_to_resolver(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        if self.resolves(network) and is_told(endpoint, network):
            hop, source = names.hop(network, endpoint)
            device = spec_of(network).resolver_device(endpoint)
            self.context.links.lead(sandbox, device, RESOLVER, hop, source, endpoint.number)

    def write_names(self, rows: NameRows, gone: Touched) -> None:
        if (dataplane := self.context.loaded) is not None:
            names.write(dataplane, rows, gone)

    def sync_names(self, view: HostView) -> None:
        if (dataplane := self.context.loaded) is not None:
            names.sync(dataplane, view)

    def refresh_acls(self, view: HostView) -> None:
        """XDP on the uplinks while it has something to refuse: sources that an ACL denies, or floods."""
        dataplane = self.context.loaded
        if dataplane is None:
            return
        acls = any(mapping.acl for mapping in view.state.published)
        wanted = acls or dataplane.limits_floods
        for uplink in view.observed.uplinks:
            if not wanted or uplink.bare or uplink.unserved:
                dataplane.detach_xdp(uplink.ifindex)
            elif not dataplane.attach_xdp(uplink.ifindex) and dataplane.note_other_xdp(uplink.ifindex):
                view.warn(
                    f"device {uplink.name} has another XDP program: sources are refused later, "
                    "and there is no limit on floods"
                )

    def finish(self, view: HostView) -> None:
        """On the loopback device while anything is published, for what the host sends past the socket hooks, or name
        servers of the host's own are asked, for what they answer."""
        dataplane = self.context.loaded
        if dataplane is None:
            return
        group = view.observed.group
        if view.networks and not view.observed.whole and self.context.settings.cgroup is None:
            view.warn(
                f"the socket hooks see only those processes of the host that are in its control group {group}"
            )
        key = abi.device_key(LOOPBACK)
        published = any(True for _ in view.state.published)
        if published or host_is_asked(view.state, view.names, view.observed):
            self._attach_loopback(dataplane)
        elif key in dataplane.devices:
            dataplane.detach("from_loopback", LOOPBACK)
            dataplane.devices.pop(key)

    def _attach_loopback(self, dataplane: Dataplane) -> None:
        dataplane.devices[abi.device_key(LOOPBACK)] = abi.device(kind=int(abi.DeviceKind.DEVICE_LOOPBACK))
        dataplane.attach("from_loopback", LOOPBACK)

    # ---- versions, and the end -----------------------------------------------------------------

    def upgrade(self, view: HostView, fill: Callable[[], None]) -> bool:
        """The programs of this version, with the settings of now, in place of those that are loaded. False: they are
        these, or none are loaded."""
        loaded = self._layout_before() or self.context.loaded
        if loaded is None:
            return False
        if not loaded.outdated and not different(self.context.tuning.config, loaded.setup().config):
            return False

        def complete() -> None:
            loaded.tell_host(view.observed)
            names.follow(loaded, view)
            fill()

        with loaded:
            upgrade.finish(loaded, upgrade.prepare(loaded, complete))
        self.context.dataplane.close()  # what it has opened are the old ones
        self.refresh(view)  # there may be hooks that the version before did not have
        return True

    def _layout_before(self) -> Dataplane | None:
        """The programs of a version whose maps have to be carried over before anybody can use them."""
        context = self.context
        if not version.to_carry(context.settings.bpffs):
            return None
        setup = Setup(context.tuning.config, context.tuning.sizes)
        return Dataplane(context.settings.bpffs, context.settings.attach, setup, context.settings.cgroup)

    def remove(self, view: HostView) -> None:
        """Takes the programs off the devices that stay, and unloads them; also what is there in part only."""
        staying = (*UPLINK_HOOKS, "from_loopback")
        dataplane = self.context.loaded
        if dataplane is not None:
            rows = dataplane.devices.read_all()
            hooks = ((HOOK_OF.get(value.kind, ""), key.ifindex) for key, value in rows)
            attached = [(hook, index) for hook, index in hooks if hook in staying]
            attached += [(POLICY_HOOK, key.ifindex) for key, value in rows if value.kind == _PARENT]
        else:
            settings = self.context.settings
            dataplane = Dataplane(settings.bpffs, settings.attach)
            if not dataplane.is_there():
                return
            every = (*UPLINK_HOOKS, POLICY_HOOK)
            places = {uplink.ifindex for uplink in view.observed.uplinks} | dataplane.places()
            attached = [(hook, index) for index in places - {LOOPBACK} for hook in every]
            attached.append(("from_loopback", LOOPBACK))
        for hook, index in attached:
            dataplane.detach(hook, index)
        dataplane.remove()


def _tunnels(networks: Iterable[Network]) -> dict[Any, Any]:
    """Rows of devices that drivers have for what has been in a tunnel, and whose program is one of uplinks."""
    hooks = {name: hook for one in networks for name, hook in spec_of(one).shared_devices.items()}
    kinds = {name: HOOKS[hook].kind for name, hook in hooks.items() if hook in UPLINK_HOOKS}
    found = ((find_index(name), kind) for name, kind in kinds.items())
    return {abi.device_key(i): abi.device(kind=int(abi.DeviceKind[kind])) for i, kind in found if i}


def _gateways_of(dataplane: Dataplane, network: Network) -> set[Any]:
    """The keys of the devices that the programs know as the network's gateway device: one, or of one that is gone."""
    gateways = dataplane.devices.having("kind", int(abi.DeviceKind.DEVICE_GATEWAY))
    return {key for key, device in gateways.items() if device.network == network.number}
