# SPDX-License-Identifier: Apache-2.0
"""Which networks `network prune` removes. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from datapath.errors import ConfigError, quoted
from datapath.model.networks import Network
from datapath.model.rows import OWNER, Phase
from datapath.model.state import State


def plan_network_prune(state: State, filters: Sequence[str], now: str) -> tuple[Network, ...]:
    """Every unused network that passes the filters (`label=`, `label!=`, `until=`), "removing"."""
    conditions = [_condition(text, now) for text in filters]
    return tuple(
        replace(network, phase=Phase.REMOVING)
        for network in state.networks.values()
        if not network.predefined
        and network.owner == OWNER
        and not state.endpoints_of_network(network.id)
        and not state.services_of_network(network.id)
        and all(condition(network) for condition in conditions)
    )


def _condition(text: str, now: str) -> Callable[[Network], bool]:
    key, equals, value = text.partition("=")
    if key == "until" and value:
        limit = parse_moment(value, now, "filter until")
        return lambda network: _time(network.created) < limit
    if key in ("label", "label!") and value:
        name, has_value, wanted = value.partition("=")

        def labelled(network: Network) -> bool:
            return name in network.labels and (not has_value or network.labels[name] == wanted)

        return labelled if key == "label" else lambda network: not labelled(network)
    if not equals:
        raise ConfigError(f"bad format of filter {quoted(text)}: expected name=value")
    raise ConfigError(f"invalid filter {quoted(text)}: there are label=, label!= and until=")


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|ms|s|m|h)")


def parse_moment(text: str, now: str, what: str) -> datetime:
    """A moment: a duration before now (`24h`, `1h30m`), a time (RFC 3339), or seconds since 1970."""
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        if re.fullmatch(f"({_PART.pattern})+", text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
            return _time(now) - timedelta(seconds=seconds)
        return _time(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"invalid {what}={quoted(text)}: expected a duration or a time") from None


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
