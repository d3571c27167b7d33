# SPDX-License-Identifier: Apache-2.0
"""What a driver works with: the host's devices and the packet programs, opened when first used, and the host as the
command sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from datapath.config.settings import Settings
from datapath.config.tuning import Tuning
from datapath.drivers.notes import Notes as Notes
from datapath.model.endpoints import Endpoint
from datapath.model.host import HostNetwork
from datapath.model.networks import Network
from datapath.model.resolv import NameFacts
from datapath.model.state import State

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane
    from datapath.drivers.remote.client import PluginCalls
    from datapath.kernel.links import Links


@dataclass(frozen=True, slots=True)
class HostView:
    """The host, as a driver's part of it is told. `networks`: those of the driver that are built; `state`: all rows;
    `observed`: the host's network as it was when the command looked; `warn` takes lines that the user
    should see; `names`: what rows about names need to know."""

    state: State
    networks: list[Network]
    observed: HostNetwork
    notes: Notes
    warn: Callable[[str], None]
    names: NameFacts = field(default_factory=NameFacts)


class Context:
    """One host, as one command sees it. With `unusable` packet programs that are loaded are as good as not: they
    are another version's, whose maps cannot be read, and go. `warn` takes lines that the user should see; `notes`: the
    store, None: there is none; `ours`: the names of devices that rows say we have made; `called`: what users call the
    holder of an endpoint. `leaving`: everything is being taken away, and what maps say of endpoints goes with them."""

    def __init__(
        self, settings: Settings, tuning: Tuning, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        self.settings = settings
        self.tuning = tuning
        self.unusable = False
        self.leaving = False
        self.warn = warn
        self.notes: Notes | None = None
        self.ours: Callable[[], Collection[str]] = frozenset
        self.called: Callable[[Endpoint], str] = lambda endpoint: endpoint.id
        self._warned: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def links(self) -> Links:
        """The host's devices, addresses and routes."""
        from datapath.kernel.links import Links

        return self._stack.enter_context(Links())

    @cached_property
    def dataplane(self) -> Dataplane:
        """The packet programs; loaded if they are not."""
        from datapath.dataplane.layout import Setup
        from datapath.dataplane.programs import Dataplane

        setup = Setup(self.tuning.config, self.tuning.sizes)
        settings = self.settings
        return self._stack.enter_context(
            Dataplane.open(settings.bpffs, settings.attach, setup, settings.cgroup)
        )

    @cached_property
    def plugins(self) -> PluginCalls:
        """Docker's plugins."""
        from datapath.drivers.remote.client import PluginCalls
        from datapath.drivers.remote.leases import Leases

        return PluginCalls(self.settings.plugin_dirs, self.tuning.plugin_timeout, Leases(self.notes))

    def warn_once(self, line: str) -> None:
        """The same of several things is said once."""
        if line not in self._warned:
            self._warned.add(line)
            self.warn(line)

    @property
    def loaded(self) -> Dataplane | None:
        """The packet programs if they are loaded: what takes things away has no reason to load them."""
        from datapath.dataplane.programs import Dataplane

        if self.unusable:
            return None
        if "dataplane" in self.__dict__ or Dataplane.is_complete(self.settings.bpffs):
            return self.dataplane
        return None
