# SPDX-License-Identifier: Apache-2.0
"""Random worlds of containers, policies and packets; and the rows of their two hosts beside the evaluator.

python -m tests.unit.policy_worlds [--worlds N] [--seed N] compares them: a world's seed names it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random

from datapath.model.judging import judge, judge_packets
from datapath.model.parsing import Prefix
from datapath.model.policies import (
    Action,
    Direction,
    Kind,
    Layer,
    Member,
    Mode,
    Opening,
    Packet,
    Party,
    Policy,
    PortScope,
    PublishedPort,
    Rule,
    Rules,
    Selector,
    Step,
    Verdict,
    World,
)
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.rows import Rows, rows_verdict

PACKETS = 50  # of a world
NAMES = ("web", "web-1", "db", "app", "cron")
LABELS = {"role": ("web", "db", "batch"), "tier": ("front", "back")}
WORDS = ("any", "outside", "internet", "private", "lan", "metadata", "host", "self", "dns")
HOST = tuple(map(ip_address, ("192.0.2.1", "2001:db8:1::1", "10.0.0.1", "10.0.1.1", "fd00:0:0:1::1")))
LAN = tuple(map(ip_network, ("192.0.2.0/24", "192.168.1.0/24", "2001:db8:1::/64")))
ANSWERS = {"api.example.com": tuple(map(ip_address, ("203.0.113.9", "2001:db8:9::9")))}
OUTSIDE = (
    *("203.0.113.5", "203.0.113.9", "203.0.113.77", "192.0.2.7", "192.168.1.5", "192.168.1.200", "10.9.9.9"),
    *("10.0.0.77", "169.254.169.254", "100.100.100.200", "8.8.8.8", "224.0.0.5", "2001:db8:9::9"),
    *("2001:db8:9::5", "2001:db8:1::7", "fd00:ec2::254", "fe80::7", "fd00:0:0:1::77", "ff02::1"),
)
PREFIXES = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/29", "10.0.1.0/24", "10.0.0.4/32", "192.0.2.1/32"),
    *(
        "203.0.113.0/24",
        "203.0.113.0/28",
        "203.0.113.64/26",
        "192.168.0.0/16",
        "192.168.1.0/25",
        "169.254.0.0/16",
    ),
    *("::/0", "2001:db8::/32", "2001:db8:9::/64", "fd00::/8", "fd00:0:0:1::/64", "fd00:0:0:1::3/128"),
)
RANGES = ((53, 53), (80, 80), (443, 443), (1, 1023), (400, 500), (5432, 5432), (5000, 6000), (65535, 65535))
PORTS = (1, 53, 79, 80, 81, 399, 400, 443, 500, 501, 1023, 1024, 5000, 5432, 6000, 6001, 65534, 65535)


class Draw:
    """What is drawn by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = self.a_world()
        self.policies = self.some_policies()

    def chance(self, part: float) -> bool:
        return self.random.random() < part

    def a_world(self) -> World:
        members = []
        for number in range(1, self.random.randint(3, 9)):
            net = self.random.randint(0, 1)
            addresses = (
                f"10.0.{net}.{number + 1}",
                *([f"fd00:0:0:{net}::{number + 1}"] if self.chance(0.6) else []),
            )
            labels = {key: self.random.choice(values) for key, values in LABELS.items() if self.chance(0.6)}
            known = self.chance(0.93)
            members.append(
                Member(
                    number,
                    ("shop", "dmz")[net],
                    self.random.choice(NAMES) if known else "",
                    labels if known else {},
                    tuple(map(ip_address, addresses)),
                    f"{number:064x}",
                    known,
                    self.chance(0.7),
                )
            )
        published = []
        for port in {self.random.randint(8080, 8085) for _ in range(4)}:
            member = self.random.choice(members)
            for address in member.addresses:
                anywhere = "0.0.0.0" if address.version == 4 else "::"
                at = ip_address(
                    self.random.choice([anywhere, "192.0.2.1" if address.version == 4 else "2001:db8:1::1"])
                )
                published.append(PublishedPort(at, self.random.choice([6, 17]), port, member.endpoint))
        return World(tuple(members), HOST, LAN, tuple(published), ANSWERS)

    # ---- policies --------------------------------------------------------------------------------------------------

    def some_policies(self) -> list[Policy]:
        policies = [self.a_policy(f"p{number}") for number in range(self.random.randint(0, 7))]
        if self.chance(0.4):
            icc = Policy(
                "(network shop)", Selector(network="shop"), Rules(allow=()), among="shop", reason="DROP_ICC"
            )
            policies.append(replace(icc, layer=Layer.BUILTIN))
        for member in self.world.members:
            if self.chance(0.15):
                own = self.a_policy(f"(label {member.endpoint})")
                subject = Selector(ident=member.ident)
                policies.append(replace(own, subject=subject, layer=Layer.LABEL, mode=Mode.ENFORCE))
        return policies

    def a_policy(self, name: str) -> Policy:
        ingress, egress = self.some_rules(Direction.IN), self.some_rules(Direction.OUT)
        published = None
        if self.chance(0.25):
            first = self.random.randint(8080, 8085)
            address = self.random.choice([None, None, ip_address("0.0.0.0"), ip_address("192.0.2.1")])
            published = PortScope(
                self.random.choice([6, 17]), first, first + self.random.choice([0, 0, 3]), address
            )
            egress = Rules()
        among = self.random.choice(["shop", "dmz"]) if self.chance(0.1) else ""
        if published or among:  # they are about who comes in
            egress = Rules()
        numbered = []
        number = 0
        for rules in (ingress, egress):
            deny = tuple(replace(rule, number=number + place) for place, rule in enumerate(rules.deny, 1))
            number += len(deny)
            allow = rules.allow and tuple(
                replace(rule, number=number + place) for place, rule in enumerate(rules.allow, 1)
            )
            number += len(allow or ())
            numbered.append(Rules(deny, allow))
        return Policy(
            name,
            self.a_member_selector(),
            numbered[0],
            numbered[1],
            Mode.AUDIT if self.chance(0.25) else Mode.ENFORCE,
            Action.DROP if self.chance(0.2) else Action.REJECT,
            published,
            among,
            Layer.BUILTIN if among or self.chance(0.1) else Layer.OPERATOR,
            "DROP_ICC" if among else "",
        )

    def some_rules(self, direction: Direction) -> Rules:
        deny = tuple(self.a_rule(direction) for _ in range(self.random.choice([0, 0, 0, 1, 2])))
        allow = None
        if self.chance(0.5):
            allow = tuple(self.a_rule(direction) for _ in range(self.random.choice([0, 1, 2, 4])))
        return Rules(deny, allow)

    def a_rule(self, direction: Direction) -> Rule:
        protocol = self.random.choice(["", "", "tcp", "tcp", "udp", "icmp"])
        ranges: tuple[tuple[int, int], ...] = ()
        if protocol in ("tcp", "udp") and self.chance(0.8):
            ranges = tuple(sorted(self.random.sample(RANGES, self.random.choice([1, 1, 2, 3]))))
        return Rule(self.a_selector(), ranges, protocol)

    def a_selector(self) -> Selector:
        kind = self.random.choice(["word", "prefix", "member", "member", "domain"])
        if kind == "word":
            excepted = self.prefixes(2) if self.chance(0.3) else ()
            word = self.random.choice(WORDS[:5] if excepted else WORDS)
            return Selector(word, excepted=excepted)
        if kind == "prefix":
            prefix = ip_network(self.random.choice(PREFIXES))
            excepted = tuple(
                one
                for one in self.prefixes(3)
                if one.version == prefix.version and one.network_address in prefix
            )
            return Selector(prefix=prefix, excepted=excepted)
        return self.a_member_selector() if kind == "member" else Selector(domain="api.example.com")

    def prefixes(self, most: int) -> tuple[Prefix, ...]:
        return tuple(ip_network(one) for one in self.random.sample(PREFIXES, self.random.randint(0, most)))

    def a_member_selector(self) -> Selector:
        parts = self.random.sample(["name", "labels", "network"], self.random.choice([1, 1, 1, 2]))
        key = self.random.choice([*LABELS])
        values = {
            "name": self.random.choice([*NAMES, "web*", "*", "?b"]),
            "labels": ((key, self.random.choice(LABELS[key])),),
            "network": self.random.choice(["shop", "dmz"]),
        }
        return Selector(**{part: values[part] for part in parts})  # type: ignore[arg-type]

    # ---- packets ---------------------------------------------------------------------------------------------------

    def some_packets(self, count: int = PACKETS) -> list[Packet]:
        """Also answers, to what passes and to what does not."""
        packets: list[Packet] = []
        while len(packets) < count:
            earlier = self.random.choice(packets) if packets and self.chance(0.25) else None
            if earlier and earlier.opening.destination.kind is not Kind.NAMES:
                opening = earlier.opening
                turned = Opening(opening.destination, opening.source, opening.protocol, earlier.source_port)
                packets.append(Packet(turned, opening.port))
            else:
                packets.append(Packet(self.an_opening(), self.random.randint(20000, 60000)))
        return [packet for packet in packets if packet.opening.protocol != 47 or packet.opening.port == 0]

    def an_opening(self) -> Opening:
        protocol = self.random.choice([6, 6, 6, 17, 17, 1, 47])
        version = self.random.choice([4, 4, 6])
        if self.chance(0.25) and self.world.published:
            port = self.random.choice(self.world.published)
            member = next(one for one in self.world.members if one.endpoint == port.endpoint)
            address = next(one for one in member.addresses if one.version == port.address.version)
            to = Party(Kind.MEMBER, address, member)
            return Opening(self.a_party(address.version), to, port.protocol, self.random.choice(PORTS), port)
        source, to = self.a_party(version), self.a_party(version)
        if source.member and self.chance(0.1):
            return Opening(source, Party(Kind.NAMES), 17, 53)
        protocol = 58 if protocol == 1 and version == 6 else protocol
        return Opening(source, to, protocol, self.random.choice(PORTS) if protocol in (6, 17) else 0)

    def a_party(self, version: int) -> Party:
        kind = self.random.choice(
            [Kind.MEMBER, Kind.MEMBER, Kind.MEMBER, Kind.HOST, Kind.OUTSIDE, Kind.OUTSIDE]
        )
        if kind is Kind.MEMBER:
            member = self.random.choice(self.world.members)
            address = next((one for one in member.addresses if one.version == version), None)
            if address is not None:
                return Party(kind, address, member)
        addresses = HOST if kind is Kind.HOST else tuple(map(ip_address, OUTSIDE))
        kind = Kind.HOST if kind is Kind.HOST else Kind.OUTSIDE
        return Party(kind, self.random.choice([one for one in addresses if one.version == version]))


class TwoHosts:
    """A world's members on this host and on another one: each decides for its own."""

    def __init__(self, policies: list[Policy], world: World) -> None:
        self.rows: dict[bool, Rows] = {}
        for here in (True, False):
            members = tuple(replace(member, here=member.here is here) for member in world.members)
            self.rows[here] = plan_rows(policies, replace(world, members=members))

    def verdict(self, opening: Opening) -> Verdict:
        """What the sender's host says of its `out`, and if that passes the receiver's of its `in`."""
        steps: list[Step] = []
        for direction in Direction:
            subject = opening.sides(direction)[0].member
            if subject is None:
                continue
            ends = [
                replace(end, member=_seen(end, subject.here)) for end in (opening.source, opening.destination)
            ]
            said = rows_verdict(
                self.rows[subject.here], replace(opening, source=ends[0], destination=ends[1])
            )
            steps += [step for step in said.steps if step.direction is direction]
            if steps and steps[-1].action is not Action.ALLOW:
                break
        return Verdict(tuple(steps))


def _seen(party: Party, here: bool) -> Member | None:
    return party.member and replace(party.member, here=party.member.here is here)


def disagreement(seed: int) -> str:
    """Of the evaluator and the rows, on the world of that seed; "": there is none."""
    draw = Draw(seed)
    hosts = TwoHosts(draw.policies, draw.world)
    packets = draw.some_packets()
    wanted = judge_packets(packets, lambda opening: judge(opening, draw.policies, draw.world))
    for packet, right, found in zip(packets, wanted, judge_packets(packets, hosts.verdict), strict=True):
        if found != right and draw.policies:
            return f"seed {seed}: {packet}\n  evaluator: {right}\n  rows: {found}\n  of {draw.policies}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for seed in range(given.seed, given.seed + given.worlds):
        found = disagreement(seed)
        if found:
            raise SystemExit(found)
    print(
        f"{given.worlds} worlds from seed {given.seed}, {PACKETS} packets each: the rows say what the evaluator does"
    )


if __name__ == "__main__":
    main()
