# SPDX-License-Identifier: Apache-2.0
"""Formats ports, states and times as Docker's tables show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from .golang.values import Fraction, Number

if TYPE_CHECKING:
    from datapath.model.containers import Container
    from datapath.model.parsing import Address
    from datapath.model.ports import PortMapping


# ---- numbers --------------------------------------------------------------------------


def seconds(found: float) -> Number:
    """A time in whole seconds: 59s, 2m5s, 23h59m, 7d2h."""
    whole = max(0, round(found))
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return Number(
        whole, "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"
    )


def percent(part: int, whole: int) -> Fraction:
    """How much of the whole a part is."""
    found = round(100 * part / whole, 1) if whole else 0.0
    return Fraction(found, f"{found:.1f}%")


def of(count: int, most: int) -> Number:
    """12/100; 12 where there is no limit."""
    return Number(count, f"{count}/{most}" if most else str(count))


def first_port(first: int, count: int) -> Number:
    """The first port of a range, which is shown whole."""
    return Number(first, port_range(first, count))


# ---- ports ----------------------------------------------------------------------------


def port_range(first: int, count: int) -> str:
    """A port, or a range of them."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def address_text(address: Address | None) -> str:
    """A host address; 0.0.0.0 for all of them."""
    return "0.0.0.0" if address is None else str(address)


def mapping_text(mapping: PortMapping) -> str:
    """0.0.0.0:8000-8099->8000-8099/tcp, [::1]:8081->80/tcp"""
    address = address_text(mapping.host_ip)
    host = f"[{address}]" if ":" in address else address
    ports = f"{port_range(mapping.container_port, mapping.count)}/{mapping.proto}"
    return f"{host}:{port_range(mapping.host_port, mapping.count)}->{ports}"


def ports_text(container: Container) -> str:
    """0.0.0.0:8081->80/tcp, 90/tcp: the published ones, then the exposed; nothing when not running."""
    if not container.running:
        return ""
    published = {
        (mapping.container_port + i, mapping.proto)
        for mapping in container.ports
        for i in range(mapping.count)
    }
    exposed = [f"{port}/{proto}" for port, proto in container.exposed if (port, proto) not in published]
    return ", ".join([*map(mapping_text, container.ports), *exposed])


# ---- states ---------------------------------------------------------------------------


def status_text(container: Container, now: datetime) -> str:
    """Up 5 minutes; Exited (0) 2 hours ago; Created."""
    if container.running:
        return f"Up {since(container.started, now)}"
    if container.status == "exited":
        code = "?" if container.exit_code is None else container.exit_code
        return f"Exited ({code}) {since(container.finished, now)} ago"
    return container.status.capitalize()


# ---- times ----------------------------------------------------------------------------


def created_at(timestamp: str) -> str:
    """An RFC 3339 time stamp as Docker lists it: 2026-11-24 06:05:00 +0000 UTC."""
    if not timestamp:
        return ""
    return datetime.fromisoformat(timestamp).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def moment(text: str, option: str) -> float:
    """A moment as options take it: a duration before now, a time, or seconds since 1970; as the last. ConfigError."""
    from datapath.plan.pruning import parse_moment

    return parse_moment(text, datetime.now(UTC).isoformat(), option).timestamp()


def now() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()


def clock() -> str:
    """The time of day here: 14:02:09."""
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")


def moment_ago(seconds: float) -> str:
    """The moment so long ago, as RFC 3339 has it: 2026-11-24T06:05:00.120Z."""
    found = datetime.fromtimestamp(now() - seconds, UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def since(timestamp: str, now: datetime) -> str:
    """How long before `now` the time stamp is."""
    return (
        duration((now - datetime.fromisoformat(timestamp)).total_seconds())
        if timestamp
        else "an unknown time"
    )


def duration(seconds: float) -> str:
    """A duration as Docker shows it."""
    whole = int(seconds)
    hours = int(seconds / 3600 + 0.5)
    days = hours // 24
    named = (
        (whole < 1, "Less than a second"),
        (whole == 1, "1 second"),
        (whole < 60, f"{whole} seconds"),
        (whole < 120, "About a minute"),
        (whole < 3600, f"{whole // 60} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (days < 14, f"{days} days"),
        (days < 60, f"{days // 7} weeks"),
        (days < 730, f"{days // 30} months"),
    )
    return next((text for fits, text in named if fits), f"{days // 365} years")
