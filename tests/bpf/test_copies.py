# SPDX-License-Identifier: Apache-2.0
"""Programs that were lent before are as those that have just been loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datapath.kernel import bpf_maps, libbpf, netns
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    HOST,
    NET1,
    OUTSIDE,
    REDIRECT,
    Copies,
    Programs,
    Topology,
    outside_sends,
    rows_of,
    wait_until,
)

OBJECTS = ("from_container", "from_uplink", "conn_gc")


@pytest.fixture(scope="module")
def own(topology: Topology) -> Iterator[Copies]:
    made = Copies(topology)
    with netns.enter(topology.host):
        yield made
    made.close()


def everything(programs: Programs) -> dict[str, dict[bytes, bytes]]:
    """All rows, but those of `epoch`, which only ever grows, and of the counters, of which a difference is taken."""
    return {name: rows_of(m) for name, m in programs.maps.items() if name not in {"epoch", "counters"}}


def ticks(programs: Programs) -> int:
    return int(programs.maps["gc_timers"][0].ticked)


def asks_a_published_port(programs: Programs, port: int) -> bool:
    """And is answered; who has it begins a connection of its own, which another program goes on with."""
    there = programs.run(None, outside_sends(HOST, p.udp(port, 8081)))
    back = programs.run(A2, A2.sends(OUTSIDE, p.udp(53, port)))
    own = programs.run(A2, A2.sends(OUTSIDE, p.udp(port, 9)))
    return there.verdict == back.verdict == own.verdict == REDIRECT


def use(programs: Programs) -> None:
    """Leaves something in each map, in the queue of the GC and among the events, and the GC running."""
    for number in range(40):
        assert asks_a_published_port(programs, 5000 + number)
    programs.run(A1, A1.sends(B1.ip, p.udp(1, 2)))  # is dropped, of which there is an event
    for name in programs.maps.keys() - {"config", "counters", "gc_timers"}:
        write_into(programs.maps[name])
    programs.fill_tails(())
    programs.start_gc()


def write_into(m: bpf_maps.RawMap) -> None:
    """One row is another, one is gone, and one is new."""
    rows, info = list(rows_of(m).items()), bpf_maps.map_info(m.fd, m.name)
    if rows:
        m.set_raw(rows[0][0], bytes(byte ^ 0xFF for byte in rows[0][1]))
    if not m.is_array:
        m.delete_raw([key for key, _ in rows[1:2]])
        m.set_raw(bytes(info.key_size), bytes(info.value_size * m.copies))


def test_what_was_used_is_as_new(own: Copies) -> None:
    with own.lent(objects=OBJECTS, sample=1) as first:
        new = everything(first)
        use(first)
        begun = ticks(first)
        wait_until(lambda: ticks(first) > begun)
        used = everything(first)
        assert {name for name in new if used[name] == new[name]} <= {"config"}
    for _ in range(2):
        with own.lent(objects=OBJECTS, sample=1) as again:
            assert again is first
            assert everything(again) == new
            assert all(queue.pop_raw() is None for queue in again.queues.values())
            assert libbpf.consume_events(again.events_fd, lambda event: None) == 0
            assert asks_a_published_port(again, 5000)
            again.start_gc()
            before = ticks(again)
            wait_until(lambda before=before: ticks(again) > before)  # type: ignore[misc]


def test_two_at_once_and_what_was_loaded_otherwise_are_others(own: Copies) -> None:
    with (
        own.lent(objects=OBJECTS) as one,
        own.lent(objects=OBJECTS) as two,
        own.lent(objects=OBJECTS, sample=2) as three,
    ):
        assert len({id(each) for each in (one, two, three)}) == 3
        one.maps["networks"][NET1.number] = one.maps["networks"][NET1.number]._replace(flags=0)
        assert two.maps["networks"][NET1.number].flags == NET1.flags
