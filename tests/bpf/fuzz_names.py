# SPDX-License-Identifier: Apache-2.0
"""Asks the resolver mutated questions and reads every answer with an independent parser.

    python -m tests.bpf.fuzz_names [--questions N] [--seed S]

Everything follows from the seed, but for the order of several addresses. The first answer that is wrong ends it: one
that the parser does not read to its end, with a foreign id or question or a wrong sum, or with what the asker does not
see.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from typing import NamedTuple

from datapath.kernel import netns
from tests.bpf import names as n
from tests.bpf import packets as p
from tests.bpf.fixtures import A1, A3, B1, C1, NET1, REDIRECT, Member, Programs, Topology
from tests.model.fixtures import Runner

OBJECTS = ("from_container", "resolve")
SPORT = 43210
BADVERS = 16
KINDS = (n.A, n.A, n.AAAA, n.AAAA, n.PTR, n.PTR, n.MX, n.HTTPS, n.ANY)
EXTRAS = (None, n.opt(), n.opt(flags=0x8000), n.opt(version=1), n.opt(options=b"\0\x0a\0\x08cookie12"))
OTHERS = ("nobody", "example.com", "9.9.17.172.in-addr.arpa", ".")
NAMES = tuple(map(n.wire, (*(asked for _, name, _ in n.KNOWN for asked in n.asked_as(name)), *OTHERS)))
PIECES = (b"\xc0\x0c", b"\0", b"\x3f", b"\x40", b"\xff", b"\3web", b"\4arpa\0", bytes(16), b"A" * 64)


class WrongError(Exception):
    """An answer that must not be."""


class Asker(NamedTuple):
    """A container and how it asks; what it sees; whether there is an upstream for the rest."""

    member: Member
    v6: bool
    tcp: bool
    seen: dict[bytes, dict[int, set[bytes]]]
    forwards: bool


ASKERS = tuple(
    Asker(member, v6, tcp, n.seen_by(member), forwards)
    for member, v6, tcp, forwards in (
        (A1, False, False, True),
        (A1, True, False, True),
        (A3, False, False, True),
        (B1, False, False, False),
        (C1, False, False, False),
        (C1, False, True, False),
    )
)


def mutated(rng: random.Random, message: bytes) -> bytes:
    """A message with up to a few changes: bits, bytes, lengths, cuts, and parts that are doubled or foreign."""
    found = bytearray(message)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(9)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(found):
            found[at] = rng.randrange(256)
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            found[at:at] = rng.choice(PIECES)
        elif kind == 4:
            found[at : at + rng.randrange(1, 5)] = b""
        elif kind == 5:
            found += rng.randbytes(rng.randrange(1, 40))
        elif kind == 6:
            other = rng.randrange(len(found) + 1)
            found[at:at] = found[min(at, other) : max(at, other)]
        elif kind == 7:
            found = bytearray(bytes(found[:12]) + bytes(found[12:]).swapcase())
        else:
            found[rng.randrange(2, 12) : 12] = b"" if rng.randrange(8) else rng.randbytes(2)
        if not found:
            found += b"\0"
    return bytes(found[:1200])


def drawn(rng: random.Random) -> bytes:
    extra = rng.choice(EXTRAS)
    return mutated(
        rng,
        n.question(rng.choice(NAMES), rng.choice(KINDS), edns=extra, ident=rng.randrange(1 << 16)),
    )


def frame_of(asker: Asker, carried: p.Transport) -> bytes:
    if asker.v6:
        return asker.member.sends(NET1.gateway6, carried)
    return asker.member.sends(n.RESOLVER, carried)


def carried_by(asker: Asker, frame: bytes) -> bytes:
    """What an answer's transport carries; WrongError: it is not from whom was asked, or a sum or a length is wrong."""
    head = 40 if asker.v6 else 20
    ip, l4 = frame[14 : 14 + head], frame[14 + head :]
    own = asker.member.ip6.packed if asker.v6 else asker.member.ip.packed
    ends = ip[8:40] if asker.v6 else ip[12:20]
    wanted = (NET1.gateway6.packed if asker.v6 else n.RESOLVER.packed) + own
    length = int.from_bytes(ip[4:6], "big") if asker.v6 else int.from_bytes(ip[2:4], "big") - head
    if ends != wanted or length != len(l4) or (not asker.v6 and p.checksum(ip)):
        raise WrongError("the IP header")
    proto = p.TCP if asker.tcp else p.UDP
    if p.checksum(ends + len(l4).to_bytes(4, "big") + proto.to_bytes(4, "big") + l4):
        raise WrongError("the transport's sum")
    if l4[:4] != (53).to_bytes(2, "big") + SPORT.to_bytes(2, "big"):
        raise WrongError("the ports")
    return l4[20:] if asker.tcp else l4[8:]


def judge(asker: Asker, asked: bytes, said: bytes) -> str:
    """How the answer is counted; WrongError: what is wrong with it."""
    answer = n.checked(said, asked)
    if not answer.question:
        if asker.forwards or answer.rcode() not in (n.FORMERR, n.NOTIMP) or len(said) != 12:
            raise WrongError("an answer without a question")
        return "refused"
    (question,) = answer.question
    name = (question.name.to_wire() or b"").lower()
    known = asker.seen.get(name)
    if known is None:
        reverse = name.endswith((b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"))
        if answer.rcode() not in (n.NXDOMAIN, n.REFUSED) or (asker.forwards and not reverse) or answer.answer:
            raise WrongError("an answer to a name that the asker does not see")
        return "does not exist"
    extra = asked[12 + len(name) + 4 :]  # an OPT record, or nothing
    version = extra[6] if extra else 0
    if answer.rcode() != (BADVERS if version else n.NOERROR) or (answer.edns == 0) != bool(extra):
        raise WrongError("the code of an answer to a name that is known, or its OPT record")
    if version:
        return "unknown version"
    for rrset in answer.answer:
        (data,) = rrset
        if rrset.name != question.name or rrset.rdtype != question.rdtype:
            raise WrongError("a record of something else")
        if (data.to_wire() or b"") not in known[int(rrset.rdtype)]:
            raise WrongError("a record that nobody has written")
    if bool(answer.answer) != (int(question.rdtype) in known):
        raise WrongError("records that are left out or made up")
    return "records" if answer.answer else "no data"


class Fuzzer:
    """One host with its programs, and what has come of the questions so far."""

    def __init__(self, programs: Programs, seed: int) -> None:
        self._programs = programs
        self._rng = random.Random(seed)
        self._runner = Runner(programs.maps["counters"].fd)
        self._known: dict[tuple[int, bytes, bytes], str] = {}
        self.counts: Counter[str] = Counter()

    def ask(self) -> None:
        """One question. WrongError, AssertionError, or one of the parser's: the answer is wrong."""
        number = self._rng.randrange(len(ASKERS))
        asker, messages = ASKERS[number], [drawn(self._rng)]
        if asker.tcp:
            if self._rng.randrange(2):
                messages.append(drawn(self._rng))
            stream = b"".join(len(one).to_bytes(2, "big") + one for one in messages)
            carried = p.tcp(SPORT, 53, p.ACK | p.PSH, stream)
        else:
            carried = p.udp(SPORT, 53, messages[0])
        frame = frame_of(asker, carried)
        ifindex = self._programs.ifindex(asker.member)
        got = self._runner.run(self._programs.fds["from_container"], ifindex, frame)
        if got is None:
            raise WrongError("the kernel would not run it")
        verdict, out = got
        if verdict != REDIRECT:
            if out != frame:
                raise WrongError("a packet that was changed and not sent")
            self.counts["not answered"] += 1
            return
        said = carried_by(asker, out)
        for asked in messages:
            part = said
            if asker.tcp:
                size = int.from_bytes(said[:2], "big")
                part, said = said[2 : 2 + size], said[2 + size :]
            self.counts[self._judged(number, asked, part)] += 1
        if asker.tcp and said:
            raise WrongError("more answers than questions")

    def _judged(self, number: int, asked: bytes, said: bytes) -> str:
        """An answer that was read already, but for its id, is not read again."""
        if asked[:2] != said[:2]:
            raise WrongError("the id")
        key = number, asked[2:], said[2:]
        if key not in self._known:
            if len(self._known) > 200_000:
                self._known.clear()
            self._known[key] = judge(ASKERS[number], asked, said)
        return self._known[key]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    order = parser.parse_args()
    topology, begun, number = Topology(), time.monotonic(), 0
    programs = Programs(topology, objects=OBJECTS)
    n.fill(programs)
    fuzzer = Fuzzer(programs, order.seed)
    try:
        with netns.enter(topology.host):
            while number < order.questions:
                number += 1
                fuzzer.ask()
    except Exception as error:
        print(f"seed {order.seed}, question {number}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        programs.close()
        topology.close()
    took = time.monotonic() - begun
    found = ", ".join(f"{count:,} {what}" for what, count in sorted(fuzzer.counts.items()))
    print(f"seed {order.seed}: {order.questions:,} questions in {took:.0f} s: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
