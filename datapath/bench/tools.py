# SPDX-License-Identifier: Apache-2.0
"""Parses the output of the measuring programs. No I/O, no clock."""

from __future__ import annotations

import json
import re
from typing import Any

from datapath.bench.model import Sample
from datapath.errors import DatapathError

_PERCENTILE = re.compile(r"percentile (\d+\.\d+) =\s+(\d+\.\d+)")
_VALID = re.compile(r"\[Valid Duration\] RunTime=(\d+\.\d+) sec; SentMessages=(\d+); ReceivedMessages=(\d+)")
_MEAN = re.compile(r"avg-latency=(\d+\.\d+)")
_LOST = re.compile(r"# dropped messages = (\d+)")
_WRK_RATE = re.compile(r"^Requests/sec:\s+(\d+\.\d+)$", re.MULTILINE)
_WRK_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_WRK_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_WRK_LATENCY = re.compile(r"^\s+(50|75|90|99)%\s+(\d+\.\d+)(us|ms|s)$", re.MULTILINE)
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def sockperf(text: str) -> Sample:
    """A ping-pong's median round trip in µs. sockperf tells half of it, the "latency"."""
    valid, mean = _VALID.search(text), _MEAN.search(text)
    half = {share: float(value) for share, value in _PERCENTILE.findall(text)}
    if valid is None or mean is None or "50.000" not in half:
        raise DatapathError("sockperf: it says no latency")
    lost = _LOST.search(text)
    return Sample(
        2 * half["50.000"],
        {
            "mean_us": 2 * float(mean[1]),
            "p99_us": 2 * half.get("99.000", 0.0),
            "seconds": float(valid[1]),
            "round_trips": int(valid[3]),
            "lost": int(lost[1]) if lost else 0,
        },
    )


def connections(text: str) -> Sample:
    """Connections a second, by our own probe; those that failed are a detail."""
    found = _json(text, "probe")
    return Sample(found["connections"] / found["seconds"], found)


def questions(text: str) -> Sample:
    """The median time of a question in µs, by our own program. One that was answered wrongly is an error."""
    found = _json(text, "questions")
    if found["wrong"] or not found["answered"]:
        raise DatapathError(f"questions: {found['answered']} answered, {found['wrong']} wrongly")
    return Sample(found["p50_ns"] / 1e3, found)


def question_rate(text: str) -> Sample:
    """Answers a second, by the same."""
    found = questions(text).details
    return Sample(found["answered"] / found["seconds"], found)


def iperf3_stream(text: str) -> Sample:
    """Bits a second that the receiver got, in Gbit/s."""
    end = _iperf3(text)
    got, sent = end["sum_received"], end["sum_sent"]
    cpu = end["cpu_utilization_percent"]
    return Sample(
        got["bits_per_second"] / 1e9,
        {
            "bytes": got["bytes"],
            "seconds": got["seconds"],
            "retransmits": sent.get("retransmits", 0),
            "sender_cpu_percent": cpu["host_total"],
            "receiver_cpu_percent": cpu["remote_total"],
        },
    )


def iperf3_packets(text: str) -> Sample:
    """UDP packets a second, in thousands, that went all the way: to the receiver's socket, whose buffer may be full
    on a shared core."""
    end = _iperf3(text)
    total = end["sum"]
    return Sample(
        total["packets"] / total["seconds"] / 1e3,
        {"packets": total["packets"], "lost": total["lost_packets"], "seconds": total["seconds"]},
    )


def _iperf3(text: str) -> Any:
    found = _json(text, "iperf3")
    if "error" in found:
        raise DatapathError(f"iperf3: {found['error']}")
    return found["end"]


def wrk(text: str) -> Sample:
    """Requests a second. What failed is an error: it would be quick."""
    rate = _WRK_RATE.search(text)
    if rate is None:
        raise DatapathError("wrk: it says no rate")
    errors = _WRK_ERRORS.search(text)
    bad = _WRK_BAD.search(text)
    if bad or (errors and int(errors[1])):
        raise DatapathError(f"wrk: {(bad or errors)[0]}")  # type: ignore[index]
    latency = {f"p{p}_us": float(v) * _MICROSECONDS[unit] for p, v, unit in _WRK_LATENCY.findall(text)}
    names = ("connect", "read", "write", "timeout")
    failed = dict(zip(names, map(int, errors.groups()), strict=True)) if errors else {}
    return Sample(float(rate[1]), {**latency, "socket_errors": failed})


def _json(text: str, program: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DatapathError(f"{program}: it does not say JSON") from error
