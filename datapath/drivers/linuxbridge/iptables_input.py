# SPDX-License-Identifier: Apache-2.0
"""The input of iptables-restore that changes the present rules into the wanted ones. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import groupby

from datapath.drivers.linuxbridge.iptables import (
    BASE,
    CHAINS,
    TABLES,
    USER,
    Chain,
    Present,
    Rule,
    is_unused,
    loopback_orphans,
    missing,
    of_container,
    of_network,
    plain,
)
from datapath.drivers.linuxbridge.rules import Differences
from datapath.model.networks import Network
from datapath.model.parsing import Address


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
    unwanted |= loopback_orphans(left)
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


def is_orphan(networks: Iterable[Network]) -> Callable[[Rule], bool]:
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

    def orphan(rule: Rule) -> bool:
        ours = rule[:2] in CHAINS or re.fullmatch(shapes.get(rule[:2], "(?!)"), rule.text)
        return bool(ours) and any(belongs(rule) for belongs in about)

    return orphan


def compare(
    present: Present,
    wanted: Mapping[Rule, str],
    orphan: Callable[[Rule], bool],
    ignored: Callable[[Rule], bool],
) -> Differences:
    """`wanted`: rule -> whose it is. `ignored`: in the middle of something, so neither missing nor too much.

    Chains whose order would be wrong are written anew, but for what is not ours in them.
    """
    ranks = {rule._replace(first=False): _rank(rule) for rule in wanted}
    kept: dict[tuple[str, str], dict[Rule, int]] = {}  # chain -> rule -> its number there
    gone: dict[tuple[str, str], list[int]] = {}
    orphans = []
    numbers: Counter[tuple[str, str]] = Counter()
    loose = loopback_orphans([*present.rules, *ranks])
    for rule in present.rules:
        numbers[rule[:2]] += 1
        here = kept.setdefault(rule[:2], {})
        if rule in ranks and rule not in here:
            here[rule] = numbers[rule[:2]]
        elif rule in ranks or ((orphan(rule) or rule in loose) and not ignored(rule)):
            gone.setdefault(rule[:2], []).append(numbers[rule[:2]])
            orphans.append(f"{rule.table} {rule.chain} {rule.text}")
    missing = {
        rule: owner
        for rule, owner in wanted.items()
        if rule._replace(first=False) not in kept.get(rule[:2], {}) and not ignored(rule)
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
        orphans,
        disordered,
        _input(lines),
    )


def align(present: Present, wanted: Collection[Rule], ip: Address) -> str:
    """The input that makes the rules about a container's ports these."""
    about, keep = of_container(ip), plain(wanted)
    unwanted = {rule for rule in present.rules if about(rule) and rule not in keep}
    left = {rule for rule in present.rules if rule not in unwanted} | keep
    chains = [chain for chain in CHAINS if chain not in present.chains] if wanted else ()
    return change(missing(present, wanted), unwanted | loopback_orphans(left), present, chains)


def empty_tables(present: Present) -> list[str]:
    """Tables of the kernel that are empty: no rule and no chain of anybody's."""
    used = {rule.table for rule in present.rules}
    used |= {chain.table for chain, policy in present.chains.items() if policy != "ACCEPT"}
    return [table for table, _ in groupby(sorted(c.table for c in present.chains)) if table not in used]
