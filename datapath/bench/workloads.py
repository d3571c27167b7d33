# SPDX-License-Identifier: Apache-2.0
"""Workloads: a server, a client, and what the client's output means. The same programs in every mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.bench import tools
from datapath.bench.model import Better, Sample

_OBJECTS = Path(__file__).resolve().parents[1] / "objects"
PROBE = str(_OBJECTS / "probe")
QUESTIONS, QUESTIONS_MUSL = str(_OBJECTS / "questions"), str(_OBJECTS / "questions-musl")
MESSAGE = 64  # bytes of a request, of an answer, and of a UDP packet's payload
HTTP_CONNECTIONS = 8
_NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 0.0.0.0:{port};
        location / {{ return 200 "{body}"; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """`server(port, folder)` and `client(address, port, seconds)` are command lines. `held`: the client waits for two
    seconds before it begins, see `traffic`, and then warms up by itself. `udp`: what the server's port is.
    `programs`: what has to be installed."""

    name: str
    title: str
    unit: str
    better: Better
    programs: tuple[str, ...]
    server: Callable[[int, Path], list[str]]
    client: Callable[[str, int, float], list[str]]
    parse: Callable[[str], Sample]
    udp: bool = False
    held: bool = False


def _whole(seconds: float) -> str:
    """For programs that know whole seconds only."""
    return str(max(1, math.ceil(seconds)))


def _round_trips(proto: str) -> Workload:
    tcp = ["--tcp"] if proto == "tcp" else []
    return Workload(
        name=f"{proto}_rr",
        title=f"{proto.upper()} round trip of {MESSAGE} bytes",
        unit="µs",
        better="lower",
        programs=("sockperf",),
        server=lambda port, _: [
            *("sockperf", "server", "-i", "0.0.0.0", "-p", str(port), *tcp, "--uc-reuseaddr"),
        ],
        client=lambda address, port, seconds: [
            *("sockperf", "ping-pong", "-i", address, "-p", str(port), *tcp),
            *("-m", str(MESSAGE), "-t", _whole(seconds)),
        ],
        parse=tools.sockperf,
        udp=proto == "udp",
        held=True,
    )


def _iperf3(port: int, _: Path) -> list[str]:
    return ["iperf3", "--server", "--port", str(port)]


def _nginx(port: int, folder: Path) -> list[str]:
    path = folder / f"nginx-{port}.conf"
    path.write_text(_NGINX.format(folder=folder, port=port, body="x" * MESSAGE))
    return ["nginx", "-c", str(path), "-e", f"{folder}/nginx.log"]


def _http(name: str, title: str, *headers: str) -> Workload:
    return Workload(
        name=name,
        title=title,
        unit="requests/s",
        better="higher",
        programs=("nginx", "wrk"),
        server=_nginx,
        client=lambda address, port, seconds: [
            *("timeout", "--preserve-status", "--signal=INT", f"{seconds:g}"),  # it knows whole seconds only
            *("wrk", "-t1", f"-c{HTTP_CONNECTIONS}", f"-d{2 * seconds + 1:.0f}", "--latency", *headers),
            f"http://{address}:{port}/",
        ],
        parse=tools.wrk,
    )


TCP_RR, UDP_RR = _round_trips("tcp"), _round_trips("udp")

TCP_CONNECT = Workload(
    name="tcp_connect",
    title="TCP connections opened and closed",
    unit="connections/s",
    better="higher",
    programs=(PROBE,),
    server=lambda port, _: [PROBE, "serve", str(port)],
    client=lambda address, port, seconds: [PROBE, "connect", address, str(port), f"{seconds:g}"],
    parse=tools.connections,
)

TCP_INSIST = replace(
    TCP_CONNECT,
    name="tcp_insist",
    title="TCP connections opened and closed, of which some may fail",
    client=lambda address, port, seconds: [PROBE, "insist", address, str(port), f"{seconds:g}"],
)

TCP_STREAM = Workload(
    name="tcp_stream",
    title="One TCP stream",
    unit="Gbit/s",
    better="higher",
    programs=("iperf3",),
    server=_iperf3,
    client=lambda address, port, seconds: [
        *("iperf3", "--client", address, "--port", str(port), "--time", _whole(seconds), "--json")
    ],
    parse=tools.iperf3_stream,
)

UDP_PPS = Workload(
    name="udp_pps",
    title=f"UDP packets of {MESSAGE} bytes",
    unit="1000 packets/s",
    better="higher",
    programs=("iperf3",),
    server=_iperf3,
    client=lambda address, port, seconds: [
        *("iperf3", "--client", address, "--port", str(port), "--time", _whole(seconds), "--json"),
        *("--udp", "--length", str(MESSAGE), "--bitrate", "0"),
    ],
    parse=tools.iperf3_packets,
)

HTTP_KEEPALIVE = _http("http_keepalive", "HTTP requests over connections that stay")
HTTP_CLOSE = _http("http_close", "HTTP requests over a connection each", "-H", "Connection: close")

WORKLOADS = (TCP_RR, UDP_RR, TCP_CONNECT, TCP_STREAM, UDP_PPS, HTTP_KEEPALIVE, HTTP_CLOSE)
