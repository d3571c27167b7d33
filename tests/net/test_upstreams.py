# SPDX-License-Identifier: Apache-2.0
"""What is not ours goes to an upstream server (S17): the host's own resolvers, servers outside, members."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from datapath.dataplane.convert import to_abi
from datapath.dataplane.programs import Dataplane
from datapath.dataplane.structs import ResolverKey, ResolverValue, UpstreamValue
from datapath.kernel import abi
from tests.net.hosts import PATIENCE, Host, eventually
from tests.net.test_ipv6 import plug_ipv6

SERVER = Path(__file__).with_name("upstreams.py")
RESOLVER = "127.0.0.11"
FAR, FAR6, ROUTER = "203.0.113.5", "2001:db8:5::5", "fe80::99"
SERVFAIL, REFUSED, SILENT, CLOSED = "203.0.113.6", "203.0.113.7", "203.0.113.8", "203.0.113.9"
NXDOMAIN, SILENT_TOO, NO_ROUTE = "203.0.113.10", "203.0.113.11", "198.18.0.9"
# Who answers is told by what is answered.
OUTSIDE_SAYS, OUTSIDE6_SAYS, ROUTER_SAYS, MEMBER_SAYS = "10.1.0.5", "10.1.0.6", "10.1.0.99", "10.1.0.7"
OWN_SAYS, PUBLISHED_SAYS = "10.1.0.1", "10.1.0.8"
RESOLVED = Path(sys.executable).parents[1] / "systemd-resolved"  # unpacked there by `make deps`
DNSMASQ = (
    "dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --user=root --pid-file= "
    f"--bind-interfaces --except-interface=lo --listen-address=127.0.0.1 --server={FAR}"
)
UNBOUND = f"""
server:
  do-daemonize: no
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  interface: ::1
  module-config: "iterator"
forward-zone:
  name: "."
  forward-addr: {FAR}
"""


class Site:
    """A pretend host with servers outside, on itself, and in containers."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.index = int(host.sh("ip -o link show eth0").split(":")[0])
        self.host.env["PYTHONPATH"] = str(SERVER.parents[2])  # type: ignore[index]

    def serve(self, *ends: str, container: str = "", outside: bool = False) -> subprocess.Popen[str]:
        argv = [sys.executable, str(SERVER), *ends]
        if container:
            argv = ["nsenter", "-t", str(self.host.process(container)), "--net", *argv]
        place = self.host.outside if outside else self.host
        process = place.start(argv, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def device(self, name: str) -> abi.device:
        networks = self.host.inspect(name)["NetworkSettings"]["Networks"]
        addresses = {ip_address(one["IPAddress"]) for one in networks.values()}
        with self.dataplane() as dataplane:
            return next(
                row for _, row in dataplane.devices.read_all() if row.endpoint and row.addr4 in addresses
            )

    def dataplane(self) -> Dataplane:
        found = Dataplane.find(self.host.bpffs / "datapath")
        assert found
        return found

    def upstreams(self, name: str, *upstreams: str, egress: bool = True) -> None:
        """Whom a container's resolver asks: addresses, ADDRESS@CONTAINER of a member, ADDRESS%DEVICE."""
        device, rows = self.device(name), []
        for one in upstreams:
            address, _, link = one.partition("%")
            member, at, container = address.partition("@")
            network = self.device(container).network if at else 0
            index = {"": 0, "eth0": self.index}.get(link, 4095)
            rows.append(UpstreamValue(ip_address(member), network, index))
        value = ResolverValue((), 0, device.network if egress else 0, tuple(rows))
        with self.dataplane() as dataplane:
            dataplane.resolvers[to_abi(ResolverKey(device.endpoint))] = to_abi(value)
            dataplane.upstreams.delete_many(list(dataplane.upstreams))

    def dig(self, words: str, container: str = "client", at: str = RESOLVER) -> str:
        """What dig says, shortly; its exit code is not looked at."""
        return self.host.try_in(container, f"dig +short +tries=1 +timeout=5 {words} @{at}").stdout.strip()

    def status(self, words: str, container: str = "client", at: str = RESOLVER) -> str:
        said = self.host.try_in(container, f"dig +tries=1 +timeout=5 {words} @{at}").stdout
        return said.partition("status: ")[2].partition(",")[0] or "none"

    def count(self, upstream: str) -> int:
        """How many questions it has been asked over UDP. (Whoever listens outside tells that to the host.)"""
        return int(self.host.sh(f"dig +short +tcp TXT count.example @{upstream}").strip('"'))

    def listens(self, at: str) -> bool:
        """The host has a resolver there that knows."""
        return (
            self.host.try_(f"dig +short +tries=1 +timeout=1 up.example @{at}").stdout.strip() == OUTSIDE_SAYS
        )

    def gateway6(self, name: str) -> str:
        networks = self.host.inspect(name)["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPv6Gateway"])


@pytest.fixture(scope="module")
def site(shared_host: Host) -> Iterator[Site]:
    host = shared_host
    plug_ipv6(host)
    for address in (SERVFAIL, REFUSED, SILENT, CLOSED, NXDOMAIN, SILENT_TOO):
        host.outside.sh(f"ip address add {address}/32 dev lo")
    host.outside.sh(f"ip address add {FAR6}/128 dev lo")
    host.outside.sh(f"ip address add {ROUTER}/64 dev eth0 nodad")
    host.sh(f"ip route add unreachable {NO_ROUTE}")
    made = Site(host)
    host.outside.env = host.env
    made.serve(
        *(f"{FAR}={OUTSIDE_SAYS}", f"{FAR6}={OUTSIDE6_SAYS}", f"{ROUTER}@eth0={ROUTER_SAYS}"),
        *(f"{SERVFAIL}=servfail", f"{REFUSED}=refused", f"{NXDOMAIN}=nxdomain"),
        *(f"{SILENT}=silent", f"{SILENT_TOO}=silent"),
        outside=True,
    )
    made.serve(f"192.0.2.1={OWN_SAYS}")
    host.ctl("network create --ipv6 six")
    host.ctl("network create --ipv6 -o com.docker.network.bridge.enable_icc=false apart")
    host.ctl("network create --internal inner")
    host.ctl("network create four")
    host.run("four", "--network four")
    host.run("client", "--network six")
    host.run("apart", "--network apart")
    host.run("inner", "--network inner")
    for name in ("six", "apart", "inner"):
        host.run(f"server-{name}", f"--network {name}")
        address = host.address(f"server-{name}", name)
        made.serve(f"{address}={MEMBER_SAYS}", container=f"server-{name}")
    host.run("published", "--network six -p 127.0.0.9:53:53 -p 127.0.0.9:53:53/udp")
    made.serve(f"{host.address('published', 'six')}={PUBLISHED_SAYS}", container="published")
    host.start(DNSMASQ)
    config = host.folder / "unbound.conf"
    config.write_text(UNBOUND)
    host.start(f"unbound -d -c {config}")
    with eventually() as until:
        until(lambda: made.listens("127.0.0.1"))
        until(lambda: made.listens("::1"))
    yield made


@pytest.fixture(scope="module")
def resolved(site: Site) -> None:
    """The real systemd-resolved, in a mount namespace where it may write."""
    host = site.host
    places = (Path("/lib/systemd/systemd-resolved"), RESOLVED / "lib/systemd/systemd-resolved")
    program = next((place for place in places if place.exists()), None)
    if program is None:
        pytest.skip("systemd-resolved is not there: make deps")
    folder = host.folder / "resolved"
    folder.mkdir()
    users = Path("/etc/passwd").read_text()
    if "systemd-resolve:" not in users:
        users += "systemd-resolve:x:0:0::/:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(users)
    (folder / "resolved.conf").write_text(
        f"[Resolve]\nDNS={FAR}\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nCache=no\n"
    )
    script = (
        "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/resolve"
        f" && mount --bind {folder}/passwd /etc/passwd"
        f" && mount --bind {folder} /etc/systemd && exec {program}"
    )
    host.start(["unshare", "--mount", "sh", "-c", script])
    with eventually() as until:
        until(lambda: site.listens("127.0.0.53"))


# Upstream -> what it answers, for the container of that network.
UPSTREAMS = {
    "a server outside": ("client", FAR, OUTSIDE_SAYS),
    "one with an IPv6 address": ("client", FAR6, OUTSIDE6_SAYS),
    "a router by its link": ("client", f"{ROUTER}%eth0", ROUTER_SAYS),
    "an address of the host's": ("client", "192.0.2.1", OWN_SAYS),
    "dnsmasq on 127.0.0.1": ("client", "127.0.0.1", OUTSIDE_SAYS),
    "unbound on ::1": ("client", "::1", OUTSIDE_SAYS),
    "a port that is published on loopback": ("client", "127.0.0.9", PUBLISHED_SAYS),
    "a member": ("client", "@server-six", MEMBER_SAYS),
    "a member without icc": ("apart", "@server-apart", MEMBER_SAYS),
    "a member of an internal network": ("inner", "@server-inner", MEMBER_SAYS),
}
EACH = pytest.mark.parametrize(("container", "upstream", "says"), UPSTREAMS.values(), ids=UPSTREAMS)


def answers(site: Site, container: str, upstream: str, says: str) -> None:
    """Over UDP and TCP, by 127.0.0.11, from a socket that is bound to 127.0.0.1, and by the gateway's IPv6 address."""
    if upstream.startswith("@"):
        member = upstream[1:]
        upstream = f"{site.host.address(member, member.removeprefix('server-'))}{upstream}"
    site.upstreams(container, upstream, egress=container != "inner")
    ways = [("", RESOLVER), ("+tcp", RESOLVER), ("-b 127.0.0.1", RESOLVER), ("-b 127.0.0.1 +tcp", RESOLVER)]
    if container != "inner":
        ways += [("", site.gateway6(container)), ("+tcp", site.gateway6(container))]
    for words, at in ways:
        assert site.dig(f"{words} www.example", container, at) == says, (words, at)


def test_s17_an_ipv6_server_is_asked_from_a_network_without_ipv6(site: Site) -> None:
    """Whose gateway device forwards no IPv6."""
    for upstream, says in ((FAR6, OUTSIDE6_SAYS), (f"{ROUTER}%eth0", ROUTER_SAYS), ("::1", OUTSIDE_SAYS)):
        site.upstreams("four", upstream)
        for words in ("", "+tcp", "-b 127.0.0.1"):
            assert site.dig(f"{words} www.example", "four") == says


@EACH
def test_s17_a_foreign_name_is_asked_of(site: Site, container: str, upstream: str, says: str) -> None:
    answers(site, container, upstream, says)


@pytest.mark.usefixtures("resolved")
def test_s17_a_foreign_name_is_asked_of_systemd_resolved_on_127_0_0_53(site: Site) -> None:
    answers(site, "client", "127.0.0.53", OUTSIDE_SAYS)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SERVFAIL, FAR),
        (REFUSED, FAR6),
        (CLOSED, FAR),
        ("127.0.0.77", FAR),
        (f"{ROUTER}%dead", "127.0.0.1"),
        (NO_ROUTE, "127.0.0.1"),
    ],
    ids=[
        "fails",
        "refuses",
        "has nobody listening",
        "has nobody on loopback",
        "is no device",
        "has no route",
    ],
)
def test_s17_the_next_is_asked_at_once_where_the_first(site: Site, first: str, second: str) -> None:
    site.upstreams("client", first, second)
    for words, at in (("", RESOLVER), ("-b 127.0.0.1", RESOLVER), ("", site.gateway6("client"))):
        said = site.host.try_in("client", f"dig +tries=1 +timeout=5 {words} www.example @{at}").stdout
        assert "status: NOERROR" in said and "10.1.0." in said, (words, at)
        assert int(said.partition("Query time: ")[2].split()[0]) < 900


def test_s17_that_there_is_no_such_name_is_an_answer(site: Site) -> None:
    site.upstreams("client", NXDOMAIN, FAR)
    assert site.status("www.example") == "NXDOMAIN"


@pytest.mark.parametrize(
    ("upstreams", "status"),
    [
        ((SERVFAIL, REFUSED), "REFUSED"),
        ((REFUSED, SERVFAIL), "SERVFAIL"),
        ((CLOSED, "127.0.0.77"), "SERVFAIL"),
        ((NO_ROUTE,), "REFUSED"),
        ((), "REFUSED"),
    ],
)
def test_s17_the_client_is_told_at_once_if_all_fail(
    site: Site, upstreams: tuple[str, ...], status: str
) -> None:
    site.upstreams("client", *upstreams)
    for at in (RESOLVER, site.gateway6("client")):
        assert site.status("www.example", at=at) == status


# Sends questions from one socket, a line each: a datagram as hex, sent by two threads if told; prints what has come.
ASK = """
import select, socket, struct, sys, threading, time
server, first, count, threads, patience = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
def send(start, step):
    for ident in range(first + start, first + count, step):
        head = struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0)
        sock.sendto(head + b"\\3www\\7example\\0\\0\\1\\0\\1", (server, 53))
senders = [threading.Thread(target=send, args=(i, threads)) for i in range(threads)]
[one.start() for one in senders]
got, end = set(), time.monotonic() + patience
while len(got) < count and (left := end - time.monotonic()) > 0:
    if select.select([sock], [], [], left)[0]:
        got.add(struct.unpack("!H", sock.recv(4096)[:2])[0])
[one.join() for one in senders]
print(len(got), min(got, default=0), max(got, default=0))
"""


def questions(
    site: Site, count: int, *, threads: int = 1, patience: float = PATIENCE, name: str = "client"
) -> int:
    """How many of so many questions are answered."""
    argv = ["python3", "-c", ASK, RESOLVER, "1", str(count), str(threads), str(patience)]
    return int(site.host.in_(name, shlex.join(argv)).split()[0])


def test_s17_a_silent_server_costs_one_question_its_wait_and_no_other(site: Site) -> None:
    """The client repeats its question, from the same port with the same id; then the server is passed over."""
    site.upstreams("client", SILENT, FAR)
    script = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1.2)
ask = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3www\\7example\\0\\0\\1\\0\\1"
for attempt in range(2):
    sock.sendto(ask, ("127.0.0.11", 53))
    try:
        print(attempt, sock.recv(4096)[:2] == ask[:2])
        break
    except TimeoutError:
        continue
"""
    assert site.host.in_("client", shlex.join(["python3", "-c", script])) == "1 True"
    before = site.count(SILENT)
    assert questions(site, 200) == 200
    assert site.count(SILENT) == before


def test_s17_ten_thousand_questions_can_wait_for_answers(site: Site) -> None:
    """And another container's, and the same one's to somebody else, are answered meanwhile."""
    site.upstreams("client", SILENT)
    site.upstreams("apart", FAR)
    before = site.count(SILENT)
    assert questions(site, 10_000, patience=0.1) == 0
    with eventually() as until:
        until(lambda: site.count(SILENT) - before == 10_000)
    assert site.dig("www.example", "apart") == OUTSIDE_SAYS
    site.upstreams("client", FAR)
    assert site.dig("www.example") == OUTSIDE_SAYS


def test_s17_two_threads_that_ask_from_one_socket_are_answered_each_time(site: Site) -> None:
    site.upstreams("client", FAR)
    assert questions(site, 2000, threads=2) == 2000


@pytest.mark.parametrize("upstream", [FAR, FAR6, "192.0.2.1", "@server-six"])
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_s17_large_answers_arrive(site: Site, upstream: str, family: str) -> None:
    """With EDNS whole, in fragments if need be; what is cut off, over TCP."""
    if upstream.startswith("@"):
        upstream = f"{site.host.address(upstream[1:], 'six')}{upstream}"
    site.upstreams("client", upstream)
    at = RESOLVER if family == "IPv4" else site.gateway6("client")
    for words in (
        "+bufsize=4096 large-3000.example",
        "+bufsize=1232 large-900.example",
        "large-9000.example",
    ):
        assert len(site.dig(f"TXT {words}", at=at).split()) == int(words.split("-")[1].split(".")[0]) // 100
    told = site.host.in_("client", f"dig +tries=1 +ignore +bufsize=4096 TXT large-3000.example @{at}")
    # No fragment becomes one of the other family. On loopback there are none.
    same = (":" in upstream) == (family == "IPv6") or upstream == "192.0.2.1"
    assert ("flags: qr tc" in told) == (not same)


def test_s17_people_see_127_0_0_1_where_a_socket_is_bound_to_it(site: Site) -> None:
    site.upstreams("client", FAR)
    assert site.dig("-b 127.0.0.1 +tcp www.example") == OUTSIDE_SAYS
    listed = site.host.ctl("ct ls --format json")
    assert "127.0.0.1" in listed and "100::" not in listed and RESOLVER in listed


def test_s17_nobody_is_left_out_of_the_quotas(site: Site) -> None:
    """What was answered does not count any more."""
    site.upstreams("apart", FAR, SERVFAIL)
    endpoint = site.device("apart").endpoint
    with site.dataplane() as dataplane:
        before = dataplane.quotas[abi.quota_key(endpoint)]
        assert questions(site, 500, name="apart") == 500
        after = dataplane.quotas[abi.quota_key(endpoint)]
    assert (after.openings, after.conns) == (before.openings, before.conns)
