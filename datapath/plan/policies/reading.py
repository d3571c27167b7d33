# SPDX-License-Identifier: Apache-2.0
"""Policies from a file of YAML or JSON, from `x-datapath:` of a Compose file, and from labels. Pure.

What cannot be right is refused before anything changes, in one line: FILE:LINE, the word, and what may have been meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from datapath.errors import ConfigError, meant, quoted
from datapath.model.parsing import PORT_PROTOCOLS, Prefix, parse_address_or_prefix
from datapath.model.policies import (
    Action,
    Direction,
    Layer,
    Member,
    Mode,
    Policy,
    PortScope,
    Rule,
    Rules,
    Selector,
)
from datapath.plan.policies.trees import Node, parse_tree
from datapath.plan.policies.words import (
    make_rule,
    parse_domain,
    parse_label,
    parse_who,
    split_peer,
)

LABELS = {Direction.IN: "com.datapath.in", Direction.OUT: "com.datapath.out"}
MOST_A_SECOND = 1_000_000
_COMPOSE = "x-datapath"
_POLICY_KEYS = ("for", "in", "out", "mode", "refuse")
_SUBJECT_KEYS = ("name", "label", "network", "published")
_RULES_KEYS = ("allow", "deny", "rate")
_RULE_KEYS = ("peer", "name", "label", "network", "dns", "ports", "protocol", "except")
_POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PUBLISHED = re.compile(r"([0-9]{1,5})(?:/(tcp|udp))?")

T = TypeVar("T")
Fields = Mapping[str, tuple[Node, Node]]


def read_policies(text: str, source: str) -> tuple[Policy, ...]:
    """The policies of a file, by name. ConfigError: `source`:LINE: what is wrong."""
    root = parse_tree(text, source)
    fields = root.mapping("a policy file")
    if _COMPOSE in fields:
        fields = fields[_COMPOSE][1].mapping(_COMPOSE)
    elif "services" in fields:
        root.refuse(f"a Compose file without {_COMPOSE}: there are no policies in it")
    _refuse_others(fields, ("policies",), "key")
    if "policies" not in fields:
        root.refuse("policies: is missing")
    found = [
        _policy(key, name, node) for name, (key, node) in fields["policies"][1].mapping("policies").items()
    ]
    return tuple(sorted(found, key=lambda policy: policy.name))


def label_policy(member: Member) -> Policy | None:
    """What the container's own labels let in and out: peers with spaces between. None: they say nothing of it."""
    rules = {}
    for direction, label in LABELS.items():
        if label not in member.labels:
            continue
        where = f"label {label} of {member.name}"
        words = enumerate(member.labels[label].split(), 1)
        allow = tuple(_rule(Node(where, word), direction, False, number) for number, word in words)
        rules[direction] = Rules(allow=allow)
    if not rules:
        return None
    ingress, egress = (rules.get(direction, Rules()) for direction in (Direction.IN, Direction.OUT))
    subject = Selector(ident=member.ident)
    return Policy(f"(label {member.name})", subject, ingress, egress, layer=Layer.LABEL)


def _policy(key: Node, name: str, node: Node) -> Policy:
    if not _POLICY_NAME.fullmatch(name):
        key.refuse(f"invalid policy name {quoted(name)}: letters, digits, _ . - and at most 63 of them")
    fields = node.mapping(f"policy {name}")
    _refuse_others(fields, _POLICY_KEYS, "key")
    if "for" not in fields:
        node.refuse(f"policy {name} has no for: whom is it about?")
    subject, published = _subject(fields["for"][1])
    number = 0
    rules = {}
    for word in [word for word in fields if word in tuple(Direction)]:
        rules[Direction(word)], number = _rules(fields[word][1], Direction(word), number)
    if not rules:
        node.refuse(f"policy {name} says nothing: it has neither in nor out")
    if published and Direction.OUT in rules:
        fields["out"][0].refuse("published: is about who comes in by that port, and out is not")
    mode = _choice(fields, "mode", {mode.value: mode for mode in Mode}, Mode.ENFORCE)
    refusals = {action.value: action for action in (Action.REJECT, Action.DROP)}
    refuse = _choice(fields, "refuse", refusals, Action.REJECT)
    ingress, egress = (rules.get(direction, Rules()) for direction in (Direction.IN, Direction.OUT))
    return Policy(name, subject, ingress, egress, mode, refuse, published, where=key.where)


def _subject(node: Node) -> tuple[Selector, PortScope | None]:
    """Whom it is for, and the published port that it is about alone."""
    if node.fields is None:
        word = node.word("for")
        with _at(node):
            selector = parse_who(word, word)
        if not (selector.name or selector.labels):
            node.refuse(
                f"for: {quoted(word)} is no container: a name, KEY=VALUE of a label, or {{network: …}}"
            )
        return selector, None
    fields = node.fields
    _refuse_others(fields, _SUBJECT_KEYS, "key of for")
    published = None
    if "published" in fields:
        port = fields["published"][1]
        found = _PUBLISHED.fullmatch(port.word("published"))
        if found is None or not 1 <= int(found[1]) <= 65535:
            port.refuse(f"invalid published port {quoted(port.text or '')}: expected 1 to 65535, or PORT/udp")
        number = int(found[1])
        published = PortScope(PORT_PROTOCOLS[found[2] or "tcp"], number, number)
    return _members(node, fields, "for"), published


def _members(node: Node, fields: Fields, what: str) -> Selector:
    """Containers, by all that is given of name, label and network."""
    name, network = (fields[key][1].word(key) if key in fields else "" for key in ("name", "network"))
    labels = []
    if "label" in fields:
        one = fields["label"][1]
        for label in one.items if one.items is not None else [one]:
            with _at(label, label.word("label")) as word:
                labels.append(parse_label(word))
    if not (name or network or labels):
        node.refuse(f"{what} is empty: it needs a name, a label or a network")
    return Selector(name=name, network=network, labels=tuple(labels))


def _rules(node: Node, direction: Direction, number: int) -> tuple[Rules, int]:
    """Those of a direction. `number`: of the last rule before them; that of their last is returned."""
    fields = node.mapping(direction)
    _refuse_others(fields, _RULES_KEYS, f"key of {direction}")
    lists: dict[str, tuple[Rule, ...]] = {}
    for word in [word for word in fields if word in ("allow", "deny")]:
        nodes = fields[word][1].listed(word)
        lists[word] = tuple(
            _rule(one, direction, word == "deny", number + n) for n, one in enumerate(nodes, 1)
        )
        number += len(nodes)
    if not fields:
        node.refuse(f"{direction} says nothing: it has neither allow, deny nor rate")
    rate = 0
    if "rate" in fields:
        one = fields["rate"][1]
        found = re.fullmatch(r"([0-9]{1,7})/s", one.word("rate"))
        rate = int(found[1]) if found else 0
        if not 1 <= rate <= MOST_A_SECOND:
            one.refuse(f"invalid rate {quoted(one.text or '')}: expected openings a second, as in 20/s")
    return Rules(lists.get("deny", ()), lists.get("allow"), rate), number


def _rule(node: Node, direction: Direction, denies: bool, number: int) -> Rule:
    excepted: list[Prefix] = []
    if node.fields is None:
        with _at(node, node.word("a peer")) as word:
            peer, ports, protocol = split_peer(word)
    else:
        peer, ports, protocol = _spelt(node, node.fields)
        for one in node.fields["except"][1].listed("except") if "except" in node.fields else ():
            with _at(one, one.word("except")) as word:
                excepted.append(parse_address_or_prefix(word, "prefix"))
    with _at(node):
        rule = make_rule(peer, ports, protocol, direction, denies, excepted)
    return Rule(rule.peer, rule.ports, rule.protocol, number, node.where)


def _spelt(node: Node, fields: Fields) -> tuple[Selector, str | None, str | None]:
    """Of a rule that is no string: for who has a name that strings cannot have, and for `except`."""
    _refuse_others(fields, _RULE_KEYS, "key of a rule")
    members = {"name", "label", "network"} & set(fields)
    if len({"peer", "dns"} & set(fields)) + bool(members) != 1:
        node.refuse("a rule is for one of peer, dns, or a container by name, label and network together")
    ports = protocol = None
    if "ports" in fields:
        given = fields["ports"][1]
        ports = ",".join(one.word("ports") for one in (given.items if given.items is not None else [given]))
    if "protocol" in fields:
        protocol = fields["protocol"][1].word("protocol")
    if members:
        return _members(node, fields, "a rule"), ports, protocol
    (kind,) = {"peer", "dns"} & set(fields)
    with _at(fields[kind][1], fields[kind][1].word(kind)) as word:
        if kind == "dns":
            return Selector(domain=parse_domain(word)), ports, protocol
        peer, *own = split_peer(word)
    if own != [None, None] and (ports, protocol) != (None, None):
        node.refuse("ports and protocol stand in peer or beside it, not both")
    return peer, own[0] or ports, own[1] or protocol


@contextmanager
def _at(node: Node, word: str = "") -> Iterator[str]:
    """Errors of what is made of the word name the node's place."""
    try:
        yield word
    except ConfigError as error:
        node.refuse(error.message)


def _refuse_others(fields: Fields, known: Collection[str], what: str) -> None:
    for name, (key, _) in fields.items():
        if name not in known:
            key.refuse(f"unknown {what} {quoted(name)}: there {_are(known)}{_meant(name, known)}")


def _choice(fields: Fields, key: str, known: Mapping[str, T], default: T) -> T:
    if key not in fields:
        return default
    word = fields[key][1].word(key)
    if word not in known:
        fields[key][1].refuse(f"unknown {key} {quoted(word)}: there {_are(known)}{_meant(word, known)}")
    return known[word]


def _are(known: Collection[str]) -> str:
    return f"is {next(iter(known))}" if len(known) == 1 else f"are {', '.join(known)}"


def _meant(word: str, known: Collection[str]) -> str:
    found = meant(word.lower(), known)
    return f"; did you mean {found}?" if found else ""
