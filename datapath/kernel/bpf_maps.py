# SPDX-License-Identifier: Apache-2.0
"""BPF maps: single entries, and batches of thousands with one system call."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import abi, bpffs, log
from datapath.kernel import bpf_calls as bpf
from datapath.kernel.bpf_calls import ffi

# include/uapi/linux/bpf.h
BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY = 1, 2
BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY = 5, 6
_PER_CPU = (BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY)
BPF_F_NO_PREALLOC = 1 << 0
_BATCH, _BATCH_BYTES = (
    8192,
    1 << 20,
)  # at most, of keys and rows: who reads stays small, however large rows are
_UNREAD = 1 << 18  # entries of a map that nobody reads: as many as the largest of the others has


def map_info(fd: int, name: str) -> Any:
    """What the kernel says of a map: struct bpf_map_info."""
    info = ffi.new("struct bpf_map_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_map_info"))
    bpf.check(bpf.lib.bpf_obj_get_info_by_fd(fd, info, size), "inspect map", name)
    return info


class RawMap:
    """A BPF map whose keys and values are bytes, as they lie in memory; of a per-CPU map each value is those of every
    possible CPU, one after the other. Owns its fd.

    Batches cost one system call for thousands of entries. Reading while others write is safe, but no snapshot.
    `changed` is called after entries were written or deleted, or a part of them, and then it failed.
    """

    changed: Callable[[], None] | None = None

    def __init__(self, fd: int, name: str, key_size: int, value_size: int) -> None:
        info = map_info(fd, name)
        self.fd, self.name, self.max_entries = fd, name, int(info.max_entries)
        self.copies = bpf.lib.libbpf_num_possible_cpus() if info.type in _PER_CPU else 1
        self.is_array = info.type in (BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY)
        self._key_size, self._value_size = key_size, value_size
        self._row_size = value_size * self.copies  # what is per CPU is laid out in steps of 8 bytes
        if self.copies > 1 and value_size % 8:
            os.close(fd)
            raise AssertionError(f"the value of the per-CPU map {name} is no multiple of 8 bytes")
        if info.key_size != key_size or info.value_size != value_size:
            os.close(fd)
            raise KernelError(
                "open map",
                name,
                detail="its layout is another version's: use that one, or `datapathctl upgrade`",
            )

    def close(self) -> None:
        """Closes the fd. The map stays as long as a pin or a program has it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _writing(self, what: str, count: int) -> contextlib.AbstractContextManager[None]:
        logged = log.operation(what, self.name, count)
        return logged if self.changed is None else _telling(self.changed, logged)

    def lookup_raw(self, key: bytes) -> bytes | None:
        """The value; None: the key is not there."""
        value = ffi.new("char[]", self._row_size)
        result = bpf.lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        bpf.check(result, "read map", self.name)
        return bytes(ffi.buffer(value))

    def update_raw(self, keys: bytes, values: bytes) -> None:
        """Writes entries, keys and values each one after the other, with one system call. A full map: KernelError, and
        none of the new entries stays."""
        if not keys:
            return
        count = ffi.new("__u32 *", len(keys) // self._key_size)
        with self._writing("write map", count[0]):
            result = bpf.lib.bpf_map_update_batch(self.fd, keys, values, count, ffi.NULL)
        if result:
            self.delete_raw(cut(keys[: count[0] * self._key_size], self._key_size))
            if result in (-errno.E2BIG, -errno.ENOSPC):
                raise KernelError("write map", self.name, detail=f"it is full ({self.max_entries} entries)")
            raise bpf.error("write map", self.name, result)

    def set_raw(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> bool:
        """Writes one entry, of a per-CPU map every CPU's value; false: with BPF_NOEXIST, that it is there already. An
        empty key: the value is added to a queue."""
        with self._writing("write map", 1):
            result = bpf.lib.bpf_map_update_elem(self.fd, key or ffi.NULL, value, flags)
        if result == -errno.EEXIST and flags == BPF_NOEXIST:
            return False
        bpf.check(result, "write map", self.name)
        return True

    def pop_raw(self) -> bytes | None:
        """The next value of a queue, which is then not in it any more; None: it is empty."""
        value = ffi.new("char[]", self._value_size)
        result = bpf.lib.bpf_map_lookup_and_delete_elem(self.fd, ffi.NULL, value)
        if result == -errno.ENOENT:
            return None
        bpf.check(result, "read map", self.name)
        return bytes(ffi.buffer(value))

    def delete_raw(self, keys: Iterable[bytes]) -> int:
        """Deletes with one system call those of the keys that are there; how many these were."""
        keys = list(keys)
        packed = ffi.from_buffer(b"".join(keys))
        count = ffi.new("__u32 *")
        at = deleted = 0
        while at < len(keys):
            count[0] = len(keys) - at
            with self._writing("delete from map", count[0]):
                result = bpf.lib.bpf_map_delete_batch(self.fd, packed + at * self._key_size, count, ffi.NULL)
            deleted += count[0]
            if not result:
                break
            if result != -errno.ENOENT:
                raise bpf.error("delete from map", self.name, result)
            # The batch stops at a key that is not there.
            at += count[0] + 1
        return deleted

    def batches(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Keys, values and how many there are of each, batch by batch. Not for per-CPU maps."""
        size = min(self.max_entries, _BATCH, max(_BATCH_BYTES // (self._key_size + self._row_size), 1))
        keys = ffi.new("char[]", self._key_size * size)
        values = ffi.new("char[]", self._row_size * size)
        # The cursor is a bucket number or a key, whichever is larger.
        cursor, following = (ffi.new("char[]", max(self._key_size, 8)) for _ in range(2))
        count = ffi.new("__u32 *")
        start = ffi.NULL
        while True:
            count[0] = size
            result = bpf.lib.bpf_map_lookup_batch(self.fd, start, following, keys, values, count, ffi.NULL)
            if result == -errno.ENOSPC and size < self.max_entries:
                # One hash bucket holds more than the batch.
                size = min(size * 2, self.max_entries)
                keys, values = (
                    ffi.new("char[]", self._key_size * size),
                    ffi.new("char[]", self._row_size * size),
                )
                continue
            if result not in (0, -errno.ENOENT):
                raise bpf.error("read map", self.name, result)
            yield (
                bytes(ffi.buffer(keys, count[0] * self._key_size)),
                bytes(ffi.buffer(values, count[0] * self._row_size)),
                int(count[0]),
            )
            if result:
                return
            cursor, following = following, cursor
            start = cursor

    def count(self) -> int:
        """How many entries there are, without decoding them."""
        return sum(count for _, _, count in self.batches())


@contextlib.contextmanager
def _telling(changed: Callable[[], None], logged: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with logged:
        yield
    changed()


class Map(RawMap, MutableMapping[Any, Any]):
    """A BPF map as a mapping of abi.h's types: NamedTuples of the structs `key` and `value`. Without `key` it is an
    array, whose keys are numbers; of a per-CPU map a value is the list of every possible CPU's."""

    def __init__(self, fd: int, name: str, key: str | None, value: str) -> None:
        self._key = abi.layout(key) if key else None
        self._value = abi.layout(value)
        super().__init__(fd, name, self._key.size if self._key else 4, self._value.size)

    def _pack_key(self, key: Any) -> bytes:
        return self._key.pack(key) if self._key else int(key).to_bytes(4, "little")

    def _unpack_key(self, raw: bytes) -> Any:
        return self._key.unpack(raw) if self._key else int.from_bytes(raw, "little")

    def _unpack_value(self, raw: bytes) -> Any:
        if self.copies == 1:
            return self._value.unpack(raw)
        return [
            self._value.unpack(raw[i * self._value.size : (i + 1) * self._value.size])
            for i in range(self.copies)
        ]

    def __getitem__(self, key: Any) -> Any:
        """KeyError: the key is not there."""
        value = self.lookup_raw(self._pack_key(key))
        if value is None:
            raise KeyError(key)
        return self._unpack_value(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def set(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Writes one entry; `flags`: BPF_ANY, BPF_NOEXIST, BPF_EXIST."""
        with self._writing("write map", 1):
            result = bpf.lib.bpf_map_update_elem(self.fd, self._pack_key(key), self._value.pack(value), flags)
        if result in (-errno.E2BIG, -errno.ENOSPC):
            raise KernelError("write map", self.name, detail=f"it is full ({self.max_entries} entries)")
        bpf.check(result, "write map", self.name)

    def __delitem__(self, key: Any) -> None:
        with self._writing("delete from map", 1):
            result = bpf.lib.bpf_map_delete_elem(self.fd, self._pack_key(key))
        if result == -errno.ENOENT:
            raise KeyError(key)
        bpf.check(result, "delete from map", self.name)

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

    def read_all(self) -> Iterator[tuple[Any, Any]]:
        """Every entry."""
        if self.copies > 1 and self.is_array:
            for index in range(self.max_entries):
                yield index, self[index]
            return
        for keys, values, _ in self.batches():
            for key, row in zip(cut(keys, self._key_size), cut(values, self._row_size), strict=True):
                yield self._unpack_key(key), self._unpack_value(row)

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
            found = ((key, self.lookup_raw(key)) for key in wanted)
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

    def update_many(self, entries: Mapping[Any, Any]) -> None:
        """Writes all entries with one system call. A full map: KernelError, and none of the new ones stays."""
        keys = b"".join([self._pack_key(key) for key in entries])
        self.update_raw(keys, b"".join([self._value.pack(value) for value in entries.values()]))

    def delete_many(self, keys: Iterable[Any]) -> None:
        """Deletes with one system call those of the keys that are there."""
        self.delete_raw([self._pack_key(key) for key in keys])


@contextlib.contextmanager
def opened(pin: Path) -> Iterator[RawMap]:
    """A pinned map, whatever its layout. KernelError: it is not pinned."""
    fd = bpffs.get_pinned(pin)
    if fd is None:
        raise KernelError("open map", pin.name, detail="it is not pinned")
    info = map_info(fd, pin.name)
    found = RawMap(fd, pin.name, int(info.key_size), int(info.value_size))
    try:
        yield found
    finally:
        found.close()


def unread(name: str, key: str | None, value: str) -> int:
    """The fd of a new map of abi.h's structs `key` and `value`, without a pin and in no program; `key` None: an array
    of one."""
    kind, flags = (BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC) if key else (BPF_MAP_TYPE_ARRAY, 0)
    opts = bpf.options("bpf_map_create_opts")
    opts.map_flags = flags
    sizes = abi.layout(key).size if key else 4, abi.layout(value).size
    fd = bpf.lib.bpf_map_create(kind, name.encode(), *sizes, _UNREAD if key else 1, opts)
    bpf.check(fd, "create map", name)
    return int(fd)


def hash_of_objects(size: int, count: int) -> int:
    """The fd of a new hash map with `count` entries, for each of which the kernel allocates `size` bytes (64-bit)."""
    key_size = 8
    value_size = size - key_size - 56  # struct htab_elem, and the allocator's own link
    opts = bpf.options("bpf_map_create_opts")
    opts.map_flags = BPF_F_NO_PREALLOC
    fd = bpf.lib.bpf_map_create(BPF_MAP_TYPE_HASH, b"objects", key_size, value_size, count, opts)
    bpf.check(fd, "create", "a map")
    for number in range(count):
        bpf.lib.bpf_map_update_elem(fd, number.to_bytes(key_size, "little"), bytes(value_size), BPF_ANY)
    return int(fd)


def number(value: int) -> bytes:
    """A number of 32 bits as maps of the kernel's own types have it: an index, a program's fd or id."""
    return int(value).to_bytes(4, sys.byteorder)


def cut(packed: bytes, size: int) -> Iterator[bytes]:
    """Keys that lie one after the other."""
    return (packed[at : at + size] for at in range(0, len(packed), size))
