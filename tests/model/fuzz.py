# SPDX-License-Identifier: Apache-2.0
"""Sends the same packets through the programs and through the reference, and compares.

    python -m tests.model.fuzz [--seconds N] [--seed S] [--packets N] [--jobs N] [--quiet]

Everything follows from the seed, but for the ports that the programs choose. A disagreement ends its topology (the
two may remember different things) and is printed with all that repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datapath.kernel import netns
from tests.model import hosts, plans
from tests.model.comparison import Comparison, Disagreement, LostSightError, Tally
from tests.model.devices import Host
from tests.model.draws import Sent
from tests.model.fixtures import Programs, pinned_to_one_cpu
from tests.model.generate import Generator
from tests.model.policies import Drawn
from tests.model.situations import WITHHELD, Situation

TOPOLOGIES, PACKETS = 8, 1500  # topologies of one host, packets of one topology
GUARDED = 0.15  # of the topologies have policies


@dataclass(frozen=True)
class Order:
    """What one round is to do. `end`: of the monotonic clock, 0: none. `tolerate`: a pattern of disagreements to go
    on after."""

    seed: int
    end: float = 0
    tolerate: str = ""
    withheld: frozenset[Situation] = frozenset(WITHHELD)
    stop_at: int = 0

    @property
    def over(self) -> bool:
        return bool(self.end) and time.monotonic() > self.end


def never(tally: Tally) -> bool:
    return False


def one_round(order: Order, number: int, cpu: int = 0, enough: Callable[[Tally], bool] = never) -> Tally:
    """One host, and several topologies on it, until that is enough."""
    tally = Tally()
    rng = random.Random(f"{order.seed}/{number}")
    begun = time.monotonic()
    with pinned_to_one_cpu(cpu):
        host = Host(plans.plan(rng, order.withheld))
        try:
            with netns.enter(host.space):
                programs = Programs(host)
                try:
                    for topology in range(TOPOLOGIES):
                        if order.over or (order.stop_at and len(tally.found) >= order.stop_at):
                            break
                        one_topology(f"{order.seed}/{number}/{topology}", host, programs, tally, order)
                        if enough(tally):
                            break
                finally:
                    programs.close()
        finally:
            host.close()
    tally.seconds = time.monotonic() - begun
    return tally


def one_topology(seed: str, host: Host, programs: Programs, tally: Tally, order: Order) -> None:
    rng = random.Random(seed)
    chance = random.Random(f"policies {seed}")
    guarded = chance.random() < GUARDED
    topology = hosts.topology(rng, host.plan, guarded)
    if not topology.members:
        return
    comparison = Comparison(host, programs, topology, order.withheld)
    drawn = Drawn(chance, topology, (*hosts.OUT4, *hosts.OUT6))
    if guarded:
        comparison.put(drawn.policies())
    generator = Generator(rng, topology, comparison.reference)
    history: list[Sent] = []
    for index in range(PACKETS):
        if index % 500 == 499 and rng.random() < 0.3:
            member = rng.choice(topology.members)
            number, member.number = member.number, member.number + 1000
            programs.replace(topology, member)
            if rng.random() < 0.5:
                programs.bury(number)
                comparison.reference.bury(number)
            if guarded:
                comparison.put(comparison.reference.guard.policies)
        if guarded and index % 150 == 149:
            comparison.put(drawn.policies())
        if topology.services and index % 50 == 49 and rng.random() < 0.3:
            service = rng.choice(topology.services)
            state = rng.choice(("up", "up", "up", "down", "draining"))
            programs.judge(service, rng.choice(service.backends), state)
        sent = generator.next()
        history.append(sent)
        try:
            problem = comparison.compare(sent, tally)
        except LostSightError:
            tally.undefined += 1
            break
        if problem:
            expected, got, signature = problem
            if order.tolerate and re.search(order.tolerate, signature + " " + got):
                tally.tolerated[signature] += 1
                continue
            tally.found.append(Disagreement(seed, index, sent, expected, got, signature, history))
            break
    else:
        problem_in_books = comparison.books()
        if problem_in_books:
            kind = "books: " + problem_in_books[:40]
            tally.found.append(Disagreement(seed, PACKETS, history[-1], "", problem_in_books, kind, history))
    tally.met.update(comparison.reference.met)


# ---- several rounds ------------------------------------------------------------------------------------------


def run(
    seed: int,
    *,
    seconds: float = 0,
    packets: int = 0,
    jobs: int = 1,
    report: Callable[[Tally], None] | None = None,
    stop_at: int = 0,
    tolerate: str = "",
    withheld: frozenset[Situation] = frozenset(WITHHELD),
    until: Callable[[Tally], bool] = never,
) -> Tally:
    """Until one of the bounds (seconds, packets, disagreements), or what else ends it."""
    tally, begun = Tally(), time.monotonic()
    order = Order(seed, begun + seconds if seconds else 0, tolerate, withheld, stop_at)

    def enough(now: Tally) -> bool:
        both = Tally()
        both.add(tally)
        both.add(now)
        both.seconds = time.monotonic() - begun
        return until(both)

    for found in _rounds(order, jobs, enough):
        tally.add(found)
        tally.seconds = time.monotonic() - begun
        if report:
            report(tally)
        if order.over or (packets and tally.packets >= packets) or until(tally):
            break
        if stop_at and len(tally.found) >= stop_at:
            break
    return tally


def _rounds(order: Order, jobs: int, enough: Callable[[Tally], bool]) -> Iterator[Tally]:
    if jobs == 1:
        for number in itertools.count():
            yield one_round(order, number, enough=enough)
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        ahead = [pool.apply_async(_in_a_worker, (order, number)) for number in range(jobs + 1)]
        for number in itertools.count(jobs + 1):
            yield ahead.pop(0).get()
            ahead.append(pool.apply_async(_in_a_worker, (order, number)))


def _in_a_worker(order: Order, number: int) -> Tally:
    worker = multiprocessing.current_process()._identity[0]
    tally = one_round(order, number, worker)
    for one in tally.found:
        one.history = []  # which has all of its host in it
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the packet programs with the reference model.")
    parser.add_argument("--seconds", type=float, default=0, help="how long; 0: until interrupted")
    parser.add_argument("--packets", type=int, default=0, help="how many at least")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0: one a processor")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument(
        "--keep-going", type=int, default=1, metavar="N", help="stop at so many disagreements"
    )
    parser.add_argument("--tolerate", default="", help="a pattern: go on after disagreements that match")
    parser.add_argument("--meet", default="", help="what is withheld, to be met all the same: names, or ALL")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    shown: Counter[str] = Counter()

    tally = Tally()

    def report(now: Tally) -> None:
        nonlocal tally
        tally = now
        for one in tally.found[sum(shown.values()) :]:
            shown[one.signature] += 1
            if shown[one.signature] == 1:
                print(one, flush=True)

    meet = set(options.meet.split(","))
    withheld = frozenset(one for one in WITHHELD if not meet & {one.name, "ALL"})
    try:
        run(
            seed,
            seconds=options.seconds,
            packets=options.packets,
            jobs=options.jobs or len(os.sched_getaffinity(0)),
            report=report,
            stop_at=options.keep_going,
            tolerate=options.tolerate,
            withheld=withheld,
        )
    except KeyboardInterrupt:
        print("interrupted")
    if not options.quiet:
        for name, count in sorted(tally.reasons.items()):
            print(f"  {name:32} {count}")
        for situation in Situation:
            print(f"  {tally.met[situation]:8} {situation}{' (withheld)' * (situation in withheld)}")
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
