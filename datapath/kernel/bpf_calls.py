# SPDX-License-Identifier: Apache-2.0
"""libbpf's functions, and its errors as exceptions. Every call of libbpf goes through `lib` of this module."""

from __future__ import annotations

import errno
import os
from typing import Any

from datapath.errors import KernelError, PrivilegeError
from datapath.kernel._libbpf import ffi as ffi
from datapath.kernel._libbpf import lib as lib

lib.quiet()


def error(operation: str, subject: str, number: int) -> KernelError:
    """The exception for an errno; `number` may be negative, as libbpf returns it."""
    number = abs(number)
    if number == errno.EPERM and os.geteuid() != 0:
        return PrivilegeError(f"{operation} {subject}: needs root (CAP_BPF and CAP_NET_ADMIN)")
    return KernelError(operation, subject, number)


def check(result: int, operation: str, subject: str) -> int:
    """The result of a call if it is not negative, else the exception for it is raised."""
    if result < 0:
        raise error(operation, subject, result)
    return result


def options(kind: str) -> Any:
    """A zeroed struct of libbpf's options (a pointer), with its size filled in."""
    made = ffi.new(f"struct {kind} *")
    made.sz = ffi.sizeof(f"struct {kind}")
    return made
