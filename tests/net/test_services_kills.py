# SPDX-License-Identifier: Apache-2.0
"""S30, S26: an agent that is killed at any step while a container of a service starts, works, fails, works again and is
drained. No connection is lost but those that the stop grace period ends; who is dead is asked by no other host once the
lease of the agent's host is over; and the next agent makes of what is left what the first would have.
DATAPATH_LONG=1: every step, in parts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

import pytest

from datapath.cluster import keys
from datapath.config.settings import Settings
from datapath.engine import backends as engine
from datapath.host import Host as Opened
from datapath.model.health import BackendState, Verdict
from datapath.model.services import Service
from datapath.store import locking
from datapath.store.sole import HEALTH, Sole
from tests.net import faults, forked
from tests.net.agents import agent
from tests.net.cluster import Cluster, Member, agents, differences, remove
from tests.net.hosts import TIMEOUT, eventually
from tests.net.services import failed, heard, keeper, keeping, names, serve
from tests.net.test_cluster_faults import Maker, faulty, leases
from tests.net.test_faults import LONG, SEED
from tests.net.test_services import vip
from tests.net.test_services_cluster import backends, within
from tests.net.test_services_health import SWITCHED, ends

BRISK = {"cluster-store-opts": {"discovery.ttl": "3", "discovery.heartbeat": "1"}}
CHECK = (
    "--health-tcp 80 --health-interval 30ms --health-timeout 5s --health-retries 2 --health-start-period 1h"
)
# What happens to w1, one after the other, and the states that it may have then. The first is before it is there.
PHASES: dict[str, frozenset[str]] = {
    "beginning": frozenset(),
    "starting": frozenset({"starting"}),
    "up": frozenset({"up"}),
    "failing": frozenset({"unhealthy"}),
    "up again": frozenset({"up"}),
    "draining": frozenset({"draining"}),
    "undrained": frozenset({"up"}),
}
DEAD, DRAINED = ("starting", "failing"), ("draining", "undrained")
PARTS = 8  # of the steps, so that each is a test of minutes
SHORT = {"the backend's": 3, "the client's": 2}  # steps, where not all are tried


class Scene(NamedTuple):
    """Two hosts with a service: `w0` and the client are on the first; on the second `w2` and `w1`, which listens while
    the file is there. `killed`: the host whose agent is killed."""

    made: Cluster
    killed: Member
    file: Path
    folder: Path

    @property
    def first(self) -> Member:
        return self.made[0]

    @property
    def second(self) -> Member:
        return self.made[1]

    @property
    def other(self) -> Member:
        """The host whose agent lives."""
        return self.first if self.killed is self.second else self.second


class Died(NamedTuple):
    """`phase`: in which the agent was killed; "": it was not. `steps`: how many it had taken at the end of each."""

    phase: str
    steps: dict[str, int]


def states(host: Member) -> dict[str, str]:
    return {name: str(row["State"]) for name, row in backends(host).items()}


def enter(scene: Scene, phase: str) -> None:
    """Has w1 get there."""
    if phase == "starting":
        listens = ["python3", "-u", "-c", SWITCHED, "w1", "80", str(scene.file)]
        scene.second.run("w1", "--network ov --service web", listens)
    elif phase in ("up", "up again"):
        scene.file.touch()
    elif phase == "failing":
        scene.file.unlink()
    elif phase in DRAINED:
        scene.first.ctl(f"service {'drain' if phase == 'draining' else 'undrain'} web w1")


def arrived(scene: Scene, phase: str, wanted: frozenset[str]) -> bool:
    """Both hosts know of w1 what is to be known; what is drained has no connection left."""
    if phase == "beginning":
        return (
            locking.held(scene.killed.folder / "state" / HEALTH)
            and len(leases(scene.made)) == 2
            and all(states(host) == {"w0": "up", "w2": "up"} for host in (scene.first, scene.second))
        )
    here, there = states(scene.second), states(scene.first)
    if here.get("w1") not in wanted:
        return False
    if there != {name: state for name, state in here.items() if name != "w1" or phase not in DEAD}:
        return False
    # What is 0 is over; that of one that is gone stays until the next is drained.
    times = [ends(host) for host in (scene.first, scene.second)]
    return not any(map(any, times)) and (phase != "draining" or all(times))


@contextlib.contextmanager
def beginning(scene: Scene, fault: str) -> Iterator[Popen[str]]:
    """An agent with a fault."""
    told = f"{faults.STEPS}={scene.folder / 'steps'}"
    with (scene.folder / "said").open("w") as said:
        running = faulty(scene.killed, fault, told, stdout=said, stderr=said)
        try:
            yield running
        finally:
            running.kill()
            running.wait()


def through(scene: Scene, fault: str, opened: Callable[[], object]) -> Died:
    """All phases, or until the agent dies. `opened` is called once w1 is up."""
    steps: dict[str, int] = {}
    with beginning(scene, fault) as running:

        def over(phase: str, wanted: frozenset[str]) -> bool:
            return running.poll() is not None or arrived(scene, phase, wanted)

        for phase, wanted in PHASES.items():
            with eventually() as until:
                enter(scene, phase)
                until(partial(over, phase, wanted))
            if running.poll() is not None:
                return Died(phase, steps)
            steps[phase] = faults.told(scene.folder / "steps").steps
            if phase == "up":
                opened()
    return Died("", steps)


def one(scene: Scene, fault: str) -> Died:
    """A case: what is left of it is nothing."""
    client = within(scene.first, "client")
    address = vip(scene.first)
    with contextlib.ExitStack() as stack:
        kept: list[tuple[Popen[str], list[str]]] = []

        def opened() -> None:
            process = client(keeper(address, 80, 20), stdin=PIPE, stdout=PIPE)
            kept.append(stack.enter_context(keeping(process)))

        died = through(scene, fault, opened)
        last = died.phase or list(PHASES)[-1]
        if last in DEAD and scene.killed is scene.second:
            no_more(scene)
        with agent(scene.killed), eventually() as until:
            # Who began while nobody checked is up until it fails.
            wanted = PHASES[last] | ({"unhealthy"} if last == "starting" else set())
            until(partial(arrived, scene, last, wanted))
            until(lambda: not differences(scene.made))
            until(lambda: all(host.try_ctl("doctor").returncode == 0 for host in scene.made))
            for process, owners in kept:
                lost = {owners[number] for number in failed(process)}
                assert lost <= ({"w1"} if last in DRAINED else set()), (owners, lost)
            scene.file.unlink(missing_ok=True)
            if last != "beginning":
                remove(scene.second, "w1")
            until(lambda: all(states(host) == {"w0": "up", "w2": "up"} for host in scene.made))
    return died


def no_more(scene: Scene) -> None:
    """The host that has no agent any more has no container that the other one asks: also not the one that is dead."""
    with eventually() as until:
        until(lambda: len(leases(scene.made)) == 1 and states(scene.first) == {"w0": "up"})
    found = heard(lambda argv: scene.first.try_in("client", argv), "tcp", vip(scene.first), 80, 30)
    assert names(found) == {"w0": 30}


def chosen(whose: str, marks: dict[str, int], part: int) -> list[int]:
    """The steps that are tried: all of a part, or some, each of another phase."""
    total = marks[list(PHASES)[-1]]
    if LONG:
        return list(range(part + 1, total + 1, PARTS))
    draw = random.Random(f"{SEED} {whose}")
    ranges = list(zip([0, *marks.values()], marks.values(), strict=False))
    spread = draw.sample([(low, high) for low, high in ranges if high > low], SHORT[whose])
    return [draw.randint(low + 1, high) for low, high in sorted(spread)]


@pytest.mark.parametrize("part", range(PARTS) if LONG else range(1))
@pytest.mark.parametrize("whose", list(SHORT))
def test_s30_s26_an_agent_that_is_killed_at_any_step_of_a_containers_health_leaves_nothing_wrong(
    make_cluster: Maker, tmp_path: Path, whose: str, part: int
) -> None:
    made = make_cluster(1)
    made.add(config=BRISK)
    killed = made[1] if whose == "the backend's" else made[0]
    scene = Scene(made, killed, tmp_path / "works", tmp_path)
    with agents(made.hosts) as at_work, eventually() as until:
        scene.first.ctl("network create -d overlay ov")
        scene.first.ctl(f"service create --network ov --stop-grace-period 300ms {CHECK} web")
        serve(scene.first, "w0", "--network ov --service web", "ov")
        serve(scene.second, "w2", "--network ov --service web", "ov")
        scene.first.run("client", "--network ov")
        until(lambda: all(states(host) == {"w0": "up", "w2": "up"} for host in made))
        at_work[made.hosts.index(killed)].kill()
        start = within(scene.first, "client")
        process = start(keeper(vip(scene.first), 80, 40), stdin=PIPE, stdout=PIPE)
        with keeping(process) as (_, owners):
            assert set(owners) == {"w0", "w2"}
            marks = one(scene, "kill@0").steps
            problems = []
            for number in chosen(whose, marks, part):
                try:
                    died = one(scene, f"kill@{number}")
                    assert died.phase or number > marks["draining"], "it was not killed"
                except AssertionError as error:
                    said = faults.told(tmp_path / "steps")
                    problems.append(f"{whose} agent, killed at step {number} ({said.step}): {error}")
                    break
            assert failed(process) == []
        assert not problems, "\n".join(problems)


# ---- a step of it, by itself -----------------------------------------------------------------------------


@pytest.fixture
def judged(cluster: Cluster) -> Iterator[Cluster]:
    """A service that has a container, `w1`, on the first host; nobody checks it but the test."""
    first = cluster[0]
    first.ctl("network create -d overlay ov")
    first.ctl("service create --network ov --health-tcp 80 web")
    first.run("w1", "--network ov --service web")
    forked.in_child.append(faults.install)
    yield cluster
    forked.in_child.clear()
    first.ctl("service rm web")
    remove(first, "w1")
    first.ctl("network rm ov")


def checking(host: Member, found: Verdict | None = None, fault: str = "count@0") -> int:
    """Whoever checks begins, and finds this of w1; None: nothing new. The exit code."""

    def work() -> int:
        settings = Settings.from_env(os.environ)
        opened = Opened.open(settings)
        with Sole(settings.state_dir / HEALTH, "another agent"):
            if found is None:
                opened.refresh(TIMEOUT)
                return 0
            with opened.changing(create=False) as tx:
                service = tx.state.get(Service, "web")
                (ident,) = service.numbers
                engine.judge(tx, {(service.id, ident): found if found.reason else None})
        return 0

    env = {**(host.env or {}), faults.VARIABLE: fault}
    return forked.call(work, [], host.path, env, TIMEOUT, host.uts).returncode


def told(cluster: Cluster) -> bool:
    """The other hosts know w1 for one of the service's."""
    with cluster.etcd.client() as store:
        entries = store.list(keys.ENDPOINTS).entries.values()
    return any('"services":{' in one.value for one in entries)


@pytest.mark.parametrize("fails", [True, False])
def test_s30_s26_who_is_killed_while_it_says_what_a_check_has_found_is_followed_by_who_says_it(
    judged: Cluster, fails: bool
) -> None:
    """At any step: as the rows say then, it is told to the other hosts."""
    first = judged[0]
    bad, good = Verdict(BackendState.UNHEALTHY, "it does not answer"), Verdict(BackendState.UP)
    before, after = (good, bad) if fails else (bad, good)
    assert checking(first) == checking(first, before) == checking(first, after) == 0
    steps = faults.last().steps
    assert told(judged) == (not fails)
    for number in range(1, steps + 1):
        assert checking(first, before) == 0 and told(judged) == fails
        assert checking(first, after, f"kill@{number}") == -signal.SIGKILL
        what = f"killed at step {number} of {steps} ({faults.last().step})"
        assert checking(first) == 0
        # What the rows say is the truth, or is said anew by the next check.
        out = {"unhealthy": True, "up": False}
        with Sole(first.folder / "state" / HEALTH, "another agent"):
            assert told(judged) != out[states(first)["w1"]], what
