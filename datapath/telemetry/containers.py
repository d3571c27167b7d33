# SPDX-License-Identifier: Apache-2.0
"""Live tracing in terms of containers. What is traced is in kernel/trace.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

from datapath.engine.session import sandbox_key
from datapath.errors import ConfigError
from datapath.model.containers import Container
from datapath.model.state import State
from datapath.telemetry.traces import Device, DropTrace, LatencyTrace, cookie, device_name

_FIRST_DROP = "DROP_"


def latency(state: State, names: Sequence[str]) -> LatencyTrace:
    """Of all running containers together; of one, with each of the others; of several, each with each."""
    named = [state.container(name) for name in names]
    devices = [device for container in named for device in _devices_of(state, container)]
    if not names:
        found = [Device("", netns, ifname) for _, netns, ifname in _running(state)]
        if not found:
            raise ConfigError("no container with a network device is running")
        return LatencyTrace(found)
    if len(named) > 1:
        return LatencyTrace(devices)
    others = [Device(*row) for row in _running(state, without=named[0].sandbox_id)]
    return LatencyTrace([*devices, *others], focus={named[0].name})


def _devices_of(state: State, container: Container) -> list[Device]:
    key = sandbox_key(state, container.sandbox_id)
    if key is None or not container.running:
        raise ConfigError(f"container {container.name} is not running")
    endpoints = state.endpoints_of_sandbox(container.sandbox_id)
    if not endpoints:
        raise ConfigError(f"container {container.name} has no network device of its own")
    return [Device(container.name, key, endpoint.ifname) for endpoint in endpoints]


def _running(state: State, without: str = "") -> Iterator[tuple[str, str, str]]:
    """Container, namespace and name of every device that a running container has."""
    for endpoint in state.endpoints.values():
        holder, key = state.holder(endpoint), sandbox_key(state, endpoint.sandbox_id)
        if holder and key and endpoint.sandbox_id != without:
            yield holder.name, key, endpoint.ifname


class DropRow(NamedTuple):
    """`container` is empty for the host's own packets, `device` where the kernel had forgotten it."""

    container: str
    device: str
    reason: str
    location: str
    packets: int


class DropsOfHost:
    """What is dropped, from entering to leaving, in this host's namespace and in those of its containers.

    `snapshot` reads the state, `counters` those of the packet programs (packets, bytes).
    """

    def __init__(
        self, snapshot: Callable[[], State], counters: Callable[[], Mapping[str, tuple[int, int]]]
    ) -> None:
        self._snapshot = snapshot
        self._read_counters = counters
        self._trace = DropTrace()
        self._before: Mapping[str, tuple[int, int]] = {}
        self._namespaces: dict[int, tuple[str, str | None]] = {}  # by cookie: container, path
        self._veths: dict[int, str] = {}  # by index in the host: container

    def __enter__(self) -> DropsOfHost:
        self._look()
        self._trace.__enter__()
        self._before = self._read_counters()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trace.__exit__(kind, error, trace)

    def _look(self) -> None:
        """Notes who has which namespace and device now; those who have gone stay noted."""
        state = self._snapshot()
        self._namespaces[cookie(None) or 0] = "", None
        for endpoint in state.endpoints.values():
            holder, key = state.holder(endpoint), sandbox_key(state, endpoint.sandbox_id)
            found = cookie(key) if key else None
            if holder and found:
                self._namespaces[found] = holder.name, key
                self._veths[endpoint.host_ifindex] = holder.name

    def rows(self) -> list[DropRow]:
        """What the kernel has dropped so far, most first."""
        self._look()
        found: Counter[tuple[str, str, str, str]] = Counter()
        for drop, packets in self._trace.drops().items():
            if drop.place.netns not in self._namespaces:
                continue
            container, path = self._namespaces[drop.place.netns]
            if path is None:
                container = self._veths.get(drop.place.ifindex, "")
            device = device_name(path, drop.place.ifindex)
            found[container, device, drop.reason, drop.location] += packets
        rows = [DropRow(*words, packets) for words, packets in found.items()]
        return sorted(rows, key=lambda row: (-row.packets, row))

    def counters(self) -> dict[str, tuple[int, int]]:
        """What the packet programs have dropped so far, by their own reasons: packets, bytes."""
        now = self._read_counters()
        grown = {
            name: (packets - self._before.get(name, (0, 0))[0], size - self._before.get(name, (0, 0))[1])
            for name, (packets, size) in now.items()
            if name.startswith(_FIRST_DROP)
        }
        return {name: both for name, both in grown.items() if both[0]}
