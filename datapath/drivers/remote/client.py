# SPDX-License-Identifier: Apache-2.0
"""Plugins as one command calls them: found, activated once, asked again while they do not answer.

As in Docker a request that gets no answer is repeated after 1, 2, 4, 8, … seconds, as long as the next one would still
be within the time-out (`plugin-timeout`, 30 s). That is once a command and plugin: it holds the lock of the host
meanwhile. What a plugin has answered is never asked for again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datapath.drivers.remote import words
from datapath.drivers.remote.leases import Leases
from datapath.errors import ConfigError, PluginError, printable
from datapath.model.fields import Fields, text
from datapath.model.parsing import Interface
from datapath.model.plugins import AllocatedPool, Capability, IpamCapability, Lease, Plugin, PoolRequest
from datapath.model.ports import PortMapping

if TYPE_CHECKING:
    from datapath.kernel.plugin_http import Answer

T = TypeVar("T")

_LONGEST = 400  # characters of what a plugin says that are shown


class NotImplementedByPlugin(PluginError):
    """The plugin has no such method: HTTP's 404."""


class PluginCalls:
    """The plugins of a host. `folders`: where they are found; `seconds`: the time-out of a request, its repetitions
    included; `patient`: whether it is repeated at all."""

    def __init__(
        self, folders: Sequence[Path], seconds: float, leases: Leases | None = None, patient: bool = True
    ) -> None:
        self._folders, self._seconds, self._patient = tuple(folders), seconds, patient
        self.leases = leases or Leases()
        self._implements: dict[str, list[str]] = {}
        self._silent: dict[str, str] = {}  # plugins that have not answered in this command: why
        # What ProgramExternalConnectivity has said of an endpoint in this command, by id; None: it was revoked.
        self.programmed: dict[str, tuple[PortMapping, ...] | None] = {}
        # Networks and endpoints, by id, that the command has told to be gone; and those that were not made: why is
        # said already.
        self.deleted: set[str] = set()
        self.failed: set[str] = set()

    # ---- what plans ask: see `model.plugins.Plugins` ---------------------------------------------------------

    @property
    def places(self) -> str:
        return ", ".join(map(str, self._folders))

    def has(self, name: str) -> bool:
        from datapath.drivers.remote import places

        return places.find(self._folders, name) is not None

    def network_driver(self, name: str) -> Capability:
        return self._parsed(name, words.NETWORK, "GetCapabilities", None, words.capability)

    def skips_gateway(
        self, name: str, generic: Mapping[str, str], flags: Mapping[str, bool]
    ) -> tuple[bool, bool]:
        fields = {"Options": words.network_options(generic, flags)}
        return self._parsed(name, words.NETWORK, "GwAllocCheck", fields, words.skipped)

    def ipam_driver(self, name: str) -> IpamCapability:
        try:
            return self._parsed(name, words.IPAM, "GetCapabilities", None, words.ipam_capability)
        except NotImplementedByPlugin:
            return IpamCapability()  # of before there were any

    def address_space(self, name: str, scope: str) -> str:
        return self._parsed(
            name,
            words.IPAM,
            "GetDefaultAddressSpaces",
            None,
            lambda answer: words.address_space(answer, scope),
        )

    def pool(self, name: str, request: PoolRequest) -> AllocatedPool:
        fields = words.pool_request(request)
        answer = self.call(name, words.IPAM, "RequestPool", fields)
        ident = answer.get("PoolID")
        if isinstance(ident, str) and ident:  # noted before anything of it can be wrong
            self._note(Lease(name, ident))
        return _meaning(name, "RequestPool", lambda: words.allocated_pool(answer, request.ipv6))

    def address(self, name: str, pool: str, wanted: str, options: Mapping[str, str]) -> Interface:
        fields = {"PoolID": pool, "Address": wanted, "Options": dict(options)}
        found = self._parsed(name, words.IPAM, "RequestAddress", fields, words.allocated_address)
        self._note(Lease(name, pool, str(found.ip)))
        return found

    def _note(self, lease: Lease) -> None:
        """What cannot be noted goes back at once."""
        try:
            self.leases.add(lease)
        except BaseException:
            with suppress(PluginError):
                self.release(lease)
            raise

    def release(self, lease: Lease) -> None:
        """Gives a pool or an address back. PluginError."""
        fields = {"PoolID": lease.pool}
        if lease.address:
            self.call(lease.driver, words.IPAM, "ReleaseAddress", {**fields, "Address": lease.address})
        else:
            self.call(lease.driver, words.IPAM, "ReleasePool", fields)

    # ---- calls -----------------------------------------------------------------------------------------------

    def _parsed(
        self, name: str, kind: str, method: str, fields: Fields | None, parse: Callable[[Fields], T]
    ) -> T:
        answer = self.call(name, kind, method, fields)
        return _meaning(name, method, lambda: parse(answer))

    def call(self, name: str, kind: str, method: str, fields: Fields | None) -> Fields:
        """What the plugin answers, which is of that kind (NETWORK, IPAM). PluginError; NotImplementedByPlugin."""
        if name not in self._implements:
            self._implements[name] = self._activate(name)
        if kind not in self._implements[name]:
            raise PluginError(f"plugin {name} does not implement the requested driver: it is no {kind}")
        return self._ask(name, f"{kind}.{method}", fields)

    def activate(self, name: str) -> list[str]:
        """What the plugin is: NETWORK, IPAM, or others of Docker's. PluginError."""
        return self._activate(name)

    def _activate(self, name: str) -> list[str]:
        answer = self._ask(name, "Plugin.Activate", None)
        return _meaning(name, "Plugin.Activate", lambda: words.implements(answer))

    def _ask(self, name: str, method: str, fields: Fields | None) -> Fields:
        if name in self._silent:
            raise PluginError(self._silent[name])
        answer = self._answer(name, method, fields)
        body = _object(answer.body)
        what = method.rpartition(".")[2]
        if answer.status != 200:
            said = (
                (body or {}).get("Err")
                or answer.body.decode(errors="replace").strip()
                or f"HTTP status {answer.status}"
            )
            kind = NotImplementedByPlugin if answer.status == 404 else PluginError
            raise kind(f"plugin {name}: {what}: {_shown(said)}")
        if body is None:
            shown = _shown(answer.body.decode(errors="replace"))
            raise PluginError(f"plugin {name}: {what}: its answer is no object of JSON: {shown}")
        said = _meaning(name, what, lambda: text(body, "Err") or text(body, "Error"))
        if said:
            raise PluginError(f"plugin {name}: {what}: remote: {_shown(said)}")
        return body

    def _answer(self, name: str, method: str, fields: Fields | None) -> Answer:
        from datapath.kernel import plugin_http

        begun, pause = time.monotonic(), 1.0
        while True:
            left = self._seconds - (time.monotonic() - begun)
            plugin = self._find(name)
            try:
                if plugin is None:
                    raise plugin_http.Unanswered(f"it is not in {self.places}")
                return plugin_http.ask(plugin, method, fields, max(left, 0.1))
            except plugin_http.Unusable as error:
                raise PluginError(
                    f"plugin {name}: {method.rpartition('.')[2]}: {_shown(str(error))}"
                ) from None
            except plugin_http.Unanswered as error:
                if not self._patient or time.monotonic() - begun + pause >= self._seconds:
                    where = f" at {plugin.address}" if plugin else ""
                    self._silent[name] = f"plugin {name} does not answer{where}: {_shown(str(error))}"
                    raise PluginError(self._silent[name]) from None
            time.sleep(pause)
            pause *= 2

    def _find(self, name: str) -> Plugin | None:
        from datapath.drivers.remote import places

        return places.find(self._folders, name)


def _object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that a body is, `null` being an empty one, as in Go; None: it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if found is None:
        return {}
    return found if isinstance(found, dict) else None


def _meaning(name: str, method: str, parse: Callable[[], T]) -> T:
    """What an answer means. PluginError: nothing."""
    try:
        return parse()
    except ConfigError as error:
        raise PluginError(
            f"plugin {name}: its answer to {method.rpartition('.')[2]} is wrong: {error}"
        ) from None


def _shown(said: object) -> str:
    """What a plugin says, on one line and not too long."""
    line = printable(" ".join(str(said).split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
