# SPDX-License-Identifier: Apache-2.0
"""How long packets take between devices of network namespaces, and between containers.

Traced live through bcc. Everything ends with the process: nothing is pinned, no device is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

from datapath.engine import namespaces
from datapath.errors import ConfigError
from datapath.kernel import observe
from datapath.kernel.btf import KernelTypes
from datapath.kernel.netns import Netns
from datapath.kernel.taps import Tap
from datapath.model.containers import Container
from datapath.model.state import State
from datapath.telemetry import bcc

# Offsets that bpf/trace/latency.c asks for: macro -> field.
_OFFSETS = {
    **bcc.PLACE,
    "DEVICE_LINK_OPS": "net_device.rtnl_link_ops",
    "LINK_OPS_KIND": "rtnl_link_ops.kind",
    "SKB_DEVICE": "sk_buff.dev",
    "SKB_IIF": "sk_buff.skb_iif",
}


class Device(NamedTuple):
    """A device in a network namespace. Those with the same label are counted together."""

    label: str
    netns: Netns
    ifname: str


class LatencyTrace:
    """Counts, from entering to leaving, how long packets take from one of the devices to another.

    From the moment that a network stack gives a packet to its device to the moment that a device takes it in, before
    any of the receiving namespace's tc, firewall or IP. A packet that is copied or segmented on the way is not counted,
    nor is one that takes a second. With `focus` only packets from or to those labels are.
    """

    def __init__(self, devices: Iterable[Device], focus: Collection[str] = ()) -> None:
        self._devices = list(devices)
        self._focus = focus
        self._labels = list(dict.fromkeys(device.label for device in self._devices))
        self._bpf: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> LatencyTrace:
        with KernelTypes() as types:
            offsets = {macro: types.offset(path) for macro, path in _OFFSETS.items()}
        with ExitStack() as stack:
            self._bpf = stack.enter_context(
                bcc.program("latency", {**offsets, "DEVICES": max(1, len(self._devices))})
            )
            with bcc.refusals("load", "latency"):
                arrived = self._bpf.load_func(b"arrived", self._bpf.SOCKET_FILTER)
                for device in self._devices:
                    tap = stack.enter_context(Tap(device.netns, device.ifname, arrived.fd))
                    self._count_at(tap, device)
                self._bpf.attach_raw_tracepoint(b"netif_receive_skb", b"received")
                self._bpf.attach_raw_tracepoint(b"net_dev_queue", b"queued")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _count_at(self, tap: Tap, device: Device) -> None:
        """Tells the program the device, by the label that it is counted under."""
        table = self._bpf[b"devices"]
        in_focus = not self._focus or device.label in self._focus
        table[table.Key(tap.cookie, tap.ifindex)] = table.Leaf(self._labels.index(device.label), in_focus)

    def pairs(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """So far, by the labels of sender and receiver: `counts[i]` packets took [2**i, 2**(i+1)) nanoseconds."""
        found: dict[tuple[str, str], Counter[int]] = {}
        for key, values in self._bpf[b"counts"].items():
            pair = self._labels[key.sender], self._labels[key.receiver]
            found.setdefault(pair, Counter())[int(key.power)] += sum(values)
        return {pair: _dense(counts) for pair, counts in sorted(found.items())}

    def counts(self) -> tuple[int, ...]:
        """The same of all pairs together."""
        total: Counter[int] = Counter()
        for counts in self.pairs().values():
            total.update(dict(enumerate(counts)))
        return _dense(total)


def _dense(counts: Counter[int]) -> tuple[int, ...]:
    return tuple(counts[power] for power in range(max(counts, default=-1) + 1))


def between_containers(state: State, names: Sequence[str]) -> LatencyTrace:
    """A trace of all running containers together; of one container with each of the others; or of several, each with
    each. ConfigError: one of them does not run, or has no network device of its own."""
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
    key = namespaces.path(state, container.sandbox_id)
    if key is None or not container.running:
        raise ConfigError(f"container {container.name} is not running")
    endpoints = state.endpoints_of_sandbox(container.sandbox_id)
    if not endpoints:
        raise ConfigError(f"container {container.name} has no network device of its own")
    return [Device(container.name, key, endpoint.ifname) for endpoint in endpoints]


def _running(state: State, without: str = "") -> Iterator[tuple[str, str, str]]:
    """Container, namespace and name of every device that a running container has."""
    for endpoint in state.endpoints.values():
        path = namespaces.path(state, endpoint.sandbox_id)
        if path and endpoint.sandbox_id != without:
            # Its owner may have given the device another name.
            ifnames = observe.names_by_mac(path, endpoint.mac) if endpoint.handed_over else (endpoint.ifname,)
            for ifname in ifnames:
                yield state.holder_name(endpoint), path, ifname
