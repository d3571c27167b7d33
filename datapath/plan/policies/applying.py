# SPDX-License-Identifier: Apache-2.0
"""What becomes of the policies of a host when some are applied: decided before anything changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.model.drivers import traits
from datapath.model.host import HostNetwork
from datapath.model.networks import Network
from datapath.model.parsing import PORT_PROTOCOLS
from datapath.model.policies import Direction, Kind, Party, Policy, Rule, World
from datapath.model.rows import Phase
from datapath.model.state import Fresh, State
from datapath.plan.policies.builtin import builtin_policies, world_here
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.labels import has_label, label_policies
from datapath.plan.policies.review import refuse_ambiguous
from datapath.plan.policies.rows import Rows

CREATED, CONFIGURED, UNCHANGED, REMOVED = "created", "configured", "unchanged", "removed"


class ApplyPlan(NamedTuple):
    """`put`: rows that are new or others than they were; `gone`: those that go; `outcomes`: what becomes of each, by
    its name."""

    put: tuple[Policy, ...]
    gone: tuple[Policy, ...]
    outcomes: dict[str, str]

    def after(self, state: State) -> State:
        """The rows then."""
        return state.without(*self.gone).including(*self.put)


def plan_apply(given: Sequence[Policy], state: State, fresh: Fresh, prune: bool) -> ApplyPlan:
    """`prune`: policies that are not given go. ConfigError: something of it would not be enforced."""
    for policy in given:
        refuse_unenforced(policy)
    put, outcomes = [], {}
    for policy in given:
        known = state.named(Policy, policy.name)
        ident, created = (known.id, known.created) if known else (fresh.new_id(), fresh.now)
        row = replace(_bare(policy), id=ident, created=created, phase=Phase.READY)
        same = known is not None and _numbered(row) == _numbered(known)
        outcomes[policy.name] = UNCHANGED if same else CONFIGURED if known else CREATED
        if not same:
            put.append(row)
    gone = tuple(policy for policy in state.policies.values() if prune and policy.name not in outcomes)
    outcomes |= {policy.name: REMOVED for policy in gone}
    return ApplyPlan(tuple(put), gone, outcomes)


def _bare(policy: Policy) -> Policy:
    """Without its places in a file, which may be another one tomorrow."""

    def bare(rules: Iterable[Rule]) -> tuple[Rule, ...]:
        return tuple(replace(rule, where="") for rule in rules)

    both = {}
    for direction in Direction:
        rules = policy.rules(direction)
        allow = None if rules.allow is None else bare(rules.allow)
        both[direction] = replace(rules, deny=bare(rules.deny), allow=allow)
    return replace(policy, where="", ingress=both[Direction.IN], egress=both[Direction.OUT])


def _numbered(policy: Policy) -> tuple[Policy, list[int]]:
    """Rules are the same whatever their numbers are, and rows are not."""
    rules = (policy.rules(direction) for direction in Direction)
    return policy, [rule.number for some in rules for rule in (*some.deny, *(some.allow or ()))]


def refuse_unenforced(policy: Policy) -> None:
    """ConfigError: the packet programs do not do what it says."""
    for direction in Direction:
        rules = policy.rules(direction)
        if rules.rate:
            raise ConfigError(f"{policy.where}: policy {policy.name}: rate is not enforced yet: leave it out")
        for rule in (*rules.deny, *(rules.allow or ())):
            if rule.peer.domain:
                name = quoted(rule.peer.domain)
                raise ConfigError(
                    f"{rule.where}: DNS names are not enforced yet: allow addresses in place of {name}, or, "
                    f"if it is a container's, write {{name: {name}}}"
                )


def refuse_undecided(policies: Iterable[Policy], state: State, world: World) -> None:
    """ConfigError: they are about a container on a network whose packets the packet programs do not decide."""
    blind = {one.name for one in state.networks.values() if not decided(one)}
    members = [member for member in world.members if member.here and member.network in blind]
    for policy in policies if members else ():
        for member in members:
            if policy.subject.fits(Party(Kind.MEMBER, None, member), world, unknown=True):
                raise ConfigError(
                    f"policy {policy.name} is about {member.name or 'a container'} on network {member.network}, "
                    "where packets do not pass the packet programs: nothing was changed"
                )


def _refuse_services(state: State) -> None:
    """ConfigError: a policy is about a published port that is a service's, of which the programs do not ask it."""
    for policy in state.policies.values():
        for service in state.services.values() if policy.published else ():
            for _, port, _, name in (one for mapping in service.ports for one in mapping.expand()):
                scope = policy.published
                if scope and scope.protocol == PORT_PROTOCOLS[name] and scope.first <= port <= scope.last:
                    raise ConfigError(
                        f"policy {policy.name} is about port {port}, which service {service.name} publishes, "
                        "and is not enforced there: leave published: out, which makes it about all who come in"
                    )


def decided(network: Network) -> bool:
    """The packet programs decide what its members open and who opens something to them."""
    found = traits(network)
    return found.programs and not found.lan


def is_governed(state: State) -> bool:
    """Some policy is there, of an operator or in a container's label."""
    if state.policies or any(has_label(one.labels) for one in state.containers.values()):
        return True
    return any(has_label(one.labels) for one in state.sandboxes.values())


def rows_here(state: State, host: HostNetwork) -> tuple[Rows, tuple[str, ...]]:
    """The rows by which the packet programs of this host decide, and what is to be told of labels. What networks,
    links and ports say the programs know otherwise. ConfigError: there are too many."""
    if not is_governed(state):
        return Rows(), ()
    world = world_here(state, host)
    labels, complaints = label_policies(world)
    own = sorted(state.policies.values(), key=lambda policy: policy.name)
    return plan_rows((*own, *labels), world), complaints


def in_force(state: State, world: World, given: Sequence[Policy] = ()) -> tuple[Policy, ...]:
    """All that decide: what networks, links and ports say, too. `given`: as if these were applied."""
    names = {policy.name for policy in given}
    own = sorted((p for p in state.policies.values() if p.name not in names), key=lambda policy: policy.name)
    return (*builtin_policies(state), *own, *given, *label_policies(world)[0])


def check(given: Sequence[Policy], after: State, host: HostNetwork) -> Rows:
    """The rows that there will be. ConfigError: they would not be enforced, or do not fit, with those that there are
    besides."""
    world = world_here(after, host)
    refuse_ambiguous(given, world)
    refuse_undecided(after.policies.values(), after, world)
    _refuse_services(after)
    return rows_here(after, host)[0]
