# SPDX-License-Identifier: Apache-2.0
"""A machine of another architecture, arm64: it cannot run this machine's programs, so it gets a root of its own.

Below `.lab/arm64` are `root`, Debian packages unpacked and never configured; `tree`, this tree with the extension and
the helpers that the other compiler has built; and an initramfs a kernel, which mounts both. The packet programs are
bytecode, and the same files.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.vm.archive import Apt, Kernel, output
from tests.vm.outcome import LabError

SUITE = "bookworm"
TRIPLET, MACHINE = "aarch64-linux-gnu", "aarch64"
QEMU = f"qemu-system-{MACHINE}"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")  # the Makefile's
NEEDED = (QEMU, f"{TRIPLET}-gcc", "cpio", "modprobe", "depmod", "dpkg-deb", "apt-get", "setpriv", "unshare")
# What the programs and tests run: see the Makefile's PACKAGES.
PACKAGES = (
    *("base-files", "base-passwd", "bash", "dash", "coreutils", "findutils", "grep", "sed", "gawk", "mount"),
    *("util-linux", "busybox-static", "kmod", "procps", "psmisc", "hostname", "login", "passwd"),
    *("ncurses-base", "netbase", "make", "gcc"),
    *("python3", "python3-yaml", "libpython3.11-dev", "libbpf-dev", "libc6-dev", "clang", "llvm", "bpftool"),
    *("ca-certificates", "iproute2", "iptables", "nftables", "ethtool", "tcpdump", "iperf3", "curl"),
    *("iputils-ping", "iputils-arping", "netcat-openbsd", "traceroute", "wireguard-tools"),
)
# Python's, of the versions that are installed here. The first has a part that is compiled.
DISTRIBUTIONS = (
    *(
        "cffi",
        "pycparser",
        "click",
        "dnspython",
        "pyroute2",
        "pytest",
        "pytest-xdist",
        "execnet",
        "iniconfig",
        "packaging",
    ),
    *("pluggy", "pygments"),
)
PLATFORMS = tuple(f"manylinux{version}_{MACHINE}" for version in ("2014", "_2_17", "_2_28"))
# The alternatives that maintainer scripts would have made.
LINKS = {
    **{f"usr/sbin/{name}": "xtables-nft-multi" for name in ("iptables", "ip6tables", "iptables-restore")},
    **{
        f"usr/sbin/{name}": "xtables-nft-multi"
        for name in ("ip6tables-restore", "iptables-save", "ip6tables-save")
    },
    "usr/bin/sh": "dash",
    "usr/bin/awk": "gawk",
    "usr/bin/nc": "nc.openbsd",
    "usr/bin/traceroute": "traceroute.db",
}
FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
    "etc/hostname": "lab\n",
}
# What the first file system takes. 6.1 has more of them apart.
MODULES = ("virtio_pci", "virtio_mmio", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_rng")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /first-modules); do /bin/busybox insmod "$module"; done
share() { /bin/busybox mount -t 9p -o "$3,trans=virtio,version=9p2000.L,msize=512000,cache=$4" "$1" "$2"; }
/bin/busybox mount -t tmpfs -o mode=755 tmpfs /top
/bin/busybox mkdir /top/upper /top/work /top/tree /top/tree-work
share root /low ro loose
/bin/busybox mount -t overlay -o lowerdir=/low,upperdir=/top/upper,workdir=/top/work overlay /new
cd /new && /bin/busybox mkdir -p proc sys dev run tmp results lib/modules && cd /
for folder in run tmp; do /bin/busybox mount -t tmpfs -o mode=1777 tmpfs /new/$folder; done
/bin/busybox mkdir -p "/new/$TREE"
share tree /host ro loose
/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/top/tree,workdir=/top/tree-work overlay "/new/$TREE"
share modules /new/lib/modules ro loose
share results /new/results rw none
for folder in dev sys proc; do /bin/busybox mount -o move /$folder /new/$folder; done
exec /bin/busybox switch_root /new /bin/sh -c "$START"
"""
START = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -sf /proc/self/fd /dev/fd
ip link set lo up
cd "$TREE"
{command} >/dev/hvc0 2>&1
echo o >/proc/sysrq-trigger
sleep 60
"""


def missing() -> list[str]:
    """Programs that it takes here and that are not there."""
    return [name for name in NEEDED if not shutil.which(name)]


class Foreign:
    """What such a machine is made of, below one folder of the cache."""

    def __init__(self, cache: Path, tree: Path) -> None:
        self.folder = cache / "arm64"
        self.root, self.tree = self.folder / "root", self.folder / "tree"
        self._from = tree

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Root and tree, as they have to be, which nobody else renews meanwhile. LabError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LabError(
                    "a lab with arm64 is running, in the same root: wait for it, or give LAB_CACHE"
                ) from error
            self._prepare()
            yield
        finally:
            os.close(held)

    def _prepare(self) -> None:
        wanted = "\n".join((*PACKAGES, *_versions(), *LINKS, *FILES))
        stamp = self.folder / "root.made"
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            self._make_root()
            stamp.write_text(wanted)
        self._make_tree()

    def command(
        self, kernel: Kernel, results: Path, guest: Sequence[str], cpus: int, memory: str
    ) -> list[str]:
        """QEMU's words for a machine that runs `guest` in the tree: its output comes to standard output, the console
        to standard error. Results are at /results there. LabError."""
        shares = {
            "root": (self.root, True),
            "tree": (self.tree, True),
            "modules": (_root(kernel) / "lib/modules", True),
            "results": (results, False),
        }
        return [
            *(QEMU, "-M", "virt", "-cpu", "max,pauth-impdef=on", "-smp", str(cpus), "-m", memory),
            *("-accel", "tcg,thread=multi,tb-size=512", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-chardev", "file,id=console,path=/dev/stderr", "-serial", "chardev:console"),
            *(
                "-device",
                "virtio-serial-pci",
                "-chardev",
                "stdio,id=out",
                "-device",
                "virtconsole,chardev=out",
            ),
            *("-device", "virtio-rng-pci"),
            *(word for name, (path, fixed) in shares.items() for word in _share(name, path, fixed)),
            *("-kernel", str(kernel.image), "-initrd", str(self._initramfs(kernel, guest))),
            *("-append", "console=ttyAMA0 panic=-1 oops=panic mitigations=off nokaslr"),
            *shlex.split(os.environ.get("QEMU", "")),
        ]

    # ---- its root ------------------------------------------------------------------------

    def _make_root(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        apt = Apt(self.folder / "root-apt", "arm64", (SUITE,))
        apt.folder.mkdir(parents=True, exist_ok=True)
        if problem := apt.update():
            raise LabError(problem)
        print(f"lab: making a root of {len(PACKAGES)} packages for arm64, and what they need", flush=True)
        options = ("-o", "APT::Install-Recommends=false", "--download-only", "--yes", "-qq")
        apt.run("apt-get", *options, "install", *PACKAGES)
        for name in ("bin", "sbin", "lib"):
            (self.root / "usr" / name).mkdir(parents=True)
            (self.root / name).symlink_to(f"usr/{name}")
        for package in sorted((apt.folder / "archives").glob("*.deb")):
            _unpack(package, self.root)
        for name in ("proc", "sys", "dev", "run", "tmp", "root", "results", "var/tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("passwd", "group"):
            shutil.copy(self.root / f"usr/share/base-passwd/{name}.master", self.root / "etc" / name)
        for place, target in LINKS.items():
            path = self.root / place
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        for place, text in FILES.items():
            (self.root / place).write_text(text)
        self._install_python()

    def _install_python(self) -> None:
        place = self.root / "usr/local/lib/python3.11/dist-packages"
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            words = [word for platform in PLATFORMS for word in ("--platform", platform)]
            output(
                [
                    *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
                    *("-d", folder),
                    *(*words, "--platform", "any", "--implementation", "cp", "--python-version", "3.11"),
                    *("--abi", "cp311", "--abi", "abi3", "--abi", "none", *_versions()),
                ]
            )
            for wheel in Path(folder).glob("*.whl"):
                shutil.unpack_archive(wheel, place, "zip")
        output([sys.executable, "-m", "compileall", "-q", str(place)])

    # ---- its tree ------------------------------------------------------------------------

    def _make_tree(self) -> None:
        """The files of this one, as they are now, and what the other architecture has to have built."""
        listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        named = output(["git", "-C", str(self._from), *listing])
        shutil.rmtree(self.tree, ignore_errors=True)
        for name in filter(None, named.split("\0")):
            if (self._from / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._from / name, self.tree / name)
        objects = self.tree / "datapath/objects"
        shutil.copytree(self._from / "datapath/objects", objects, dirs_exist_ok=True)
        compiler = [f"{TRIPLET}-gcc", f"--sysroot={self.root}", "-O2", *WARNINGS]
        output([*compiler, "-o", str(objects / "probe"), str(self._from / "datapath/bench/probe.c")])
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            source = Path(folder) / "_libbpf.c"
            output([sys.executable, "-c", EMIT, str(source)], cwd=self._from)
            output(
                [
                    *(*compiler, "-shared", "-fPIC"),
                    *("-I", str(self.root / "usr/include/python3.11"), "-I", str(self._from / "bpf")),
                    *("-o", str(self.tree / "datapath/kernel/_libbpf.abi3.so"), str(source), "-lbpf"),
                ]
            )
        packages = (str(self.tree / name) for name in ("datapath", "ctl", "tests"))
        output([sys.executable, "-m", "compileall", "-q", *packages])
        script = self.root / "usr/bin/datapathctl"
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\nsys.path.insert(0, {str(self._from)!r})\n{SCRIPT}"
        )
        script.chmod(0o755)

    # ---- its first file system -----------------------------------------------------------

    def _initramfs(self, kernel: Kernel, guest: Sequence[str]) -> Path:
        """What mounts the rest and starts the command. The kernel's modules are unpacked, as busybox does not
        know their compression."""
        made = self.folder / f"initramfs-{kernel.release}"
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            for place in ("bin", "proc", "sys", "dev", "top", "low", "new", "host", "lib"):
                (folder / place).mkdir()
            shutil.copy(self.root / "usr/bin/busybox", folder / "bin/busybox")
            listed = []
            for module in _modules(kernel):
                plain = folder / "lib" / module.name.removesuffix(".xz")
                packed = module.read_bytes()
                plain.write_bytes(lzma.decompress(packed) if module.suffix == ".xz" else packed)
                listed.append(f"/lib/{plain.name}")
            (folder / "first-modules").write_text("\n".join(listed))
            init = folder / "init"
            start = START.replace("{command}", shlex.join(guest))
            given = f"TREE={shlex.quote(str(self._from))}\nexport TREE\nSTART={shlex.quote(start)}\n"
            first, _, rest = INIT.partition("\n")
            init.write_text(f"{first}\n{given}{rest}")
            init.chmod(0o755)
            names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
            words = ["cpio", "--quiet", "-o", "-H", "newc"]
            done = subprocess.run(words, input=names.encode(), cwd=folder, capture_output=True, check=True)
            made.write_bytes(done.stdout)
        return made


EMIT = "import sys; from datapath.kernel._build import ffibuilder; ffibuilder.emit_c_code(sys.argv[1])"
SCRIPT = "from ctl.main import main\n\nsys.exit(main())\n"


def _versions() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in DISTRIBUTIONS]


def _share(name: str, path: Path, fixed: bool) -> tuple[str, ...]:
    options = "security_model=none,multidevs=remap" + (",readonly=on" if fixed else "")
    return (
        *("-fsdev", f"local,id={name},path={path},{options}"),
        *("-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"),
    )


def _unpack(package: Path, root: Path) -> None:
    """Into a root whose /bin, /sbin and /lib are links."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reading:
        words = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
        done = subprocess.run(words, stdin=reading.stdout, capture_output=True, text=True, check=False)
    if reading.returncode or done.returncode:
        raise LabError(f"{package.name}: {done.stderr.strip() or 'it cannot be unpacked'}")


def _root(kernel: Kernel) -> Path:
    """The folder that its packages are unpacked in."""
    return next(folder for folder in kernel.image.parents if (folder / "lib/modules").is_dir())


def _modules(kernel: Kernel) -> Iterator[Path]:
    """The files of `MODULES`, each after those that it needs."""
    seen = set[str]()
    for name in MODULES:
        words = ["modprobe", "-d", str(_root(kernel)), "-S", kernel.release, "--show-depends", name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        for path in re.findall(r"^insmod (\S+)", done.stdout, re.MULTILINE):  # none: it is in the kernel
            if path not in seen:
                seen.add(path)
                yield Path(path)
