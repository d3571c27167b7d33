# SPDX-License-Identifier: Apache-2.0
"""Uplinks of every kind that hosts have: each builder gives a pretend host, and the machine outside, an end of a link
`up1` of that kind, without addresses. pytest skips what the kernel has no device for."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from datapath.kernel.netns import enter
from datapath.kernel.rtnetlink import Message, Refused, Rtnetlink, attribute, attributes, text, u32
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace

NAME, MTU = "up1", 1380
HOST6, OUTSIDE6 = "2001:db8:1::1", "2001:db8:1::2"  # of the uplink eth0, for tunnels over IPv6

TUNSETIFF, TUNSETLINK, _TUNSETOFFLOAD = 0x400454CA, 0x400454CD, 0x400454D0
IFF_TUN, IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x1, 0x2, 0x4

# linux/genetlink.h: the family of messages that tells of the others; struct genlmsghdr: command, version
_NETLINK_GENERIC, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = (
    16,
    16,
    3,
    1,
    2,
)
_GENERIC = struct.Struct("=BBxx")
# linux/if_team.h
_TEAM_CMD_OPTIONS_SET, _TEAM_ATTR_TEAM_IFINDEX, _TEAM_ATTR_LIST_OPTION, _TEAM_ATTR_ITEM_OPTION = 1, 1, 2, 1
_TEAM_ATTR_OPTION_NAME, _TEAM_ATTR_OPTION_TYPE, _TEAM_ATTR_OPTION_DATA, _NLA_STRING = 1, 3, 4, 5

# linux/ppp-ioctl.h, linux/tty.h
_TIOCSETD, _N_PPP = 0x5423, 3
_PPPIOCGCHAN, _PPPIOCATTCHAN, _PPPIOCCONNECT = 0x80047437, 0x40047438, 0x4004743A
_PPPIOCNEWUNIT, _PPPIOCSNPMODE = 0xC004743E, 0x4008744B
_PPP_IP, _PPP_IPV6, _NPMODE_PASS = 0x21, 0x57, 0


class Relay:
    """Copies what comes at each of two fds to the other one, until it is closed; others are kept open meanwhile."""

    def __init__(self, one: int, other: int, *kept: int) -> None:
        self._ends = {one: other, other: one}
        self._fds = {one, other, *kept}
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        while True:
            ready, _, _ = select.select([*self._ends, self._stop], [], [])
            if self._stop in ready:
                return
            for fd in ready:
                with contextlib.suppress(OSError):  # the other end is down
                    data = os.read(fd, 1 << 17)
                    while data:  # a terminal takes what it has room for
                        data = data[os.write(self._ends[fd], data) :]

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        for fd in (self._stop, *self._fds):
            os.close(fd)


def _tun(place: Namespace, offload: bool) -> int:
    flags = IFF_TUN | IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
    with enter(place.path):
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), flags))
    if offload:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    return fd


def tun(host: Host, stack: ExitStack, offload: bool = False) -> None:
    """As WireGuard and VPNs in user space have them."""
    stack.callback(Relay(_tun(host, offload), _tun(host.outside, offload)).close)


def tun_offload(host: Host, stack: ExitStack) -> None:
    """A tun device that hands over whole segments, with checksums that are still to be made."""
    tun(host, stack, offload=True)


def made(place: Namespace, command: str) -> str:
    """Makes a device. The kind of it, if the kernel does not know that kind; "": it is there."""
    done = place.try_(f"ip link add {command}")
    unknown = "Unknown device type" in done.stderr or "not supported" in done.stderr
    assert not done.returncode or unknown, f"{command}: {done.stderr}"
    return command.split(" type ")[1].split()[0] if done.returncode else ""


def linked(place: Namespace, command: str) -> None:
    """Makes a device; the test is skipped where the kernel does not know that kind."""
    if kind := made(place, command):
        pytest.skip(f"this kernel has no {kind} devices")


def _veth(host: Host, near: str, far: str = NAME) -> None:
    linked(host, f"{near} type veth peer name {far} netns {host.outside.pid}")
    host.sh(f"ip link set {near} up")
    host.outside.sh(f"ip link set {far} up")


def veth(host: Host, stack: ExitStack) -> None:
    _veth(host, NAME)


def bridge(host: Host, stack: ExitStack) -> None:
    _veth(host, "port0")
    linked(host, f"{NAME} type bridge")
    host.sh(f"ip link set port0 master {NAME}")


def macvlan(host: Host, stack: ExitStack) -> None:
    _veth(host, "lower0")
    linked(host, f"{NAME} link lower0 type macvlan mode bridge")


def vlan(host: Host, stack: ExitStack) -> None:
    for place in (host, host.outside):
        linked(place, f"{NAME} link eth0 type vlan id 7")


def bond(host: Host, stack: ExitStack) -> None:
    linked(host, f"{NAME} type bond mode active-backup miimon 100")
    _veth(host, "port0")
    host.sh("ip link set port0 down")
    host.sh(f"ip link set port0 master {NAME}")


def team(host: Host, stack: ExitStack) -> None:
    """One whose ports take turns, without teamd: it is told so itself, before it has a port."""
    linked(host, f"{NAME} type team")
    asked = _GENERIC.pack(_CTRL_CMD_GETFAMILY, 1) + text(_CTRL_ATTR_FAMILY_NAME, "team")
    mode = (
        text(_TEAM_ATTR_OPTION_NAME, "mode")
        + attribute(_TEAM_ATTR_OPTION_TYPE, bytes([_NLA_STRING]))
        + text(_TEAM_ATTR_OPTION_DATA, "roundrobin")
    )
    with enter(host.path), Rtnetlink(_NETLINK_GENERIC) as generic:
        family = attributes(generic.get(Message(_GENL_ID_CTRL, asked))[_GENERIC.size :])
        told = (
            _GENERIC.pack(_TEAM_CMD_OPTIONS_SET, 1)
            + u32(_TEAM_ATTR_TEAM_IFINDEX, socket.if_nametoindex(NAME))
            + attribute(_TEAM_ATTR_LIST_OPTION, attribute(_TEAM_ATTR_ITEM_OPTION, mode))
        )
        try:
            generic.do(Message(int.from_bytes(family[_CTRL_ATTR_FAMILY_ID], sys.byteorder), told))
        except Refused as error:
            if error.errno != errno.ESRCH:  # it is done, and nobody listens to the news of it
                raise
    _veth(host, "port0")
    host.sh("ip link set port0 down")
    host.sh(f"ip link set port0 master {NAME}")


def vxlan(host: Host, stack: ExitStack) -> None:
    for place, own, other in ((host, HOST, OUTSIDE), (host.outside, OUTSIDE, HOST)):
        linked(place, f"{NAME} type vxlan id 42 dstport 4789 local {own} remote {other}")


def _tunnel(kind: str, ipv6: bool = False) -> Callable[[Host, ExitStack], None]:
    def build(host: Host, stack: ExitStack) -> None:
        ends = (HOST6, OUTSIDE6) if ipv6 else (HOST, OUTSIDE)
        if ipv6:
            host.sh(f"ip -6 address add {HOST6}/64 dev eth0 nodad")
            host.outside.sh(f"ip -6 address add {OUTSIDE6}/64 dev eth0 nodad")
        for place, own, other in ((host, *ends), (host.outside, *ends[::-1])):
            linked(place, f"{NAME} type {kind} local {own} remote {other}")

    return build


def wireguard(host: Host, stack: ExitStack) -> None:
    from pyroute2 import WireGuard

    for place in (host, host.outside):
        linked(place, f"{NAME} type wireguard")
    keys = [bytes([number]) * 32 for number in (0x48, 0x50)]
    for number, (place, other) in enumerate(((host, OUTSIDE), (host.outside, HOST))):
        with enter(place.path), WireGuard() as device:
            device.set(
                NAME,
                private_key=base64.b64encode(keys[number]).decode(),
                listen_port=51820,
                peer={
                    "public_key": base64.b64encode(x25519(keys[1 - number])).decode(),
                    "endpoint_addr": other,
                    "endpoint_port": 51820,
                    "allowed_ips": ["0.0.0.0/0", "::/0"],
                },
            )


def x25519(secret: bytes) -> bytes:
    """The public key of a private one (RFC 7748, section 5)."""
    prime, scalar = 2**255 - 19, bytearray(secret)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    k, x1 = int.from_bytes(scalar, "little"), 9
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % prime, x1 * (da - cb) ** 2 % prime
        x2, z2 = aa * bb % prime, e * (aa + 121665 * e) % prime
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, prime - 2, prime) % prime).to_bytes(32, "little")


def ppp(host: Host, stack: ExitStack) -> None:
    """Two PPP devices over pseudo terminals, without pppd: its options are not negotiated."""
    subprocess.run(["modprobe", "-a", "ppp_async"], check=False, capture_output=True)
    if not os.path.exists("/dev/ppp"):
        pytest.skip("this kernel has no ppp devices")
    masters, others = [], []
    for place in (host, host.outside):
        with enter(place.path):
            master, slave = os.openpty()
            tty.setraw(slave)
            try:
                fcntl.ioctl(slave, _TIOCSETD, struct.pack("i", _N_PPP))
                channel, unit = os.open("/dev/ppp", os.O_RDWR), os.open("/dev/ppp", os.O_RDWR)
            except OSError:
                pytest.skip("this kernel has no ppp devices")
            number = fcntl.ioctl(slave, _PPPIOCGCHAN, bytes(4))
            fcntl.ioctl(channel, _PPPIOCATTCHAN, number)
            made = fcntl.ioctl(unit, _PPPIOCNEWUNIT, struct.pack("i", -1))
            fcntl.ioctl(channel, _PPPIOCCONNECT, made)
            for protocol in (_PPP_IP, _PPP_IPV6):
                fcntl.ioctl(unit, _PPPIOCSNPMODE, struct.pack("ii", protocol, _NPMODE_PASS))
        place.sh(f"ip link set ppp{struct.unpack('i', made)[0]} name {NAME}")
        masters.append(master)
        others += [slave, channel, unit]
    stack.callback(Relay(*masters, *others).close)


KINDS: Mapping[str, Callable[[Host, ExitStack], None]] = {
    "tun": tun,
    "tun-offload": tun_offload,
    "veth": veth,
    "bridge": bridge,
    "macvlan": macvlan,
    "vxlan": vxlan,
    "vlan": vlan,
    "bond": bond,
    "team": team,
    "wireguard": wireguard,
    "ppp": ppp,
    "ipip": _tunnel("ipip mode any"),
    "gre": _tunnel("gre"),
    "sit": _tunnel("sit mode any"),
    "ip6gre": _tunnel("ip6gre", ipv6=True),
    "ip6tnl": _tunnel("ip6tnl mode any", ipv6=True),
}
BARE = ("tun", "tun-offload", "wireguard", "ppp", "ipip", "gre", "sit", "ip6gre", "ip6tnl")
