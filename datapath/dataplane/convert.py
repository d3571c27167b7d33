# SPDX-License-Identifier: Apache-2.0
"""Rows of `entries` as values of abi.h and back, field by field, by name: enumerators become numbers, and names."""

from __future__ import annotations

from typing import Any, cast

from datapath.dataplane import structs
from datapath.dataplane.layout import DeviceKind, NetworkFlag
from datapath.dataplane.structs import DeviceValue, HostValue, NetworkValue
from datapath.kernel import abi


def to_abi(row: Any) -> Any:
    """A key or value of `entries` as its struct's NamedTuple in abi, as the map of that struct takes it."""
    fields = row._asdict()
    if isinstance(row, NetworkValue):
        fields["flags"] = sum(int(abi.NetworkFlag[name]) for name in row.flags)
    elif isinstance(row, DeviceValue):
        fields["kind"] = int(abi.DeviceKind[row.kind])
    return abi.layout(structs.STRUCTS[type(row)]).type(**fields)


def host_value(value: Any) -> HostValue:
    """What the map `host` says (abi.host)."""
    return HostValue(**value._asdict())


def network_value(value: Any) -> NetworkValue:
    """What the map `networks` says (abi.network). Flags that only another version knows are left out."""
    flags = frozenset(cast(NetworkFlag, flag.name) for flag in abi.NetworkFlag if value.flags & flag)
    return NetworkValue(**value._asdict() | {"flags": flags})


def device_value(value: Any) -> DeviceValue:
    """What the map `devices` says (abi.device). A kind that only another version knows is its number."""
    kinds = {int(kind): kind.name for kind in abi.DeviceKind}
    kind = cast(DeviceKind, kinds.get(value.kind, str(value.kind)))
    return DeviceValue(**value._asdict() | {"kind": kind})
