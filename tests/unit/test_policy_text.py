# SPDX-License-Identifier: Apache-2.0
"""Policies as people write them: what is refused and how it is said, ten needs, and what traffic suggests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest
import yaml

from datapath.errors import ConfigError
from datapath.model.judging import judge
from datapath.model.policies import (
    Action,
    By,
    Direction,
    Kind,
    Member,
    Mode,
    Opening,
    Party,
    Policy,
    PublishedPort,
    World,
)
from datapath.plan.policies import trees
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.flows import MOST_ADDRESSES, Flow, diff, suggest
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.review import refuse_ambiguous, warnings
from datapath.plan.policies.rows import rows_verdict

DATA = Path(__file__).parent / "data/needs"
TCP, UDP, ICMP = 6, 17, 1

SITE = Member(1, "dmz", "nginx-pm", {"role": "web"}, (ip_address("172.19.0.2"),), "1" * 64)
OTHER = Member(2, "dmz", "other", {}, (ip_address("172.19.0.3"),), "2" * 64)
WORKER = Member(3, "shop", "worker", {"role": "app"}, (ip_address("172.18.0.3"),), "3" * 64)
DB = Member(4, "shop", "db", {"role": "db"}, (ip_address("172.18.0.4"),), "4" * 64)
CRON = Member(5, "shop", "cron", {}, (ip_address("172.18.0.5"),), "5" * 64)
PORT_81 = PublishedPort(ip_address("0.0.0.0"), TCP, 8181, SITE.endpoint)
WORLD = World(
    (SITE, OTHER, WORKER, DB, CRON),
    tuple(map(ip_address, ("192.0.2.1", "172.18.0.1", "172.19.0.1"))),
    (ip_network("192.0.2.0/24"),),
    (PORT_81,),
)
PARTIES = {
    **{member.name: Party(Kind.MEMBER, member.addresses[0], member) for member in WORLD.members},
    "host": Party(Kind.HOST, ip_address("172.19.0.1")),
    "names": Party(Kind.NAMES),
}


def asked(text: str) -> Opening:
    """`FROM TO PORT[/PROTOCOL]`."""
    source, to, port = text.split()
    number, _, protocol = port.partition("/")
    ends = [PARTIES.get(who) or Party(Kind.OUTSIDE, ip_address(who)) for who in (source, to)]
    return Opening(ends[0], ends[1], {"udp": UDP, "icmp": ICMP}.get(protocol, TCP), int(number))


def action(some: Sequence[Policy], text: str) -> Action:
    said = judge(asked(text), some, WORLD)
    assert rows_verdict(plan_rows(some, WORLD), asked(text)) == said
    return said.action


# ---- ten needs -----------------------------------------------------------------------------------------------------

# What passes and what is refused, by the number of the file.
NEEDS = {
    "01": (
        ["192.168.1.9 nginx-pm 81", "203.0.113.7 nginx-pm 81", "8.8.8.8 nginx-pm 443", "other nginx-pm 80"],
        ["203.0.113.8 nginx-pm 81", "other nginx-pm 81", "host nginx-pm 81"],
    ),
    "02": (
        ["worker db 5432", "db cron 1"],
        ["cron db 5432", "host db 5432", "worker db 22", "cron db 0/icmp"],
    ),
    "03": (
        ["worker db 5432", "worker 203.0.113.9 12345", "cron worker 1"],
        [
            "worker 203.0.113.9 443",
            "worker cron 1",
            "worker host 22",
            "worker names 53/udp",
            "worker 8.8.8.8 53/udp",
        ],
    ),
    "04": (
        ["other 8.8.8.8 443", "other nginx-pm 80", "other names 53/udp"],
        ["other 192.168.1.9 445", "other 192.0.2.7 445", "other 169.254.169.254 80", "other host 22"],
    ),
    "05": (
        ["8.8.8.8 nginx-pm 80", "other nginx-pm 80"],
        ["nginx-pm 8.8.8.8 443", "nginx-pm other 1", "nginx-pm names 53/udp"],
    ),
    "06": (
        ["worker 8.8.8.8 80", "worker host 80"],
        ["worker 169.254.169.254 80", "other 100.100.100.200 80"],
    ),
    "07": (["other 8.8.8.8 80", "other names 53/udp", "host other 80"], ["other host 22"]),
    "08": (["8.8.8.8 nginx-pm 80", "8.8.8.8 nginx-pm 443"], ["8.8.8.8 nginx-pm 22"]),
    "09": (
        ["worker 8.8.8.8 443", "cron names 53/udp"],
        ["worker names 53/udp", "worker 8.8.8.8 53/udp", "worker 8.8.8.8 53", "worker 8.8.8.8 853"],
    ),
    "10": (
        ["worker db 5432", "worker 8.8.8.8 443"],
        ["worker cron 1", "cron db 5432", "host cron 1", "db worker 1"],
    ),
}


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_ten_needs_of_people_are_a_few_lines_each(path: Path) -> None:
    some = read_policies(path.read_text(), path.name)
    passing, refused = NEEDS[path.stem[:2]]
    assert {text: action(some, text) is Action.ALLOW for text in (*passing, *refused)} == {
        **dict.fromkeys(passing, True),
        **dict.fromkeys(refused, False),
    }
    assert len(path.read_text().splitlines()) <= 8
    assert warnings(some, WORLD) == []


def test_every_need_is_there() -> None:
    assert sorted(path.stem[:2] for path in DATA.glob("*.yaml")) == sorted(NEEDS)


# ---- what is refused -----------------------------------------------------------------------------------------------

DB_IN = "policies:\n  db:\n    for: db\n    in:\n      allow:\n        - {}\n"
NEITHER = (
    "it is neither a name, an address, KEY=VALUE nor one of any, outside, internet, private, lan, metadata, host, "
    "self, dns"
)
BAD = [
    # keys and words
    (
        "policies: {db: {for: db, inn: {allow: []}}}",
        '1: unknown key "inn": there are for, in, out, mode, refuse; did you mean in?',
    ),
    (
        "policies:\n  db:\n    for: db\n    on: {allow: []}",
        '4: unknown key "on": there are for, in, out, mode, refuse',
    ),
    ("policy: {}", '1: unknown key "policy": there is policies'),
    (
        "policies: {db: {for: db, in: {alow: []}}}",
        '1: unknown key of in "alow": there are allow, deny, rate; did you mean allow?',
    ),
    (
        "policies: {db: {for: {nme: db}, in: {allow: []}}}",
        '1: unknown key of for "nme": there are name, label, network, published; did you mean name?',
    ),
    (
        "policies: {db: {for: db, in: {allow: []}, mode: audti}}",
        '1: unknown mode "audti": there are enforce, audit; did you mean audit?',
    ),
    (
        "policies: {db: {for: db, in: {allow: []}, refuse: dorp}}",
        '1: unknown refuse "dorp": there are reject, drop; did you mean drop?',
    ),
    (
        DB_IN.format("intrenet"),
        f'6: unknown peer "intrenet": {NEITHER}; did you mean internet? '
        '(a container of that name is {name: "intrenet"})',
    ),
    (
        DB_IN.format("a b"),
        f'6: unknown peer "a b": {NEITHER}',
    ),
    (
        DB_IN.format("{per: db}"),
        '6: unknown key of a rule "per": there are peer, name, label, network, dns, ports, protocol, except; '
        "did you mean peer?",
    ),
    # ports and protocols
    (DB_IN.format('"app:53/upd"'), '6: unknown protocol "upd": there are tcp, udp, icmp; did you mean udp?'),
    (DB_IN.format('"app:0"'), '6: invalid port "0": there is no port 0; without ports it is all of them'),
    (DB_IN.format('"app:65536"'), '6: invalid port "65536": expected 1 to 65535, or a range'),
    (
        DB_IN.format('"app:443-80"'),
        '6: invalid port "443-80": expected 1 to 65535, or a range; did you mean 80-443?',
    ),
    (DB_IN.format('"app:"'), '6: invalid port "": expected 1 to 65535, or a range'),
    (DB_IN.format('"app:http"'), '6: invalid port "http": expected 1 to 65535, or a range'),
    (DB_IN.format("app:53/icmp"), "6: icmp has no ports"),
    (DB_IN.format('"8080"'), '6: "8080" names nobody: ports stand behind a peer, as in any:8080'),
    (DB_IN.format('{peer: "app:1", ports: 2}'), "6: ports and protocol stand in peer or beside it, not both"),
    # addresses
    (DB_IN.format("10.0.0.1/8"), "6: invalid prefix 10.0.0.1/8: it should be 10.0.0.0/8"),
    (
        DB_IN.format("10.0.0.0/33"),
        '6: invalid prefix "10.0.0.0/33": invalid CIDR block notation: expected ADDRESS/LENGTH, as in 10.0.0.0/16',
    ),
    (
        DB_IN.format("0251.254.169.254"),
        '6: invalid prefix "0251.254.169.254": expected an address, or ADDRESS/LENGTH',
    ),
    (
        DB_IN.format('"2001:db8::1"'),
        '6: "2001:db8::1": an IPv6 address needs brackets, as in [2001:db8::1]:443',
    ),
    (
        DB_IN.format('"2001:db8::1:443"'),
        '6: "2001:db8::1:443": an IPv6 address needs brackets, as in [2001:db8::1]:443',
    ),
    (
        DB_IN.format('"fd00::/8:443"'),
        '6: "fd00::/8:443": an IPv6 address needs brackets, as in [2001:db8::1]:443',
    ),
    (
        DB_IN.format("{peer: 10.0.0.0/8, except: [192.168.0.0/16]}"),
        "6: except: 192.168.0.0/16 is not in 10.0.0.0/8",
    ),
    (
        DB_IN.format("{name: app, except: [192.168.0.0/16]}"),
        "6: except: goes with a prefix, or any, outside, internet, private, lan",
    ),
    # who
    ("policies: {db: {for: {}, in: {allow: []}}}", "1: for is empty: it needs a name, a label or a network"),
    ('policies: {db: {for: "", in: {allow: []}}}', "1: for must be a text"),
    ("policies: {db: {in: {allow: []}}}", "1: policy db has no for: whom is it about?"),
    (
        "policies: {db: {for: any, in: {allow: []}}}",
        '1: for: "any" is no container: a name, KEY=VALUE of a label, or {network: …}',
    ),
    ("policies: {db: {for: {label: role}, in: {allow: []}}}", '1: invalid label "role": expected KEY=VALUE'),
    (
        "policies: {db: {for: {name: db, published: 70000}, in: {allow: []}}}",
        '1: invalid published port "70000": expected 1 to 65535, or PORT/udp',
    ),
    (
        "policies: {db: {for: {name: db, published: 80}, out: {allow: []}}}",
        "1: published: is about who comes in by that port, and out is not",
    ),
    (
        DB_IN.format("api.example.com:443"),
        "6: api.example.com is for out: who comes in has no name, write its address",
    ),
    (
        "policies: {db: {for: db, out: {deny: [api.example.com]}}}",
        "1: api.example.com can be allowed, not denied: its addresses can have other names",
    ),
    (
        'policies: {db: {for: db, out: {allow: ["*.example.com"]}}}',
        '1: "*.example.com": DNS names have no * and ?; of containers write {name: "*.example.com"}',
    ),
    ("policies: {db: {for: db, out: {deny: [self]}}}", "1: self cannot be denied: it always passes"),
    ("policies: {db: {for: db, out: {allow: [dns/udp]}}}", "1: dns has neither ports nor a protocol"),
    (
        DB_IN.format("{peer: any, name: app}"),
        "6: a rule is for one of peer, dns, or a container by name, label and network together",
    ),
    # lists
    ("policies: {db: {for: db, in: {allow: app}}}", "1: allow must be a list, as in [any]"),
    (
        "policies:\n  db:\n    for: db\n    in:\n      allow:\n",
        "5: allow must be a list, as in [any]; [] is nobody",
    ),
    ("policies: {db: {for: db, in: {}}}", "1: in says nothing: it has neither allow, deny nor rate"),
    ("policies: {db: {for: db}}", "1: policy db says nothing: it has neither in nor out"),
    ("policies: {db: {for: db, in: {allow: [[]]}}}", "1: a peer must be a text"),
    (
        "policies: {db: {for: db, in: {rate: 20}}}",
        '1: invalid rate "20": expected openings a second, as in 20/s',
    ),
    (
        "policies: {db: {for: db, in: {rate: 0/s}}}",
        '1: invalid rate "0/s": expected openings a second, as in 20/s',
    ),
    # files
    (
        "policies:\n  db: {for: db, in: {allow: []}}\n  db: {for: web, in: {allow: []}}",
        '3: "db" is there twice: it is in line 2 as well',
    ),
    (
        "policies: {'a b': {for: db, in: {allow: []}}}",
        '1: invalid policy name "a b": letters, digits, _ . - and at most 63 of them',
    ),
    (
        'policies: {db: {for: {name: "d\\0b"}, in: {allow: []}}}',
        '1: name "d\\x00b" has characters that cannot be printed',
    ),
    (
        'policies: {db: {for: {name: "d\\eb"}, in: {allow: []}}}',
        '1: name "d\\x1bb" has characters that cannot be printed',
    ),
    ("policies:\n  d\x00b: {}", '2: has the character "\\x00"'),
    ("policies:\n  d\x1bb: {}", '2: has the character "\\x1b"'),
    ("policies: &a {db: *a}", '1: the alias "*a" contains itself'),
    ("policies: *b", '1: the alias "*b" is not defined'),
    ("policies: {db: !!python/object:os.system x}", "1: policy db must be a mapping, as in {in: …}"),
    ("policies: {db: {for: !x db, in: {allow: []}}}", '1: for has the tag "!x": there are none'),
    ("policies:\n  ]", "2: no YAML: "),
    ("a: b\n---\nc: d", "2: a second document begins"),
    ("", "1: a policy file must be a mapping, as in {in: …}"),
    ("services: {web: {}}", "1: a Compose file without x-datapath: there are no policies in it"),
    ("x-datapath: {}\nservices: {}", "1: policies: is missing"),
    ("a: " + "[" * 100, "1: nested more than 64 deep"),
]


@pytest.fixture(params=["in C", "in Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML may have been built without libyaml."""
    if request.param == "in Python":
        monkeypatch.delattr(yaml, "CSafeLoader")


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input_is_refused_in_one_line_that_names_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_policies(text, "shop.yaml")
    said = str(caught.value).removeprefix("shop.yaml:")
    assert said.startswith(message) if message.endswith(": ") else said == message


def test_large_files_are_refused_also_where_aliases_make_them_so() -> None:
    with pytest.raises(ConfigError, match=r"shop\.yaml: larger than 1 MiB"):
        read_policies("#" * (trees.MOST_BYTES + 1), "shop.yaml")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcde", "bcdef", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    with pytest.raises(ConfigError, match=r"shop\.yaml:5: more than 100,000 values, with repeated ones"):
        read_policies(bomb, "shop.yaml")


def test_a_name_that_is_a_container_and_a_dns_name_has_to_say_which() -> None:
    world = replace(WORLD, members=(*WORLD.members, replace(CRON, endpoint=9, name="api.example.com")))
    some = read_policies("policies: {w: {for: worker, out: {allow: [api.example.com]}}}", "shop.yaml")
    refuse_ambiguous(some, WORLD)
    with pytest.raises(ConfigError) as caught:
        refuse_ambiguous(some, world)
    assert str(caught.value) == (
        'shop.yaml:1: "api.example.com" is a container and a DNS name: say {name: "api.example.com"} or '
        '{dns: "api.example.com"}'
    )
    for word in ("name", "dns"):
        told = f"policies: {{w: {{for: worker, out: {{allow: [{{{word}: api.example.com}}]}}}}}}"
        refuse_ambiguous(read_policies(told, "shop.yaml"), world)


def test_mutilated_files_are_refused_in_one_line_or_read() -> None:
    random = Random(5)
    text = "\n".join(path.read_text() for path in sorted(DATA.glob("0[1-4]*")))
    for _ in range(300):
        place = random.randrange(len(text))
        broken = (
            text[:place]
            + random.choice(["", "[", "{", "\t", "&a ", "*a", "!", ":", '"', "\x7f", "😀"])
            + text[place + 3 :]
        )
        try:
            read_policies(broken, "shop.yaml")
        except ConfigError as error:
            assert str(error).startswith("shop.yaml:") and "\n" not in str(error)


# ---- what is taken -------------------------------------------------------------------------------------------------

TEXT = 'policies: {db: {for: {label: role=db}, in: {allow: ["role=app:5432"], rate: 20/s}, mode: audit, refuse: drop}}'


@pytest.mark.usefixtures("parser")
def test_yaml_json_and_a_compose_file_say_the_same() -> None:
    (policy,) = read_policies(TEXT, "shop.yaml")
    assert (policy.name, policy.mode, policy.refuse, policy.ingress.rate) == (
        "db",
        Mode.AUDIT,
        Action.DROP,
        20,
    )
    document = {
        "policies": {
            "db": {
                "for": {"label": "role=db"},
                "in": {"allow": ["role=app:5432"], "rate": "20/s"},
                "mode": "audit",
                "refuse": "drop",
            }
        }
    }
    for indent in (None, 2, "\t"):
        assert read_policies(json.dumps(document, indent=indent), "shop.json") == (policy,)
    compose = """
services:
  db: {image: postgres, ports: !reset [], x: &role {label: role=db}}
  on: {yes: 22:22}
x-datapath:
  policies:
    db:
      for: *role
      in: {allow: ["role=app:5432"], rate: 20/s}
      <<: {mode: audit, refuse: drop, in: {allow: []}}
"""
    assert read_policies(compose, "compose.yaml") == (policy,)
    assert read_policies(compose, "compose.yaml")[0].where == "compose.yaml:7"


def test_rules_are_numbered_as_they_stand_in_their_policy() -> None:
    text = "policies: {a: {for: db, out: {allow: [host]}, in: {deny: [cron, worker], allow: [any]}}}"
    (policy,) = read_policies(text, "shop.yaml")
    assert [rule.number for rule in (*policy.ingress.deny, *(policy.ingress.allow or ()))] == [2, 3, 4]
    said = judge(asked("worker db 1"), (policy,), WORLD).decided
    assert said is not None and said.by == By("a", 3)


def test_the_parser_is_loaded_when_policies_are_read() -> None:
    code = (
        "import sys; from datapath.plan.policies import builtin, compiling, flows, reading, review; "
        "assert 'yaml' not in sys.modules; reading.read_policies('policies: {}', 'x'); assert 'yaml' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WARNED = [
    ("policies: {a: {for: xyz, in: {allow: []}}}", "1: policy a is for no container that there is now"),
    (
        "policies: {a: {for: workr, in: {allow: []}}}",
        "1: policy a is for no container that there is now; did you mean worker?",
    ),
    ("policies: {a: {for: db, in: {deny: [role=ap]}}}", '1: "role=ap" is no container that there is now'),
    ("policies: {a: {for: db, in: {allow: [crn]}}}", '1: "crn" is no container that there is now; did you mean cron?'),
    ('policies: {a: {for: db, in: {allow: [cron, "cron:80"]}}}', '1: "cron:80" adds nothing to "cron"'),
    ('policies: {a: {for: db, in: {allow: ["any:1-100"],\n deny: ["10.0.0.0/8", 10.1.0.0/16]}}}',
     '2: "10.1.0.0/16" adds nothing to "10.0.0.0/8"'),
    ("policies: {a: {for: db, in: {allow: [cron, cron]}}}", '1: "cron" adds nothing to "cron"'),
    ("policies: {a: {for: db, in: {allow: [cron/udp], deny: [any]}}}", '1: "cron/udp" never passes: "any" is denied'),
    (
        "policies: {a: {for: db, out: {allow: [api.example.com], deny: [dns]}}}",
        "1: api.example.com cannot be asked for: what is outside of the names here is denied",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), WARNED, ids=[line for _, line in WARNED])
def test_what_may_not_be_meant_is_told(text: str, line: str) -> None:
    some = read_policies(text, "shop.yaml")
    assert warnings(some, WORLD) == [f"shop.yaml:{line}"]


def test_rules_that_say_something_of_their_own_are_not_told() -> None:
    text = """policies: {a: {for: db, in: {allow: [{peer: 10.0.0.0/8, except: [10.1.0.0/16]}, 10.1.2.0/24,
      "cron:80", cron/udp,
      {name: worker, network: shop}, role=app, "host:1-2,5", "host:2-4", internet, private]}}}"""
    assert warnings(read_policies(text, "shop.yaml"), WORLD) == []


# ---- what traffic says ---------------------------------------------------------------------------------------------

WORKLOAD = (
    "worker db 5432", "worker names 53/udp", "worker 203.0.113.9 443", "203.0.113.7 nginx-pm 80", "other nginx-pm 443",
    "host db 5432", "cron worker 0/icmp", "2001:db8::7 nginx-pm 443",
)  # fmt: skip
NOT_SEEN = (
    "cron db 5432",
    "worker db 22",
    "worker 203.0.113.9 80",
    "203.0.113.8 nginx-pm 80",
    "db worker 5432",
    "db names 53/udp",
)


def flows(texts: Sequence[str] = WORKLOAD) -> list[Flow]:
    return [Flow(asked(text), 1200 + number) for number, text in enumerate(texts)]


def test_p15_what_is_suggested_lets_pass_what_was_seen_and_nothing_else() -> None:
    text = suggest(flows(), WORLD)
    some = read_policies(text, "suggested")
    assert all(action(some, one) is Action.ALLOW for one in WORKLOAD)
    assert not any(action(some, one) is Action.ALLOW for one in NOT_SEEN)
    assert '- "worker:5432"  # 1,200 connections\n' in text
    assert warnings(some, WORLD) == []
    assert diff((), some, flows(), WORLD) == []


def test_p15_without_one_line_exactly_that_is_refused() -> None:
    lines = suggest(flows(), WORLD).splitlines()
    removed = 0
    for place, line in enumerate(lines):
        if not line.lstrip().startswith("- "):
            continue
        less = "\n".join(lines[:place] + lines[place + 1 :])
        following = lines[place + 1] if place + 1 < len(lines) else ""
        alone = lines[place - 1].endswith("allow:") and not following.lstrip().startswith("- ")
        if alone:
            less = "\n".join([*lines[: place - 1], lines[place - 1] + " []", *lines[place + 1 :]])
        changes = diff(
            read_policies("\n".join(lines), "before"), read_policies(less, "after"), flows(), WORLD
        )
        count = line.rpartition("# ")[2].split()[0].replace(",", "")
        assert [str(change.flow.connections) for change in changes] == [count]
        assert changes[0].after.action is not Action.ALLOW
        removed += 1
    assert removed == 11


def test_many_addresses_of_one_port_are_suggested_as_the_word_that_all_are() -> None:
    some = [Flow(asked(f"203.0.113.{n} nginx-pm 80"), 1) for n in range(MOST_ADDRESSES + 1)]
    assert f'- "internet:80"  # {len(some)} connections' in suggest(some, WORLD)
    assert '- "outside:80"' in suggest([*some, Flow(asked("10.9.9.9 nginx-pm 80"), 1)], WORLD)
    assert '"203.0.113.3:80"  # 1 connection\n' in suggest(some[1:], WORLD)


def test_names_that_strings_cannot_have_are_suggested_in_full() -> None:
    names = ("host", "10", "web.1.abc", "ns/pod")
    members = [replace(CRON, endpoint=10 + n, name=name, addresses=()) for n, name in enumerate(names)]
    seen = [Flow(Opening(Party(Kind.MEMBER, None, one), PARTIES["db"], TCP, 5432), 1) for one in members]
    some = read_policies(suggest(seen, WORLD), "suggested")
    assert [judge(flow.opening, some, WORLD).action for flow in seen] == [Action.ALLOW] * len(seen)
    assert {policy.subject.name for policy in some} == {*names, "db"}


def test_diff_says_what_would_be_refused_and_what_would_be_open() -> None:
    before = read_policies('policies: {db: {for: db, in: {allow: ["worker:5432"]}}}', "before")
    after = read_policies('policies: {db: {for: db, in: {allow: ["cron:5432"]}}}', "after")
    seen = flows(("worker db 5432", "cron db 5432", "host db 5432", "cron worker 1"))
    changes = diff(before, after, seen, WORLD)
    assert [change.flow for change in changes] == seen[:2]
    refused, opened = changes
    assert refused.after.decided is not None and refused.after.decided.by == By("db", 0)
    assert opened.before.action is Action.REJECT and opened.after.action is Action.ALLOW
    assert refused.after.decided.direction == Direction.IN
