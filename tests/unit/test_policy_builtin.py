# SPDX-License-Identifier: Apache-2.0
"""P17: icc=false, --link, --internal, allow= and deny= as policies, beside what packet programs have of them now."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from random import Random

from datapath.dataplane.entries import link_entries
from datapath.model.judging import judge
from datapath.model.networks import OPT_ICC
from datapath.model.parsing import PORT_PROTOCOLS, Address
from datapath.model.peers import Remote
from datapath.model.policies import (
    Action,
    By,
    Kind,
    Member,
    Opening,
    Party,
    Policy,
    PublishedPort,
    Step,
    World,
)
from datapath.model.ports import PortMapping
from datapath.plan.policies.builtin import builtin_policies, world_of
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.rows import rows_verdict
from tests.unit.planned_host import PlannedHost

HOST = (ip_address("192.0.2.10"), ip_address("10.0.0.1"))
LAN = (ip_network("192.0.2.0/24"),)
NO_ICC = (f"{OPT_ICC}=false",)


def seen(host: PlannedHost) -> tuple[tuple[Policy, ...], World]:
    return builtin_policies(host.state), world_of(host.state, HOST, LAN)


def member(world: World, name: str, network: str) -> Party:
    (found,) = (one for one in world.members if (one.name, one.network) == (name, network))
    return Party(Kind.MEMBER, found.addresses[0], found)


def outside(address: str) -> Party:
    return Party(Kind.OUTSIDE, ip_address(address))


def step(policies: tuple[Policy, ...], world: World, opening: Opening) -> Step | None:
    said = judge(opening, policies, world)
    assert rows_verdict(plan_rows(policies, world), opening) == said
    return said.decided


def test_p17_icc_off_closes_members_to_each_other_and_links_open_what_is_exposed() -> None:
    host = PlannedHost()
    network = host.network("shop", subnets=("10.0.0.0/24",), options=NO_ICC)
    host.network("front", subnets=("10.1.0.0/24",))
    host.run("db", "shop", expose=("5432", "53/udp"), publish=("8080:80",))
    host.run("app", "shop", links=("db:db",))
    host.run("cron", "shop")
    for name in ("db", "cron"):
        host.connect(name, "front")
    policies, world = seen(host)
    links = link_entries(network, host.state)
    assert len(links) == 3
    names = ("db", "app", "cron")
    for client in names:
        for server in names:
            if client == server:
                continue
            ends = (member(world, client, "shop"), member(world, server, "shop"))
            for protocol in (*PORT_PROTOCOLS.values(), 1, 47):
                for port in (5432, 53, 80) if protocol in PORT_PROTOCOLS.values() else (0,):
                    said = step(policies, world, Opening(*ends, protocol, port))
                    linked = any(
                        (key.client, key.server, key.port, key.proto)
                        == (*(end.address for end in ends), port, protocol)
                        for key in links
                    )
                    assert said is not None
                    assert (said.action is Action.ALLOW, said.reason) == (
                        linked,
                        "" if linked else "DROP_ICC",
                    )
    front = Opening(member(world, "cron", "front"), member(world, "db", "front"), 6, 5432)
    assert judge(front, policies, world).action is Action.ALLOW, "that network has icc"
    db = member(world, "db", "shop")
    for source in (outside("8.8.8.8"), Party(Kind.HOST, HOST[1])):
        assert judge(Opening(source, db, 6, 80), policies, world).action is Action.ALLOW
    # icc is about what is sent straight: the host's port is everybody's, as it is to the packet programs.
    (published,) = world.published
    detour = Opening(member(world, "cron", "shop"), db, 6, 80, published)
    assert judge(detour, policies, world).action is Action.ALLOW


def test_p17_an_internal_network_has_no_outside() -> None:
    host = PlannedHost()
    host.network("inner", subnets=("10.0.0.0/24",), internal=True)
    host.run("db", "inner")
    host.run("app", "inner")
    policies, world = seen(host)
    app, db = member(world, "app", "inner"), member(world, "db", "inner")
    refused = step(policies, world, Opening(app, outside("8.8.8.8"), 6, 80))
    assert refused is not None and refused.reason == "DROP_INTERNAL"
    assert refused.by == By("(internal inner)", 1)
    for other in (db, Party(Kind.HOST, HOST[1]), Party(Kind.NAMES)):
        assert judge(Opening(app, other, 6, 80), policies, world).action is Action.ALLOW


def test_p17_of_an_acl_the_longest_prefix_decides() -> None:
    """Against `PortMapping.admits`, which says what the packet programs do with an ACL."""
    random = Random(17)
    admitted = 0
    for _ in range(150):
        allow, deny = acl(random), acl(random)
        deny = [one for one in deny if one not in allow]
        rules = [f"allow={one}" for one in allow] + [f"deny={one}" for one in deny]
        mapping = ",".join([random.choice(["8080:80", "8080-8082:80-82", "192.0.2.10:8080:80"]), *rules])
        host = PlannedHost()
        host.network("front", subnets=("10.0.0.0/24",))
        host.run("web", "front", publish=(mapping,))
        host.run("other", "front")
        policies, world = seen(host)
        web = member(world, "web", "front")
        port = next(one for one in world.published if one.port == 8080)
        for _ in range(20):
            address = ip_address(f"10.{random.choice([0, 0, 1, 2])}.0.{random.randrange(8)}")
            party = (
                member(world, "other", "front")
                if address == ip_address("10.0.0.3")
                else outside(str(address))
            )
            said = judge(Opening(party, web, 6, 80, port), policies, world)
            passes = PortMapping.parse(mapping).admits(address)
            assert (said.action is Action.ALLOW) == passes, (mapping, address)
            assert passes or (said.decided and said.decided.reason == "DROP_DENIED")
            rows = plan_rows(policies, world)
            assert not rows.active or rows_verdict(rows, Opening(party, web, 6, 80, port)) == said
            admitted += passes
        assert judge(Opening(outside("10.9.0.1"), web, 6, 80), policies, world).action is Action.ALLOW
    assert 500 < admitted < 2500


def acl(random: Random) -> list[str]:
    pool = [
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/29",
        "10.0.0.4/30",
        "10.0.0.3/32",
        "10.1.0.0/16",
        "10.1.0.4/31",
    ]
    return random.sample(pool, random.randint(0, 3))


def test_the_world_has_who_is_here_and_who_is_on_other_hosts() -> None:
    host = PlannedHost()
    network = host.network("shop", subnets=("10.0.0.0/24", "fd00::/64"), ipv6=True)
    host.run("web", "shop", labels=("role=web",), publish=("8080:80", "192.0.2.10:53:53/udp"))
    there = Remote(
        "f" * 64, network.id, "e" * 32, "02:42:0a:00:00:09", "c" * 64, "db", ipv4=IPv4Address("10.0.0.9")
    )
    nameless = replace(there, id="0" * 64, name="", labels={"role": "db"}, ipv4=IPv4Address("10.0.0.10"))
    host.state = host.state.including(there, nameless)
    (container,) = host.state.containers.values()
    (endpoint,) = host.state.endpoints.values()
    addresses: tuple[Address, ...] = (ip_address("10.0.0.2"), ip_address("fd00::2"))
    assert world_of(host.state, HOST, LAN) == World(
        (
            Member(endpoint.number, "shop", "web", {"role": "web"}, addresses, container.sandbox_id),
            Member(-1, "shop", "db", {}, (ip_address("10.0.0.9"),), "c" * 64, here=False),
            Member(-2, "shop", "", {"role": "db"}, (ip_address("10.0.0.10"),), "c" * 64, False, False),
        ),
        HOST,
        LAN,
        tuple(
            PublishedPort(ip_address(address), protocol, port, endpoint.number)
            for address, protocol, port in (("0.0.0.0", 6, 8080), ("::", 6, 8080), ("192.0.2.10", 17, 53))
        ),
    )
