# SPDX-License-Identifier: Apache-2.0
"""Docker's nftables rules as text. Pure.

One table a family, `docker-bridges`. Its base chains ask verdict maps, by the name of the device, which network's
chains a packet is for; a network has four of its own, and one more with its published ports, so that another port
is put there without rewriting the others. A rule is written as `nft list` shows it, but for what it has counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from datapath.dataplane.structs import LinkKey
from datapath.drivers.linuxbridge.rules import Differences, Published, address, opened, published, subnet
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping

TABLE = "docker-bridges"
DNAT, RAW = "nat-prerouting-and-output", "raw-PREROUTING"
_MAPS = {
    "filter-forward-in-jumps": "filter-forward-in",
    "filter-forward-out-jumps": "filter-forward-out",
    "nat-postrouting-in-jumps": "nat-postrouting-in",
    "nat-postrouting-out-jumps": "nat-postrouting-out",
}
_KNOWN = "ct state established,related counter accept"

# Base chain -> what it hooks into, and its rules.
_SHARED = {
    "filter-FORWARD": (
        "type filter hook forward priority filter; policy accept;",
        ("oifname vmap @filter-forward-in-jumps", "iifname vmap @filter-forward-out-jumps"),
    ),
    "nat-OUTPUT": (
        "type nat hook output priority -100; policy accept;",
        (f"fib daddr type local counter jump {DNAT}",),
    ),
    "nat-POSTROUTING": (
        "type nat hook postrouting priority srcnat; policy accept;",
        ("iifname vmap @nat-postrouting-out-jumps", "oifname vmap @nat-postrouting-in-jumps"),
    ),
    "nat-PREROUTING": (
        "type nat hook prerouting priority dstnat; policy accept;",
        (f"fib daddr type local counter jump {DNAT}",),
    ),
}


class Rule(NamedTuple):
    """`text` as `nft list` shows it, without figures. `first`: it is put before the chain's other rules."""

    chain: str
    text: str
    first: bool = False


BASE = tuple(Rule(chain, text) for chain, (_, texts) in _SHARED.items() for text in texts)


def family(version: int) -> str:
    return "ip" if version == 4 else "ip6"


# ---- wanted rules ----------------------------------------------------------------------------


def chains(network: Network) -> tuple[str, ...]:
    """The network's own. That of the ports comes last: another one leads there."""
    return (*_jumps(network), _ports_chain(network))


def _jumps(network: Network) -> tuple[str, ...]:
    """Those that the verdict maps lead to."""
    return tuple(f"{kind}__{network.device}" for kind in _MAPS.values())


def _ports_chain(network: Network) -> str:
    return f"filter-forward-ports__{network.device}"


def network_rules(network: Network, version: int) -> list[Rule]:
    into, out, nat_in, nat_out, ports = chains(network)
    bridge, fam, prefix = f'"{network.device}"', family(version), subnet(network, version)
    icc = "accept" if network.icc else "drop"
    rules = [Rule(into, _KNOWN), Rule(out, _KNOWN)]
    if network.internal:
        return [
            *rules,
            Rule(into, f'iifname != {bridge} counter drop comment "INTERNAL NETWORK INGRESS"'),
            Rule(into, f"goto {ports}"),
            Rule(ports, f'counter {icc} comment "ICC"'),
            Rule(out, f'oifname != {bridge} counter drop comment "INTERNAL NETWORK EGRESS"'),
        ]
    rules += [
        Rule(into, f'iifname {bridge} counter {icc} comment "ICC"'),
        Rule(into, f"goto {ports}"),
        Rule(ports, 'counter drop comment "UNPUBLISHED PORT DROP"'),
        Rule(out, 'counter accept comment "OUTGOING"'),
        Rule(nat_in, 'fib saddr type local counter masquerade comment "MASQUERADE FROM HOST"'),
    ]
    if network.masquerade:
        text = f'oifname != {bridge} {fam} saddr {prefix} counter masquerade comment "MASQUERADE"'
        rules.append(Rule(nat_out, text))
    return rules


def endpoint_rules(network: Network, endpoint: Endpoint, version: int) -> list[Rule]:
    """Nobody but its own network addresses the container itself; unless that is what answers do."""
    ip = address(endpoint, version)
    if ip is None or network.internal or not network.masquerade:
        return []
    text = f'{family(version)} daddr {ip} iifname != "{network.device}" counter drop comment "DROP DIRECT ACCESS"'
    return [Rule(RAW, text)]


def port_rules(
    network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping], version: int
) -> list[Rule]:
    """Each once: two host ports that lead to one of the container's share two of their three."""
    ports = list(published(network, endpoint, mappings, version))
    return list(dict.fromkeys(rule for port in ports for rule in _port_rules(port, network)))


def _port_rules(port: Published, network: Network) -> Iterator[Rule]:
    _, _, nat_in, _, ports = chains(network)
    fam, ip = family(port.address.version), port.address
    target = f"[{ip}]" if ip.version == 6 else str(ip)
    link_local = "ip6 saddr != fe80::/10 " if ip.version == 6 else ""
    here = f"{fam} daddr {port.host} " if port.host else ""
    dnat = f'{port.proto} dport {port.host_port} counter dnat to {target}:{port.port} comment "DNAT"'
    yield Rule(DNAT, f"{link_local}{here}{dnat}")
    yield Rule(ports, f"{fam} daddr {ip} {port.proto} dport {port.port} counter accept", True)
    own = f'{port.proto} dport {port.port} counter masquerade comment "MASQ TO OWN PORT"'
    yield Rule(nat_in, f"{fam} saddr {ip} {fam} daddr {ip} {own}")
    if port.host and port.host.version == 4 and port.host.is_loopback:
        drop = f'{port.proto} dport {port.host_port} counter drop comment "DROP REMOTE LOOPBACK"'
        yield Rule(RAW, f'iifname != "lo" {here}{drop}')


def link_rules(network: Network, links: Iterable[LinkKey], version: int) -> list[Rule]:
    """A link opens the server's port to the client; its answers are of a known connection."""
    chain = _ports_chain(network) if network.internal else chains(network)[0]
    fam, rules = family(version), []
    for one in opened(links, version):
        where = f"{fam} saddr {one.client} {fam} daddr {one.server}"
        rules.append(Rule(chain, f"{where} {one.proto} dport {one.port} counter accept", True))
    return rules


# ---- present rules ---------------------------------------------------------------------------


class Placed(NamedTuple):
    """A rule that is there, with the number by which nft knows it."""

    rule: Rule
    handle: int


@dataclass(frozen=True, slots=True)
class Present:
    """What `nft --handle list` shows of a table or chain. `elements`: which devices the maps name; `jumps`: to which
    chains they lead."""

    rules: tuple[Placed, ...]
    elements: tuple[str, ...]
    jumps: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Present:
        rules, chain = [], ""
        for line in text.splitlines():
            words, _, handle = line.strip().rpartition(" # handle ")
            if words.startswith("chain "):
                chain = words.split()[1]
            elif words and chain and not words.startswith(("map ", "table ")):
                plain = re.sub(r"counter packets [0-9]+ bytes [0-9]+", "counter", words)
                rules.append(Placed(Rule(chain, plain), int(handle)))
        found = re.findall(r'"([^"]+)" : jump ([^\s,}]+)', text)
        return cls(tuple(rules), tuple(name for name, _ in found), frozenset(chain for _, chain in found))


def plain(rules: Iterable[Rule]) -> set[Rule]:
    """The rules as the tool lists them, wherever in their chain they were inserted."""
    return {rule._replace(first=False) for rule in rules}


def missing(present: Iterable[Placed], wanted: Iterable[Rule]) -> list[Rule]:
    known = {placed.rule for placed in present}
    return [rule for rule in wanted if rule._replace(first=False) not in known]


def loopback_orphans(rules: Iterable[Rule]) -> set[Rule]:
    """Rules that keep others from ports at 127.0.0.0/8 which are not published any more."""
    rules = list(rules)
    published = {rule.text.partition(" counter dnat ")[0] for rule in rules if rule.chain == DNAT}
    return {
        rule
        for rule in rules
        if (
            shape := re.fullmatch(
                r'iifname != "lo" (.*) counter drop comment "DROP REMOTE LOOPBACK"', rule.text
            )
        )
        and shape[1] not in published
    }


def of_container(ip: Address) -> Callable[[Rule], bool]:
    """Is the rule about that container's ports, or about who addresses it."""
    words = re.compile(rf"(daddr|dnat to) \[?{re.escape(str(ip))}(\]?:| )")
    return lambda rule: words.search(rule.text) is not None and not _is_link(rule)


def of_links(ip: Address) -> Callable[[Rule], bool]:
    """Is the rule about what links open at that container, or to it."""
    words = re.compile(rf"[sd]addr {re.escape(str(ip))} ")
    return lambda rule: words.search(rule.text) is not None and _is_link(rule)


def _is_link(rule: Rule) -> bool:
    """It names two containers and accepts."""
    return " saddr " in rule.text and rule.text.endswith("counter accept")


def of_network(network: Network) -> Callable[[Rule], bool]:
    """Is the rule, in a chain that networks share, about this one or one of its containers."""
    device = f'iifname != "{network.device}"'
    prefixes = [one.prefix for one in network.subnets]

    def belongs(rule: Rule) -> bool:
        target = re.search(r"dnat to \[?([0-9a-f.:]+?)\]?:[0-9]+( |$)", rule.text)
        return device in rule.text or bool(target and any(ip_address(target[1]) in p for p in prefixes))

    return belongs


# ---- how it is changed -----------------------------------------------------------------------


def change(version: int, add: Iterable[Rule] = (), delete: Iterable[Placed] = ()) -> str:
    """The input of `nft -f -` that deletes and adds rules; "" if there is nothing to do."""
    table = f"{family(version)} {TABLE}"
    lines = [f"delete rule {table} {rule.chain} handle {handle}" for rule, handle in delete]
    lines += [f"{'insert' if rule.first else 'add'} rule {table} {rule.chain} {rule.text}" for rule in add]
    return "".join(f"{line}\n" for line in lines)


def align(
    version: int, network: Network, present: Iterable[Placed], wanted: Collection[Rule], ip: Address
) -> str:
    """The input that makes the rules about a container's ports these, and the chains that they need."""
    present = list(present)
    about, keep = of_container(ip), plain(wanted)
    gone = [placed for placed in present if about(placed.rule) and placed.rule not in keep]
    left = {placed.rule for placed in present if placed not in gone} | keep
    gone += [placed for placed in present if placed.rule in loopback_orphans(left)]
    text = change(version, add=missing(present, wanted), delete=gone)
    return text and "".join(f"{line}\n" for line in _chains(version, network)) + text


def compare(
    version: int,
    networks: Collection[Network],
    present: Present,
    wanted: Mapping[Rule, str],
    ignored: Callable[[Rule], bool],
) -> Differences:
    """`wanted`: rule -> whose it is, in the order in which they are put. `ignored`: in the middle of something, so
    neither missing nor too much.

    A network in whose chains something is wrong is written anew; in chains that networks share only what differs is
    touched.
    """
    own = {chain for network in networks for chain in chains(network)}
    structure = [*BASE, *(rule for network in networks for rule in network_rules(network, version))]
    places = {rule: place for place, rule in enumerate(structure)}
    ranks = {
        rule._replace(first=False): -1 if rule.first else places.get(rule, len(places)) for rule in wanted
    }
    loose = loopback_orphans({placed.rule for placed in present.rules} | ranks.keys())
    theirs = [of_network(network) for network in networks]
    kept: dict[str, dict[Rule, None]] = {}
    gone: list[Placed] = []
    for placed in present.rules:
        rule, here = placed.rule, kept.setdefault(placed.rule.chain, {})
        if rule in ranks and rule not in here:
            here[rule] = None
            continue
        ours = rule in ranks or rule in loose or rule.chain in own or rule.chain in _SHARED
        ours = ours or (rule.chain in (DNAT, RAW) and any(belongs(rule) for belongs in theirs))
        if ours and not ignored(rule):
            gone.append(placed)
    missing = {
        rule: owner
        for rule, owner in wanted.items()
        if rule._replace(first=False) not in kept.get(rule.chain, {}) and not ignored(rule)
    }
    lost = {jump: n for n in networks for jump in _jumps(n) if jump not in present.jumps}
    disordered = [
        chain
        for chain, here in kept.items()
        if chain not in (DNAT, RAW) and [ranks[r] for r in here] != sorted(ranks[r] for r in here)
    ]
    touched = {*(r.chain for r in missing), *(placed.rule.chain for placed in gone), *disordered, *lost}
    anew = [network for network in networks if touched & {*chains(network), *_SHARED}]
    again = {chain for network in anew for chain in chains(network)}
    add = [
        r
        for r in wanted
        if r not in places and (r.chain in again or (r in missing and r.chain in (DNAT, RAW)))
    ]
    text = "".join(prepare(network, version) for network in anew)
    if add and not anew:
        text = "".join(f"{line}\n" for line in _shared_chains(version))
    text += change(version, add, [placed for placed in gone if placed.rule.chain in (DNAT, RAW)])
    return Differences(
        [(f"network {network.name}", f"the jump to {jump}") for jump, network in lost.items()]
        + [(owner, f"{rule.chain} {rule.text}") for rule, owner in missing.items()],
        [f"{placed.rule.chain} {placed.rule.text}" for placed in gone],
        disordered,
        text,
    )


def _chains(version: int, network: Network) -> list[str]:
    """Makes the chains that rules about a network's containers are put in, unless they are there."""
    table = f"{family(version)} {TABLE}"
    return [*_shared_chains(version), *(f"add chain {table} {chain}" for chain in chains(network))]


def _shared_chains(version: int) -> list[str]:
    table = f"{family(version)} {TABLE}"
    raw = "{ type filter hook prerouting priority raw; policy accept; }"
    return [f"add table {table}", f"add chain {table} {DNAT}", f"add chain {table} {RAW} {raw}"]


def prepare(network: Network, version: int) -> str:
    """The input that makes the table, what networks share, and the network's own chains. Chains
    that exist already are filled anew."""
    table = f"{family(version)} {TABLE}"
    lines = _shared_chains(version)
    lines += [f"add map {table} {name} {{ type ifname : verdict; }}" for name in _MAPS]
    for chain, (hook, texts) in _SHARED.items():
        lines += [f"add chain {table} {chain} {{ {hook} }}", f"flush chain {table} {chain}"]
        lines += [f"add rule {table} {chain} {text}" for text in texts]
    for chain in chains(network):
        lines += [f"add chain {table} {chain}", f"flush chain {table} {chain}"]
    for name, kind in _MAPS.items():
        jump = f"{kind}__{network.device}"
        lines.append(f'add element {table} {name} {{ "{network.device}" : jump {jump} }}')
    return "".join(f"{line}\n" for line in lines) + change(version, network_rules(network, version))


def clear(network: Network, version: int, present: Present) -> str:
    """The input that takes the network's rules away, and the table if no other network is left. `present`: the
    whole table."""
    table = f"{family(version)} {TABLE}"
    if not set(present.elements) - {network.device}:
        return f"delete table {table}\n"
    theirs = of_network(network)
    shared = [placed for placed in present.rules if placed.rule.chain in (DNAT, RAW)]
    unwanted = {placed.rule for placed in shared if theirs(placed.rule)}
    unwanted |= loopback_orphans({placed.rule for placed in shared} - unwanted)
    gone = [placed for placed in shared if placed.rule in unwanted]
    lines = []
    # Made once more, so that taking them away does not fail if they are not there.
    lines += [f"add chain {table} {chain}" for chain in chains(network)]
    for name, kind in _MAPS.items():
        element = f'"{network.device}" : jump {kind}__{network.device}'
        lines += [
            f"add element {table} {name} {{ {element} }}",
            f"delete element {table} {name} {{ {element} }}",
        ]
    lines += [f"flush chain {table} {chain}" for chain in chains(network)]
    lines += [f"delete chain {table} {chain}" for chain in chains(network)]
    return change(version, delete=gone) + "".join(f"{line}\n" for line in lines)
