# SPDX-License-Identifier: Apache-2.0
"""Whether results of commands that ran at once are results that some serial order would give.

A history is what each command was, when it began and ended, and what it said. It is right if a moment can be found
between begin and end of each command at which it took place, so that, one after the other in the order of these
moments, each says what it did. `rm -f` has two: its container's process ends, then the container goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

RUNNING, EXITED = "running", "exited"


class Cell(NamedTuple):
    """Two containers, a network and a port of the host, that concern nobody else. Containers: (status, on the
    network), None: there is none."""

    a: tuple[str, bool] | None = None
    b: tuple[str, bool] | None = None
    network: bool = False
    owner: str = ""  # of the port

    def container(self, name: str) -> tuple[str, bool] | None:
        return self.a if name == "a" else self.b

    def with_container(self, name: str, now: tuple[str, bool] | None) -> Cell:
        changed = self._replace(a=now) if name == "a" else self._replace(b=now)
        return changed._replace(owner="") if changed.owner == name and not running(now) else changed

    @property
    def connected(self) -> frozenset[str]:
        return frozenset(name for name in "ab" if (found := self.container(name)) and found[1])


def running(container: tuple[str, bool] | None) -> bool:
    return container is not None and container[0] == RUNNING


class Done(NamedTuple):
    """A command and what it said; names as in the cell: a, b, n, and 80 for the port."""

    began: float
    ended: float
    verb: str
    name: str  # of the container it is about, or ""
    code: int
    said: str


# One moment of a command: the state after it; None: it cannot have taken place then.
Step = Callable[[Cell], Cell | None]


def looks(question: Callable[[Cell], bool]) -> Step:
    return lambda cell: cell if question(cell) else None


def steps(done: Done) -> tuple[list[Step], bool]:
    """Its moments, and whether it only looks. AssertionError: it said what no command may say."""
    name, said = done.name, done.said

    def there(cell: Cell) -> tuple[str, bool]:
        found = cell.container(name)
        assert found
        return found

    if done.verb == "ps":
        return [looks(lambda c: running(c.container(name)) == (name in said.split()))], True
    if done.verb == "network ls":
        return [looks(lambda c: c.network == ("n" in said.split()))], True
    if done.verb == "network inspect" and done.code == 0:
        return [looks(lambda c: c.network and c.connected == frozenset(said.split()))], True
    if done.verb == "rm":
        return _removal(name, bool(said)), False
    if done.code != 0:
        return [looks(_refusal(name, said))], True
    match done.verb:
        case "run" | "run --network":
            joins = done.verb == "run --network"
            return [
                lambda c: (
                    None
                    if c.container(name) or (joins and not c.network)
                    else c.with_container(name, (RUNNING, joins))
                )
            ], False
        case "network create":
            return [lambda c: None if c.network else c._replace(network=True)], False
        case "network rm":
            return [lambda c: c._replace(network=False) if c.network and not c.connected else None], False
        case "connect":
            return [
                lambda c: (
                    c.with_container(name, (RUNNING, True))
                    if c.network and c.container(name) == (RUNNING, False)
                    else None
                )
            ], False
        case "disconnect":
            return [
                lambda c: c.with_container(name, (there(c)[0], False)) if name in c.connected else None
            ], False
        case "port add":
            return [
                lambda c: c._replace(owner=name) if running(c.container(name)) and not c.owner else None
            ], False
        case "port rm":
            return [lambda c: c._replace(owner="") if c.owner == name else None], False
    raise AssertionError(f"unknown: {done}")


def _removal(name: str, removed: bool) -> list[Step]:
    def kill(cell: Cell) -> Cell:
        return cell.with_container(name, (EXITED, False)) if cell.container(name) else cell

    def take(cell: Cell) -> Cell | None:
        return cell.with_container(name, None) if cell.container(name) else None

    # Where somebody else was quicker it has removed nothing, but perhaps ended the process.
    return [kill, take if removed else looks(lambda c: c.container(name) is None)]


def _refusal(name: str, said: str) -> Callable[[Cell], bool]:
    said = said.removeprefix("datapathctl: ")
    if said.startswith(f'Conflict. The container name "/{name}" is already in use'):
        return lambda c: c.container(name) is not None
    if said == f"No such container: {name}":
        return lambda c: c.container(name) is None
    if said == f"container {name} is not running":
        return lambda c: (found := c.container(name)) is not None and found[0] == EXITED
    if said == "network n not found":
        return lambda c: not c.network
    if said == "network with name n already exists":
        return lambda c: c.network
    if said.startswith("error while removing network: network n has active endpoints"):
        members = frozenset(re.findall(r'name:"(\w)"', said))
        return lambda c: c.connected == members
    if said == f"endpoint with name {name} already exists in network n":
        return lambda c: name in c.connected
    if said == f"container {name} is not connected to network n":
        return lambda c: c.network and c.container(name) is not None and name not in c.connected
    if owner := re.fullmatch(
        r'Bind for 0.0.0.0:80 failed: port is already allocated \(by container "(\w)"\)', said
    ):
        return lambda c: c.owner == owner[1] and running(c.container(name))
    if said == f'container {name} has no port mapping "80:80"':
        return lambda c: running(c.container(name)) and c.owner != name
    raise AssertionError(f"no command may say: {said!r}")


# A state, and how many moments of each command that is at work have passed.
Way = tuple[Cell, frozenset[tuple[int, int]]]


def explained(history: Iterable[Done]) -> Done | None:
    """None: there is an order; else the command by whose end there is none left."""
    ordered = sorted(history)
    todo = {number: steps(done) for number, done in enumerate(ordered)}
    moments = sorted(
        (moment, kind, number)
        for number, done in enumerate(ordered)
        for moment, kind in ((done.began, 0), (done.ended, 1))
    )
    ways: set[Way] = {(Cell(), frozenset())}
    for _, kind, number in moments:
        if kind == 0:
            ways = {(cell, work | {(number, 0)}) for cell, work in ways}
            continue
        last = (number, len(todo[number][0]))
        ways = {(cell, work - {last}) for cell, work in _spread(ways, todo) if last in work}
        if not ways:
            return ordered[number]
    return None


def _spread(ways: set[Way], todo: dict[int, tuple[list[Step], bool]]) -> set[Way]:
    """All that can have happened by now. Who only looks, and can have, has: it stands in nobody's way."""
    found: set[Way] = set()
    waiting = list(ways)
    while waiting:
        cell, work = waiting.pop()
        for number, passed in work:
            moments, only_looks = todo[number]
            if only_looks and passed == 0 and moments[0](cell) is not None:
                work = work - {(number, 0)} | {(number, 1)}
        if (cell, work) in found:
            continue
        found.add((cell, work))
        for number, passed in work:
            moments, _ = todo[number]
            if passed < len(moments) and (after := moments[passed](cell)) is not None:
                waiting.append((after, work - {(number, passed)} | {(number, passed + 1)}))
    return found
