# SPDX-License-Identifier: Apache-2.0
"""`reconcile`, the part about the packet programs: attachments, rows of maps, pins."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.dataplane import removal
from datapath.dataplane.convert import to_abi
from datapath.dataplane.layout import SOCKET_HOOKS, TAILS, XDP_HOOK
from datapath.drivers.base import Repair, Repairing
from datapath.drivers.ebpf import flows
from datapath.drivers.ebpf.host import EbpfHost
from datapath.kernel import abi, cgroup
from datapath.model.checks import CGROUP, DETACHED, MISSING, RESOLVER, STRAY, STRAY_DEVICE, STRAY_PIN, WRONG
from datapath.model.findings import Check, Finding


def _attach(work: Repairing, finding: Finding) -> None:
    hook, ifindex = finding.about
    dataplane = work.context.dataplane
    if hook in TAILS:
        dataplane.fill_tail(hook)
        return
    if hook in SOCKET_HOOKS:
        dataplane.drop_link(hook)
        dataplane.attach_sockets()
        return
    dataplane.drop_link(f"{hook}-{ifindex}")
    if hook == XDP_HOOK:
        EbpfHost(work.context).refresh_acls(work.view())
    else:
        dataplane.attach(hook, ifindex)


def _attach_group(work: Repairing, finding: Finding) -> None:
    """To the root, if this process sees it."""
    if not cgroup.is_root(cgroup.mount_point()):
        return
    for hook in SOCKET_HOOKS:
        work.context.dataplane.drop_link(hook)
    work.context.dataplane.attach_sockets()


def _write_row(work: Repairing, finding: Finding) -> None:
    name, key, value = finding.about
    dataplane = work.context.dataplane
    rows = getattr(dataplane, name)
    match name:
        case "networks":
            dataplane.tell_network(key[0], to_abi(value))
        case "host" | "tunnel":
            rows[key[0]] = to_abi(value)
        case "devices":
            rows[key] = to_abi(value)
        case "xfrm_policies":
            rows[to_abi(key)] = to_abi(value)
        case "quotas":
            removal.open_quota(dataplane, key[0])
        case "addresses" | "local_prefixes":
            rows[key] = abi.address()
        case "names" | "long_names" | "name_sets" | "resolvers" | "subnets":
            rows[to_abi(key)] = to_abi(value)
        case "services" | "slots" | "backends":
            rows[to_abi(key)] = to_abi(value)
        case "peers" | "vteps" | "vnis" | "overlays" | "remote_addrs" | "remote_blocks":
            rows[to_abi(key)] = to_abi(value)
        case _:
            rows[key] = value


def _delete_row(work: Repairing, finding: Finding) -> None:
    name, key = finding.about
    dataplane = work.context.dataplane
    match name:
        case "networks":
            dataplane.networks[key[0]] = abi.network()
        case "tunnel":
            dataplane.tunnel[0] = abi.tunnel()
        case "quotas":
            removal.forget_endpoint(dataplane, key[0])
        case "flows" | "edges":
            flows.forget_rows(dataplane, name, key[0])
        case "xfrm_policies" | "names" | "long_names":
            getattr(dataplane, name).pop(to_abi(key), None)
        case _:  # as it was read from the map
            getattr(dataplane, name).pop(key, None)


def _lead(work: Repairing, finding: Finding) -> None:
    endpoint = work.state.endpoints[finding.about[0]]
    network, path = work.state.networks[endpoint.network_id], work.path(endpoint.sandbox_id)
    if path is not None:
        EbpfHost(work.context).lead_to_resolver(network, endpoint, path)


def _delete_device(work: Repairing, finding: Finding) -> None:
    work.context.dataplane.devices.pop(abi.device_key(finding.about[0]), None)
    work.context.links.delete(finding.about[0])


def _unpin(work: Repairing, finding: Finding) -> None:
    work.context.dataplane.drop_link(finding.about[0])


REPAIRS: Mapping[Check, Repair] = {
    DETACHED: _attach,
    RESOLVER: _lead,
    CGROUP: _attach_group,
    MISSING: _write_row,
    WRONG: _write_row,
    STRAY: _delete_row,
    STRAY_DEVICE: _delete_device,
    STRAY_PIN: _unpin,
}
