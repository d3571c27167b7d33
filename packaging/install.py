# SPDX-License-Identifier: Apache-2.0
"""The one list of the files that are installed, and what installs and removes them: make install, make uninstall, and
the packages for Debian.

Modules and packet programs are in a directory of their own, which no other program imports from; what they need of
others (click, pyroute2, cffi) is the interpreter's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from click.shell_completion import ShellComplete, get_completion_class  # noqa: E402

from ctl import units  # noqa: E402
from ctl.cli.main import COMPLETE, cli  # noqa: E402
from datapath.config.settings import Settings  # noqa: E402

MAN = ROOT / "build/man"
# Parts are packages of Debian's. The benchmark runs what nobody else needs.
PARTS = ("datapath", "datapath-bench")
OF_BENCH = ("datapath/bench/", "datapath/objects/probe", "datapath/objects/questions")

OPT = Path("/opt")  # programs that belong to no package of the system's
LAUNCHER = """\
#!{python} -I
import sys

sys.path.insert(0, "{library}")
from datapath.ctl.{module}.main import main

main()
"""


class File(NamedTuple):
    """A file as it is installed at `target`, an absolute path."""

    target: Path
    content: bytes
    mode: int = 0o644
    part: str = PARTS[0]


class Where(NamedTuple):
    """Directories of one installation; `python` runs it."""

    prefix: Path
    sysconf: Path
    python: str

    @property
    def bin(self) -> Path:
        return self.prefix / "bin"

    @property
    def library(self) -> Path:
        return self.prefix / "lib/datapath"

    @property
    def share(self) -> Path:
        return self.prefix / "share"

    @property
    def system(self) -> Path:
        """Where other programs look for what is installed beside them: for the administrator's own in /etc."""
        return self.prefix / "lib" if self.prefix == Path("/usr") else self.sysconf

    @property
    def zsh(self) -> Path:
        """Debian's zsh looks for what packages bring here, and for what the administrator has there."""
        return (
            self.share / "zsh" / ("vendor-completions" if self.prefix == Path("/usr") else "site-functions")
        )


def library() -> Iterator[tuple[str, Path]]:
    """Modules and what they read, as a wheel has them: the name below site-packages, and the file."""
    yield "datapath/kernel/_libbpf.abi3.so", ROOT / "datapath/kernel/_libbpf.abi3.so"
    for folder, name in (("datapath", "datapath"), ("ctl", "datapath/ctl")):
        for path in (ROOT / folder).rglob("*.py"):
            yield f"{name}/{path.relative_to(ROOT / folder)}", path
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / package.removeprefix("datapath.").replace(".", "/")
        folder = folder if package.startswith("datapath.ctl") else ROOT / package.replace(".", "/")
        for pattern in patterns:
            for path in folder.glob(pattern):
                yield f"{package.replace('.', '/')}/{path.relative_to(folder)}", path


def files(where: Where) -> Iterator[File]:
    """Everything that is installed."""
    if not (MAN / "datapathctl.8").exists():
        sys.exit("there is nothing to install yet: make packaged")
    yield from launchers(where)
    for name, path in library():
        part = PARTS[name.startswith(OF_BENCH)]
        yield File(
            where.library / name, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644, part
        )
    for page in MAN.glob("*.[0-9]"):
        part = PARTS[page.name.startswith("datapathctl-bench")]
        yield File(where.share / f"man/man{page.suffix[1:]}" / page.name, page.read_bytes(), part=part)
    for shell, target in (
        ("bash", where.share / "bash-completion/completions/datapathctl"),
        ("zsh", where.zsh / "_datapathctl"),
        ("fish", where.share / "fish/vendor_completions.d/datapathctl.fish"),
    ):
        yield File(target, completion(shell).encode() + b"\n")
    yield from beside(where)
    for path in sorted((ROOT / "packaging/examples").iterdir()):
        yield File(where.share / "doc/datapath/examples" / path.name, path.read_bytes())
    yield File(where.share / "doc/datapath/README.md", (ROOT / "README.md").read_bytes())


def beside(where: Where) -> Iterator[File]:
    """What other programs read and call: systemd, NetworkManager, networkd-dispatcher, logrotate."""
    folder = where.prefix / "lib/systemd/system"
    for path in sorted((ROOT / "packaging/systemd").rglob("*.*")):
        if path.is_file():
            name = path.relative_to(ROOT / "packaging/systemd")
            yield File(folder / name, path.read_text().replace("@BIN@", str(where.bin)).encode())
    dispatcher = (ROOT / "packaging/dispatcher").read_text().replace("@BIN@", str(where.bin))
    for place in (
        "NetworkManager/dispatcher.d",
        "networkd-dispatcher/routable.d",
        "networkd-dispatcher/off.d",
    ):
        yield File(where.system / place / "50-datapath", dispatcher.encode(), 0o755)
    for one in units.ALL:
        for path, text in units.files(one, str(where.bin / "datapathctl"), Settings()).items():
            yield File(folder / path.name, text.encode())
    yield File(where.sysconf / "logrotate.d/datapath", (ROOT / "packaging/logrotate").read_bytes())


def launchers(where: Where) -> Iterator[File]:
    """The command, and the plugins of container runtimes, each where these look by themselves: podman for both of its
    kinds, containerd only below /opt, where Debian's packages have nothing."""
    paths = {
        where.bin / "datapathctl": "cli",
        where.prefix / "lib/cni/datapath": "cni",
        where.prefix / "lib/netavark/datapath": "netavark",
    }
    if where.prefix != Path("/usr"):
        paths[OPT / "cni/bin/datapath"] = "cni"
    for path, module in paths.items():
        text = LAUNCHER.format(python=where.python, library=where.library, module=module)
        yield File(path, text.encode(), 0o755)


def completion(shell: str) -> str:
    """As `datapathctl completion` prints it."""
    found = get_completion_class(shell)
    assert found is not None
    return ShellComplete.source(found(cli, {}, "datapathctl", COMPLETE))


def install(wanted: list[File], root: Path) -> None:
    for file in wanted:
        path = root / file.target.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")  # who runs the one before goes on with it
        new.write_bytes(file.content)
        new.chmod(file.mode)
        new.rename(path)


def uninstall(wanted: list[File], root: Path, where: Where) -> None:
    """Removes them, and directories that are empty then. What Python compiled into ours goes with them."""
    for file in wanted:
        (root / file.target.relative_to("/")).unlink(missing_ok=True)
    shutil.rmtree(root / where.library.relative_to("/"), ignore_errors=True)
    stay = {root, *(root / folder.relative_to("/") for folder in (OPT, where.prefix, where.sysconf))}
    for file in wanted:
        for folder in (root / file.target.relative_to("/")).parents:
            if folder in stay:
                break
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("install", "uninstall", "list"))
    parser.add_argument("--destdir", type=Path, default=Path("/"))
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument("--sysconfdir", type=Path, default=Path("/etc"))
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--part", choices=PARTS, action="append")
    given = parser.parse_args()
    where = Where(given.prefix, given.sysconfdir, given.python)
    wanted = [file for file in files(where) if file.part in (given.part or PARTS)]
    if given.action == "install":
        install(wanted, given.destdir.absolute())
    elif given.action == "uninstall":
        uninstall(wanted, given.destdir.absolute(), where)
    else:
        print("\n".join(sorted(str(file.target) for file in wanted)))


if __name__ == "__main__":
    main()
