# SPDX-License-Identifier: Apache-2.0
"""Questions for names and their answers, both as whole packets; an independent parser reads every answer."""

from __future__ import annotations

import itertools
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

import dns.exception
import pytest

from datapath.dataplane.layout import TAILS
from datapath.kernel import abi, libbpf, netns
from tests.bpf import names as n
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    C1,
    D1,
    HOST,
    NET1,
    NET3,
    REDIRECT,
    SHOT,
    Copies,
    Member,
    Programs,
    Reason,
)

OBJECTS = ("from_container", "resolve", "conn_gc")
SPORT = 43210
LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    """a1 sees network 1 and may ask an upstream, a3 sees networks 1 and 2 and names of its own, c1 is in an internal
    network; a2 and d1 have no resolver."""
    with copies.lent(objects=OBJECTS) as made:
        n.fill(made)
        yield made


class Way(NamedTuple):
    """How a container asks."""

    member: Member = A1
    src: IPv4Address | IPv6Address | None = None  # None: the container's own
    dst: IPv4Address | IPv6Address = n.RESOLVER

    def _frame(self, there: bool, carried: p.Transport, **header: Any) -> bytes:
        own = self.member.ip if self.dst.version == 4 else self.member.ip6
        ends = (self.src or own, self.dst) if there else (self.dst, self.src or own)
        macs = (self.member.net.mac, self.member.mac) if there else (self.member.mac, self.member.net.mac)
        if self.dst.version == 4:
            return p.ethernet(*macs, p.ETH_IPV4, p.ipv4(*ends, carried, **header))
        return p.ethernet(*macs, p.ETH_IPV6, p.ipv6(*ends, carried, **header))

    def asks(self, message: bytes, *, summed: bool = True, **header: Any) -> bytes:
        return self._frame(True, p.udp(SPORT, 53, message, summed=summed), **header)

    def hears(self, message: bytes, *, summed: bool = True, **header: Any) -> bytes:
        return self._frame(False, p.udp(53, SPORT, message, summed=summed), **header)

    def sends(self, carried: p.Transport, **header: Any) -> bytes:
        return self._frame(True, carried, **header)

    def gets(self, carried: p.Transport, **header: Any) -> bytes:
        return self._frame(False, carried, **header)


RESOLVER = Way()
FROM_LOOPBACK = Way(src=LOOPBACK)
GATEWAY = Way(dst=NET1.gateway)
GATEWAY6 = Way(dst=NET1.gateway6)
WAYS = {"resolver": RESOLVER, "from 127.0.0.1": FROM_LOOPBACK, "gateway": GATEWAY, "IPv6": GATEWAY6}


def message_of(frame: bytes) -> bytes:
    """The DNS message of a UDP frame without IP options."""
    return frame[14 + 20 + 8 :] if p.ethertype(frame) == p.ETH_IPV4 else frame[14 + 40 + 8 :]


def answers(programs: Programs, way: Way, asked: bytes, wanted: bytes, **how: Any) -> None:
    """The whole packet is the answer, and an independent parser finds nothing wrong with it."""
    n.checked(wanted, asked)
    programs.expect(way.member, way.asks(asked), REDIRECT, Reason.ANSWERED, way.hears(wanted), **how)


def forwards(programs: Programs, way: Way, frame: bytes) -> None:
    """It goes on, as it is, in the program that asks upstreams, which is not loaded here."""
    programs.expect(way.member, frame, SHOT, Reason.DROP_TAIL)


class Row(NamedTuple):
    sentence: str
    name: str | bytes
    kind: int
    records: list[bytes]


WEB4, WEB6 = n.address_record(A2.ip), n.address_record(A2.ip6)
ROWS = (
    Row("a name's IPv4 address", "web", n.A, [WEB4]),
    Row("its IPv6 address, of the same row", "web", n.AAAA, [WEB6]),
    Row("in any case, which is echoed as it was asked", "WeB", n.A, [WEB4]),
    Row("no IPv6 address of a name that has none: NODATA", "only4", n.AAAA, []),
    Row("no IPv4 address of a name that has none: NODATA", "only6", n.A, []),
    Row("the IPv6 address where it is the only one", "only6", n.AAAA, [WEB6]),
    Row("no mail exchanger of a name of ours: NODATA", "web", n.MX, []),
    Row("no HTTPS record", "web", n.HTTPS, []),
    Row("no service", "web", n.SRV, []),
    Row("nothing of type ANY", "web", n.ANY, []),
    Row("nothing of type 0", "web", 0, []),
    Row("no pointer of a name that is no address", "web", n.PTR, []),
    Row("a name with underscores and dots", "UNDER_score.A.b.c", n.A, [WEB4]),
    Row("one whose key is full", n.FULL, n.A, [WEB4]),
    Row("one that is too long for it", n.FULL + "y", n.AAAA, [WEB6]),
    Row("the same in capitals", (n.FULL + "y").upper(), n.A, [WEB4]),
    Row("the longest that there can be, 255 bytes", n.LONGEST, n.A, [WEB4]),
    Row("who has an address", "3.0.17.172.in-addr.arpa", n.PTR, [n.pointer_record(n.POINTED)]),
    Row("in capitals", "3.0.17.172.IN-ADDR.ARPA", n.PTR, [n.pointer_record(n.POINTED)]),
    Row("no address of an address", "3.0.17.172.in-addr.arpa", n.A, []),
    Row("who has an IPv6 address", A2.ip6.reverse_pointer, n.PTR, [n.pointer_record(n.POINTED)]),
    Row("in capitals", A2.ip6.reverse_pointer.upper(), n.PTR, [n.pointer_record(n.POINTED)]),
    Row("who has a link-local address", A2.linklocal.reverse_pointer, n.PTR, [n.pointer_record(n.POINTED)]),
    Row("whose name is long", A3.ip6.reverse_pointer, n.PTR, [n.pointer_record(n.LONG_POINTED)]),
    Row("where somebody on another host is", "far", n.AAAA, [n.address_record(n.FAR6)]),
    Row("who has an address there", n.FAR.reverse_pointer, n.PTR, [n.pointer_record("far.shop")]),
    Row("who has an IPv6 address there", n.FAR6.reverse_pointer, n.PTR, [n.pointer_record("far.shop")]),
    Row("no address of an address there", n.FAR6.reverse_pointer, n.AAAA, []),
)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_s17_a_question_for_a_name_of_ours_becomes_its_answer(programs: Programs, way: Way) -> None:
    for row in ROWS:
        asked = n.question(row.name, row.kind)
        answers(programs, way, asked, n.reply(asked, *row.records))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_s17_several_addresses_come_all_and_in_turning_order(programs: Programs, way: Way) -> None:
    for name, kind, wanted in (
        ("pair", n.A, n.records(*n.PAIR)),
        ("many", n.A, n.records(*n.MANY4)),
        ("many", n.AAAA, n.records(*n.MANY6)),
    ):
        asked, firsts = n.question(name, kind), set()
        rotations = {
            way.hears(n.reply(asked, *wanted[at:], *wanted[:at])): wanted[at] for at in range(len(wanted))
        }
        for _ in range(12 * len(wanted)):
            verdict, counted, out = programs.run(way.member, way.asks(asked))
            assert (verdict, counted) == (REDIRECT, {"ANSWERED": 1})
            firsts.add(rotations[out])
            n.checked(message_of(out), asked)
        assert len(firsts) > len(wanted) / 2


def test_s17_more_addresses_than_fit_are_as_many_as_fit_wherever_they_begin(programs: Programs) -> None:
    """Nothing is ever longer than 512 bytes, so that nothing has to be asked again over TCP."""
    for edns in (b"", n.opt()):
        asked, seen = n.question("crowd", edns=edns or None), set()
        fit = (512 - len(asked)) // 16
        for _ in range(100):
            out = programs.run(A1, RESOLVER.asks(asked)).packet
            answer = n.checked(message_of(out), asked)
            assert len(answer.answer) == fit < 32 and len(message_of(out)) <= 512
            seen |= {str(one[0]) for one in answer.answer}
        assert len(seen) == 32


class Turn(NamedTuple):
    sentence: str
    asked: bytes
    wanted: bytes


def turn(sentence: str, asked: bytes, *found: bytes, **how: Any) -> Turn:
    return Turn(sentence, asked, n.reply(asked, *found, **how))


TURNS = (
    turn("an OPT record is answered with one", n.question("web", edns=n.opt()), WEB4, edns=n.opt()),
    turn("whatever size it offers", n.question("web", edns=n.opt(size=4096)), WEB4, edns=n.opt()),
    turn("DO is copied", n.question("web", edns=n.opt(flags=0x8000)), WEB4, edns=n.opt(flags=0x8000)),
    turn("other flags are not", n.question("web", edns=n.opt(flags=0x4001)), WEB4, edns=n.opt()),
    turn(
        "options are left out",
        n.question("web", edns=n.opt(options=b"\0\x0a\0\x08cookie12")),
        WEB4,
        edns=n.opt(),
    ),
    turn(
        "a version that is not known is told so",
        n.question("web", edns=n.opt(version=1)),
        rcode=16,
        edns=n.opt(rcode=1),
    ),
    turn("CD is copied", n.question("web", flags=n.RD | n.CD), WEB4),
    turn("RD is not made up", n.question("web", flags=0), WEB4),
    turn("AD, RA, Z and AA are not copied", n.question("web", flags=n.RD | 0x04E0), WEB4),
    turn(
        "an unused address of ours is nobody's",
        n.question("9.9.17.172.in-addr.arpa", n.PTR),
        rcode=n.NXDOMAIN,
    ),
    turn(
        "one of IPv6 likewise",
        n.question(ip_address("fd00:1::99").reverse_pointer, n.PTR, edns=n.opt()),
        rcode=n.NXDOMAIN,
        edns=n.opt(),
    ),
    turn("whatever is asked of it", n.question("9.9.17.172.in-addr.arpa", n.TXT), rcode=n.NXDOMAIN),
)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_s17_flags_extensions_and_addresses_of_nobody(programs: Programs, way: Way) -> None:
    for row in TURNS:
        answers(programs, way, row.asked, row.wanted)


def test_s17_names_are_those_of_the_askers_networks_and_no_other(programs: Programs) -> None:
    """A name of another network is not told apart from one that nobody has, nor an address."""
    a3, internal = Way(A3), Way(C1)
    for name, found in (("db", B1.ip), ("other", B1.ip), ("web", A2.ip)):
        asked = n.question(name)
        answers(programs, a3, asked, n.reply(asked, n.address_record(found)))  # its own first, then in order
    asked = n.question("web")
    answers(programs, Way(B1), asked, n.reply(asked, n.address_record(B1.ip)))
    for name in ("other", "db", "inner", "nobody"):
        forwards(programs, RESOLVER, RESOLVER.asks(n.question(name)))
        asked = n.question(name)
        inner = n.address_record(C1.ip)
        wanted = n.reply(asked, inner) if name == "inner" else n.reply(asked, rcode=n.NXDOMAIN)
        answers(programs, internal, asked, wanted)
    for address in (B1.ip, B1.ip + 77):
        asked = n.question(address.reverse_pointer, n.PTR)
        answers(programs, RESOLVER, asked, n.reply(asked, rcode=n.NXDOMAIN))
    asked = n.question(B1.ip.reverse_pointer, n.PTR)
    answers(programs, a3, asked, n.reply(asked, n.pointer_record("other.two")))


POINTER = b"\xc0\x0c"
ODD = {
    "a name of nobody's": n.question("example.com"),
    "class CH": n.question("web", dnsclass=3),
    "class ANY": n.question("web", dnsclass=255),
    "opcode STATUS": n.question("web", flags=2 << 11),
    "opcode UPDATE": n.question("web", flags=5 << 11),
    "a message that is cut short": n.question("web", flags=n.RD | 0x0200),
    "no question": n.question("web", counts=(0, 0, 0, 0)),
    "two questions": n.question("web", counts=(2, 0, 0, 0)) + n.question("web")[12:],
    "a question with an answer": n.question("web", counts=(1, 1, 0, 0)) + WEB4,
    "one with an authority": n.question("web", counts=(1, 0, 1, 0)) + WEB4,
    "an additional record that is no OPT": n.question("web", counts=(1, 0, 0, 1)) + WEB4,
    "an OPT and a signature": n.question("web", edns=n.opt(), counts=(1, 0, 0, 2)) + WEB4,
    "an OPT whose length lies": n.question("web", edns=n.opt()[:-2] + b"\0\x09"),
    "an OPT that is announced and not there": n.question("web", counts=(1, 0, 0, 1)),
    "an OPT that is not announced": n.question("web", edns=n.opt(), counts=(1, 0, 0, 0)),
    "bytes behind the question": n.question("web") + b"x",
    "a name that begins with a pointer": n.question(POINTER),
    "a name that points to itself": n.question(b"\3web" + POINTER),
    "a length that lies": n.question(b"\4web\0"),
    "a label of 64 bytes": n.question(b"\x40" + b"w" * 64 + b"\0"),
    "a zero byte in a label": n.question(b"\4we\0b\0"),
    "a name that does not end": n.question(b"\3web")[:-4],
    "a name of 256 bytes": n.question(
        b"".join(b"\x3f" + b"l" * 63 for _ in range(3)) + b"\x3e" + b"m" * 62 + b"\0"
    ),
    "a name of 300 bytes": n.question(b"\x3f" + b"l" * 63 + b"\x3f" + b"l" * 63 + b"\x3f" * 170 + b"\0"),
    "no type": n.question("web")[:-4],
    "half a class": n.question("web")[:-1],
    "the root": n.question("."),
    "an address with a leading zero": n.question("03.0.17.172.in-addr.arpa", n.PTR),
    "an octet of 256": n.question("256.0.17.172.in-addr.arpa", n.PTR),
    "an octet of four digits": n.question("0003.0.17.172.in-addr.arpa", n.PTR),
    "an octet that is no number": n.question("x.0.17.172.in-addr.arpa", n.PTR),
    "three octets": n.question("0.17.172.in-addr.arpa", n.PTR),
    "five octets": n.question("1.3.0.17.172.in-addr.arpa", n.PTR),
    "an address of somebody else": n.question("1.2.0.192.in-addr.arpa", n.PTR),
    "an address below another domain": n.question("3.0.17.172.in-addr.arpb", n.PTR),
    "31 digits": n.question(A2.ip6.reverse_pointer[2:], n.PTR),
    "a digit that is none": n.question("g" + A2.ip6.reverse_pointer[1:], n.PTR),
    "an IPv4 address as IPv6": n.question(IPv6Address(f"::ffff:{A2.ip}").reverse_pointer, n.PTR),
    "513 bytes": n.question("web", edns=n.opt(options=bytes(4) + bytes(513 - 11 - 21 - 4))),
}


@pytest.mark.parametrize("asked", ODD.values(), ids=ODD.keys())
def test_s17_what_is_not_ours_goes_on_as_it_is(programs: Programs, asked: bytes) -> None:
    for way in WAYS.values():
        forwards(programs, way, way.asks(asked))


def test_s17_512_bytes_are_answered_and_513_are_not(programs: Programs) -> None:
    asked = n.question("web", edns=n.opt(options=bytes(4) + bytes(512 - 11 - 21 - 4)))
    assert (len(asked), len(ODD["513 bytes"])) == (512, 513)
    answers(programs, RESOLVER, asked, n.reply(asked, WEB4, edns=n.opt()))


@pytest.mark.parametrize("what", ODD)
def test_s17_where_nobody_can_be_asked_all_is_refused_at_once_and_nothing_leaks(
    programs: Programs, what: str
) -> None:
    """Of an internal network. An unknown name does not exist; what is malformed is told so, without its question."""
    asked, way = ODD[what], Way(C1)
    flags = int.from_bytes(asked[2:4], "big")
    out = programs.run(C1, way.asks(asked))
    assert (out.verdict, out.reasons) == (REDIRECT, {"ANSWERED": 1})
    answer = n.checked(message_of(out.packet), asked)
    known = (
        *("a name of nobody's", "the root", "an address with a leading zero", "an octet of 256"),
        *(
            "an octet of four digits",
            "an octet that is no number",
            "three octets",
            "five octets",
            "31 digits",
        ),
        *("an address of somebody else", "an address below another domain", "a digit that is none"),
        "an IPv4 address as IPv6",
    )
    if what in known:
        assert out.packet == way.hears(n.reply(asked, rcode=n.NXDOMAIN))
        assert answer.rcode() == n.NXDOMAIN and answer.question
    else:
        rcode = n.NOTIMP if flags & 0x7800 else n.FORMERR
        assert out.packet == way.hears(n.reply(asked, rcode=rcode, whole=False))


def test_s17_an_answer_is_never_answered(programs: Programs) -> None:
    for way in (RESOLVER, Way(C1)):
        for message in (n.question("web", flags=n.QR), n.question("nobody", flags=n.QR), b"", b"\0" * 11):
            programs.expect(way.member, way.asks(message), SHOT, Reason.DROP_TRUNCATED)


def test_s17_sums_are_right_unfinished_or_summed_by_a_device(programs: Programs) -> None:
    """With CHECKSUM_COMPLETE the kernel itself checks (EBADMSG) that no rewrite spoilt the device's sum, as long as the
    packet keeps its length: else it forgets that sum."""
    complete = libbpf.BPF_F_TEST_SKB_CHECKSUM_COMPLETE
    for way, row in itertools.product(WAYS.values(), (row for row in ROWS if not row.records)):
        asked = n.question(row.name, row.kind)
        answers(programs, way, asked, n.reply(asked), flags=complete)
    for way in (RESOLVER, FROM_LOOPBACK, GATEWAY):
        asked = n.question("web")
        frame, wanted = way.asks(asked, summed=False), way.hears(n.reply(asked, WEB4), summed=False)
        programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)


# linux/virtio_net.h, linux/if_packet.h
NEEDS_CSUM, SOL_PACKET, AUXDATA, VNET_HDR, NOT_READY = 1, 263, 8, 15, 1 << 3


@pytest.mark.parametrize(
    ("way", "proto", "check_at"),
    [
        (RESOLVER, p.UDP, 6),
        (FROM_LOOPBACK, p.UDP, 6),
        (GATEWAY6, p.UDP, 6),
        (Way(C1), p.TCP, 16),
    ],
    ids=["UDP", "UDP from 127.0.0.1", "UDP over IPv6", "TCP"],
)
def test_s17_a_sum_that_is_left_to_the_device_is_left_to_it_again(
    programs: Programs, way: Way, proto: int, check_at: int
) -> None:
    """As of a socket's packets with offload: the field has the pseudo header's sum only, of the answer's length."""
    asked = n.question("web" if proto == p.UDP else "inner")
    wanted = n.reply(asked, WEB4 if proto == p.UDP else n.address_record(C1.ip))
    if proto == p.UDP:
        frame, out = way.asks(asked), way.hears(wanted)
    else:
        frame = way.sends(p.tcp(SPORT, 53, p.ACK | p.PSH, framed(asked)))
        out = way.gets(segment(p.ACK | p.PSH, framed(wanted), seq=ACK, ack=SEQ + 2 + len(asked)))
    head = 14 + (20 if way.dst.version == 4 else 40)

    def left(whole: bytes) -> bytes:
        """The frame with a sum that is not finished."""
        ends = whole[26:34] if way.dst.version == 4 else whole[22:54]
        pseudo = ends + (len(whole) - head).to_bytes(4, "big") + proto.to_bytes(4, "big")
        field = (~p.checksum(pseudo) & 0xFFFF).to_bytes(2, "big")
        return whole[: head + check_at] + field + whole[head + check_at + 2 :]

    with netns.enter(programs.topology.inside):
        sender, tap = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2))
    with sender, tap, programs.wired(way.member):
        sender.bind((way.member.name, 0))
        sender.setsockopt(SOL_PACKET, VNET_HDR, 1)
        tap.bind((way.member.name, 3))
        tap.setsockopt(SOL_PACKET, AUXDATA, 1)
        tap.settimeout(60)
        sender.send(struct.pack("=BBHHHH", NEEDS_CSUM, 0, head + 8, 0, head, check_at) + left(frame))
        kinds = dict[int, tuple[bytes, int]]()
        while socket.PACKET_HOST not in kinds:
            got, extra, _, address = tap.recvmsg(2048, 256)
            ((_, _, told),) = extra
            kinds[address[2]] = got, int.from_bytes(told[:4], sys.byteorder)
        got, status = kinds[socket.PACKET_HOST]
    assert status & NOT_READY
    difference = p.difference(got, left(out))
    assert not difference, difference


def test_s17_a_header_with_options_is_answered_with_them(programs: Programs) -> None:
    asked = n.question("web", edns=n.opt())
    wanted = n.reply(asked, WEB4, edns=n.opt())
    for options in (b"\1\1\1\0", b"\x94\x04\0\0" + b"\1" * 36):
        frame, out = RESOLVER.asks(asked, options=options), RESOLVER.hears(wanted, options=options)
        programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, out)
    extensions = [p.extension(p.DESTINATION_OPTIONS)]
    frame, out = GATEWAY6.asks(asked, extensions=extensions), GATEWAY6.hears(wanted, extensions=extensions)
    programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, out)


def test_s17_a_hop_count_is_the_resolvers_own(programs: Programs) -> None:
    asked = n.question("web")
    frame, wanted = RESOLVER.asks(asked, ttl=1), RESOLVER.hears(n.reply(asked, WEB4))
    programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)
    frame, wanted = GATEWAY6.asks(asked, hops=255), GATEWAY6.hears(n.reply(asked, WEB4))
    programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)


def test_s14_who_asks_is_who_it_says(programs: Programs) -> None:
    asked = n.question("web")
    good = RESOLVER.asks(asked)
    spoofed = p.mac_bytes("02:42:de:ad:be:ef")
    programs.expect(A1, good[:6] + spoofed + good[12:], SHOT, Reason.DROP_SPOOFED_MAC)
    for source in (A2.ip, HOST, n.RESOLVER):
        reason = Reason.ANSWERED if source == n.RESOLVER else Reason.DROP_SPOOFED_ADDR
        verdict = REDIRECT if source == n.RESOLVER else SHOT
        way = Way(src=source)
        out = way.hears(n.reply(asked, WEB4)) if verdict == REDIRECT else None
        programs.expect(A1, way.asks(asked), verdict, reason, out)
    for to in (A2.ip, NET1.gateway, HOST):  # from 127.0.0.1 to anybody but the resolver
        programs.expect(A1, Way(src=LOOPBACK, dst=to).asks(asked), SHOT, Reason.DROP_SPOOFED_ADDR)
    other_mac = p.mac_bytes(A2.mac) + FROM_LOOPBACK.asks(asked)[6:]
    programs.expect(A1, other_mac, SHOT, Reason.DROP_SPOOFED_ADDR)


def test_s17_without_a_resolver_127_0_0_11_is_nobodys_and_the_gateway_is_the_hosts(
    programs: Programs,
) -> None:
    asked = n.question("web")
    for member in (A2, D1):
        for src in (None, LOOPBACK):
            programs.expect(member, Way(member, src).asks(asked), SHOT, Reason.DROP_BAD_ADDR)
    programs.expect(A2, Way(A2, None, NET1.gateway).asks(asked), REDIRECT, Reason.TO_HOST)


def test_s17_a_server_of_the_hosts_at_the_gateway_is_asked_what_is_not_ours(programs: Programs) -> None:
    """Over TCP everything, as a connection begins without a name. 127.0.0.11 is none of its addresses."""
    known, foreign = n.question("web"), n.question("nobody")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.create_server(("", 53)):
        udp.bind(("", 53))
        answers(programs, GATEWAY, known, n.reply(known, WEB4))
        for asked in (foreign, ODD["class CH"]):
            programs.expect(A1, GATEWAY.asks(asked), REDIRECT, Reason.TO_HOST)
        for way in (GATEWAY, Way(C1, None, NET3.gateway)):
            for carried in (p.tcp(SPORT, 53, p.SYN), p.tcp(SPORT, 53, p.ACK, framed(known))):
                programs.expect(way.member, way.sends(carried), REDIRECT, Reason.TO_HOST)
        forwards(programs, RESOLVER, RESOLVER.asks(foreign))
    forwards(programs, GATEWAY, GATEWAY.asks(foreign))


def test_s19_a_port_that_is_published_at_the_gateway_is_the_containers(programs: Programs) -> None:
    key, reserved = abi.port_key(ip_address("0.0.0.0"), 53, p.UDP), abi.reserved_key(53, p.UDP)
    programs.maps["ports"][key] = abi.port(network=1, endpoint=A2.number, addr=A2.ip, port=53)
    programs.maps["reserved"][reserved] = abi.reserved(1)
    try:
        out = programs.run(A1, GATEWAY.asks(n.question("web")))
        assert (out.verdict, out.reasons) == (REDIRECT, {"DELIVERED": 1})
        asked = n.question("web")
        answers(programs, RESOLVER, asked, n.reply(asked, WEB4))
    finally:
        del programs.maps["ports"][key], programs.maps["reserved"][reserved]


def test_s17_a_program_that_is_not_there_is_a_drop_that_is_counted(programs: Programs) -> None:
    programs.fill_tails(())
    try:
        programs.expect(A1, RESOLVER.asks(n.question("web")), SHOT, Reason.DROP_TAIL)
    finally:
        programs.fill_tails(TAILS)


def test_s17_questions_are_counted_for_the_network_of_the_asker(programs: Programs) -> None:
    for way, name, kind in (
        *((RESOLVER, "web", n.A), (RESOLVER, "web", n.A), (RESOLVER, "web", n.MX)),
        *((RESOLVER, "9.9.17.172.in-addr.arpa", n.PTR), (Way(C1), "nobody", n.A), (Way(B1), "web", n.AAAA)),
    ):
        programs.run(way.member, way.asks(n.question(name, kind)))
    programs.run(C1, Way(C1).asks(ODD["opcode STATUS"]))
    programs.run(A1, RESOLVER.asks(ODD["a name of nobody's"]))  # which the other program counts
    found = {
        key.network: tuple(sum(column) for column in zip(*copies, strict=True))
        for key, copies in programs.maps["name_counts"].read_all()
    }
    assert found == {1: (2, 1, 1, 0, 0, 0), 2: (0, 1, 0, 0, 0, 0), 3: (0, 0, 1, 0, 0, 1)}


def test_s17_a_set_that_is_gone_is_no_data(programs: Programs) -> None:
    key = next(iter(programs.maps["name_sets"]))
    value = programs.maps["name_sets"][key]
    sets = dict(programs.maps["name_sets"].read_all())
    programs.maps["name_sets"].delete_many(list(sets))
    try:
        asked = n.question("many")
        answers(programs, RESOLVER, asked, n.reply(asked))
    finally:
        programs.maps["name_sets"].update_many(sets)
    assert programs.maps["name_sets"][key] == value


# ---- what else comes to that address ------------------------------------------------------


def test_s17_127_0_0_11_can_be_pinged(programs: Programs) -> None:
    for way in (RESOLVER, FROM_LOOPBACK):
        for size in (0, 8, 1400):
            frame = way.sends(p.echo(p.ECHO, 77, b"p" * size))
            wanted = way.gets(p.echo(p.ECHO_REPLY, 77, b"p" * size))
            programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)


def test_s17_other_ports_of_127_0_0_11_refuse_at_once(programs: Programs) -> None:
    for way in (RESOLVER, FROM_LOOPBACK):
        frame = way.sends(p.tcp(SPORT, 80, p.SYN, options=b"\2\4\5\xb4"))
        wanted = way.gets(reset(80, seq=0, ack=0x01020305, flags=p.RST | p.ACK))
        programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)
        frame = way.sends(p.tcp(SPORT, 80, p.ACK | p.PSH, b"GET"))
        programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, way.gets(reset(80, seq=0x05060708)))
        frame = way.sends(p.tcp(SPORT, 80, p.RST))
        programs.expect(A1, frame, SHOT, Reason.ABSORBED)
        for payload in (b"x", b"x" * 300):
            frame = way.sends(p.udp(SPORT, 5353, payload))
            packet = frame[14:]
            quote = packet[: p.QUOTE] if len(packet) >= p.QUOTE else packet[:28]
            wanted = way.gets(p.icmp(3, 3, 0, quote), ident=0, fragment=0)
            programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, wanted)


def test_s17_what_is_no_question_at_all_is_dropped_there(programs: Programs) -> None:
    error = RESOLVER.sends(p.icmp(3, 3, 0, RESOLVER.hears(n.question("web"))[14:][:28]))
    programs.expect(A1, error, SHOT, Reason.ABSORBED)
    programs.expect(A1, RESOLVER.sends(p.echo(p.ECHO_REPLY, 77)), SHOT, Reason.DROP_NO_CONN)
    programs.expect(A1, RESOLVER.sends(p.Transport(132, bytes(16))), SHOT, Reason.DROP_PROTOCOL)
    for piece in p.cut(RESOLVER.asks(n.question("web", edns=n.opt(options=bytes(200)))), 128):
        programs.expect(A1, piece, SHOT, Reason.DROP_FRAGMENT)
    lying = bytearray(RESOLVER.asks(n.question("web")))
    lying[14 + 20 + 4 : 14 + 20 + 6] = (30).to_bytes(2, "big")
    programs.expect(A1, bytes(lying), SHOT, Reason.DROP_TRUNCATED)


# ---- over TCP ------------------------------------------------------------------------------


def reset(port: int, *, seq: int, ack: int = 0, flags: int = p.RST) -> p.Transport:
    return segment(flags, seq=seq, ack=ack, port=port, window=0)


def segment(
    flags: int, payload: bytes = b"", *, seq: int, ack: int, port: int = 53, window: int = 0xFFFF
) -> p.Transport:
    """What the resolver sends."""
    header = struct.pack("!HHIIBBHHH", port, SPORT, seq, ack, 5 << 4, flags, window, 0, 0)
    return p.Transport(p.TCP, header + payload, 16, True)


def framed(*messages: bytes) -> bytes:
    return b"".join(len(one).to_bytes(2, "big") + one for one in messages)


SEQ, ACK = 0x01020304, 0x05060708
TCP_WAYS = {"resolver": Way(C1), "from 127.0.0.1": Way(C1, LOOPBACK), "gateway": Way(C1, None, NET3.gateway)}
STAMPS = b"\1\1\x08\x0a" + bytes(8)


def says(programs: Programs, way: Way, sent: p.Transport, heard: p.Transport, **how: int) -> None:
    programs.expect(way.member, way.sends(sent), REDIRECT, Reason.ANSWERED, way.gets(heard), **how)


@pytest.mark.parametrize("way", TCP_WAYS.values(), ids=TCP_WAYS.keys())
def test_s17_over_tcp_each_segment_is_answered_from_its_own_numbers(programs: Programs, way: Way) -> None:
    """Where no upstream can be asked: nothing is remembered of a connection."""
    inner, nobody = n.question("inner", edns=n.opt()), n.question("nobody")
    good = n.reply(inner, n.address_record(C1.ip), edns=n.opt())
    nodata = n.question("INNER", n.AAAA)
    for asked, wanted in (
        (framed(inner), framed(good)),
        (framed(nodata), framed(n.reply(nodata))),
        (framed(inner, nodata), framed(good, n.reply(nodata))),
        (framed(nodata, nobody), framed(n.reply(nodata), n.reply(nobody, rcode=n.NXDOMAIN))),
    ):
        for options in (b"", STAMPS):
            length = len(asked)
            sent = p.tcp(SPORT, 53, p.ACK | p.PSH, asked, options=options)
            says(programs, way, sent, segment(p.ACK | p.PSH, wanted, seq=ACK, ack=SEQ + length))
            sent = p.tcp(SPORT, 53, p.ACK | p.PSH | p.FIN, asked, options=options)
            heard = segment(p.ACK | p.PSH | p.FIN, wanted, seq=ACK, ack=SEQ + length + 1)
            says(programs, way, sent, heard)
    says(programs, way, p.tcp(SPORT, 53, p.ACK | p.FIN), segment(p.ACK | p.FIN, seq=ACK, ack=SEQ + 1))
    for flags in (p.ACK, p.RST, p.RST | p.ACK, p.SYN | p.ACK):
        programs.expect(C1, way.sends(p.tcp(SPORT, 53, flags)), SHOT, Reason.ABSORBED)
    assert not programs.table("pending") and not programs.table("conns")


@pytest.mark.parametrize("way", TCP_WAYS.values(), ids=TCP_WAYS.keys())
def test_s17_over_tcp_a_connection_begins_with_any_number(programs: Programs, way: Way) -> None:
    frame, numbers = way.sends(p.tcp(SPORT, 53, p.SYN, options=b"\2\4\5\xb4" + STAMPS)), set()
    for _ in range(4):
        verdict, counted, out = programs.run(C1, frame)
        assert (verdict, counted) == (REDIRECT, {"ANSWERED": 1})
        numbers.add(int.from_bytes(out[38:42], "big"))
        wanted = segment(p.SYN | p.ACK, seq=int.from_bytes(out[38:42], "big"), ack=SEQ + 1)
        assert out == way.gets(wanted)
    assert len(numbers) == 4


def test_s17_over_tcp_a_part_of_a_message_waits_for_the_rest(programs: Programs) -> None:
    """What is not acknowledged comes again, with what was sent since behind it. More than two messages do so too."""
    whole = framed(n.question("inner"))
    parts = (whole[:1], whole[:2], whole[:-1], whole + b"\0", whole * 3, framed(b"x" * 5), framed(bytes(600)))
    for part in parts:
        programs.expect(C1, Way(C1).sends(p.tcp(SPORT, 53, p.ACK, part)), SHOT, Reason.ABSORBED)


def test_s17_over_tcp_sums_are_right_where_a_device_has_summed(programs: Programs) -> None:
    asked = n.question("inner", n.AAAA), n.question("nobody")
    wanted = framed(n.reply(asked[0]), n.reply(asked[1], rcode=n.NXDOMAIN))
    heard = segment(p.ACK | p.PSH, wanted, seq=ACK, ack=SEQ + len(framed(*asked)))
    how = {"flags": libbpf.BPF_F_TEST_SKB_CHECKSUM_COMPLETE}
    says(programs, Way(C1), p.tcp(SPORT, 53, p.ACK | p.PSH, framed(*asked)), heard, **how)


def test_s17_over_tcp_a_connection_leads_to_an_upstream_where_there_is_one(programs: Programs) -> None:
    forwards(programs, RESOLVER, RESOLVER.sends(p.tcp(SPORT, 53, p.SYN)))
    key = abi.upstream_key(n.UPSTREAM.addr)
    programs.maps["upstreams"][key] = abi.upstream_state(dead_until=1 << 62)
    out = programs.run(A1, RESOLVER.sends(p.tcp(SPORT, 53, p.SYN)))
    assert (out.verdict, out.reasons) == (REDIRECT, {"ANSWERED": 1})
    asked = n.question("nobody")
    sent = p.tcp(SPORT, 53, p.ACK, framed(asked))
    wanted = framed(n.reply(asked, rcode=n.REFUSED))
    says(programs, RESOLVER, sent, segment(p.ACK | p.PSH, wanted, seq=ACK, ack=SEQ + 2 + len(asked)))


def opened(programs: Programs, way: Way) -> tuple[Any, Any]:
    """Both keys of a connection to an upstream, as the other program opens it."""
    src = way.src or way.member.ip
    if src == LOOPBACK:
        index = programs.topology.index[way.member.name]
        src = IPv6Address(struct.pack("!IIII", 0x01000000, 0, index, int(LOOPBACK)))
    there = abi.tuple_(src, way.dst, SPORT, 53, p.TCP)
    back = abi.tuple_(n.UPSTREAM.addr, HOST, 53, 20100, p.TCP)
    for key, other, flag in ((there, back, 1), (back, there, 0)):
        programs.maps["pending"][key] = abi.conn(
            other=other, from_endpoint=way.member.number if flag else 0, flags=4 | flag, state=2
        )
    return there, back


@pytest.mark.parametrize(
    "way", [RESOLVER, FROM_LOOPBACK, GATEWAY], ids=["resolver", "from 127.0.0.1", "gateway"]
)
def test_s17_over_tcp_a_connection_to_an_upstream_is_taken_over_for_a_name_of_ours(
    programs: Programs, way: Way
) -> None:
    """From the segment's own numbers; the rest of it is answered without a connection."""
    keys = opened(programs, way)
    asked = framed(n.question("nobody"))
    for carried in (
        p.tcp(SPORT, 53, p.ACK | p.PSH, asked),
        p.tcp(SPORT, 53, p.ACK),
        p.tcp(SPORT, 53, p.ACK | p.FIN),
        p.tcp(SPORT, 53, p.RST),
        p.tcp(SPORT, 53, p.ACK | p.PSH, asked[:5]),
        p.tcp(SPORT, 53, p.ACK | p.PSH, framed(n.question("web"), n.question("nobody"))),
    ):
        forwards(programs, way, way.sends(carried))
    assert set(programs.table("pending")) == set(keys)
    both = n.question("web"), n.question("web", n.AAAA)
    sent = p.tcp(SPORT, 53, p.ACK | p.PSH, framed(*both), options=STAMPS)
    wanted = framed(n.reply(both[0], WEB4), n.reply(both[1], WEB6))
    says(programs, way, sent, segment(p.ACK | p.PSH, wanted, seq=ACK, ack=SEQ + len(framed(*both))))
    forwards(programs, way, way.sends(p.tcp(SPORT, 53, p.ACK)))  # it becomes the reset of the upstream's side
    says(programs, way, p.tcp(SPORT, 53, p.ACK | p.FIN), segment(p.ACK | p.FIN, seq=ACK, ack=SEQ + 1))


def test_every_answer_here_is_read_by_an_independent_parser() -> None:
    """One that is wrong is found: else the other tests would prove less than they say."""
    asked = n.question("web")
    good = n.reply(asked, WEB4)
    n.checked(good, asked)
    for wrong in (good[:-1], good + b"\0", b"\0\0" + good[2:], good[:12] + b"\3WEB" + good[16:]):
        with pytest.raises((AssertionError, dns.exception.DNSException)):
            n.checked(wrong, asked)
