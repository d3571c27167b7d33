# SPDX-License-Identifier: Apache-2.0
"""The capability `bandwidth`: what the plugin of that name takes, as driver options of the endpoint.

Rates are bits a second, bursts bits; `ingress` is what the container receives. Kubernetes' annotations
kubernetes.io/ingress-bandwidth and egress-bandwidth arrive so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from datapath.model.limits import LIMIT_OPTIONS, MOST_BITS

from .protocol import INVALID, CniError

KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
# What runtimes send because the field must not be empty: nobody has chosen it, and no limit would come of it.
_NO_CHOICE = (2**31 - 1, 2**32 - 1)
_MOST_BURST = 8 * 2**32  # as the plugin has it: 4 GiB


def options(given: object) -> Iterator[str]:
    """Driver options, from an object with some of KEYS, in any case; zero: no limit. CniError."""
    if not isinstance(given, Mapping):
        raise CniError(INVALID, f"bandwidth: {json.dumps(given)} is no object")
    fields = {name.lower(): value for name, value in given.items()}
    if unknown := sorted(fields.keys() - {name.lower() for name in KEYS}):
        raise CniError(INVALID, f"bandwidth: {unknown[0]} is unknown: there are {', '.join(KEYS)}")
    for direction, (rate_option, burst_option) in LIMIT_OPTIONS.items():
        rate, burst = (_bits(fields, f"{direction}{what}") for what in ("Rate", "Burst"))
        if burst and not rate:
            raise CniError(INVALID, f"bandwidth: {direction}Burst is set, so {direction}Rate must be, too")
        if burst >= _MOST_BURST:
            raise CniError(INVALID, f"bandwidth: {direction}Burst {burst} is more than 4 GiB")
        if rate:
            yield f"{rate_option}={min(rate, MOST_BITS)}"
        if burst and burst not in _NO_CHOICE:
            yield f"{burst_option}={burst}"


def _bits(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name.lower()) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CniError(INVALID, f"bandwidth: {name} {json.dumps(value)} is no number of bits")
    return value
