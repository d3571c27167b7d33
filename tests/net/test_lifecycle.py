# SPDX-License-Identifier: Apache-2.0
"""The life of a container: how it is started, looked at, entered, stopped, and what is left of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.net import look
from tests.net.lab import DATAPATHCTL, HOST, PATIENCE, Host, ask, echo_server, eventually, reaches

PREFIX = "datapathctl: "


@pytest.fixture(scope="module")
def world(shared_host: Host) -> Host:
    look.settled(shared_host).preloaded = True
    shared_host.run("web", command=["sh", "-c", "echo started; echo failed >&2; exec sleep 3600"])
    return shared_host


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small system of its own: busybox."""
    root = tmp_path_factory.mktemp("rootfs")
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "ip", "ping", "cat", "ls", "hostname", "mount", "sleep", "wget", "httpd", "touch"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "here").write_text("in the root\n")
    return root


def run(host: Host, *argv: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """A container in the foreground."""
    return host.try_([DATAPATHCTL, "run", *argv], input=input)


def until_ready(host: Host, name: str) -> None:
    """It has said so, and its signal handlers are there."""
    with eventually() as until:
        until(lambda: "ready" in host.ctl(["logs", name]))


# ---- starting -------------------------------------------------------------------------


def test_s4_run_detached_prints_the_full_id_and_returns(world: Host) -> None:
    said = world.ctl("run -d --rm sleep 3600")
    assert re.fullmatch("[0-9a-f]{64}", said)
    assert said[:12] in world.ctl("ps -q").split()
    world.ctl(["rm", "-f", said[:7]])


def test_s4_run_in_the_foreground_passes_output_and_exit_code(world: Host) -> None:
    done = run(world, "--rm", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--bogus", "true"], 125, "No such option '--bogus'"),
        ([], 125, "Missing argument"),
        (["--network", "nosuch", "true"], 125, "network nosuch not found"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["/etc"], 126, "Permission denied"),
        (["nosuch-command"], 127, "No such file or directory"),
        (["/no/such/command"], 127, "No such file or directory"),
        (["--rootfs", "/nosuch", "true"], 125, "rootfs /nosuch is not a directory"),
        (["sh", "-c", "exit 125"], 125, None),
        (["sh", "-c", "kill -9 $$"], 137, None),
        (["sh", "-c", "kill -TERM $$"], 143, None),
        (["false"], 1, None),
    ],
)
def test_s4_exit_codes_are_dockers(world: Host, options: list[str], code: int, reason: str | None) -> None:
    before = look.devices(world.sh)
    done = run(world, "--rm", *options)
    assert done.returncode == code
    if reason is None:
        assert done.stderr == ""
    else:
        assert reason in done.stderr
        assert done.stderr.startswith(PREFIX)
        assert done.stderr.count("\n") == 1
    assert look.devices(world.sh) == before
    assert world.ctl("ps -aq").split() == [world.inspect("web")["Id"][:12]]


def test_s4_a_detached_command_that_cannot_start_is_reported_and_leaves_nothing(world: Host) -> None:
    before = look.devices(world.sh)
    done = run(world, "-d", "--name", "never", "-p", "8099:80", "nosuch-command")
    assert (done.returncode, done.stdout) == (127, "")
    assert world.refused("inspect never") == f'{PREFIX}no such container or network: "never"'
    assert look.devices(world.sh) == before
    assert not (world.folder / "run" / "containers" / "never").exists()
    world.run("never", "-p 8099:80")
    world.ctl("rm -f never")


def test_s4_interactive_passes_standard_input(world: Host) -> None:
    done = run(world, "--rm", "-i", "sh", "-c", "read a; read b; echo $b-$a; cat", input="one\ntwo\nrest")
    assert done.stdout == "two-one\nrest"
    assert run(world, "--rm", "cat", input="not for it").stdout == ""


def test_s4_a_terminal_is_given_with_t_and_refused_without_one_here(world: Host) -> None:
    assert run(world, "--rm", "-it", "true").stderr == (
        f"{PREFIX}the input device is not a TTY: leave out -t\n"
    )
    assert "not a tty" in run(world, "--rm", "tty").stdout
    controller, terminal = pty.openpty()
    command = [DATAPATHCTL, "run", "--rm", "-it", "sh", "-c", "tty; echo $TERM; read x; echo got:$x; exit 5"]
    process = world.start(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = _read(controller, "xterm")
    assert "/dev/pts/" in seen
    os.write(controller, b"hello\r")
    assert "got:hello" in _read(controller, "got:hello")
    assert process.wait(PATIENCE) == 5
    os.close(controller)


def _read(fd: int, until: str) -> str:
    seen = ""
    deadline = time.monotonic() + PATIENCE
    while until not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 4096).decode()
            except OSError:
                break
    return seen


def test_s4_a_signal_to_the_foreground_command_reaches_the_process(world: Host) -> None:
    script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = world.start([DATAPATHCTL, "run", "--rm", "sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "asked\n"
    assert process.wait(PATIENCE) == 9
    process.stdout.close()


def test_s4_rm_forgets_the_container_when_it_ends(world: Host) -> None:
    assert run(world, "--rm", "--name", "brief", "true").returncode == 0
    assert "no such container" in world.refused("inspect brief")
    ident = world.ctl("run -d --rm --name brief sleep 0.2")
    with eventually() as until:
        until(lambda: ident[:12] not in world.ctl("ps -aq"))
        until(lambda: not (world.folder / "run" / "containers" / ident).exists())


def test_s4_without_rm_the_name_stays_taken_until_rm(world: Host) -> None:
    ident = world.ctl("run -d --name once true")
    said = world.refused("run --name once true")
    assert said == (
        f'{PREFIX}Conflict. The container name "/once" is already in use by container "{ident}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    assert world.ctl("rm once") == "once"
    world.ctl("run --name once true")
    world.ctl("rm once")


# ---- its surroundings -----------------------------------------------------------------


def test_s1_environment_hostname_hosts_and_dns_are_what_was_asked(world: Host) -> None:
    done = run(
        world,
        *shlex.split("--rm --hostname box --domainname example.net --add-host db:10.9.9.9"),
        *shlex.split("--add-host gw:host-gateway --dns 192.0.2.53 --dns-search example.org"),
        *shlex.split("--dns-option ndots:2 -e A=1 -e B=two=2 -e UNSET"),
        *["sh", "-c", "hostname; hostname -f; cat /etc/hostname; cat /etc/hosts /etc/resolv.conf; env"],
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["box", "box.example.net", "box"]
    for line in (
        "10.9.9.9\tdb",
        "172.17.0.1\tgw",
        "172.17.0.3\tbox.example.net box",
        "nameserver 192.0.2.53",
        "search example.org",
        "options ndots:2",
        "A=1",
        "B=two=2",
        "HOSTNAME=box",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("UNSET", "DATAPATH", "PYTHON"))]
    assert done.stdout.count("nameserver") == 1


def test_s1_a_variable_without_a_value_is_handed_on(world: Host) -> None:
    said = world.sh(
        ["env", "HANDED=on", DATAPATHCTL, "run", "--rm", "-e", "HANDED", "sh", "-c", "echo $HANDED"]
    )
    assert said == "on"


def test_s1_the_hosts_own_files_are_untouched(world: Host) -> None:
    before = [Path(name).read_text() for name in ("/etc/hosts", "/etc/resolv.conf")]
    run(world, "--rm", "--dns", "192.0.2.53", "sh", "-c", "echo changed > /etc/hosts; mount -t tmpfs x /mnt")
    assert [Path(name).read_text() for name in ("/etc/hosts", "/etc/resolv.conf")] == before
    assert not os.path.ismount("/mnt")


def test_s1_a_root_directory_of_its_own(world: Host, rootfs: Path) -> None:
    world.run("box", f"--rootfs {rootfs} --hostname box -p 8070:80", "sleep 3600")
    assert world.ctl("exec box cat /here") == "in the root"
    assert world.ctl("exec box hostname") == "box"
    assert "172.17.0.3/16" in world.ctl("exec box ip address show dev eth0")
    assert "172.17.0.3\tbox" in world.ctl("exec box cat /etc/hosts")
    assert "default via 172.17.0.1" in world.ctl("exec box ip route")
    assert set(world.ctl("exec box ls /").split()) >= {"bin", "dev", "etc", "here", "proc", "sys"}
    assert "null" in world.ctl("exec box ls /dev")
    assert world.ctl("exec box ls /sys/class/net").split() == ["eth0", "lo"]
    assert "exit code" not in world.ctl("exec box ping -c 1 -W 60 172.17.0.1")
    world.ctl(["exec", "box", "sh", "-c", "httpd -p 80 -h /"])
    with eventually() as until:
        until(lambda: "in the root" in world.outside.try_(["curl", "-s", f"http://{HOST}:8070/here"]).stdout)
    mounts = world.ctl("exec box mount")
    assert str(world.folder) not in mounts.replace(str(rootfs), "")  # nothing of the host shines through
    world.ctl("rm -f box")
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


def test_s1_a_process_inherits_no_stray_file_descriptors(world: Host) -> None:
    """Neither from the one who runs it, or enters it, nor from its shim: 3 is the folder that ls reads."""
    with open("/etc/passwd") as stray:
        os.set_inheritable(stray.fileno(), True)
        for command in (["run", "--rm"], ["exec", "web"], ["run", "--rm", "--network", "host"]):
            argv = ["nsenter", f"--net={world.path}", DATAPATHCTL, *command, "ls", "/proc/self/fd"]
            done = subprocess.run(argv, env=world.env, capture_output=True, text=True, close_fds=False)
            assert done.stdout.split() == ["0", "1", "2", "3"], command
    detached = Path(f"/proc/{world.process('web')}/fd")
    assert sorted(fd.name for fd in detached.iterdir()) == ["0", "1", "2"]
    assert os.readlink(detached / "0") == "/dev/null"


def test_s1_signals_and_mask_are_the_default_ones(world: Host) -> None:
    status = Path(f"/proc/{world.process('web')}/status").read_text()
    for field in ("SigBlk", "SigIgn"):
        found = re.search(rf"^{field}:\s([0-9a-f]+)$", status, re.M)
        assert found
        # 32 and 33 are the C library's own, which lets nobody touch them: they are as its caller had them.
        assert not int(found[1], 16) & ~(0b11 << 31), status


# ---- looking --------------------------------------------------------------------------


def test_s4_logs_print_what_it_wrote(world: Host) -> None:
    assert world.ctl("logs web").splitlines() == ["started", "failed"]
    assert world.ctl("logs --tail 1 web") == "failed"
    world.ctl(["run", "--name", "talk", "sh", "-c", "for i in 1 2 3; do echo $i; done"])
    assert world.ctl("logs -n 2 talk").split() == ["2", "3"]  # also of one that has ended
    assert world.ctl("logs --tail 0 talk") == ""
    world.ctl("rm talk")


def test_s4_logs_follow_until_the_end(world: Host) -> None:
    world.run("ticks", command=["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.1; done"])
    assert world.ctl("logs -f ticks").split() == ["1", "2", "3", "4"]
    world.ctl("rm -f ticks")


def test_s4_exec_runs_in_the_containers_namespaces_with_its_exit_code(world: Host) -> None:
    assert world.ctl("exec web hostname") == world.inspect("web")["Id"][:12]
    assert world.try_ctl(["exec", "web", "sh", "-c", "exit 7"]).returncode == 7
    assert world.ctl(["exec", "-e", "X=1", "-w", "/usr", "web", "sh", "-c", "echo $X $PWD"]) == "1 /usr"
    assert world.sh([DATAPATHCTL, "exec", "-i", "web", "cat"], input="piped") == "piped"
    assert world.try_ctl("exec web nosuch-command").returncode == 127
    assert world.try_ctl("exec web /etc/passwd").returncode == 126
    done = world.try_ctl("exec nosuch true")
    assert (done.returncode, done.stderr) == (125, f"{PREFIX}No such container: nosuch\n")
    assert "eth0" in world.ctl("exec web ls /sys/class/net")


def test_s4_ps_lists_the_running_and_with_a_all(world: Host) -> None:
    assert run(world, "--name", "ended", "--label", "x=1", "sh", "-c", "exit 4").returncode == 4
    heading = world.ctl("ps").splitlines()[0]
    assert re.split("  +", heading) == ["CONTAINER ID", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert world.ctl("ps --format {{.Names}}") == "web"
    assert world.ctl("ps -a --format {{.Names}}").split() == ["ended", "web"]
    assert world.ctl("ps -aq --no-trunc --filter name=ended") == world.inspect("ended")["Id"]
    assert world.ctl("ps -a --filter label=x=1 --format {{.Names}}") == "ended"
    assert world.ctl("ps -a --filter status=exited --format {{.Names}}") == "ended"
    row = json.loads(world.ctl("ps -a --filter exited=4 --format json"))
    assert row["Names"] == "ended"
    assert re.fullmatch(r"Exited \(4\) .* ago", row["Status"])
    assert row["State"] == "exited"
    world.ctl("rm ended")


# ---- the end --------------------------------------------------------------------------


def test_s30_the_parent_of_a_container_that_an_earlier_version_started_still_reports_its_end(
    world: Host,
) -> None:
    """It has the command line of that version, from the time before the command line's modules moved."""
    world.run("older", "-p 8072:80")
    container, process = world.inspect("older")["Id"], world.process("older")
    parent = psutil.Process(process).ppid()
    for pid in (parent, process):  # the parent first: it is not to report by its own way
        os.kill(pid, signal.SIGKILL)
    with eventually() as until:
        until(lambda: "its end was not noticed" in world.try_ctl("doctor").stdout)
    world.sh([sys.executable, "-m", "ctl.main", "_exited", container, "9"])
    assert world.try_ctl("doctor").returncode == 0
    assert world.inspect("older")["State"]["Status"] == "exited"
    world.ctl("rm older")


def test_s4_an_exit_is_noticed_and_recorded_and_the_endpoint_released(world: Host, tmp_path: Path) -> None:
    before = look.devices(world.sh)
    world.run("short", "-p 8071:80", ["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 6"])
    address = world.address("short")
    assert look.devices(world.sh) != before
    (tmp_path / "go").touch()
    with eventually() as until:
        until(lambda: world.inspect("short")["State"]["Status"] == "exited")
    state = world.inspect("short")["State"]
    assert (state["ExitCode"], state["Running"], state["Pid"]) == (6, False, 0)
    assert state["FinishedAt"] > state["StartedAt"]
    assert look.devices(world.sh) == before
    world.run("heir", "-p 8071:80")
    assert world.address("heir") == address
    world.ctl("rm -f heir short")


def test_s30_a_killed_process_and_a_killed_shim_are_noticed_by_the_next_command(world: Host) -> None:
    before = look.devices(world.sh)
    world.run("victim")
    os.kill(world.process("victim"), signal.SIGKILL)
    with eventually() as until:
        until(lambda: world.inspect("victim")["State"]["ExitCode"] == 137)
    world.run("orphan")
    pid = world.process("orphan")
    parent = int(re.findall(r"PPid:\s(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
    os.kill(parent, signal.SIGKILL)
    assert world.ctl("ps --format {{.Names}}").split() == ["orphan", "web"]  # it is still there
    assert reaches(world.try_, world.address("orphan"))
    os.kill(pid, signal.SIGKILL)
    with eventually() as until:
        until(lambda: world.ctl("ps --format {{.Names}}") == "web")
    world.ctl("rm orphan victim")
    assert look.devices(world.sh) == before


def test_s1_the_namespace_goes_when_the_last_sharer_goes(world: Host) -> None:
    world.run("owner")
    world.run("sharer", "--network container:owner")
    host_end = f"veth{world.inspect('owner')['NetworkSettings']['EndpointID'][:7]}"
    with look.holding(world.process("owner")) as namespace:
        assert look.members_of(namespace) == {world.process("owner"), world.process("sharer")}
        world.ctl("rm -f owner")
        assert look.members_of(namespace) == {world.process("sharer")}
        assert host_end in look.devices(world.sh)
        world.ctl("rm -f sharer")
        assert look.members_of(namespace) == set()
    assert host_end not in look.devices(world.sh)


def test_s4_what_a_container_has_started_ends_with_it(world: Host) -> None:
    world.run(
        "parent", command=["sh", "-c", "setsid sleep 3601 & setsid sh -c 'sleep 3602 & wait' & sleep 3603"]
    )
    with look.holding(world.process("parent")) as namespace:
        world.ctl(["exec", "parent", "sh", "-c", "sleep 3604 > /dev/null 2>&1 &"])
        with eventually() as until:
            until(lambda: len(look.members_of(namespace)) >= 5)
        world.ctl("rm -f parent")
        assert look.members_of(namespace) == set()


def test_s4_stop_asks_and_after_the_timeout_kills(world: Host) -> None:
    polite = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    world.run("polite", command=["sh", "-c", polite])
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
    world.run("deaf", command=["sh", "-c", deaf])
    for name in ("polite", "deaf"):
        until_ready(world, name)
    assert world.ctl("stop polite") == "polite"
    began = time.monotonic()
    world.ctl("stop -t 1 deaf")
    assert 0.9 < time.monotonic() - began < 9.9  # not the ten seconds that are usual
    states = [world.inspect(name)["State"] for name in ("polite", "deaf")]
    assert [(state["Status"], state["ExitCode"]) for state in states] == [("exited", 5), ("exited", 137)]
    assert world.ctl("stop polite") == "polite"  # one that has ended is fine
    world.ctl("rm polite deaf")


def test_s4_stop_sends_the_signal_that_run_was_told(world: Host) -> None:
    script = "trap 'exit 8' USR1; echo ready; while :; do sleep 0.02; done"
    world.run("usr", "--stop-signal USR1", ["sh", "-c", script])
    until_ready(world, "usr")
    world.ctl("stop usr")
    assert world.inspect("usr")["State"]["ExitCode"] == 8
    world.ctl("rm usr")


def test_s4_rm_refuses_a_running_container_and_f_ends_it(world: Host) -> None:
    world.run("busy", "-p 8072:80", echo_server("tcp", 80))
    pid = world.process("busy")
    assert world.refused("rm busy") == (
        f'{PREFIX}cannot remove container "busy": container is running: '
        "stop the container before removing or force remove"
    )
    assert look.alive(pid)
    assert world.ctl("rm -f busy") == "busy"
    assert not look.alive(pid)
    assert world.outside.try_(ask("tcp", HOST, 8072)).returncode != 0
    assert world.refused("rm busy") == f"{PREFIX}No such container: busy"
    assert world.ctl("rm -f busy") == ""


def test_s4_names_ids_and_unique_beginnings_of_ids_all_work(world: Host) -> None:
    ident = world.run("named")
    for name in ("named", ident, ident[:12], ident[:5]):
        assert world.ctl(["inspect", "-f", "{{.Name}}", name]) == "/named"
    world.ctl("rm -f named")
