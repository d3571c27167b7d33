# SPDX-License-Identifier: Apache-2.0
"""What policies mean, by the four sentences; and that the rows of the packet programs say the same.

DATAPATH_LONG=1: a thousand random worlds. A failure names its world's seed, which POLICY_SEED starts from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from datapath.errors import ConfigError
from datapath.model.judging import judge, judge_packets
from datapath.model.policies import (
    WORDS,
    Action,
    By,
    Direction,
    Kind,
    Member,
    Opening,
    Packet,
    Party,
    Policy,
    PublishedPort,
    Rule,
    Rules,
    Selector,
    Step,
    Verdict,
    World,
)
from datapath.plan.policies import compiling
from datapath.plan.policies.classes import representatives
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.reading import label_policy, read_policies
from datapath.plan.policies.rows import rows_verdict
from datapath.plan.policies.writing import policies_text
from tests.unit.policy_worlds import Draw, disagreement

SEED = int(os.environ.get("POLICY_SEED", "1"))
WORLDS = 1000 if os.environ.get("DATAPATH_LONG") else 100
TCP, UDP, ICMP, ICMPV6, GRE = 6, 17, 1, 58, 47

APP = Member(
    1, "shop", "app", {"role": "app"}, (ip_address("172.18.0.3"), ip_address("fd00:18::3")), "a" * 64
)
DB = Member(2, "shop", "db", {"role": "db"}, (ip_address("172.18.0.2"), ip_address("fd00:18::2")), "d" * 64)
CRON = Member(3, "shop", "cron", {"role": "batch"}, (ip_address("172.18.0.4"),), "c" * 64)
STRANGER = Member(4, "shop", addresses=(ip_address("172.18.0.5"),), ident="5" * 64, known=False)
HOST = Party(Kind.HOST, ip_address("172.18.0.1"))
RESOLVER = Party(Kind.NAMES)
WEB_8080 = PublishedPort(ip_address("0.0.0.0"), TCP, 8080, APP.endpoint)
WORLD = World(
    (APP, DB, CRON, STRANGER),
    (ip_address("172.18.0.1"), ip_address("192.0.2.1"), ip_address("2001:db8:1::1")),
    (ip_network("192.0.2.0/24"), ip_network("192.168.1.0/24")),
    (WEB_8080,),
    {"api.example.com": (ip_address("203.0.113.9"),)},
)


Who = str | Member | Party


def party(who: Who) -> Party:
    if isinstance(who, Party):
        return who
    if isinstance(who, Member):
        return Party(Kind.MEMBER, who.addresses[0], who)
    return Party(Kind.OUTSIDE, ip_address(who))


def opening(
    source: Who, to: Who, protocol: int = TCP, port: int = 0, by: PublishedPort | None = None
) -> Opening:
    return Opening(party(source), party(to), protocol, port, by)


def policies(text: str) -> tuple[Policy, ...]:
    return read_policies(f"policies: {{{text}}}", "test.yaml")


def verdict(some: Sequence[Policy], asked: Opening, world: World = WORLD) -> Verdict:
    """The evaluator's, which the rows have to agree with."""
    said = judge(asked, some, world)
    if some:
        assert rows_verdict(plan_rows(some, world), asked) == said
    return said


def passes(some: Sequence[Policy], *asked: object, world: World = WORLD) -> bool:
    return verdict(some, opening(*asked), world).action is Action.ALLOW  # type: ignore[arg-type]


# ---- the four sentences --------------------------------------------------------------------------------------------


def test_a_direction_is_open_until_some_policy_lists_an_allow_for_it() -> None:
    assert verdict((), opening(CRON, DB, TCP, 5432)).action is Action.ALLOW
    only_deny = policies("db: {for: db, in: {deny: [app]}}")
    assert passes(only_deny, CRON, DB, TCP, 5432)
    listed = policies('db: {for: db, in: {allow: ["app:5432"]}}')
    assert passes(listed, APP, DB, TCP, 5432)
    for other in (opening(APP, DB, TCP, 5433), opening(APP, DB, UDP, 5432), opening(CRON, DB, TCP, 5432)):
        assert verdict(listed, other).action is Action.REJECT
    assert not passes(listed, HOST, DB, TCP, 5432)
    assert passes(listed, DB, CRON, TCP, 1), "the other direction is open"
    both = (*listed, *policies('more: {for: {network: shop}, in: {allow: ["cron:5432"]}}'))
    assert passes(both, CRON, DB, TCP, 5432) and passes(both, APP, DB, TCP, 5432), "lists add up"
    nobody = policies("db: {for: db, in: {allow: []}}")
    assert not passes(nobody, APP, DB, TCP, 5432)


def test_a_deny_always_refuses_whatever_the_order() -> None:
    text = ('one: {for: db, in: {allow: ["any"]}}', 'two: {for: db, in: {deny: ["cron:1-65535/tcp"]}}')
    for order in (text, text[::-1]):
        some = policies(", ".join(order))
        assert not passes(some, CRON, DB, TCP, 5432) and passes(some, CRON, DB, UDP, 5432)
        assert verdict(some, opening(CRON, DB, TCP, 1)).decided == Step(
            Direction.IN, Action.REJECT, "DROP_IN", By("two", 1)
        )


def test_a_connection_needs_the_senders_out_and_the_receivers_in() -> None:
    out = policies("app: {for: app, out: {allow: [db]}}")
    ingress = policies("db: {for: db, in: {allow: [cron]}}")
    assert passes(out, APP, DB, TCP, 1) and not passes((*out, *ingress), APP, DB, TCP, 1)
    assert passes(ingress, CRON, DB, TCP, 1)
    refused = verdict((*out, *ingress), opening(APP, CRON, TCP, 1))
    assert [step.reason for step in refused.steps] == ["DROP_OUT"], "the receiver is not asked any more"
    refused = verdict((*out, *ingress), opening(APP, DB, TCP, 1))
    assert [(step.reason, step.by) for step in refused.steps] == [
        ("", By("app", 1)),
        ("DROP_IN", By("db", 0)),
    ]


def test_p13_answers_follow_their_connection_and_open_none() -> None:
    some = policies('db: {for: db, in: {allow: ["app:53/udp"]}, out: {allow: []}}')
    question, answer = Packet(opening(APP, DB, UDP, 53), 40000), Packet(opening(DB, APP, UDP, 40000), 53)
    wrong = Packet(opening(DB, APP, UDP, 9999), 53)
    rows = plan_rows(some, WORLD)
    for said in (lambda o: judge(o, some, WORLD), lambda o: rows_verdict(rows, o)):
        verdicts = judge_packets([answer, question, answer, wrong, question], said)
        assert [one.action is Action.ALLOW for one in verdicts] == [False, True, True, False, True]


# ---- what else is said ---------------------------------------------------------------------------------------------


def test_p8_audit_counts_what_it_would_refuse_and_lets_it_pass() -> None:
    some = policies('db: {for: db, in: {allow: ["app"]}, mode: audit}')
    said = verdict(some, opening(CRON, DB, TCP, 1))
    assert said.action is Action.ALLOW
    assert said.decided == Step(Direction.IN, Action.ALLOW, "WOULD_IN", None, By("db", 0))
    assert verdict(some, opening(APP, DB, TCP, 1)).decided == Step(Direction.IN)
    enforced = (*some, *policies("other: {for: db, in: {deny: [cron]}}"))
    assert verdict(enforced, opening(CRON, DB, TCP, 1)).decided == Step(
        Direction.IN, Action.REJECT, "DROP_IN", By("other", 1)
    )


def test_p5_refused_inside_the_house_is_rejected_and_from_outside_dropped() -> None:
    some = policies('web: {for: app, in: {allow: ["203.0.113.0/24:80"]}}')
    assert passes(some, "203.0.113.5", APP, TCP, 80, WEB_8080)
    assert verdict(some, opening("198.51.100.7", APP, TCP, 80, WEB_8080)).action is Action.DROP
    assert verdict(some, opening(HOST, APP, TCP, 80)).action is Action.REJECT
    detour = verdict(some, opening(CRON, APP, TCP, 80, WEB_8080))
    assert detour.action is Action.REJECT, "by way of the host it is judged alike"
    silent = policies("web: {for: app, in: {allow: []}, refuse: drop}")
    assert verdict(silent, opening(CRON, APP, TCP, 80)).action is Action.DROP


def test_what_a_container_opens_to_itself_passes() -> None:
    some = policies("app: {for: app, in: {allow: []}, out: {allow: []}}")
    assert passes(some, APP, APP, TCP, 80, WEB_8080)


def test_a_policy_of_a_published_port_is_about_what_comes_by_it() -> None:
    some = policies('web: {for: {name: app, published: 8080}, in: {allow: ["192.168.1.0/24"]}}')
    assert passes(some, "192.168.1.5", APP, TCP, 80, WEB_8080)
    assert not passes(some, "203.0.113.5", APP, TCP, 80, WEB_8080)
    assert passes(some, CRON, APP, TCP, 80)


def test_who_is_not_known_is_let_nothing_that_is_said_of_names_and_labels_and_refused_all_of_it() -> None:
    allowed, denied = (
        policies(f"db: {{for: db, in: {{{word}: [role=app, x]}}}}") for word in ("allow", "deny")
    )
    assert not passes(allowed, STRANGER, DB, TCP, 1) and not passes(denied, STRANGER, DB, TCP, 1)
    assert passes(denied, CRON, DB, TCP, 1)
    by_network = policies("db: {for: db, in: {allow: [{network: shop}]}}")
    assert passes(by_network, STRANGER, DB, TCP, 1), "its network is known"
    closed = policies("db: {for: {label: role=db}, in: {allow: [any]}}")
    assert not passes(closed, CRON, STRANGER, TCP, 1) and passes(closed, CRON, DB, TCP, 1)
    assert passes(policies("x: {for: {network: dmz, label: a=b}, in: {allow: []}}"), CRON, STRANGER, TCP, 1)


def test_an_endpoint_without_a_row_is_closed() -> None:
    rows = plan_rows(policies("x: {for: nobody, in: {allow: []}}"), WORLD)
    new = Member(9, "shop", "new", addresses=(ip_address("172.18.0.9"),))
    refused = rows_verdict(rows, opening(new, DB, TCP, 1))
    assert refused == Verdict((Step(Direction.OUT, Action.REJECT, "DROP_OUT"),))
    assert rows_verdict(plan_rows((), WORLD), opening(new, DB, TCP, 1)).action is Action.ALLOW


def test_p19_labels_of_an_image_only_narrow() -> None:
    open_db = replace(DB, labels={"role": "db", "com.datapath.in": "any"})
    world = replace(WORLD, members=(APP, open_db, CRON))
    label = label_policy(open_db)
    assert label is not None
    some = (*policies('db: {for: {label: role=db}, in: {allow: ["app:5432"]}}'), label)
    assert not passes(some, CRON, open_db, TCP, 5432, world=world)
    assert passes(some, APP, open_db, TCP, 5432, world=world)
    narrow = label_policy(replace(DB, labels={"com.datapath.in": "app:5432 host", "com.datapath.out": ""}))
    assert narrow is not None
    assert passes((narrow,), APP, DB, TCP, 5432) and passes((narrow,), HOST, DB, TCP, 22)
    refused = verdict((narrow,), opening(CRON, DB, TCP, 5432))
    assert refused.decided == Step(Direction.IN, Action.REJECT, "DROP_IN", By("(label db)", 0))
    assert not passes((narrow,), DB, APP, TCP, 1)
    assert label_policy(CRON) is None
    with pytest.raises(
        ConfigError, match=r'label com.datapath.in of db: unknown protocol "upd".*did you mean udp'
    ):
        label_policy(replace(DB, labels={"com.datapath.in": "any:53/upd"}))


WHO = {
    "8.8.8.8": "any outside internet",
    "203.0.113.5": "any outside internet",
    "2001:db8:9::5": "any outside internet",
    "192.168.1.5": "any outside private lan",
    "192.0.2.7": "any outside internet lan",
    "10.9.9.9": "any outside private",
    "100.64.0.1": "any outside private",
    "fd12::1": "any outside private",
    "fe80::1": "any outside private",
    "169.254.169.254": "any outside private metadata",
    "169.254.170.2": "any outside private metadata",
    "100.100.100.200": "any outside private metadata",
    "fd00:ec2::254": "any outside private metadata",
    "224.0.0.251": "any outside",
    "127.0.0.1": "any outside",
    "255.255.255.255": "any outside",
    "ff02::fb": "any outside",
}


@pytest.mark.parametrize("address", WHO)
def test_what_words_mean_of_addresses_outside(address: str) -> None:
    some = {word: policies(f"app: {{for: app, out: {{allow: [{word}]}}}}") for word in WORDS}
    assert {word for word in WORDS if passes(some[word], APP, address, TCP, 1)} == {*WHO[address].split()}


def test_what_words_mean_of_others() -> None:
    some = {word: policies(f"app: {{for: app, out: {{allow: [{word}]}}}}") for word in WORDS}
    assert {word for word in WORDS if passes(some[word], APP, HOST, TCP, 1)} == {"any", "host"}
    assert {word for word in WORDS if passes(some[word], APP, DB, TCP, 1)} == {"any"}
    assert {word for word in WORDS if passes(some[word], APP, RESOLVER, UDP, 53)} == {"any", "dns"}


def test_prefixes_are_of_whoever_has_the_address() -> None:
    some = policies(
        'db: {for: db, in: {allow: [{peer: "172.18.0.0/29", except: [172.18.0.4]}, "[fd00:18::3]:80"]}}'
    )
    assert passes(some, APP, DB, TCP, 1) and passes(some, HOST, DB, TCP, 1)
    assert not passes(some, CRON, DB, TCP, 1) and not passes(some, "172.18.0.9", DB, TCP, 1)
    app, db = (Party(Kind.MEMBER, member.addresses[1], member) for member in (APP, DB))
    six = Opening(app, db, TCP, 80)
    assert verdict(some, six).action is Action.ALLOW
    assert verdict(some, replace(six, port=81)).action is Action.REJECT


def test_ports_are_tcps_if_no_protocol_is_said_and_without_either_it_is_all() -> None:
    some = policies(
        'db: {for: db, in: {allow: ["app:1-2,7", cron/icmp, {name: cron, ports: [53, "55-56"], protocol: udp}]}}'
    )
    assert [port for port in range(10) if passes(some, APP, DB, TCP, port)] == [1, 2, 7]
    assert not passes(some, APP, DB, UDP, 7)
    assert (
        passes(some, CRON, DB, ICMP) and not passes(some, APP, DB, ICMP) and not passes(some, CRON, DB, GRE)
    )
    assert [port for port in range(50, 60) if passes(some, CRON, DB, UDP, port)] == [53, 55, 56]
    ping6 = policies("db: {for: db, in: {allow: [app/icmp]}}")
    assert passes(ping6, APP, DB, ICMPV6) and passes(ping6, APP, DB, ICMP)
    assert passes(policies("db: {for: db, in: {allow: [app]}}"), APP, DB, GRE)


def test_names_outside_may_be_asked_for_if_out_is_open_or_names_are_listed() -> None:
    asked = (APP, RESOLVER, UDP, 53)
    assert passes(policies("app: {for: app, out: {deny: [internet]}}"), *asked)
    assert not passes(policies("app: {for: app, out: {allow: [internet]}}"), *asked)
    assert not passes(policies('app: {for: app, out: {allow: ["any:443"]}}'), *asked)
    assert passes(policies("app: {for: app, out: {allow: [dns]}}"), *asked)
    assert not passes(policies("app: {for: app, out: {deny: [dns]}}"), *asked)
    one = policies('app: {for: app, out: {allow: ["api.example.com:443"]}}')
    assert passes(one, *asked) and passes(one, APP, "203.0.113.9", TCP, 443)
    assert not passes(one, APP, "203.0.113.9", TCP, 80) and not passes(one, APP, "203.0.113.10", TCP, 443)


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_p9_rows_say_what_the_evaluator_does() -> None:
    """Two hosts: `out` is decided on the sender's, `in` on the receiver's."""
    for seed in range(SEED, SEED + WORLDS):
        found = disagreement(seed)
        assert not found, found


def test_random_policies_are_the_same_when_they_are_written_and_read() -> None:
    told = 0
    for seed in range(SEED, SEED + WORLDS):
        draw = Draw(seed)
        wanted = [policy for policy in draw.policies if writable(policy)]
        told += len(wanted)
        if wanted:
            assert list(read_policies(policies_text(wanted), "written")) == wanted
    assert told > WORLDS


def writable(policy: Policy) -> bool:
    """It is an operator's, and says something; and that is something that is said of containers."""
    rules = [policy.rules(direction) for direction in Direction]
    some = [rule for one in rules for rule in (*one.deny, *(one.allow or ()))]
    odd = policy.among or policy.name.startswith("(") or policy.layer.value != "operator"
    port = policy.published and (policy.published.address or policy.published.first != policy.published.last)
    refused = any(
        (rule.peer.domain and rule in policy.ingress.deny + (policy.ingress.allow or ()) + policy.egress.deny)
        or rule.peer.word in ("dns", "self")
        for rule in some
    )
    return not (
        odd or port or refused or all(one.empty for one in rules) or any(overlaps(rule) for rule in some)
    )


def overlaps(rule: Rule) -> bool:
    """Its ports are joined when they are read."""
    return any(first <= last + 1 for (_, last), (first, _) in zip(rule.ports, rule.ports[1:], strict=False))


def test_every_prefix_stands_for_an_address_that_is_in_no_longer_one() -> None:
    random = Random(SEED)
    for _ in range(200):
        ends = [(random.randrange(256), random.randint(24, 32)) for _ in range(random.randint(1, 12))]
        drawn = {ip_network(f"10.0.0.{last}/{length}", strict=False) for last, length in ends}
        found = dict(representatives(drawn))
        for number in range(256):
            address = ip_address(f"10.0.0.{number}")
            around = [prefix for prefix in drawn if address in prefix]
            if around:
                assert max(around, key=lambda prefix: prefix.prefixlen) in found
        for prefix, address in found.items():
            assert prefix == max((p for p in drawn if address in p), key=lambda p: p.prefixlen)


def test_rows_do_not_multiply_with_prefixes_that_overlap() -> None:
    """Each prefix has one class; what is said of ports is said once of each."""
    rules = ", ".join(f'"10.{n}.0.0/16:80"' for n in range(100))
    some = policies(f'app: {{for: app, in: {{allow: [{rules}, "10.0.0.0/8:1-1023"]}}}}')
    rows = plan_rows(some, replace(WORLD, members=(APP, DB, CRON)))
    assert len(rows.sets) == 4 + 101 and len(rows.prefixes) == 100 + 2 + 1 + len(WORLD.host)


def many(count: int, text: str) -> str:
    return ", ".join(text.format(n=n) for n in range(count))


@pytest.mark.parametrize(
    ("most", "text", "what"),
    [
        ("MOST_RULES", many(6, "p{n}: {{for: db, in: {{allow: [app]}}}}"), "rules"),
        ("MOST_CLASSES", many(6, "p{n}: {{for: db, in: {{deny: [10.0.{n}.0/24]}}}}"), "classes"),
        ("MOST_PREFIXES", many(6, "p{n}: {{for: db, in: {{deny: [10.0.{n}.0/24]}}}}"), "prefixes"),
        ("MOST_SETS", many(2, "p{n}: {{for: db, in: {{deny: [10.0.{n}.0/24]}}}}"), "sets of rules"),
        ("MOST_OF_ONE", many(6, "p{n}: {{for: db, in: {{deny: [host]}}}}"), "policies about container db"),
        ("MOST_SPANS", 'p: {for: db, in: {deny: ["host:1,3,5,7,9,11,13"]}}', "ranges of ports"),
    ],
)
def test_more_than_there_is_room_for_is_refused(
    most: str, text: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_rows(policies(text), WORLD)
    monkeypatch.setattr(compiling, most, 5)
    with pytest.raises(ConfigError, match=f"need more than 5 {what}.*nothing was changed"):
        plan_rows(policies(text), WORLD)


def test_64_ranges_of_ports_fit_between_two_containers_and_65_do_not() -> None:
    ranges = ",".join(str(2 * n + 1) for n in range(64))
    some = policies(f'db: {{for: db, in: {{deny: ["app:{ranges}"]}}}}')
    assert not passes(some, APP, DB, TCP, 127) and passes(some, APP, DB, TCP, 128)
    with pytest.raises(ConfigError, match="64 ranges"):
        plan_rows(policies(f'db: {{for: db, in: {{deny: ["app:{ranges},1001"]}}}}'), WORLD)


def test_a_selector_for_anybody_needs_no_rows_of_its_own() -> None:
    rows = plan_rows(policies("db: {for: db, in: {deny: [any]}}"), replace(WORLD, members=(APP, DB)))
    assert len(rows.sets) == 4


def test_who_shares_all_policies_shares_rows() -> None:
    members = tuple(
        Member(n, "shop", f"web-{n}", {"role": "web"}, (ip_address(f"172.18.1.{n}"),), str(n))
        for n in range(1, 100)
    )
    world = World((*members, DB))
    rows = plan_rows(policies('web: {for: role=web, out: {allow: ["db:5432"]}}'), world)
    assert len({row.subject for row in rows.members.values()}) == 2 and len(rows.sets) == 8 - 3
    assert Selector(name="web-*").fits(party(members[3]), world)
    assert Rules().empty
