# SPDX-License-Identifier: Apache-2.0
"""Rows of `entries` as values of abi.h and back, field by field, by name: enumerators become numbers, and names."""

from __future__ import annotations

from typing import Any, cast

from datapath.dataplane import structs
from datapath.dataplane.layout import XFRM_SELECTORS, DeviceKind, HostFlag, NetworkFlag, XfrmDirection
from datapath.dataplane.structs import (
    DeviceValue,
    HostValue,
    NetworkValue,
    XfrmKey,
    XfrmPolicyValue,
    XfrmSelectorValue,
)
from datapath.kernel import abi


def to_abi(row: Any) -> Any:
    """A key or value of `entries` as its struct's NamedTuple in abi, as the map of that struct takes it."""
    fields = row._asdict()
    if isinstance(row, NetworkValue):
        fields["flags"] = sum(int(abi.NetworkFlag[name]) for name in row.flags)
    elif isinstance(row, DeviceValue):
        fields["kind"] = int(abi.DeviceKind[row.kind])
    elif isinstance(row, HostValue):
        fields["flags"] = sum(int(abi.HostFlag[name]) for name in row.flags)
    elif isinstance(row, XfrmKey):
        fields["direction"] = int(abi.XfrmDirection[row.direction])
    elif isinstance(row, XfrmPolicyValue):
        one = abi.layout("xfrm_selector")
        packed = b"".join(one.pack(selector) for selector in row.selectors)
        fields["selectors"] = packed.ljust(XFRM_SELECTORS * one.size, b"\0")
    return abi.layout(structs.STRUCTS[type(row)]).type(**fields)


def host_value(value: Any) -> HostValue:
    """What the map `host` says (abi.host)."""
    flags = frozenset(cast(HostFlag, flag.name) for flag in abi.HostFlag if value.flags & flag)
    return HostValue(**value._asdict() | {"flags": flags})


def xfrm_key(value: Any) -> XfrmKey:
    """A key of the map `xfrm_policies` (abi.xfrm_key)."""
    direction = cast(XfrmDirection, abi.XfrmDirection(value.direction).name)
    return XfrmKey(**value._asdict() | {"direction": direction})


def xfrm_policy_value(value: Any) -> XfrmPolicyValue:
    """What the map `xfrm_policies` says (abi.xfrm_policy)."""
    one = abi.layout("xfrm_selector")
    selectors = tuple(
        XfrmSelectorValue(*one.unpack(value.selectors[at : at + one.size]))
        for at in range(0, value.used * one.size, one.size)
    )
    return XfrmPolicyValue(value.used, value.closed, selectors)


def network_value(value: Any) -> NetworkValue:
    """What the map `networks` says (abi.network). Flags that only another version knows are left out."""
    flags = frozenset(cast(NetworkFlag, flag.name) for flag in abi.NetworkFlag if value.flags & flag)
    return NetworkValue(**value._asdict() | {"flags": flags})


def device_value(value: Any) -> DeviceValue:
    """What the map `devices` says (abi.device). A kind that only another version knows is its number."""
    kinds = {int(kind): kind.name for kind in abi.DeviceKind}
    kind = cast(DeviceKind, kinds.get(value.kind, str(value.kind)))
    return DeviceValue(**value._asdict() | {"kind": kind})
