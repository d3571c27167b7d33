# SPDX-License-Identifier: Apache-2.0
"""Starting the timer of the conntrack GC, which deletes connections that have expired (bpf/conn_gc.bpf.c)."""

from __future__ import annotations

import errno
import os
import time

from datapath.errors import KernelError
from datapath.kernel import bpf_maps, libbpf, log

_TRIES = 2000  # a millisecond apart
_EVERY = 25
# A timer is some 150 bytes, which the kernel takes from one of these caches.
_OBJECT_SIZES = (128, 192, 256)
_OBJECTS = 64  # several slabs of each


def start(program_fd: int, order: int = 0) -> None:
    """Starts the timer by a test run of the GC's program. A timer that runs stays as it is, unless `order`
    (abi.GcOrder) says otherwise. KernelError (ENOMEM): the kernel keeps refusing the timer's memory.

    6.18 asks for that memory without ever waiting for a lock, and then gets no new slab: once those in use are full,
    each try fails until another allocation has left a free object of that size. So one is made after each refusal.
    """
    with log.operation("start", "the conntrack GC timer", room="dataplane"):
        _start(program_fd, order)


def _start(program_fd: int, order: int) -> None:
    for number in range(_TRIES):
        if libbpf.test_run(program_fd, bytes(64), mark=order).verdict == 0:
            return
        if number % _EVERY == 0:
            _leave_free_objects()
        time.sleep(0.001)  # a map's memory comes back after an RCU grace period
    raise KernelError("start", "the conntrack GC timer", errno.ENOMEM)


def _leave_free_objects() -> None:
    """Leaves free objects in the caches that a timer's memory comes from, by a map that allocates each entry."""
    for size in _OBJECT_SIZES:
        os.close(bpf_maps.hash_of_objects(size, _OBJECTS))
