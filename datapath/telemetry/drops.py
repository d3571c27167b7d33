# SPDX-License-Identifier: Apache-2.0
"""What is dropped, by the kernel and by the packet programs: why, where, and whose packets.

Traced live through bcc. Everything ends with the process: nothing is pinned, no device is changed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

from datapath.engine import namespaces
from datapath.engine.engine import Engine
from datapath.errors import KernelError
from datapath.kernel import devices, features, netns
from datapath.kernel.btf import KernelTypes
from datapath.model.state import State
from datapath.telemetry import bcc
from datapath.telemetry.stats import stats

# Offsets that bpf/trace/drops.c asks for: macro -> field.
_OFFSETS = {
    **bcc.PLACE,
    "SKB_DEVICE": "sk_buff.dev",
    "SKB_PROTOCOL": "sk_buff.protocol",
    "SKB_SOCK": "sk_buff.sk",
    "SKB_ROUTE": "sk_buff._skb_refdst",
    "SOCK_NETNS": "sock.__sk_common.skc_net.net",
    "ROUTE_DEVICE": "dst_entry.dev",
}
_FIRST_DROP = "DROP_"


class Place(NamedTuple):
    """A device as the kernel knows it: the cookie of its network namespace, and its index there (0: unknown)."""

    netns: int
    ifindex: int


class Drop(NamedTuple):
    """`reason` is the kernel's name without SKB_DROP_REASON_, `location` the function."""

    place: Place
    reason: str
    location: str


class DropTrace:
    """Counts, from entering to leaving, the packets that the kernel drops, of the whole machine."""

    def __init__(self) -> None:
        self._bpf: Any = None
        self._reasons: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> DropTrace:
        with KernelTypes() as types:
            macros = {macro: types.offset(path) for macro, path in _OFFSETS.items()}
            macros["HAS_RX_SK"] = int(types.tracepoint_arguments("kfree_skb") > 3)
            self._reasons = types.names("skb_drop_reason")
        with ExitStack() as stack:
            self._bpf = stack.enter_context(bcc.program("drops", macros))
            with bcc.refusals("load", "drops"):
                self._bpf.attach_raw_tracepoint(b"kfree_skb", b"dropped")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def drops(self) -> dict[Drop, int]:
        """Packets so far."""
        found: Counter[Drop] = Counter()
        for key, values in self._bpf[b"drops"].items():
            reason = self._reasons.get(key.reason, str(key.reason)).removeprefix("SKB_DROP_REASON_")
            location = self._bpf.ksym(key.location).decode(errors="replace").partition(".")[0]  # .constprop.0
            place = Place(int(key.place.netns), int(key.place.ifindex))
            found[Drop(place, reason, location)] += sum(values)
        return dict(found)


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
        self._host_ends: dict[int, str] = {}  # by index in the host: container

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
        """Notes the namespaces and devices of containers; those that have gone stay noted."""
        state = self._snapshot()
        self._namespaces[_cookie(None) or 0] = "", None
        for endpoint in state.endpoints.values():
            path, name = namespaces.path(state, endpoint.sandbox_id), state.holder_name(endpoint)
            found = _cookie(path) if path else None
            if found:
                self._namespaces[found] = name, path
                self._host_ends[endpoint.host_ifindex] = name

    def rows(self) -> list[DropRow]:
        """What the kernel has dropped so far, most first."""
        self._look()
        found: Counter[tuple[str, str, str, str]] = Counter()
        for drop, packets in self._trace.drops().items():
            if drop.place.netns not in self._namespaces:
                continue
            container, path = self._namespaces[drop.place.netns]
            if path is None:
                container = self._host_ends.get(drop.place.ifindex, "")
            device = devices.name_of(path, drop.place.ifindex)
            found[container, device, drop.reason, drop.location] += packets
        rows = [DropRow(*key, packets) for key, packets in found.items()]
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


def _cookie(space: netns.Netns) -> int | None:
    """The namespace's cookie; None: it is gone."""
    with contextlib.suppress(KernelError):
        return netns.cookie(space)
    return None


def of_host(engine: Engine) -> DropsOfHost:
    """What the kernel and the packet programs drop on this host. A context manager. PrivilegeError."""
    features.require()
    return DropsOfHost(engine.snapshot, lambda: stats(engine).counters)
