# SPDX-License-Identifier: Apache-2.0
"""The wheel, in a venv on a machine without a compiler, and the sdist that it was built from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.packages.built import sdist
from tests.packages.roots import HOST, NETWORK, PATIENCE, TREE, Machine


def test_the_wheel_has_one_package_and_all_licences(wheel: Path) -> None:
    assert "-cp311-abi3-manylinux_" in wheel.name
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "datapath",
        "datapathctl",
        "datapathctl.libs",
    }
    licences = {Path(name).name for name in names if "/licenses/" in name}
    assert {"LICENSE", "Apache-2.0.txt", "BSD-2-Clause.txt", "GPL-2.0-only.txt"} < licences
    for name in names:
        if ".libs/" in name:  # those of the libraries that it brings along
            assert any(one.startswith(Path(name).name.partition("-")[0]) for one in licences), name


def test_the_wheel_has_what_make_install_has(wheel: Path) -> None:
    listed = subprocess.run(
        [sys.executable, TREE / "packaging/install.py", "list"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    library = "/usr/local/lib/datapath/"
    inside = {name for name in ZipFile(wheel).namelist() if name.startswith("datapath/")}
    assert inside == {path.removeprefix(library) for path in listed if path.startswith(library)}


def test_the_sdist_has_every_file_of_the_repository() -> None:
    with tarfile.open(sdist()) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    there = subprocess.run(
        ["git", "ls-files"], cwd=TREE, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    assert {name for name in there if name} - names == set()
    assert not [name for name in names if name.startswith("datapath/objects") or name.endswith((".so", ".o"))]


@pytest.mark.parametrize("machine", ["bookworm"], indirect=True)
def test_a_container_runs_out_of_a_venv(machine: Machine, wheel: Path, tmp_path: Path) -> None:
    fetched = tmp_path / "wheels"
    subprocess.run(
        [
            *(
                "nsenter",
                f"--net=/proc/{os.getpid()}/fd/{NETWORK}",
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
            ),
            *("--only-binary=:all:", "-d", str(fetched), str(wheel)),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    machine.put(fetched, "/root/wheels")
    machine.apt("update")
    machine.apt("install --no-install-recommends python3-venv")
    machine.sh(
        "python3 -m venv /opt/datapath; /opt/datapath/bin/pip install -q --no-index -f /root/wheels datapathctl"
    )
    assert machine.try_("command -v gcc || command -v clang || dpkg-query -W libbpf1").returncode
    with machine.outside() as outside:
        machine.sh("ln -s /opt/datapath/bin/datapathctl /usr/local/bin/; datapathctl network create shop")
        machine.sh(
            "datapathctl run -d --name web --network shop -p 8080:80 python3 -m http.server -d /usr/share/doc 80"
        )
        page = subprocess.run(
            [
                "nsenter",
                f"--net={outside}",
                "curl",
                "-s",
                "--retry",
                "9",
                "--retry-connrefused",
                f"http://{HOST}:8080/",
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "Directory listing" in page.stdout
        machine.sh("datapathctl doctor; datapathctl stop -t 1 web")
        assert machine.sh("datapathctl ps -a --format '{{.Names}} {{.State}}'") == "web exited"
        machine.sh("datapathctl down")
