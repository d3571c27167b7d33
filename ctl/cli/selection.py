# SPDX-License-Identifier: Apache-2.0
"""`ps --filter`: which containers are wanted, by Docker's filters as far as they mean something here."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from datapath.errors import ConfigError, quoted

from .filters import Filters, has_label

if TYPE_CHECKING:
    from datapath.model.containers import Container
    from datapath.model.networks import Network
    from datapath.model.ports import PortMapping
    from datapath.model.sandboxes import Sandbox
    from datapath.model.state import State

_STATES = {"created", "running", "exited"}
_KNOWN = {
    *("id", "name", "label", "status", "exited", "network", "publish", "expose", "before", "since"),
    *("ancestor", "health", "is-task"),
}
_HEALTH = {"starting", "healthy", "unhealthy", "none"}
# Of containers alone: nothing is known about it of other owners' sandboxes.
_OWN = ("label", "exited", "expose", "before", "since", "ancestor", "health", "is-task")


class Selection:
    """The filters of one `ps`, whose values are checked before anything is looked at. ConfigError."""

    def __init__(self, words: Collection[str]) -> None:
        self._filters = filters = Filters(words, _KNOWN, patterns={"id", "name"})
        filters.check("status", _STATES)
        filters.check("health", _HEALTH)
        filters.check("is-task", {"true", "false", "1", "0"})
        for code in filters.values("exited"):
            if not (code.removeprefix("-").isascii() and code.removeprefix("-").isdigit()):
                raise ConfigError(f"invalid filter exited={quoted(code)}: expected an exit code")
        for path in filters.values("ancestor"):
            if not path.startswith("/"):
                raise ConfigError(
                    f"invalid filter ancestor={quoted(path)}: there are no images; a directory of --rootfs is meant"
                )
        self._ports = {
            key: {port for word in filters.values(key) for port in _ports(key, word)}
            for key in ("publish", "expose")
        }

    def look(self, state: State) -> None:
        """What the filters refer to. NotFoundError, ConfigError: there is no such container, or several."""
        self._networks = state.networks
        self._before = [_time(state.container(name).created) for name in self._filters.values("before")]
        self._since = [_time(state.container(name).created) for name in self._filters.values("since")]

    @property
    def all(self) -> bool:
        """Also what does not run may be wanted."""
        return "status" in self._filters or "exited" in self._filters

    def wants(self, container: Container, networks: Sequence[str]) -> bool:
        """`networks`: the names of those that it has joined."""
        filters = self._filters
        created = _time(container.created)
        joined = [self._networks.get(asked.network) for asked in container.networks]
        return (
            filters.matching("id", container.id)
            and filters.matching("name", container.name, f"/{container.name}")
            and filters.equal("status", container.status)
            and filters.some("exited", lambda code: code == str(container.exit_code))
            and filters.some("network", lambda name: name in networks or _begins(joined, name))
            and filters.every("label", lambda label: has_label(container.labels, label))
            and filters.equal("health", "none")  # there are no health checks
            and filters.truth("is-task", lambda: False)  # and no swarm
            and filters.some("ancestor", lambda path: os.path.normpath(path) == (container.rootfs or "/"))
            and all(created < moment for moment in self._before)
            and all(created > moment for moment in self._since)
            and self._has("publish", _inside((*container.published, *container.ports)))
            and self._has("expose", set(container.exposed))
        )

    def wants_sandbox(
        self, sandbox: Sandbox, joined: Sequence[Network], ports: Collection[PortMapping]
    ) -> bool:
        """The same of another owner's, which always runs."""
        filters = self._filters
        return (
            not any(key in filters for key in _OWN)
            and filters.matching("id", sandbox.id)
            and filters.matching("name", sandbox.label, f"/{sandbox.label}")
            and filters.equal("status", "running")
            and filters.some(
                "network", lambda name: name in [n.name for n in joined] or _begins(joined, name)
            )
            and self._has("publish", _inside(ports))
        )

    def _has(self, key: str, ports: set[tuple[int, str]]) -> bool:
        return key not in self._filters or not ports.isdisjoint(self._ports[key])


def _ports(key: str, word: str) -> tuple[tuple[int, str], ...]:
    """The container's side, as Docker compares it: `80`, `80/udp`, `8000-8080/tcp`."""
    from datapath.model.parsing import parse_expose

    try:
        return parse_expose(word)
    except ConfigError:
        raise ConfigError(
            f"invalid filter {key}={quoted(word)}: expected PORT[-PORT][/tcp or /udp]"
        ) from None


def _inside(mappings: Collection[PortMapping]) -> set[tuple[int, str]]:
    return {(port, proto) for mapping in mappings for _, _, port, proto in mapping.expand()}


def _begins(networks: Sequence[Network | None], ident: str) -> bool:
    """Docker takes the beginning of an id, too."""
    return any(network is not None and network.id.startswith(ident) for network in networks)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
