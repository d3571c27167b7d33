# SPDX-License-Identifier: Apache-2.0
"""The packages for Debian, from their installation to their purge, in order, on a machine of each release."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.hosts import eventually
from tests.packages.roots import HOST, PATIENCE, TREE, Machine

# Sends numbered lines, with pauses, until it is told that it is enough: a download that lasts.
SERVER = """
import contextlib, os, socket, time
listener = socket.create_server(("", 80))
while True:
    connection, _ = listener.accept()
    with contextlib.suppress(ConnectionError), connection:
        connection.recv(4096)  # what is unread would make a reset of the end
        for number in range(10**9):
            connection.sendall(b"%d\\n" % number * 1000)
            if os.path.exists("/run/enough"):
                break
            time.sleep(0.001)
"""
FILTERS = ("iptables", "nftables")
# What Debian's own tools write whenever something is installed.
OF_OTHERS = ("/var/cache/", "/var/log/", "/var/lib/apt/", "/var/lib/dpkg/", "/etc/ld.so.cache")


def unowned(machine: Machine) -> set[str]:
    """Files and folders that no package has."""
    found = machine.sh("find /etc /opt /root /run /srv /usr /var -xdev").splitlines()
    owned = set(machine.sh("cat /var/lib/dpkg/info/*.list").splitlines())
    owned |= {f"/usr{path}" for path in owned}  # those that name the folders of before usr was merged
    return {
        path
        for path in set(found) - owned
        if not path.startswith(OF_OTHERS) and ("__pycache__" not in path or "datapath" in path)
    }


def named_like_it(machine: Machine) -> list[str]:
    """Whatever has our name, but for pages that man has kept."""
    return machine.sh("find / -xdev -name '*datapath*' -not -path '/var/cache/man/*' | sort").splitlines()


def in_kernel(machine: Machine) -> dict[str, str]:
    """What datapath has in there while networks are."""
    return {
        "devices": machine.sh("ls /sys/class/net"),
        "pins": machine.sh("ls /sys/fs/bpf"),
        "ports": machine.sh("cat /proc/sys/net/ipv4/ip_local_reserved_ports"),
        "processes": machine.sh(
            "cat /proc/[0-9]*/comm | sort | uniq | grep -v -e cat -e sort -e uniq -e grep"
        ),
    }


@pytest.fixture(scope="module")
def outside(machine: Machine) -> Iterator[str]:
    with machine.outside() as path:
        yield path


@pytest.fixture(scope="module")
def before(machine: Machine, outside: str, debs: dict[str, Path]) -> tuple[set[str], dict[str, str]]:
    """Of the machine without datapath. What it takes, from a machine that has nothing, is installed with it; by being
    installed packages of others make files, too, and those are none of ours."""
    machine.apt("update")
    assert machine.try_("command -v python3 || command -v gcc").returncode
    for path in debs.values():
        machine.put(path, f"/root/{path.name}")
    machine.apt(f"install --no-install-recommends logrotate {' '.join(FILTERS)}")
    machine.apt(f"purge {' '.join(FILTERS)}")
    machine.apt(f"install /root/{debs['datapath'].name}")
    assert machine.try_("command -v gcc || command -v clang || command -v pip").returncode
    machine.apt(f"install --no-install-recommends /root/{debs['datapath-bench'].name}")
    machine.apt("purge datapath")
    assert machine.sh("find / -xdev -name '*datapath*.py*'") == ""
    return unowned(machine), in_kernel(machine)


@pytest.fixture(scope="module")
def installed(machine: Machine, before: object, debs: dict[str, Path]) -> Machine:
    machine.apt(f"install /root/{debs['datapath'].name}", fetches=False)
    return machine


def test_it_takes_debians_own_packages_and_nothing_else(installed: Machine) -> None:
    version = installed.sh("datapathctl version --format '{{.Version}}' 2>/dev/null || datapathctl --version")
    assert version.split()[-1] in installed.sh("dpkg-query -W datapath")
    assert installed.sh("dpkg -L datapath | grep -E '^/(opt|usr/local|usr/lib/python3)' || :") == ""
    # What Python compiled is the package's, of whichever Python.
    assert installed.sh("ls /usr/lib/datapath/datapath/__pycache__ | head -n 1").startswith(
        "__init__.cpython-3"
    )


def test_a_container_runs_and_its_port_answers(installed: Machine, outside: str) -> None:
    installed.path("/root/server.py").write_text(SERVER)
    installed.sh("datapathctl network create shop")
    installed.sh("datapathctl run -d --name web --network shop -p 8080:80 python3 /root/server.py")
    assert installed.sh("datapathctl ps --format '{{.Names}} {{.Ports}}'").startswith(
        "web 0.0.0.0:8080->80/tcp"
    )
    assert "8080" in installed.sh("datapathctl port ls web")
    with subprocess.Popen(
        ["nsenter", f"--net={outside}", "curl", "-sN", f"http://{HOST}:8080", "--http0.9"],
        stdout=subprocess.PIPE,
    ) as download:
        assert download.stdout is not None and download.stdout.readline() == b"0\n"
        assert HOST in installed.sh("datapathctl ct ls")
        download.kill()
    assert "DELIVERED" in installed.sh("datapathctl stats")
    installed.sh("datapathctl doctor")


@pytest.mark.parametrize("tool", FILTERS)
def test_a_network_by_rules_takes_the_package_of_its_tool_alone(installed: Machine, tool: str) -> None:
    create = f"datapathctl network create -o com.datapath.mode={tool} old"
    assert f": install the package {tool}\n" in installed.try_(create).stderr
    installed.apt(f"install --no-install-recommends {tool}")
    installed.sh(create)
    installed.sh("datapathctl run --rm --network old -p 8081:80 true")
    installed.sh("datapathctl doctor")
    installed.sh("datapathctl network rm old")
    installed.apt(f"purge {tool}")
    installed.sh("datapathctl doctor")


def test_the_manual_and_the_completion_are_found(installed: Machine) -> None:
    assert "DROP_SPOOFED_MAC" in installed.sh("man datapath")
    assert "flood-limit" in installed.sh("man 5 daemon.json")
    assert "--network-alias" in installed.sh("man datapathctl-run")
    assert "datapathctl-port-add(8)" in installed.sh("man datapathctl-port")
    completed = installed.sh(
        ". /usr/share/bash-completion/bash_completion; set +e; _completion_loader datapathctl\n"
        "COMP_WORDS=(datapathctl netw) COMP_CWORD=1\n"
        "$(complete -p datapathctl | sed 's/.*-F //; s/ .*//') datapathctl; echo ${COMPREPLY[*]}"
    )
    assert completed == "network"


def test_the_units_are_as_systemd_wants_them(installed: Machine) -> None:
    assert installed.sh("systemctl is-enabled datapath.service") == "enabled"
    for unit in ("datapathctl-agent.service", "datapath-doctor.timer", "datapath-metrics.timer"):
        assert installed.try_(f"systemctl is-enabled {unit}").stdout == "disabled\n"
    # Each by itself: the units of others that they want are theirs.
    done = installed.try_(
        "cp /usr/share/doc/datapath/examples/web.env /run; mkdir -p /run/systemd/system\n"
        "systemd-analyze verify --recursive-errors=no /usr/lib/systemd/system/datapath*.service "
        "/usr/lib/systemd/system/datapath-{doctor,metrics}.timer datapath@web.service; rm -r /run/systemd /run/web.env"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_benchmark_is_a_package_of_its_own(installed: Machine, debs: dict[str, Path]) -> None:
    refused = installed.try_("datapathctl bench ls")
    assert refused.returncode == 2
    assert refused.stderr.endswith("bench is a package of its own: apt install datapath-bench\n")
    installed.apt(f"install --no-install-recommends /root/{debs['datapath-bench'].name}", fetches=False)
    assert "connections/s" in installed.sh("datapathctl bench ls")
    results = sorted((TREE / "docs/benchmarks").glob("*/results.json"))[-1]
    installed.put(results, "/root/results.json")
    installed.sh("datapathctl bench report /root/results.json --out /root/report")
    assert installed.path("/root/report/report.html").stat().st_size > 50_000
    installed.apt("purge datapath-bench", fetches=False)
    installed.sh(
        "rm -rf /root/report /root/results.json /root/.config /root/.cache; [ ! -e /usr/lib/datapath/datapath/bench ]"
    )


def test_logs_are_rotated_while_they_are_written(installed: Machine) -> None:
    installed.sh(
        "datapathctl run -d --name loud --network none sh -c 'yes | head -c 11000000; exec sleep 86400'"
    )
    log = installed.sh("echo /var/lib/datapath/containers/$(datapathctl inspect -f '{{.Id}}' loud)/log")
    with eventually() as until:
        until(lambda: installed.path(log).stat().st_size == 11_000_000)
    installed.sh("logrotate --state /run/rotated /etc/logrotate.d/datapath; rm /run/rotated")
    assert installed.path(log).stat().st_size == 0
    assert 0 < installed.path(f"{log}.1.gz").stat().st_size < 1_000_000
    installed.sh("datapathctl rm -f loud; [ ! -e $(dirname " + log + ") ]")


def as_other_version(deb: Path, version: str, folder: Path) -> Path:
    """The same package as if it was of another version: its packet programs, too, are taken for others."""
    unpacked = folder / "unpacked"
    subprocess.run(["dpkg-deb", "-R", deb, unpacked], check=True)
    control = unpacked / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text(
        "\n".join(f"Version: {version}" if line.startswith("Version:") else line for line in lines) + "\n"
    )
    (unpacked / "usr/lib/datapath/datapath/objects/digest").write_text("0123456789abcdef\n")
    made = folder / f"datapath_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", unpacked, made], check=True, stdout=subprocess.DEVNULL
    )
    return made


def test_an_upgrade_disturbs_no_container_and_no_download(
    installed: Machine, outside: str, debs: dict[str, Path], tmp_path: Path
) -> None:
    """From a build with other packet programs, while one download goes on."""
    other = as_other_version(debs["datapath"], "0.0.1", tmp_path)
    installed.put(other, f"/root/{other.name}")
    installed.sh(f"dpkg -i /root/{other.name}")
    assert "The packet programs were replaced" not in installed.sh("datapathctl doctor")
    process = installed.sh("datapathctl inspect -f '{{.State.Pid}}' web")
    with (tmp_path / "downloaded").open("wb") as file:
        download = subprocess.Popen(
            ["nsenter", f"--net={outside}", "curl", "-sSN", "--http0.9", f"http://{HOST}:8080"], stdout=file
        )
        with eventually() as until:
            until(lambda: (tmp_path / "downloaded").stat().st_size > 1_000_000)
        said = installed.sh(f"dpkg -i /root/{debs['datapath'].name}")
        reached = (tmp_path / "downloaded").stat().st_size
        with eventually() as until:
            until(lambda: (tmp_path / "downloaded").stat().st_size > reached + 1_000_000)
        installed.sh("touch /run/enough")
        assert download.wait(PATIENCE) == 0
    assert "The packet programs were replaced." in said
    lines = (tmp_path / "downloaded").read_bytes().splitlines()
    assert lines == [b"%d" % number for number in range(len(lines) // 1000) for _ in range(1000)]
    assert installed.sh("datapathctl inspect -f '{{.State.Pid}}' web") == process
    installed.sh("rm /run/enough; datapathctl doctor")


def test_remove_ends_what_runs_and_purge_leaves_nothing(
    installed: Machine, before: tuple[set[str], dict[str, str]], outside: str
) -> None:
    files, kernel = before
    installed.sh(
        "rm /root/*.deb /root/server.py; mkdir -p /etc/datapath; echo '{\"icc\": true}' >/etc/datapath/daemon.json"
    )
    assert in_kernel(installed) != kernel
    installed.apt("remove datapath", fetches=False)
    now = in_kernel(installed)
    assert {name: now[name] for name in now if name != "processes"} == {
        name: kernel[name] for name in kernel if name != "processes"
    }
    assert "python3" not in now["processes"]
    assert json.loads(installed.path("/etc/datapath/daemon.json").read_text()) == {"icc": True}
    assert [path for path in named_like_it(installed) if not path.startswith("/var/lib/")] == [
        "/etc/datapath",
        "/etc/logrotate.d/datapath",
        "/etc/systemd/system/multi-user.target.wants/datapath.service",
    ]  # in /var/lib are notes of dpkg's and systemd's
    installed.apt("purge datapath", fetches=False)
    assert unowned(installed) - files == set()
    assert named_like_it(installed) == []
