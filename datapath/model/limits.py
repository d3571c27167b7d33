# SPDX-License-Identifier: Apache-2.0
"""Limits of bandwidth of an endpoint, as its driver options say them. Bits, and bits a second. ConfigError."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.model.networks import (
    OPT_EGRESS_BURST,
    OPT_EGRESS_RATE,
    OPT_INGRESS_BURST,
    OPT_INGRESS_RATE,
)

LimitDirection = Literal["ingress", "egress"]  # as the container sees it: ingress is what it receives
# The options of each direction: its rate, and its burst.
LIMIT_OPTIONS: Mapping[LimitDirection, tuple[str, str]] = {
    "ingress": (OPT_INGRESS_RATE, OPT_INGRESS_BURST),
    "egress": (OPT_EGRESS_RATE, OPT_EGRESS_BURST),
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kmg]i?)?(?:bit)?", re.I)
MOST_BITS = 10**12  # of either
# A sender that loses all of a window waits 200 ms before it sends again (Linux's shortest TCP time-out), and then twice
# as long: with less in the bucket it stays below its rate.
_PAUSE = 400  # ms
_LARGEST = 600_000  # bits: the largest packet that a host cuts into segments, with the headers of each


class Limit(NamedTuple):
    """One direction: `rate` bits a second, and no more than `burst` bits besides, whenever the endpoint was idle for
    long enough."""

    direction: LimitDirection
    rate: int
    burst: int


def default_burst(rate: int) -> int:
    """How many bits may come at once where nobody has said it: what lets one TCP connection have all of its rate."""
    return max(rate * _PAUSE // 1000, _LARGEST)


def parse_bits(name: str, value: str) -> str:
    """The value of one of LIMIT_OPTIONS: a whole number above zero, which k, M, G, Ki, Mi, Gi may follow."""
    match = _QUANTITY.fullmatch(value)
    bits = _bits(*match.groups()) if match else 0
    if not 1 <= bits <= MOST_BITS:
        raise ConfigError(
            f"invalid value {quoted(value)} for option {name}: expected bits, as in 500k, 10M or 1G"
        )
    return str(bits)


def _bits(number: str, unit: str | None) -> int:
    """Without a part of one. Whole numbers alone: a float would not be exact, and a fraction's module is large."""
    whole, _, part = number.partition(".")
    digits, scale = int(whole + part), int("1" + "0" * len(part))
    return digits * _UNITS[(unit or "").lower()] // scale


def limits_of(options: Mapping[str, str]) -> tuple[Limit, ...]:
    """The limits that driver options ask for, each of which parse_bits() has read. ConfigError: a burst alone."""
    found = []
    for direction, (rate, burst) in LIMIT_OPTIONS.items():
        if rate in options:
            bits = int(options[rate])
            found.append(Limit(direction, bits, int(options.get(burst, 0)) or default_burst(bits)))
        elif burst in options:
            raise ConfigError(f"option {burst} needs option {rate}")
    return tuple(found)
