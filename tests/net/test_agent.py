# SPDX-License-Identifier: Apache-2.0
"""The agent: what of the host's changes it serves, and what it survives. Events are the kernel's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctl import units
from ctl.agent.follower import LOOK
from datapath.config.settings import Settings
from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi
from tests.net import look
from tests.net.agents import Agent, agent
from tests.net.hosts import HOST, OUTSIDE, SLOWNESS, Host, Namespace, ask, echo_server, eventually, ordinary
from tests.net.test_concurrency import Standing

LONG = bool(os.environ.get("DATAPATH_LONG"))
NEW = "192.0.2.7"


def answers(host: Host, address: str, port: int, place: Namespace | None = None) -> bool:
    """The published port answers the machine outside at that address."""
    place = place or host.outside
    return place.try_(ask("tcp", address, port, 1)).returncode == 0


def published(host: Host, options: str = "-p 8081:80") -> None:
    host.run("web", options, echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: answers(host, HOST, 8081))


def becomes_sound(host: Host) -> None:
    """More news may be on its way: routes come after addresses, and a device's own IPv6 address with its carrier."""
    with eventually() as until:
        until(lambda: host.try_ctl("doctor").stdout == "No problems found.\n")


def rows(host: Host, name: str) -> str:
    """What a pinned map has, as text."""
    path = host.bpffs / "datapath" / "maps" / name
    return subprocess.run(
        ["bpftool", "map", "dump", "pinned", str(path)], capture_output=True, text=True
    ).stdout


@pytest.fixture
def kept(emptied: Host) -> Iterator[Host]:
    """The module's host, which loses the address that it was given; of an agent it has none then."""
    yield emptied
    emptied.try_(f"ip address delete {NEW}/24 dev eth0")
    emptied.ctl("reconcile")


def test_a_port_published_at_every_address_answers_at_a_new_one_at_once(kept: Host) -> None:
    host = kept
    published(host)
    with agent(host) as running:
        host.sh(f"ip address add {NEW}/24 dev eth0")
        running.says(f"address {NEW}: new")
        assert answers(host, NEW, 8081)
        becomes_sound(host)


def test_doctor_does_not_tell_what_the_agent_is_about_to_serve(
    kept: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent stands still until doctor has looked once."""
    host = kept
    published(host)
    with agent(host) as one:
        os.kill(one.pid, signal.SIGSTOP)
        host.sh(f"ip address add {NEW}/24 dev eth0")
        assert "map addresses" in host.try_ctl("doctor").stdout

        def serve(seconds: float) -> None:
            os.kill(one.pid, signal.SIGCONT)
            with eventually() as until:
                until(lambda: f"datapathctl agent: address {NEW}: new" in one.said)

        monkeypatch.setattr("datapath.engine.doctor.time", SimpleNamespace(sleep=serve))
        found = host.try_ctl("doctor")
        assert found.stdout == "No problems found.\n", found.stderr


def test_a_new_outside_device_is_served_at_once(kept: Host) -> None:
    host = kept
    published(host)
    other = Namespace()
    try:
        with agent(host) as running:
            host.sh(f"ip link add up1 type veth peer name eth0 netns {other.pid}")
            host.sh("ip address add 10.78.0.1/24 dev up1")
            host.sh("ip link set up1 up")
            other.sh("ip address add 10.78.0.2/24 dev eth0")
            other.sh("ip link set eth0 up")
            running.says("uplink up1: new")
            with eventually() as until:
                until(lambda: answers(host, "10.78.0.1", 8081, other))
            becomes_sound(host)
            host.sh("ip link delete up1")
            running.says("uplink up1: gone")
            becomes_sound(host)
    finally:
        other.close()


def test_without_an_agent_the_next_command_serves_a_new_address(kept: Host) -> None:
    host = kept
    published(host)
    host.sh(f"ip address add {NEW}/24 dev eth0")
    host.ctl("network create other")
    assert answers(host, NEW, 8081)


def test_a_second_agent_says_so_in_one_line_and_ends(kept: Host) -> None:
    host = kept
    with agent(host) as first:
        line = host.refused("agent")
        state = host.folder / "state" / "agent"
        assert line == f"datapathctl: another agent is at work already: it holds {state}"
        assert first.end() == 0
        assert not state.exists()
    with agent(host):
        pass


def test_signals_end_it_cleanly_and_leave_nothing(host: Host) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with agent(host) as one:
            assert one.end(number) == 0
            assert one.said[-1] == "datapathctl agent: ended"
        assert not (host.folder / "state").exists()


def test_one_that_was_killed_is_simply_started_again(host: Host) -> None:
    published(host)
    with agent(host) as one:
        one.kill()
    host.sh(f"ip address add {NEW}/24 dev eth0")
    with agent(host) as one:
        assert answers(host, NEW, 8081)
        one.kill()
    assert host.try_ctl("doctor").stdout == "No problems found.\n"
    host.ctl("down")
    assert not (host.folder / "state").exists()


def test_down_makes_it_idle_and_what_comes_next_is_served(host: Host) -> None:
    published(host)
    with agent(host) as one:
        host.ctl("down")
        host.sh(f"ip address add {NEW}/24 dev eth0")
        published(host)
        assert answers(host, NEW, 8081)
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        one.says("address 192.0.2.9: new")
        assert answers(host, "192.0.2.9", 8081)
        host.ctl("down")
        assert one.end() == 0
    assert not (host.folder / "state").exists()


def test_programs_and_state_that_are_taken_away_under_it_do_not_end_it(host: Host) -> None:
    published(host)
    with agent(host) as one:
        subprocess.run(["umount", "-l", str(host.bpffs)], check=True)
        try:
            host.sh(f"ip address add {NEW}/24 dev eth0")
            one.says("packet programs were missing")
        finally:
            subprocess.run(["umount", "-l", str(host.bpffs / "datapath")], check=False)
            subprocess.run(["mount", "-t", "bpf", "bpf", str(host.bpffs)], check=True)
        os.rename(host.folder / "state", host.folder / "away")
        host.sh("ip address add 192.0.2.8/24 dev eth0")
        with eventually() as until:
            until((host.folder / "state" / "agent").exists)
        (host.folder / "state" / "agent").unlink()
        (host.folder / "state").rmdir()
        os.rename(host.folder / "away", host.folder / "state")
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        with eventually() as until:
            until(lambda: "192.0.2.9" in known(host))
        assert one.process.poll() is None


def test_a_changed_port_range_is_served_within_seconds(host: Host) -> None:
    published(host)
    with agent(host) as one:
        before = rows(host, "host")
        host.sh("sysctl -qw net.ipv4.ip_local_port_range='20000 30000'")
        one.says("port range: 20000-30000")
        assert rows(host, "host") != before
        becomes_sound(host)


def test_ipsec_policies_are_known_at_once_and_doctor_names_them(kept: Host) -> None:
    """A policy that only lets packets pass as they are is nothing to tell."""
    host = kept
    published(host)
    with agent(host) as one:
        host.sh("ip xfrm policy add dst 10.50.0.0/16 dir out action block")
        host.sh("ip xfrm policy add dst 10.51.0.0/16 dir out")
        host.sh("ip xfrm policy setdefault in block")
        one.says("IPsec policies: 2")
        done = host.try_ctl("doctor --format json")
        assert done.returncode == 20
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(row["Check"], row["Detail"]) for row in found] == [
            ("xfrm", "IPsec policies that protect or block packets: 1"),
            ("xfrm", "packets that no IPsec policy is about are blocked: in"),
        ]
        host.sh("ip xfrm policy setdefault in accept")
        host.sh("ip xfrm policy flush")
        one.says("IPsec policies: 0")
        becomes_sound(host)


def test_a_route_that_fails_over_and_a_new_rule_are_followed(host: Host) -> None:
    """The device that the new route leads out by, and the table that a rule leads to, are uplinks at once."""
    published(host)
    other = Namespace()
    try:
        host.sh(f"ip link add up1 type veth peer name eth0 netns {other.pid}")
        host.sh("ip link set up1 up")
        other.sh("ip link set eth0 up")
        with agent(host) as one:
            host.sh("ip address add 10.78.0.1/24 dev up1")
            one.says("uplink up1: new")
            host.sh("ip route replace default via 10.78.0.2 metric 10")
            host.sh("ip route replace default via 10.78.0.2 table 200")
            host.sh("ip rule add iif lo ipproto tcp dport 9000 lookup 200")
            becomes_sound(host)
            host.sh("ip link set eth0 down")
            one.says("uplink eth0: gone")
            host.sh("ip link set eth0 up")
            one.says("uplink eth0: new")
            host.sh(f"ip route add default via {OUTSIDE}")
            with eventually() as until:
                until(lambda: answers(host, HOST, 8081))
            becomes_sound(host)
    finally:
        other.close()


def test_it_starts_again_as_the_version_that_is_installed(kept: Host) -> None:
    host = kept
    published(host)
    with agent(host) as one:
        digest = abi.OBJECTS / "digest"
        before = digest.stat()
        try:
            os.utime(digest)  # an installation writes it anew
            one.says("another version is installed: starting again")
            with eventually() as until:
                until(lambda: sum("following the host" in line for line in one.said) == 2)
        finally:
            os.utime(digest, ns=(before.st_atime_ns, before.st_mtime_ns))
        host.sh(f"ip address add {NEW}/24 dev eth0")
        one.says(f"address {NEW}: new")
        assert host.refused("agent").startswith("datapathctl: another agent is at work already")


def allowed() -> str:
    """The capabilities that the unit file leaves, as setpriv has them."""
    text = next(iter(units.files(units.AGENT, "/x", Settings()).values()))
    lines = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = [word.removeprefix("CAP_").lower() for line in lines for word in line.partition("=")[2].split()]
    return ",".join(("-all", *(f"+{name}" for name in names)))


def test_what_its_unit_file_leaves_it_is_enough(host: Host) -> None:
    """Programs that are loaded again, and networks with packet filter rules included."""
    published(host)
    before = look.devices(host.sh).keys()
    host.ctl("network create -o com.datapath.mode=iptables old")
    (bridge,) = look.devices(host.sh).keys() - before
    host.run("other", "--network old -p 8082:80", echo_server("tcp", 80))
    with agent(host, "setpriv", f"--bounding-set={allowed()}", "--no-new-privs") as one:
        host.sh(f"ip address add {NEW}/24 dev eth0")
        one.says(f"address {NEW}: new")
        assert answers(host, NEW, 8081)
        subprocess.run(["rm", "-r", str(host.bpffs / "datapath")], check=True)
        host.sh("ip link delete " + bridge)
        host.sh("ip address add 192.0.2.8/24 dev eth0")
        with eventually() as until:
            until(lambda: answers(host, "192.0.2.8", 8081))
        # What that took is given back, by starting again.
        with eventually() as until:
            until(lambda: any("MB are in use: starting again" in line for line in one.said))
            until(lambda: sum("following the host" in line for line in one.said) == 2)
        assert resident(one.pid) <= 35 * 1024
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        one.says("address 192.0.2.9: new")
    host.ctl("reconcile")
    assert host.try_ctl("doctor").stdout == "No problems found.\n"


# ---- how soon, and what it costs ------------------------------------------------------------------------------


def known(host: Host) -> set[str]:
    """The host's addresses, as the packet programs know them."""
    with Dataplane(host.bpffs / "datapath") as loaded, contextlib.suppress(KernelError):
        return {str(key.addr) for key in loaded.addresses}
    return set()  # they are being loaded


def delay(host: Host, verb: str) -> float:
    """Seconds from a change of an address until the packet programs know."""
    host.sh(f"ip address {verb} {NEW}/24 dev eth0")
    began = time.monotonic()
    with eventually() as until:
        until(lambda: (NEW in known(host)) == (verb == "add"))
    return time.monotonic() - began


def cpu(pid: int) -> float:
    """Seconds of a processor that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Kilobytes."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Rss:")[2].split()[0])


def lost_messages(pid: int) -> int:
    """Messages that the kernel did not keep for the process's netlink sockets."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]]
    inodes = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return sum(int(fields[8]) for fields in lines if f"socket:[{fields[9]}]" in inodes)


def test_an_address_is_served_and_given_up_by_less_than_a_tenth_of_a_second_of_work(kept: Host) -> None:
    host = kept
    published(host)
    with agent(host) as one:
        before = cpu(one.pid)
        delays = [(delay(host, "add"), delay(host, "del")) for _ in range(10)]
        used = (cpu(one.pid) - before) / 20
        print(f"\n{[tuple(round(1000 * each) for each in pair) for pair in delays]} ms, {used:.3f} s each")
        # Others may be at work on this machine, and it has to wait for them: they take nothing of its own work.
        assert used < 0.1 * SLOWNESS
        # And for nothing else: not for the look at what makes no news.
        assert min(map(min, delays)) < LOOK


def test_it_takes_little_memory_and_next_to_nothing_of_a_processor(kept: Host) -> None:
    host = kept
    published(host)
    with agent(host) as one:
        host.sh(f"ip address add {NEW}/24 dev eth0")
        one.says(f"address {NEW}: new")
        before, began = cpu(one.pid), time.monotonic()
        time.sleep(60 if LONG else 6)  # this is what is measured: nothing happens
        used = (cpu(one.pid) - before) / (time.monotonic() - began)
        print(f"\n{resident(one.pid)} kB, {100 * used:.3f} % of a processor")
        assert resident(one.pid) <= 35 * 1024
        assert used <= (0.001 if LONG else 0.005)  # the clock counts hundredths of a second


def test_a_storm_of_news_costs_little_and_what_matters_is_served_in_the_middle_of_it(kept: Host) -> None:
    host = kept
    published(host)
    with agent(host) as one:
        before, began = cpu(one.pid), time.monotonic()
        # Each of these changes is news of an address and of two routes.
        many = "".join(
            f"address {verb} 10.99.0.1/24 dev eth0\n" for _ in range(5000) for verb in ("add", "del")
        )
        storm = host.start(["ip", "-batch", "-"], stdin=subprocess.PIPE)
        assert storm.stdin is not None
        storm.stdin.write(many[: len(many) // 2])
        storm.stdin.flush()
        host.sh(f"ip address add {NEW}/24 dev eth0")
        served = answers(host, NEW, 8081)
        storm.communicate(many[len(many) // 2 :])
        took, used = time.monotonic() - began, cpu(one.pid) - before
        print(
            f"\n{took:.1f} s, {100 * used / took:.0f} % of a processor, {lost_messages(one.pid)} messages lost"
        )
        assert served
        assert lost_messages(one.pid) > 0  # the kernel keeps few for it; it looks at the whole instead
        assert used / took < 0.4
        one.says(f"address {NEW}: new")
        with eventually() as until:
            until(lambda: "10.99.0.1" not in known(host))
        becomes_sound(host)


# ---- beside commands --------------------------------------------------------------------------------------


def test_a_command_that_stands_still_keeps_it_waiting_and_no_more(kept: Host) -> None:
    """Until the command goes on nothing can be told; the agent can be ended all the same."""
    host = kept
    published(host)
    with agent(host) as one, contextlib.closing(Standing(host, "run -d --name late sleep 3600")) as run:
        host.sh(f"ip address add {NEW}/24 dev eth0")
        with agent_ends(one, host):
            pass
        with agent(host) as other:
            assert NEW not in known(host)
            run.go_on()
            other.says("following the host")
            with eventually() as until:
                until(lambda: NEW in known(host))
    assert host.try_ctl("doctor").stdout == "No problems found.\n"


@contextlib.contextmanager
def agent_ends(one: Agent, host: Host) -> Iterator[None]:
    """At once, whatever it waits for."""
    began = time.monotonic()
    yield
    assert one.end() == 0
    assert time.monotonic() - began < 5 * SLOWNESS + ordinary(host)


def test_commands_go_on_as_if_it_were_not_there(kept: Host) -> None:
    """While addresses come and go, a command is never kept from its work by more than one refresh."""
    host = kept
    published(host)
    stop = host.folder / "stop"
    change = f"ip address add {NEW}/24 dev eth0; ip address del {NEW}/24 dev eth0"
    script = f"while ! [ -e {stop} ]; do {change}; sleep 0.02; done"
    with agent(host) as one:
        churn = host.start(["sh", "-c", script])
        try:
            for number in range(10):
                host.ctl(f"network create n{number}")
                host.run(f"c{number}", f"--network n{number} -p {9000 + number}:80")
                host.ctl(f"rm -f c{number}")
                host.ctl(f"network rm n{number}")
        finally:
            stop.touch()
            churn.wait()
        assert not [line for line in one.said if "another command" in line or "internal error" in line]
        becomes_sound(host)
        assert NEW not in known(host)
