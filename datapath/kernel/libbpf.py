# SPDX-License-Identifier: Apache-2.0
"""BPF programs: loading object files, looking at programs, test runs, the ring buffer of events."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datapath.errors import KernelError, NotSupportedError, VerifierError
from datapath.kernel import abi, bpf_maps, bpffs, log
from datapath.kernel import bpf_calls as bpf
from datapath.kernel.bpf_calls import ffi

BPF_F_TEST_SKB_CHECKSUM_COMPLETE = 1 << 2  # include/uapi/linux/bpf.h
BPF_PROG_TYPE_SCHED_CLS = 3
# The youngest helpers that the programs call, and the Linux that brought them, youngest first.
_HELPERS = {"bpf_loop": (181, "5.17"), "bpf_timer_init": (169, "5.15"), "bpf_redirect_peer": (155, "5.10")}
_MOST_MAPS = 256  # that a program uses or holds
_LOG_SIZE = 16 << 20


class Program(NamedTuple):
    """A loaded program. The caller owns the fd."""

    name: str
    fd: int


def load_object(
    path: Path,
    *,
    pins: Path | None,
    config: Any,
    sizes: Mapping[str, int] | None = None,
    elsewhere: Mapping[str, str] | None = None,
    maps_only: bool = False,
    reuse: Mapping[str, int] | None = None,
) -> tuple[list[Program], dict[str, int]]:
    """Loads one object file: its programs and the fds of its maps, by name; the caller owns all of them.

    `pins`: the folder in which its maps are shared; a map that is pinned there already is used if its layout is the
    same. `elsewhere`: the names of pins that are not their map's. `config` is abi.config; as a map it is called config
    and never pinned here. `maps_only`: no program is loaded. `reuse`: fds of maps that take the place of those of their
    names, and stay the caller's. VerifierError carries the whole log.
    """
    # Of its own, not malloc()'s: its pages are only touched if the kernel writes there, and go when it goes.
    room = mmap.mmap(-1, _LOG_SIZE)
    verdict = ffi.from_buffer("char[]", room)
    opts = bpf.options("bpf_object_open_opts")
    opts.kernel_log_buf, opts.kernel_log_size, opts.kernel_log_level = verdict, _LOG_SIZE, 0
    obj = bpf.lib.bpf_object__open_file(os.fsencode(path), opts)
    if obj == ffi.NULL:
        raise KernelError("open object", path.name, ffi.errno)
    try:
        maps = _configure_maps(obj, pins, config, sizes or {}, elsewhere or {}, reuse or {})
        for program in _programs(obj) if maps_only else ():
            bpf.check(bpf.lib.bpf_program__set_autoload(program, False), "leave out", path.name)
        with log.operation("load", path.name):
            result = bpf.lib.bpf_object__load(obj)
        if result:
            raise _load_error(path, result, ffi.string(verdict).decode(errors="replace"))
        programs = []
        for program in () if maps_only else _programs(obj):
            name = ffi.string(bpf.lib.bpf_program__name(program)).decode()
            programs.append(Program(name, os.dup(bpf.lib.bpf_program__fd(program))))
        return programs, {name: os.dup(bpf.lib.bpf_map__fd(m)) for name, m in maps.items()}
    finally:
        bpf.lib.bpf_object__close(obj)


def _programs(obj: Any) -> Iterator[Any]:
    """The programs of an open object file."""
    program = bpf.lib.bpf_object__next_program(obj, ffi.NULL)
    while program != ffi.NULL:
        yield program
        program = bpf.lib.bpf_object__next_program(obj, program)


def declared_maps(path: Path) -> set[str]:
    """The names of an object file's own maps; nothing is loaded."""
    obj = bpf.lib.bpf_object__open_file(os.fsencode(path), bpf.options("bpf_object_open_opts"))
    if obj == ffi.NULL:
        raise KernelError("open object", path.name, ffi.errno)
    try:
        names = set()
        m = bpf.lib.bpf_object__next_map(obj, ffi.NULL)
        while m != ffi.NULL:
            names.add(ffi.string(bpf.lib.bpf_map__name(m)).decode())
            m = bpf.lib.bpf_object__next_map(obj, m)
        return names
    finally:
        bpf.lib.bpf_object__close(obj)


def _configure_maps(
    obj: Any,
    pins: Path | None,
    config: Any,
    sizes: Mapping[str, int],
    elsewhere: Mapping[str, str],
    reuse: Mapping[str, int],
) -> dict[str, Any]:
    maps: dict[str, Any] = {}
    m = bpf.lib.bpf_object__next_map(obj, ffi.NULL)
    while m != ffi.NULL:
        name = ffi.string(bpf.lib.bpf_map__name(m)).decode()
        if name == ".rodata.config":
            raw = abi.layout("config").pack(config)
            bpf.check(bpf.lib.bpf_map__set_initial_value(m, raw, len(raw)), "configure", name)
            maps["config"] = m
        elif ".rodata" not in name and ".bss" not in name:
            maps[name] = m
            if name in reuse:
                bpf.check(bpf.lib.bpf_map__reuse_fd(m, reuse[name]), "use map", name)
            elif name in sizes:
                bpf.check(bpf.lib.bpf_map__set_max_entries(m, sizes[name]), "size map", name)
            if pins and name not in reuse:
                pin = pins / elsewhere.get(name, name)
                _compare(m, name, pin)
                bpf.check(bpf.lib.bpf_map__set_pin_path(m, os.fsencode(pin)), "pin map", name)
        m = bpf.lib.bpf_object__next_map(obj, m)
    return maps


def _compare(m: Any, name: str, pin: Path) -> None:
    """KernelError if the map's pin is one of another layout."""
    fd = bpffs.get_pinned(pin)
    if fd is None:
        return
    try:
        info = bpf_maps.map_info(fd, name)
    finally:
        os.close(fd)
    actual = (info.type, info.key_size, info.value_size, info.map_flags)
    wanted = (
        bpf.lib.bpf_map__type(m),
        bpf.lib.bpf_map__key_size(m),
        bpf.lib.bpf_map__value_size(m),
        bpf.lib.bpf_map__map_flags(m),
    )
    if actual != wanted:
        detail = "it is laid out as in another version: use that one, or `datapathctl down`"
        raise KernelError("use map", name, detail=detail)


def _load_error(path: Path, result: int, log: str) -> KernelError:
    # An older kernel may trip over something before it comes to what it lacks: so that is asked.
    for name, (number, since) in _HELPERS.items():
        if bpf.lib.program_may_call(BPF_PROG_TYPE_SCHED_CLS, number) == 0:
            return NotSupportedError(f"the helper {name} that the packet programs need", since)
    missing = re.search(r"(?:unknown|invalid) func (?:unknown#|bpf_)?(\w+)", log)
    if missing:
        return NotSupportedError(
            f"the helper {missing[1]} that program {path.name} needs", "6.1 at the latest"
        )
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith(("processed ", "--"))]
    if lines and abs(result) in (errno.EACCES, errno.EINVAL, errno.E2BIG, errno.EPERM):
        return VerifierError(path.name.removesuffix(".bpf.o"), lines[-1].strip(), log)
    return bpf.error("load", path.name, result)


def verified_insns(program_fd: int) -> int:
    """How many instructions the verifier looked at until it was content (since 5.16): its limit is a million."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    bpf.check(bpf.lib.bpf_obj_get_info_by_fd(program_fd, info, size), "inspect", "program")
    return int(info.verified_insns)


def program_runs(fd: int) -> tuple[int, int]:
    """How often a program has run while runs were timed (`enable_stats`), and the nanoseconds that took (since 5.1)."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    bpf.check(bpf.lib.bpf_obj_get_info_by_fd(fd, info, size), "inspect", "program")
    return int(info.run_cnt), int(info.run_time_ns)


def enable_stats() -> int:
    """An fd that makes the kernel time every run of every program, for as long as it is open."""
    fd: int = bpf.lib.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    return bpf.check(fd, "time", "programs")


def program_id(fd: int) -> int:
    """The kernel's number of a program."""
    return bpf.check(bpf.lib.program_id(fd), "inspect", "program")


def program_maps(fd: int) -> set[int]:
    """The kernel's numbers of the maps that a program uses or holds."""
    ids, info = ffi.new("__u32[]", _MOST_MAPS), ffi.new("struct bpf_prog_info *")
    info.nr_map_ids, info.map_ids = _MOST_MAPS, int(ffi.cast("uintptr_t", ids))
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    bpf.check(bpf.lib.bpf_obj_get_info_by_fd(fd, info, size), "inspect", "program")
    return set(ids[0 : info.nr_map_ids])


def hold_map(program_fd: int, map_fd: int) -> None:
    """From now on the program holds the map as if it used it (since 5.10)."""
    bpf.check(bpf.lib.bpf_prog_bind_map(program_fd, map_fd, ffi.NULL), "hold map by", "program")


class Run(NamedTuple):
    """`verdict` as the kernel took it (signed), the packet afterwards, mean duration of a run in ns."""

    verdict: int
    packet: bytes
    duration: int


def test_run(
    program_fd: int,
    packet: bytes,
    *,
    ifindex: int = 0,
    ingress_ifindex: int = 0,
    gso_size: int = 0,
    repeat: int = 1,
    flags: int = 0,
    mark: int = 0,
) -> Run:
    """Runs a tc program once (or `repeat` times) on a packet, Ethernet header first; `flags`: BPF_F_TEST_*."""
    ctx = ffi.new("struct __sk_buff *")
    ctx.ifindex, ctx.ingress_ifindex, ctx.gso_size, ctx.mark = ifindex, ingress_ifindex, gso_size, mark
    out = ffi.new("char[]", len(packet) + 512)
    data = ffi.new("char[]", packet)
    opts = bpf.options("bpf_test_run_opts")
    opts.data_in, opts.data_size_in = data, len(packet)
    opts.data_out, opts.data_size_out = out, len(packet) + 512
    opts.ctx_in, opts.ctx_size_in = ctx, ffi.sizeof("struct __sk_buff")
    opts.repeat, opts.flags = repeat, flags
    bpf.check(bpf.lib.bpf_prog_test_run_opts(program_fd, opts), "test-run", "program")
    verdict = opts.retval - (1 << 32) if opts.retval >= 1 << 31 else opts.retval
    return Run(int(verdict), bytes(ffi.buffer(out, opts.data_size_out)), int(opts.duration))


@ffi.def_extern()  # type: ignore[untyped-decorator]
def on_sample(ctx: Any, data: Any, size: int) -> int:
    handler: Callable[[bytes], None] = ffi.from_handle(ctx)
    handler(bytes(ffi.buffer(data, size)))
    return 0


def consume_events(fd: int, handler: Callable[[Any], None]) -> int:
    """Hands every waiting event of the ring buffer to `handler` as abi.event; returns how many there were."""
    unpack = abi.layout("event").unpack
    keep = ffi.new_handle(lambda raw: handler(unpack(raw)))
    ring = bpf.lib.ring_buffer__new(fd, bpf.lib.on_sample, keep, ffi.NULL)
    if ring == ffi.NULL:
        raise KernelError("open ring buffer", "events", ffi.errno)
    try:
        return bpf.check(bpf.lib.ring_buffer__consume(ring), "read", "events")
    finally:
        bpf.lib.ring_buffer__free(ring)
