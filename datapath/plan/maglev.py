# SPDX-License-Identifier: Apache-2.0
"""The table of a service's backends that the packet programs look a connection up in. Pure.

It is Maglev's (Eisenbud and others, NSDI 2016, 3.4): each backend has a permutation of the slots of its own, and in
turn each takes the next one of it that is free. So when one leaves, hardly more than its slots change hands. The
permutation follows from the service's and the backend's name alone: every host of a cluster makes the same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.model.digests import sha256

SMALL, LARGE = 4093, 16381  # slots: primes, so that every step goes through all of them
MOST_SMALL = 20  # backends of a small table: each has two hundred slots


def size(backends: int) -> int:
    """How many slots the table of so many backends has; 0: there are none."""
    if not backends:
        return 0
    return SMALL if backends <= MOST_SMALL else LARGE


def table(seed: str, names: Sequence[str], weights: Sequence[int]) -> list[int]:
    """Of each slot, which of the backends has it: its place among `names`, which are all different. Shares are as the
    weights, each 1 or more. Empty: there is no backend.

    The order in which backends are given does not matter to who gets which slot.
    """
    slots = size(len(names))
    if not slots:
        return []
    order = sorted(range(len(names)), key=lambda place: names[place])
    nexts, steps = [0] * len(names), [0] * len(names)
    for place in order:
        digest = sha256(f"{seed}\0{names[place]}".encode())
        nexts[place] = int.from_bytes(digest[:8], "big") % slots
        steps[place] = int.from_bytes(digest[8:16], "big") % (slots - 1) + 1
    found = [-1] * slots
    turns = _turns(order, weights)
    for _ in range(slots):
        place = next(turns)
        at, step = nexts[place], steps[place]
        while found[at] >= 0:
            at += step
            if at >= slots:
                at -= slots
        found[at] = place
        nexts[place] = (at + step) % slots
    return found


def _turns(order: Sequence[int], weights: Sequence[int]) -> Iterator[int]:
    """Whose turn it is, without end: who has the largest weight always, the others as often as theirs says."""
    largest = max(weights)
    credit = dict.fromkeys(order, 0)
    while True:
        for place in order:
            credit[place] += weights[place]
            if credit[place] >= largest:
                credit[place] -= largest
                yield place
