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

import pytest

from tests.net import look
from tests.net.hosts import DATAPATHCTL, HOST, PATIENCE, Host, ask, echo_server, eventually, reaches

PREFIX = "datapathctl: "


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    look.settled(shared_host)
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


def test_s4_run_detached_prints_the_full_id_and_returns(prepared: Host) -> None:
    said = prepared.ctl("run -d --rm sleep 3600")
    assert re.fullmatch("[0-9a-f]{64}", said)
    assert said[:12] in prepared.ctl("ps -q").split()
    prepared.ctl(["rm", "-f", said[:7]])


def test_s4_run_in_the_foreground_passes_output_and_exit_code(prepared: Host) -> None:
    done = run(prepared, "--rm", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--bogus", "true"], 125, "No such option '--bogus'"),
        ([], 125, "Missing argument"),
        (["--network", "nosuch", "true"], 125, "network nosuch not found"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["/etc"], 126, "Permission denied"),
        (["nosuch-command"], 127, "no such program on this host"),
        (["/no/such/command"], 127, "no such program on this host"),
        (["--rootfs", "/nosuch", "true"], 125, "rootfs /nosuch is not a directory"),
        (["sh", "-c", "exit 125"], 125, None),
        (["sh", "-c", "kill -9 $$"], 137, None),
        (["sh", "-c", "kill -TERM $$"], 143, None),
        (["false"], 1, None),
    ],
)
def test_s4_exit_codes_are_dockers(prepared: Host, options: list[str], code: int, reason: str | None) -> None:
    before = look.devices(prepared.sh)
    done = run(prepared, "--rm", *options)
    assert done.returncode == code
    if reason is None:
        assert done.stderr == ""
    else:
        assert reason in done.stderr
        assert done.stderr.startswith(PREFIX)
        assert done.stderr.count("\n") == 1
    assert look.devices(prepared.sh) == before
    assert prepared.ctl("ps -aq").split() == [prepared.inspect("web")["Id"][:12]]


def test_s4_a_detached_command_that_cannot_start_is_reported_and_leaves_nothing(prepared: Host) -> None:
    before = look.devices(prepared.sh)
    done = run(prepared, "-d", "--name", "never", "-p", "8099:80", "nosuch-command")
    assert (done.returncode, done.stdout) == (127, "")
    assert prepared.refused("inspect never") == f'{PREFIX}no such container or network: "never"'
    assert look.devices(prepared.sh) == before
    assert not (prepared.folder / "run" / "containers" / "never").exists()
    prepared.run("never", "-p 8099:80")
    prepared.ctl("rm -f never")


def test_s4_interactive_passes_standard_input(prepared: Host) -> None:
    done = run(prepared, "--rm", "-i", "sh", "-c", "read a; read b; echo $b-$a; cat", input="one\ntwo\nrest")
    assert done.stdout == "two-one\nrest"
    assert run(prepared, "--rm", "cat", input="not for it").stdout == ""


def test_s4_a_terminal_is_given_with_t_and_refused_without_one_here(prepared: Host) -> None:
    assert run(prepared, "--rm", "-it", "true").stderr == (
        f"{PREFIX}the input device is not a TTY: leave out -t\n"
    )
    assert "not a tty" in run(prepared, "--rm", "tty").stdout
    controller, terminal = pty.openpty()
    command = [DATAPATHCTL, "run", "--rm", "-it", "sh", "-c", "tty; echo $TERM; read x; echo got:$x; exit 5"]
    process = prepared.start(command, stdin=terminal, stdout=terminal, stderr=terminal)
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


def test_s4_a_signal_to_the_foreground_command_reaches_the_process(prepared: Host) -> None:
    script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = prepared.start([DATAPATHCTL, "run", "--rm", "sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "asked\n"
    assert process.wait(PATIENCE) == 9
    process.stdout.close()


def test_s4_rm_forgets_the_container_when_it_ends(prepared: Host) -> None:
    assert run(prepared, "--rm", "--name", "brief", "true").returncode == 0
    assert "no such container" in prepared.refused("inspect brief")
    ident = prepared.ctl("run -d --rm --name brief sleep 0.2")
    with eventually() as until:
        until(lambda: ident[:12] not in prepared.ctl("ps -aq"))
        until(lambda: not (prepared.folder / "run" / "containers" / ident).exists())


def test_s4_without_rm_the_name_stays_taken_until_rm(prepared: Host) -> None:
    ident = prepared.ctl("run -d --name once true")
    said = prepared.refused("run --name once true")
    assert said == (
        f'{PREFIX}Conflict. The container name "/once" is already in use by container "{ident}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    assert prepared.ctl("rm once") == "once"
    prepared.ctl("run --name once true")
    prepared.ctl("rm once")


# ---- its surroundings -----------------------------------------------------------------


def test_s1_environment_hostname_hosts_and_dns_are_what_was_asked(prepared: Host) -> None:
    done = run(
        prepared,
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
        "nameserver 127.0.0.11",
        "search example.org",
        "options ndots:2",
        "A=1",
        "B=two=2",
        "HOSTNAME=box",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("UNSET", "DATAPATH", "PYTHON"))]
    assert done.stdout.count("nameserver") == 1


def test_s1_a_variable_without_a_value_is_handed_on(prepared: Host) -> None:
    said = prepared.sh(
        ["env", "HANDED=on", DATAPATHCTL, "run", "--rm", "-e", "HANDED", "sh", "-c", "echo $HANDED"]
    )
    assert said == "on"


def test_s1_the_hosts_own_files_are_untouched(prepared: Host) -> None:
    before = [Path(name).read_text() for name in ("/etc/hosts", "/etc/resolv.conf")]
    run(
        prepared,
        "--rm",
        "--dns",
        "192.0.2.53",
        "sh",
        "-c",
        "echo changed > /etc/hosts; mount -t tmpfs x /mnt",
    )
    assert [Path(name).read_text() for name in ("/etc/hosts", "/etc/resolv.conf")] == before
    assert not os.path.ismount("/mnt")


def test_s1_a_host_without_these_files_runs_containers_all_the_same(prepared: Host, tmp_path: Path) -> None:
    """Nothing is made on the host for them to be mounted over; what was asked for in vain is said."""
    etc = tmp_path / "etc"
    bare = (
        f"cp -a /etc {etc}; rm {etc}/hosts {etc}/resolv.conf; ln -s ../run/none/resolv.conf {etc}/resolv.conf; "
        f"mount --bind {etc} /etc; {DATAPATHCTL} run --rm %s sh -c 'cat /etc/hosts; hostname; ip -br address'"
    )
    done = prepared.try_(["unshare", "--mount", "sh", "-c", bare % "--hostname box"])
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "box"
    assert "eth0" in done.stdout
    assert done.stderr == "cat: /etc/hosts: No such file or directory\n"
    shutil.rmtree(etc)
    done = prepared.try_(["unshare", "--mount", "sh", "-c", bare % "--dns 192.0.2.53 --add-host db:10.9.9.9"])
    assert done.returncode == 0
    missing = "that the container's could be mounted over: it has none either"
    assert done.stderr.splitlines()[:2] == [
        f"WARNING: this host has no /etc/resolv.conf {missing}",
        f"WARNING: this host has no /etc/hosts {missing}",
    ]
    assert not (etc / "hosts").exists()
    assert not (etc / "resolv.conf").exists()


def test_s1_a_root_directory_of_its_own(prepared: Host, rootfs: Path) -> None:
    prepared.run("box", f"--rootfs {rootfs} --hostname box -p 8070:80", "sleep 3600")
    assert prepared.ctl("exec box cat /here") == "in the root"
    assert prepared.ctl("exec box hostname") == "box"
    assert "172.17.0.3/16" in prepared.ctl("exec box ip address show dev eth0")
    assert "172.17.0.3\tbox" in prepared.ctl("exec box cat /etc/hosts")
    assert "default via 172.17.0.1" in prepared.ctl("exec box ip route")
    assert set(prepared.ctl("exec box ls /").split()) >= {"bin", "dev", "etc", "here", "proc", "sys"}
    assert "null" in prepared.ctl("exec box ls /dev")
    assert prepared.ctl("exec box ls /sys/class/net").split() == ["eth0", "lo"]
    assert "exit code" not in prepared.ctl("exec box ping -c 1 -W 60 172.17.0.1")
    prepared.ctl(["exec", "box", "sh", "-c", "httpd -p 80 -h /"])
    with eventually() as until:
        until(
            lambda: "in the root" in prepared.outside.try_(["curl", "-s", f"http://{HOST}:8070/here"]).stdout
        )
    mounts = prepared.ctl("exec box mount")
    assert str(prepared.folder) not in mounts.replace(str(rootfs), "")  # nothing of the host shines through
    prepared.ctl("rm -f box")
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


def test_s1_a_process_inherits_no_stray_file_descriptors(prepared: Host) -> None:
    """Neither from the one who runs it, or enters it, nor from its shim: 3 is the folder that ls reads."""
    with open("/etc/passwd") as stray:
        os.set_inheritable(stray.fileno(), True)
        for command in (["run", "--rm"], ["exec", "web"], ["run", "--rm", "--network", "host"]):
            argv = ["nsenter", f"--net={prepared.path}", DATAPATHCTL, *command, "ls", "/proc/self/fd"]
            done = subprocess.run(argv, env=prepared.env, capture_output=True, text=True, close_fds=False)
            assert done.stdout.split() == ["0", "1", "2", "3"], command
    detached = Path(f"/proc/{prepared.process('web')}/fd")
    assert sorted(fd.name for fd in detached.iterdir()) == ["0", "1", "2"]
    assert os.readlink(detached / "0") == "/dev/null"


def test_s1_signals_and_mask_are_the_default_ones(prepared: Host) -> None:
    status = Path(f"/proc/{prepared.process('web')}/status").read_text()
    for field in ("SigBlk", "SigIgn"):
        found = re.search(rf"^{field}:\s([0-9a-f]+)$", status, re.M)
        assert found
        # 32 and 33 are the C library's own, which lets nobody touch them: they are as its caller had them.
        assert not int(found[1], 16) & ~(0b11 << 31), status


# ---- looking --------------------------------------------------------------------------


def test_s4_logs_print_what_it_wrote(prepared: Host) -> None:
    assert prepared.ctl("logs web").splitlines() == ["started", "failed"]
    assert prepared.ctl("logs --tail 1 web") == "failed"
    prepared.ctl(["run", "--name", "talk", "sh", "-c", "for i in 1 2 3; do echo $i; done"])
    assert prepared.ctl("logs -n 2 talk").split() == ["2", "3"]  # also of one that has ended
    assert prepared.ctl("logs --tail 0 talk") == ""
    prepared.ctl("rm talk")


def test_s4_logs_follow_until_the_end(prepared: Host) -> None:
    prepared.run("ticks", command=["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.1; done"])
    assert prepared.ctl("logs -f ticks").split() == ["1", "2", "3", "4"]
    prepared.ctl("rm -f ticks")


def test_s4_exec_runs_in_the_containers_namespaces_with_its_exit_code(prepared: Host) -> None:
    assert prepared.ctl("exec web hostname") == prepared.inspect("web")["Id"][:12]
    assert prepared.try_ctl(["exec", "web", "sh", "-c", "exit 7"]).returncode == 7
    assert prepared.ctl(["exec", "-e", "X=1", "-w", "/usr", "web", "sh", "-c", "echo $X $PWD"]) == "1 /usr"
    assert prepared.sh([DATAPATHCTL, "exec", "-i", "web", "cat"], input="piped") == "piped"
    assert prepared.try_ctl("exec web nosuch-command").returncode == 127
    assert prepared.try_ctl("exec web /etc/passwd").returncode == 126
    done = prepared.try_ctl("exec nosuch true")
    assert (done.returncode, done.stderr) == (125, f"{PREFIX}No such container: nosuch\n")
    assert "eth0" in prepared.ctl("exec web ls /sys/class/net")


def test_s4_ps_lists_the_running_and_with_a_all(prepared: Host) -> None:
    assert run(prepared, "--name", "ended", "--label", "x=1", "sh", "-c", "exit 4").returncode == 4
    heading = prepared.ctl("ps").splitlines()[0]
    assert re.split("  +", heading) == ["CONTAINER ID", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert prepared.ctl("ps --format {{.Names}}") == "web"
    assert prepared.ctl("ps -a --format {{.Names}}").split() == ["ended", "web"]
    assert prepared.ctl("ps -aq --no-trunc --filter name=ended") == prepared.inspect("ended")["Id"]
    assert prepared.ctl("ps -a --filter label=x=1 --format {{.Names}}") == "ended"
    assert prepared.ctl("ps -a --filter status=exited --format {{.Names}}") == "ended"
    row = json.loads(prepared.ctl("ps -a --filter exited=4 --format json"))
    assert row["Names"] == "ended"
    assert re.fullmatch(r"Exited \(4\) .* ago", row["Status"])
    assert row["State"] == "exited"
    # Docker's words
    assert prepared.ctl("ps -a -f name=^/ended$ --format {{.Names}}") == "ended"
    assert prepared.ctl("ps -f name=^/we$ --format {{.Names}}") == ""
    assert prepared.ctl("ps -l --format {{.Names}}") == "ended"
    assert prepared.ctl("ps -n 5 --format {{.Names}}").split() == ["ended", "web"]
    assert prepared.ctl("ps -a -f since=web --format {{.Names}}") == "ended"
    assert prepared.ctl("ps -a -f before=ended --format {{.Names}}") == "web"
    assert prepared.ctl(["ps", "-l", "--format", '{{.Label "x"}}/{{split .Names ""}}']) == "1/[e n d e d]"
    template = '{{index .Config.Labels "nope"}}{{printf "%-8s|" .Name}}{{pad (title .State.Status) 1 1}}'
    assert prepared.ctl(["inspect", "-f", template, "ended"]).strip() == "/ended  | Exited"
    deep = "{{if true}}" * 1500 + "{{end}}" * 1500
    assert "more than 100 blocks" in prepared.refused(["inspect", "-f", deep, "web"])
    prepared.ctl("rm ended")


# ---- the end --------------------------------------------------------------------------


def test_s30_the_parent_of_a_container_that_an_earlier_version_started_still_reports_its_end(
    prepared: Host,
) -> None:
    """It has the command line of that version, from the time before the command line's modules moved."""
    prepared.run("older", "-p 8072:80")
    container, process = prepared.inspect("older")["Id"], prepared.process("older")
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (parent, process):  # the parent first: it is not to report by its own way
        os.kill(pid, signal.SIGKILL)
    with eventually() as until:
        until(lambda: "its end was not noticed" in prepared.try_ctl("doctor").stdout)
    prepared.sh([sys.executable, "-m", "ctl.main", "_exited", container, "9"])
    assert prepared.try_ctl("doctor").returncode == 0
    assert prepared.inspect("older")["State"]["Status"] == "exited"
    prepared.ctl("rm older")


def test_s4_an_exit_is_noticed_and_recorded_and_the_endpoint_released(prepared: Host, tmp_path: Path) -> None:
    before = look.devices(prepared.sh)
    prepared.run(
        "short", "-p 8071:80", ["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 6"]
    )
    address = prepared.address("short")
    assert look.devices(prepared.sh) != before
    (tmp_path / "go").touch()
    with eventually() as until:
        until(lambda: prepared.inspect("short")["State"]["Status"] == "exited")
    state = prepared.inspect("short")["State"]
    assert (state["ExitCode"], state["Running"], state["Pid"]) == (6, False, 0)
    assert state["FinishedAt"] > state["StartedAt"]
    assert look.devices(prepared.sh) == before
    prepared.run("heir", "-p 8071:80")
    assert prepared.address("heir") == address
    prepared.ctl("rm -f heir short")


def test_s30_a_killed_process_and_a_killed_shim_are_noticed_by_the_next_command(prepared: Host) -> None:
    before = look.devices(prepared.sh)
    prepared.run("victim")
    os.kill(prepared.process("victim"), signal.SIGKILL)
    with eventually() as until:
        until(lambda: prepared.inspect("victim")["State"]["ExitCode"] == 137)
    prepared.run("orphan")
    pid = prepared.process("orphan")
    parent = int(re.findall(r"PPid:\s(\d+)", Path(f"/proc/{pid}/status").read_text())[0])
    os.kill(parent, signal.SIGKILL)
    assert prepared.ctl("ps --format {{.Names}}").split() == ["orphan", "web"]  # it is still there
    assert reaches(prepared.try_, prepared.address("orphan"))
    os.kill(pid, signal.SIGKILL)
    with eventually() as until:
        until(lambda: prepared.ctl("ps --format {{.Names}}") == "web")
    prepared.ctl("rm orphan victim")
    assert look.devices(prepared.sh) == before


def test_s1_the_namespace_goes_when_the_last_sharer_goes(prepared: Host) -> None:
    prepared.run("owner")
    prepared.run("sharer", "--network container:owner")
    host_end = f"veth{prepared.inspect('owner')['NetworkSettings']['EndpointID'][:7]}"
    with look.holding(prepared.process("owner")) as namespace:
        assert look.members_of(namespace) == {prepared.process("owner"), prepared.process("sharer")}
        prepared.ctl("rm -f owner")
        assert look.members_of(namespace) == {prepared.process("sharer")}
        assert host_end in look.devices(prepared.sh)
        prepared.ctl("rm -f sharer")
        assert look.members_of(namespace) == set()
    assert host_end not in look.devices(prepared.sh)


def test_s4_what_a_container_has_started_ends_with_it(prepared: Host) -> None:
    prepared.run(
        "parent", command=["sh", "-c", "setsid sleep 3601 & setsid sh -c 'sleep 3602 & wait' & sleep 3603"]
    )
    with look.holding(prepared.process("parent")) as namespace:
        prepared.ctl(["exec", "parent", "sh", "-c", "sleep 3604 > /dev/null 2>&1 &"])
        with eventually() as until:
            until(lambda: len(look.members_of(namespace)) >= 5)
        prepared.ctl("rm -f parent")
        assert look.members_of(namespace) == set()


def test_s4_stop_asks_and_after_the_timeout_kills(prepared: Host) -> None:
    polite = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    prepared.run("polite", command=["sh", "-c", polite])
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
    prepared.run("deaf", command=["sh", "-c", deaf])
    for name in ("polite", "deaf"):
        until_ready(prepared, name)
    assert prepared.ctl("stop polite") == "polite"
    began = time.monotonic()
    prepared.ctl("stop -t 1 deaf")
    assert 0.9 < time.monotonic() - began < 9.9  # not the ten seconds that are usual
    states = [prepared.inspect(name)["State"] for name in ("polite", "deaf")]
    assert [(state["Status"], state["ExitCode"]) for state in states] == [("exited", 5), ("exited", 137)]
    assert prepared.ctl("stop polite") == "polite"  # one that has ended is fine
    prepared.ctl("rm polite deaf")


def test_s4_stop_sends_the_signal_that_run_was_told(prepared: Host) -> None:
    script = "trap 'exit 8' USR1; echo ready; while :; do sleep 0.02; done"
    prepared.run("usr", "--stop-signal USR1", ["sh", "-c", script])
    until_ready(prepared, "usr")
    prepared.ctl("stop usr")
    assert prepared.inspect("usr")["State"]["ExitCode"] == 8
    prepared.ctl("rm usr")


def test_s4_rm_refuses_a_running_container_and_f_ends_it(prepared: Host) -> None:
    prepared.run("busy", "-p 8072:80", echo_server("tcp", 80))
    pid = prepared.process("busy")
    assert prepared.refused("rm busy") == (
        f'{PREFIX}cannot remove container "busy": container is running: '
        "stop the container before removing or force remove"
    )
    assert look.alive(pid)
    assert prepared.ctl("rm -f busy") == "busy"
    assert not look.alive(pid)
    assert prepared.outside.try_(ask("tcp", HOST, 8072)).returncode != 0
    assert prepared.refused("rm busy") == f"{PREFIX}No such container: busy"
    assert prepared.ctl("rm -f busy") == ""


def test_s4_names_ids_and_unique_beginnings_of_ids_all_work(prepared: Host) -> None:
    ident = prepared.run("named")
    for name in ("named", ident, ident[:12], ident[:5]):
        assert prepared.ctl(["inspect", "-f", "{{.Name}}", name]) == "/named"
    prepared.ctl("rm -f named")
