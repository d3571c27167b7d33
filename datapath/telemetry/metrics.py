# SPDX-License-Identifier: Apache-2.0
"""What is counted, as families of metrics: names, units and labels, whoever writes them down. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from datapath.model.flows import ALLOWED, REFUSED, FlowLine
from datapath.model.reasons import MEANINGS
from datapath.telemetry.series import OTHER, Series, fold
from datapath.telemetry.snapshot import Snapshot
from datapath.telemetry.stats import Stats

PREFIX = "datapath_"
SERIES = 5000  # of one exposition, unless somebody wants another number
LEAST = 100
# Parts of these, in percent: totals of what was allowed have five series each, refused ones two.
_ALLOWED, _REFUSED = 70, 16
_RULES = 500  # from so many on a policy has one series, not one a rule

Labels = tuple[str, ...]
_EDGE = ("network", "source", "destination", "port", "protocol")
_BARRED = ("network", "source", "destination", "protocol", "reason")


class Family(NamedTuple):
    """`name`: without PREFIX, of a counter without "_total". `values`: by the values of `labels`, in their order."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Labels
    values: Mapping[Any, float]  # of tuples of text, as many as there are labels

    @property
    def sample(self) -> str:
        """The name of its samples."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


class Host(NamedTuple):
    """What is known of the host beside a snapshot. `agent`: one is at work; `heard`: seconds since all that other hosts
    of its cluster had changed was known here, None: it is in none; `runs`: program -> how often it ran, and
    nanoseconds, as far as the kernel measures that."""

    version: str
    agent: bool
    heard: float | None
    runs: Mapping[str, tuple[int, int]]


def of_stats(found: Stats, version: str) -> Iterator[Family]:
    """Counters of the packet programs, and how full their maps are."""
    yield Family("build_info", "gauge", "The version of datapath.", ("version",), {(version,): 1})
    loaded = {(): int(bool(found.fill))}
    yield Family("programs_loaded", "gauge", "Whether the packet programs are loaded.", (), loaded)
    counters = [(name, found.counters[name]) for name in MEANINGS if name in found.counters]
    for index, (name, what) in enumerate((("packets", "Packets"), ("bytes", "Bytes of packets"))):
        values = {(reason,): both[index] for reason, both in counters}
        yield Family(name, "counter", f"{what}, by what became of them.", ("reason",), values)
    maps = (("map_entries", "Entries of a map."), ("map_max_entries", "Its size."))
    for index, (name, help_) in enumerate(maps):
        yield Family(
            name, "gauge", help_, ("map",), {(key,): both[index] for key, both in found.fill.items()}
        )
    asked = {
        (network, result): number
        for network, counts in sorted(found.questions.items())
        for result, number in counts.items()
    }
    help_ = "Questions for names, by what became of them."
    yield Family("questions", "counter", help_, ("network", "result"), asked)
    yield from _limits(found)
    yield from _services(found)


def _limits(found: Stats) -> Iterator[Family]:
    labels = ("container", "network", "direction")
    limited = {(use.container, use.network, str(use.limit.direction)): use for use in found.limits}
    bits = {of: use.limit.rate for of, use in limited.items()}
    yield Family("limit_bits_per_second", "gauge", "Limits of bandwidth.", labels, bits)
    for what in ("packets", "bytes"):
        values = {of: getattr(use, what) for of, use in limited.items()}
        help_ = f"What limits of bandwidth dropped, {what}."
        yield Family(f"limit_dropped_{what}", "counter", help_, labels, values)


def _services(found: Stats) -> Iterator[Family]:
    labels = ("service", "backend")
    behind = {(use.service, use.backend): use for use in found.services}
    for name, what in (("opened", "were opened"), ("failed", "could not be opened")):
        values = {of: getattr(use, name) for of, use in behind.items()}
        help_ = f'Connections of a service (backend="") or to a backend that {what}.'
        yield Family(f"service_{name}", "counter", help_, labels, values)
    for what in ("packets", "bytes"):
        passed = {
            (*of, way): getattr(use, f"{what}_{way}") for of, use in behind.items() for way in ("in", "out")
        }
        help_ = f'{what.title()} to a backend (direction="in") and from it; backend="": of all of a service.'
        yield Family(f"service_{what}", "counter", help_, (*labels, "direction"), passed)


def of_snapshot(snapshot: Snapshot, host: Host, most: int = SERIES) -> Iterator[Family]:
    """All of them. `most`: series there may be; what has grown with traffic is folded until it fits."""
    yield from of_stats(snapshot.stats, host.version)
    yield from _host(host)
    yield from _connections(snapshot)
    present = frozenset(member.name for member in snapshot.members)
    shares = {ALLOWED: most * _ALLOWED // 100 // 5, REFUSED: most * _REFUSED // 100 // 2}
    allowed, refused = (fold(snapshot.totals, present, one, share) for one, share in shares.items())
    yield from _allowed(allowed)
    yield from _refused(refused)
    folded = {(ALLOWED,): allowed.folded, (REFUSED,): refused.folded}
    help_ = f'Totals of edges that are in series with "{OTHER}", as there are too many.'
    yield Family("series_folded", "gauge", help_, ("verdict",), folded)
    yield from _unplaced(snapshot.unplaced)
    yield from _policies(snapshot)


def _host(host: Host) -> Iterator[Family]:
    yield Family("agent_running", "gauge", "Whether an agent is at work.", (), {(): int(host.agent)})
    if host.heard is not None:
        help_ = "Time since all that other hosts had changed was known here."
        yield Family("cluster_heard_seconds", "gauge", help_, (), {(): host.heard})
    if host.runs:
        ran = {(name,): number for name, (number, _) in host.runs.items()}
        yield Family("program_runs", "counter", "Runs of a packet program.", ("program",), ran)
        took = {(name,): length / 1e9 for name, (_, length) in host.runs.items()}
        help_ = "Time that a packet program has taken (kernel.bpf_stats_enabled)."
        yield Family("program_seconds", "counter", help_, ("program",), took)


def _connections(snapshot: Snapshot) -> Iterator[Family]:
    help_ = "Connections that are translated or tracked, by table and state."
    states = {both: float(number) for both, number in snapshot.connections.states.items()}
    yield Family("connections", "gauge", help_, ("table", "state"), states)
    mine = {(name,): both[0] for name, both in sorted(snapshot.connections.quotas.items())}
    yield Family("container_connections", "gauge", "Those that a container has opened.", ("container",), mine)
    members = {
        (one.name, "true" if one.watched else "false"): sum(one.name in m.networks for m in snapshot.members)
        for one in snapshot.networks
    }
    help_ = "Containers on a network; flows: whether who talks to whom is counted there."
    yield Family("network_members", "gauge", help_, ("network", "flows"), members)


def _allowed(found: Series) -> Iterator[Family]:
    edges = {edge[:5]: numbers for edge, numbers in found.edges.items()}
    help_ = "Connections that source has opened to destination, at its port."
    opened = {edge: numbers[0] for edge, numbers in edges.items()}
    yield Family("edge_connections", "counter", help_, _EDGE, opened)
    for place, what in ((1, "packets"), (2, "bytes")):
        passed = {
            (*edge, way): numbers[place + more]
            for edge, numbers in edges.items()
            for way, more in (("sent", 0), ("received", 2))
        }
        help_ = f"{what.title()} of IP that source has sent to destination and received."
        yield Family(f"edge_{what}", "counter", help_, (*_EDGE, "direction"), passed)


def _refused(found: Series) -> Iterator[Family]:
    for place, what in ((1, "packets"), (2, "bytes")):
        values = {
            (*edge[:3], edge.protocol, edge.reason): numbers[place] for edge, numbers in found.edges.items()
        }
        help_ = f"{what.title()} from source to destination that were dropped, by reason."
        yield Family(f"refused_{what}", "counter", help_, _BARRED, values)


def _unplaced(rest: FlowLine | None) -> Iterator[Family]:
    """What the table of totals had no room for."""
    counts = {
        "connections": rest.connections if rest else 0,
        "packets": rest.sent_packets + rest.received_packets if rest else 0,
        "bytes": rest.sent_bytes + rest.received_bytes if rest else 0,
    }
    for what, number in counts.items():
        help_ = f"{what.title()} that are in no edge: the table of totals is full."
        yield Family(f"unplaced_{what}", "counter", help_, (), {(): number})


def _policies(snapshot: Snapshot) -> Iterator[Family]:
    """By rule, or by policy if there are many."""
    modes = {glance.name: glance.mode for glance, _, _ in snapshot.policies}
    by_rule = len(snapshot.hits) <= _RULES
    opened: dict[Labels, float] = {}
    dropped: dict[Labels, float] = {}
    for hit in snapshot.hits:
        of = (hit.policy, str(hit.rule) if by_rule else OTHER)
        opened[of] = opened.get(of, 0) + hit.openings
        audited = (*of, modes.get(hit.policy, "enforce"))
        dropped[audited] = dropped.get(audited, 0) + hit.refused
    labels = ("policy", "rule")
    help_ = "Openings that a rule of a policy has let pass; rule 0: none of its rules."
    yield Family("policy_openings", "counter", help_, labels, opened)
    help_ = "Packets that a rule has refused; mode audit: openings that it would have."
    yield Family("policy_refused", "counter", help_, (*labels, "mode"), dropped)


def text(families: Iterable[Family]) -> Iterator[str]:
    """The lines of Prometheus' text format 0.0.4, with labels in their order."""
    for family in families:
        yield f"# HELP {family.sample} {_escaped(family.help)}"
        yield f"# TYPE {family.sample} {family.kind}"
        for of, value in family.values.items():
            named = ",".join(
                f'{name}="{_escaped(one, quoted=True)}"' for name, one in zip(family.labels, of, strict=True)
            )
            yield f"{family.sample}{f'{{{named}}}' if named else ''} {value}"


def _escaped(words: str, *, quoted: bool = False) -> str:
    shown = words.replace("\\", "\\\\").replace("\n", "\\n")
    return shown.replace('"', '\\"') if quoted else shown
