# SPDX-License-Identifier: Apache-2.0
"""make install and make uninstall, from the sdist, with newer compilers than those that packages are built by; the
extension with such a one for arm64, too."""

from __future__ import annotations

import pytest

from tests.packages.built import machine_of, sdist
from tests.packages.roots import Machine

MAKE = "make -s -C /root/datapathctl-* BARE=1 PYTHON=/usr/bin/python3"


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_what_make_install_brings_works_and_make_uninstall_takes_it_away(machine: Machine) -> None:
    made = sdist()
    machine.put(made, f"/root/{made.name}")
    machine.apt("update")
    machine.apt(
        "install --no-install-recommends make gcc libc6-dev clang llvm libbpf-dev python3-dev python3-cffi "
        "python3-click python3-dnspython python3-pyroute2 python3-yaml click-man python3-setuptools"
    )
    assert int(machine.sh("gcc -dumpversion")) >= 14
    machine.sh(f"tar -C /root -xzf /root/{made.name}")
    before = machine.sh("find /etc /usr -xdev | sort")
    done = machine.try_(f"{MAKE} install")  # every warning is an error; and it needs no network
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    with machine.outside():
        machine.sh(
            "datapathctl run -d --name web -p 8080:80 sleep 86400; datapathctl doctor; datapathctl down"
        )
    assert "DROP_ICC" in machine.sh("man datapath")
    machine.sh(f"{MAKE} uninstall")
    after = machine.sh("find /etc /usr -xdev | sort")
    kept = {line for line in after.splitlines() if "__pycache__" not in line}
    assert kept - set(before.splitlines()) == set()


@pytest.mark.parametrize("machine", ["trixie"], indirect=True)
def test_the_newer_compiler_has_nothing_to_say_of_the_extension_for_arm64(machine: Machine) -> None:
    """After the test above, whose tree it is."""
    machine.sh("dpkg --add-architecture arm64")
    machine.apt("update")
    machine.apt(
        "install --no-install-recommends gcc-aarch64-linux-gnu libc6-dev:arm64 libbpf-dev:arm64 libpython3-dev:arm64"
    )
    assert int(machine.sh("aarch64-linux-gnu-gcc -dumpversion")) >= 14
    extension = "datapath/kernel/_libbpf.abi3.so"
    machine.sh(f"rm /root/datapathctl-*/{extension}")
    done = machine.try_(f"{MAKE} CC=aarch64-linux-gnu-gcc {extension}")  # every warning is an error
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = machine.path("/root").glob(f"datapathctl-*/{extension}")
    assert machine_of(made.read_bytes()) == "aarch64"
