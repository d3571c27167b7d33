# SPDX-License-Identifier: Apache-2.0
"""Docker's iptables rules as text. Pure.

A rule is written exactly as `iptables-save` shows it, so that what there is can be compared with what there is to
be. What Docker would do in hundreds of calls is one call of `iptables-restore --noflush` here.

    filter  FORWARD → DOCKER-USER, DOCKER-FORWARD → DOCKER-CT (what is known), DOCKER-INTERNAL (what an internal
            network keeps in and out), DOCKER-BRIDGE → DOCKER (published ports; the rest is dropped)
    nat     PREROUTING, OUTPUT → DOCKER (one DNAT a port); POSTROUTING (masquerading)
    raw     PREROUTING (nobody addresses a container past its ports)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import groupby
from typing import NamedTuple

from datapath.dataplane.entries import LinkKey
from datapath.drivers.linuxbridge.rules import Differences, Published, address, opened, published, subnet
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.parsing import Address, Prefix
from datapath.model.ports import PortMapping

TABLES = ("raw", "nat", "filter")
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


class Rule(NamedTuple):
    """`text` is what follows the chain in `iptables-save`. `first`: it is put before the chain's other rules."""

    table: str
    chain: str
    text: str
    first: bool = False


class Chain(NamedTuple):
    table: str
    name: str


# The order counts: of those that are put first the last one ends up first.
BASE = (
    Rule("nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER"),
    Rule("nat", "OUTPUT", "-m addrtype --dst-type LOCAL -j DOCKER"),
    Rule("filter", "FORWARD", "-j DOCKER-FORWARD", True),
    Rule("filter", "FORWARD", "-j DOCKER-USER", True),
    Rule("filter", "DOCKER-FORWARD", "-j DOCKER-CT"),
    Rule("filter", "DOCKER-FORWARD", "-j DOCKER-INTERNAL"),
    Rule("filter", "DOCKER-FORWARD", "-j DOCKER-BRIDGE"),
)
USER = Chain("filter", "DOCKER-USER")  # its rules are the host's owner's
CHAINS = (
    Chain("nat", "DOCKER"),
    *(
        Chain("filter", n)
        for n in ("DOCKER", "DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-FORWARD", "DOCKER-INTERNAL")
    ),
    USER,
)


# ---- what there is to be ---------------------------------------------------------------------


def network_rules(network: Network, version: int) -> list[Rule]:
    """Those of the network itself, in the order in which they are put there."""
    bridge, prefix = network.device, subnet(network, version)
    within = f"-i {bridge} -o {bridge}"
    if network.internal:
        return _internal_rules(network, prefix)
    rules = [
        Rule("filter", "DOCKER-CT", f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        Rule("filter", "DOCKER-BRIDGE", f"-o {bridge} -j DOCKER"),
        Rule("filter", "DOCKER", f"! -i {bridge} -o {bridge} -j DROP"),
    ]
    if network.icc:
        rules.append(Rule("filter", "DOCKER-FORWARD", f"-i {bridge} -j ACCEPT"))
    else:
        rules.append(Rule("filter", "DOCKER-FORWARD", f"{within} -j DROP"))
        rules.append(Rule("filter", "DOCKER-FORWARD", f"-i {bridge} ! -o {bridge} -j ACCEPT"))
    if network.masquerade:
        rules.append(Rule("nat", "POSTROUTING", f"-s {prefix} ! -o {bridge} -j MASQUERADE", True))
    local = f"-o {bridge} -m addrtype --src-type LOCAL -j MASQUERADE"
    return [*rules, Rule("nat", "POSTROUTING", local, True)]


def _internal_rules(network: Network, prefix: Prefix) -> list[Rule]:
    bridge = network.device
    within = f"-i {bridge} -o {bridge}"
    elsewhere, beyond = ("", "") if prefix.version == 4 else (f"! -i {bridge} ", f"! -o {bridge} ")
    rules = [
        Rule("filter", "DOCKER-INTERNAL", f"! -s {prefix} {elsewhere}-o {bridge} -j DROP"),
        Rule("filter", "DOCKER-INTERNAL", f"! -d {prefix} -i {bridge} {beyond}-j DROP"),
        Rule("filter", "DOCKER-FORWARD", f"{within} -j {'ACCEPT' if network.icc else 'DROP'}"),
    ]
    if not network.icc:  # so that links open something here too
        rules.append(Rule("filter", "DOCKER-BRIDGE", f"{within} -j DOCKER"))
    return rules


def endpoint_rules(network: Network, endpoint: Endpoint, version: int) -> list[Rule]:
    """Nobody but its own network addresses the container itself; unless that is what answers do."""
    ip = address(endpoint, version)
    if ip is None or network.internal or not network.masquerade:
        return []
    return [Rule("raw", "PREROUTING", f"-d {_host(ip)} ! -i {network.device} -j DROP")]


def port_rules(
    network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping], version: int
) -> list[Rule]:
    """Each once: two host ports that lead to one of the container's share two of their three."""
    ports = list(published(network, endpoint, mappings, version))
    rules = [rule for port in ports for rule in _port_rules(port, network.device)]
    return list(dict.fromkeys(rules))


def _port_rules(port: Published, bridge: str) -> Iterator[Rule]:
    ip, match = _host(port.address), f"-p {port.proto} -m {port.proto} --dport"
    target = f"[{port.address}]" if port.address.version == 6 else str(port.address)
    here = f"-d {_host(port.host)} " if port.host else ""
    link_local = "! -s fe80::/10 " if port.address.version == 6 else ""
    yield Rule(
        "nat",
        "DOCKER",
        f"{link_local}{here}{match} {port.host_port} -j DNAT --to-destination {target}:{port.port}",
    )
    yield Rule("nat", "POSTROUTING", f"-s {ip} -d {ip} {match} {port.port} -j MASQUERADE")
    yield Rule("filter", "DOCKER", f"-d {ip} ! -i {bridge} -o {bridge} {match} {port.port} -j ACCEPT", True)
    if port.host and port.host.version == 4 and port.host.is_loopback:
        yield Rule("raw", "PREROUTING", f"{here}! -i lo {match} {port.host_port} -j DROP")


def link_rules(network: Network, links: Iterable[LinkKey], version: int) -> list[Rule]:
    """A link opens the server's port to the client, and the way back."""
    within = f"-i {network.device} -o {network.device}"
    rules = []
    for one in opened(links, version):
        client, server, proto = _host(one.client), _host(one.server), one.proto
        match = f"{within} -p {proto} -m {proto}"
        rules.append(
            Rule("filter", "DOCKER", f"-s {client} -d {server} {match} --dport {one.port} -j ACCEPT", True)
        )
        rules.append(
            Rule("filter", "DOCKER", f"-s {server} -d {client} {match} --sport {one.port} -j ACCEPT", True)
        )
    return rules


def _host(ip: Address) -> str:
    return f"{ip}/{ip.max_prefixlen}"


# ---- what there is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Present:
    """What `iptables-save` shows: the chains with their policies ("-": a chain of somebody's own), the rules in
    their order. `nft`: the tool keeps them as nftables, where a table that nobody needs can be taken away."""

    chains: Mapping[Chain, str]
    rules: tuple[Rule, ...]
    nft: bool

    @classmethod
    def parse(cls, text: str) -> Present:
        chains: dict[Chain, str] = {}
        rules = []
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                name, policy, _ = line[1:].split(" ", 2)
                chains[Chain(table, name)] = policy
            elif line.startswith("-A "):
                _, chain, rest = line.split(" ", 2)
                rules.append(Rule(table, chain, rest))
        return cls(chains, tuple(rules), "(nf_tables)" in text.partition("\n")[0])


def plain(rules: Iterable[Rule]) -> set[Rule]:
    """As they are when they are there, whichever way they were put."""
    return {rule._replace(first=False) for rule in rules}


def missing(present: Present, wanted: Iterable[Rule]) -> list[Rule]:
    known = set(present.rules)
    return [rule for rule in wanted if rule._replace(first=False) not in known]


def of_container(ip: Address) -> Callable[[Rule], bool]:
    """Is the rule about that container's ports, or about who addresses it."""
    host, target = re.escape(_host(ip)), re.escape(f"[{ip}]" if ip.version == 6 else str(ip))
    shapes = {
        ("raw", "PREROUTING"): rf"-d {host} ! -i \S+ -j DROP",
        ("nat", "DOCKER"): rf".* --to-destination {target}:[0-9]+",
        ("nat", "POSTROUTING"): rf"-s {host} -d {host} .* -j MASQUERADE",
        ("filter", "DOCKER"): rf"-d {host} ! -i .* -j ACCEPT",
    }
    return lambda rule: re.fullmatch(shapes.get(rule[:2], "(?!)"), rule.text) is not None


def of_links(ip: Address) -> Callable[[Rule], bool]:
    """Is the rule about what links open at that container, or to it."""
    host = re.escape(_host(ip))
    shape = re.compile(rf"(-s {host} -d \S+|-s \S+ -d {host}) .* -j ACCEPT")
    return lambda rule: rule[:2] == ("filter", "DOCKER") and shape.fullmatch(rule.text) is not None


def of_network(network: Network) -> Callable[[Rule], bool]:
    """Is the rule about the network, or one of its containers, whoever that was."""
    device = re.compile(rf"-[io] {re.escape(network.device)}( |$)")
    address = re.compile(
        r".* --to-destination \[?([0-9a-f.:]+?)\]?:[0-9]+|-s (\S+)/[0-9]+ -d \2/[0-9]+ .* -j MASQUERADE"
    )
    prefixes = [one.prefix for one in network.subnets]

    def belongs(rule: Rule) -> bool:
        if device.search(rule.text):
            return rule[:2] != USER
        if rule[:2] not in (("nat", "DOCKER"), ("nat", "POSTROUTING")):
            return False
        found = address.fullmatch(rule.text)
        return found is not None and any(ip_address(found[1] or found[2]) in prefix for prefix in prefixes)

    return belongs


def orphans(rules: Iterable[Rule]) -> set[Rule]:
    """Rules that keep others from ports at 127.0.0.0/8 which are not published any more."""
    rules = list(rules)
    published = {rule.text.partition(" -j ")[0] for rule in rules if rule[:2] == ("nat", "DOCKER")}
    return {
        rule
        for rule in rules
        if rule[:2] == ("raw", "PREROUTING")
        and (shape := re.fullmatch(r"(-d 127\S+ )! -i lo (-p .* --dport [0-9]+) -j DROP", rule.text))
        and shape[1] + shape[2] not in published
    }


def is_unused(rules: Iterable[Rule]) -> bool:
    """There is nothing in our chains but what joins them: no network is left."""
    base, ours = plain(BASE), set(CHAINS) - {USER}
    return not any(rule[:2] in ours and rule not in base for rule in rules)


# ---- how it is changed -----------------------------------------------------------------------


def change(
    add: Iterable[Rule] = (),
    delete: Collection[Rule] = (),
    present: Present | None = None,
    chains: Iterable[Chain] = (),
    drop: Collection[Chain] = (),
) -> str:
    """The input of `iptables-restore --noflush` that makes these chains, deletes these rules of `present`, adds
    rules and removes chains; "" if there is nothing to do.

    Rules are deleted by number, the last first: by its text each would be looked for from the beginning.
    """
    lines: dict[str, list[str]] = {table: [] for table in TABLES}
    for chain in chains:
        lines[chain.table].append(f":{chain.name} - [0:0]")
    numbers: Counter[tuple[str, str]] = Counter()
    gone = []
    for rule in present.rules if present is not None and delete else ():
        numbers[rule[:2]] += 1
        if rule in delete:
            gone.append((rule.table, f"-D {rule.chain} {numbers[rule[:2]]}"))
    for table, line in reversed(gone):
        lines[table].append(line)
    for rule in add:
        place = "-I" if rule.first else "-A"
        lines[rule.table].append(f"{place} {rule.chain} {rule.text}")
    for chain in drop:
        lines[chain.table].append(f"-X {chain.name}")
    return _input(lines)


def _input(lines: Mapping[str, list[str]]) -> str:
    return "".join(f"*{table}\n" + "\n".join(text) + "\nCOMMIT\n" for table, text in lines.items() if text)


def change_by_text(delete: Iterable[Rule]) -> str:
    """The input that deletes rules which are all there, without knowing where."""
    ordered = sorted(delete)
    return "".join(
        f"*{table}\n" + "".join(f"-D {rule.chain} {rule.text}\n" for rule in rules) + "COMMIT\n"
        for table, rules in groupby(ordered, key=lambda rule: rule.table)
    )


def prepare(present: Present, rules: Iterable[Rule]) -> str:
    """The input that makes chains, what joins them, and these rules, as far as they are not there."""
    new = [chain for chain in CHAINS if chain not in present.chains]
    return change(add=missing(present, [*BASE, *rules]), chains=new)


def clear(present: Present, network: Network) -> str:
    """The input that deletes the network's rules, and our chains too if then nobody needs them. What the host's
    owner has put into DOCKER-USER stays, and is still asked."""
    unwanted = {rule for rule in present.rules if of_network(network)(rule)}
    left = [rule for rule in present.rules if rule not in unwanted]
    unwanted |= orphans(left)
    if not is_unused(left):
        return change(present=present, delete=unwanted)
    kept = any(rule[:2] == USER for rule in left)
    unwanted |= {rule for rule in plain(BASE) if not (kept and rule.text == f"-j {USER.name}")}
    chains = [chain for chain in CHAINS if chain in present.chains and not (kept and chain == USER)]
    return change(present=present, delete=unwanted, drop=chains)


def _rank(rule: Rule) -> int:
    """Which of our rules come before which others in a chain: those that are put first, what joins chains, the rest."""
    if rule in BASE:
        return -1 - BASE.index(rule) if rule.first else BASE.index(rule)
    return -1 if rule.first else len(BASE)


def is_stray(networks: Iterable[Network]) -> Callable[[Rule], bool]:
    """Would a rule that is not to be have to be ours: in one of our chains or of a shape that we write, and about one
    of these networks? Others' rules in chains that are not ours are theirs, whatever they name."""
    about = [of_network(network) for network in networks]
    shapes = {
        ("raw", "PREROUTING"): r"-d \S+ ! -i \S+ -j DROP",
        (
            "nat",
            "POSTROUTING",
        ): r"(-s \S+ ! -o \S+|-o \S+ -m addrtype --src-type LOCAL|-s \S+ -d \S+ .*) -j MASQUERADE",
    }

    def stray(rule: Rule) -> bool:
        ours = rule[:2] in CHAINS or re.fullmatch(shapes.get(rule[:2], "(?!)"), rule.text)
        return bool(ours) and any(belongs(rule) for belongs in about)

    return stray


def compare(
    present: Present,
    wanted: Mapping[Rule, str],
    stray: Callable[[Rule], bool],
    spared: Callable[[Rule], bool],
) -> Differences:
    """`wanted`: rule -> whose it is. `spared`: in the middle of something, so neither missing nor too much.

    Chains whose order would be wrong are written anew, but for what is not ours in them.
    """
    ranks = {rule._replace(first=False): _rank(rule) for rule in wanted}
    kept: dict[tuple[str, str], dict[Rule, int]] = {}  # chain -> rule -> its number there
    gone: dict[tuple[str, str], list[int]] = {}
    strays = []
    numbers: Counter[tuple[str, str]] = Counter()
    loose = orphans([*present.rules, *ranks])
    for rule in present.rules:
        numbers[rule[:2]] += 1
        here = kept.setdefault(rule[:2], {})
        if rule in ranks and rule not in here:
            here[rule] = numbers[rule[:2]]
        elif rule in ranks or ((stray(rule) or rule in loose) and not spared(rule)):
            gone.setdefault(rule[:2], []).append(numbers[rule[:2]])
            strays.append(f"{rule.table} {rule.chain} {rule.text}")
    missing = {
        rule: owner
        for rule, owner in wanted.items()
        if rule._replace(first=False) not in kept.get(rule[:2], {}) and not spared(rule)
    }
    new, disordered = set(missing), []
    for chain, here in kept.items():
        ordered = [ranks[rule] for rule in here]
        if ordered != sorted(ordered):
            disordered.append(" ".join(chain))
        after = [rule for rule in missing if rule[:2] == chain]
        ordered = [_rank(r) for r in after[::-1] if r.first] + ordered
        ordered += [_rank(r) for r in after if not r.first]
        if ordered != sorted(ordered):
            gone.setdefault(chain, []).extend(here.values())
            new |= {rule for rule in wanted if rule[:2] == chain}
    lines: dict[str, list[str]] = {table: [] for table in TABLES}
    if new or gone:
        for made in CHAINS:
            if made not in present.chains:
                lines[made.table].append(f":{made.name} - [0:0]")
    for (table, name), places in gone.items():
        lines[table] += [f"-D {name} {number}" for number in sorted(places, reverse=True)]
    for rule in wanted:
        if rule in new:
            lines[rule.table].append(f"{'-I' if rule.first else '-A'} {rule.chain} {rule.text}")
    return Differences(
        [(owner, f"{rule.table} {rule.chain} {rule.text}") for rule, owner in missing.items()],
        strays,
        disordered,
        _input(lines),
    )


def align(present: Present, wanted: Collection[Rule], ip: Address) -> str:
    """The input that makes the rules about a container's ports these."""
    about, keep = of_container(ip), plain(wanted)
    unwanted = {rule for rule in present.rules if about(rule) and rule not in keep}
    left = {rule for rule in present.rules if rule not in unwanted} | keep
    chains = [chain for chain in CHAINS if chain not in present.chains] if wanted else ()
    return change(missing(present, wanted), unwanted | orphans(left), present, chains)


def empty_tables(present: Present) -> list[str]:
    """Tables of the kernel in which there is nothing that anybody has put there."""
    used = {rule.table for rule in present.rules}
    used |= {chain.table for chain, policy in present.chains.items() if policy != "ACCEPT"}
    return [table for table, _ in groupby(sorted(c.table for c in present.chains)) if table not in used]
