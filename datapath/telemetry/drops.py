# SPDX-License-Identifier: Apache-2.0
"""What is dropped, by the kernel and by the packet programs: why, where, and whose packets.

Traced live through bcc. Everything ends with the process: nothing is pinned, no device is changed.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from datapath.engine import namespaces
from datapath.engine.engine import Engine
from datapath.errors import KernelError
from datapath.kernel import abi, devices, features, netns
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
    "SKB_HEAD": "sk_buff.head",
    "SKB_NETWORK_HEADER": "sk_buff.network_header",
    "SKB_MAC_HEADER": "sk_buff.mac_header",
}
# Reasons of the kernel's for which a packet program may have dropped a packet: macro -> name. veth names none at XDP.
_BY_PROGRAM = {
    "BY_TC_INGRESS": "TC_INGRESS",
    "BY_TC_EGRESS": "TC_EGRESS",
    "BY_XDP": "XDP",
    "UNNAMED": "NOT_SPECIFIED",
}
_PREFIX = "SKB_DROP_REASON_"
_FIRST_DROP = "DROP_"
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


class Place(NamedTuple):
    """A device as the kernel knows it: the cookie of its network namespace, and its index there (0: unknown)."""

    netns: int
    ifindex: int


class Drop(NamedTuple):
    """`reason` is the kernel's name without SKB_DROP_REASON_, `location` the function."""

    place: Place
    reason: str
    location: str


class Refused(NamedTuple):
    """What a packet program dropped. `reason` is its own, as in `stats`; addresses are "" where there is no IP, and
    `port` is that of the destination, 0 where there is none."""

    place: Place
    reason: str
    protocol: int
    source: str
    destination: str
    port: int


class DropTrace:
    """Counts, from entering to leaving, the packets that the kernel drops, of the whole machine. `counters`: the pinned
    map of the packet programs; None: they are not loaded."""

    def __init__(self, counters: Path | None = None) -> None:
        self._counters = counters
        self._bpf: Any = None
        self._reasons: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> DropTrace:
        with KernelTypes() as types:
            macros: dict[str, int | str] = {macro: types.offset(path) for macro, path in _OFFSETS.items()}
            macros["HAS_RX_SK"] = int(types.tracepoint_arguments("kfree_skb") > 3)
            self._reasons = types.names("skb_drop_reason")
        if self._counters:
            numbers = {name.removeprefix(_PREFIX): number for number, name in self._reasons.items()}
            macros |= {macro: numbers.get(name, -1) for macro, name in _BY_PROGRAM.items()}
            macros |= {"COUNTERS": str(self._counters), "FIRST_DROP": abi.DROP_FIRST}
            macros["REASON_COUNT"] = max(abi.Reason) + 1
        with ExitStack() as stack:
            self._bpf = stack.enter_context(bcc.program("drops", macros))
            if self._counters:
                self._note_counters()
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
            reason = self._reasons.get(key.reason, str(key.reason)).removeprefix(_PREFIX)
            location = self._bpf.ksym(key.location).decode(errors="replace").partition(".")[0]  # .constprop.0
            place = Place(int(key.place.netns), int(key.place.ifindex))
            found[Drop(place, reason, location)] += sum(values)
        return dict(found)

    def refused(self) -> dict[Refused, int]:
        """Packets that packet programs dropped so far."""
        found: dict[Refused, int] = {}
        for key, packets in self._bpf[b"refused"].items() if self._counters else ():
            length = 16 if key.version == 6 else 4
            source, destination = (
                str(ip_address(bytes(field)[:length])) if key.version else ""
                for field in (key.source, key.destination)
            )
            place = Place(int(key.place.netns), int(key.place.ifindex))
            reason = abi.Reason(key.reason).name
            one = Refused(
                place,
                reason,
                int(key.protocol),
                source,
                destination,
                int.from_bytes(key.port.to_bytes(2, sys.byteorder), "big"),
            )
            found[one] = int(packets.value)
        return found

    def _note_counters(self) -> None:
        """What has been counted so far is not the packets' that will come."""
        seen = self._bpf[b"seen"]
        values = seen.Leaf()
        for reason in range(abi.DROP_FIRST, max(abi.Reason) + 1):
            for cpu, counted in enumerate(self._bpf[b"counters"][reason]):
                values[cpu].packets[reason] = counted.packets
        seen[seen.Key(0)] = values


class RefusedRow(NamedTuple):
    """`container` as in a DropRow; `protocol` is its name, or its number; `destination` has the port with it."""

    container: str
    device: str
    reason: str
    protocol: str
    source: str
    destination: str
    packets: int


class DropRow(NamedTuple):
    """`container` is empty for the host's own packets, `device` where the kernel had forgotten it."""

    container: str
    device: str
    reason: str
    location: str
    packets: int


class DropsOfHost:
    """What is dropped, from entering to leaving, in this host's namespace and in those of its containers.

    `snapshot` reads the state, `counters` those of the packet programs (packets, bytes), which are pinned at `pin`.
    """

    def __init__(
        self, snapshot: Callable[[], State], counters: Callable[[], Mapping[str, tuple[int, int]]], pin: Path
    ) -> None:
        self._snapshot = snapshot
        self._read_counters = counters
        self._trace = DropTrace(pin if pin.exists() else None)
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
            if whose := self._whose(drop.place):
                found[*whose, drop.reason, drop.location] += packets
        rows = [DropRow(*key, packets) for key, packets in found.items()]
        return sorted(rows, key=lambda row: (-row.packets, row))

    def refused(self) -> list[RefusedRow]:
        """Who sent what the packet programs have dropped so far, and where to, most first."""
        self._look()
        rows = []
        for one, packets in self._trace.refused().items():
            if whose := self._whose(one.place):
                protocol = _PROTOCOLS.get(one.protocol, str(one.protocol)) if one.source else ""
                destination = (
                    f"[{one.destination}]" if ":" in one.destination and one.port else one.destination
                )
                to = f"{destination}:{one.port}" if one.port else destination
                rows.append(RefusedRow(*whose, one.reason, protocol, one.source, to, packets))
        return sorted(rows, key=lambda row: (-row.packets, row))

    def _whose(self, place: Place) -> tuple[str, str] | None:
        """The container and the device; None: it is none of this host's."""
        if place.netns not in self._namespaces:
            return None
        container, path = self._namespaces[place.netns]
        if path is None:
            container = self._host_ends.get(place.ifindex, "")
        return container, devices.name_of(path, place.ifindex)

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
    pin = engine.settings.bpffs / "maps/counters"
    return DropsOfHost(engine.shown, lambda: stats(engine).counters, pin)
