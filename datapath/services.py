# SPDX-License-Identifier: Apache-2.0
"""`Host.services`: one name and address in front of several containers. See ``docs/library.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datapath.engine.engine import Engine
from datapath.model.services import Service, ServiceChange, ServiceRequest

if TYPE_CHECKING:
    from datapath.telemetry.stats import ServiceUse


class Services:
    """Services by name, id, or the unique beginning of an id."""

    def __init__(self, host: Engine) -> None:
        self._host = host

    def all(self) -> list[Service]:
        """All services, by name."""
        return sorted(self._host.snapshot().services.values(), key=lambda service: service.name)

    def get(self, name: str) -> Service:
        """One service. NotFoundError; ConfigError: the beginning of an id means several."""
        return self._host.snapshot().get(Service, name)

    def inspect(self, name: str) -> dict[str, Any]:
        """One service as JSON, under Docker's keys where Docker has them. NotFoundError."""
        from datapath.plan.inspect_services import service_inspect

        state = self._host.snapshot()
        return service_inspect(state.get(Service, name), state)

    def backends(self, name: str) -> list[ServiceUse]:
        """The backends of a service, and what the packet programs have counted of each. NotFoundError."""
        from datapath.telemetry.stats import services

        return [use for use in services(self._host, name) if use.backend]

    def create(self, request: ServiceRequest) -> Service:
        """Creates a service. ConfigError, NotFoundError; ExistsError: its name, address or a port is taken;
        NotSupportedError: the packet programs that are loaded know no services."""
        from datapath.engine import endpoints, services, spanning_services

        with self._host.changing() as tx:
            endpoints.evict_dead(tx)
            if spanning_services.is_asked(tx, request.network):
                return spanning_services.create(tx, request)
            return services.create(tx, request)

    def update(self, name: str, change: ServiceChange) -> Service:
        """Publishes ports or takes them back, and changes labels and how backends are chosen. NotFoundError,
        ConfigError, ExistsError."""
        from datapath.engine import services, spanning_services

        self._require(name)
        with self._host.changing() as tx:
            if spanning_services.spans(tx, name):
                return spanning_services.update(tx, name, change)
            return services.update(tx, name, change)

    def drain(self, name: str, containers: Sequence[str]) -> Service:
        """Gives these backends no new connections; those that they have go on. NotFoundError, ConfigError."""
        return self._drain(name, containers, back=False)

    def undrain(self, name: str, containers: Sequence[str]) -> Service:
        """Takes `drain` back. NotFoundError, ConfigError."""
        return self._drain(name, containers, back=True)

    def _require(self, name: str) -> None:
        """NotFoundError: there is no store, which is not made for one that is not there."""
        if not self._host.exists:
            self.get(name)

    def _drain(self, name: str, containers: Sequence[str], back: bool) -> Service:
        from datapath.engine import services, spanning_services

        self._require(name)
        with self._host.changing() as tx:
            if spanning_services.spans(tx, name):
                return spanning_services.drain(tx, name, containers, back)
            return services.drain(tx, name, containers, back)

    def remove(self, name: str) -> Service:
        """Removes a service with its address, ports and connections; its backends go on. NotFoundError."""
        from datapath.engine import services, spanning_services

        self._require(name)
        with self._host.changing(freeing=True) as tx:
            if spanning_services.spans(tx, name):
                return spanning_services.remove(tx, name)
            return services.remove(tx, name)
