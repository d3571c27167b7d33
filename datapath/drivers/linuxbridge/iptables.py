# SPDX-License-Identifier: Apache-2.0
"""Docker's iptables rules as text. Pure.

A rule is written exactly as `iptables-save` shows it, so that the present rules can be compared with those that have to
be. What Docker would do in hundreds of calls is one call of `iptables-restore --noflush` here.

    filter  FORWARD → DOCKER-USER, DOCKER-FORWARD → DOCKER-CT (what is known), DOCKER-INTERNAL (what an internal
            network keeps in and out), DOCKER-BRIDGE → DOCKER (published ports; the rest is dropped)
    nat     PREROUTING, OUTPUT → DOCKER (one DNAT a port); POSTROUTING (masquerading)
    raw     PREROUTING (nobody addresses a container past its ports)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from datapath.dataplane.structs import LinkKey
from datapath.drivers.linuxbridge.rules import Published, address, opened, published, subnet
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


# ---- wanted rules ----------------------------------------------------------------------------


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
    """The rules of links: from the client to the server's port, and replies from there."""
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


# ---- present rules ---------------------------------------------------------------------------


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
    """The rules as the tool lists them, wherever in their chain they were inserted."""
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
    """A test whether a rule is about the network, or about a container that it has or had."""
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


def loopback_orphans(rules: Iterable[Rule]) -> set[Rule]:
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
