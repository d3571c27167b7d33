# SPDX-License-Identifier: Apache-2.0
"""Pieces of one datagram on two CPUs at the same moment, thousands of times: a child of the test has one of
them, and a page in common says when to begin."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Iterator

import pytest

from datapath.kernel import libbpf
from tests.bpf import packets as p
from tests.bpf.fixtures import A1, OUTSIDE, OUTSIDE6, REDIRECT, SHOT, Programs
from tests.bpf.test_fragments import DATA, SPORT

ROUNDS = 3000
SIX = pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
CPUS = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU")

GO, DONE, VERDICT, LENGTH, PACKET = 0, 1, 2, 4, 16  # places in the page
STOP = 255


def rounds() -> Iterator[int]:
    """Thousands; where others keep the processors busy, as many as there is time for."""
    end = time.monotonic() + 10
    for ident in range(ROUNDS):
        if ident >= 100 and time.monotonic() > end:
            return
        yield ident


class Other:
    """The other CPU: runs from_container on what it is given, in the moment in which it is told to."""

    def __init__(self, programs: Programs) -> None:
        self.fd, self.ifindex = programs.fds["from_container"], programs.ifindex(A1)
        self.page = mmap.mmap(-1, 4096)
        self.turn = 0
        self.pid = os.fork()
        if not self.pid:
            try:
                os.sched_setaffinity(0, {CPUS[1]})
                self._serve()
            finally:
                os._exit(0)

    def _serve(self) -> None:
        page, turn, parent = self.page, 0, os.getppid()
        while True:
            turn = turn % 100 + 1
            spins = 0
            while page[GO] != turn:
                spins += 1
                if page[GO] == STOP or (spins % 1000000 == 0 and os.getppid() != parent):
                    return
            length = int.from_bytes(page[LENGTH : LENGTH + 2], "little")
            page[VERDICT] = self.run(page[PACKET : PACKET + length]) & 255
            page[DONE] = turn

    def run(self, packet: bytes) -> int:
        return libbpf.test_run(self.fd, packet, ifindex=self.ifindex)[0]

    def at_once(self, here: bytes, there: bytes) -> tuple[int, int]:
        """Both run, at most some microseconds apart; their verdicts."""
        page = self.page
        self.turn = self.turn % 100 + 1
        page[LENGTH : LENGTH + 2] = len(there).to_bytes(2, "little")
        page[PACKET : PACKET + len(there)] = there
        page[GO] = self.turn
        for _ in range(random.randrange(100)):
            pass
        verdict = self.run(here)
        while page[DONE] != self.turn:
            pass
        return verdict, page[VERDICT]

    def close(self) -> None:
        self.page[GO] = STOP
        os.waitpid(self.pid, 0)


@pytest.fixture
def other(programs: Programs) -> Iterator[Other]:
    before = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {CPUS[0]})
        found = Other(programs)
        stack.callback(found.close)
        yield found
    programs.counted()


def datagram(six: bool) -> bytes:
    return A1.sends(OUTSIDE6 if six else OUTSIDE, p.udp(SPORT, 53, DATA))


@SIX
def test_two_pieces_that_overlap_never_both_pass(programs: Programs, other: Other, six: bool) -> None:
    frame, both, one = datagram(six), 0, 0
    for ident in rounds():
        assert programs.run(A1, p.piece(frame, 0, 24, True, ident=ident)).verdict == REDIRECT
        passed = other.at_once(
            p.piece(frame, 24, 48, True, ident=ident), p.piece(frame, 40, 56, True, ident=ident)
        )
        both += passed == (REDIRECT, REDIRECT)
        one += REDIRECT in passed
        # The datagram is lost, for either CPU.
        last = p.piece(frame, 56, 64, False, ident=ident)
        assert other.at_once(last, last) == (SHOT, SHOT)
    assert not both
    assert one


@SIX
def test_of_a_double_one_passes(programs: Programs, other: Other, six: bool) -> None:
    """And all that follows passes too: the datagram is not lost."""
    frame = datagram(six)
    for ident in rounds():
        programs.run(A1, p.piece(frame, 0, 24, True, ident=ident))
        piece = p.piece(frame, 24, 48, True, ident=ident)
        assert REDIRECT in other.at_once(piece, piece)
        assert other.run(p.piece(frame, 48, 64, False, ident=ident)) == REDIRECT


@SIX
def test_different_pieces_all_pass_and_complete_the_datagram(
    programs: Programs, other: Other, six: bool
) -> None:
    frame = datagram(six)
    for ident in rounds():
        programs.run(A1, p.piece(frame, 0, 24, True, ident=ident))
        passed = other.at_once(
            p.piece(frame, 24, 40, True, ident=ident), p.piece(frame, 40, 64, False, ident=ident)
        )
        assert passed == (REDIRECT, REDIRECT)
    assert not list(programs.maps["fragments"])


@SIX
def test_a_piece_that_comes_with_its_first_one_is_not_left_behind(
    programs: Programs, other: Other, six: bool
) -> None:
    """It passes, or it is queued and comes again, once; never does it wait for a first one that was there."""
    frame = datagram(six)
    programs.topology.received("va1")
    for ident in rounds():
        first = p.piece(frame, 0, 24, True, ident=ident)
        last = p.piece(frame, 24, 64, False, ident=ident)
        passed = other.at_once(first, last)
        assert passed[0] == REDIRECT
        assert not list(programs.maps["frag_queue"]), "it waits for ever"
        if passed[1] == SHOT:
            again = [one for one in programs.topology.received("va1") if one[:12] == first[:12]]
            assert again == [last]
            assert other.run(last) == REDIRECT
