# SPDX-License-Identifier: Apache-2.0
"""One topology in the reference and in the programs, packet by packet."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

from datapath.model.policies import Policy
from datapath.plan.policies.compiling import plan_rows
from tests.model import counting
from tests.model.addresses import MAPPED
from tests.model.counting import raw_key
from tests.model.devices import ENCRYPTED, Host
from tests.model.draws import Sent
from tests.model.expected import ANY, REDIRECT, Expected, same
from tests.model.fixtures import NAMES, REASONS, Programs
from tests.model.fragments import joined
from tests.model.questions import DNS, UPSTREAM
from tests.model.reference import Reference
from tests.model.services import Service, Undecided, address_of
from tests.model.situations import WITHHELD, Situation, Withheld
from tests.model.sums import num
from tests.model.topology import LOOPBACK, Member, Network, Topology, Uplink

QUESTIONS = DNS.to_bytes(2)


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


class LostSightError(Exception):
    """The programs have done with a packet what the reference does not speak of: it cannot know what they remember."""


@dataclass
class Tally:
    packets: int = 0
    refused: int = 0  # by the test run, not by the programs
    undefined: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    found: list[Disagreement] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)
    met: Counter[Situation] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.packets += other.packets
        self.refused += other.refused
        self.undefined += other.undefined
        self.reasons += other.reasons
        self.found += other.found
        self.tolerated += other.tolerated
        self.met += other.met


def who(sent: Sent) -> str:
    sender = sent.sender
    if isinstance(sender, Member):
        return f"{sender.name} (number {sender.number}, network {sender.network.number})"
    return f"network {sender.number}" if isinstance(sender, Network) else sender.name


class Comparison:
    """One topology: the reference and the programs, packet by packet."""

    def __init__(
        self,
        host: Host,
        programs: Programs,
        topology: Topology,
        withheld: frozenset[Situation] = frozenset(WITHHELD),
    ) -> None:
        self.host, self.programs, self.topology = host, programs, topology
        self.reference = Reference(topology, withheld)
        programs.fill(topology)
        self.runner = programs.runner
        self.runner.all_moved()
        self.fds = programs.programs
        index = host.index
        self.index: dict[int, int] = {id(m): index[m.name] for m in topology.members}
        self.index.update((id(u), index[u.name]) for u in topology.uplinks)
        self.index.update((id(n), index[f"dp{n.number}"]) for n in topology.networks)
        if topology.overlay and topology.overlay.encrypted:
            self.index[id(topology.overlay.encrypted)] = index[ENCRYPTED]
        self.index[id(LOOPBACK)] = 1
        self.elsewhere = index[topology.uplinks[0].name]

    def put(self, policies: list[Policy]) -> None:
        """These are in force from now on, in both."""
        self.reference.put(policies)
        self.programs.put(plan_rows(policies, self.reference.guard.world))

    def expect(self, sent: Sent) -> Expected | Undecided | None:
        self.reference.width, self.reference.asked = 0, None
        self.reference.watch.begins()
        try:
            expected = self._expect(sent)
        except Withheld:
            return None
        except Undecided as undecided:
            return undecided
        if expected is not None and expected.verdict in (REDIRECT, ANY):
            expected.width = self.reference.width
        return expected

    def _decided(self, sent: Sent, service: Service, out: bytes) -> Expected:
        """The programs have chosen a backend, as what has left shows. If it was refused instead, none has changed
        anything: each will do for which that is right."""
        size = 4 if sent.frame[12:14] == b"\x08\0" else 16
        living = service.living(size)
        packet = out[14 - len(sent.frame) :]  # whatever is before it
        to = packet[16:20] if size == 4 else packet[24:40]
        shown = [one for one in living if address_of(one, size) == to]
        if not shown and service.affinity:
            raise LostSightError  # the client has it from now on
        moved = {reason for reason, _ in self.runner.all_moved(keep=True)}
        expected: Expected | Undecided | None = None
        for one in shown or living:
            service.chosen, service.refuses = one, not shown
            try:
                expected = self.expect(sent)
            finally:
                service.chosen, service.refuses = None, False
            if isinstance(expected, Undecided):
                raise LostSightError
            if not shown and expected and expected.refusal and expected.refusal():
                continue  # of another one no port was free
            if expected and moved & {REASONS[reason] for reason in expected.reasons}:
                break
        if expected is None or isinstance(expected, Undecided):
            raise LostSightError
        self.reference.met[Situation.SERVICE_ANY] += 1
        return expected

    def _expect(self, sent: Sent) -> Expected | None:
        if sent.hook == "from_container":
            return self.reference.from_container(sent.sender, sent.frame)  # type: ignore[arg-type]
        if sent.hook == "from_uplink":
            return self.reference.from_uplink(sent.sender, sent.frame)  # type: ignore[arg-type]
        if sent.hook == "from_tunnel":
            return self.reference.from_tunnel(sent.sender, sent.frame)  # type: ignore[arg-type]
        if sent.hook == "from_loopback":
            return self.reference.from_loopback(sent.frame)
        return self.reference.from_host(sent.sender, sent.frame, sent.forwarded)  # type: ignore[arg-type]

    def compare(self, sent: Sent, tally: Tally) -> tuple[str, str, str] | None:
        """None: they agree. Else what was expected, what came, and a name for the kind of difference."""
        if testable(sent.frame) is False:
            tally.refused += 1
            return None
        self.reference.gso = sent.gso
        expected, ran = self.expect(sent), None
        if isinstance(expected, Undecided):
            ran = self._run(sent)
            expected = self._decided(sent, expected.service, ran[1])
        if expected is None:
            tally.undefined += 1
            return None
        if expected.to is not None:
            for name in (m.name for m in self.topology.members):
                self.host.received(name)
        where = self.host_end(sent)
        if expected.again or expected.width:
            self.host.received(where)
        verdict, out = ran or self._run(sent)
        tally.packets += 1
        problem = ""
        counted = self.runner.moved(tuple(REASONS[r] for r in expected.reasons))
        for beside in expected.beside:
            if self.runner.moved((REASONS[beside],)) is None:
                counted = None
        came = self.host.received(where) if expected.again or expected.width else []
        if expected.again:
            # The kernel takes none of an MTU's length and more. And where a header was taken off for a test run, it
            # takes as much again off what comes there: it still looks for the network header behind one.
            lost = 14 if sent.hook == "from_tunnel" else 0
            if not {frame[lost:] for frame in expected.again} <= set(came):
                problem = f"kept fragments did not come again: {len(came)} of {len(expected.again)}"
        if expected.width and verdict == REDIRECT and counted is not None:
            out, lacking = self._whole(sent, expected, out, came, counted)
            problem = lacking or problem
        problem = self._judge(sent, expected, verdict, out, counted) or problem
        if not problem:
            tally.reasons[f"{sent.hook} {NAMES[counted or 0]}"] += 1
            self._note_asked(NAMES[counted or 0])
            self.reference.watch.note(sent, NAMES[counted or 0])
            header = sent.frame[:14] if sent.hook == "from_tunnel" else b""
            for frame in (header + one for one in expected.again):
                found = self.compare(sent._replace(frame=frame, gso=0), tally)
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

    def _note_asked(self, reason: str) -> None:
        """A service was asked, if one was: with that result."""
        if self.reference.asked is None:
            return
        service, server = self.reference.asked
        if server is None:
            service.ledger.service.failed += 1
            return
        service.ledger.service.opened += 1
        if reason == "DROP_NAT_PORTS":
            service.ledger.of(server).failed += 1

    def _judge(self, sent: Sent, expected: Expected, verdict: int, out: bytes, counted: int | None) -> str:
        if counted is None:
            return "reason"
        if verdict != expected.verdict and expected.verdict != ANY:
            return "verdict"
        if expected.refusal and NAMES[counted] == "DROP_NAT_PORTS":
            with contextlib.suppress(Withheld):
                return expected.refusal()
            return ""
        if expected.check:
            return expected.check(out)
        if out not in expected.outs and not any(same(out, one) for one in expected.outs):
            return "bytes"
        return self._copies(sent, expected) if expected.to is not None else ""

    def _run(self, sent: Sent) -> tuple[int, bytes]:
        ran = self.runner.run(
            self.fds[self._program(sent)],
            self.index[id(sent.sender)],
            sent.frame,
            self.elsewhere if sent.forwarded else 0,
            sent.gso,
        )
        if ran is None:
            raise OSError(f"test run refused {sent.frame.hex()}")
        return ran

    @staticmethod
    def _program(sent: Sent) -> str:
        """The hook's program: that of uplinks on whose link members of a network are is another."""
        if sent.hook == "from_tunnel":
            return "bare"
        on_link = isinstance(sent.sender, Uplink) and sent.sender.network
        return "from_parent" if on_link and sent.hook == "from_uplink" else sent.hook

    def _whole(
        self, sent: Sent, expected: Expected, out: bytes, came: list[bytes], counted: int
    ) -> tuple[bytes, str]:
        """The packet leaves in pieces: the first one now, the rest arrives at the hook again and does the same. What
        they make up together, and what is wrong with them."""
        pieces, padding = [out], sent.frame[14 + num(sent.frame[16:18]) :]
        rest = [frame for frame in came if frame not in expected.again]
        while rest:
            if len(rest) > 1:
                return out, f"{len(rest)} frames arrive again"
            verdict, out = self._run(sent._replace(frame=rest[0]))
            if verdict != REDIRECT or self.runner.moved((counted,)) is None:
                return pieces[0], f"piece {len(pieces)} is lost: {rest[0].hex()}"
            pieces.append(out)
            rest = self.host.received(self.host_end(sent))
        whole, problem = joined(pieces, expected.width)
        return whole + padding, problem

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
        known = {raw_key(key) for key in self.reference.connections.table}
        asked = {
            key for key in tables["pending"] if key[:16] == MAPPED + UPSTREAM and key[32:34] == QUESTIONS
        }
        tables["pending"] -= asked  # that they are questions the reference has said of each
        there = tables["pending"] | tables["conns"]
        if there != known:
            only, missing = sorted(there - known), sorted(known - there)
            return f"connections: {len(only)} unknown to the reference {only[:2]}, {len(missing)} missing {missing[:2]}"
        if tables["pending"] & tables["conns"]:
            return "a connection is in both tables"
        for connection, original in self.reference.connections.table.values():
            halves = {raw_key(connection.original), raw_key(connection.answer)}
            if connection.resumed and connection.heard:
                continue
            if original and not halves <= tables["conns" if connection.confirmed else "pending"]:
                return f"{connection.original}: wrong table, confirmed {connection.confirmed}"
        return (
            counting.connections(self.programs, self.reference)
            or counting.services(self.programs, self.topology)
            or counting.watched(self.programs, self.reference.watch)
        )


def testable(frame: bytes) -> bool:
    """The kernel's test run takes no frame that is shorter than the IP header that it claims."""
    if len(frame) < 15:
        return False
    kind = frame[12:14]
    return not ((kind == b"\x08\0" and len(frame) < 34) or (kind == b"\x86\xdd" and len(frame) < 54))
