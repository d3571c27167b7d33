# SPDX-License-Identifier: Apache-2.0
"""Policies beside the traffic that was seen: what they would do to it, and which would let it pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from datapath.engine.engine import Engine
from datapath.engine.transaction import devices_of
from datapath.errors import NotFoundError
from datapath.model.connections import Connection, ConnectionFilter
from datapath.model.flows import ALLOWED, HOST, OUTSIDE, PROTOCOL_NAMES, FlowFilter, FlowLine
from datapath.model.host import HostNetwork
from datapath.model.networks import Network, has_flows
from datapath.model.parsing import PROTOCOLS, Address
from datapath.model.policies import Kind, Member, Opening, Party, Policy, PublishedPort, World
from datapath.model.state import State
from datapath.plan.policies import flows as plans
from datapath.plan.policies.applying import in_force
from datapath.plan.policies.builtin import world_here
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.flows import Change, Flow
from datapath.plan.policies.overview import Glance, glances
from datapath.plan.policies.review import refuse_ambiguous, warnings

_DNS = 53
_ANYWHERE = {4: ip_address("0.0.0.0"), 6: ip_address("::")}


class Checked(NamedTuple):
    """What a file says, and in `notes` what may not be meant."""

    glances: list[Glance]
    notes: list[str]


class Seen(NamedTuple):
    """Traffic of this host. `left_out`: lines about who is not there any more, or on another host; `watched`: all of
    the networks that were asked for count what their members open to each other."""

    flows: list[Flow]
    world: World
    state: State
    left_out: int
    watched: bool


def test(engine: Engine, policies: Sequence[Policy]) -> Checked:
    """What `policy test` says of them on this host, where nothing changes. ConfigError: they cannot be right here."""
    world = _here(engine)[1]
    refuse_ambiguous(policies, world)
    plan_rows(policies, world)  # which refuses what does not fit
    return Checked(glances(policies, world), warnings(policies, world))


def listed(engine: Engine, every: bool) -> Iterator[tuple[Glance, int, int]]:
    """Policies by name, each with openings that its rules have let pass, and packets that they have refused. `every`:
    what networks, links, ports and labels say, too, which is not counted but for labels."""
    from datapath.engine.policy_views import hits

    state, world, _ = _here(engine)
    shown = in_force(state, world) if every else sorted(state.policies.values(), key=lambda one: one.name)
    counted = hits(engine) if shown else []
    for glance in glances(shown, world):
        mine = [hit for hit in counted if hit.policy == glance.name]
        yield glance, sum(hit.openings for hit in mine), sum(hit.refused for hit in mine)


def suggest(engine: Engine, network: str) -> tuple[str, Seen]:
    """The text of policies that let pass what was seen on the network ("": on all of them), and nothing else.
    NotFoundError: there is no such network, or nothing was seen."""
    found = seen(engine, network, refused=False)
    if not found.flows:
        raise NotFoundError("nothing was seen that policies could be made of")
    return plans.suggest(found.flows, found.world), found


def diff(engine: Engine, policies: Sequence[Policy]) -> tuple[list[Change], Seen]:
    """What these would change, if they were applied, about the traffic that was seen."""
    found = seen(engine, "", refused=True)
    refuse_ambiguous(policies, found.world)
    before, after = (in_force(found.state, found.world, some) for some in ((), policies))
    return plans.diff(before, after, found.flows, found.world), found


def seen(engine: Engine, network: str, *, refused: bool) -> Seen:
    """What `flows` counts of the network, refused traffic too if it is asked for; and connections that are open now."""
    from datapath.telemetry.flows import flows

    state, world, host = _here(engine)
    wanted = state.get(Network, network).name if network else ""
    lines = flows(engine, FlowFilter(network=wanted), totals=True).lines
    # Of what has ended outside no total says with whom it was: connections say it, as long as they are there.
    here = [line for line in lines if OUTSIDE not in (line.source, line.destination)]
    kept = [line for line in here if refused or line.verdict == ALLOWED]
    parties = _Parties(world, host)
    found = [parties.of_line(line) for line in kept]
    flowing = [flow for flow in found if flow is not None]
    flowing += parties.of_connections(_connections(engine, state, wanted))
    networks = [one for one in state.networks.values() if wanted in ("", one.name) and one.built]
    watched = all(has_flows(one) for one in networks if state.endpoints_of_network(one.id))
    return Seen(flowing, world, state, len(found) - len([f for f in found if f]), watched)


def _here(engine: Engine) -> tuple[State, World, HostNetwork]:
    from datapath.kernel import features, observe

    features.require()
    state = engine.shown()
    host = observe.host(devices_of(state))
    return state, world_here(state, host), host


def _connections(engine: Engine, state: State, network: str) -> Iterator[Connection]:
    from datapath.telemetry.stats import connections

    on_it = {
        endpoint.number
        for endpoint in state.endpoints.values()
        if network in ("", state.networks[endpoint.network_id].name)
    }
    for connection, _ in connections(engine, ConnectionFilter(endpoints=frozenset(on_it)), ""):
        yield connection


class _Parties:
    """Whom lines and connections are about."""

    def __init__(self, world: World, host: HostNetwork) -> None:
        self.host = host
        self._by_name = {(one.name, one.network): one for one in world.members if one.name}
        self._by_address = {address: one for one in world.members for address in one.addresses}

    def of_line(self, line: FlowLine) -> Flow | None:
        """None: who it is about is not there any more, or not here."""
        source, destination = (self._named(name, line.network) for name in (line.source, line.destination))
        number = PROTOCOLS.get(line.protocol) or (int(line.protocol) if line.protocol.isdigit() else 0)
        if source is None or destination is None or not number:
            return None
        return Flow(Opening(source, destination, number, line.port), line.connections)

    def _named(self, name: str, network: str) -> Party | None:
        if name == HOST:
            return Party(Kind.HOST)
        member = self._by_name.get((name, network))
        return _member(member) if member else None

    def of_connections(self, connections: Iterable[Connection]) -> Iterator[Flow]:
        """One for each, and one for asking names where something outside is opened, which is how its address was
        found."""
        for one in connections:
            source, asked, target = (
                ip_address(text) for text, _ in (one.source, one.destination, one.nat_destination)
            )
            number, port = PROTOCOLS[one.proto], one.nat_destination[1]
            opener, receiver = self._at(source), self._at(target)
            door = None
            if asked != target and receiver.member is not None:
                where = _ANYWHERE[asked.version]
                door = PublishedPort(where, number, one.destination[1], receiver.member.endpoint)
            port = port if one.proto in ("tcp", "udp") else 0
            yield Flow(Opening(opener, receiver, number, port, door), 1)
            if receiver.kind is Kind.OUTSIDE and opener.member is not None:
                yield Flow(Opening(opener, Party(Kind.NAMES), PROTOCOLS["udp"], _DNS), 1)

    def _at(self, address: Address) -> Party:
        member = self._by_address.get(address)
        if member is not None:
            return Party(Kind.MEMBER, address, member)
        return Party(Kind.HOST if self.host.has(address) else Kind.OUTSIDE, address)


def _member(member: Member) -> Party:
    """With its first address: lines say none of those that have ended."""
    return Party(Kind.MEMBER, next(iter(member.addresses), None), member)


def protocol_name(number: int) -> str:
    """tcp, udp, icmp, icmpv6, or the number."""
    return PROTOCOL_NAMES.get(number) or str(number)
