# SPDX-License-Identifier: Apache-2.0
"""S30: another version's packet programs take the place of those that run, while packets pass.

The other version is this one with a conntrack GC that runs half as often: its objects differ, and one can see which
of the two is at work.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datapath.dataplane.convert import to_abi
from datapath.dataplane.wire_names import address_key
from datapath.kernel import abi, bpf_links, bpf_maps, bpffs, libbpf
from tests.net import faults, forked, look, uplinks
from tests.net.agents import agent
from tests.net.hosts import (
    HOST,
    PATIENCE,
    TREE,
    Host,
    eventually,
    needs_tcx,
    pinging,
    reaches,
    sent_and_lost,
)
from tests.net.names import LOCAL, NOERROR, PTR, A, Asker, Upstreams, parsed, question, reverse, wire
from tests.net.services import asked, keeper, serve
from tests.net.wire import call, start_container
from tests.net.wire import serving as answering

LONG = bool(os.environ.get("DATAPATH_LONG"))
QUICK_ENDS = {"datapath": {"timeouts": {"closing": 1}}}  # so that rows of who talks to whom become totals
OBJECTS = "DATAPATH_TEST_OBJECTS"
OLD = "the packet programs are of another version: `datapathctl upgrade` replaces them"

# Answers every line with a line, for as long as both sides like.
TALKER = """
import socket, threading
server = socket.create_server(("", 80), backlog=64)
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
# Sends and awaits a line at a time until its standard input ends; prints how many came back.
CALLER = """
import select, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)
print("ready", flush=True)
count = 0
while not select.select([sys.stdin], [], [], 0.005)[0]:
    connection.sendall(b"x" * 3000)
    left = 3000
    while left:
        left -= len(connection.recv(left))
    count += 1
print(count)
"""


# Seeks to connect to an address and port until its standard input ends; prints how often it has tried, and succeeded.
# Whoever is refused once says so.
KNOCK = """
import select, socket, sys
tries = opened = 0
while not select.select([sys.stdin], [], [], 0.005)[0]:
    with socket.socket() as one:
        one.setblocking(False)
        one.connect_ex((sys.argv[1], int(sys.argv[2])))
        if select.select([], [one], [], 0.02)[1]:
            opened += one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    tries += 1
    if tries == 1:
        print("ready", flush=True)
print(tries, opened)
"""
GUARD = "policies: {web: {for: web, in: {deny: [stranger], allow: [any]}}}"


# What a version has that is grown: another map, another program at another hook; what it does not have any more.
NEW_MAP, NEW_HOOK, OLD_HOOK, OLD_PROGRAM = "visits", "host_visit4", "host_peer6", "from_loopback"
PEER6 = """SEC("cgroup/getpeername6")
int host_peer6(struct bpf_sock_addr *ctx)
{
	return reveal(ctx, true);
}
"""
VISIT = """struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} visits SEC(".maps");

SEC("cgroup/connect4")
int host_visit4(struct bpf_sock_addr *ctx)
{
	__u32 key = 0;
	struct counter *visits_so_far = bpf_map_lookup_elem(&visits, &key);

	if (visits_so_far)
		__sync_fetch_and_add(&visits_so_far->packets, 1);
	return 1;
}
"""


def use_objects() -> None:
    """In the forked datapathctl: it is of the version whose objects these are."""
    abi.OBJECTS = Path(os.environ.get(OBJECTS, abi.OBJECTS))
    if not (abi.OBJECTS / f"{OLD_PROGRAM}.bpf.o").exists():
        be_grown()


def be_grown() -> None:
    from datapath.dataplane import attach, layout
    from datapath.drivers.ebpf.host import EbpfHost

    tables: Any = layout
    tables.MAPS[NEW_MAP] = (None, "counter")
    del tables.SOCKET_HOOKS[OLD_HOOK], tables.OBJECT_FILES[OLD_PROGRAM]
    tables.SOCKET_HOOKS[NEW_HOOK] = 10  # BPF_CGROUP_INET4_CONNECT
    tables.OBJECT_FILES["host_socket"] = tuple(tables.SOCKET_HOOKS)
    del attach.HOOK_OF[abi.DeviceKind[tables.HOOKS.pop(OLD_PROGRAM).kind]]
    EbpfHost.finish = lambda self, view: None  # type: ignore[method-assign]


class Version(NamedTuple):
    folder: Path

    def write_digest(self) -> None:
        """As the build does."""
        whole = hashlib.sha256()
        for path in sorted([*self.folder.glob("*.bpf.o"), self.folder / "abi.h"]):
            whole.update(path.read_bytes())
        (self.folder / "digest").write_text(whole.hexdigest()[:16] + "\n")


def built(folder: Path, name: str, **edits: tuple[str, str]) -> Version:
    """This version's objects, but for one, if any, that is compiled again from edited sources (file: before,
    after)."""
    made = Version(folder / "objects")
    shutil.copytree(TREE / "bpf", folder / "bpf")
    shutil.copytree(abi.OBJECTS, made.folder)
    for stem, (before, after) in edits.items():
        (path,) = (folder / "bpf").rglob(f"{stem}.*")
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))
    if name:
        compiled = made.folder / f"{name}.bpf.o"
        shown = subprocess.run(
            ["make", "-n", "-B", f"datapath/objects/{name}.bpf.o"], cwd=TREE, capture_output=True, text=True
        )
        (line,) = (line for line in shown.stdout.splitlines() if f"-c bpf/{name}.bpf.c" in line)
        line = line.replace(f"datapath/objects/{name}.bpf.o.tmp", str(compiled))
        subprocess.run(line, shell=True, cwd=folder, check=True)
    shutil.copy(folder / "bpf" / "abi.h", made.folder)
    made.write_digest()
    return made


@pytest.fixture(scope="module", autouse=True)
def versions() -> Iterator[None]:
    forked.in_child.extend([use_objects, faults.install])
    yield
    forked.in_child.clear()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return built(tmp_path_factory.mktemp("other"), "conn_gc", conn_gc=("(SECOND / 10)", "(SECOND / 5)"))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Version:
    made = built(tmp_path_factory.mktemp("grown"), "host_socket", host_socket=(PEER6, VISIT))
    (made.folder / f"{OLD_PROGRAM}.bpf.o").unlink()
    made.write_digest()
    return made


def populated(make_host: Callable[..., Host], attach: str) -> Host:
    """`web` has rules, so that there is XDP too."""
    host = make_host(attach=attach)
    host.run("web", "-p 8081:80,deny=198.51.100.9", ["python3", "-c", TALKER])
    host.run("peer")
    with eventually() as until:
        until(lambda: host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/8081"]).returncode == 0)
    return host


def as_version(host: Host, version: Version | None) -> None:
    assert host.env is not None
    host.env.pop(OBJECTS, None)
    if version:
        host.env[OBJECTS] = str(version.folder)


def running(host: Host) -> dict[str, set[int]]:
    """Hook -> the numbers of the programs that run, as links or as filters."""
    found: dict[str, set[int]] = {}
    for path in (host.bpffs / "datapath" / "links").iterdir():
        with opened(path) as fd:
            found.setdefault(re.sub(r"-\d+$", "", path.name), set()).add(bpf_links.link_info(fd)[0])
    devices = " ".join(look.devices(host.sh))
    each = f"for d in {devices}; do for s in ingress egress; do tc filter show dev $d $s; done; done"
    shown = host.sh(["sh", "-c", each])
    for number, name in re.findall(r" id (\d+) name (\w+)", shown):
        found.setdefault(name, set()).add(int(number))
    return found


def pinned(host: Host) -> set[int]:
    found = set()
    for path in (host.bpffs / "datapath" / "programs").iterdir():
        with opened(path) as fd:
            found.add(libbpf.program_id(fd))
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = bpffs.get_pinned(path)
    assert fd is not None
    yield fd
    os.close(fd)


def ticks(host: Host) -> float:
    """How often a second the conntrack GC runs."""
    times: set[int] = set()
    with opened(host.bpffs / "datapath" / "maps" / "gc_timers") as fd:
        timers = bpf_maps.Map(os.dup(fd), "gc_timers", None, "gc_timer")
        end = time.monotonic() + PATIENCE
        while len(times) < 6:
            assert time.monotonic() < end, "the GC does not run any more"
            times.add(timers[0].ticked)
            time.sleep(0.005)
        timers.close()
    # It is never too early; when this program was late it has missed one.
    return float(1e9 / min(after - before for before, after in itertools.pairwise(sorted(times))))


@contextlib.contextmanager
def traffic(host: Host) -> Iterator[None]:
    """Pings from the host and from a neighbour, a connection to the published port from outside, one from the
    host through the socket hooks, one of a container to outside. All of it comes through."""
    address = host.address("web")
    peer = ["nsenter", "-t", str(host.process("peer")), "--net"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pings = [pinging(host, address, 71), pinging(host, address, 72, 0.01, peer)]
    caller = ["python3", "-c", CALLER]
    callers = [
        host.outside.start([*caller, HOST, "8081"], stdin=subprocess.PIPE, **pipes),
        host.start([*caller, "127.0.0.1", "8081"], stdin=subprocess.PIPE, **pipes),
        host.start([*peer, *caller, HOST, "8081"], stdin=subprocess.PIPE, **pipes),
    ]
    for process in callers:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield
    for process in callers:
        said, wrong = process.communicate("", timeout=PATIENCE)
        assert process.returncode == 0 and int(said) > 20, wrong
    for process in pings:
        sent, missing = sent_and_lost(process)
        assert sent > 20 and missing == 0


@contextlib.contextmanager
def guarded(host: Host) -> Iterator[None]:
    """Policies let everybody in to `web` but one, who knocks without pause, is refused each time, and told so by the
    same rule before and after."""
    host.run("stranger")
    path = host.folder / "guard.yaml"
    path.write_text(GUARD)
    host.ctl(f"policy apply -f {path}")
    inside = ["nsenter", "-t", str(host.process("stranger")), "--net"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    knocking = host.start([*inside, sys.executable, "-c", KNOCK, host.address("web"), "80"], **pipes)
    assert knocking.stdout is not None and knocking.stdout.readline() == "ready\n"
    before = refusals(host)
    yield
    tries, opened = map(int, knocking.communicate("", timeout=PATIENCE)[0].split())
    assert tries > 20 and opened == 0
    assert refusals(host) > before


def refusals(host: Host) -> int:
    """By the rule about the one who is not let in."""
    rows = json_lines(host.ctl("policy hits --format json"))
    (found,) = (int(row["Refused"]) for row in rows if int(row["Rule"]) == 1)
    return found


def lost(host: Host) -> int:
    """Packets that were dropped, but for those that policies have refused."""
    return sum(packets for reason, packets in host.drops().items() if reason != "DROP_IN")


def serving(host: Host) -> None:
    """A service with a published port and two backends, and a client of its network."""
    host.ctl("network create --subnet 10.71.0.0/24 shop")
    host.ctl("service create --network shop -p 8090:80 --vip 10.71.0.9 front")
    for name in ("w1", "w2"):
        serve(host, name, "--network shop --service front", "shop")
    host.run("client", "--network shop")


@contextlib.contextmanager
def services(host: Host) -> Iterator[None]:
    """Connections to a service, of a member, of the host and from outside, that are kept, and new ones without pause.
    None fails."""
    inside = ["nsenter", "-t", str(host.process("client")), "--net"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    keepers = [
        host.start([*inside, *keeper("10.71.0.9", 80, 10)], **pipes),
        host.start(keeper("10.71.0.9", 80, 10), **pipes),
        host.outside.start(keeper(HOST, 8090, 10), **pipes),
    ]
    for process in keepers:
        assert process.stdout is not None and set(process.stdout.readline().split()) == {"w1", "w2"}
    with (
        asked(lambda argv, **more: host.start([*inside, *argv], **more), "10.71.0.9", 80) as by_member,
        asked(host.outside.start, HOST, 8090) as from_outside,
    ):
        found = [by_member, from_outside]
        yield
    for process in keepers:
        assert process.communicate("", timeout=PATIENCE)[0].split() == []
    assert all(set(answers) == {"w1", "w2"} and sum(answers.values()) > 20 for answers in found), found


@pytest.mark.parametrize(("attach", "times"), [("auto", 5 if LONG else 2), ("clsact", 1)])
def test_s30_programs_are_replaced_up_and_down_and_no_packet_is_lost(
    make_host: Callable[..., Host], other: Version, attach: str, times: int
) -> None:
    """By links and by filters: left to itself a host has both. Policies are in force, and what they refuse is refused
    throughout."""
    prepared = populated(make_host, attach)
    serving(prepared)
    before = lost(prepared)
    with guarded(prepared), traffic(prepared), services(prepared):
        for _ in range(times):
            for version in (other, None):
                was, as_pinned = running(prepared), pinned(prepared)
                as_version(prepared, version)
                assert "replaced" in prepared.ctl("upgrade")
                now = running(prepared)
                assert now.keys() == was.keys()
                assert all(len(ids) == 1 and not ids & was[hook] for hook, ids in now.items())
                assert not pinned(prepared) & as_pinned
    assert {"from_container", "from_host", "from_uplink", "from_loopback", "xdp_uplink"} < now.keys()
    assert lost(prepared) == before
    assert prepared.ctl("doctor") == "No problems found."
    assert not (prepared.bpffs / "datapath" / "next").exists()
    assert prepared.ctl("upgrade") == "There is nothing to replace."


def each_counted_once(host: Host, upgrades: Sequence[Callable[[], None]]) -> None:
    """Connections of members begin, go on and end while programs are replaced. Totals are those of before and what has
    passed since, to the byte, as the devices count it."""
    host.ctl("network create -o com.datapath.flows=true --subnet 10.8.0.0/24 shop")
    app, db = (start_container(host, name, "--network shop") for name in ("app", "db"))
    for one, peer in ((app, db), (db, app)):
        one.sh("ethtool -K eth0 tso off gso off")
        one.sh(f"ip neigh replace {peer.ip} lladdr {peer.mac} dev eth0 nud permanent")

    def passed() -> list[int]:
        """Connections; packets and bytes that `app` has sent, and `db`."""
        rows = json_lines(host.ctl("flows --totals --from app --to db --format json"))
        names = ("Connections", "SentPackets", "Sent", "ReceivedPackets", "Received")
        return [sum(int(row[name]) for row in rows) for name in names]

    def by_devices() -> list[int]:
        found = list[int]()
        for one in (app, db):
            folder = "/sys/class/net/eth0/statistics"
            packets, length = map(int, one.sh(f"cat {folder}/tx_packets {folder}/tx_bytes").split())
            found += [packets, length - 14 * packets]
        return found

    host.start(["nsenter", "-t", str(db.pid), "--net", "python3", "-c", TALKER])
    with eventually() as until:
        until(lambda: app.try_(f"nc -z {db.ip} 80").returncode == 0)
    done, calls, wrong = threading.Event(), 0, list[OSError]()
    start, started = passed(), by_devices()

    def ask() -> None:
        """So slowly that no port comes again meanwhile."""
        nonlocal calls
        while not done.wait(0.003) and not wrong:
            try:
                call(app, "tcp", db.ip, 81)
            except OSError as error:
                wrong.append(error)
            else:
                calls += 1

    def more_than(number: int) -> bool:
        return calls > number or bool(wrong)

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    inside = ["nsenter", "-t", str(app.pid), "--net"]
    caller = host.start([*inside, "python3", "-c", CALLER, db.ip, "80"], **pipes)
    assert caller.stdout is not None and caller.stdout.readline() == "ready\n"
    with answering(db, "tcp", 81):
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for upgrade in upgrades:
                before, so_far = calls, passed()
                upgrade()
                after = passed()
                assert all(now >= was for now, was in zip(after, so_far, strict=True))
                with eventually() as until:
                    until(partial(more_than, before))
        finally:
            done.set()
            asking.join()
        said, _ = caller.communicate("", timeout=PATIENCE)
    assert not wrong and caller.returncode == 0 and int(said) > 20
    with eventually() as until:  # the last FIN and ACK
        until(
            lambda: (
                [now - was for now, was in zip(passed()[1:], start[1:], strict=True)]
                == [now - was for now, was in zip(by_devices(), started, strict=True)]
            )
        )
    assert passed()[0] - start[0] == calls + 1
    assert host.ctl("doctor") == "No problems found."


def test_s30_what_members_say_is_counted_on_over_an_upgrade_and_each_packet_once(
    make_host: Callable[..., Host], other: Version
) -> None:
    """SEE.md, V3; up and down."""
    host = make_host(config=QUICK_ENDS)

    def become(version: Version | None) -> None:
        as_version(host, version)
        assert "replaced" in host.ctl("upgrade")

    each_counted_once(host, [partial(become, other), partial(become, None)])


def _all_more(now: Sequence[int], before: Sequence[int]) -> bool:
    return all(one > was for one, was in zip(now, before, strict=True))


def test_s17_questions_are_answered_while_programs_are_replaced(
    make_host: Callable[..., Host], other: Version
) -> None:
    """None of a container's name is lost or answered wrongly. A foreign one that waits for its upstream when the
    programs are replaced is answered through the new ones; so is what is asked over connections that were there
    before."""
    host = make_host()
    waits_for, quick = "192.0.2.52", "192.0.2.53"
    for address in (waits_for, quick):
        host.outside.sh(f"ip address add {address}/24 dev eth0")
    Upstreams(host.outside, host.folder / "asked", f"{waits_for}=hold:2", f"{quick}=203.0.113.80")
    host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd05::/64 red")
    host.run("web", "--network name=red,alias=api")
    host.run("asker", f"--network red --dns {quick}")
    host.run("waiting", f"--network red --dns {waits_for}")
    web, asker, waiting = host.address("web", "red"), Asker(host, "asker"), Asker(host, "waiting")
    done, asked, wrong = threading.Event(), [0, 0], list[Any]()

    def ask(place: int, name: str, server: str) -> None:
        with asker.socket(to=server) as opened:
            while not done.is_set() and not wrong:
                ident = asked[place] & 0xFFFF
                opened.send(question(name, A, ident))
                try:
                    found = parsed(opened.recv(4096))
                except OSError as error:
                    wrong.append((name, ident, error))
                else:
                    if (found.ident, found.code, found.addresses) != (ident, NOERROR, [web]):
                        wrong.append((name, ident, found))
                asked[place] += 1

    threads = [
        threading.Thread(target=ask, args=args) for args in ((0, "web", LOCAL), (1, "api.red", "fd05::1"))
    ]
    for thread in threads:
        thread.start()
    try:
        for number, version in enumerate((other, None) * (5 if LONG else 1)):
            held, stream = waiting.socket(), asker.socket(socket.SOCK_STREAM)
            before, ident = list(asked), 2 * number
            held.send(question("one.test", A, ident))
            as_version(host, version)
            assert "replaced" in host.ctl("upgrade")
            held.send(question("two.test", A, ident + 1))
            found = sorted(
                (answer.ident, answer.code) for answer in (parsed(held.recv(4096)) for _ in range(2))
            )
            assert found == [(ident, NOERROR), (ident + 1, NOERROR)]
            for name, address in (("x.test", "203.0.113.80"), ("web", web)):
                message = question(name)
                stream.sendall(len(message).to_bytes(2) + message)
                size = int.from_bytes(stream.recv(2, socket.MSG_WAITALL))
                assert parsed(stream.recv(size, socket.MSG_WAITALL)).addresses == [address]
            held.close()
            stream.close()
            with eventually() as until:
                until(partial(_all_more, asked, before))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong and min(asked) > 100
    assert host.ctl("doctor") == "No problems found."


def test_s17_addresses_lead_back_while_programs_are_replaced_that_find_them_by_other_rows(
    make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """Those had a row for each address of an endpoint; now it has one, by its number."""
    former = built(tmp_path, "resolve", lookup=("number = owner_find(key->scope, owner);", "number = 0;"))
    host = make_host()
    as_version(host, former)
    host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd05::/64 red")
    host.run("web", "--network red")
    host.run("asker", "--network red")
    addresses = [ip_address(text) for text in ("10.5.0.2", "fd05::2")]
    with (
        opened(host.bpffs / "datapath" / "maps" / "names") as fd,
        contextlib.closing(bpf_maps.Map(os.dup(fd), "names", "name_key", "name")) as rows,
    ):
        (key,) = (key for key, row in rows.read_all() if wire("web.red")[:-1] in row.records)
        for address in addresses:
            rows[to_abi(address_key(key.scope, address))] = rows[key]
        del rows[key]
    asker, done, asked, wrong = Asker(host, "asker"), threading.Event(), [0, 0], list[Any]()

    def ask(place: int) -> None:
        with asker.socket() as sock:
            while not done.is_set() and not wrong:
                ident = asked[place] & 0xFFFF
                sock.send(question(reverse(str(addresses[place])), PTR, ident))
                said = sock.recv(4096)
                if (parsed(said).ident, parsed(said).code, wire("web.red") in said) != (ident, NOERROR, True):
                    wrong.append((addresses[place], said))
                asked[place] += 1

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    try:
        as_version(host, None)
        for command in ("run -d --name other --network red sleep 3600", "upgrade", "rename other another"):
            before = list(asked)
            host.ctl(command)
            with eventually() as until:
                until(partial(_all_more, asked, before))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert host.ctl("doctor") == "No problems found."


def test_s30_an_agent_goes_on_while_programs_are_replaced(
    make_host: Callable[..., Host], other: Version
) -> None:
    """It serves those of another version as well as commands do, and says once that they are."""
    host = populated(make_host, "auto")
    with agent(host) as one:
        as_version(host, other)
        assert "replaced" in host.ctl("upgrade")
        for address in ("192.0.2.7", "192.0.2.8"):
            host.sh(f"ip address add {address}/24 dev eth0")
            one.says(f"address {address}: new")
        assert [line for line in one.said if OLD in line] == [f"datapathctl agent: {OLD}"]
        as_version(host, None)
        assert "replaced" in host.ctl("upgrade")
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        one.says("address 192.0.2.9: new")
        assert host.ctl("doctor") == "No problems found."


def test_s30_a_command_of_another_version_works_and_says_so(
    make_host: Callable[..., Host], other: Version
) -> None:
    host = populated(make_host, "auto")
    assert ticks(host) > 7.5
    as_version(host, other)
    said = host.try_ctl("run -d --name more sleep 3600")
    assert said.returncode == 0 and said.stderr.count(OLD) == 1 and len(said.stderr.splitlines()) == 1
    assert reaches(host.try_, host.address("more"))
    assert "packet programs: they are of another version" in host.try_ctl("doctor").stdout
    numbers = pinned(host)
    assert host.try_ctl("upgrade").stderr == ""
    with eventually() as until:  # nothing holds the old ones: they are gone
        until(lambda: not numbers & {p["id"] for p in json.loads(host.sh("bpftool -j prog show"))})
    assert ticks(host) < 7.5, "the timer still runs the old program"
    assert host.try_ctl("rm -f more").stderr == ""
    assert host.try_ctl("doctor").returncode == 0


def test_s30_settings_of_daemon_json_are_in_force_after_an_upgrade(make_host: Callable[..., Host]) -> None:
    host = populated(make_host, "auto")
    host.configure({"datapath": {"timeouts": {"udp": 33}}})
    assert (
        "timeout_udp 180 (not 33); those of daemon.json apply after `upgrade`"
        in host.try_ctl("doctor").stdout
    )
    assert "replaced" in host.ctl("upgrade")
    assert host.try_ctl("doctor").returncode == 0
    host.configure({"datapath": {"timeouts": {"udp": 33}, "max-ports": 1024}})
    assert host.ctl("upgrade") == "There is nothing to replace."
    assert "apply after `down`" in host.try_ctl("doctor").stdout


def test_s30_an_uplink_whose_hook_the_version_before_did_not_have_is_served_after_the_upgrade(
    make_host: Callable[..., Host], other: Version
) -> None:
    host = populated(make_host, "auto")
    with ExitStack() as stack:
        uplinks.tun(host, stack)
        host.sh(f"ip address add 10.66.0.1/24 dev {uplinks.NAME}")
        host.sh(f"ip link set {uplinks.NAME} up")
        assert not (host.bpffs / "datapath/programs/from_tunnel").exists()
        as_version(host, other)
        assert host.try_ctl("rm -f peer").returncode == 0
        assert not list(host.bpffs.glob("datapath/links/from_tunnel-*"))
        host.ctl("upgrade")
        host.ctl("doctor")


def test_s30_programs_that_were_not_needed_before_wait_for_the_upgrade(
    make_host: Callable[..., Host], other: Version
) -> None:
    """No program of this version is added to those of another: what needs one is refused, and nothing is changed."""
    host = make_host()
    host.ctl("network create --subnet 10.71.0.0/24 shop")
    as_version(host, other)
    before = look.pins(host), look.devices(host.sh)
    commands = (
        "network create -d ipvlan --subnet 10.91.0.0/24 lan",
        "service create --network shop web",
    )
    for command in commands:
        said = host.try_ctl(command)
        assert said.returncode and "use `datapathctl upgrade`" in said.stderr, said
        assert (look.pins(host), look.devices(host.sh)) == before
        assert {row["Check"] for row in json_lines(host.try_ctl("doctor --json").stdout)} == {"outdated"}
    host.ctl("upgrade")
    for command in commands:
        host.ctl(command)
    assert host.ctl("doctor") == "No problems found."


@needs_tcx
def test_s30_a_link_whose_device_is_gone_is_no_obstacle(make_host: Callable[..., Host]) -> None:
    host = populated(make_host, "tcx")
    (endpoint,) = host.inspect("peer")["NetworkSettings"]["Networks"].values()
    host.sh(f"ip link del veth{endpoint['EndpointID'][:7]}")
    host.configure({"datapath": {"timeouts": {"udp": 33}}})
    assert "replaced" in host.ctl("upgrade")
    assert reaches(host.try_, host.address("web"))
    host.ctl("reconcile")
    assert host.try_ctl("doctor").returncode == 0


def test_s30_an_upgrade_that_is_refused_leaves_nothing_to_be_done_after_it(
    make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """From programs that do not answer questions yet: containers are led to the resolver once others are there."""
    host = populated(make_host, "auto")
    ports = ("__type(value, struct port)", "__type(value, struct conn)")
    edited = built(tmp_path / "edited", "from_uplink", ports=ports)
    shutil.rmtree(edited.folder / "former")
    (host.bpffs / "datapath/maps/resolvers").unlink()
    before = look.database(host)
    as_version(host, edited)
    assert "map ports" in host.refused("upgrade")
    assert look.database(host) == before


@pytest.mark.parametrize("known", [True, False], ids=["as abi.h says", "as only the object says"])
def test_s30_other_maps_are_refused_in_one_line_and_nothing_changes(
    make_host: Callable[..., Host], tmp_path: Path, known: bool
) -> None:
    host = populated(make_host, "clsact" if known else "auto")
    link = ("struct link {\n", "struct link {\n\t__u64 more;\n")
    ports = ("__type(value, struct port)", "__type(value, struct conn)")
    edits = {"abi": link} if known else {"ports": ports}
    edited = built(tmp_path / "edited", "" if known else "from_uplink", **edits)
    shutil.rmtree(edited.folder / "former")  # it knows nothing of this version's layout
    before = (look.kernel_ids(host), look.pins(host), look.database(host))
    as_version(host, edited)
    line = host.refused("upgrade")
    assert "another version" in line
    if known:  # no other command may misread them, or take half of it away
        for command in ("run -d sleep 3600", "stats", "ct ls"):
            assert host.refused(command) == line
        assert "another version" in host.try_ctl("doctor").stdout
    else:
        assert "map ports" in line
    assert (look.kernel_ids(host), look.pins(host), look.database(host)) == before
    as_version(host, None)
    assert host.try_ctl("doctor").returncode == 0
    if known:  # but for what needs none of them
        processes = [host.process(name) for name in ("web", "peer")]
        as_version(host, edited)
        assert host.try_ctl("down").stderr == ""
        assert set(look.devices(host.sh)) == {"lo", "eth0"}
        assert "clsact" not in host.sh("tc qdisc show")
        assert not any(map(look.alive, processes)) and not (host.bpffs / "datapath").exists()


def test_s30_an_upgrade_that_was_killed_or_failed_anywhere_is_completed_by_the_next_command(
    make_host: Callable[..., Host], other: Version
) -> None:
    """By one of either version; old and new programs work together until then. Before everything is loaded
    there is nothing to complete: all is as it was."""
    host = populated(make_host, "auto")
    as_version(host, other)
    host.ctl("upgrade")
    steps = faults.last().steps
    begin(host, other, f"kill@{steps // 2}")
    completed, nothing = [(host.ctl("_exited nobody 0"), faults.last().steps)[1] for _ in range(2)]
    loading = steps - (completed - nothing)  # the others are those that the command after it has taken
    assert 20 < loading < steps // 2
    chosen = [loading // 2, loading - 3, *range(loading + 2, steps, (steps - loading) // 4), steps]
    with traffic(host):
        for at, number in enumerate(chosen):
            kind = "error" if at % 3 == 2 else "kill"
            before = pinned(host)
            begin(host, other, f"{kind}@{number}")
            what = f"{kind} at {number} of {steps} ({faults.last().step})"
            assert faults.last().step, what
            assert host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/8081"]).returncode == 0, what
            as_version(host, (other, None)[at % 2])
            assert host.try_ctl("_exited nobody 0").returncode == 0, what
            assert not (host.bpffs / "datapath" / "next").exists(), what
            assert bool(pinned(host) & before) == (number < loading), what
            assert all(len(ids) == 1 and ids <= pinned(host) for ids in running(host).values()), what
            found = json_lines(host.try_ctl("doctor --json").stdout)
            assert {row["Check"] for row in found} <= {"outdated"}, f"{what}: {found}"


@pytest.mark.parametrize("attach", ["clsact", *(["auto"] if LONG else [])])
def test_s30_maps_programs_and_hooks_that_another_version_adds_come_and_go_with_it(
    make_host: Callable[..., Host], grown: Version, attach: str
) -> None:
    """Also if the upgrade is killed, and the version that completes it knows nothing of them."""
    host = populated(make_host, attach)

    def there() -> dict[str, bool]:
        """What is pinned; of that what has a hook runs, and nothing else does."""
        pins, runs = {Path(pin).name for pin in look.pins(host)}, running(host)
        found = {name: name in pins for name in (NEW_MAP, NEW_HOOK, OLD_HOOK, OLD_PROGRAM)}
        assert found == {name: name in runs for name in found} | {NEW_MAP: found[NEW_MAP]}
        return found

    before = there()
    assert before == {NEW_MAP: False, NEW_HOOK: False, OLD_HOOK: True, OLD_PROGRAM: True}
    after, steps = {name: not was for name, was in before.items()}, 0
    with traffic(host):
        for killed in (False, True) if LONG else (False,):
            as_version(host, grown)
            if killed:
                begin(host, grown, f"kill@{steps * 3 // 4}")
                for version in (None, grown):  # a hook that is new waits for a command that knows it
                    as_version(host, version)
                    host.ctl("_exited nobody 0")
            else:
                host.ctl("upgrade")
                steps = faults.last().steps
                host.run("more")
                as_version(host, None)
                host.ctl("rm -f more")
            assert there() == after
            as_version(host, None)
            assert "replaced" in host.ctl("upgrade")
            assert there() == before
            assert host.ctl("doctor") == "No problems found."


def begin(host: Host, other: Version, fault: str) -> None:
    """An upgrade to whichever version is not loaded, with a fault."""
    as_version(host, None)
    outdated = "outdated" in host.try_ctl("doctor --json").stdout
    as_version(host, None if outdated else other)
    assert host.env is not None
    host.env[faults.VARIABLE] = fault
    ended = host.try_ctl("upgrade")
    del host.env[faults.VARIABLE]
    assert ended.returncode and "internal error" not in ended.stderr, f"{fault}: {ended.stderr}"


def json_lines(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]
