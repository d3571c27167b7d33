# SPDX-License-Identifier: Apache-2.0
"""Peers as people write them, WHO[:PORTS][/PROTOCOL], to rules and back. Pure.

WHO is one of `WORDS`, an address or a prefix, KEY=VALUE of a label, a container's name, or a DNS name, which has a dot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from datapath.errors import ConfigError, meant, quoted
from datapath.model.parsing import Prefix, parse_address_or_prefix, port_range
from datapath.model.policies import RULE_PROTOCOLS, WORDS, Direction, Rule, Selector

_PEER = re.compile(r"(\[[^]]*\]|[0-9.]+(?:/[0-9]+)?|[^:/]*)(?::([^/]*))?(?:/(.*))?", re.DOTALL)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]+)?")
_NAME = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9_.*?-]*")
_DOMAIN = re.compile(
    r"(?=.{1,253}\.?$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)+[A-Za-z][A-Za-z0-9-]{0,62}\.?"
)
# Of labels that are one word in a peer.
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=[A-Za-z0-9_.-]*")
# What addresses can be taken out of.
_WIDE = ("any", "outside", "internet", "private", "lan")


def split_peer(text: str) -> tuple[Selector, str | None, str | None]:
    """Who, the ports and the protocol that the text names; None: it names none. ConfigError."""
    if not text.isprintable():
        raise ConfigError(f"{quoted(text)} has characters that cannot be printed")
    bare = _IPV6.fullmatch(text)
    if text.count(":") > 1 and not text.startswith("[") and "=" not in text and not (bare and bare[1]):
        raise ConfigError(f"{quoted(text)}: an IPv6 address needs brackets, as in [2001:db8::1]:443")
    found = _PEER.fullmatch(f"[{text}]" if bare else text)
    if found is None or not found[1]:
        raise ConfigError(f"invalid peer {quoted(text)}: expected WHO[:PORTS][/PROTOCOL]")
    if found[1].isdigit():
        raise ConfigError(f"{quoted(text)} names nobody: ports stand behind a peer, as in any:{found[1]}")
    return parse_who(found[1], text), found[2], found[3]


def parse_who(who: str, text: str) -> Selector:
    """Without ports. `text`: as errors show it."""
    if who.startswith("["):
        return Selector(prefix=_prefix(who[1:-1], text))
    if who in WORDS:
        return Selector(who)
    if re.fullmatch(r"[0-9.]+(/[0-9]+)?", who):
        return Selector(prefix=_prefix(who, text))
    if "=" in who:
        return Selector(labels=(parse_label(who),))
    near = _near_word(who)
    if not _NAME.fullmatch(who) or near:
        hint = f"; did you mean {near}? (a container of that name is {{name: {quoted(who)}}})" if near else ""
        known = f"neither a name, an address, KEY=VALUE nor one of {', '.join(WORDS)}"
        raise ConfigError(f"unknown peer {quoted(text)}: it is {known}{hint}")
    if "." in who and "*" not in who and "?" not in who:
        return Selector(domain=parse_domain(who), either=True)
    if "." in who:
        raise ConfigError(
            f"{quoted(text)}: DNS names have no * and ?; of containers write {{name: {quoted(who)}}}"
        )
    return Selector(name=who)


@cache
def _near_word(name: str) -> str | None:
    return meant(name.lower(), WORDS)


def _prefix(text: str, whole: str) -> Prefix:
    try:
        return parse_address_or_prefix(text, "prefix")
    except ConfigError as error:
        raise ConfigError(f"{error} in {quoted(whole)}" if text != whole else str(error)) from None


def parse_label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"invalid label {quoted(text)}: expected KEY=VALUE")
    return key, value


def parse_domain(text: str) -> str:
    """In lower case, without a dot at its end."""
    if not _DOMAIN.fullmatch(text):
        raise ConfigError(f"invalid DNS name {quoted(text)}")
    return text.lower().removesuffix(".")


def parse_ports(text: str) -> tuple[tuple[int, int], ...]:
    """`80`, `80,443`, `8000-8999`: disjoint ranges in order."""
    ranges = []
    for word in text.split(","):
        try:
            first, last = port_range(word.strip())
        except ValueError:
            ends = word.strip().split("-")
            turned = len(ends) == 2 and all(end.isdecimal() for end in ends) and int(ends[0]) > int(ends[1])
            hint = f"; did you mean {ends[1]}-{ends[0]}?" if turned else ""
            raise ConfigError(f"invalid port {quoted(word)}: expected 1 to 65535, or a range{hint}") from None
        if first == 0:
            raise ConfigError(
                f"invalid port {quoted(word)}: there is no port 0; without ports it is all of them"
            )
        ranges.append((first, last))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def make_rule(
    peer: Selector,
    ports: str | None,
    protocol: str | None,
    direction: Direction,
    denies: bool,
    excepted: Sequence[Prefix] = (),
) -> Rule:
    """The rule, if there can be such a one. `ports`, `protocol`: None: not given; of ports alone TCP's are meant."""
    if protocol is not None and protocol.lower() not in RULE_PROTOCOLS:
        near = meant(protocol.lower(), RULE_PROTOCOLS)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"unknown protocol {quoted(protocol)}: there are {', '.join(RULE_PROTOCOLS)}{hint}")
    name = (protocol or ("tcp" if ports is not None else "")).lower()
    if ports is not None and name == "icmp":
        raise ConfigError("icmp has no ports")
    if peer.word == "self" and denies:
        raise ConfigError("self cannot be denied: it always passes")
    if (peer.word == "dns" or peer.domain) and direction == Direction.IN:
        raise ConfigError(f"{peer.domain or 'dns'} is for out: who comes in has no name, write its address")
    if peer.domain and denies:
        raise ConfigError(f"{peer.domain} can be allowed, not denied: its addresses can have other names")
    if peer.word in ("dns", "self") and (ports is not None or protocol is not None):
        raise ConfigError(f"{peer.word} has neither ports nor a protocol")
    if excepted and peer.prefix is None and peer.word not in _WIDE:
        raise ConfigError(f"except: goes with a prefix, or {', '.join(_WIDE)}")
    for prefix in excepted:
        if peer.prefix is not None and not (
            prefix.version == peer.prefix.version and prefix.network_address in peer.prefix
        ):
            raise ConfigError(f"except: {prefix} is not in {peer.prefix}")
    return Rule(
        replace(peer, excepted=tuple(excepted)), parse_ports(ports) if ports is not None else (), name
    )


# ---- and back ------------------------------------------------------------------------------------------------------


def rule_text(rule: Rule) -> str:
    """As it stands in a list of a policy file: the string, or a mapping where there is none that means the same."""
    peer = rule.peer
    ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in rule.ports)
    protocol = "" if ports and rule.protocol == "tcp" else rule.protocol
    who = peer.word or peer.domain or _prefix_text(peer.prefix)
    if not who and peer == Selector(name=peer.name) and _is_plain(peer.name):
        who = peer.name
    label = "=".join(peer.labels[0]) if len(peer.labels) == 1 else ""
    if peer == Selector(labels=peer.labels) and _LABEL.fullmatch(label):
        who = label
    if who and not peer.excepted:
        return quoted_text(who + (f":{ports}" if ports else "") + (f"/{protocol}" if protocol else ""))
    fields: dict[str, str | list[str]] = {"peer": who, "name": peer.name, "network": peer.network}
    fields |= {
        "label": [f"{key}={value}" for key, value in peer.labels],
        "ports": ports,
        "protocol": protocol,
    }
    fields["except"] = [str(prefix) for prefix in peer.excepted]
    return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in fields.items() if value) + "}"


def _prefix_text(prefix: Prefix | None) -> str:
    if prefix is None:
        return ""
    text = str(prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix)
    return f"[{text}]" if prefix.version == 6 else text


def _is_plain(name: str) -> bool:
    """A container's name that as a peer can be nothing else."""
    clear = name not in WORDS and not _near_word(name)
    return bool(_NAME.fullmatch(name)) and clear and "." not in name and not name.isdigit()


def _value(value: str | list[str]) -> str:
    return quoted_text(value) if isinstance(value, str) else f"[{', '.join(map(quoted_text, value))}]"


def quoted_text(text: str) -> str:
    """As YAML and JSON read it alike."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
