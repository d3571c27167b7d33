# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that sees this machine's file system and runs one command: virtme-ng over QEMU."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tests.vm.archive import Kernel

VIRTME = Path(sys.executable).with_name("virtme-ng")
MEMORY, CPUS = "3G", 2
PROBE_SECONDS = 15
# Emulated processors have no flaws to be mitigated; an oops has to end the machine as a panic does.
KERNEL_ARGUMENTS = ("mitigations=off", "nokaslr", "oops=panic")
# The file system once more, for `cached.sh`.
CACHED = (
    *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
    *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
)
# Everything in the machine's process namespace dies with its first process, and that with us.
KEEPER = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
)


class Ended(NamedTuple):
    console: str
    timed_out: bool
    seconds: float


def is_image(path: Path) -> bool:
    """Is it a Linux kernel for x86: a bzImage (Documentation/arch/x86/boot.rst: "HdrS" at 0x202), or an ELF?"""
    with path.open("rb") as file:
        start = file.read(0x206)
    return start[0x202:] == b"HdrS" or start.startswith(b"\x7fELF")


def has_kvm(kernel: Kernel) -> bool:
    """Whether KVM runs this kernel: by running it. Without a root file system it panics within a second or two;
    a KVM that cannot run it dies, or says nothing."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    argv = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel.image), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(
            [*KEEPER, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return b"Kernel panic" in done.stdout


def command(kernel: Kernel, shared: Path, kvm: bool, more: Sequence[str] = ()) -> list[str]:
    """virtme-ng's words; what the guest is to run comes after."""
    accelerator = [] if kvm else ["--disable-kvm"]
    qemu = [*CACHED, *shlex.split(os.environ.get("QEMU", ""))]
    if not kvm:
        qemu += ["-accel", "tcg,thread=multi,tb-size=512"]
    return [
        *(str(VIRTME), "--run", str(kernel.image), "--force-9p", *accelerator, "--verbose"),
        *("--memory", os.environ.get("LAB_MEMORY", MEMORY), "--cpus", str(CPUS)),
        *("--rwdir", str(shared), "--cwd", str(Path.cwd())),
        *(word for argument in KERNEL_ARGUMENTS for word in ("--append", argument)),
        f"--qemu-opts={shlex.join(qemu)}",
        *more,
    ]


def environment() -> dict[str, str]:
    """Ours; virtme-ng looks for its other programs on the path."""
    return {**os.environ, "PATH": f"{VIRTME.parent}:{os.environ['PATH']}"}


def run(argv: Sequence[str], results: Path, timeout: float) -> Ended:
    """Runs a machine to its end, or to the time-out. What the guest prints goes to our standard output and into
    pytest.log of the folder, what the kernel says into console.log. Nothing of the machine is left, however this
    ends."""
    began = time.monotonic()
    console = results / "console.log"
    with (
        tempfile.TemporaryDirectory(prefix="lab-") as scratch,
        console.open("wb") as said,
        (results / "pytest.log").open("wb") as printed,
    ):
        process = subprocess.Popen(
            [*KEEPER, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), "TMPDIR": scratch},
            start_new_session=True,
        )
        assert process.stdout and process.stderr
        copies = [
            threading.Thread(target=_copy, args=(process.stdout, printed, sys.stdout.buffer), daemon=True),
            threading.Thread(target=_copy, args=(process.stderr, said), daemon=True),
        ]
        timed_out = False
        try:
            for thread in copies:
                thread.start()
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for thread in copies:
                thread.join()
    return Ended(console.read_text(errors="replace"), timed_out, time.monotonic() - began)


def _copy(source: IO[bytes], *targets: IO[bytes]) -> None:
    """A reader that left, or a full disk, does not stop the machine: it would wait for ever to be read."""
    open_ = list(targets)
    while chunk := os.read(source.fileno(), 65536):
        for target in targets:
            if target in open_:
                try:
                    target.write(chunk)
                    target.flush()
                except OSError:
                    open_.remove(target)


def missing() -> list[str]:
    """Programs that a machine needs and that are not there."""
    needed = ("qemu-system-x86_64", "depmod", "udevadm", "setpriv", "unshare", "file", str(VIRTME))
    return [name for name in needed if not shutil.which(name)]
