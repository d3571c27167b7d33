# SPDX-License-Identifier: Apache-2.0
"""libbpf through cffi: objects, maps, links, test runs, the ring buffer. Errors become exceptions here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datapath.errors import KernelError, NotSupportedError, PrivilegeError, VerifierError
from datapath.kernel import abi
from datapath.kernel._libbpf import ffi, lib

# include/uapi/linux/bpf.h
BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY = 1, 6
BPF_F_NO_PREALLOC = 1 << 0
TCX_INGRESS, TCX_EGRESS = 46, 47
BPF_XDP = 37
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2  # include/uapi/linux/if_link.h
BPF_TC_INGRESS, BPF_TC_EGRESS = 1, 2
BPF_TC_F_REPLACE = 1
BPF_F_TEST_SKB_CHECKSUM_COMPLETE = 1 << 2

BPF_PROG_TYPE_SCHED_CLS = 3
# The youngest helpers that the programs call, and the Linux that brought them, youngest first.
_HELPERS = {"bpf_loop": (181, "5.17"), "bpf_timer_init": (169, "5.15"), "bpf_redirect_peer": (155, "5.10")}
_LOOPBACK = 1  # its index, in every namespace
_LOG_SIZE = 16 << 20
_BATCH = 8192

lib.quiet()


def _error(operation: str, subject: str, number: int) -> KernelError:
    """The exception for an errno; `number` may be negative, as libbpf returns it."""
    number = abs(number)
    if number == errno.EPERM and os.geteuid() != 0:
        return PrivilegeError(f"{operation} {subject}: needs root (CAP_BPF and CAP_NET_ADMIN)")
    return KernelError(operation, subject, number)


def _check(result: int, operation: str, subject: str) -> int:
    if result < 0:
        raise _error(operation, subject, result)
    return result


def _opts(kind: str) -> Any:
    opts = ffi.new(f"struct {kind} *")
    opts.sz = ffi.sizeof(f"struct {kind}")
    return opts


def pin(fd: int, path: Path) -> None:
    _check(lib.bpf_obj_pin(fd, os.fsencode(path)), "pin", str(path))


def get_pinned(path: Path | str) -> int | None:
    """The fd of a pinned object; None: there is no such pin."""
    fd: int = lib.bpf_obj_get(os.fsencode(path))
    if fd >= 0:
        return fd
    if fd == -errno.ENOENT:
        return None
    raise _error("open pin", str(path), fd)


def map_info(fd: int, name: str) -> Any:
    """What the kernel says of a map: struct bpf_map_info."""
    info = ffi.new("struct bpf_map_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_map_info"))
    _check(lib.bpf_obj_get_info_by_fd(fd, info, size), "inspect map", name)
    return info


class Map(MutableMapping[Any, Any]):
    """A BPF map as a mapping of abi.h's types. Owns its fd.

    Batches cost one system call for thousands of entries. Reading while others write is safe but no snapshot.
    """

    def __init__(self, fd: int, name: str, key: str | None, value: str) -> None:
        info = map_info(fd, name)
        self.fd, self.name, self.max_entries = fd, name, int(info.max_entries)
        self._key = abi.layout(key) if key else None
        self._value = abi.layout(value)
        self._copies = lib.libbpf_num_possible_cpus() if info.type == BPF_MAP_TYPE_PERCPU_ARRAY else 1
        self._key_size = self._key.size if self._key else 4
        if info.key_size != self._key_size or info.value_size != self._value.size:
            os.close(fd)
            raise KernelError(
                "open map",
                name,
                detail="its layout is another version's: use that one, or `datapathctl upgrade`",
            )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _pack_key(self, key: Any) -> bytes:
        return self._key.pack(key) if self._key else int(key).to_bytes(4, "little")

    def _unpack_key(self, raw: bytes) -> Any:
        return self._key.unpack(raw) if self._key else int.from_bytes(raw, "little")

    def _unpack_value(self, raw: bytes) -> Any:
        if self._copies == 1:
            return self._value.unpack(raw)
        return [
            self._value.unpack(raw[i * self._value.size : (i + 1) * self._value.size])
            for i in range(self._copies)
        ]

    def __getitem__(self, key: Any) -> Any:
        """The value; for a per-CPU map the list of every CPU's. KeyError: not there."""
        value = self._lookup(self._pack_key(key))
        if value is None:
            raise KeyError(key)
        return self._unpack_value(value)

    def _lookup(self, key: bytes) -> bytes | None:
        value = ffi.new("char[]", self._value.size * self._copies)
        result = lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        _check(result, "read map", self.name)
        return bytes(ffi.buffer(value))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def set(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        result = lib.bpf_map_update_elem(self.fd, self._pack_key(key), self._value.pack(value), flags)
        if result in (-errno.E2BIG, -errno.ENOSPC):
            raise KernelError("write map", self.name, detail=f"it is full ({self.max_entries} entries)")
        _check(result, "write map", self.name)

    def __delitem__(self, key: Any) -> None:
        result = lib.bpf_map_delete_elem(self.fd, self._pack_key(key))
        if result == -errno.ENOENT:
            raise KeyError(key)
        _check(result, "delete from map", self.name)

    def discard(self, keys: Iterable[Any]) -> None:
        """Deletes those of the keys that are there."""
        for key in keys:
            self.pop(key, None)

    def __iter__(self) -> Iterator[Any]:
        for key, _ in self.read_all():
            yield key

    def __len__(self) -> int:
        return sum(1 for _ in self.read_all())

    def items(self) -> Any:
        return dict(self.read_all()).items()

    def delete_raw(self, keys: Iterable[bytes]) -> int:
        """As `delete_many`, with packed keys; how many were there."""
        return self._delete(list(keys))

    def batches(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Keys and values as they lie in memory, and how many, batch by batch: for who reads a few fields."""
        size = min(self.max_entries, _BATCH)
        keys = ffi.new("char[]", self._key_size * size)
        values = ffi.new("char[]", self._value.size * size)
        # The cursor is a bucket number or a key, whichever is larger.
        cursor, following = (ffi.new("char[]", max(self._key_size, 8)) for _ in range(2))
        count = ffi.new("__u32 *")
        start = ffi.NULL
        while True:
            count[0] = size
            result = lib.bpf_map_lookup_batch(self.fd, start, following, keys, values, count, ffi.NULL)
            if result == -errno.ENOSPC and size < self.max_entries:
                # One hash bucket holds more than the batch.
                size = min(size * 2, self.max_entries)
                keys, values = (
                    ffi.new("char[]", self._key_size * size),
                    ffi.new("char[]", self._value.size * size),
                )
                continue
            if result not in (0, -errno.ENOENT):
                raise _error("read map", self.name, result)
            yield (
                bytes(ffi.buffer(keys, count[0] * self._key_size)),
                bytes(ffi.buffer(values, count[0] * self._value.size)),
                int(count[0]),
            )
            if result:
                return
            cursor, following = following, cursor
            start = cursor

    def read_all(self) -> Iterator[tuple[Any, Any]]:
        """Every entry."""
        if self._copies > 1:
            for index in range(self.max_entries):
                yield index, self[index]
            return
        for keys, values, count in self.batches():
            for i in range(count):
                yield (
                    self._unpack_key(keys[i * self._key_size : (i + 1) * self._key_size]),
                    self._value.unpack(values[i * self._value.size : (i + 1) * self._value.size]),
                )

    def used(self) -> list[int]:
        """Of an array: the indexes of rows that are not zero altogether."""
        zero, found, at = bytes(self._value.size), list[int](), 0
        for _, values, count in self.batches():
            rows = cut(values, self._value.size)
            found += [index for index, row in enumerate(rows, start=at) if row != zero]
            at += count
        return found

    def where(self, field: str, value: Any, keys: Iterable[bytes]) -> list[bytes]:
        """Which of the packed keys have that value in one plain field: few are looked up, many are read whole."""
        wanted = set(keys)
        if len(wanted) < 256:
            found = ((key, self._lookup(key)) for key in wanted)
            return [k for k, v in found if v is not None and getattr(self._unpack_value(v), field) == value]
        select = self._value.select(field)
        return [
            key
            for packed, values, _ in self.batches()
            for key, (actual,) in zip(cut(packed, self._key_size), select.iter_unpack(values), strict=True)
            if actual == value and key in wanted
        ]

    def having(self, field: str, value: Any) -> dict[Any, Any]:
        """The entries with that value in one plain field. No other is unpacked."""
        select = self._value.select(field)
        return {
            self._unpack_key(key): self._value.unpack(row)
            for keys, values, _ in self.batches()
            for key, row, (actual,) in zip(
                *(cut(keys, self._key_size), cut(values, self._value.size), select.iter_unpack(values)),
                strict=True,
            )
            if actual == value
        }

    def count(self) -> int:
        """How many entries there are, without decoding them."""
        return sum(count for _, _, count in self.batches())

    def update_many(self, entries: Mapping[Any, Any]) -> None:
        """Writes all entries with one system call. A full map: KernelError, and none of the new ones stays."""
        keys = b"".join([self._pack_key(key) for key in entries])
        self.update_raw(keys, b"".join([self._value.pack(value) for value in entries.values()]))

    def update_raw(self, keys: bytes, values: bytes) -> None:
        """The same with packed keys and values, one after the other."""
        if not keys:
            return
        count = ffi.new("__u32 *", len(keys) // self._key_size)
        result = lib.bpf_map_update_batch(self.fd, keys, values, count, ffi.NULL)
        if result:
            self.delete_raw(cut(keys[: count[0] * self._key_size], self._key_size))
            if result in (-errno.E2BIG, -errno.ENOSPC):
                raise KernelError("write map", self.name, detail=f"it is full ({self.max_entries} entries)")
            raise _error("write map", self.name, result)

    def delete_many(self, keys: Iterable[Any]) -> None:
        """Deletes with one system call those of the keys that are there."""
        self._delete([self._pack_key(key) for key in keys])

    def _delete(self, keys: Sequence[bytes]) -> int:
        packed = ffi.from_buffer(b"".join(keys))
        count = ffi.new("__u32 *")
        at = deleted = 0
        while at < len(keys):
            count[0] = len(keys) - at
            result = lib.bpf_map_delete_batch(self.fd, packed + at * self._key_size, count, ffi.NULL)
            deleted += count[0]
            if not result:
                break
            if result != -errno.ENOENT:
                raise _error("delete from map", self.name, result)
            # The batch stops at a key that is not there.
            at += count[0] + 1
        return deleted


def hash_of_objects(size: int, count: int) -> int:
    """The fd of a new hash map with `count` entries, for each of which the kernel allocates `size` bytes (64-bit)."""
    key_size = 8
    value_size = size - key_size - 56  # struct htab_elem, and the allocator's own link
    opts = _opts("bpf_map_create_opts")
    opts.map_flags = BPF_F_NO_PREALLOC
    fd = lib.bpf_map_create(BPF_MAP_TYPE_HASH, b"objects", key_size, value_size, count, opts)
    _check(fd, "create", "a map")
    for number in range(count):
        lib.bpf_map_update_elem(fd, number.to_bytes(key_size, "little"), bytes(value_size), BPF_ANY)
    return int(fd)


def cut(packed: bytes, size: int) -> Iterator[bytes]:
    """Keys that lie one after the other."""
    return (packed[at : at + size] for at in range(0, len(packed), size))


class Program(NamedTuple):
    """A loaded program. The caller owns the fd."""

    name: str
    fd: int


def load_object(
    path: Path, *, pins: Path | None, config: Any, sizes: Mapping[str, int] | None = None
) -> tuple[list[Program], dict[str, int]]:
    """Loads one object file: its programs and the fds of its maps, by name; the caller owns all of them.

    `pins`: the folder in which its maps are shared; a map that is pinned there already is used if its layout
    is the same. `config` is abi.config; as a map it is called config and never pinned here. VerifierError
    carries the whole log.
    """
    # The log buffer's pages are only touched if the kernel writes there.
    log = ffi.new("char[]", _LOG_SIZE)
    opts = _opts("bpf_object_open_opts")
    opts.kernel_log_buf, opts.kernel_log_size, opts.kernel_log_level = log, _LOG_SIZE, 0
    obj = lib.bpf_object__open_file(os.fsencode(path), opts)
    if obj == ffi.NULL:
        raise KernelError("open object", path.name, ffi.errno)
    try:
        maps = _configure_maps(obj, pins, config, sizes or {})
        result = lib.bpf_object__load(obj)
        if result:
            raise _load_error(path, result, ffi.string(log).decode(errors="replace"))
        programs = []
        program = lib.bpf_object__next_program(obj, ffi.NULL)
        while program != ffi.NULL:
            name = ffi.string(lib.bpf_program__name(program)).decode()
            programs.append(Program(name, os.dup(lib.bpf_program__fd(program))))
            program = lib.bpf_object__next_program(obj, program)
        return programs, {name: os.dup(lib.bpf_map__fd(m)) for name, m in maps.items()}
    finally:
        lib.bpf_object__close(obj)


def declared_maps(path: Path) -> set[str]:
    """The names of an object file's own maps; nothing is loaded."""
    obj = lib.bpf_object__open_file(os.fsencode(path), _opts("bpf_object_open_opts"))
    if obj == ffi.NULL:
        raise KernelError("open object", path.name, ffi.errno)
    try:
        names = set()
        m = lib.bpf_object__next_map(obj, ffi.NULL)
        while m != ffi.NULL:
            names.add(ffi.string(lib.bpf_map__name(m)).decode())
            m = lib.bpf_object__next_map(obj, m)
        return names
    finally:
        lib.bpf_object__close(obj)


def _configure_maps(obj: Any, pins: Path | None, config: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    maps: dict[str, Any] = {}
    m = lib.bpf_object__next_map(obj, ffi.NULL)
    while m != ffi.NULL:
        name = ffi.string(lib.bpf_map__name(m)).decode()
        if name == ".rodata.config":
            raw = abi.layout("config").pack(config)
            _check(lib.bpf_map__set_initial_value(m, raw, len(raw)), "configure", name)
            maps["config"] = m
        elif ".rodata" not in name and ".bss" not in name:
            maps[name] = m
            if name in sizes:
                _check(lib.bpf_map__set_max_entries(m, sizes[name]), "size map", name)
            if pins:
                _compare(m, name, pins)
                _check(lib.bpf_map__set_pin_path(m, os.fsencode(pins / name)), "pin map", name)
        m = lib.bpf_object__next_map(obj, m)
    return maps


def _compare(m: Any, name: str, pins: Path) -> None:
    """KernelError if a map of that name is pinned with another layout."""
    fd = get_pinned(pins / name)
    if fd is None:
        return
    try:
        info = map_info(fd, name)
    finally:
        os.close(fd)
    actual = (info.type, info.key_size, info.value_size, info.map_flags)
    wanted = (
        lib.bpf_map__type(m),
        lib.bpf_map__key_size(m),
        lib.bpf_map__value_size(m),
        lib.bpf_map__map_flags(m),
    )
    if actual != wanted:
        detail = "it is laid out as in another version: use that one, or `datapathctl down`"
        raise KernelError("use map", name, detail=detail)


def _load_error(path: Path, result: int, log: str) -> KernelError:
    # An older kernel may trip over something before it comes to what it lacks: so that is asked.
    for name, (number, since) in _HELPERS.items():
        if lib.program_may_call(BPF_PROG_TYPE_SCHED_CLS, number) == 0:
            return NotSupportedError(f"the helper {name} that the packet programs need", since)
    missing = re.search(r"(?:unknown|invalid) func (?:unknown#|bpf_)?(\w+)", log)
    if missing:
        return NotSupportedError(
            f"the helper {missing[1]} that program {path.name} needs", "6.1 at the latest"
        )
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith(("processed ", "--"))]
    if lines and abs(result) in (errno.EACCES, errno.EINVAL, errno.E2BIG, errno.EPERM):
        return VerifierError(path.name.removesuffix(".bpf.o"), lines[-1].strip(), log)
    return _error("load", path.name, result)


def verified_insns(program_fd: int) -> int:
    """How many instructions the verifier looked at until it was content (since 5.16): its limit is a million."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    _check(lib.bpf_obj_get_info_by_fd(program_fd, info, size), "inspect", "program")
    return int(info.verified_insns)


def has_tcx() -> bool:
    """Whether programs can be attached by tcx: asks what is attached to the loopback device."""
    count = ffi.new("__u32 *")
    result = lib.program_query(_LOOPBACK, TCX_INGRESS, count)
    return bool(result != -errno.EINVAL)


def attach_tcx(program_fd: int, ifindex: int, attach_type: int) -> int:
    """The fd of a link that attaches the program to a device (since 6.6); NotSupportedError before that."""
    fd: int = lib.link_create(program_fd, ifindex, attach_type, 0)
    if fd == -errno.EINVAL:
        raise NotSupportedError("tcx", "6.6")
    return _check(fd, "attach to device", str(ifindex))


def attach_xdp(program_fd: int, ifindex: int) -> int:
    """The fd of a link that runs the program in the device's driver, or, where the driver cannot, before the
    stack. KernelError with EBUSY or EEXIST: another program is there."""
    fd: int = lib.link_create(program_fd, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
    if fd < 0 and fd not in (-errno.EBUSY, -errno.EEXIST):
        fd = lib.link_create(program_fd, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE)
    return _check(fd, "attach XDP program to device", str(ifindex))


def xdp_program(ifindex: int) -> int:
    """The kernel's number of the XDP program that a device runs; 0: none, or there is no such device."""
    number = ffi.new("__u32 *")
    return int(number[0]) if lib.bpf_xdp_query_id(ifindex, 0, number) == 0 else 0


def attach_cgroup(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """The fd of a link that attaches the program to a cgroup, beside what others attached there."""
    fd: int = lib.link_create(program_fd, cgroup_fd, attach_type, 0)
    return _check(fd, "attach to", "the control group")


def update_link(link_fd: int, program_fd: int) -> bool:
    """Gives a link another program, between two packets; False: what it was attached to is gone."""
    result = lib.bpf_link_update(link_fd, program_fd, ffi.NULL)
    if result in (-errno.ENOLINK, -errno.ENODEV):
        return False
    _check(result, "replace the program of", "a link")
    return True


def _tc(ifindex: int, point: int, handle: int, priority: int) -> tuple[Any, Any]:
    hook, opts = _opts("bpf_tc_hook"), _opts("bpf_tc_opts")
    hook.ifindex, hook.attach_point = ifindex, point
    opts.handle, opts.priority = handle, priority
    return hook, opts


def create_clsact(ifindex: int) -> bool:
    """Gives the device a clsact qdisc; False: it has one already."""
    hook, _ = _tc(ifindex, BPF_TC_INGRESS, 0, 0)
    result = lib.bpf_tc_hook_create(hook)
    if result not in (0, -errno.EEXIST):
        raise _error("add clsact to device", str(ifindex), result)
    return bool(result == 0)


def attach_clsact(program_fd: int, ifindex: int, point: int, handle: int, priority: int) -> None:
    """Attaches as a direct-action filter; one of ours that is there already is replaced in place."""
    create_clsact(ifindex)
    hook, opts = _tc(ifindex, point, handle, priority)
    opts.prog_fd, opts.flags = program_fd, BPF_TC_F_REPLACE
    _check(lib.bpf_tc_attach(hook, opts), "attach to device", str(ifindex))


def detach_clsact(ifindex: int, point: int, handle: int, priority: int) -> None:
    """Takes our filter away; nothing there, or no such device, is fine."""
    hook, opts = _tc(ifindex, point, handle, priority)
    result = lib.bpf_tc_detach(hook, opts)
    if result not in (0, -errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
        raise _error("detach from device", str(ifindex), result)


def destroy_clsact(ifindex: int) -> None:
    """Removes the clsact qdisc, with every filter in it."""
    hook, _ = _tc(ifindex, BPF_TC_INGRESS | BPF_TC_EGRESS, 0, 0)
    lib.bpf_tc_hook_destroy(hook)


def enable_stats() -> int:
    """An fd that makes the kernel time every run of every program, for as long as it is open."""
    fd: int = lib.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    return _check(fd, "time", "programs")


def clsact_program(ifindex: int, point: int, handle: int, priority: int) -> int:
    """The kernel's number of the program in our filter's place; 0: there is none."""
    hook, opts = _tc(ifindex, point, handle, priority)
    return int(opts.prog_id) if lib.bpf_tc_query(hook, opts) == 0 else 0


def link_info(fd: int) -> tuple[int, int]:
    """The number of a link's program, and of the device or cgroup that it is attached to; 0: of none any more."""
    program, target = ffi.new("__u32 *"), ffi.new("__u64 *")
    _check(lib.link_info(fd, program, target), "inspect", "link")
    return int(program[0]), int(target[0])


def program_id(fd: int) -> int:
    """The kernel's number of a program."""
    return _check(lib.program_id(fd), "inspect", "program")


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
    opts = _opts("bpf_test_run_opts")
    opts.data_in, opts.data_size_in = data, len(packet)
    opts.data_out, opts.data_size_out = out, len(packet) + 512
    opts.ctx_in, opts.ctx_size_in = ctx, ffi.sizeof("struct __sk_buff")
    opts.repeat, opts.flags = repeat, flags
    _check(lib.bpf_prog_test_run_opts(program_fd, opts), "test-run", "program")
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
    ring = lib.ring_buffer__new(fd, lib.on_sample, keep, ffi.NULL)
    if ring == ffi.NULL:
        raise KernelError("open ring buffer", "events", ffi.errno)
    try:
        return _check(lib.ring_buffer__consume(ring), "read", "events")
    finally:
        lib.ring_buffer__free(ring)
