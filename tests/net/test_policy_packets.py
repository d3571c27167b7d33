# SPDX-License-Identifier: Apache-2.0
"""Policies and real sockets: who is refused hears of it at once, who may goes on, and what is open stops with a change.
They are put into force in the maps themselves, without a command."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.errors import ConfigError
from datapath.model.judging import judge
from datapath.model.policies import Action, By, Kind, Member, Opening, Party, PublishedPort, World
from datapath.plan.policies.builtin import world_of
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.reading import read_policies
from datapath.store.sqlite import SQLiteStore
from tests.net.hosts import FAR, HOST, OUTSIDE, PATIENCE, Host, eventually, pinging, sent_and_lost
from tests.net.wire import (
    KINDS,
    Container,
    Place,
    call,
    counters,
    fails,
    opened,
    rises,
    serving,
    start_container,
)
from tests.softirqs import settle
from tests.unit.policy_worlds import Draw

GATEWAYS = ("10.77.0.1", "fd00:77::1")
DB = "policies: {db: {for: db, in: {allow: ['app:5432', 'app:53/udp']}}}"
Put = Callable[[str], Callable[[], Mapping[By, tuple[int, int]]]]


class Shop(NamedTuple):
    host: Host
    app: Container
    cron: Container
    db: Container
    put: Put


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, list[Container]]]:
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        host.ctl("network create --subnet 10.77.0.0/24 --subnet fd00:77::/64 --ipv6 shop")
        yield (
            host,
            [
                start_container(host, name, f"--network shop {more}")
                for name, more in (
                    ("app", "--label role=web --label tier=front"),
                    ("cron", "--label role=batch"),
                    ("db", "--label tier=back -p 8080:80"),
                )
            ],
        )
    finally:
        host.close()


@pytest.fixture
def shop(running: tuple[Host, list[Container]]) -> Iterator[Shop]:
    host, (app, cron, db) = running
    dataplane = Dataplane.find(host.bpffs / "datapath")
    assert dataplane is not None

    def put(text: str) -> Callable[[], Mapping[By, tuple[int, int]]]:
        rows = plan_rows(read_policies(text, "here"), world(host))
        dataplane.policies.apply(rows)

        def hits() -> Mapping[By, tuple[int, int]]:
            found = dataplane.policies.hits()
            return {
                by: found[number][:2] for number, by in enumerate(rows.rules, 1) if any(found[number][:2])
            }

        return hits

    with dataplane:
        yield Shop(host, app, cron, db, put)
        dataplane.policies.clear()


def world(host: Host) -> World:
    with SQLiteStore(host.folder / "state", create=False, reading=True) as store:
        state = store.load()
    own = [ip_address(one) for one in (HOST, *GATEWAYS)]
    return world_of(state, own, [ip_network("192.0.2.0/24")])


def own(container: Container, version: int) -> str:
    return container.ip if version == 4 else container.ip6


@pytest.mark.parametrize(("version", "told"), [(4, errno.EHOSTUNREACH), (6, errno.EACCES)])
def test_p1_who_is_not_let_in_hears_of_it(shop: Shop, version: int, told: int) -> None:
    """As the kernel says it of what is administratively prohibited, over IPv4 and IPv6: at once, or, if connect() has
    its socket still in hand when the error comes, of the repeated SYN."""
    hits, anywhere = shop.put(DB), "0.0.0.0" if version == 4 else "::"
    with serving(shop.db, "tcp", 5432, anywhere), serving(shop.cron, "tcp", 80, anywhere):
        assert call(shop.app, "tcp", own(shop.db, version), 5432).seen == own(shop.app, version)
        before = counters(shop.host)
        assert fails(shop.cron, "tcp", own(shop.db, version), 5432, PATIENCE) == told
        assert fails(shop.host, "tcp", own(shop.db, version), 5432, PATIENCE) == told
        refused = rises(before, counters(shop.host))
        assert refused.keys() == {"DROP_IN"} and refused["DROP_IN"] >= 2
        assert call(shop.db, "tcp", own(shop.cron, version), 80).seen == own(shop.db, version)
    assert hits() == {By("db", 1): (1, 0), By("db", 0): (0, refused["DROP_IN"])}


def test_p13_answers_of_udp_come_back_and_nothing_else(shop: Shop) -> None:
    shop.put(f"{DB[:-1]}, app: {{for: app, in: {{allow: []}}}}}}")
    with serving(shop.db, "udp", 53), serving(shop.app, "udp", 9999):
        assert call(shop.app, "udp", shop.db.ip, 53).peer == shop.db.ip
        assert fails(shop.db, "udp", shop.app.ip, 9999, PATIENCE) == errno.EHOSTUNREACH


def test_p5_a_published_port_is_for_whom_the_container_lets_in(shop: Shop) -> None:
    text = f"policies: {{db: {{for: db, in: {{allow: ['{FAR}:80']}}}}}}"
    shop.put(text)
    with serving(shop.db, "tcp", 80):
        assert call(shop.host.outside, "tcp", HOST, 8080, source=(FAR, 0)).seen == FAR
        assert fails(shop.host.outside, "tcp", HOST, 8080) == errno.ETIMEDOUT
        assert fails(shop.app, "tcp", HOST, 8080, PATIENCE) == errno.EHOSTUNREACH
        assert fails(shop.host, "tcp", HOST, 8080) in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
        shop.put(text.replace("in:", "out: {allow: []}, in:"))
        assert call(shop.host.outside, "tcp", HOST, 8080, source=(FAR, 0)).seen == FAR, "it answers"
        assert fails(shop.db, "tcp", FAR, 80, PATIENCE) == errno.EHOSTUNREACH


def test_p7_what_is_open_stops_when_policies_change_and_goes_on_when_they_are_put_back(shop: Shop) -> None:
    shop.put(DB)
    with opened(shop.db) as listening, opened(shop.app) as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((shop.db.ip, 5432))
        listening.listen()
        client.connect((shop.db.ip, 5432))
        server, _ = listening.accept()
        with server:
            server.settimeout(client.gettimeout())
            client.sendall(b"before")
            assert server.recv(100) == b"before"
            hits = shop.put(DB.replace("app:5432", "cron:5432"))
            before = counters(shop.host)
            client.sendall(b"after")
            refused = rises(before, counters(shop.host))
            assert refused.keys() == {"DROP_IN"}, "its next packet, and what is sent again"
            assert hits().keys() == {By("db", 0)}
            shop.put(DB)
            assert server.recv(100) == b"after", "it was sent again"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"


METADATA, NEIGHBOUR = "169.254.169.254", "10.200.0.7"


@pytest.fixture
def beyond(shop: Shop) -> Iterator[Shop]:
    """Two more that are outside, to whom the host knows the way: who tells clouds' machines of themselves, and one with
    a private address."""
    for address in (METADATA, NEIGHBOUR):
        shop.host.outside.sh(f"ip addr add {address}/32 dev eth0")
        shop.host.sh(f"ip route add {address} via {OUTSIDE}")
    yield shop
    for address in (METADATA, NEIGHBOUR):
        shop.host.sh(f"ip route del {address}")
        shop.host.outside.sh(f"ip addr del {address}/32 dev eth0")


def test_p3_p4_of_what_is_outside_words_say_which_part(beyond: Shop) -> None:
    """Not the metadata service, which the host itself still has; nor the house, where names are still told."""
    host, app = beyond.host, beyond.app
    with serving(host.outside, "tcp", 80), serving(host, "tcp", 80), serving(beyond.db, "tcp", 80):
        for address in (METADATA, NEIGHBOUR, FAR, HOST):
            assert fails(app, "tcp", address, 80, PATIENCE) == 0
        beyond.put("policies: {app: {for: app, out: {deny: [metadata]}}}")
        assert fails(app, "tcp", METADATA, 80, PATIENCE) == errno.EHOSTUNREACH
        assert fails(host, "tcp", METADATA, 80, PATIENCE) == 0
        for address in (NEIGHBOUR, FAR, HOST):
            assert fails(app, "tcp", address, 80, PATIENCE) == 0
        beyond.put("policies: {app: {for: app, out: {deny: [private, host]}}}")
        for address in (NEIGHBOUR, HOST, METADATA):
            assert fails(app, "tcp", address, 80, PATIENCE) == errno.EHOSTUNREACH
        for address in (FAR, beyond.db.ip):
            assert fails(app, "tcp", address, 80, PATIENCE) == 0
    assert beyond.db.ip in app.sh("getent ahostsv4 db"), "names are told"


def test_p8_audit_counts_what_it_lets_pass_until_it_is_enforced(shop: Shop) -> None:
    host, path = shop.host, shop.host.folder / "audit.yaml"
    text = "policies: {db: {for: db, in: {allow: []}, mode: audit}}"
    try:
        path.write_text(text)
        host.ctl(f"policy apply -f {path}")
        before = counters(host)
        with serving(shop.db, "tcp", 5432):
            for _ in range(100):
                assert call(shop.cron, "tcp", shop.db.ip, 5432).seen == shop.cron.ip
            after = counters(host)
            assert after["WOULD_IN"] - before["WOULD_IN"] == 100 and not rises(before, after)
            (listed,) = (json.loads(line) for line in host.ctl("policy ls --format json").splitlines())
            assert (listed["Mode"], listed["Hits"], listed["Refused"]) == ("audit", 0, 100)
            path.write_text(text.replace("audit", "enforce"))
            host.ctl(f"policy apply -f {path}")
            assert fails(shop.cron, "tcp", shop.db.ip, 5432, PATIENCE) == errno.EHOSTUNREACH
    finally:
        host.try_ctl("policy rm db")


def test_p16_many_policies_take_the_place_of_few_and_too_many_do_not_and_no_packet_is_lost(
    shop: Shop,
) -> None:
    """5,000 with 10,000 rules on a host with 1,000 endpoints more. Where a table has no room nothing is changed."""
    dataplane = Dataplane.find(shop.host.bpffs / "datapath")
    assert dataplane is not None
    real = world(shop.host)
    others = tuple(
        Member(10_000 + n, "shop", f"c{n}", {}, (IPv4Address("10.77.0.0") + 1000 + n,), f"{n:064x}")
        for n in range(1000)
    )
    crowded = replace(real, members=(*real.members, *others))
    many = "".join(
        f" p{n}: {{for: c{n % 1000}, in: {{allow: ['c{(n + 1) % 1000}:{n + 1}', 'c{(n + 7) % 1000}:{n + 1}']}}}}\n"
        for n in range(5000)
    )
    few = "policies:\n db: {for: db, in: {allow: ['app:5432', 'app/icmp']}}\n"
    rows = [plan_rows(read_policies(text, "here"), crowded) for text in (few, few + many)]
    with dataplane:
        dataplane.policies.apply(rows[0])
        inside = ["nsenter", "-t", str(shop.app.pid), "--net"]
        ping = pinging(shop.host, shop.db.ip, 73, 0.002, inside)
        try:
            dataplane.policies.apply(rows[1], rows[0].rules)
            generation, room = dataplane.policies.generation(), dataplane.map("subjects").max_entries
            some = next(iter(rows[1].members.values()))
            more = dict.fromkeys(range(1 << 20, (1 << 20) + room), some)
            full = replace(rows[1], members={**rows[1].members, **more})
            with pytest.raises(ConfigError, match="nothing was changed"):
                dataplane.policies.apply(full, rows[1].rules)
            assert dataplane.policies.generation() == generation
            assert fails(shop.cron, "tcp", shop.db.ip, 5432, PATIENCE) == errno.EHOSTUNREACH
        finally:
            sent, lost = sent_and_lost(ping)
        assert sent > 20 and lost == 0


# ---- random worlds ---------------------------------------------------------------------------------------------------

WORLDS, OPENINGS = 50, 12
PORTS = (80, 443, 5432)


class Sockets:
    """Everybody listens at those ports, and says what has come."""

    def __init__(self, stack: contextlib.ExitStack, places: Mapping[str, Place]) -> None:
        self.listening: dict[tuple[str, str, int], socket.socket] = {}
        for (name, place), proto, port in itertools.product(places.items(), KINDS, PORTS):
            one = stack.enter_context(opened(place, KINDS[proto], socket.AF_INET6))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("::", port))
            if proto == "tcp":
                one.listen(128)
            one.setblocking(False)
            self.listening[name, proto, port] = one

    def rest(self) -> list[tuple[str, str, int]]:
        """Where something has come that nobody has taken."""
        settle()
        return [where for where in self.listening if self.has(*where)]

    def has(self, name: str, proto: str, port: int) -> bool:
        """Something has come there, which is taken."""
        one = self.listening[name, proto, port]
        with contextlib.suppress(BlockingIOError):
            if proto == "udp":
                one.recv(100)
            else:
                one.accept()[0].close()
            return True
        return False


def test_p9_sockets_meet_what_policies_mean_in_random_worlds(shop: Shop) -> None:
    """A little of what tests/bpf/policy_worlds.py does, by real connections and datagrams."""
    real, dataplane = world(shop.host), Dataplane.find(shop.host.bpffs / "datapath")
    assert dataplane is not None
    places: dict[str, Place] = {"app": shop.app, "cron": shop.cron, "db": shop.db}
    places |= {"host": shop.host, "outside": shop.host.outside}
    members = {member.name: member for member in real.members}
    published = next(one for one in real.published if one.port == 8080 and one.address.version == 4)
    seen = set[str]()
    with contextlib.ExitStack() as stack, dataplane:
        sockets = Sockets(stack, places)
        for seed in range(1, WORLDS + 1):
            draw = Draw(seed)
            draw.world = real
            policies = draw.some_policies()
            if not policies:
                continue
            dataplane.policies.apply(plan_rows(policies, real))
            for _ in range(OPENINGS):
                tried = Tried.drawn(draw, members, published)
                verdict = judge(tried.opening, policies, real)
                wanted = "" if verdict.action is Action.ALLOW else verdict.steps[-1].reason
                while True:
                    said = asides(shop)
                    became = tried.act(partial(drops, dataplane), places, sockets)
                    if became == {wanted} or asides(shop) == said:
                        break
                assert became == {wanted}, f"seed {seed}: {tried}: {verdict}"
                seen.add(wanted)
            assert not sockets.rest(), f"seed {seed}: what was refused came all the same"
    assert seen == {"", "DROP_IN", "DROP_OUT", "DROP_ICC"}


def drops(dataplane: Dataplane) -> Counter[str]:
    """Reason -> packets refused so far."""
    found = dataplane.counters_sum().items()
    return Counter({name: packets for name, (packets, _) in found if name.startswith("DROP_")})


def asides(shop: Shop) -> list[list[str]]:
    """What kernels have said to groups by themselves: which they listen to, and whether there is a router."""
    found = []
    for one in (shop.app, shop.cron, shop.db):
        lines = Path(f"/proc/{one.pid}/net/snmp6").read_text().splitlines()
        found.append([line for line in lines if "Ip6OutMcastPkts" in line])
    return found


class Tried(NamedTuple):
    """Who opens something, to whom, by which address and at which port."""

    source: str
    to: str
    address: str
    port: int
    opening: Opening

    @classmethod
    def drawn(cls, draw: Draw, members: Mapping[str, Member], published: PublishedPort) -> Tried:
        choose = draw.random.choice
        if draw.chance(0.15):
            end = Party(Kind.OUTSIDE, ip_address(OUTSIDE))
            to = Party(Kind.MEMBER, members["db"].addresses[0], members["db"])
            return cls("outside", "db", HOST, 8080, Opening(end, to, 6, 80, published))
        version, protocol, port = choose((4, 4, 6)), choose((6, 17)), choose(PORTS)
        names: list[str] = [*members, "host", *(["outside"] if version == 4 else [])]
        one, other = draw.random.sample(names, 2)
        if one == "outside" or not {one, other} & members.keys():
            one, other = "app", "db"
        end = cls._party(one, members, version)
        to = Party(Kind.OUTSIDE, ip_address(OUTSIDE))
        if other != "outside":
            to = cls._party(other, members, version)
        return cls(one, other, str(to.address), port, Opening(end, to, protocol, port))

    @staticmethod
    def _party(name: str, members: Mapping[str, Member], version: int) -> Party:
        if name in members:
            one = members[name]
            return Party(Kind.MEMBER, next(a for a in one.addresses if a.version == version), one)
        return Party(Kind.HOST, ip_address(GATEWAYS[version == 6]))

    def act(
        self, drops: Callable[[], Counter[str]], places: Mapping[str, Place], sockets: Sockets
    ) -> set[str]:
        """Why it was refused; "": it has come."""
        proto = "tcp" if self.opening.protocol == 6 else "udp"
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        before, refused, came = drops(), Counter[str](), False

        def is_known() -> bool:
            nonlocal refused, came
            came = sockets.has(self.to, proto, self.opening.port)
            refused = drops() - before
            return bool(refused) or came

        with opened(places[self.source], KINDS[proto], family) as one:
            one.setblocking(False)
            one.connect_ex((self.address, self.port))
            if proto == "udp":
                one.send(b"?")
            with eventually() as until:
                until(is_known)
        return {*refused, *([""] if came else [])}
