# SPDX-License-Identifier: Apache-2.0
"""The device of encrypted tunnels: WireGuard's, told by generic netlink which hosts it may speak to (pyroute2).

Keys are base64. All errors are KernelError.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import netns
from datapath.kernel.devices import find_index, index_of, quiet_ipv6
from datapath.kernel.pyroute import opened, translated
from datapath.model.parsing import Prefix
from datapath.model.wireguard import Setting, WireGuardDevice, WireGuardPeer

KIND = "wireguard"
# Seconds between packets of nothing to each peer: by them a host that has just been told to another has a session with
# it before the first packet, and `doctor` can tell that there is none.
KEEPALIVE = 25
_SET, _GET, _VERSION = 1, 0, 1  # WG_CMD_*, WG_GENL_VERSION of linux/wireguard.h
_REMOVE_ME = 1  # WGPEER_F_REMOVE_ME
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300  # NLM_F_* of linux/netlink.h
_MOST = 400  # peers and prefixes of one message: an attribute with others inside has at most 64 KiB


def new_key() -> str:
    """A private key."""
    return base64.b64encode(os.urandom(32)).decode()


def public_key(private: str) -> str:
    """The key that others know the holder of the private one by, which the kernel says: of a device that is made for
    it, in a namespace that goes at once. KernelError with EOPNOTSUPP: the kernel has no WireGuard."""
    with netns.new() as probe, opened(probe) as route:
        with translated("create", f"{KIND} device"):
            route.link("add", kind=KIND, ifname="probe")
        configure("probe", key=private)
        found = find("probe")
    assert found is not None
    return found.key


def create(name: str, private: str, port: int, mtu: int) -> int:
    """Makes the device, up, without addresses and peers; its index. `port`: of UDP; `mtu`: bytes of an IP packet
    inside. Undone on failure: EADDRINUSE if somebody has the port, EEXIST if there is a device of that name."""
    with opened() as route:
        with translated("create", f"device {name}"):
            route.link("add", kind=KIND, ifname=name, mtu=mtu)
        index = index_of(name)
        try:
            quiet_ipv6(name)
            configure(name, key=private, port=port)
            with translated("set up", f"device {name}"):
                route.link("set", index=index, state="up")
        except BaseException:
            route.link("del", index=index)
            raise
    return index


def find(name: str) -> WireGuardDevice | None:
    """The device of that name; None: there is none, or it is of another kind."""
    if find_index(name) is None:
        return None
    try:
        with _socket() as (wireguard, message), translated("look at", f"device {name}"):
            message["cmd"] = _GET
            message["attrs"] = [["WGDEVICE_A_IFNAME", name]]
            flags = _REQUEST | _DUMP
            parts = list(wireguard.nlm_request(message, msg_type=wireguard.prid, msg_flags=flags))
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT):
            return None
        raise
    return read(parts)


def read(parts: Sequence[Any]) -> WireGuardDevice:
    """The device that the kernel has told of in these messages: one peer may be in several."""
    peers: dict[str, WireGuardPeer] = {}
    for part in parts:
        for raw in part.get_attr("WGDEVICE_A_PEERS") or ():
            key = _text(raw.get_attr("WGPEER_A_PUBLIC_KEY"))
            before = peers.get(key, WireGuardPeer())
            prefixes = (ip_network(one["addr"]) for one in raw.get_attr("WGPEER_A_ALLOWEDIPS") or ())
            endpoint, handshake = (
                raw.get_attr(f"WGPEER_A_{name}") for name in ("ENDPOINT", "LAST_HANDSHAKE_TIME")
            )
            peers[key] = WireGuardPeer(
                before.prefixes.union(prefixes),
                (ip_address(endpoint["addr"]), endpoint["port"]) if endpoint else before.endpoint,
                handshake["tv_sec"] if handshake else before.handshake,
                raw.get_attr("WGPEER_A_TX_BYTES") or before.sent,
            )
    first = parts[0]
    return WireGuardDevice(
        _text(first.get_attr("WGDEVICE_A_PUBLIC_KEY")), first.get_attr("WGDEVICE_A_LISTEN_PORT") or 0, peers
    )


def _text(key: Any) -> str:
    return "" if key is None else bytes(key).decode()


def configure(name: str, settings: Iterable[Setting] = (), *, key: str = "", port: int = 0) -> None:
    """Tells the device what its peers are, in this order; `key`: its private one, `port`: that it receives at; "", 0:
    as it is. EADDRINUSE: somebody has the port."""
    own: list[list[Any]] = [["WGDEVICE_A_PRIVATE_KEY", key]] if key else []
    own += [["WGDEVICE_A_LISTEN_PORT", port]] if port else []
    messages: list[tuple[list[list[Any]], tuple[Setting, ...]]] = [(own, ())] if own else []
    messages += [([], some) for some in batches(settings)]
    for said, some in messages:
        peers = [{"attrs": attributes(setting)} for setting in some]
        with _socket() as (wireguard, message), translated("configure", f"device {name}"):
            message["cmd"], message["version"] = _SET, _VERSION
            message["attrs"] = [["WGDEVICE_A_IFNAME", name], *said]
            message["attrs"] += [["WGDEVICE_A_PEERS", peers]] if peers else []
            list(wireguard.nlm_request(message, msg_type=wireguard.prid, msg_flags=_REQUEST | _ACK))


def batches(settings: Iterable[Setting]) -> Iterator[tuple[Setting, ...]]:
    """The same in portions that a message takes: of a peer with many prefixes some come later."""
    some: list[Setting] = []
    size = 0
    for setting in settings:
        rest = setting
        while size + 1 + len(rest.prefixes) > _MOST:
            room = _MOST - size - 1
            if room > 0:
                some.append(rest._replace(prefixes=rest.prefixes[:room]))
                rest = Setting(rest.key, rest.prefixes[room:])
            yield tuple(some)
            some, size = [], 0
        some.append(rest)
        size += 1 + len(rest.prefixes)
    if some:
        yield tuple(some)


def attributes(setting: Setting) -> list[list[Any]]:
    """The peer as pyroute2 takes it. WireGuard adds prefixes to those that a peer has, unless it is told to replace
    them: in the moment of that, packets would be lost."""
    found: list[list[Any]] = [["WGPEER_A_PUBLIC_KEY", setting.key]]
    if setting.removed:
        return [*found, ["WGPEER_A_FLAGS", _REMOVE_ME]]
    if setting.endpoint is not None:
        address, port = setting.endpoint
        found.append(["WGPEER_A_ENDPOINT", {"addr": str(address), "port": port}])
        found.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", KEEPALIVE])
    if setting.prefixes:
        found.append(["WGPEER_A_ALLOWEDIPS", [{"attrs": _prefix(prefix)} for prefix in setting.prefixes]])
    return found


def _prefix(prefix: Prefix) -> list[list[Any]]:
    return [
        ["WGALLOWEDIP_A_FAMILY", 2 if prefix.version == 4 else 10],  # AF_INET, AF_INET6
        ["WGALLOWEDIP_A_IPADDR", prefix.network_address.packed],
        ["WGALLOWEDIP_A_CIDR_MASK", prefix.prefixlen],
    ]


@contextlib.contextmanager
def _socket() -> Iterator[tuple[Any, Any]]:
    """A socket in the calling thread's namespace, and an empty message. ENOENT: there is no such family."""
    from pyroute2 import WireGuard
    from pyroute2.netlink.generic.wireguard import wgmsg

    with translated("open", "WireGuard's netlink socket"):
        opened_socket = WireGuard()
    try:
        yield opened_socket, wgmsg()
    finally:
        opened_socket.close()
