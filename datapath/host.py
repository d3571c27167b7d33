# SPDX-License-Identifier: Apache-2.0
"""`Host`: the network engine of a host, as every front door uses it. See ``docs/library.md``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datapath.attachments import Attachments
from datapath.config.settings import Settings
from datapath.engine.engine import Engine, ignore
from datapath.model.rows import OWNER, Phase
from datapath.policies import Policies
from datapath.services import Services

if TYPE_CHECKING:
    from datapath.drivers.base import JoinInfo
    from datapath.engine.transaction import Owner
    from datapath.model.endpoints import Endpoint, EndpointRequest
    from datapath.model.networks import Network, NetworkRequest
    from datapath.model.parsing import Prefix
    from datapath.model.ports import PortMapping
    from datapath.model.sandboxes import Labels, Sandbox


class Host(Engine):
    """The network engine of one host: the network namespace that the calling thread is in.

    Each call is one command: it takes the lock of the host, sees what earlier ones left unfinished, validates all
    before it changes anything, and takes back what it did if it fails. Calls that look take no lock. All raise
    `DatapathError`s: ConfigError and NotFoundError, ExistsError, InUseError before anything is changed; KernelError
    and its kinds; StateError; PrivilegeError. What takes something away goes through all of it, and raises an
    ExceptionGroup at the end if parts of it could not go.
    """

    @classmethod
    def open(
        cls,
        settings: Settings | None = None,
        warn: Callable[[str], None] = ignore,
        owners: Sequence[Owner] = (),
        lasting: bool = False,
    ) -> Host:
        """The host with these settings; None: those of the environment (DATAPATH_STATE_DIR, …). Changes nothing.

        `warn` takes lines that the user should see and that are no errors. `owners`: what can be asked about the
        networks and sandboxes of other runtimes. `lasting`: many commands are to come, of a server perhaps: the store
        stays open after the first one already.
        """
        from datapath.runtime.recovery import ContainerOwner

        return cls(settings or Settings.from_env(os.environ), warn, (ContainerOwner(), *owners), lasting)

    @cached_property
    def networks(self) -> Networks:
        """The host's networks."""
        return Networks(self)

    @cached_property
    def sandboxes(self) -> Sandboxes:
        """Sandboxes that other owners made."""
        return Sandboxes(self)

    @cached_property
    def endpoints(self) -> Endpoints:
        """Endpoints of other owners' sandboxes."""
        return Endpoints(self)

    @cached_property
    def ports(self) -> Ports:
        """Published ports of other owners' sandboxes."""
        return Ports(self)

    @cached_property
    def attachments(self) -> Attachments:
        """The same in one piece: other owners' sandboxes on networks that are there for them."""
        return Attachments(self)

    @cached_property
    def services(self) -> Services:
        """The host's services."""
        return Services(self)

    @cached_property
    def policies(self) -> Policies:
        """Who may open connections to whom."""
        return Policies(self)

    def down(self, force: bool = False) -> None:
        """Takes everything away: containers, endpoints, networks, programs, pins, and the state. InUseError: other
        owners have networks or sandboxes here, and not `force`."""
        from datapath.runtime.containers import Containers

        Containers(self).down(force)


class Networks:
    """Networks by name, id, or the unique beginning of an id."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def all(self) -> list[Network]:
        """All networks, by name."""
        return sorted(self._host.snapshot().networks.values(), key=lambda network: network.name)

    def get(self, name: str) -> Network:
        """One network. NotFoundError; ConfigError: the beginning of an id means several."""
        return self._host.snapshot().network(name)

    def everywhere(self) -> list[Network]:
        """The same, and those that only other hosts of the cluster take part in."""
        from datapath.engine import elsewhere

        return elsewhere.all_networks(self._host)

    def inspect(self, name: str, verbose: bool = False) -> dict[str, Any]:
        """Docker's JSON of one network, of this host or the cluster; `verbose`: and its services. NotFoundError,
        StateError."""
        from datapath.engine import elsewhere

        return elsewhere.inspect(self._host, name, verbose)

    def plan(self, request: NetworkRequest, avoid: Sequence[Prefix] = ()) -> Network:
        """The network that `create` would create now; nothing is created, and its addresses are not kept for it.
        `avoid`: prefixes that are taken, though nothing here says so. ConfigError, ExistsError, NotSupportedError."""
        from datapath.engine import networks

        with self._host.changing() as tx:
            return networks.plan(tx, request, avoid)

    def create(self, request: NetworkRequest, allots: bool = False) -> Network:
        """Creates a network; `request.owner` says for whom. ConfigError, ExistsError, NotSupportedError.

        `allots`: the owner allots subnets, and never one twice: any network of his that has no endpoints and one of
        these is removed.
        """
        from datapath.engine import sandboxes

        with self._host.changing() as tx:
            return sandboxes.create_network(tx, request, allots)

    def remove(self, name: str, owner: str = OWNER, force: bool = False, members: bool = False) -> Network:
        """Removes a network that has no endpoints, but dead ones; with `members` also those of the owner, who knows
        that they are gone. NotFoundError, ConfigError; InUseError: it has endpoints, or it belongs to another owner and
        not `force`."""
        from datapath.engine import elsewhere, sandboxes

        elsewhere.require(self._host, name)  # so that no store is made for one that is not there
        with self._host.changing(freeing=True) as tx:
            return sandboxes.remove_network(tx, name, owner, force, members)

    def rename(self, name: str, new: str, owner: str) -> Network:
        """Gives a network of the owner, who calls it so himself, another name. NotFoundError, ConfigError;
        ExistsError: another network is called so; InUseError: it belongs to another owner."""
        from datapath.engine import networks

        with self._host.changing(create=False) as tx:
            return networks.rename(tx, name, new, owner)

    def prunable(self, filters: Sequence[str] = ()) -> list[Network]:
        """What `prune` would remove now. ConfigError: a filter is wrong."""
        from datapath.engine.transaction import now
        from datapath.plan.pruning import plan_network_prune

        return list(plan_network_prune(self._host.snapshot(), filters, now()))

    def prune(self, filters: Sequence[str] = ()) -> list[Network]:
        """Removes every unused network of datapath's own that passes the filters (`label=`, `label!=`, `until=`)."""
        from datapath.engine import lifecycle

        if not self._host.exists:
            return self.prunable(filters)  # none; refuses filters that are wrong
        with self._host.changing(freeing=True) as tx:
            return lifecycle.prune(tx, filters)


class Sandboxes:
    """Network namespaces that somebody else makes and takes away. Datapath never creates or deletes one."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def all(self) -> list[Sandbox]:
        """The sandboxes of other owners that have been adopted, by owner and name."""
        found = [s for s in self._host.snapshot().sandboxes.values() if s.foreign and s.key]
        return sorted(found, key=lambda sandbox: (sandbox.owner, sandbox.label))

    def get(self, name: str) -> Sandbox:
        """One of them, by id, name, its owner's key, or the unique beginning of an id. NotFoundError, ConfigError."""
        return self._host.snapshot().sandbox(name)

    def adopt(self, path: str, owner: str, key: str = "", name: str = "") -> Sandbox:
        """Makes the network namespace at `path` known as a sandbox of `owner`.

        `owner` is a word of 1 to 32 characters of [a-z0-9_-] other than "datapath". `key`: the owner's own identifier
        of it ("": the path). `name`: how users are shown it. A key that is known is the same sandbox, at this path
        from now on; endpoints that had joined it at another path, which is gone, are forgotten. ConfigError:
        `path` is no network namespace; ExistsError: the sandbox is at another path, which is there still.
        """
        from datapath.engine import sandboxes

        with self._host.changing() as tx:
            return sandboxes.adopt(tx, path, owner, key, name)

    def rename(self, owner: str, names: Mapping[str, str], labels: Labels | None = None) -> None:
        """Names and labels of the owner's sandboxes, by his keys of them; those not known are passed over."""
        from datapath.engine import sandboxes

        with self._host.changing(create=False) as tx:
            sandboxes.rename(tx, owner, names, labels or {})

    def forget(self, name: str, owner: str, force: bool = False) -> bool:
        """Deletes the sandbox's endpoints and forgets it; the namespace stays. False: there is no such sandbox.
        InUseError: it belongs to another owner and not `force`."""
        from datapath.engine import sandboxes

        if not self._host.exists:
            return False
        with self._host.changing(freeing=True) as tx:
            return sandboxes.forget(tx, name, owner, force)


class Endpoints:
    """Endpoints that other owners' sandboxes join networks by. Each step may be repeated, left out, or come late:
    `delete` implies all that takes away."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def all(self) -> list[Endpoint]:
        """The endpoints of other owners, in the order in which they were made."""
        state = self._host.snapshot()
        found = [e for e in state.endpoints.values() if state.owner(e) != OWNER and e.phase == Phase.READY]
        return sorted(found, key=lambda endpoint: endpoint.number)

    def create(
        self,
        request: EndpointRequest,
        owner: str,
        key: str = "",
        allots: bool = False,
        asker: tuple[int, int] = (0, 0),
    ) -> Endpoint:
        """Creates an endpoint on the network `request.network`: its addresses are taken, its device waits on the
        host. With a `key` (the owner's own identifier of it) that is known, the one that there is.

        ConfigError, NotFoundError; ExistsError: an address is taken, or the key means another endpoint. A holder of
        the address that is dead (its device on the host is gone) is evicted. `allots`: the owner allots the network's
        addresses, and never one twice: any other endpoint of his that has the address or MAC is evicted. `asker`: pid
        and start time (clock ticks since boot) of the owner's process that alone is going to move the device: once
        that has ended and the device waits on the host still, the endpoint is dead, too. (0, 0): there is none such.
        """
        from datapath.engine import sandboxes

        with self._host.changing() as tx:
            return sandboxes.create_endpoint(tx, request, owner, key, allots, asker)

    def join(self, endpoint: str, sandbox: str) -> JoinInfo:
        """Puts the endpoint, by id, into the sandbox, by id, name or key: its device gets its name, addresses and
        default routes there, and traffic passes.

        It is the same for an endpoint that is in that sandbox already. NotFoundError; ConfigError: it is in another
        sandbox, or nobody is in this one; ExistsError: the sandbox has an endpoint on that network already.
        """
        from datapath.engine import sandboxes

        with self._host.changing() as tx:
            return sandboxes.join(tx, endpoint, sandbox)

    def leave(self, endpoint: str, owner: str = "") -> bool:
        """Takes the endpoint, by id or with an owner by his key, out of its sandbox: its ports close, its addresses
        stay its own. The device waits on the host again; one that was handed over is for its owner to take out. False:
        it was in none. NotFoundError."""
        from datapath.engine import sandboxes

        with self._host.changing(freeing=True) as tx:
            return sandboxes.leave(tx, endpoint, owner)

    def hand_over(
        self, endpoint: str, owner: str, path: str, ports: Sequence[str] = (), name: str = ""
    ) -> JoinInfo:
        """Leaves it to the owner to move the endpoint's device into the network namespace that is, or will be, at
        `path`, and to give it name, addresses and routes there, as the answer says. By id or the owner's key.

        `ports`: what is to be published once the owner says `program`. `name`: how users are shown the sandbox, which
        is forgotten with its last endpoint. Nothing looks into it. The same for an endpoint that is in that sandbox
        already; one that is in another leaves that. NotFoundError, ConfigError; InUseError: it is another owner's.
        """
        from datapath.engine import handover

        with self._host.changing() as tx:
            return handover.hand_over(tx, endpoint, owner, path, ports, name)

    def program(
        self, endpoint: str, owner: str, ports: Sequence[str] | None = None
    ) -> tuple[PortMapping, ...]:
        """The owner says that the default route of the sandbox is at this endpoint, which was handed over: its ports
        are published there, and at no other endpoint of the sandbox. None: those that `hand_over` named.

        All of its ports then, with host ports decided. NotFoundError, ConfigError; ExistsError names who has a port.
        """
        from datapath.engine import handover

        with self._host.changing() as tx:
            return handover.program(tx, endpoint, owner, ports)

    def revoke(self, endpoint: str, owner: str) -> None:
        """Takes `program` back: the default route is not at this endpoint, and its ports close. NotFoundError."""
        from datapath.engine import handover

        with self._host.changing(freeing=True) as tx:
            handover.revoke(tx, endpoint, owner)

    def delete(self, endpoint: str, owner: str, force: bool = False) -> bool:
        """Deletes the endpoint, by id or its owner's key: it leaves its sandbox, its addresses are free. False:
        there is no such endpoint. InUseError: it belongs to another owner and not `force`."""
        from datapath.engine import sandboxes

        with self._host.changing(freeing=True) as tx:
            return sandboxes.delete_endpoint(tx, endpoint, owner, force)


class Ports:
    """Published ports of other owners' endpoints, in Docker's words: `[HOST-IP:][HOST-PORT:]PORT[/PROTOCOL]` and
    behind it `,allow=PREFIX` and `,deny=PREFIX`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def publish(self, endpoint: str, *specs: str, shared: bool = False) -> tuple[PortMapping, ...]:
        """Publishes ports of an endpoint, by id, that has joined a sandbox and has a default route; those that are
        published already stay. All of the endpoint's ports then, with host ports decided. `shared`: for a caller that
        holds the ports by sockets of its own, now or later: the host's sockets neither are in the way nor refused.

        NotFoundError, ConfigError; ExistsError names who has a port.
        """
        from datapath.engine import sandboxes

        with self._host.changing() as tx:
            return sandboxes.publish(tx, endpoint, specs, shared)

    def unpublish(self, endpoint: str, *specs: str) -> tuple[PortMapping, ...]:
        """Takes ports of an endpoint back, all of them without specs; those that are not published are passed over.
        The endpoint's ports then. NotFoundError, ConfigError."""
        from datapath.engine import sandboxes

        with self._host.changing(freeing=True) as tx:
            return sandboxes.unpublish(tx, endpoint, specs)
