# SPDX-License-Identifier: Apache-2.0
"""Live tracing: how long packets take between devices, and what the kernel drops.

Everything ends with the process, however it ends: nothing is pinned, no device is changed.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

from datapath.errors import KernelError
from datapath.kernel import netns
from datapath.kernel.btf import KernelTypes
from datapath.telemetry import bcc_programs

_PLACE = {
    "NET_COOKIE": "net.net_cookie",
    "DEVICE_NETNS": "net_device.nd_net.net",
    "DEVICE_IFINDEX": "net_device.ifindex",
}
_LATENCY = {
    **_PLACE,
    "DEVICE_LINK_OPS": "net_device.rtnl_link_ops",
    "LINK_OPS_KIND": "rtnl_link_ops.kind",
    "SKB_DEVICE": "sk_buff.dev",
    "SKB_IIF": "sk_buff.skb_iif",
}
_DROPS = {
    **_PLACE,
    "SKB_DEVICE": "sk_buff.dev",
    "SKB_PROTOCOL": "sk_buff.protocol",
    "SKB_SOCK": "sk_buff.sk",
    "SKB_ROUTE": "sk_buff._skb_refdst",
    "SOCK_NETNS": "sock.__sk_common.skc_net.net",
    "ROUTE_DEVICE": "dst_entry.dev",
}

_ETH_P_ALL = 3  # linux/if_ether.h
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23  # linux/socket.h, linux/if_packet.h
_SO_ATTACH_BPF = 50  # asm-generic/socket.h


class Device(NamedTuple):
    """A device in a network namespace. Those with the same label are counted together."""

    label: str
    netns: netns.Netns
    ifname: str


class Place(NamedTuple):
    """A device as the kernel knows it: the cookie of its network namespace, and its index there (0: unknown)."""

    netns: int
    ifindex: int


class Drop(NamedTuple):
    """`reason` is the kernel's name without SKB_DROP_REASON_, `location` the function."""

    place: Place
    reason: str
    location: str


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
            offsets = {macro: types.offset(path) for macro, path in _LATENCY.items()}
        with ExitStack() as stack:
            self._bpf = stack.enter_context(
                bcc_programs.program("latency", {**offsets, "DEVICES": max(1, len(self._devices))})
            )
            with bcc_programs.refusals("load", "latency"):
                tap = self._bpf.load_func(b"arrived", self._bpf.SOCKET_FILTER)
                for device in self._devices:
                    stack.enter_context(self._listen(device, tap.fd))
                self._bpf.attach_raw_tracepoint(b"netif_receive_skb", b"received")
                self._bpf.attach_raw_tracepoint(b"net_dev_queue", b"queued")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _listen(self, device: Device, program: int) -> socket.socket:
        """A packet socket that runs the program for what comes in at the device, and receives nothing."""
        table = self._bpf[b"devices"]
        try:
            with netns.enter(device.netns):
                index = socket.if_nametoindex(device.ifname)
                cookie = netns.cookie()
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                # Without this each packet that goes out would be cloned for the socket.
                tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
                tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
                tap.bind((device.ifname, _ETH_P_ALL))
        except OSError as error:
            raise KernelError("trace", f"device {device.ifname}", error.errno or 0) from error
        in_focus = not self._focus or device.label in self._focus
        table[table.Key(cookie, index)] = table.Leaf(self._labels.index(device.label), in_focus)
        return tap

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


class DropTrace:
    """Counts, from entering to leaving, the packets that the kernel drops, of the whole machine."""

    def __init__(self) -> None:
        self._bpf: Any = None
        self._reasons: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> DropTrace:
        with KernelTypes() as types:
            macros = {macro: types.offset(path) for macro, path in _DROPS.items()}
            macros["HAS_RX_SK"] = int(types.tracepoint_arguments("kfree_skb") > 3)
            self._reasons = types.names("skb_drop_reason")
        with ExitStack() as stack:
            self._bpf = stack.enter_context(bcc_programs.program("drops", macros))
            with bcc_programs.refusals("load", "drops"):
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


def cookie(space: netns.Netns) -> int | None:
    """The namespace's cookie; None: it is gone."""
    with contextlib.suppress(KernelError):
        return netns.cookie(space)
    return None


def device_name(space: netns.Netns, ifindex: int) -> str:
    """What the device is called; empty when it is gone, or was not known."""
    with contextlib.suppress(KernelError, OSError), netns.enter(space):
        return socket.if_indextoname(ifindex)
    return ""
