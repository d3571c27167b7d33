# SPDX-License-Identifier: Apache-2.0
"""Conntrack GC: connections end by the time-out of their state, both directions at once, without any process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    Member,
    Programs,
    outside_sends,
    wait_until,
)

SPORT = 20100
SYN_ACK, FIN_ACK = p.SYN | p.ACK, p.FIN | p.ACK
ACKED = 0x05060708
# Seconds, all different; `age` makes them pass. No more, as nothing can be older than the machine's last boot.
TIMEOUTS = {
    "timeout_handshake": 10,
    "timeout_established": 50,
    "timeout_half_closed": 45,
    "timeout_closing": 15,
    "timeout_udp": 30,
    "timeout_udp_exchange": 20,
    "timeout_icmp": 40,
}
NEAR = 4  # seconds that a test may take between two of its lines
STREAM = 2  # seconds that UDP has to go on to be one


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def swept(programs: Programs) -> None:
    """Until the GC has looked at everything twice."""
    for _ in range(2):
        ticked = programs.maps["gc_timers"][0].ticked
        wait_until(lambda before=ticked: programs.maps["gc_timers"][0].ticked != before)  # type: ignore[misc]


def tcp(programs: Programs, sport: int, *said: tuple[str, int], server: int = 80) -> None:
    """o: a1, which opens it; a: the other side."""
    for who, flags in [("o", p.SYN), ("a", SYN_ACK), ("o", p.ACK), *said]:
        seq = ACKED if flags & p.RST else ACKED - 100
        if who == "o":
            programs.run(A1, A1.sends(OUTSIDE, p.tcp(sport, server, flags, seq=seq)))
        else:
            programs.run(None, outside_sends(HOST, p.tcp(server, sport, flags, seq=seq)))


def exchange(programs: Programs, sport: int, member: Member = A1, dport: int = 54) -> None:
    """One question, one answer."""
    programs.run(member, member.sends(OUTSIDE, p.udp(sport, dport)))
    programs.run(None, outside_sends(HOST, p.udp(dport, sport)))


def udp(programs: Programs, sport: int, member: Member = A1, dport: int = 54) -> None:
    """That goes on, as it was opened a while ago."""
    exchange(programs, sport, member, dport)
    opened_before(programs, STREAM + 1, sport)
    exchange(programs, sport, member, dport)


def answers(programs: Programs, sport: int) -> None:
    """One question, to which the other side goes on answering."""
    exchange(programs, sport)
    opened_before(programs, STREAM + 1, sport)
    programs.run(None, outside_sends(HOST, p.udp(54, sport)))


def opened_before(programs: Programs, seconds: float, *ports: int) -> None:
    """What was opened from or to these ports was opened so long before."""
    table = programs.maps["conns"]
    table.update_many(
        {
            key: conn._replace(since=max(1, conn.since - moments(seconds)))
            for key, conn in table.read_all()
            if {key.sport, key.dport} & set(ports)
        }
    )


def moments(seconds: float) -> int:
    """In units of `since`."""
    return int(seconds * 10**9) >> 24


def ping(programs: Programs, sport: int) -> None:
    programs.keep_identifier(A1, sport)
    programs.run(A1, A1.sends(OUTSIDE, p.echo(p.ECHO, sport)))
    programs.run(None, outside_sends(HOST, p.echo(p.ECHO_REPLY, sport)))


def udp6(programs: Programs, sport: int) -> None:
    for _ in range(2):
        programs.run(A1, A1.sends(OUTSIDE6, p.udp(sport, 54)))
        programs.run(None, outside_sends(HOST6, p.udp(54, sport)))
        opened_before(programs, STREAM + 1, sport)


def ping6(programs: Programs, sport: int) -> None:
    programs.keep_identifier(A1, sport)
    programs.run(A1, A1.sends(OUTSIDE6, p.echo6(p.ECHO6, sport)))
    programs.run(None, outside_sends(HOST6, p.echo6(p.ECHO6_REPLY, sport)))


# How a connection comes to where it is, and after how many seconds of silence it is over.
STATES: dict[str, tuple[Callable[[Programs, int], None], int]] = {
    "established": (lambda programs, port: tcp(programs, port), 50),
    "half closed": (lambda programs, port: tcp(programs, port, ("o", FIN_ACK)), 45),
    "half closed by the other": (lambda programs, port: tcp(programs, port, ("a", FIN_ACK)), 45),
    "half closed, and data": (
        lambda programs, port: tcp(programs, port, ("o", FIN_ACK), ("a", p.ACK | p.PSH), ("o", p.ACK)),
        45,
    ),
    "closed": (lambda programs, port: tcp(programs, port, ("o", FIN_ACK), ("a", FIN_ACK)), 15),
    "reset": (lambda programs, port: tcp(programs, port, ("o", p.RST)), 15),
    "reset by the other": (lambda programs, port: tcp(programs, port, ("a", p.RST)), 15),
    "port used again, unanswered": (
        lambda programs, port: tcp(programs, port, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.SYN)),
        10,
    ),
    "port used again, answered": (
        lambda programs, port: tcp(
            programs, port, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.SYN), ("a", SYN_ACK)
        ),
        10,
    ),
    "UDP": (udp, 30),
    "UDP, IPv6": (udp6, 30),
    "UDP, one exchange": (exchange, 20),
    "UDP, answers that go on": (answers, 30),
    "DNS, an answer": (lambda programs, port: exchange(programs, port, dport=53), 15),
    "DNS, from one port for long": (lambda programs, port: udp(programs, port, dport=53), 30),
    "DNS over TCP": (lambda programs, port: tcp(programs, port, server=53), 50),
    "ping": (ping, 40),
    "ping, IPv6": (ping6, 40),
}


def age(
    programs: Programs, seconds: float, *, direction: int | None = None, keys: set[Any] | None = None
) -> None:
    """The last packet came so long ago; `direction`: abi.ConnFlag.CONN_ORIGINAL or 0, the others stay."""
    table = programs.maps["conns"]
    old = max(1, time.monotonic_ns() - int(seconds * 10**9))  # 0 is the machine's boot
    entries = dict(table.read_all())

    def lasted(conn: Any) -> int:
        """From its opening to its last packet, which stays as it was."""
        other = entries.get(conn.other, conn)
        return int(max(conn.last_seen, other.last_seen) >> 24) - int(conn.since)

    table.update_many(
        {
            key: conn._replace(last_seen=old, since=max(1, (old >> 24) - lasted(conn)))
            for key, conn in entries.items()
            if (direction is None or conn.flags & abi.ConnFlag.CONN_ORIGINAL == direction)
            and (keys is None or key in keys)
        }
    )


@pytest.fixture
def gc_stage(make_programs: MakePrograms) -> Programs:
    """The GC does not run yet."""
    programs = make_programs(**TIMEOUTS)
    for member in (A1, A2, B1):
        programs.maps["quotas"][abi.quota_key(member.number)] = abi.quota()
    return programs


def conns_of(programs: Programs, member: Member) -> int:
    return int(programs.maps["quotas"][abi.quota_key(member.number)].conns)


def test_each_state_has_its_time(gc_stage: Programs) -> None:
    """Shortly before, the connection is whole; then both directions are gone, and no longer counted."""
    programs = gc_stage
    whole: dict[str, set[Any]] = {}
    for i, (name, (make, _)) in enumerate(STATES.items()):
        before = set(programs.table("conns"))
        make(programs, SPORT + i)
        whole[name] = set(programs.table("conns")) - before
        assert len(whole[name]) == 2, name
    programs.start_gc()
    alive = set(STATES)
    for limit in sorted(set(TIMEOUTS.values())):
        age(programs, limit - NEAR)
        swept(programs)
        assert set(programs.table("conns")) == set().union(*(whole[name] for name in alive)), limit
        age(programs, limit + 1)
        alive = {name for name in alive if STATES[name][1] != limit}
        swept(programs)
        assert set(programs.table("conns")) == set().union(*(whole[name] for name in alive)), limit
        assert conns_of(programs, A1) == len(alive) == programs.maps["gc_timers"][0].queued
    assert not alive


@pytest.mark.parametrize("direction", [int(abi.ConnFlag.CONN_ORIGINAL), 0], ids=["opener", "other"])
def test_a_packet_of_either_side_keeps_both_directions(gc_stage: Programs, direction: int) -> None:
    programs = gc_stage
    udp(programs, SPORT)
    programs.start_gc()
    age(programs, 31, direction=direction)
    swept(programs)
    assert len(programs.table("conns")) == 2
    age(programs, 31)
    swept(programs)
    assert not programs.table("conns")


def test_a_session_that_says_something_every_few_hours(make_programs: MakePrograms) -> None:
    """With the time that is usual, a day. (No longer ago than the machine's boot, which is time 0 of the clock.)"""
    programs = make_programs(**{**TIMEOUTS, "timeout_established": 86400})
    tcp(programs, SPORT)
    programs.start_gc()
    keepalive, answer = p.tcp(SPORT, 80, p.ACK, seq=ACKED - 1), p.tcp(80, SPORT, p.ACK)
    for hours in (2, 11, 23.9):
        age(programs, min(hours * 3600, time.monotonic() - 1))
        swept(programs)
        for sender, frame, out in (
            (A1, A1.sends(OUTSIDE, keepalive), A1.leaves(HOST, OUTSIDE, keepalive)),
            (None, outside_sends(HOST, answer), A1.gets(OUTSIDE, answer, ttl=63)),
        ):
            assert programs.run(sender, frame).packet == out


def test_it_counts_for_the_right_container(gc_stage: Programs) -> None:
    """Of a published port for the server, between containers for the client."""
    programs = gc_stage
    programs.run(None, outside_sends(HOST, p.udp(9, 8081)))
    programs.run(A2, A2.sends(OUTSIDE, p.udp(53, 9)))
    programs.run(B1, B1.sends(HOST, p.udp(9, 8081)))
    programs.run(A2, A2.sends(B1.ip, p.udp(53, 9)))
    udp(programs, SPORT)
    assert [conns_of(programs, member) for member in (A1, A2, B1)] == [1, 1, 1]
    served = {
        key
        for key, conn in programs.table("conns").items()
        if B1.number in (conn.from_endpoint, conn.to_endpoint)
    }
    programs.start_gc()
    age(programs, 31, keys=served)
    swept(programs)
    assert [conns_of(programs, member) for member in (A1, A2, B1)] == [1, 1, 0]
    age(programs, 31)
    swept(programs)
    assert [conns_of(programs, member) for member in (A1, A2, B1)] == [0, 0, 0]


def test_an_endpoint_that_is_gone_has_no_quota(gc_stage: Programs) -> None:
    """Its connections end all the same."""
    programs = gc_stage
    udp(programs, SPORT)
    programs.maps["quotas"].delete_many([abi.quota_key(A1.number)])
    programs.start_gc()
    age(programs, 31)
    swept(programs)
    assert not programs.table("conns")
    assert abi.quota_key(A1.number) not in list(programs.maps["quotas"])


def test_a_flushed_connection_leaves_nothing_in_the_queue(gc_stage: Programs) -> None:
    programs = gc_stage
    for i in range(10):
        udp(programs, SPORT + i)
    flushed = [
        key for key in programs.table("conns") if {key.sport, key.dport} & set(range(SPORT, SPORT + 5))
    ]
    programs.maps["conns"].delete_many(flushed)
    programs.start_gc()
    swept(programs)
    assert programs.maps["gc_timers"][0].queued == 5
    assert len(programs.table("conns")) == 10
    age(programs, 31)
    swept(programs)
    assert (programs.maps["gc_timers"][0].queued, programs.table("conns")) == (0, {})


def test_a_flushed_connection_that_begins_again_at_once(gc_stage: Programs) -> None:
    """Its key is in the queue twice then; it ends once, and is counted once."""
    programs = gc_stage
    udp(programs, SPORT + 1)
    for _ in range(3):
        programs.maps["conns"].delete_many(
            [k for k in programs.table("conns") if SPORT in (k.sport, k.dport)]
        )
        udp(programs, SPORT)
    programs.maps["quotas"][abi.quota_key(A1.number)] = abi.quota(
        conns=2
    )  # who flushes takes what ends from there
    programs.start_gc()
    swept(programs)
    assert len(programs.table("conns")) == 4
    age(programs, 31, keys={k for k in programs.table("conns") if SPORT in (k.sport, k.dport)})
    swept(programs)
    assert (len(programs.table("conns")), conns_of(programs, A1), programs.maps["gc_timers"][0].queued) == (
        2,
        1,
        1,
    )


def test_an_original_that_has_lost_its_reply_goes(gc_stage: Programs) -> None:
    programs = gc_stage
    udp(programs, SPORT)
    reply = [k for k, conn in programs.table("conns").items() if not conn.flags & abi.ConnFlag.CONN_ORIGINAL]
    programs.maps["conns"].delete_many(reply)
    programs.start_gc()
    swept(programs)
    assert (programs.table("conns"), conns_of(programs, A1)) == ({}, 0)


def test_many_connections(make_programs: MakePrograms) -> None:
    """More than one turn looks at: those that are over go, those that live stay."""
    count = 3000
    programs = make_programs(sizes={"conns": 8192, "confirmed": 4096, "pending": 4096}, **TIMEOUTS)
    programs.maps["quotas"][abi.quota_key(A1.number)] = abi.quota()
    for i in range(count):
        sport, dport = SPORT + i % 500, 1000 + i // 500
        ask, reply = A1.sends(OUTSIDE, p.udp(sport, dport)), outside_sends(HOST, p.udp(dport, sport))
        libbpf.test_run(programs.fds["from_container"], ask, ifindex=programs.ifindex(A1))
        libbpf.test_run(programs.fds["from_uplink"], reply, ifindex=programs.ifindex(None))
    programs.counted()
    assert (programs.maps["conns"].count(), conns_of(programs, A1)) == (2 * count, count)
    everything = set(programs.table("conns"))
    over = {key for key in everything if min(key.sport, key.dport) != 1003}
    age(programs, 31, keys=over)
    age(programs, 0, keys=everything - over)  # a slow machine took long to make so many
    programs.start_gc()
    wait_until(lambda: bool(programs.maps["conns"].count() == 1000))
    assert not over & set(programs.table("conns"))
    assert (conns_of(programs, A1), programs.maps["gc_timers"][0].queued) == (500, 500)


def test_a_full_queue_leaves_the_connection_working(make_programs: MakePrograms) -> None:
    """As a full table does. It moves as soon as the GC has made room; nothing that lives is taken away for it."""
    programs = make_programs(sizes={"confirmed": 2}, **TIMEOUTS)
    for i in range(2):
        udp(programs, SPORT + i)
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT + 2, 53)))
    reply = outside_sends(HOST, p.udp(53, SPORT + 2))
    assert programs.run(None, reply).reasons == {"DELIVERED": 1, "UNCONFIRMED": 1}
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 2)
    programs.start_gc()
    swept(programs)
    assert programs.run(None, reply).reasons == {"DELIVERED": 1, "UNCONFIRMED": 1}
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 2)
    age(programs, 31, keys={key for key in programs.table("conns") if SPORT in (key.sport, key.dport)})
    swept(programs)
    assert programs.run(None, reply).reasons == {"DELIVERED": 1}
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 0)


def test_starting_it_again_changes_nothing(gc_stage: Programs) -> None:
    """Every command does that."""
    programs = gc_stage
    udp(programs, SPORT)
    for _ in range(5):
        programs.start_gc()
    swept(programs)
    assert programs.maps["gc_timers"][0].queued == 1
    swept(programs)


def test_it_starts_where_the_kernel_has_no_memory_at_hand(gc_stage: Programs, tmp_path: Path) -> None:
    """Others' timers have taken every free object of that size: 6.18 makes no new ones for a timer."""
    source, built = Path(__file__).parent / "timers.bpf.c", tmp_path / "timers.bpf.o"
    include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", include, "-c", str(source), "-o", str(built)], check=True
    )
    (program,), fds = libbpf.load_object(built, pins=None, config=None)
    with contextlib.ExitStack() as stack:
        for fd in (program.fd, *fds.values()):
            stack.callback(os.close, fd)
        for cpu in os.sched_getaffinity(0):
            with on_cpu(cpu):
                for _ in range(4):  # what is freed meanwhile, too
                    libbpf.test_run(program.fd, bytes(64), mark=1000)
        gc_stage.start_gc()
        swept(gc_stage)


def test_a_gc_that_stood_still_is_started_again(gc_stage: Programs) -> None:
    """Its last turn is long ago: the programs that ran it were replaced."""
    programs = gc_stage
    programs.start_gc()
    swept(programs)
    udp(programs, SPORT)
    programs.start_gc()
    age(programs, 31)
    swept(programs)
    assert not programs.table("conns")
