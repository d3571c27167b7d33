# SPDX-License-Identifier: Apache-2.0
"""Programs that people run, unmodified, through published ports and masquerading: web, name, file and login
servers and their clients, iperf3, traceroute and ping. DATAPATH_LONG=1: with larger transfers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.net.hosts import HOST, OUTSIDE, PATIENCE, Host, Namespace, Words, eventually, reaches
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import Container, Place, call, counters, fails, opened, rises, serving, start_container

Maker = Callable[..., Host]

LONG = os.environ.get("DATAPATH_LONG") == "1"
TRANSFER = (1024 if LONG else 200) << 20  # bytes
SHORT = 20_000  # connections
BEYOND, BEYOND6 = "198.51.100.2", "2001:db8:2::2"
NARROW = 1400  # MTU, bytes, of the router's way to `beyond`

NGINX = """
daemon off; worker_processes 1; master_process off; pid {folder}/nginx.pid; error_log stderr crit;
user root; worker_rlimit_nofile 20000;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_body_temp_path {folder}/body; client_max_body_size 0; sendfile on;
    fastcgi_temp_path {folder}/t; proxy_temp_path {folder}/t; scgi_temp_path {folder}/t;
    uwsgi_temp_path {folder}/t; keepalive_requests 1000000;
    server {{
        listen {port} backlog=4096; listen [::]:{port} backlog=4096;
        location / {{ root {folder}; dav_methods PUT; }}
        location /short {{ return 200 "short\\n"; }}
    }}
}}
"""


def nginx(folder: Path, port: int) -> list[str]:
    """The command for a web server of that folder."""
    folder.mkdir(parents=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, port=port))
    return ["nginx", "-c", str(configuration), "-e", "stderr"]


@dataclass
class Topology:
    """`beyond`: a machine one router (`outside`) further, to which only smaller packets can be sent."""

    host: Host
    beyond: Namespace
    web: Container
    app: Container
    folder: Path  # of the web servers: web, outside, beyond

    @property
    def outside(self) -> Namespace:
        return self.host.outside


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        plug_ipv6(host)
        beyond = Namespace()
        stack.callback(beyond.close)
        _plug_beyond(host.outside, beyond)
        host.ctl("network create --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 net")
        web = start_container(host, "web", "--network net -p 8080:80", nginx(folder / "web", 80))
        app = start_container(host, "app", "--network net")
        host.outside.start(nginx(folder / "outside", 80))
        beyond.start(nginx(folder / "beyond", 80))
        for place, address in ((host, web.ip), (host.outside, OUTSIDE), (beyond, BEYOND)):
            listening(place, "tcp", address, 80)
        yield Topology(host, beyond, web, app, folder)


def _plug_beyond(outside: Namespace, beyond: Namespace) -> None:
    outside.sh(f"ip link add far mtu {NARROW} type veth peer name eth0 mtu {NARROW} netns {beyond.pid}")
    for command in ("link set far up", "address add 198.51.100.1/24 dev far"):
        outside.sh(f"ip {command}")
    outside.sh("ip address add 2001:db8:2::1/64 dev far nodad")
    outside.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for place in (outside, beyond):  # or one test's errors would be missing in the next
        place.sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")
    beyond.sh("ip link set eth0 up")
    beyond.sh(f"ip address add {BEYOND}/24 dev eth0")
    beyond.sh(f"ip address add {BEYOND6}/64 dev eth0 nodad")
    # As if only the router knew: TCP's handshake does not tell it.
    beyond.sh("ip route add default via 198.51.100.1 advmss 1460")
    beyond.sh("ip route add default via 2001:db8:2::1 advmss 1440")


def listening(place: Place, proto: str, address: str, port: int) -> None:
    """Waits for a server."""
    assert proto == "tcp"
    with eventually() as until:
        until(lambda: fails(place, proto, address, port) == 0)


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass
class Way:
    """From a client to a web server; `folder` is the server's."""

    client: Any
    address: str
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://{url_host(self.address)}:{self.port}"


def way(topology: Topology, name: str) -> Way:
    web, outside, beyond = (topology.folder / place for place in ("web", "outside", "beyond"))
    return {
        "published": Way(topology.outside, HOST, 8080, web),
        "published, IPv6": Way(topology.outside, HOST6, 8080, web),
        "published, narrow": Way(topology.beyond, HOST, 8080, web),
        "published, narrow, IPv6": Way(topology.beyond, HOST6, 8080, web),
        "masquerade": Way(topology.app, OUTSIDE, 80, outside),
        "masquerade, IPv6": Way(topology.app, OUTSIDE6, 80, outside),
        "masquerade, narrow": Way(topology.app, BEYOND, 80, beyond),
        "masquerade, narrow, IPv6": Way(topology.app, BEYOND6, 80, beyond),
        "own host": Way(topology.host, "127.0.0.1", 8080, web),
        "neighbour": Way(topology.app, HOST, 8080, web),
        "itself": Way(topology.web, HOST, 8080, web),
    }[name]


# ---- the web ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("name", ["published", "published, IPv6", "masquerade", "own host", "neighbour"])
def test_wrk_hears_no_error(topology: Topology, name: str, connection: str) -> None:
    how = way(topology, name)
    said = how.client.sh(
        ["wrk", "-t1", "-c32", "-d1s", "-H", f"Connection: {connection}", f"{how.url}/short"]
    )
    assert "Socket errors" not in said and "Non-2xx" not in said, said
    requests = re.search(r"(\d+) requests in", said)
    assert requests and int(requests[1]) > 100, said


@pytest.mark.parametrize("name", ["published", "masquerade"])
def test_20000_short_connections_none_failing(topology: Topology, name: str) -> None:
    """One port to one destination each time: what masquerading has is ports of one address. Connections of
    tests before this one still hold some."""
    how = way(topology, name)
    before = counters(topology.host)
    said = how.client.sh(["ab", "-q", "-r", "-n", str(SHORT), "-c", "50", f"{how.url}/short"])
    facts = dict(re.findall(r"^([A-Z][\w -]+):\s+(\d+)", said, re.MULTILINE))
    assert (facts["Complete requests"], facts["Failed requests"]) == (str(SHORT), "0"), said
    assert "Non-2xx" not in said and facts["HTML transferred"] == str(SHORT * len("short\n")), said
    assert rises(before, counters(topology.host)) == {}
    print(f"{name}: {re.search(r'Requests per second:.*', said)}")


@pytest.fixture(scope="module")
def large(topology: Topology) -> tuple[str, Path]:
    """A file of the web servers and its SHA-256."""
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    path = topology.folder / "large"
    with open(path, "wb") as file:
        for number in range(TRANSFER >> 20):
            piece = number.to_bytes(8, "big") + block[8:]
            file.write(piece)
            digest.update(piece)
    for place in ("web", "outside", "beyond"):
        os.link(path, topology.folder / place / "large")
    return digest.hexdigest(), path


BULK = ["published", "masquerade", "published, IPv6", "masquerade, IPv6"]


@pytest.mark.parametrize("name", BULK)
def test_curl_downloads_a_large_file_unharmed(topology: Topology, large: tuple[str, Path], name: str) -> None:
    how = way(topology, name)
    assert checksum(how.client, f"curl -sS -f {how.url}/large") == large[0]


@pytest.mark.parametrize("name", BULK)
def test_curl_uploads_a_large_file_unharmed(topology: Topology, large: tuple[str, Path], name: str) -> None:
    how = way(topology, name)
    how.client.sh(f"curl -sS -f -T {large[1]} {how.url}/upload")
    try:
        with open(how.folder / "upload", "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == large[0]
    finally:
        (how.folder / "upload").unlink()


def checksum(client: Any, command: str) -> str:
    return str(client.sh(["sh", "-c", f"set -e; {command} | sha256sum"])).split()[0]


@pytest.mark.parametrize(
    "name",
    ["published, narrow", "published, narrow, IPv6", "masquerade, narrow", "masquerade, narrow, IPv6"],
)
def test_a_transfer_over_a_narrower_link_learns_its_width(topology: Topology, name: str) -> None:
    """The container sends. The error that tells it is the router's, about the host's packet."""
    how = way(topology, name)
    path = topology.folder / "web" / "some"
    path.write_bytes(os.urandom(3 << 20))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    if name.startswith("published"):
        assert checksum(how.client, f"curl -sS -f -m {PATIENCE:g} {how.url}/some") == expected
        return
    how.client.sh(f"curl -sS -f -m {PATIENCE:g} -T {path} {how.url}/some")
    assert hashlib.sha256((how.folder / "some").read_bytes()).hexdigest() == expected


# ---- iperf3 ----------------------------------------------------------------------------------------------


IPERF = [
    "-n 100M",
    "-n 100M -R",
    "-n 100M --bidir",
    "-u -l 1200 -b 50M -n 5M",
    "-u -l 1200 -b 50M -n 5M -R",
]


@pytest.mark.parametrize("more", IPERF)
@pytest.mark.parametrize("name", ["published", "published, IPv6", "masquerade", "masquerade, IPv6"])
def test_iperf3(topology: Topology, iperf: None, name: str, more: str) -> None:
    how = way(topology, name)
    before = counters(topology.host)
    with eventually() as until:  # a server is busy for a moment after its last client
        report = until(lambda: measured(how, more))
    assert "error" not in report, report.get("error")
    end = report["end"]
    if "-u" in more:
        # On a crowded machine the receiver may sleep for longer than its buffer lasts.
        assert end["sum"]["packets"] > 1000 and end["sum"]["lost_percent"] < 50
        assert rises(before, counters(topology.host)) == {}
    else:
        sums = ["sum_received", "sum_received_bidir_reverse"][: 2 if "--bidir" in more else 1]
        # What the receiver has not read yet when the sender says that it has sent all, it does not count.
        assert sum(end[name]["bytes"] for name in sums) > 50 << 20
        assert min(end[name]["bytes"] for name in sums) > 1 << 20


def measured(how: Way, more: str) -> Any:
    """The client's report; None while the server is busy, or does not listen yet, after its last client. It closes the
    connection when it has said so, with what the client has sent unread: its word may be lost to the reset."""
    report = json.loads(how.client.try_(f"iperf3 -J -c {how.address} {more}").stdout)
    began = report["start"].get("connected")
    busy = "busy|Connection refused" if began else "busy|Connection refused|control message: Connection reset"
    return None if re.search(busy, report.get("error", "")) else report


@pytest.fixture(scope="module")
def iperf(topology: Topology) -> Iterator[None]:
    with more_box(topology, "iperf", "-p 5201:5201 -p 5201:5201/udp", ["iperf3", "-s"]) as server:
        process = topology.outside.start(["iperf3", "-s"])
        listening(topology.host, "tcp", server.ip, 5201)
        listening(topology.outside, "tcp", OUTSIDE, 5201)
        yield
        process.terminate()


@contextlib.contextmanager
def more_box(topology: Topology, name: str, options: str, command: Words) -> Iterator[Container]:
    try:
        yield start_container(topology.host, name, f"--network net {options}", command)
    finally:
        topology.host.ctl(f"rm -f {name}")


# ---- sessions that are silent for long -------------------------------------------------------------------

# Seconds that stand for minutes and hours.
TIMEOUTS = {"handshake": 1, "udp": 1, "icmp": 1, "closing": 1, "established": 3600}
IDLE = 3.5


def test_a_login_that_is_silent_for_longer_than_udp_and_handshakes_may_be(make_host: Maker) -> None:
    """OpenSSH's client and dropbear's server, one session each way."""
    host = make_host(config={"datapath": {"timeouts": TIMEOUTS}})
    folder = host.folder / "ssh"
    keys(folder)
    # With a home of its own for root, where only the client's key is.
    home = f"mount -t tmpfs -o mode=700 none /root && mkdir -m 700 /root/.ssh && cp {folder}/client.pub"
    server = f"{home} /root/.ssh/authorized_keys && exec dropbear -F -s -r {folder}/host -P '' -p 22"
    web = start_container(host, "web", "-p 2222:22", ["sh", "-c", server])
    app = start_container(host, "app")
    host.outside.start(["unshare", "--mount", "sh", "-c", server])
    listening(host, "tcp", web.ip, 22)
    listening(host.outside, "tcp", OUTSIDE, 22)
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(session(place, folder, address, port))
            for place, address, port in ((host.outside, HOST, 2222), (app, OUTSIDE, 22))
        ]
        for ask in sessions:
            assert ask("one") == "one"
        # A silent UDP conversation ends meanwhile, so the time-outs are the ones that were asked for.
        with serving(host.outside, "udp", 7000):
            call(app, "udp", OUTSIDE, 7000)
        time.sleep(IDLE)
        with eventually() as until:
            until(lambda: [row["Protocol"] for row in rows(host)] == ["tcp", "tcp"])
        for ask in sessions:
            assert ask("two") == "two"


def rows(host: Host) -> list[dict[str, str]]:
    return [json.loads(line) for line in host.ctl("ct ls --format json").splitlines()]


def keys(folder: Path) -> None:
    """A server's key and a client's."""
    folder.mkdir(mode=0o700)
    for argv in (
        ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host")],
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "client")],
    ):
        subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def session(place: Any, folder: Path, address: str, port: int) -> Iterator[Callable[[str], str]]:
    """`ask(line)` sends a line to `cat` on the other side, and returns what comes back."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR")
    argv = ["nsenter", f"--net={place.path}", "ssh", "-F", "none", "-i", str(folder / "client")]
    for option in options:
        argv += ["-o", option]
    process = subprocess.Popen(
        [*argv, "-p", str(port), f"root@{address}", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin and process.stdout

    def ask(line: str) -> str:
        assert process.stdin and process.stdout
        process.stdin.write(line + "\n")
        assert select.select([process.stdout], [], [], PATIENCE)[0], "no answer"
        return process.stdout.readline().strip()

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def test_a_client_of_a_published_port_that_was_forgotten_is_picked_up_again(make_host: Maker) -> None:
    """Silent for longer than even an established connection is remembered."""
    host = make_host(config={"datapath": {"timeouts": {**TIMEOUTS, "established": 1}}})
    web = start_container(host, "web", "-p 8081:80")
    with opened(web) as server, opened(host.outside) as client:
        server.bind(("0.0.0.0", 80))
        server.listen()
        client.connect((HOST, 8081))
        with server.accept()[0] as peer:
            peer.settimeout(PATIENCE)
            for text in (b"one", b"two"):
                client.sendall(text)
                assert peer.recv(10) == text
                peer.sendall(text)
                assert client.recv(10) == text
                with eventually() as until:
                    until(lambda: not rows(host))


# ---- the way, and how wide it is -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["", "-I", "-T -p 80", "-U -p 5353"])
@pytest.mark.parametrize("version", [4, 6])
def test_traceroute_sees_every_router(topology: Topology, version: int, method: str) -> None:
    """The errors come from the host, from a router beyond it, and from the other end."""
    far, router = (BEYOND, OUTSIDE) if version == 4 else (BEYOND6, OUTSIDE6)
    gateway = "10.8.0.1" if version == 4 else "fd08::1"
    said = topology.app.sh(f"traceroute -{version} -n -q 2 -w 20,0,0 -m 5 {method} {far}")
    assert [line.split()[1] for line in said.splitlines()[1:]] == [gateway, router, far], said
    assert "*" not in said


@pytest.mark.parametrize(("address", "version"), [(HOST, 4), (HOST6, 6)])
def test_traceroute_to_a_published_port(topology: Topology, address: str, version: int) -> None:
    said = topology.beyond.sh(f"traceroute -{version} -n -q 2 -w 20,0,0 -m 4 -T -p 8080 {address}")
    assert len(said.splitlines()) == 3 and said.splitlines()[2].split()[1] == address, said


@pytest.mark.parametrize(("far", "header"), [(BEYOND, 28), (BEYOND6, 48)])
def test_ping_finds_the_width_of_the_way(topology: Topology, far: str, header: int) -> None:
    """First ping -M do: larger packets are refused, with the width, by the router."""
    topology.app.sh(f"ip -{6 if ':' in far else 4} route flush cache")
    ping = f"ping -n -c 2 -i 0.1 -W 60 -M do -s {{}} {far}"
    said = topology.app.try_(ping.format(1500 - header)).stdout
    assert re.search(rf"mtu ?= ?{NARROW}", said), said
    assert reaches(lambda ping: topology.app.try_(f"{ping} -M do -s {NARROW - header}"), far, 2)
    assert topology.app.try_(ping.format(NARROW - header + 1)).returncode != 0


@pytest.mark.parametrize("far", [OUTSIDE, OUTSIDE6, BEYOND, BEYOND6])
@pytest.mark.parametrize("size", [1452, 1453, 1473, 4000, 30000, 65000])
def test_large_pings_come_back_in_pieces(topology: Topology, far: str, size: int) -> None:
    if far == BEYOND6 and size > 1300:  # the first one only tells how narrow the way is
        topology.app.try_(f"ping -n -q -c 1 -W 0.1 -s {size} {far}")
    assert reaches(lambda ping: topology.app.try_(f"{ping} -s {size}"), far, 2)


@pytest.mark.parametrize(("address", "largest"), [(OUTSIDE, 1472), (OUTSIDE6, 1452)])
def test_the_largest_ping_that_fits_goes_unfragmented(topology: Topology, address: str, largest: int) -> None:
    assert reaches(lambda ping: topology.app.try_(f"{ping} -M do -s {largest}"), address, 2)
    said = topology.app.try_(f"ping -n -c 1 -W 60 -M do -s {largest + 1} {address}")
    assert "too long" in said.stderr + said.stdout


# ---- names -----------------------------------------------------------------------------------------------

LARGE_TEXTS = 14  # records of 255 bytes: an answer that is two fragments


def dnsmasq() -> list[str]:
    texts = [f"--txt-record=large.test,{chr(97 + number) * 200}" for number in range(LARGE_TEXTS)]
    return [
        *("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"),
        *("--user=root", "--pid-file=", "--edns-packet-max=4096", "--address=/x.test/203.0.113.77", *texts),
    ]


@pytest.fixture(scope="module")
def names(topology: Topology) -> Iterator[None]:
    with more_box(topology, "names", "-p 5353:53 -p 5353:53/udp", dnsmasq()) as server:
        process = topology.outside.start(dnsmasq())
        listening(topology.host, "tcp", server.ip, 53)
        listening(topology.outside, "tcp", OUTSIDE, 53)
        yield
        process.terminate()


@pytest.mark.parametrize("transport", ["", "+tcp", "+tcp +keepopen", "+bufsize=4096", "+ignore"])
@pytest.mark.parametrize(
    ("place", "server"),
    [
        ("outside", f"{HOST} -p 5353"),
        ("outside", f"{HOST6} -p 5353"),
        ("beyond", f"{HOST} -p 5353"),
        ("host", "127.0.0.1 -p 5353"),
        ("app", f"{HOST} -p 5353"),
        ("app", OUTSIDE),
        ("app", OUTSIDE6),
    ],
)
def test_dig(topology: Topology, names: None, place: str, server: str, transport: str) -> None:
    client: Any = getattr(topology, place)
    said = client.sh(f"dig +short +tries=1 +time=3 @{server} {transport} a.x.test A b.x.test A")
    assert said.split() == ["203.0.113.77"] * 2
    if transport not in ("", "+ignore"):  # without: dig would have to ask again by TCP, which is the next one
        said = client.sh(f"dig +short +tries=1 +time=3 @{server} {transport} large.test TXT")
        assert len(said.splitlines()) == LARGE_TEXTS
    elif not transport:
        said = client.sh(f"dig +tries=1 +time=3 +bufsize=512 @{server} large.test TXT")
        assert "retrying in TCP mode" in said and f"ANSWER: {LARGE_TEXTS}" in said


def test_a_thousand_questions_at_once(topology: Topology, names: None) -> None:
    """Of as many clients, so as many connections of UDP."""
    questions = topology.folder / "questions"
    questions.write_text("".join(f"n{number}.x.test A\n" for number in range(500)))
    for client, server in ((topology.outside, f"{HOST} -p 5353"), (topology.app, OUTSIDE)):
        said = client.sh(f"dig +short +tries=1 +time=3 @{server} -f {questions}")
        assert said.split() == ["203.0.113.77"] * 500


# ---- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(topology: Topology) -> Iterator[Path]:
    folder = topology.folder / "ftp"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(5 << 20))
    base = [sys.executable, "-W", "ignore", "-m", "pyftpdlib", "-w", "-d", str(folder), "-p", "21"]
    inside = [*base, "-n", HOST, "-r", "30100-30119"]  # as its administrator sets up who publishes it
    ports = "-p 2121:21 -p 30100-30119:30100-30119"
    with more_box(topology, "files", ports, [*inside, "-i", "::"]) as server:
        process = topology.outside.start([*base, "-i", "::"])
        listening(topology.host, "tcp", server.ip, 21)
        listening(topology.outside, "tcp", OUTSIDE, 21)
        yield folder
        process.terminate()


FTP = {
    "outside": (f"{HOST}:2121", f"[{HOST6}]:2121"),
    "beyond": (f"{HOST}:2121", f"[{HOST6}]:2121"),
    "host": ("127.0.0.1:2121",),
    "app": (OUTSIDE, f"[{OUTSIDE6}]", f"{HOST}:2121"),
}


@pytest.mark.parametrize(("place", "server"), [(place, url) for place, urls in FTP.items() for url in urls])
def test_ftp_passive(topology: Topology, files: Path, place: str, server: str) -> None:
    """curl asks for an extended passive connection first; without it IPv4's server names an address too."""
    client: Any = getattr(topology, place)
    expected = hashlib.sha256((files / "file").read_bytes()).hexdigest()
    for more in ("", "--disable-epsv") if "[" not in server else ("",):
        curl = f"curl -sS -f -m {PATIENCE:g} -u anonymous:x {more}"
        assert checksum(client, f"{curl} ftp://{server}/file") == expected
        assert "file" in client.sh(f"{curl} -l ftp://{server}/")
