# SPDX-License-Identifier: Apache-2.0
"""S30 on a host that does not play along: full or read-only disks, a damaged database, a restart."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.kernel import netns
from datapath.model.checks import CHECKS
from datapath.store import schema
from tests.net import forked, look
from tests.net.hosts import (
    HOST,
    Host,
    ask,
    echo_server,
    eventually,
    reaches,
    store_version,
    write_as_version_1,
)
from tests.net.test_doctor import BY_HAND, CLEAN, NOT_CLEAN, PROVOCATIONS, doctor, failed_checks, veth

MakeHost = Callable[..., Host]


def serve(host: Host) -> None:
    """A container that answers at the host's port 8081, and does so when this returns."""
    host.run("web", "-p 8081:80", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)


def unmount(folder: Path) -> None:
    """Once the shims that are about to end have closed their logs there."""
    with eventually() as until:
        until(lambda: subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0)


def in_use(folder: Path) -> bool:
    """A process has a file in the folder open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link).startswith(f"{folder}/"):
                return True
    return False


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(folder)], check=True)
    try:
        yield
    finally:
        unmount(folder)


@contextmanager
def disk_for_logs(state: Path) -> Iterator[None]:
    """Logs elsewhere: what has a file open for writing keeps its file system from being mounted read-only, which an
    error of the disk does all the same."""
    folder = state / "containers"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(folder)], check=True)
    try:
        yield
    finally:
        unmount(folder)


def fill(folder: Path) -> Path:
    """Down to the last page; the file to delete again."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


@pytest.mark.parametrize("place", ["state", "run"])
def test_s30_on_a_full_disk_a_command_is_refused_and_leaves_nothing(host: Host, place: str) -> None:
    with small_disk(host.folder / place):
        serve(host)
        ballast = fill(host.folder / place)
        for command in ("run -d --name t -p 8082:80 sleep 3600", "network create --subnet 10.20.0.0/24 t"):
            done = host.try_ctl(command)
            if place == "run" and command.startswith("network"):
                assert done.returncode == 0  # it needs nothing there
                continue
            assert done.returncode not in (0, 70)
            assert "full" in done.stderr or "No space left" in done.stderr
        assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
        ballast.unlink()
        host.ctl("_exited nobody 0")
        assert doctor(host) == []
        assert host.ctl("ps -a --format {{.Names}}") == "web"
        host.run("t", "-p 8082:80")
        assert reaches(host.try_, host.address("t"))
        host.ctl("down")


def assert_it_is_read(host: Host) -> None:
    assert host.ctl("ps --format {{.Names}}").split() == ["web"]
    assert "bridge" in host.ctl("network ls --format {{.Name}}").split()
    assert host.ctl("port ls web --format {{.HostPort}}") == "8081"
    assert host.inspect("web")["State"]["Running"]
    assert host.ctl("ct ls --format {{.NatDestination}}") != ""
    assert host.ctl("exec web echo here") == "here"


KEPT = ["datapath.db", "lock", "reserve"]


def assert_nothing_is_left_wrong(host: Host) -> None:
    """Once the disk has room again."""
    host.ctl("_exited nobody 0")
    assert doctor(host) == []


def test_s30_on_a_full_disk_what_is_there_can_be_read_and_taken_away(host: Host) -> None:
    """Deleting needs space, too: some is kept for it."""
    state = host.folder / "state"
    with small_disk(state):
        serve(host)
        ballast = fill(state)
        for _ in range(2):
            assert_it_is_read(host)
        assert failed_checks(host) == {"disk"}
        for command in ("network create red", "run -d sleep 1", "port add web 8082:80"):
            said = host.refused(command)
            assert f"no space left on the file system at {state}" in said
        ballast.unlink()
        host.ctl("network create red")
        host.run("b", "--network red -p 8083:80")
        host.run("c")
        host.ctl("network connect red c")
        ballast = fill(state)
        for command in (
            *("port rm web 1", "stop -t 0 web", "rm web", "network disconnect red c", "rm -f b"),
            *("network rm red", "rm -f c"),
        ):
            host.ctl(command)
            with eventually() as until:  # the shim's own command may be at work still
                until(lambda: sorted(path.name for path in state.glob("[dlr]*")) == KEPT)
            fill(state).rename(state / f"ballast after {command}")  # others take what has become free
        assert host.ctl("ps -aq") == ""
        with eventually() as until:  # the last container's shim may still tell of its end
            until(lambda: not in_use(state))
        for _ in range(2):
            assert "no space left" in host.refused("run -d sleep 1")
            assert (state / "reserve").stat().st_size
            (state / "reserve").unlink()  # as by a command that takes something away and does not end yet
        for path in state.glob("ballast*"):
            path.unlink()
        assert_nothing_is_left_wrong(host)
        serve(host)
        fill(state)
        host.ctl("down")
        assert [path.name for path in state.iterdir()] == ["ballast"]


def test_s30_on_a_full_disk_whoever_had_the_lock_when_a_command_ended_keeps_space_for_the_next(
    host: Host,
) -> None:
    """A command that gave the space up cannot keep it again then."""
    state = host.folder / "state"

    def keeps(given_up: Callable[[], object]) -> bool:
        (state / "reserve").unlink(missing_ok=True)  # a shim's own command may have given it up just now
        given_up()
        with eventually() as until:  # a shim that nobody waits for may do it
            return bool(until(lambda: (state / "reserve").exists() and (state / "reserve").stat().st_size))

    with small_disk(state):
        serve(host)
        host.run("b")
        known = host.inspect("web")["Id"]
        fill(state)
        assert keeps(lambda: host.ctl("upgrade"))
        assert keeps(lambda: host.refused("network create red"))
        assert keeps(lambda: os.kill(host.process("b"), signal.SIGKILL))
        host.ctl("stop -t 0 web")
        assert keeps(lambda: host.ctl(f"_exited {known} 137"))  # recorded
        host.ctl("rm web")
        assert keeps(lambda: host.ctl(f"_exited {known} 137"))  # forgotten
        host.ctl("down")
        assert [path.name for path in state.iterdir()] == ["ballast"]


# Runs datapathctl and kills it before it ends its n-th transaction.
KILLED_AT_COMMIT = """
import os, signal, sqlite3, sys
left = int(sys.argv.pop(1))
class Connection(sqlite3.Connection):
    def execute(self, sql, *parameters):
        global left
        if sql == "COMMIT":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *parameters)
real = sqlite3.connect
sqlite3.connect = lambda *arguments, **more: real(*arguments, factory=Connection, **more)
from ctl.cli import main
sys.exit(main.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("steps", range(0, 8, 2))
def test_s30_a_command_killed_on_a_full_disk_leaves_nothing_wrong(host: Host, steps: int) -> None:
    state = host.folder / "state"
    with small_disk(state):
        host.ctl("network create red")
        host.run("a", "--network red -p 8081:80")
        ballast = fill(state)
        killed = host.try_([sys.executable, "-c", KILLED_AT_COMMIT, str(steps), "rm", "-f", "a"])
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        host.ctl("ps -a")
        assert host.try_ctl("rm -f a").returncode == 0
        host.ctl("network rm red")
        ballast.unlink()
        assert_nothing_is_left_wrong(host)
        assert host.ctl("ps -aq") == "" and host.ctl("network ls -q --filter type=custom") == ""


def test_s30_a_read_only_state_directory_is_named_and_packets_go_on(host: Host) -> None:
    state = host.folder / "state"
    with small_disk(state), disk_for_logs(state):
        serve(host)
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        for command in ("network create x", "run -d sleep 1", "stop web", "rm -f web", "reconcile", "down"):
            said = host.refused(command)
            assert str(state) in said and "is read-only" in said and "run as root" not in said
        assert_it_is_read(host)
        assert failed_checks(host) == {"disk"}
        assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
        subprocess.run(["mount", "-o", "remount,rw", str(state)], check=True)
        host.ctl("_exited nobody 0")
        host.ctl("down")


def test_s30_what_a_killed_command_has_journaled_is_read_on_a_read_only_file_system(host: Host) -> None:
    """The journal has to be read with the file, and nothing can be written beside either."""
    state = host.folder / "state"
    with small_disk(state), disk_for_logs(state):
        serve(host)
        killed = host.try_(
            [sys.executable, "-c", KILLED_AT_COMMIT, "3", "run", "-d", "--name", "b", "sleep", "1"]
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (state / "datapath.db-wal").stat().st_size
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        assert_it_is_read(host)
        assert failed_checks(host) >= {"disk", "unfinished"}, "what the journal alone has is seen"
        subprocess.run(["mount", "-o", "remount,rw", str(state)], check=True)
        (state / "datapath.db-shm").unlink()  # as after a restart of the machine
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        assert failed_checks(host) >= {"disk", "unfinished"}
        subprocess.run(["mount", "-o", "remount,rw", str(state)], check=True)
        assert_nothing_is_left_wrong(host)
        host.ctl("down")


def test_s30_a_damaged_database_is_named_kept_and_its_copy_put_back_is_all_that_is_needed(
    emptied: Host,
) -> None:
    host = emptied
    serve(host)
    database = host.folder / "state/datapath.db"
    with database.open("rb"):
        pass
    subprocess.run(["python3", "-c", BACKUP, str(database), str(host.folder / "copy")], check=True)
    garbage = b"this is no database" * 1000
    database.write_bytes(garbage)
    found = doctor(host)
    assert [finding["Check"] for finding in found] == ["store"]
    assert "put back a copy" in found[0]["Detail"]
    assert "put back a copy" in host.try_ctl("reconcile").stderr
    assert "put back a copy" in host.refused("network create x")
    assert database.read_bytes() == garbage
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    for name in ("datapath.db-wal", "datapath.db-shm"):
        (database.parent / name).unlink(missing_ok=True)
    shutil.copy(host.folder / "copy", database)
    assert doctor(host) == []


def test_s30_what_is_newer_than_the_copy_of_the_database_is_named_and_taken_away(emptied: Host) -> None:
    host = emptied
    serve(host)
    database = host.folder / "state/datapath.db"
    subprocess.run(["python3", "-c", BACKUP, str(database), str(host.folder / "copy")], check=True)
    host.run("newer", "-p 8082:80,deny=198.51.100.1")
    process = host.process("newer")
    for name in ("datapath.db-wal", "datapath.db-shm"):
        (database.parent / name).unlink(missing_ok=True)
    shutil.copy(host.folder / "copy", database)
    assert failed_checks(host) == {"stray-device", "stray-pin", "stray-files", "entry-stray"}
    host.ctl("reconcile")
    assert doctor(host) == []
    assert [name for name in look.devices(host.sh) if name.startswith("veth")] == [
        veth(host, "web", "bridge")
    ]
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    assert look.alive(process)  # nobody knows whose it is
    os.kill(process, signal.SIGKILL)


def test_s30_a_command_at_work_is_named_after_a_moment(emptied: Host) -> None:
    host = emptied
    host.run("web")
    with (host.folder / "state/lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert failed_checks(host) == {"busy"}
    assert doctor(host) == []


def test_s30_a_command_at_work_is_named_where_a_file_has_not_its_file_systems_device_number(
    host: Host,
) -> None:
    """On btrfs and overlayfs: here the state is on an overlay of two file systems."""
    state, parts = host.folder / "state", host.folder / "parts"
    for path in (state, parts):
        path.mkdir()
    host.sh(f"mount -t tmpfs lower {parts}")
    try:
        for name in ("low", "up", "work"):
            (parts / name).mkdir()
        host.sh(f"mount -t tmpfs lower {parts / 'low'}")
        layers = f"lowerdir={parts / 'low'},upperdir={parts / 'up'},workdir={parts / 'work'}"
        host.sh(["mount", "-t", "overlay", "-o", layers, "overlay", str(state)])
        host.ctl("network create red")
        with (state / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert failed_checks(host) == {"busy"}
        assert doctor(host) == []
        host.ctl("down")
    finally:
        host.try_(f"umount {state}")
        host.try_(f"umount -R {parts}")


def test_s30_other_limits_and_a_map_of_another_layout_are_named_and_need_a_down(host: Host) -> None:
    host.run("web")
    host.configure({"datapath": {"max-ports": 128}})
    assert failed_checks(host) == {"settings"}
    assert host.try_ctl("reconcile").returncode == NOT_CLEAN
    host.configure({})
    pin = host.bpffs / "datapath/maps/ports"
    pin.unlink()
    host.sh(f"bpftool map create {pin} type hash key 4 value 4 entries 8 name ports")
    assert failed_checks(host) == {"unreadable"}
    assert host.try_ctl("reconcile").returncode not in (0, 70)
    subprocess.run(["find", str(host.bpffs / "datapath"), "-type", "f", "-delete"], check=True)
    host.ctl("reconcile")
    assert doctor(host) == []


def test_s30_a_device_of_somebody_else_with_a_pairs_name_is_named_and_left_alone(emptied: Host) -> None:
    host = emptied
    host.run("web")

    def no_dice() -> None:
        os.urandom = lambda count: b"\xab" * count

    host.sh("ip link add vethabababa type veth peer name other0")
    index = look.devices(host.sh)["vethabababa"]["ifindex"]
    forked.in_child.append(no_dice)
    try:
        assert "vethabababa" in host.refused("run -d --name t -p 8082:80 sleep 3600")
    finally:
        forked.in_child.remove(no_dice)
    assert look.devices(host.sh)["vethabababa"]["ifindex"] == index
    assert doctor(host) == []
    assert host.ctl("ps -a --format {{.Names}}") == "web"


# As docs/operations.md has it.
BACKUP = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"


def test_s30_doctor_on_a_host_that_was_never_used_finds_nothing_and_makes_nothing(host: Host) -> None:
    before = look.everything(look.settled(host))
    assert host.ctl("doctor") == CLEAN
    assert host.ctl("doctor --json") == ""
    assert host.ctl("reconcile") == ""
    assert look.everything(host) == before


def test_s30_a_database_that_is_gone_is_named_while_programs_are_at_work(emptied: Host) -> None:
    host = emptied
    host.run("web")
    state = host.folder / "state"
    state.rename(host.folder / "aside")
    assert failed_checks(host) == {"leftover"}
    assert host.try_ctl("reconcile").returncode == NOT_CLEAN
    assert not state.exists()
    (host.folder / "aside").rename(state)
    assert doctor(host) == []


def test_s30_a_bpffs_that_was_unmounted_is_named_and_mounted_again(host: Host) -> None:
    serve(host)
    subprocess.run(["umount", str(host.bpffs)], check=True)
    (finding,) = [one for one in doctor(host) if one["Check"] == "programs"]
    assert "no bpffs is mounted" in finding["Detail"]
    host.ctl("reconcile")
    assert doctor(host) == []
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    host.ctl("down")
    subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(host.bpffs)], check=True
    )  # which the test host takes away


def test_s30_after_a_restart_containers_have_ended_and_networks_are_built_again(make_host: MakeHost) -> None:
    """The store is there; devices, programs, processes and the run directory are gone."""
    before, after = make_host(), make_host()
    before.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
    before.run("web", "--network shop -p 8081:80 -p 40001:80")
    before.run("brief", "--rm")
    (after.folder / "state").mkdir(mode=0o700)
    database = str(before.folder / "state/datapath.db")
    subprocess.run(["python3", "-c", BACKUP, database, str(after.folder / "state/datapath.db")], check=True)
    before.ctl("down")
    assert failed_checks(after) >= {"ended", "gateway", "programs"}
    assert after.ctl("ps -a --filter status=exited --format {{.Names}}").split() == ["brief", "web"]
    after.ctl("reconcile")
    assert doctor(after) == []
    assert after.ctl("ps -a --format {{.Names}}") == "web"
    after.ctl("rm web")
    after.run("web", "--network shop -p 8081:80", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: after.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)
    assert after.address("web", "shop") == "10.20.0.2"


def test_s30_a_full_map_is_named_and_the_container_taken_back(make_host: MakeHost) -> None:
    host = make_host(config={"datapath": {"max-ports": 64}})
    serve(host)
    assert "it is full (64 entries)" in host.refused("run -d --name t -p 9000-9099:9000-9099 sleep 3600")
    assert "it is full (64 entries)" in host.refused("port add web 9000-9099:9000-9099")
    assert doctor(host) == []
    assert host.ctl("ps -a --format {{.Names}}") == "web"
    host.run("t", "-p 9000-9030:9000-9030")
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"


def test_s30_a_clock_that_jumps_ends_nothing(emptied: Host) -> None:
    host = emptied
    moment = ["1970-01-01T00:00:00Z"]

    def jump() -> None:
        from datapath.engine import networks, transaction
        from datapath.runtime import containers, recovery, start

        for module in (transaction, networks, containers, recovery, start):
            module.now = lambda: moment[0]  # type: ignore[attr-defined]

    forked.in_child.append(jump)
    try:
        serve(host)
        moment[0] = "2200-01-01T00:00:00Z"
        host.ctl("network create x")
        moment[0] = "1980-01-01T00:00:00Z"
        host.run("later")
        assert doctor(host) == []
        assert host.ctl("ps --format {{.Names}}").split() == ["later", "web"]
        assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
        host.ctl("rm -f later")
    finally:
        forked.in_child.remove(jump)


def test_s30_a_database_of_an_earlier_version_is_read_and_taken_on_by_the_next_changing_command(
    host: Host,
) -> None:
    """Also where nothing can be written, and where there is no room for its copy; `down` takes that along."""
    state = host.folder / "state"
    with small_disk(state), disk_for_logs(state):
        serve(host)
        write_as_version_1(host)
        before = look.database(host)
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        assert_it_is_read(host)
        subprocess.run(["mount", "-o", "remount,rw", str(state)], check=True)
        assert failed_checks(host) == {"store-older"}
        ballast = fill(state)
        assert_it_is_read(host)
        for room in (0, 128 << 10):  # bytes: with some the database can be opened, which is not enough
            os.truncate(ballast, ballast.stat().st_size - room)
            for command in ("run -d sleep 1", "reconcile"):
                said = host.refused(command)
                assert f"no space left on the file system at {state}" in said
                assert ("to take it to version" in said) == bool(room)
        assert look.database(host) == before and store_version(host) == 1
        assert not list(state.glob("datapath.db.v*"))
        fill(state)
        host.ctl("port rm web 1")  # what is kept for such commands is enough
        assert store_version(host) == schema.VERSION and (state / "datapath.db.v1").exists()
        ballast.unlink()
        assert_nothing_is_left_wrong(host)
        write_as_version_1(host)
        done = host.try_ctl("port add web 8081:80")
        assert done.returncode == 0 and "how it was is kept in" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
        host.ctl("down")
        assert [path.name for path in state.iterdir()] == ["containers"]  # it is mounted there


def test_s30_a_database_of_a_later_version_is_refused_by_the_name_of_the_release(emptied: Host) -> None:
    host = emptied
    serve(host)
    with sqlite3.connect(host.folder / "state/datapath.db") as opened:
        opened.execute("UPDATE meta SET value = '9.8' WHERE key = 'release'")
        opened.execute("PRAGMA user_version = 99")
    opened.close()
    before = look.database(host)
    for command in ("run -d sleep 1", "ps", "reconcile", "down"):
        assert "use datapath 9.8 or later" in host.refused(command)
    (found,) = doctor(host)
    assert found["Check"] == "store-newer" and "that version" in found["Repair"]
    assert look.database(host) == before
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    with sqlite3.connect(host.folder / "state/datapath.db") as opened:
        opened.execute(f"PRAGMA user_version = {schema.VERSION}")
    opened.close()
    assert doctor(host) == []


def test_s30_a_device_of_somebody_else_in_a_gateways_place_is_named_and_left_alone(host: Host) -> None:
    host.run("web")
    host.sh("ip link del dp0")
    host.sh("ip link add dp0 type bridge")
    bridge = look.devices(host.sh)["dp0"]["ifindex"]
    assert "foreign-device" in failed_checks(host)
    assert host.try_ctl("reconcile").returncode == NOT_CLEAN
    subprocess.run(["find", str(host.bpffs / "datapath"), "-type", "f", "-delete"], check=True)
    assert host.try_ctl("reconcile").returncode not in (0, 70)
    assert look.devices(host.sh)["dp0"]["ifindex"] == bridge
    host.sh("ip link set dp0 name br0")
    host.ctl("reconcile")
    assert doctor(host) == []
    assert reaches(host.try_, host.address("web"))


def test_s30_every_check_is_provoked_by_some_test() -> None:
    others = (
        *("test_upgrade.py", "test_library.py", "test_driver.py", "test_docker.py"),
        *("test_hostnet_uplinks.py", "test_hostnet_cgroup.py", "test_agent.py", "test_words.py"),
        *("test_services_health.py", "test_services_cluster.py"),
        *(
            "test_macvlan.py",
            "test_macvlan_programs.py",
            "test_ipvlan.py",
            "test_overlay.py",
            "test_overlay_host.py",
            "test_overlay_routed.py",
            "test_overlay_wireguard.py",
            "test_cluster_agent.py",
            "test_plugins.py",
            "test_reachability.py",
        ),
    )
    here = "".join(Path(__file__).with_name(name).read_text() for name in (Path(__file__).name, *others))
    provoked = {check for check, _ in PROVOCATIONS.values()} | {
        name for name in CHECKS if f'"{name}"' in here
    }
    assert CHECKS.keys() == provoked | {check for by_hand in BY_HAND.values() for check in by_hand.values()}


def test_s30_xdp_is_attached_again_right_after_its_link_was_given_up(emptied: Host) -> None:
    """The kernel detaches it some time after its pin is gone; until then it says that the device is taken."""
    host = emptied
    host.run("web", "-p 8081:80,deny=198.51.100.9")
    (link,) = (host.bpffs / "datapath/links").glob("xdp_uplink-*")
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found, netns.enter(host.path):
        for _ in range(5):
            found.drop_link(link.name)
            assert found.attach_xdp(int(link.name.rpartition("-")[2]))
