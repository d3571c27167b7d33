# SPDX-License-Identifier: Apache-2.0
"""One state-changing command: the lock, the snapshot, the host, and what earlier commands left unfinished.

Entering a session takes the lock, then takes back or completes whatever a killed command left, notices
containers that have ended, and brings the host's outside devices up to date. What a command does after that
begins by writing rows with the phase "creating" or "removing" and ends by writing "ready" or deleting them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from datapath import drivers
from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.config.tuning import different, drift
from datapath.dataplane import entries
from datapath.drivers.context import Context
from datapath.drivers.linuxbridge import forwarding
from datapath.engine import recovery
from datapath.errors import DatapathError, KernelError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.observed import HostFacts
from datapath.model.ports import PortMapping
from datapath.model.rows import CHANGING, CREATING, READY, REMOVING
from datapath.model.state import Fresh, Object, State
from datapath.plan.containers import ExitPlan, plan_exited
from datapath.plan.endpoints import assign_gateways, network_mtu
from datapath.plan.ports import ephemeral_ports, parse_reserved, reserved_text
from datapath.store.sqlite import Store

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane
    from datapath.kernel.links import Facts

RESERVED_PORTS = "net/ipv4/ip_local_reserved_ports"


def now() -> str:
    """The time as the model writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def sandbox_key(state: State, sandbox_id: str) -> str | None:
    """The path of a sandbox's namespace, through whichever of its users is alive."""
    from datapath.kernel import process

    for container in state.users(sandbox_id):
        if container.running and process.alive(container.pid, container.pid_start):
            return f"/proc/{container.pid}/ns/net"
    return None


class Session:
    """Use as a context manager. `warn` is told what was mended, one line each. `opened` gives the store.
    `upgrading`: nobody has to be told that the programs are of another version. `leaving`: all of it goes, so nothing
    is built again, and programs of a version whose maps cannot be read are no obstacle."""

    def __init__(
        self,
        settings: Settings,
        warn: Callable[[str], None],
        opened: AbstractContextManager[Store],
        *,
        upgrading: bool = False,
        leaving: bool = False,
    ) -> None:
        from datapath.kernel import features

        features.require()  # before files are read that only root may read
        self.settings = settings
        self.warn = warn
        self._upgrading, self._leaving = upgrading, leaving
        self.config = DaemonConfig.load(settings)
        self.context = Context(settings, self.config.datapath)
        self.state = State()
        self._opened = opened
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            self.store = stack.enter_context(self._opened)
            self._keep(stack.enter_context(self.store.lock()), stack)
            stack.enter_context(self.context)
            self.state = self.store.load()
            if self._leaving:
                self.context.forsaken = not self._understood()
                recovery.clear_up(self)
            else:
                self._finish_upgrade()
                self._compare_setup()
                recovery.recover(self)
            self._stack = stack.pop_all()
        return self

    @staticmethod
    def _keep(lock: int, stack: ExitStack) -> None:
        from datapath.kernel import process

        process.kept.add(lock)
        stack.callback(process.kept.discard, lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self.store.exists(self.settings.state_dir):
                self.reserve_ports()
                self.refresh_loopback()

    # ---- rows ----------------------------------------------------------------------------

    def intend(self, *objects: Object) -> None:
        """Writes rows that say what the command is about to change in the kernel, without waiting for the disk: a
        failure of the whole machine that takes the rows back takes the changes too."""
        self.put(*objects, durable=False)

    def put(self, *objects: Object, durable: bool = True) -> None:
        """Writes rows, all or none."""
        if not objects:
            return
        with self.store.transaction(durable=durable):
            for thing in objects:
                self.store.put(thing)
        self.state = self.state.including(*objects)

    def delete(self, *objects: Object) -> None:
        with self.store.transaction():
            for thing in objects:
                self.store.delete(thing)
        self.state = self.state.without(*objects)

    @property
    def fresh(self) -> Fresh:
        return Fresh(now(), lambda: os.urandom(32).hex(), self.store.next_number)

    # ---- the host ------------------------------------------------------------------------

    @cached_property
    def observed(self) -> Facts:
        """The host's devices, addresses and routes as they were when the command looked."""
        return self.context.links.facts(
            {network.device for network in self.state.networks.values() if network.device}
        )

    @cached_property
    def facts(self) -> HostFacts:
        """The same as plans need it: without what is ours, unless a plan would be in its way."""
        ours = {subnet.prefix for network in self.state.networks.values() for subnet in network.subnets}
        prefixes = {address.network for address in self.observed.addresses} | set(self.observed.routes)
        return HostFacts(
            prefixes=tuple(prefixes - ours),
            addresses=frozenset(address.ip for address in self.observed.addresses),
            default_mtu=self.observed.default_mtu,
            default_route=self.observed.default_route,
            devices=frozenset(self.observed.names),
            uplinks=tuple(uplink.name for uplink in self.observed.uplinks),
        )

    @property
    def realised(self) -> list[Network]:
        """The bridge networks, of whichever mode, that are built."""
        return [n for n in self.state.networks.values() if n.realised and n.driver == "bridge"]

    def refresh_host(self) -> None:
        """Keeps packets forwarded that have to be, and the packet programs, if there are any, up to date."""
        for device in self.context.links.keep_forwarding(n.device for n in self.realised):
            self.warn(f"forwarding had been switched off for {device}: it is on again")
        forwarding.refresh(self.store, self.realised, self.observed.uplinks)
        dataplane = self.context.loaded
        if dataplane is not None:
            self._refresh_programs(dataplane)

    def _refresh_programs(self, dataplane: Dataplane) -> None:
        """Attaches to outside devices that are new, and tells the programs the host's addresses and the bridges
        of classic networks, which they keep their containers from."""
        from datapath.kernel import abi

        bridges = {n.number: self.context.links.index(n.device) for n in self.realised if n.classic}
        gateway = int(abi.DeviceKind.DEVICE_GATEWAY)
        for number, index in bridges.items():
            if index is not None:
                dataplane.devices[abi.device_key(index)] = abi.device(kind=gateway, network=number)
        kind = int(abi.DeviceKind.DEVICE_UPLINK)
        wanted = {
            abi.device_key(uplink.ifindex): abi.device(kind=kind, addr4=uplink.ipv4, addr6=uplink.ipv6)
            for uplink in self.observed.uplinks
        }
        known = dataplane.devices.having("kind", kind)
        for key in known.keys() - wanted.keys():
            dataplane.detach("from_uplink", key.ifindex)  # it may be there still, without an address
            dataplane.detach_xdp(key.ifindex)
            dataplane.devices.pop(key, None)
        dataplane.devices.update_many(
            {key: value for key, value in wanted.items() if known.get(key) != value}
        )
        for key in wanted:
            dataplane.attach("from_uplink", key.ifindex)
        self.refresh_xdp()
        own = {address.ip for address in self.observed.addresses}
        # What was observed may be older than a network that this command has built.
        own |= {s.gateway for n in self.realised for s in n.subnets if s.gateway}
        addresses = {abi.address_key(address): abi.address() for address in own}
        present = dict(dataplane.addresses.read_all())
        dataplane.addresses.delete_many(present.keys() - addresses.keys())
        dataplane.addresses.update_many(
            {key: value for key, value in addresses.items() if key not in present}
        )

    def refresh_xdp(self) -> None:
        """XDP on the outside devices while it has something to refuse: rules of a published port, or floods."""
        dataplane = self.context.loaded
        if dataplane is None:
            return
        rules = any(mapping.filter for e in self.state.endpoints.values() for mapping in e.ports)
        wanted = rules or dataplane.limits_floods
        for uplink in self.observed.uplinks:
            if not wanted:
                dataplane.detach_xdp(uplink.ifindex)
            elif not dataplane.attach_xdp(uplink.ifindex) and dataplane.note_other_xdp(uplink.ifindex):
                self.warn(
                    f"device {uplink.name} has another XDP program: sources are refused later, "
                    "and there is no limit on floods"
                )

    def refresh_loopback(self) -> None:
        """On the loopback device while anything is published: for what the host sends past the socket hooks."""
        from datapath.kernel import abi
        from datapath.kernel.links import LOOPBACK

        dataplane = self.context.loaded
        if dataplane is None:
            return
        key = abi.device_key(LOOPBACK)
        if any(endpoint.ports for endpoint in self.state.endpoints.values()):
            dataplane.devices[key] = abi.device(kind=int(abi.DeviceKind.DEVICE_LOOPBACK))
            dataplane.attach("from_loopback", LOOPBACK)
        elif key in dataplane.devices:
            dataplane.detach("from_loopback", LOOPBACK)
            dataplane.devices.pop(key)

    def _understood(self) -> bool:
        from datapath.dataplane import version

        return version.understood(self.settings.bpffs)

    def _finish_upgrade(self) -> None:
        """One that was cut short."""
        from datapath.dataplane import upgrade

        if not upgrade.pending(self.settings.bpffs):
            return
        loaded = self.context.loaded
        if loaded is not None and upgrade.finish(loaded):
            self.warn("the packet programs were being replaced: done")

    def _compare_setup(self) -> None:
        """A version, and settings, that came after the programs were loaded."""
        loaded = self.context.loaded
        if loaded is None or self._upgrading:
            return
        if loaded.outdated:
            self.warn("the packet programs are of another version: `datapathctl upgrade` replaces them")
            return
        actual = loaded.setup()
        if found := drift(self.config.datapath, actual.config, actual.sizes):
            self.warn(f"the packet programs were loaded with other settings: {found}")

    def upgrade(self) -> bool:
        """The packet programs of this version, with the settings of now, in place of those that are loaded.
        False: they are these."""
        from datapath.dataplane import upgrade

        loaded = self.context.loaded
        if loaded is None:
            return False
        if not loaded.outdated and not different(self.config.datapath.config, loaded.setup().config):
            return False
        upgrade.prepare(loaded)
        upgrade.finish(loaded)
        self.refresh_xdp()
        return True

    def reserve_ports(self) -> None:
        """Takes published ports off the kernel's choice of ports for sockets that do not care.

        No bind() shows such a choice; a container would get the answers. The host's own setting is noted, kept in
        force, and put back when nothing is published in that range any more.
        """
        from datapath.kernel import sysctl

        ours = ephemeral_ports(self.state, sysctl.ephemeral_ports())
        before = self.store.note(RESERVED_PORTS)
        if not ours and before is None:
            return
        current = sysctl.read(RESERVED_PORTS)
        if before is None:
            before = current.strip()
            self.store.set_note(RESERVED_PORTS, before)
        wanted = parse_reserved(before) | ours
        if wanted != parse_reserved(current):
            sysctl.write(RESERVED_PORTS, reserved_text(wanted))
        if not ours:
            self.store.set_note(RESERVED_PORTS, None)

    def remove_dataplane(self) -> None:
        """Takes the programs off the devices that stay, and unloads them; also what is there in part only."""
        from datapath.dataplane.attach import HOOK_OF
        from datapath.dataplane.programs import Dataplane
        from datapath.kernel.links import LOOPBACK

        staying = ("from_uplink", "from_loopback")
        dataplane = self.context.loaded
        if dataplane is not None:
            rows = dataplane.devices.read_all()
            hooks = ((HOOK_OF.get(value.kind, ""), key.ifindex) for key, value in rows)
            attached = [(hook, index) for hook, index in hooks if hook in staying]
        else:
            dataplane = Dataplane(self.settings.bpffs, self.settings.attach)
            if not dataplane.is_there():
                return
            places = {uplink.ifindex for uplink in self.observed.uplinks} | dataplane.places()
            attached = [("from_uplink", index) for index in places - {LOOPBACK}]
            attached.append(("from_loopback", LOOPBACK))
        for hook, index in attached:
            dataplane.detach(hook, index)
        dataplane.remove()

    def driver(self, network: Network) -> drivers.Driver:
        return drivers.find(network, self.context)

    def mtu(self, network: Network) -> int:
        return network_mtu(network, self.facts)

    # ---- networks and endpoints ------------------------------------------------------------

    def realise(self, network: Network) -> Network:
        """Builds a planned network: intent, kernel, record."""
        network = replace(network, phase=CREATING)
        self.put(network)
        try:
            self.driver(network).create_network(network, self.mtu(network))
        except BaseException:
            self.withdraw(network)
            raise
        network = replace(network, phase=READY, realised=True)
        self.put(network)
        self.refresh_host()
        return network

    def withdraw(self, network: Network) -> None:
        """Takes a network away; a predefined one goes back to being unused."""
        from datapath.kernel import abi

        self.driver(network).delete_network(network)
        if (dataplane := self.context.loaded) is not None:
            gateways = (subnet.gateway for subnet in network.subnets if subnet.gateway)
            dataplane.addresses.delete_many(abi.address_key(address) for address in gateways)
        if network.predefined:
            self.put(replace(network, phase=READY, realised=network.driver != "bridge", subnets=()))
        else:
            self.delete(network)
        if network.classic:
            forwarding.refresh(self.store, self.realised, self.observed.uplinks)

    def join(self, endpoint: Endpoint, key: str) -> Endpoint:
        """Puts an endpoint, whose row is written, into the sandbox with that namespace path.

        Its device's index is for the caller to write down, with the next phase.
        """
        network = self.state.networks[endpoint.network_id]
        endpoint = self.driver(network).join(network, endpoint, key, self.mtu(network))
        self.state = self.state.including(endpoint)
        if not network.icc:
            self.driver(network).program_links(network, entries.link_entries(network, self.state))
        self.publish(endpoint, endpoint.ports)
        return endpoint

    def publish(
        self,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        again: bool = False,
        state: State | None = None,
    ) -> None:
        """Opens ports of an endpoint; its row names them already. `again`: it has had them all along. `state`: what
        the rows will say, if they do not yet."""
        if mappings:
            self.reserve_ports()
            network = self.state.networks[endpoint.network_id]
            reserved = entries.reserved_entries(state or self.state, mappings)
            driver = self.driver(network)
            program = driver.reclaim_external if again else driver.program_external
            program(network, endpoint, mappings, reserved)
            if any(mapping.filter for mapping in mappings):
                self.refresh_xdp()

    def revoke(self, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        """Closes ports of an endpoint; what another endpoint has too, while ports move, leads there."""
        if not mappings:
            return
        left = tuple(mapping for mapping in endpoint.ports if mapping not in mappings)
        after = self.state.including(replace(endpoint, ports=left))
        network = self.state.networks[endpoint.network_id]
        reserved = entries.reserved_entries(after, mappings)
        filters = frozenset(m.filter for m in mappings if m.filter) - filters_in_use(after)
        self.driver(network).revoke_external(network, endpoint, mappings, reserved, filters)
        for other in self.state.endpoints_of_sandbox(endpoint.sandbox_id):
            theirs = tuple(mapping for mapping in other.ports if mapping in mappings)
            if other.id != endpoint.id and theirs:
                self.publish(other, theirs, again=True, state=after)

    def reshape(self, before: PortMapping, mapping: PortMapping, endpoints: tuple[Endpoint, ...]) -> None:
        """Exchanges the rules of a mapping, in one step for each port; the rows name the new ones already."""
        concerned = [endpoint for endpoint in endpoints if mapping in endpoint.ports]
        for endpoint in concerned:
            self.publish(endpoint, (mapping,), again=True)
        unused = frozenset({before.filter} - {0}) - filters_in_use(self.state)
        for endpoint in concerned:
            driver = self.driver(self.state.networks[endpoint.network_id])
            driver.forget_filters(unused)
            driver.end_refused(endpoint, (mapping,))
        self.refresh_xdp()

    def settle(self, sandbox_id: str) -> None:
        """Gives a sandbox's endpoints the default routes and ports that they are to have, whatever they have."""
        owner = self.state.containers.get(sandbox_id)
        endpoints = [e for e in self.state.endpoints_of_sandbox(sandbox_id) if e.phase != REMOVING]
        ports = owner.ports if owner else tuple(dict.fromkeys(m for e in endpoints for m in e.ports))
        wanted = assign_gateways(endpoints, ports, self.state)
        self.put(*(replace(endpoint, phase=CHANGING) for endpoint in wanted))
        key = self.sandbox_key(sandbox_id)
        for endpoint in sorted(wanted, key=lambda e: e.gateway):
            network = self.state.networks[endpoint.network_id]
            if key is not None:
                self.driver(network).set_routes(network, endpoint, key)
            published = [m for e in self.state.endpoints.values() for m in e.ports]
            self.driver(network).align_external(
                network, endpoint, entries.reserved_entries(self.state), entries.acl_entries(published)
            )
            self.driver(network).end_refused(endpoint, endpoint.ports)
        self.refresh_xdp()
        self.put(*(replace(endpoint, phase=READY) for endpoint in wanted))

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        network = self.state.networks[endpoint.network_id]
        self.revoke(endpoint, endpoint.ports)
        self.driver(network).leave(network, endpoint)
        self.delete(endpoint)
        if any(mapping.filter for mapping in endpoint.ports):
            self.refresh_xdp()

    def release(self, plan: ExitPlan) -> None:
        """Records a container's end and removes what nobody uses any more. Goes through all, then reports."""
        rows: list[Object] = [plan.container, *plan.endpoints]
        self.put(*rows, *([plan.sandbox] if plan.sandbox else []))
        failures: list[Exception] = []
        for endpoint in plan.endpoints:
            try:
                self.remove_endpoint(endpoint)
            except (DatapathError, ExceptionGroup) as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup(
                f"container {plan.container.name} could not be cleaned up completely", failures
            )
        if plan.sandbox:
            self.delete(plan.sandbox)
        if plan.container.phase == REMOVING:
            self.forget_files(plan.container)
            self.delete(plan.container)

    # ---- containers ------------------------------------------------------------------------

    def folder(self, container: Container) -> Path:
        """Where a container's hosts, resolv.conf, hostname, log and exit code are."""
        return container_folder(self.settings, container)

    def forget_files(self, container: Container) -> None:
        """KernelError if some of them stay."""
        try:
            shutil.rmtree(self.folder(container))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KernelError(
                "remove", str(error.filename or self.folder(container)), error.errno or 0
            ) from error

    def sandbox_key(self, sandbox_id: str) -> str | None:
        return sandbox_key(self.state, sandbox_id)

    def ended(self, container: Container) -> None:
        """A running container's process is gone: record it."""
        from datapath.runtime import spawn

        code = spawn.read_exit(str(self.folder(container) / "exit"))
        error = "" if code is not None else "its exit code is unknown: its shim was killed"
        self.release(plan_exited(container.id, code, self.state, now(), error))

    def take_back(self, container: Container) -> None:
        """A container that is not to be: its endpoints, its files and its row go."""
        gone = replace(self.state.containers[container.id], phase=REMOVING)
        self.release(replace(plan_exited(container.id, None, self.state, now()), container=gone))


def filters_in_use(state: State) -> set[int]:
    """Numbers of rules that ports of endpoints lead to."""
    return {mapping.filter for endpoint in state.endpoints.values() for mapping in endpoint.ports}


def container_folder(settings: Settings, container: Container) -> Path:
    return settings.run_dir / "containers" / container.id
