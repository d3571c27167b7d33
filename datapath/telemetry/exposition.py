# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus and its kin read them, written by its own library, which is optional."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from datapath.engine.engine import Engine
from datapath.errors import ConfigError
from datapath.telemetry import metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

MISSING = (
    "metrics are written by prometheus-client, which is not installed: apt install python3-prometheus-client, or pip "
    "install 'datapathctl[metrics]'"
)
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Exposition(NamedTuple):
    """The text, and the Content-Type that it has on HTTP."""

    body: bytes
    content_type: str


def require() -> None:
    """ConfigError if the library is not installed."""
    try:
        import prometheus_client.metrics_core  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING) from error


def expose(
    engine: Engine, version: str, *, openmetrics: bool = False, most: int = metrics.SERIES
) -> Exposition:
    """All metrics of the host now, in OpenMetrics 1.0 or in the text format that came before. `version`: of datapath;
    `most`: series there may be. ConfigError: the library is not installed. Takes no lock, changes nothing."""
    require()
    return write(families(engine, version, most), openmetrics=openmetrics)


def families(engine: Engine, version: str, most: int = metrics.SERIES) -> list[metrics.Family]:
    """What `expose` writes."""
    from datapath.dataplane import costs
    from datapath.store import heard, locking
    from datapath.store.sole import AGENT
    from datapath.telemetry import snapshot

    settings = engine.settings
    found = snapshot.take(engine, policies=True)
    last = heard.read(settings.run_dir)
    host = metrics.Host(
        version,
        locking.held(settings.state_dir / AGENT),
        last.age if last else None,
        costs.runs(settings.bpffs),
    )
    return list(metrics.of_snapshot(found, host, most))


def write(found: Iterable[metrics.Family], *, openmetrics: bool = False) -> Exposition:
    """These families."""
    writer: Any
    if openmetrics:
        from prometheus_client.openmetrics import exposition

        writer, kind = exposition, "application/openmetrics-text; version=1.0.0; charset=utf-8"
    else:
        import prometheus_client

        writer, kind = prometheus_client, _TEXT
    return Exposition(writer.generate_latest(_Collected(found)), kind)


class _Collected:
    """What the writers take for a registry; the library's own one has this process' memory and files in it."""

    def __init__(self, found: Iterable[metrics.Family]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        for family in self._found:
            kind: Any = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            made = kind(f"{metrics.PREFIX}{family.name}", family.help, labels=family.labels)
            for of, value in family.values.items():
                made.add_metric(of, value)
            yield made
