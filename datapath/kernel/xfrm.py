# SPDX-License-Identifier: Apache-2.0
"""IPsec policies (xfrm) of a network namespace, read through netlink."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from datapath.errors import KernelError
from datapath.kernel.facts import translated
from datapath.kernel.rtnetlink import Message, Refused, Rtnetlink, attributes
from datapath.model.host import XfrmPolicies, XfrmPolicy
from datapath.model.parsing import Prefix

NETLINK_XFRM = 6
# linux/xfrm.h
_GETPOLICY, _GETDEFAULT = 0x15, 0x28
_DIRECTIONS = ("in", "out", "fwd")
_BLOCK = 1  # XFRM_POLICY_BLOCK, and XFRM_USERPOLICY_BLOCK
_XFRMA_TMPL, _XFRMA_MARK, _XFRMA_IF_ID = 5, 21, 31
_POLICY = struct.Struct("=16s16sHHHHHBBB3xi4x96xIIBB6x")  # struct xfrm_userpolicy_info
_ID = bytes(64)  # struct xfrm_userpolicy_id: asked for is every one
_DEFAULT = struct.Struct("=BBB")  # struct xfrm_userpolicy_default: in, fwd, out
_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)
NO_XFRM = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class _Info(NamedTuple):
    """Of struct xfrm_userpolicy_info the selector, and what comes after the lifetimes. Ports are in network order;
    `order`, its index, grows, and a policy that is changed keeps it."""

    daddr: bytes
    saddr: bytes
    dport: int
    dport_mask: int
    sport: int
    sport_mask: int
    family: int
    prefixlen_d: int
    prefixlen_s: int
    proto: int
    ifindex: int
    priority: int
    order: int
    dir: int
    action: int


def policies() -> XfrmPolicies:
    """Those of the calling thread's namespace; none in a kernel without IPsec. KernelError."""
    try:
        with translated("open", "xfrm socket"):
            opened = Rtnetlink(NETLINK_XFRM)
    except KernelError as error:
        if error.errno in NO_XFRM:
            return XfrmPolicies()
        raise
    with opened:
        try:
            with translated("list", "IPsec policies"):
                bodies = opened.dump(Message(_GETPOLICY, _ID))
        except KernelError as error:
            if error.errno in _UNKNOWN:
                return XfrmPolicies()
            raise
        return XfrmPolicies(_in_order(bodies), _blocked(opened))


def _blocked(opened: Rtnetlink) -> frozenset[str]:
    """The directions in which what no policy is about is blocked (since Linux 5.15)."""
    try:
        body = opened.get(Message(_GETDEFAULT, _DEFAULT.pack(0, 0, 0)))
    except Refused:
        return frozenset()
    inward, forwarded, outward = _DEFAULT.unpack_from(body)
    found = {"in": inward, "fwd": forwarded, "out": outward}
    return frozenset(direction for direction, action in found.items() if action == _BLOCK)


def _in_order(bodies: list[bytes]) -> tuple[XfrmPolicy, ...]:
    """As the kernel looks at them: by priority, and then the oldest first, which its list does not begin with."""
    found = [(_Info(*_POLICY.unpack_from(body)), attributes(body[_POLICY.size :])) for body in bodies]
    found.sort(key=lambda one: (one[0].priority, one[0].order))
    return tuple(_policy(info, more) for info, more in found)


def _policy(info: _Info, more: Mapping[int, bytes]) -> XfrmPolicy:
    action = "block" if info.action == _BLOCK else "protect" if more.get(_XFRMA_TMPL) else "allow"
    mark, interface = (int.from_bytes(more.get(kind, b"")[:4]) for kind in (_XFRMA_MARK, _XFRMA_IF_ID))
    return XfrmPolicy(
        direction=_DIRECTIONS[info.dir] if info.dir < len(_DIRECTIONS) else "socket",
        source=_prefix(info.family, info.saddr, info.prefixlen_s),
        destination=_prefix(info.family, info.daddr, info.prefixlen_d),
        proto=info.proto,
        sport=(socket.ntohs(info.sport), socket.ntohs(info.sport_mask)),
        dport=(socket.ntohs(info.dport), socket.ntohs(info.dport_mask)),
        ifindex=info.ifindex,
        priority=info.priority,
        action=action,
        narrowed=bool(mark or interface or (info.ifindex and action == "allow")),
    )


def _prefix(family: int, raw: bytes, length: int) -> Prefix | None:
    if family == socket.AF_INET:
        return IPv4Network((raw[:4], length), strict=False)
    if family == socket.AF_INET6:
        return IPv6Network((raw, length), strict=False)
    return None
