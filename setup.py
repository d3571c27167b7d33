# SPDX-License-Identifier: Apache-2.0
"""Packaging: the library, the command line and the extension that speaks to libbpf."""

from pathlib import Path
from typing import ClassVar

from setuptools import Command, find_packages, setup

INSTALL = ["cffi>=1.16", "click>=8.1", "pyroute2>=0.7.12,<0.8"]
BENCH = ["jinja2>=3.1", "matplotlib>=3.8"]
DEVELOP = [
    "mypy>=1.11",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "types-cffi",
    "types-setuptools",
]
# Those of the kernel lab: see docs/lab.md.
LAB = ["virtme-ng==1.42"]

BUILDER = "datapath/kernel/_build.py"


class Requirements(Command):
    """`setup.py requirements`: what the Makefile hands to pip, so that the list stands once."""

    description = "print what the package and its tests require"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("lab", None, "what the kernel lab requires")
    ]
    boolean_options: ClassVar[list[str]] = ["lab"]

    def initialize_options(self) -> None:
        self.lab = False

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        print("\n".join(LAB if self.lab else INSTALL + BENCH + DEVELOP))


setup(
    name="datapath",
    version="0.1.0",
    description="Docker's container networking on eBPF: no Linux bridge, no iptables",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Named, so that an editable install is a plain path and costs the start-up no import hook.
    package_dir={"": "."},
    packages=find_packages(include=["datapath", "datapath.*", "ctl", "ctl.*"]),
    package_data={
        "datapath": [
            "objects/*.bpf.o",
            "objects/abi.h",
            "objects/digest",
            "objects/former/*",
            "objects/probe",
            "objects/trace/*",
        ],
        "datapath.bench": ["*.j2"],
        "ctl.agent": ["*.service"],
    },
    install_requires=INSTALL,
    extras_require={"bench": BENCH, "dev": DEVELOP},
    cffi_modules=[f"{BUILDER}:ffibuilder"] if Path(BUILDER).exists() else [],
    entry_points={"console_scripts": ["datapathctl = ctl.cli.main:main"]},
    cmdclass={"requirements": Requirements},
    zip_safe=False,
)
