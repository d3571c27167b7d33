# SPDX-License-Identifier: Apache-2.0
"""Kernels of Debian's archive, unpacked into a cache and never installed.

apt does the work, with a root of its own: it asks whatever mirror and proxy the machine's apt asks, and checks
the archive's signature and each package's checksum.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.vm.outcome import LabError, UnfetchedError

SUITES = ("bullseye", "bookworm", "trixie", "trixie-backports")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
ARCHITECTURE = "amd64"  # what is not said otherwise
ARCHITECTURES = (ARCHITECTURE, "arm64")
# Newer kernels are split into several packages.
PARTS = ("linux-base-", "linux-binary-", "linux-modules-")
LISTS_LAST = 24 * 3600  # seconds until the archive is asked again what there is


class Kernel(NamedTuple):
    """`release` is what `uname -r` says; empty for an image of somebody's own."""

    release: str
    image: Path


def numbers(version: str) -> tuple[int, ...]:
    """What versions are sorted by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def newest(versions: Iterable[str], wanted: str) -> str | None:
    """The newest version of a series: 6.12 and 6 mean 6.12.3, 6.1 does not."""
    series = numbers(wanted)
    fitting = [v for v in versions if numbers(v)[: len(series)] == series]
    return max(fitting, key=numbers, default=None)


class Apt:
    """apt with a root of its own, which is this folder: it knows of nothing that is installed here."""

    def __init__(self, folder: Path, architecture: str, suites: Sequence[str]) -> None:
        self.folder = folder
        self._architecture, self._suites = architecture, suites

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """One of apt's tools; what it prints. LabError."""
        options = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.folder,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Sandbox::User": "root",  # the cache may be where no other user can go
        }
        tool, *rest = command
        argv = [tool, *(word for key, value in options.items() for word in ("-o", f"{key}={value}")), *rest]
        return output(argv, cwd)

    def update(self) -> str:
        """Fetches the lists of packages, once a day; what was wrong, if that could not be done."""
        stamp = self.folder / "updated"
        sources = "".join(
            f"deb [arch={self._architecture} signed-by={KEYRING}] {mirror()} {suite} main\n"
            for suite in self._suites
        )
        listed = self.folder / "sources.list"
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_LAST
        if fresh and listed.read_text() == sources:
            return ""
        for folder in ("lists/partial", "archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        listed.write_text(sources)
        try:
            self.run("apt-get", "-qq", "update", "--error-on=any")
        except LabError as error:
            return str(error)
        stamp.touch()
        return ""


class Archive:
    """The cache folder holds apt's own files and `kernels/RELEASE`; for another architecture than amd64 a folder of its
    name does. `flavour`: none is the generic one, which 9p and netkit are in; 16k has larger pages."""

    def __init__(self, cache: Path, architecture: str = ARCHITECTURE, flavour: str = "") -> None:
        folder = cache if architecture == ARCHITECTURE else cache / architecture
        self.apt = folder / "apt"
        self.kernels = folder / "-".join(filter(None, ("kernels", flavour)))
        self.suffix = "-".join(filter(None, (architecture, flavour)))
        self._apt = Apt(self.apt, architecture, SUITES)

    def kernel(self, wanted: str) -> Kernel:
        """The newest kernel of a series, from the archive if the cache does not have it. Where that one cannot be
        fetched, the newest of the cache. UnfetchedError, LabError."""
        self.kernels.mkdir(parents=True, exist_ok=True)
        self.apt.mkdir(parents=True, exist_ok=True)
        with (self.apt / "lock-lab").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            problem = self._update()
            image = newest(self._offered(), wanted)
            cached = [path.name for path in self.kernels.iterdir()]
            version = image or newest(cached, wanted)
            if version is None:
                raise UnfetchedError(problem or f"Debian's archive has no kernel {wanted}: {self._series()}")
            if version not in cached:
                try:
                    self._fetch(version)
                except UnfetchedError as error:
                    older = newest(cached, wanted)
                    if older is None:
                        raise
                    print(f"lab: {version} could not be fetched ({error}); {older} is here", flush=True)
                    version = older
        return _found(self.kernels / version)

    def _series(self) -> str:
        """What there is, for who asked for something else."""
        series = {".".join(version.split(".")[:2]) for version in self._offered()}
        return "there are " + ", ".join(sorted(series, key=numbers))

    # ---- apt -----------------------------------------------------------------------------

    def _update(self) -> str:
        return self._apt.update()

    def _offered(self) -> list[str]:
        """The version in the name of every image package."""
        names = self._apt.run("apt-cache", "pkgnames", "linux-image-").split()
        image = re.compile(rf"linux-image-(\d+\.\d[\w.+~-]*?)-{self.suffix}")
        return [found[1] for name in names if (found := image.fullmatch(name)) and _generic(found[1])]

    def _fetch(self, version: str) -> None:
        image = f"linux-image-{version}-{self.suffix}"
        depends = re.findall(
            r"^  Depends: (\S+)$", self._apt.run("apt-cache", "depends", image), re.MULTILINE
        )
        parts = [name for name in depends if name.startswith(PARTS) and version in name]
        with tempfile.TemporaryDirectory(dir=self.apt) as folder:
            scratch = Path(folder)
            try:
                self._apt.run("apt-get", "-qq", "download", image, *parts, cwd=scratch)
            except LabError as error:
                raise UnfetchedError(str(error)) from error
            root = scratch / "root"
            for package in scratch.glob("*.deb"):
                output(["dpkg-deb", "--extract", str(package), str(root)])
            if not (root / "lib").exists():  # packages since trixie know usr/lib only
                (root / "lib").symlink_to("usr/lib")
            release = _release(root)
            output(["depmod", "--basedir", str(root), release])
            shutil.move(root, self.kernels / version)


def _generic(version: str) -> bool:
    return not re.search(r"cloud|rt|unsigned|dbg", version)


def _release(root: Path) -> str:
    names = [folder.name for folder in root.glob("lib/modules/*")]
    if len(names) != 1:
        raise LabError(f"{root}: not one kernel's modules but {names}: Debian packs kernels otherwise now")
    return names[0]


def _found(root: Path) -> Kernel:
    release = _release(root)
    for image in (root / "boot" / f"vmlinuz-{release}", root / "lib/modules" / release / "vmlinuz"):
        if image.exists():
            return Kernel(release, image)
    raise LabError(f"no kernel image in {root}: remove that folder and ask again")


def mirror() -> str:
    """LAB_MIRROR, else the one that the machine's apt uses for Debian, else the archive's own name."""
    if chosen := os.environ.get("LAB_MIRROR"):
        return chosen.rstrip("/")
    try:
        found = output(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    except LabError:
        return MIRROR
    uris = [uri.rstrip("/") for uri in found.split()]
    return next((uri for uri in uris if uri.endswith("/debian")), MIRROR)


def output(argv: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise LabError(f"{argv[0]}: {lines[-1]}")
    return done.stdout
