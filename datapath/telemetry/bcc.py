# SPDX-License-Identifier: Apache-2.0
"""Tracing programs through bcc, which compiles them when they are used.

bcc wants the headers of the running kernel. Nothing of them is used here: what the programs read, they read at
offsets from the kernel's own BTF. So bcc is given a handful of headers that hold what its own text asks for, and
no package of headers is needed, nor do the headers have to fit the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from datapath.errors import DatapathError, KernelError
from datapath.kernel import abi, log

_SOURCES = abi.OBJECTS / "trace"
_MISSING = (
    "tracing needs bcc: apt-get install python3-bpfcc (only Debian's own python3 sees it, and virtual "
    "environments that were made from that with --system-site-packages)"
)
_TYPES = """
typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef short __s16, s16;
typedef unsigned short __u16, u16, __be16, __le16, __sum16;
typedef int __s32, s32;
typedef unsigned int __u32, u32, __be32, __le32, __wsum;
typedef long long __s64, s64;
typedef unsigned long long __u64, u64, __be64, __le64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __always_inline inline __attribute__((always_inline))
"""
# Offsets that bpf/trace_device.h asks for: macro -> field.
PLACE = {
    "NET_COOKIE": "net.net_cookie",
    "DEVICE_NETNS": "net_device.nd_net.net",
    "DEVICE_IFINDEX": "net_device.ifindex",
}
# What bcc's own headers include. They compare the version only to leave out what is old.
_HEADERS = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/types.h": f"#ifndef TYPES\n#define TYPES\n{_TYPES}#endif\n",
    "linux/version.h": "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    "#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)\n",
    **dict.fromkeys(("linux/bpf_common.h", "linux/log2.h", "asm/page.h", "uapi/linux/bpf.h"), ""),
    **dict.fromkeys(("uapi/linux/if_ether.h", "uapi/linux/if_packet.h", "uapi/linux/ptrace.h"), ""),
}


@contextlib.contextmanager
def program(name: str, macros: Mapping[str, int | str]) -> Iterator[Any]:
    """bpf/trace/`name`.c, compiled: a bcc.BPF, whose programs are detached at the end.

    A macro that is a text is one in C, too. While it compiles, the process has another working directory,
    environment and stderr: not for several threads.
    """
    try:
        from bcc import BPF
    except (ImportError, OSError) as error:  # OSError: its shared library is missing
        raise DatapathError(_MISSING) from error
    flags = [f"-I{_SOURCES}", *(f"-D{macro}={json.dumps(value)}" for macro, value in macros.items())]
    text = (_SOURCES / f"{name}.c").read_bytes()
    with refusals("compile", name), _headers():
        made = BPF(text=text, cflags=flags)
    atexit.unregister(made.cleanup)
    try:
        yield made
    finally:
        made.cleanup()


@contextlib.contextmanager
def refusals(operation: str, name: str) -> Iterator[None]:
    """bcc's plain exceptions as KernelError, with the reason, which bcc writes to stderr."""
    with _kept_stderr() as kept:
        try:
            with log.operation(operation, f"tracing program {name}", room="telemetry"):
                yield
        except DatapathError:
            raise
        except Exception as error:
            said = os.pread(kept.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()
            telling = next((line for line in said if "error" in line), "") or next(filter(None, said), "")
            raise KernelError(operation, f"tracing program {name}", detail=telling or str(error)) from error


@contextlib.contextmanager
def _kept_stderr() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield kept
        finally:
            os.dup2(before, 2)
            os.close(before)


@contextlib.contextmanager
def _headers() -> Iterator[None]:
    """Makes a source tree that has the headers that bcc includes, and names it in the environment."""
    before = os.environ.get("BCC_KERNEL_SOURCE")
    with tempfile.TemporaryDirectory(prefix="datapath-") as folder:
        for name, text in _HEADERS.items():
            path = Path(folder, "include", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        os.environ["BCC_KERNEL_SOURCE"] = folder
        try:
            yield
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]
            if before is not None:
                os.environ["BCC_KERNEL_SOURCE"] = before
