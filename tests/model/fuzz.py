# SPDX-License-Identifier: Apache-2.0
"""Sends the same packets through the programs and through the reference, and compares.

    python -m tests.model.fuzz [--seconds N] [--seed S] [--packets N] [--quiet]

Everything follows from the seed, but for the ports that the programs choose. A disagreement ends its topology (the
two may remember different things) and is printed with all that repeats it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from datapath.kernel import netns
from tests.model import generate
from tests.model.expected import Expected, same
from tests.model.fixtures import NAMES, REASONS, Host, Programs, pinned_to_one_cpu
from tests.model.generate import Generator, Sent
from tests.model.packet import ANY, MAPPED, Key
from tests.model.reference import Reference
from tests.model.topology import LOOPBACK, Member, Network, Topology

TOPOLOGIES, PACKETS = 24, 3000  # topologies of one host, packets of one topology


@dataclass
class Disagreement:
    seed: str
    index: int
    sent: Sent
    expected: str
    got: str
    signature: str
    history: list[Sent]

    def __str__(self) -> str:
        sent = self.sent
        more = ", forwarded" * sent.forwarded + f", gso {sent.gso}" * bool(sent.gso)
        return (
            f"{self.signature}\n  seed {self.seed}, packet {self.index}, {sent.hook} by {who(sent)}{more}"
            f"\n  frame    {sent.frame.hex()}\n  expected {self.expected}\n  got      {self.got}"
        )


@dataclass
class Tally:
    packets: int = 0
    refused: int = 0  # by the test run, not by the programs
    undefined: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    found: list[Disagreement] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)


def who(sent: Sent) -> str:
    sender = sent.sender
    if isinstance(sender, Member):
        return f"{sender.name} (number {sender.number}, network {sender.network.number})"
    return f"network {sender.number}" if isinstance(sender, Network) else sender.name


class Comparison:
    """One topology: the reference and the programs, packet by packet."""

    def __init__(self, host: Host, programs: Programs, topology: Topology) -> None:
        self.host, self.programs, self.topology = host, programs, topology
        self.reference = Reference(topology)
        programs.fill(topology)
        self.runner = programs.runner
        self.runner.all_moved()
        self.fds = programs.programs
        index = host.index
        self.index: dict[int, int] = {id(m): index[m.name] for m in topology.members}
        self.index.update((id(u), index[u.name]) for u in topology.uplinks)
        self.index.update((id(n), index[f"dp{n.number}"]) for n in topology.networks)
        self.index[id(LOOPBACK)] = 1
        self.elsewhere = index[topology.uplinks[0].name]

    def expect(self, sent: Sent) -> Expected | None:
        if sent.hook == "from_container":
            return self.reference.from_container(sent.sender, sent.frame)  # type: ignore[arg-type]
        if sent.hook == "from_uplink":
            return self.reference.from_uplink(sent.sender, sent.frame)  # type: ignore[arg-type]
        if sent.hook == "from_loopback":
            return self.reference.from_loopback(sent.frame)
        return self.reference.from_host(sent.sender, sent.frame, sent.forwarded)  # type: ignore[arg-type]

    def compare(self, sent: Sent, tally: Tally) -> tuple[str, str, str] | None:
        """None: they agree. Else what was expected, what came, and a name for the kind of difference."""
        if testable(sent.frame) is False:
            tally.refused += 1
            return None
        self.reference.gso = sent.gso
        expected = self.expect(sent)
        if expected is None:
            tally.undefined += 1
            return None
        if expected.to is not None:
            for name in (m.name for m in self.topology.members):
                self.host.received(name)
        where = self.host_end(sent)
        if expected.again:
            self.host.received(where)
        ran = self.runner.run(
            self.fds[sent.hook],
            self.index[id(sent.sender)],
            sent.frame,
            self.elsewhere if sent.forwarded else 0,
            sent.gso,
        )
        if ran is None:
            raise OSError(f"test run refused {sent.frame.hex()}")
        verdict, out = ran
        counted = self.runner.moved(tuple(REASONS[r] for r in expected.reasons))
        for beside in expected.beside:
            if self.runner.moved((REASONS[beside],)) is None:
                counted = None
        tally.packets += 1
        problem = ""
        if counted is None:
            problem = "reason"
        elif verdict != expected.verdict and expected.verdict != ANY:
            problem = "verdict"
        elif NAMES[counted] == "DROP_NAT_PORTS":
            pass
        elif expected.check:
            problem = expected.check(out)
        elif out not in expected.outs and not any(same(out, one) for one in expected.outs):
            problem = "bytes"
        elif expected.to is not None:
            problem = self._copies(sent, expected)
        if expected.again and not problem:
            came = self.host.received(where)
            # The kernel takes none of an MTU's length and more.
            if not set(expected.again) <= set(came):
                problem = f"kept fragments did not come again: {len(came)} of {len(expected.again)}"
        if not problem:
            tally.reasons[f"{sent.hook} {NAMES[counted or 0]}"] += 1
            for frame in expected.again:
                found = self.compare(sent._replace(frame=frame), tally)
                if found:
                    return found
            return None
        moved = ",".join(f"{NAMES.get(r, r)}" for r, _ in self.runner.all_moved()) or (
            NAMES[counted] if counted is not None else "nothing"
        )
        wanted = "/".join(expected.reasons)
        kind = problem if problem in ("reason", "verdict", "bytes") else "bytes"
        return (
            f"{expected.verdict} {wanted} {' or '.join(o.hex() for o in expected.outs)}",
            f"{verdict} {moved} {out.hex()} {problem}",
            f"{sent.hook}: {kind}: expected {wanted}, got {moved}",
        )

    def host_end(self, sent: Sent) -> str:
        """The device at which the hook is."""
        sender = sent.sender
        if isinstance(sender, Network):
            return f"dp{sender.number}"
        return f"v{sender.name}" if isinstance(sender, Member) else sender.name

    def _copies(self, sent: Sent, expected: Expected) -> str:
        wanted = {m.name for m in expected.to or ()}
        for member in self.topology.members:
            got = self.host.received(member.name).count(sent.frame)
            if got != (member.name in wanted):
                return f"{member.name} got {got} copies"
        return ""

    def books(self) -> str:
        """Nothing may have been counted beside what was expected; no half of a connection without the other."""
        moved = self.runner.all_moved()
        if moved:
            return f"counted beside: {[(NAMES.get(r, r), n) for r, n in moved]}"
        tables = {name: self.programs.keys(name) for name in ("pending", "conns")}
        known = {raw_key(key) for key in self.reference.table}
        there = tables["pending"] | tables["conns"]
        if there != known:
            only, missing = sorted(there - known), sorted(known - there)
            return f"connections: {len(only)} unknown to the reference {only[:2]}, {len(missing)} missing {missing[:2]}"
        if tables["pending"] & tables["conns"]:
            return "a connection is in both tables"
        for connection, original in self.reference.table.values():
            halves = {raw_key(connection.original), raw_key(connection.answer)}
            if connection.resumed and connection.heard:
                continue
            if original and not halves <= tables["conns" if connection.confirmed else "pending"]:
                return f"{connection.original}: wrong table, confirmed {connection.confirmed}"
        return ""


def raw_key(key: Key) -> bytes:
    """As struct tuple holds it."""
    proto, src, sport, dst, dport = key
    if len(src) == 4:
        src, dst = MAPPED + src, MAPPED + dst
    return src + dst + (sport << 16 | dport).to_bytes(4, "big") + bytes((proto, 0, 0, 0))


def testable(frame: bytes) -> bool:
    """The kernel's test run takes no frame that is shorter than the IP header that it claims."""
    if len(frame) < 15:
        return False
    kind = frame[12:14]
    return not ((kind == b"\x08\0" and len(frame) < 34) or (kind == b"\x86\xdd" and len(frame) < 54))


def run(
    seed: int,
    *,
    seconds: float = 0,
    packets: int = 0,
    report: Callable[[Tally], None] | None = None,
    stop_at: int = 0,
    tolerate: str = "",
) -> Tally:
    """Until one of the bounds: seconds, packets, disagreements."""
    tally = Tally()
    begun = time.monotonic()

    def over() -> bool:
        tally.seconds = time.monotonic() - begun
        return bool(
            (seconds and tally.seconds > seconds)
            or (packets and tally.packets >= packets)
            or (stop_at and len(tally.found) >= stop_at)
        )

    with pinned_to_one_cpu():
        round_ = 0
        while not over():
            rng = random.Random(f"{seed}/{round_}")
            host = Host(generate.plan(rng))
            try:
                with netns.enter(host.space):
                    programs = Programs(host)
                    try:
                        for number in range(TOPOLOGIES):
                            if over():
                                break
                            one_topology(f"{seed}/{round_}/{number}", host, programs, tally, tolerate)
                            if report:
                                report(tally)
                    finally:
                        programs.close()
            finally:
                host.close()
            round_ += 1
    return tally


def one_topology(seed: str, host: Host, programs: Programs, tally: Tally, tolerate: str) -> None:
    rng = random.Random(seed)
    topology = generate.topology(rng, host.plan)
    if not topology.members:
        return
    comparison = Comparison(host, programs, topology)
    generator = Generator(rng, topology, comparison.reference)
    history: list[Sent] = []
    for index in range(PACKETS):
        if index % 500 == 499 and rng.random() < 0.3:
            member = rng.choice(topology.members)
            member.number += 1000
            programs.replace(topology, member)
        sent = generator.next()
        history.append(sent)
        problem = comparison.compare(sent, tally)
        if problem:
            expected, got, signature = problem
            if tolerate and re.search(tolerate, signature + " " + got):
                tally.tolerated[signature] += 1
                continue
            tally.found.append(Disagreement(seed, index, sent, expected, got, signature, history))
            return
    problem_in_books = comparison.books()
    if problem_in_books:
        tally.found.append(
            Disagreement(
                seed, PACKETS, history[-1], "", problem_in_books, "books: " + problem_in_books, history
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the packet programs with the reference model.")
    parser.add_argument("--seconds", type=float, default=0, help="how long; 0: until interrupted")
    parser.add_argument("--packets", type=int, default=0, help="how many at least")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument(
        "--keep-going", type=int, default=1, metavar="N", help="stop at so many disagreements"
    )
    parser.add_argument("--tolerate", default="", help="a pattern: go on after disagreements that match")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    shown: Counter[str] = Counter()

    def report(tally: Tally) -> None:
        for one in tally.found[sum(shown.values()) :]:
            shown[one.signature] += 1
            if shown[one.signature] == 1:
                print(one, flush=True)

    tally = Tally()
    try:
        tally = run(
            seed,
            seconds=options.seconds,
            packets=options.packets,
            report=report,
            stop_at=options.keep_going,
            tolerate=options.tolerate,
        )
    except KeyboardInterrupt:
        return 130
    if not options.quiet:
        for name, count in sorted(tally.reasons.items()):
            print(f"  {name:32} {count}")
    for signature, count in shown.most_common():
        print(f"  {count} x {signature}")
    for signature, count in tally.tolerated.most_common():
        print(f"  tolerated {count} x {signature}")
    rate = tally.packets / tally.seconds if tally.seconds else 0
    print(
        f"seed {seed}: {tally.packets} packets compared in {tally.seconds:.0f} s ({rate:.0f}/s), "
        f"{len(tally.found)} disagreements; {tally.refused} too short for a test run, {tally.undefined} undefined"
    )
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
