# SPDX-License-Identifier: Apache-2.0
"""The running kernel's own description of its types: where fields lie, what numbers are called."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from datapath.errors import KernelError, NotSupportedError
from datapath.kernel.bpf_calls import ffi, lib

# include/uapi/linux/btf.h
_KIND_STRUCT, _KIND_ENUM, _KIND_TYPEDEF = 4, 6, 8


class KernelTypes:
    """Use as a context manager. NotSupportedError: this kernel has no BTF, or not that type or field."""

    def __init__(self) -> None:
        self._btf = lib.btf__load_vmlinux_btf()
        if self._btf == ffi.NULL:
            raise NotSupportedError("BTF (CONFIG_DEBUG_INFO_BTF)")

    def __enter__(self) -> KernelTypes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.btf__free(self._btf)
        self._btf = ffi.NULL

    def offset(self, path: str) -> int:
        """Where a field lies in its struct, in bytes: "sock.__sk_common.skc_net" for one in a struct in it."""
        name, *fields = path.split(".")
        ident, total = self._find(name, _KIND_STRUCT), 0
        for field in fields:
            found = self._member(ident, field)
            if found is None:
                raise NotSupportedError(f"the field {path}")
            ident, total = found[0], total + found[1]
        return total

    def names(self, enum: str) -> dict[int, str]:
        """What the numbers of an enum are called."""
        kind = self._type(self._find(enum, _KIND_ENUM))
        values = ffi.cast("struct btf_enum *", kind + 1)
        return {int(values[i].val): self._string(values[i].name_off) for i in range(int(lib.btf_vlen(kind)))}

    def tracepoint_arguments(self, name: str) -> int:
        """How many arguments a tracepoint has for a raw tracepoint program."""
        pointer = self._type(self._find(f"btf_trace_{name}", _KIND_TYPEDEF))  # to a function
        function = self._type(self._type(pointer.type).type)
        return int(lib.btf_vlen(function)) - 1  # the first is the tracepoint's own

    def _find(self, name: str, kind: int) -> int:
        ident = int(lib.btf__find_by_name_kind(self._btf, name.encode(), kind))
        if ident < 0:
            raise NotSupportedError(f"the type {name}")
        return ident

    def _member(self, ident: int, name: str) -> tuple[int, int] | None:
        """The type of a field and where it lies, in bytes; fields of unnamed structs in it are its own."""
        kind = self._type(self._resolved(ident))
        if not lib.btf_is_composite(kind):
            return None
        members = ffi.cast("struct btf_member *", kind + 1)
        for i in range(int(lib.btf_vlen(kind))):
            own, offset = self._string(members[i].name_off), (members[i].offset & 0xFFFFFF) // 8
            if own == name:
                return int(members[i].type), offset
            inner = None if own else self._member(members[i].type, name)
            if inner is not None:
                return inner[0], inner[1] + offset
        return None

    def _resolved(self, ident: int) -> int:
        """Without const, volatile and typedef."""
        found = int(lib.btf__resolve_type(self._btf, ident))
        if found < 0:
            raise KernelError("read", "the kernel's BTF", -found)
        return found

    def _type(self, ident: int) -> Any:
        return lib.btf__type_by_id(self._btf, ident)

    def _string(self, offset: int) -> str:
        return ffi.string(lib.btf__name_by_offset(self._btf, offset)).decode()  # type: ignore[no-any-return]
