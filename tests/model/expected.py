# SPDX-License-Identifier: Apache-2.0
"""What must come of a packet: the verdict, the reason, and what leaves, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.model.addresses import ALL_NODES, ALL_NODES_MAC, ZERO6
from tests.model.packet import ICMP, ICMPV6, IPV4, IPV6, LATER, TCP, UDP, Key, Packet
from tests.model.sums import adjusted, checksum, num
from tests.model.topology import Member, Network

SHOT, REDIRECT, NEXT, ANY = 2, 7, -1, -9  # verdicts of a tc program; ANY: as the reason wants it

Check = Callable[[bytes], str]


class Expected:
    """The verdict, the reasons of which one is counted, and the frame that leaves: `outs`, one of them, or what
    `check` finds nothing wrong with. `to`: who receives a copy of what is flooded. `beside`: is counted too.
    `again`: frames that now arrive once more at the same hook. `width`: what leaves is in pieces, for a way that takes
    so many bytes; 0: it is whole. `refusal`: what is wrong with refusing it for want of a port, if that is among the
    reasons."""

    __slots__ = ("again", "beside", "check", "outs", "reasons", "refusal", "to", "verdict", "width")

    def __init__(
        self,
        verdict: int,
        reasons: Iterable[str],
        outs: tuple[bytes, ...] = (),
        check: Check | None = None,
        to: tuple[Member, ...] | None = None,
        beside: tuple[str, ...] = (),
    ) -> None:
        self.verdict, self.reasons, self.outs, self.check, self.to = verdict, tuple(reasons), outs, check, to
        self.beside = beside
        self.again: tuple[bytes, ...] = ()
        self.width = 0
        self.refusal: Callable[[], str] | None = None


def fitting(p: Packet, net: Network, members: dict[int, Member]) -> tuple[Member, ...]:
    """Who gets a copy: no device takes more than its MTU, and a tag's room."""
    return tuple(members.values()) if len(p.frame) - 14 <= net.mtu + 4 else ()


def last_hop(p: Packet) -> bytes:
    """With one hop left: the host may take it, and say what is wrong with it, but not send it on."""
    return _with_hops(p, 1)


def one_hop(p: Packet) -> bytes:
    """One hop further, and as it is."""
    return _with_hops(p, p.ttl - 1)


def _with_hops(p: Packet, hops: int) -> bytes:
    f = bytearray(p.frame)
    if p.kind == IPV4:
        f[24:26] = adjusted(num(f[24:26]), (hops - f[22]) << 8).to_bytes(2, "big")
        f[22] = hops
    else:
        f[21] = hops
    return bytes(f)


def either(*reasons: str) -> Expected:
    """Refused for one of these; some of them are told to the sender, which is not looked at."""
    return Expected(ANY, reasons, check=lambda got: "")


def dropped(frame: bytes, *reasons: str) -> Expected:
    return Expected(SHOT, reasons, (frame,))


def passed(reason: str, out: bytes) -> Expected:
    return Expected(REDIRECT, (reason,), (out,))


def arp_reply(p: Packet, mac: bytes) -> Expected:
    f = p.frame
    out = f[6:12] + mac + f[12:20] + b"\0\2" + mac + f[38:42] + f[22:32] + f[42:]
    return passed("ANSWERED", out)


def advertisement(p: Packet, target: bytes, mac: bytes) -> Expected:
    """RFC 4861, 7.2.4: to who asked, or to all nodes when he has no address yet."""
    alone = p.src == ZERO6
    dst = ALL_NODES if alone else p.src
    body = b"\x88\0\0\0" + (b"\x20\0\0\0" if alone else b"\x60\0\0\0") + target + b"\2\1" + mac
    check = checksum(target + dst + b"\0\0\0\x20\0\0\0\x3a" + body)
    body = body[:2] + check.to_bytes(2, "big") + body[4:]
    head = (ALL_NODES_MAC if alone else p.src_mac) + mac + b"\x86\xdd"
    wanted = head + b"\x60\0\0\0\0\x20\x3a\xff" + target + dst + body

    def check_out(got: bytes) -> str:
        # The flow label and the traffic class may be the question's.
        plain = got[:14] + b"\x60\0\0\0" + got[18:]
        return "" if plain == wanted and got[14] >> 4 == 6 else f"wanted {wanted.hex()}"

    return Expected(REDIRECT, ("ANSWERED",), check=check_out)


def translated(p: Packet, out: Key, hop: int = 1) -> bytes:
    """The packet with other addresses and ports, one hop further, every sum as right as it was."""
    _, src, sport, dst, dport = out
    f = bytearray(p.frame)
    delta = num(src) + num(dst) - num(p.src) - num(p.dst)
    if p.kind == IPV4:
        f[22] -= hop
        check = adjusted(f[24] << 8 | f[25], delta - (hop << 8))
        f[24:34] = check.to_bytes(2, "big") + src + dst
    else:
        f[21] -= hop
        f[22:54] = src + dst
    if p.fragment == LATER:
        return bytes(f)
    at = p.l4
    assert p.ports
    ports = sport + dport - p.ports[0] - p.ports[1]
    if p.icmp >= 0:
        # One of the two is the identifier, the other one 0.
        f[at + 4 : at + 6] = (sport or dport if p.icmp in (8, 128) else dport).to_bytes(2, "big")
        place, delta = at + 2, ports + (delta if p.kind == IPV6 else 0)
    else:
        f[at : at + 4] = (sport << 16 | dport).to_bytes(4, "big")
        place, delta = at + (16 if p.proto == TCP else 6), ports + delta
    old = f[place] << 8 | f[place + 1]
    if delta and (p.proto != UDP or old):
        new = adjusted(old, delta)
        f[place : place + 2] = (new or 0xFFFF if p.proto == UDP else new).to_bytes(2, "big")
    return bytes(f)


def readdressed(p: Packet, src: bytes, dst: bytes) -> bytes:
    """The packet with other addresses, whatever it carries; what is summed with them stays as right as it was."""
    f = bytearray(p.frame)
    delta = num(src) + num(dst) - num(p.src) - num(p.dst)
    if p.kind == IPV4:
        f[24:34] = adjusted(num(f[24:26]), delta).to_bytes(2, "big") + src + dst
    else:
        f[22:54] = src + dst
    places = {TCP: 16, UDP: 6} | ({ICMPV6: 2} if p.kind == IPV6 else {})
    if p.fragment != LATER and delta and p.proto in places:
        at = p.l4 + places[p.proto]
        old = num(f[at : at + 2])
        if p.proto != UDP or old:
            new = adjusted(old, delta)
            f[at : at + 2] = (new or 0xFFFF if p.proto == UDP else new).to_bytes(2, "big")
    return bytes(f)


def same(got: bytes, wanted: bytes) -> bool:
    """Equal, but for sums of 0 and 0xffff, which say the same (but for UDP's 0, which says nothing)."""
    if got == wanted:
        return True
    if len(got) != len(wanted):
        return False
    places = [i for i in range(len(got)) if got[i] != wanted[i]]
    p = Packet(wanted)
    sums = {24} if p.kind == IPV4 else set()
    if p.proto in (ICMP, ICMPV6):
        sums.add(p.l4 + 2)
    elif p.proto == TCP:
        sums.add(p.l4 + 16)
    for place in sums:
        if {got[place : place + 2], wanted[place : place + 2]} == {b"\0\0", b"\xff\xff"}:
            places = [i for i in places if i not in (place, place + 1)]
    return not places
