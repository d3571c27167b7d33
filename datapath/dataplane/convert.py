# SPDX-License-Identifier: Apache-2.0
"""Rows of `entries` as values of abi.h and back, field by field, by name: enumerators become numbers, and names."""

from __future__ import annotations

import struct
from typing import Any, cast

from datapath.dataplane import structs
from datapath.dataplane.layout import (
    BackendState,
    DeviceKind,
    HostFlag,
    NetworkFlag,
    OverlayFlag,
    PeerFlag,
    ServiceChoice,
    Transport,
    TunnelFlag,
    XfrmDirection,
)
from datapath.dataplane.service_structs import BackendValue, ServiceValue, SlotsValue
from datapath.dataplane.structs import (
    DeviceValue,
    HostValue,
    LongNameKey,
    NameKey,
    NameSetValue,
    NameValue,
    NetworkValue,
    OverlayValue,
    PeerValue,
    ResolverValue,
    RrsetValue,
    TunnelValue,
    UpstreamValue,
    XfrmKey,
    XfrmPolicyValue,
    XfrmSelectorValue,
)
from datapath.dataplane.wire_names import name_in
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
    elif isinstance(row, OverlayValue):
        fields["transport"] = int(abi.Transport[row.transport])
        fields["flags"] = sum(int(abi.OverlayFlag[name]) for name in row.flags)
    elif isinstance(row, PeerValue):
        fields["flags"] = sum(int(abi.PeerFlag[name]) for name in row.flags)
    elif isinstance(row, TunnelValue):
        fields["flags"] = sum(int(abi.TunnelFlag[name]) for name in row.flags)
    elif isinstance(row, ServiceValue):
        fields["choice"] = int(abi.ServiceChoice[row.choice])
    elif isinstance(row, SlotsValue):
        fields["backend"] = struct.pack(f"={len(row.backend)}I", *row.backend)
    elif isinstance(row, BackendValue):
        fields["state"] = int(abi.BackendState[row.state])
    elif isinstance(row, XfrmKey):
        fields["direction"] = int(abi.XfrmDirection[row.direction])
    elif isinstance(row, XfrmPolicyValue):
        fields["selectors"] = _pack_all(row, "selectors", "xfrm_selector")
    elif isinstance(row, NameValue):
        fields["kept"] = struct.pack(f"={len(row.kept)}Q", *row.kept)
        fields["sets"] = _pack_all(row, "sets", "rrset")
    elif isinstance(row, ResolverValue):
        fields["networks"] = struct.pack(f"={len(row.networks)}I", *row.networks)
        fields["upstreams"] = _pack_all(row, "upstreams", "upstream")
    return abi.layout(structs.STRUCTS[type(row)]).type(**fields)


def _pack_all(row: Any, field: str, inner: str) -> bytes:
    """The field of a row that is an array of structs, without the zeros that follow. ValueError: they are too many."""
    values = getattr(row, field)
    one, whole = abi.layout(inner), abi.layout(structs.STRUCTS[type(row)])
    if len(values) * one.size > whole.width(field):
        raise ValueError(f"{len(values)} of {field} do not fit into struct {whole.name}")
    return b"".join(one.pack(value) for value in values)


def _unpack_all(raw: bytes, inner: str) -> list[Any]:
    """Those of an array of structs that are not zero."""
    one = abi.layout(inner)
    return [
        one.unpack(raw[at : at + one.size])
        for at in range(0, len(raw), one.size)
        if any(raw[at : at + one.size])
    ]


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


def overlay_value(value: Any) -> OverlayValue:
    """What the map `overlays` says (abi.overlay). A transport that only another version knows is its number."""
    flags = frozenset(cast(OverlayFlag, flag.name) for flag in abi.OverlayFlag if value.flags & flag)
    names = {int(one): one.name for one in abi.Transport}
    transport = cast(Transport, names.get(value.transport, str(value.transport)))
    return OverlayValue(**value._asdict() | {"flags": flags, "transport": transport})


def peer_value(value: Any) -> PeerValue:
    """What the map `peers` says (abi.peer)."""
    flags = frozenset(cast(PeerFlag, flag.name) for flag in abi.PeerFlag if value.flags & flag)
    return PeerValue(**value._asdict() | {"flags": flags})


def tunnel_value(value: Any) -> TunnelValue:
    """What the map `tunnel` says (abi.tunnel)."""
    flags = frozenset(cast(TunnelFlag, flag.name) for flag in abi.TunnelFlag if value.flags & flag)
    return TunnelValue(**value._asdict() | {"flags": flags})


def service_value(value: Any) -> ServiceValue:
    """What the map `services` says (abi.service). A choice that only another version knows is its number."""
    names = {int(one): one.name for one in abi.ServiceChoice}
    choice = cast(ServiceChoice, names.get(value.choice, str(value.choice)))
    return ServiceValue(**value._asdict() | {"choice": choice})


def slots_value(value: Any) -> SlotsValue:
    """What the map `slots` says (abi.slots), without the zeros at its end."""
    numbers = list(struct.unpack(f"={len(value.backend) // 4}I", value.backend))
    while numbers and not numbers[-1]:
        numbers.pop()
    return SlotsValue(tuple(numbers))


def backend_value(value: Any) -> BackendValue:
    """What the map `backends` says (abi.backend). A state that only another version knows is its number."""
    names = {int(one): one.name for one in abi.BackendState}
    state = cast(BackendState, names.get(value.state, str(value.state)))
    return BackendValue(**value._asdict() | {"state": state})


def device_value(value: Any) -> DeviceValue:
    """What the map `devices` says (abi.device). A kind that only another version knows is its number."""
    kinds = {int(kind): kind.name for kind in abi.DeviceKind}
    kind = cast(DeviceKind, kinds.get(value.kind, str(value.kind)))
    return DeviceValue(**value._asdict() | {"kind": kind})


def name_key(value: Any) -> NameKey:
    """A key of the map `names` (abi.name_key)."""
    return NameKey(value.scope, name_in(value.name))


def long_name_key(value: Any) -> LongNameKey:
    """A key of the map `long_names` (abi.long_name_key)."""
    return LongNameKey(value.scope, name_in(value.name))


def _in_memory(count: int, size: int) -> int:
    """Bytes of a set of records in its row: several stand there twice over."""
    return count * size * (2 if count > 1 else 1)


def name_value(value: Any) -> NameValue:
    """What the maps `names` and `long_names` say (abi.name)."""
    sets = tuple(RrsetValue(*one) for one in _unpack_all(value.sets, "rrset"))
    kept = struct.unpack(f"={len(value.kept) // 8}Q", value.kept)[: len(sets)]
    length = sum(_in_memory(one.count, one.size) for one, row in zip(sets, kept, strict=True) if not row)
    return NameValue(kept, sets, value.records[:length])


def name_set_value(value: Any) -> NameSetValue:
    """What the map `name_sets` says (abi.name_set)."""
    return NameSetValue(value.count, value.size, value.records[: _in_memory(value.count, value.size)])


def resolver_value(value: Any) -> ResolverValue:
    """What the map `resolvers` says (abi.resolver)."""
    networks = struct.unpack(f"={len(value.networks) // 4}I", value.networks)
    upstreams = tuple(UpstreamValue(*one) for one in _unpack_all(value.upstreams, "upstream"))
    used = tuple(number for number in networks if number)
    return ResolverValue(used, value.private_scope, value.egress, upstreams)
