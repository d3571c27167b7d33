# SPDX-License-Identifier: Apache-2.0
"""IPsec policies (xfrm) of a network namespace, read through netlink."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Network, IPv6Network

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
# struct xfrm_userpolicy_info: the selector's daddr, saddr, dport, dport_mask, sport, sport_mask, family, prefixlen_d,
# prefixlen_s, proto, ifindex; then lifetimes; priority, dir, action
_POLICY = struct.Struct("=16s16sHHHHHBBB3xi4x96xI4xBB6x")
_ID = bytes(64)  # struct xfrm_userpolicy_id: asked for is every one
_DEFAULT = struct.Struct("=BBB")  # struct xfrm_userpolicy_default: in, fwd, out
_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)
NO_XFRM = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


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
        return XfrmPolicies(tuple(_policy(body) for body in bodies), _blocked(opened))


def _blocked(opened: Rtnetlink) -> frozenset[str]:
    """The directions in which what no policy is about is blocked (since Linux 5.15)."""
    try:
        body = opened.get(Message(_GETDEFAULT, _DEFAULT.pack(0, 0, 0)))
    except Refused:
        return frozenset()
    inward, forwarded, outward = _DEFAULT.unpack_from(body)
    found = {"in": inward, "fwd": forwarded, "out": outward}
    return frozenset(direction for direction, action in found.items() if action == _BLOCK)


def _policy(body: bytes) -> XfrmPolicy:
    (
        daddr,
        saddr,
        dport,
        dport_mask,
        sport,
        sport_mask,
        family,
        to,
        source,
        proto,
        ifindex,
        priority,
        way,
        action,
    ) = _POLICY.unpack_from(body)
    more = attributes(body[_POLICY.size :])
    return XfrmPolicy(
        direction=_DIRECTIONS[way] if way < len(_DIRECTIONS) else "socket",
        source=_prefix(family, saddr, source),
        destination=_prefix(family, daddr, to),
        proto=proto,
        sport=(socket.ntohs(sport), socket.ntohs(sport_mask)),
        dport=(socket.ntohs(dport), socket.ntohs(dport_mask)),
        ifindex=ifindex,
        priority=priority,
        action="block" if action == _BLOCK else "protect" if more.get(_XFRMA_TMPL) else "allow",
        narrowed=_XFRMA_MARK in more or _XFRMA_IF_ID in more,
    )


def _prefix(family: int, raw: bytes, length: int) -> Prefix | None:
    if family == socket.AF_INET:
        return IPv4Network((raw[:4], length), strict=False)
    if family == socket.AF_INET6:
        return IPv6Network((raw, length), strict=False)
    return None
