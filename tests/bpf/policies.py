# SPDX-License-Identifier: Apache-2.0
"""Policies of the fixtures' host, in force in its maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from datapath.dataplane.policies import Hit, Policies
from datapath.model.policies import By, Member, PublishedPort, World
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.rows import Rows
from tests.bpf.fixtures import HOST, HOST6, MEMBERS, NETS, OTHER, OTHER6, PUBLISHED, Programs

# Whose name is that of its fixture, and on whose network.
WORLD = World(
    tuple(
        Member(
            m.number,
            m.net.device,
            m.name,
            {"role": m.name[0]},
            (m.ip, *((m.ip6,) if m.net.ipv6 else ())),
            m.name,
        )
        for m in MEMBERS
    ),
    (HOST, HOST6, OTHER, OTHER6, *(net.gateway for net in NETS), *(net.gateway6 for net in NETS if net.ipv6)),
    (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")),
    tuple(
        PublishedPort(ip_address(address), proto, port, member.number)
        for (host, port, proto), (member, _) in PUBLISHED.items()
        for address in ((host,) if host else ("0.0.0.0", "::"))
    ),
)


class InForce(NamedTuple):
    """Policies that are in force: what they were made to, and the programs' maps of them."""

    rows: Rows
    policies: Policies

    def hits(self) -> Mapping[str, tuple[int, int]]:
        """Policy and rule, as db/1 -> openings and packets, of those that there were."""
        found = self.policies.hits()
        named = {_name(by): found.get(number, Hit()) for number, by in enumerate(self.rows.rules, 1)}
        return {name: (hit.openings, hit.packets) for name, hit in named.items() if hit != Hit()}


def _name(by: By) -> str:
    return f"{by.policy}/{by.rule}"


def policies_of(programs: Programs) -> Policies:
    return Policies(programs.maps.__getitem__)


def put(programs: Programs, text: str, *, without: int = 0, former: Rows | None = None) -> InForce:
    """Puts the text's policies into force; `without`: the number of an endpoint that the rows know nothing of."""
    members = tuple(m for m in WORLD.members if m.endpoint != without)
    rows = plan_rows(read_policies(text, "here"), replace(WORLD, members=members))
    policies_of(programs).apply(rows, former.rules if former else ())
    return InForce(rows, policies_of(programs))
