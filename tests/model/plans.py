# SPDX-License-Identifier: Apache-2.0
"""Random hosts: devices, addresses, routes and rules, and what the reference says of them."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from tests.model.devices import Lan, Leg, Out, Plan, Policy, packed
from tests.model.packet import TCP, UDP
from tests.model.routes import MAIN, Route, Routing, Rule, prefix_of, route
from tests.model.situations import WITHHELD, Situation
from tests.model.topology import Network, Uplink

STOPS = [
    ("198.18.0.0/24", "blackhole"),
    ("198.18.1.0/24", "unreachable"),
    ("198.18.2.0/24", "prohibit"),
    ("100::/64", "blackhole"),
]
ENCAPSULATED, PROTECTED = "198.19.8.0/24", ["198.19.7.0/24", "2001:db8:7::/48"]
ANYIP = ["10.79.0.0/24", "fd79::/64"]


def plan(rng: random.Random, withheld: frozenset[Situation] = frozenset(WITHHELD)) -> Plan:
    first = rng.choice((1024, 20000, 50000))
    made = Plan(
        lans=[_lan(rng, number, withheld) for number in range(1, rng.randint(4, 6))],
        legs=[Leg(IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8:1::1/64"), _mtu(rng))],
        extra=[IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ee::1")],
        outs=[Out("0.0.0.0/0", 0)],
        stops=STOPS,
        encapsulated=ENCAPSULATED,
        ports=(first, first + rng.choice((31, 31, 255, 2000, 14000))),
        encrypted=rng.choice((1420, 1420, 1380, 1300)),
        sockets=[(first + at, proto) for at in (7, 9, 20) for proto in (TCP, UDP) if rng.random() < 0.5],
    )
    if rng.random() < 0.8:
        made.outs.append(Out("::/0", 0))
    _learned(rng, made)
    if rng.random() < 0.7:
        _second_leg(rng, made, withheld)
    number = rng.choice(made.lans).number
    made.behind = [("10.99.0.0/24", number), ("fd99::/64", number)]
    if Situation.ANYIP not in withheld and rng.random() < 0.5:
        made.anyip = list(ANYIP)
    return made


def _learned(rng: random.Random, made: Plan) -> None:
    """Routes to addresses that networks have on other hosts, as routers tell of them."""
    for lan in made.lans:
        for subnet, bits in ((lan.subnet4.network, 30), (lan.subnet6.network, 126)):
            if rng.random() < 0.6:
                made.outs.append(Out(f"{subnet.network_address + rng.choice((8, 12, 12))}/{bits}", 0))


def _mtu(rng: random.Random) -> int:
    return rng.choice((1500, 1500, 1400, 1490))


def _lan(rng: random.Random, number: int, withheld: frozenset[Situation]) -> Lan:
    at, length = rng.random(), rng.choice((16, 16, 24, 20, 28))
    base = IPv4Address(f"172.{16 + number}.0.0") if at < 0.6 else IPv4Address(f"10.{number}.64.0")
    if at > 0.9 and Situation.CLASS_E not in withheld:
        base = IPv4Address(f"240.{number}.64.0")
    subnet6 = IPv6Interface(f"fd00:{number}:{rng.randrange(65536):x}::1/64")
    mtu = rng.choice((1500, 1500, 1500, 1400, 1280))
    return Lan(number, IPv4Interface(f"{base + 1}/{length}"), subnet6, mtu, rng.randint(2, 4))


def _second_leg(rng: random.Random, made: Plan, withheld: frozenset[Situation]) -> None:
    """Another uplink, with or without an Ethernet header, and rules on what leaves by it."""
    ethernet = Situation.TUNNEL_OUT in withheld or rng.random() < 0.5
    second = None
    if ethernet and Situation.ROUTE_SOURCE not in withheld and rng.random() < 0.6:
        second = IPv4Interface("198.51.101.1/24")
    mtu = rng.choice((1500, 1420, 1400, 1280))
    v6: IPv6Interface | None = IPv6Interface("2001:db8:2::1/64")
    if not ethernet and rng.random() < 0.3:
        mtu, v6 = rng.choice((576, 1000)), None
    made.legs.append(Leg(IPv4Interface("198.51.100.129/25"), v6, mtu, ethernet, second))
    made.outs.append(Out("203.0.113.64/26", 1))
    if v6:
        made.outs.append(Out("2001:db8:9::40/122", 1))
    if second:
        made.outs.append(Out("198.51.100.200/32", 1, second=True))
    if Situation.ROUTE_SOURCE not in withheld and rng.random() < 0.5:
        made.outs.append(Out("93.184.216.0/24", 0, source="198.51.100.1"))
        made.outs.append(Out("2606:4700::/32", 0, source="2001:db8:ee::1"))
    _policies(rng, made, withheld)


def _policies(rng: random.Random, made: Plan, withheld: frozenset[Situation]) -> None:
    leg = made.legs[1]
    made.tables = {
        100: [Out("0.0.0.0/0", 1)] + [Out("::/0", 1)] * (leg.v6 is not None),
        101: [Out("203.0.113.0/24", 1)] + [Out("2001:db8:9::/48", 1)] * (leg.v6 is not None),
    }
    lan = rng.choice(made.lans)
    candidates = []
    for six in (False, True):
        if six and leg.v6 is None:
            continue
        lan_subnet = lan.subnet6 if six else lan.subnet4
        own = leg.v6 if six else leg.v4
        assert own
        if Situation.RULE_SOURCE not in withheld:
            candidates.append(Policy(rng.choice((100, 101)), six, source=str(lan_subnet.network)))
        if Situation.ANSWER_RULE not in withheld:
            candidates.append(Policy(100, six, source=str(own.ip)))
        if Situation.RULE_PORTS not in withheld:
            candidates.append(Policy(101, six, proto=TCP, dport=443))
            candidates.append(Policy(100, six, proto=UDP, sport=50000))  # of no tunnel
        if Situation.RULE_TOS not in withheld:
            candidates.append(Policy(rng.choice((100, 101)), six, tos=0x10))
    made.policies = [one for one in candidates if rng.random() < (0.7 if one.tos else 0.4)]


# ---- as the reference has it -------------------------------------------------------------------------------


def own_addresses(host: Plan) -> tuple[set[bytes], set[bytes]]:
    """Of the host, and its subnets' broadcast addresses."""
    own = {a.packed for a in host.extra}
    for lan in host.lans:
        # A router also has its subnet's anycast address (RFC 4291, 2.6.1).
        own |= {lan.subnet4.ip.packed, lan.subnet6.ip.packed, lan.subnet6.network.network_address.packed}
    for leg in host.legs:
        own |= set(packed(*leg.addresses))
    subnets = [lan.subnet4 for lan in host.lans]
    subnets += [one for leg in host.legs for one in (leg.v4, leg.second) if one]
    return own, {one.network.broadcast_address.packed for one in subnets}


def routing(host: Plan, networks: dict[int, Network], uplinks: list[Uplink]) -> Routing:
    def out(one: Out) -> list[Route]:
        leg, six = host.legs[one.leg], ":" in one.prefix
        if six and leg.v6 is None:
            return []
        source = b""
        if one.source:
            source = (IPv6Address(one.source) if six else IPv4Address(one.source)).packed
        elif one.second and leg.second:
            source = leg.second.ip.packed
        return [route(one.prefix, "out", uplink=uplinks[one.leg], source=source)]

    main = [found for wanted in host.outs for found in out(wanted)]
    for uplink, leg in zip(uplinks, host.legs, strict=True):
        for one in leg.addresses:
            main.append(route(str(one.network), "out", uplink=uplink, source=one.ip.packed))
            main[-1].connected = True
    main += [route(prefix, "stop") for prefix, _ in host.stops]
    if host.encapsulated:
        main.append(route(host.encapsulated, "encap"))
    for lan in host.lans:
        for subnet in (lan.subnet4, lan.subnet6):
            main.append(route(str(subnet.network), "net", network=networks[lan.number]))
    for prefix, number in host.behind:
        lan = next(one for one in host.lans if one.number == number)
        hop = (lan.subnet6 if ":" in prefix else lan.subnet4).ip + 1
        main.append(route(prefix, "net", network=networks[number], via=hop.packed))
    tables = {MAIN: main}
    for number, outs in host.tables.items():
        tables[number] = [found for wanted in outs for found in out(wanted)]
    own, broadcasts = own_addresses(host)
    anyip = [route(prefix, "local") for prefix in host.anyip]
    return Routing(own, broadcasts, tables, [_rule(one) for one in host.policies], anyip)


def _rule(policy: Policy) -> Rule:
    return Rule(
        policy.table,
        16 if policy.six else 4,
        prefix_of(policy.source)[:2] if policy.source else None,
        policy.proto or None,
        policy.sport or None,
        policy.dport or None,
        policy.tos or None,
    )
