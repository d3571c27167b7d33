# SPDX-License-Identifier: Apache-2.0
"""The connection table: which half is where, in which state, and what pressure does to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    HOST,
    NAT_FIRST,
    NAT_LAST,
    OUTSIDE,
    REDIRECT,
    Programs,
    Reason,
    booted_for,
    outside_sends,
    wait_until,
)

CLOCK_MONOTONIC_COARSE = 6  # of linux/time.h
SPORT = 20100  # within the range for masquerading, so that it is kept
SYN_ACK, FIN_ACK = p.SYN | p.ACK, p.FIN | p.ACK
State: Any = abi.ConnState
Flag: Any = abi.ConnFlag

Say = Callable[[Programs, int], None]
KEYS: dict[str, tuple[Any, Any]] = {
    # The opening packet's key, and the answer's.
    "outside": (
        abi.tuple_(A1.ip, OUTSIDE, SPORT, 80, p.TCP),
        abi.tuple_(OUTSIDE, HOST, 80, SPORT, p.TCP),
    ),
    "published": (
        abi.tuple_(OUTSIDE, HOST, 9, 8081, p.TCP),
        abi.tuple_(A2.ip, OUTSIDE, 80, 9, p.TCP),
    ),
}


ACKED = 0x05060708  # what both sides have acknowledged, so what a reset must say


def opener(programs: Programs, way: str, flags: int, seq: int | None = None, ack: int = ACKED) -> None:
    """A packet of the side that opens the connection; it must pass."""
    seq = seq if seq is not None else ACKED if flags & p.RST else ACKED - 100
    if way == "outside":
        got = programs.run(A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, flags, seq=seq, ack=ack)))
    else:
        got = programs.run(None, outside_sends(HOST, p.tcp(9, 8081, flags, seq=seq, ack=ack)))
    passed(got.reasons, Reason.TO_OUTSIDE if way == "outside" else Reason.DELIVERED)


def answerer(programs: Programs, way: str, flags: int, seq: int | None = None, ack: int = ACKED) -> None:
    seq = seq if seq is not None else ACKED if flags & p.RST else ACKED - 100
    if way == "outside":
        got = programs.run(None, outside_sends(HOST, p.tcp(80, SPORT, flags, seq=seq, ack=ack)))
    else:
        got = programs.run(A2, A2.sends(OUTSIDE, p.tcp(80, 9, flags, seq=seq, ack=ack)))
    passed(got.reasons, Reason.DELIVERED if way == "outside" else Reason.TO_OUTSIDE)


def passed(reasons: dict[str, int], reason: Any) -> None:
    assert reasons == {reason.name: 1}


def whole(programs: Programs) -> None:
    """No half without the other: each names the other, in the same table, one of them the original."""
    for name in ("pending", "conns"):
        table = programs.table(name)
        for key, conn in table.items():
            assert conn.other in table, f"{name}: {key} has lost its other half"
            other = table[conn.other]
            assert other.other == key
            assert sorted(c.flags & Flag.CONN_ORIGINAL for c in (conn, other)) == [0, 1]
            assert bool(conn.flags & Flag.CONN_CONFIRMED) == (name == "conns")


def state(programs: Programs, way: str) -> tuple[str, int, int]:
    """The table the connection is in, its state and FIN bits; nothing else may be in either table."""
    whole(programs)
    original, reply = KEYS[way]
    tables = {name: programs.table(name) for name in ("pending", "conns")}
    (name,) = [name for name, table in tables.items() if table]
    assert set(tables[name]) == {original, reply}
    conn = tables[name][original]
    assert conn.flags & Flag.CONN_ORIGINAL
    return name, conn.state, conn.fin


NEW, REPLIED = ("pending", State.CONN_NEW, 0), ("pending", State.CONN_REPLIED, 0)
ESTABLISHED = ("conns", State.CONN_ESTABLISHED, 0)
HANDSHAKE: list[tuple[str, int]] = [("o", p.SYN), ("a", SYN_ACK), ("o", p.ACK)]

# What is said (o: the side that opened it, a: the other), and what the table then holds.
STATES: dict[str, tuple[list[tuple[str, int]], tuple[str, int, int]]] = {
    "a bare SYN": ([("o", p.SYN)], NEW),
    "a SYN again": ([("o", p.SYN)] * 3, NEW),
    "SYN and its answer": (HANDSHAKE[:2], REPLIED),
    "the answer again": ([*HANDSHAKE[:2], ("a", SYN_ACK)], REPLIED),
    "SYN again after the answer": ([*HANDSHAKE[:2], ("o", p.SYN)], REPLIED),
    "the third packet": (HANDSHAKE, ESTABLISHED),
    "data both ways": ([*HANDSHAKE, ("o", p.ACK | p.PSH), ("a", p.ACK | p.PSH)], ESTABLISHED),
    "a late SYN": ([*HANDSHAKE, ("o", p.SYN)], ESTABLISHED),
    "a late answer to the SYN": ([*HANDSHAKE, ("a", SYN_ACK)], ESTABLISHED),
    "both at once": ([("o", p.SYN), ("a", p.SYN), ("o", SYN_ACK)], ESTABLISHED),
    "picked up in the middle, unanswered": ([("o", p.ACK)] * 2, NEW),
    "picked up in the middle": ([("o", p.ACK), ("a", p.ACK), ("o", p.ACK)], ESTABLISHED),
    "refused": ([("o", p.SYN), ("a", p.RST | p.ACK)], ("pending", State.CONN_CLOSED, 0)),
    "given up": ([("o", p.SYN), ("o", p.RST)], ("pending", State.CONN_CLOSED, 0)),
    "refused, tried again": ([("o", p.SYN), ("a", p.RST | p.ACK), ("o", p.SYN)], NEW),
    "refused, tried again, accepted": ([("o", p.SYN), ("a", p.RST | p.ACK), *HANDSHAKE], ESTABLISHED),
    "FIN of the opener": ([*HANDSHAKE, ("o", FIN_ACK)], ("conns", State.CONN_CLOSING, 1)),
    "FIN of the other": ([*HANDSHAKE, ("a", FIN_ACK)], ("conns", State.CONN_CLOSING, 2)),
    "half closed, data the other way": (
        [*HANDSHAKE, ("o", FIN_ACK), ("a", p.ACK), ("a", p.ACK | p.PSH)],
        ("conns", State.CONN_CLOSING, 1),
    ),
    "FIN of both": ([*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK)], ("conns", State.CONN_CLOSED, 3)),
    "FIN of both, the other first": (
        [*HANDSHAKE, ("a", FIN_ACK), ("o", FIN_ACK)],
        ("conns", State.CONN_CLOSED, 3),
    ),
    "the last ACK": (
        [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.ACK)],
        ("conns", State.CONN_CLOSED, 3),
    ),
    "RST of the opener": ([*HANDSHAKE, ("o", p.RST)], ("conns", State.CONN_CLOSED, 0)),
    "RST of the other": ([*HANDSHAKE, ("a", p.RST | p.ACK)], ("conns", State.CONN_CLOSED, 0)),
    "the port used again": (
        [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.SYN)],
        ("conns", State.CONN_NEW, 0),
    ),
    "the port used again, answered": (
        [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.SYN), ("a", SYN_ACK)],
        ("conns", State.CONN_REPLIED, 0),
    ),
    "the port used again, established": (
        [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK), *HANDSHAKE],
        ESTABLISHED,
    ),
    "the port used again after RST": ([*HANDSHAKE, ("a", p.RST), *HANDSHAKE], ESTABLISHED),
    "SYN with other flags beside it": (
        [("o", p.SYN | p.PSH | p.URG), ("a", SYN_ACK), ("o", p.ACK)],
        ESTABLISHED,
    ),
}


@pytest.mark.parametrize("way", KEYS)
@pytest.mark.parametrize("name", STATES)
def test_tcp_state(programs: Programs, way: str, name: str) -> None:
    said, wanted = STATES[name]
    for who, flags in said:
        (opener if who == "o" else answerer)(programs, way, flags)
        whole(programs)
    assert state(programs, way) == wanted


# ---- resets ----------------------------------------------------------------------------------------------

WINDOW = 1 << 20
RESETS = {
    "what is expected next": (0, True),
    "one further": (1, True),
    "the last in the window": (WINDOW - 1, True),
    "beyond the window": (WINDOW, False),
    "what was acknowledged already": (-1, False),
    "long ago": (-WINDOW, False),
    "the other half of all numbers": (1 << 31, False),
}


@pytest.mark.parametrize("acked", [ACKED, 0xFFFFFFF0, 0x80000000, 5], ids=hex)
@pytest.mark.parametrize("who", ["o", "a"])
@pytest.mark.parametrize("name", RESETS)
def test_a_reset_counts_only_in_window(programs: Programs, name: str, who: str, acked: int) -> None:
    """It passes in any case, unchanged but for addresses: its receiver judges for itself (RFC 5961, 3.2)."""
    distance, believed = RESETS[name]
    for way in KEYS:
        programs.forget()
        for side, flags in HANDSHAKE:
            # What the side has acknowledged that the reset is for.
            (opener if side == "o" else answerer)(programs, way, flags, ack=acked if side != who else 77)
        seq = (acked + distance) % (1 << 32)
        (opener if who == "o" else answerer)(programs, way, p.RST, seq=seq)
        wanted = State.CONN_CLOSED if believed else State.CONN_ESTABLISHED
        assert state(programs, way) == ("conns", wanted, 0)


@pytest.mark.parametrize("way", KEYS)
def test_a_window_moves_with_what_is_acknowledged(programs: Programs, way: str) -> None:
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, way, flags)
    answerer(programs, way, p.ACK, ack=ACKED + 5 * WINDOW)
    opener(programs, way, p.RST, seq=ACKED)
    assert state(programs, way) == ESTABLISHED
    opener(programs, way, p.RST, seq=ACKED + 5 * WINDOW)
    assert state(programs, way) == ("conns", State.CONN_CLOSED, 0)


@pytest.mark.parametrize("way", KEYS)
def test_a_forged_reset_that_was_believed_is_forgiven(programs: Programs, way: str) -> None:
    """Within the window and yet none: the opener goes on talking, so it is no end."""
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, way, flags)
    answerer(programs, way, p.RST)
    assert state(programs, way) == ("conns", State.CONN_CLOSED, 0)
    opener(programs, way, p.ACK)
    assert state(programs, way) == ESTABLISHED


@pytest.mark.parametrize("way", KEYS)
def test_a_port_that_is_used_again_has_a_window_of_its_own(programs: Programs, way: str) -> None:
    """What the sides acknowledged before says nothing of the new numbers: a refusal is believed."""
    for who, flags in [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK)]:
        (opener if who == "o" else answerer)(programs, way, flags)
    opener(programs, way, p.SYN, seq=0x70000000, ack=0)
    answerer(programs, way, p.RST | p.ACK, seq=0, ack=0x70000001)
    assert state(programs, way) == ("conns", State.CONN_CLOSED, 0)
    opener(programs, way, p.SYN, seq=0x70000000, ack=0)
    answerer(programs, way, SYN_ACK, seq=0x60000000, ack=0x70000001)
    opener(programs, way, p.ACK, seq=0x70000001, ack=0x60000001)
    assert state(programs, way) == ESTABLISHED


@pytest.mark.parametrize("said", [[p.SYN, p.RST], [p.SYN, p.RST, p.ACK], [p.ACK], [p.SYN, FIN_ACK]], ids=str)
@pytest.mark.parametrize("way", KEYS)
def test_nobody_confirms_alone(programs: Programs, way: str, said: list[int]) -> None:
    """Whatever one side says (and forges the source of): what is not answered stays where a flood evicts it."""
    for flags in said:
        opener(programs, way, flags)
    for _ in range(3):
        opener(programs, way, p.ACK)
        opener(programs, way, FIN_ACK)
    assert not programs.table("conns")
    assert len(programs.table("pending")) == 2


@pytest.mark.parametrize("flags", [p.RST, p.RST | p.ACK, SYN_ACK], ids=str)
def test_an_answer_to_nothing_opens_nothing(programs: Programs, flags: int) -> None:
    """A server repeats its answers to a flood when that is long forgotten."""
    got = programs.run(A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, flags, seq=1, ack=1)))
    passed(got.reasons, Reason.DROP_NO_CONN)
    assert not programs.table("pending")


def test_a_later_fragment_says_nothing_of_the_state(programs: Programs) -> None:
    """What lies where flags would be are data."""
    first, *rest = p.cut(outside_sends(HOST, p.tcp(9, 8081, p.RST, bytes(64))), 24, 48)
    opener(programs, "published", p.SYN)
    for piece in (first, *rest):
        passed(programs.run(None, piece).reasons, Reason.DELIVERED)
    assert state(programs, "published") == ("pending", State.CONN_CLOSED, 0)


@pytest.mark.parametrize("way", KEYS)
def test_half_closed_for_long(programs: Programs, way: str) -> None:
    """One side has said all, the other goes on, as long as it likes; FIN again changes nothing."""
    for who, flags in [*HANDSHAKE, ("o", FIN_ACK), ("a", p.ACK)]:
        (opener if who == "o" else answerer)(programs, way, flags)
    for _ in range(20):
        answerer(programs, way, p.ACK | p.PSH)
        opener(programs, way, p.ACK)
    opener(programs, way, FIN_ACK)
    assert state(programs, way) == ("conns", State.CONN_CLOSING, 1)
    answerer(programs, way, FIN_ACK)
    opener(programs, way, p.ACK)
    assert state(programs, way) == ("conns", State.CONN_CLOSED, 3)
    answerer(programs, way, FIN_ACK)  # the last ACK was lost
    opener(programs, way, p.ACK)
    assert state(programs, way) == ("conns", State.CONN_CLOSED, 3)


@pytest.mark.parametrize("last", ["o", "a"])
@pytest.mark.parametrize("way", KEYS)
def test_a_port_is_used_again_as_often_as_one_likes(programs: Programs, way: str, last: str) -> None:
    """Short connections of one client port, before their time is over: one entry for all of them."""
    first = "a" if last == "o" else "o"
    for i in range(10):
        for who, flags in [*HANDSHAKE, (first, FIN_ACK), (last, FIN_ACK), (first, p.ACK)]:
            (opener if who == "o" else answerer)(
                programs, way, flags, ack=(ACKED + i * (1 << 28)) % (1 << 32)
            )
        assert state(programs, way) == ("conns", State.CONN_CLOSED, 3)


def test_a_simultaneous_open_of_both_sides(programs: Programs) -> None:
    """SYN against SYN, both answered by SYN-ACK (RFC 9293, 3.5): no SYN-ACK opens anything new."""
    opener(programs, "outside", p.SYN, ack=0)
    answerer(programs, "outside", p.SYN, ack=0)
    assert state(programs, "outside") == REPLIED
    opener(programs, "outside", SYN_ACK)
    answerer(programs, "outside", SYN_ACK)
    opener(programs, "outside", p.ACK)
    answerer(programs, "outside", p.ACK)
    assert state(programs, "outside") == ESTABLISHED


def test_both_close_at_once(programs: Programs) -> None:
    for who, flags in [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK), ("o", p.ACK), ("a", p.ACK)]:
        (opener if who == "o" else answerer)(programs, "outside", flags)
    assert state(programs, "outside") == ("conns", State.CONN_CLOSED, 3)


def test_a_port_in_time_wait_is_not_given_to_another_container(programs: Programs) -> None:
    """Two servers' late packets would be mixed. The other container gets another source port."""
    for who, flags in [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK)]:
        (opener if who == "o" else answerer)(programs, "outside", flags)
    got = programs.run(A3, A3.sends(OUTSIDE, p.tcp(SPORT, 80, p.SYN)))
    chosen = int.from_bytes(got.packet[34:36], "big")
    assert got.reasons == {"TO_OUTSIDE": 1}
    assert chosen != SPORT and NAT_FIRST <= chosen <= NAT_LAST
    opener(programs, "outside", p.SYN)
    got = programs.run(None, outside_sends(HOST, p.tcp(80, chosen, SYN_ACK)))
    assert got.packet == A3.gets(OUTSIDE, p.tcp(80, SPORT, SYN_ACK), ttl=63)


@pytest.mark.parametrize("flags", [p.ACK, p.RST, FIN_ACK, SYN_ACK], ids=["ACK", "RST", "FIN", "SYN-ACK"])
def test_what_belongs_to_nothing(programs: Programs, flags: int) -> None:
    """From outside to no published port it is the host's to refuse; that other containers exist does not matter."""
    for who, said in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, "outside", said)
    before = programs.table("conns")
    for frame in (
        outside_sends(HOST, p.tcp(80, SPORT + 1, flags)),
        outside_sends(HOST, p.tcp(81, SPORT, flags)),
        outside_sends(HOST, p.tcp(80, SPORT, flags), src="203.0.113.6"),
    ):
        assert programs.run(None, frame).reasons == {"NOT_OURS": 1}
    assert set(programs.table("conns")) == set(before)
    assert not programs.table("pending")


def test_what_a_half_says(programs: Programs) -> None:
    """Who may send it and where it goes, in both tables."""
    before = time.clock_gettime_ns(
        CLOCK_MONOTONIC_COARSE
    )  # the time of the kernel's last tick, as packets take it
    opener(programs, "outside", p.SYN)
    for flags in (SYN_ACK,):
        answerer(programs, "outside", flags)
    original, reply = KEYS["outside"]
    for name in ("pending", "conns"):
        table = programs.table(name)
        there, back = table[original], table[reply]
        assert (there.from_endpoint, there.to_network, there.to_endpoint) == (A1.number, 0, 0)
        assert (back.from_endpoint, back.to_network, back.to_endpoint) == (0, 1, A1.number)
        assert all(before <= conn.last_seen <= time.monotonic_ns() for conn in (there, back))
        opener(programs, "outside", p.ACK)


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        pytest.param(p.udp(SPORT, 53), p.udp(53, SPORT), id="UDP"),
        pytest.param(p.echo(p.ECHO, SPORT), p.echo(p.ECHO_REPLY, SPORT), id="ping"),
    ],
)
def test_an_answer_confirms(programs: Programs, ask: p.Transport, reply: p.Transport) -> None:
    for _ in range(3):
        programs.run(A1, A1.sends(OUTSIDE, ask))
    assert (len(programs.table("pending")), len(programs.table("conns"))) == (2, 0)
    programs.expect(
        None, outside_sends(HOST, reply), REDIRECT, Reason.DELIVERED, A1.gets(OUTSIDE, reply, ttl=63)
    )
    assert (len(programs.table("pending")), len(programs.table("conns"))) == (0, 2)
    whole(programs)


@pytest.mark.parametrize("flags", [p.ACK, p.FIN | p.ACK, p.RST])
def test_an_answer_alone_opens_nothing(programs: Programs, flags: int) -> None:
    programs.run(None, outside_sends(HOST, p.tcp(80, SPORT, flags)))
    assert (len(programs.table("pending")), len(programs.table("conns"))) == (0, 0)


@pytest.mark.parametrize("way", KEYS)
def test_an_opening_that_lost_its_answer_half_starts_over(programs: Programs, way: str) -> None:
    """A flood may push out one half of a pair: the next SYN must make it whole, or it hangs for ever."""
    opener(programs, way, p.SYN)
    del programs.maps["pending"][KEYS[way][1]]
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, way, flags)
    assert state(programs, way) == ESTABLISHED


@pytest.mark.parametrize("way", KEYS)
def test_an_opening_that_lost_its_own_half_starts_over(programs: Programs, way: str) -> None:
    opener(programs, way, p.SYN)
    del programs.maps["pending"][KEYS[way][0]]
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, way, flags)
    assert state(programs, way) == ESTABLISHED


def test_an_answer_is_let_through_though_the_opening_half_is_lost(programs: Programs) -> None:
    opener(programs, "outside", p.SYN)
    del programs.maps["pending"][KEYS["outside"][0]]
    answerer(programs, "outside", SYN_ACK)
    opener(programs, "outside", p.ACK)
    answerer(programs, "outside", p.ACK)
    opener(programs, "outside", p.ACK)
    assert state(programs, "outside") == ESTABLISHED


def fire(programs: Programs, frame: bytes) -> None:
    """A run whose outcome does not matter: the counters are not read."""
    libbpf.test_run(programs.fds["from_container"], frame, ifindex=programs.ifindex(A1))


def test_a_flood_of_openings_does_not_touch_what_is_established(make_programs: MakePrograms) -> None:
    programs = make_programs(sizes={"pending": 256})
    for way in KEYS:
        for who, flags in HANDSHAKE:
            (opener if who == "o" else answerer)(programs, way, flags)
    before = set(programs.table("conns"))
    for i in range(3000):
        fire(programs, A1.sends(OUTSIDE, p.tcp(SPORT + 1 + i % 800, 1000 + i, p.SYN)))
    programs.counted()
    assert set(programs.table("conns")) == before
    assert len(programs.table("pending")) <= 256
    for way in KEYS:
        opener(programs, way, p.ACK)
        answerer(programs, way, p.ACK)
    whole_conns = programs.table("conns")
    assert all(conn.other in whole_conns for conn in whole_conns.values())


def test_during_a_flood_new_connections_succeed(make_programs: MakePrograms) -> None:
    programs = make_programs(sizes={"pending": 256})
    for i in range(1000):
        fire(programs, A1.sends(OUTSIDE, p.tcp(SPORT + 1 + i % 800, 1000 + i, p.SYN)))
    programs.counted()
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, "outside", flags)
    assert set(KEYS["outside"]) <= set(programs.table("conns"))


@pytest.mark.parametrize("size", [4, 5])
def test_a_full_table_leaves_the_connection_working(make_programs: MakePrograms, size: int) -> None:
    """It stays where it is and is counted, beside its own reason: the one exception to one reason a packet.
    With 5 entries the first half fits and the second does not: it is taken back."""
    programs = make_programs(sizes={"conns": size})
    for sport in (SPORT + 1, SPORT + 2):
        programs.run(A1, A1.sends(OUTSIDE, p.udp(sport, 53)))
        programs.run(None, outside_sends(HOST, p.udp(53, sport)))
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 0)
    for _ in range(3):
        ask, reply = p.udp(SPORT, 53), p.udp(53, SPORT)
        got = programs.run(A1, A1.sends(OUTSIDE, ask))
        assert got.reasons == {"TO_OUTSIDE": 1}
        got = programs.run(None, outside_sends(HOST, reply))
        assert (got.verdict, got.packet) == (REDIRECT, A1.gets(OUTSIDE, reply, ttl=63))
        assert got.reasons == {"DELIVERED": 1, "UNCONFIRMED": 1}
        assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 2)
        whole(programs)
    # As soon as there is room it moves.
    programs.maps["conns"].delete_many(
        [k for k in programs.table("conns") if SPORT + 1 in (k.sport, k.dport)]
    )
    assert programs.run(None, outside_sends(HOST, p.udp(53, SPORT))).reasons == {"DELIVERED": 1}
    assert (len(programs.table("conns")), len(programs.table("pending"))) == (4, 0)
    whole(programs)


def test_a_full_table_leaves_a_tcp_connection_working(make_programs: MakePrograms) -> None:
    programs = make_programs(sizes={"conns": 2})
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    programs.run(None, outside_sends(HOST, p.udp(53, SPORT)))
    for who, flags in HANDSHAKE[:2]:
        (opener if who == "o" else answerer)(programs, "outside", flags)
    got = programs.run(A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.ACK)))
    assert got.reasons == {"TO_OUTSIDE": 1, "UNCONFIRMED": 1}
    for _ in range(3):
        got = programs.run(A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.ACK)))
        assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1, "UNCONFIRMED": 1})
        answerer(programs, "outside", p.ACK)
    assert len(programs.table("pending")) == 2


@pytest.mark.parametrize("closing", [False, True])
def test_a_tcp_connection_moves_as_soon_as_there_is_room(make_programs: MakePrograms, closing: bool) -> None:
    """In `pending` it would be one flood away from its end, however long it has lived."""
    programs = make_programs(sizes={"conns": 2})
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    programs.run(None, outside_sends(HOST, p.udp(53, SPORT)))
    for flags in (p.SYN, p.ACK, FIN_ACK if closing else p.ACK):
        programs.run(A1, A1.sends(OUTSIDE, p.tcp(SPORT, 80, flags)))
        programs.run(None, outside_sends(HOST, p.tcp(80, SPORT, SYN_ACK if flags == p.SYN else p.ACK)))
    assert len(programs.table("pending")) == 2
    programs.maps["conns"].delete_many(list(programs.table("conns")))
    programs.counted()
    answerer(programs, "outside", p.ACK)
    opener(programs, "outside", p.ACK)
    assert state(programs, "outside") == (("conns", State.CONN_CLOSING, 1) if closing else ESTABLISHED)


def test_what_is_over_goes_by_itself(make_programs: MakePrograms) -> None:
    """Silent UDP and ping, closed and reset TCP: both halves go, with no process. What lives stays."""
    programs = make_programs(timeout_udp=1, timeout_icmp=1, timeout_closing=1)
    programs.keep_identifier(A1, SPORT)
    for ask, reply in (
        (p.udp(SPORT, 53), p.udp(53, SPORT)),
        (p.echo(p.ECHO, SPORT), p.echo(p.ECHO_REPLY, SPORT)),
    ):
        programs.run(A1, A1.sends(OUTSIDE, ask))
        programs.run(None, outside_sends(HOST, reply))
    for who, flags in [*HANDSHAKE, ("o", FIN_ACK), ("a", FIN_ACK)]:
        (opener if who == "o" else answerer)(programs, "outside", flags)
    for who, flags in HANDSHAKE:
        (opener if who == "o" else answerer)(programs, "published", flags)
    assert len(programs.table("conns")) == 8
    programs.start_gc()
    wait_until(lambda: set(programs.table("conns")) == set(KEYS["published"]))
    answerer(programs, "published", p.RST)
    wait_until(lambda: not programs.table("conns"))


def test_traffic_keeps_a_connection(make_programs: MakePrograms) -> None:
    """In either direction."""
    programs = make_programs(timeout_udp=60)
    ask, reply = p.udp(SPORT, 53), p.udp(53, SPORT)
    programs.run(A1, A1.sends(OUTSIDE, ask))
    programs.run(None, outside_sends(HOST, reply))
    for _ in range(3):
        age(programs, "conns", 40)
        assert programs.run(None, outside_sends(HOST, reply)).reasons == {"DELIVERED": 1}
    assert len(programs.table("conns")) == 2 and not programs.table("pending")


def age(programs: Programs, name: str, seconds: int) -> None:
    """As if so many seconds had passed, for what is in this table. Not before the machine's boot, which is time 0."""
    table = programs.maps[name]
    table.update_many(
        {
            key: conn._replace(last_seen=max(1, conn.last_seen - seconds * 10**9))
            for key, conn in table.read_all()
        }
    )


def age_mappings(programs: Programs) -> None:
    """As if no connection had used them for the time that they live."""
    booted_for(121)
    externals = programs.maps["externals"]
    externals.update_many({key: row._replace(seen=1) for key, row in externals.read_all()})


def test_an_old_half_open_connection_makes_room_for_its_port(make_programs: MakePrograms) -> None:
    """Once its handshake time is over, and that of its mapping, another container may have the source port."""
    programs = make_programs(timeout_handshake=60)
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    first = programs.run(A2, A2.sends(OUTSIDE, p.udp(SPORT, 53)))
    assert int.from_bytes(first.packet[34:36], "big") != SPORT
    for name in ("pending", "mappings", "externals"):
        rows = programs.table(name).items()
        programs.maps[name].delete_many([k for k, v in rows if A2.ip in (*k, *v)])
    age(programs, "pending", 61)
    age_mappings(programs)
    second = programs.run(A2, A2.sends(OUTSIDE, p.udp(SPORT, 53)))
    assert int.from_bytes(second.packet[34:36], "big") == SPORT
    assert A1.ip not in {key.src for key in programs.table("pending")}
