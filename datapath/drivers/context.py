# SPDX-License-Identifier: Apache-2.0
"""What a driver works with: the host's devices, and the packet programs. Both are opened when first used."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from datapath.config.settings import Settings
from datapath.config.tuning import Tuning

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane
    from datapath.kernel.links import Links


class Context:
    """One host, as one command sees it. With `forsaken` packet programs that are loaded are as good as not: they
    are another version's, and go."""

    def __init__(self, settings: Settings, tuning: Tuning) -> None:
        self.settings = settings
        self.tuning = tuning
        self.forsaken = False
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

    @property
    def loaded(self) -> Dataplane | None:
        """The packet programs if they are loaded: what takes things away has no reason to load them."""
        from datapath.dataplane.programs import Dataplane

        if self.forsaken:
            return None
        if "dataplane" in self.__dict__ or Dataplane.is_complete(self.settings.bpffs):
            return self.dataplane
        return None
