# SPDX-License-Identifier: Apache-2.0
"""Packaging: what pyproject.toml cannot say. The extension, the packet programs, and ctl/ as datapath.ctl."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import ClassVar

from setuptools import Command, find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

BUILDER = "datapath/kernel/_build.py"


class Requirements(Command):
    """`setup.py requirements`: what the Makefile hands to pip, so that the list stands once."""

    description = "print what the package requires, and some of its extras and dependency groups"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("with=", None, "names of extras and groups, with commas between"),
        ("lowest", None, "the lowest versions that are allowed, and no other"),
    ]
    boolean_options: ClassVar[list[str]] = ["lowest"]

    def initialize_options(self) -> None:
        setattr(self, "with", "")
        self.lowest = False

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        given = tomllib.loads(Path("pyproject.toml").read_text())
        known = {**given["project"]["optional-dependencies"], **given["dependency-groups"]}
        wanted = [*given["project"]["dependencies"]]
        for name in filter(None, getattr(self, "with").split(",")):
            wanted += known[name]
        if self.lowest:
            wanted = [re.sub(r"^([\w-]+).*>=([\d.]+).*$", r"\1==\2", one) for one in wanted]
        print("\n".join(wanted))


class BuildWithPrograms(build_py):
    """Compiles the packet programs first: without them nothing works."""

    def run(self) -> None:
        if not self.editable_mode:
            try:
                subprocess.run(["make", "--silent", "bpf", "BARE=1"], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise ExecError(
                    f"the packet programs were not compiled ({error}): that takes make, gcc, clang, llvm-strip and "
                    "the headers of libbpf (Debian: apt install make gcc clang llvm libbpf-dev)"
                ) from error
        super().run()


setup(
    package_dir={"datapath": "datapath", "datapath.ctl": "ctl"},
    packages=[
        *find_packages(include=["datapath", "datapath.*"]),
        *(f"datapath.{name}" for name in find_packages(include=["ctl", "ctl.*"])),
    ],
    include_package_data=False,
    cffi_modules=[f"{BUILDER}:ffibuilder"] if Path(BUILDER).exists() else [],
    # The extension is: one wheel serves every Python from the first that is supported.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={"requirements": Requirements, "build_py": BuildWithPrograms},
)
