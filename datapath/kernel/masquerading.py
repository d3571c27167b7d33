# SPDX-License-Identifier: Apache-2.0
"""Whether the packet filter of a network namespace masquerades, read through netlink: its tools take milliseconds."""

from __future__ import annotations

import errno
import struct

from datapath.errors import KernelError
from datapath.kernel import sysctl
from datapath.kernel.facts import translated
from datapath.kernel.rtnetlink import Message, Rtnetlink, attributes

_NETLINK_NETFILTER = 12
_GETCHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_EVERY = struct.pack("=BBH", 0, 0, 0)  # struct nfgenmsg: family, version, resource
_HEADER = len(_EVERY)
# linux/netfilter/nf_tables.h: NFTA_CHAIN_*, NFTA_HOOK_HOOKNUM
_HOOK, _USE, _TYPE, _HOOKNUM = 4, 6, 7, 1
_POST_ROUTING = (4).to_bytes(4)  # NF_INET_POST_ROUTING, in network order as all numbers there
_ABSENT = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP)
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
_LEGACY = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")


def is_used() -> bool:
    """Whether the calling thread's namespace forwards, and has rules for the sources of what leaves: those of nftables,
    or the table of iptables-legacy. What they say is not looked at. KernelError."""
    if "1" not in sysctl.read_existing(_FORWARDING).values():
        return False
    return any(map(_has_table, _LEGACY)) or _has_chain()


def _has_table(path: str) -> bool:
    try:
        with open(path) as file:
            return "nat" in file.read().split()
    except OSError:
        return False  # a kernel without it


def _has_chain() -> bool:
    try:
        with translated("open", "netfilter socket"):
            opened = Rtnetlink(_NETLINK_NETFILTER)
        with opened, translated("list", "chains of the packet filter"):
            return any(map(_translates, opened.dump(Message(_GETCHAIN, _EVERY))))
    except KernelError as error:
        if error.errno in _ABSENT:
            return False
        raise


def _translates(body: bytes) -> bool:
    """It is a chain for the sources of what leaves, and has rules."""
    found = attributes(body[_HEADER:])
    return (
        found.get(_TYPE) == b"nat\0"
        and attributes(found.get(_HOOK, b"")).get(_HOOKNUM) == _POST_ROUTING
        and any(found.get(_USE, b""))
    )
