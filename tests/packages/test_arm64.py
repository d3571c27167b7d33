# SPDX-License-Identifier: Apache-2.0
"""The packages for arm64, made on whatever machine this is, beside its own: what differs is what a processor runs. That
they run there is seen by `make lab-packages`."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.packages.built import debs_of, machine_of, wheel_of

# By package, what is no bytecode.
COMPILED = {"datapath": "_libbpf.abi3.so", "datapath-bench": "probe"}


def field(deb: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "-f", deb, name], check=True, capture_output=True, text=True
    ).stdout.strip()


def content(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Its files."""
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                yield member.name, file.read()


def wheels_content(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


@pytest.mark.parametrize("package", COMPILED)
def test_the_package_has_the_same_files_and_only_what_is_compiled_differs(
    debs: dict[str, Path], package: str
) -> None:
    ours, other = dict(content(debs[package])), dict(content(debs_of("arm64")[package]))
    assert other.keys() == ours.keys()
    differing = {Path(name).name: machine_of(other[name]) for name in other if other[name] != ours[name]}
    assert differing == {COMPILED[package]: "aarch64"}


@pytest.mark.parametrize("package", COMPILED)
def test_the_package_depends_on_the_same(debs: dict[str, Path], package: str) -> None:
    other = debs_of("arm64")[package]
    assert field(other, "Architecture") == "arm64"
    names = [
        {alternative.split()[0] for alternative in field(deb, "Depends").split(", ")}
        for deb in (debs[package], other)
    ]
    assert names[0] == names[1]


def test_the_wheel_has_the_same_files_and_brings_libraries_of_that_machine(wheel: Path) -> None:
    ours, other = dict(wheels_content(wheel)), dict(wheels_content(wheel_of("aarch64")))
    of_package = [name for name in ours if name.startswith("datapath/")]
    assert of_package == [name for name in other if name.startswith("datapath/")]
    for name in of_package:
        if Path(name).name in COMPILED.values():
            assert machine_of(other[name]) == "aarch64"
        else:
            assert other[name] == ours[name], name
    libraries = {name: machine_of(found) for name, found in other.items() if ".libs/" in name}
    assert set(libraries.values()) == {"aarch64"}
    assert [Path(name).name.partition("-")[0] for name in sorted(libraries)] == sorted(
        Path(name).name.partition("-")[0] for name in ours if ".libs/" in name
    )
