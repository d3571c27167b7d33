# SPDX-License-Identifier: Apache-2.0
"""The kernel's packet filter, through its own tools, and the connections that it knows.

All of them act in the caller's network namespace. Each call is one transaction: it takes effect whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import log, process, sysctl
from datapath.kernel.pyroute import translated
from datapath.model.parsing import PROTOCOLS

_SECONDS = 120  # that a tool may take, waiting for others' included
_GONE = re.compile("No such file or directory|No chain/target/match|does a matching rule exist")

Address = IPv4Address | IPv6Address


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def has(tool: str) -> bool:
    """Whether the tool is installed: a host of one packet filter need not have the other's."""
    return shutil.which(tool, path=_path()) is not None


def _run(argv: Sequence[str], text: str = "") -> str:
    environment = {**os.environ, "PATH": _path(), "LC_ALL": "C"}
    try:
        with log.operation("run", argv[0]):
            done = subprocess.run(
                argv,
                input=text,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                pass_fds=tuple(process.kept),
            )
    except FileNotFoundError:
        package = "nftables" if argv[0] == "nft" else "iptables"
        raise KernelError("run", argv[0], errno.ENOENT, f"install the package {package}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError("run", argv[0], detail=str(error)) from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        detail = said[0] if said else f"exit code {done.returncode}"
        if text and _GONE.search(detail):
            detail += "; somebody took rules away: `datapathctl reconcile` writes them again"
        raise KernelError("run", argv[0], detail=detail)
    return done.stdout


def require_bridges() -> None:
    """The packet filter has to see what passes a bridge. NotSupportedError."""
    if not sysctl.exists("net/bridge"):
        with contextlib.suppress(KernelError):
            _run(["modprobe", "br_netfilter"])
    if not sysctl.exists("net/bridge"):
        raise NotSupportedError("bridges that the packet filter sees (br_netfilter)")


def iptables_save(version: int, table: str = "") -> str:
    """The rules of a family (4 or 6) in all tables, or in one."""
    tool = "iptables-save" if version == 4 else "ip6tables-save"
    return _run([tool, *(["-t", table] if table else [])])


def iptables_restore(version: int, text: str) -> None:
    """Changes rules and leaves all others alone; waits for others who hold the lock. "" is nothing to do."""
    if text:
        _run(["iptables-restore" if version == 4 else "ip6tables-restore", "--wait", "--noflush"], text)


def nft(text: str) -> None:
    """Runs the commands as one transaction."""
    if text:
        _run(["nft", "-f", "-"], text)


def nft_list(*what: str) -> str:
    """What `nft --handle list …` shows, such as ("chain", "ip", "filter", "FORWARD"); "" if it is not there."""
    try:
        return _run(["nft", "--handle", "list", *what])
    except KernelError as error:
        if "No such file or directory" in str(error) and error.errno == 0:
            return ""
        raise


# ---- known connections -------------------------------------------------------------------------


def forget(addresses: Collection[Address]) -> None:
    """Forgets the connections that these addresses of containers take part in."""
    if not _any_known():
        return
    for address in addresses:
        with _conntrack(address.version) as conntrack:
            for side in ("tuple_orig", "tuple_reply"):
                for end in ("saddr", "daddr"):
                    _forget_all(conntrack, side, {end: str(address)})


def forget_udp(version: int, ports: Collection[int]) -> None:
    """Forgets what UDP clients had begun with these ports of the host: it would go on past new rules."""
    if not ports or not _any_known():
        return
    with _conntrack(version) as conntrack, translated("forget", "connections"):
        for entry in conntrack.dump(tuple_orig=_tuple(conntrack, {"proto": PROTOCOLS["udp"]})):
            protocol = entry.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
            if protocol.get_attr("CTA_PROTO_DST_PORT") in ports:
                _forget_one(conntrack, entry)


def _any_known() -> bool:
    path = "net/netfilter/nf_conntrack_count"
    return sysctl.exists(path) and sysctl.read(path) != "0"


@contextlib.contextmanager
def _conntrack(version: int) -> Iterator[Any]:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    with translated("open", "conntrack socket"):
        opened = NFCTSocket(nfgen_family=socket.AF_INET if version == 4 else socket.AF_INET6)
    try:
        yield opened
    finally:
        opened.close()


def _tuple(conntrack: Any, fields: Mapping[str, Any]) -> Any:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    return NFCTAttrTuple(family=conntrack._nfgen_family, **fields)


def _forget_all(conntrack: Any, side: str, fields: Mapping[str, Any]) -> None:
    """Everything of which that side is so: in one call, which kernels before 6.10 do not have."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink import nfctsocket as nf

    wanted = _tuple(conntrack, fields)
    wanted.attrs()  # finds out which fields those are
    flags = "CTA_FILTER_ORIG_FLAGS" if side == "tuple_orig" else "CTA_FILTER_REPLY_FLAGS"
    message = nf.nfct_msg.create_from(**{side: wanted, "cta_filter": {"attrs": [[flags, wanted.flags]]}})
    try:
        conntrack.request(
            message,
            nf.IPCTNL_MSG_CT_DELETE,
            msg_flags=nf.NLM_F_REQUEST | nf.NLM_F_ACK,
            terminate=nf.terminate_error_msg,
        )
    except NetlinkError:
        with translated("forget", "connections"):
            for entry in conntrack.dump(**{side: wanted}):
                _forget_one(conntrack, entry)


def _forget_one(conntrack: Any, entry: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    original = NFCTAttrTuple.from_netlink(conntrack._nfgen_family, entry.get_attr("CTA_TUPLE_ORIG"))
    with contextlib.suppress(NetlinkError):  # it has just ended by itself
        conntrack.entry("del", tuple_orig=original)
