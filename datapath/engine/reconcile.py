# SPDX-License-Identifier: Apache-2.0
"""Mends what `doctor` finds. Only what is wrong is touched: the traffic of everything else goes on.

What a killed command left, and what is gone as a whole, recovery.py has mended when the session began.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from datapath.dataplane import connections, convert
from datapath.dataplane.layout import SOCKET_HOOKS, XDP_HOOK
from datapath.drivers.linuxbridge import check as firewall_check
from datapath.engine import check, doctor
from datapath.engine.session import Session
from datapath.errors import DatapathError, KernelError
from datapath.kernel import abi, bridges, netfilter, sysctl
from datapath.kernel.links import Links
from datapath.model import checks as kinds
from datapath.model.findings import Finding, Kind
from datapath.model.networks import IPTABLES
from datapath.model.observed import Seen

_ROUNDS = 4  # a device that is up again has lost its routes, and so on
Mend = Callable[[Session, Finding], None]


def reconcile(session: Session) -> tuple[list[Finding], list[Finding], list[Exception]]:
    """(what was found, what of it is left, what went wrong on the way)."""
    found: dict[Finding, None] = {}
    failures: list[Exception] = []
    session.reserve_ports()
    for _ in range(_ROUNDS):
        left = _look(session)
        found |= dict.fromkeys(left)
        if not any(finding.kind in MENDS for finding in left):
            break
        failures = []
        for finding in _ordered(left):
            try:
                MENDS[finding.kind](session, finding)
            except (DatapathError, ExceptionGroup) as error:
                failures.append(error)
    else:
        left = _look(session)
    return list(found), left, failures


def _look(session: Session) -> list[Finding]:
    return check.diagnose(session.state, _seen(session))


def _seen(session: Session) -> Seen:
    return doctor.look(session.settings, session.config.datapath, session.state, session.store)


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Rows that go, after all others and in the other order: no port may lead to rules that are not there. One of
    the packet filter's for each mode and IP version."""
    filters = {f.about: f for f in findings if MENDS.get(f.kind) is _write_rules and f.about}
    known = [f for f in findings if f.kind in MENDS and MENDS[f.kind] is not _write_rules]
    known += filters.values()
    strays = [finding for finding in known if finding.kind == kinds.STRAY]
    return [finding for finding in known if finding.kind != kinds.STRAY] + strays[::-1]


def _netns(session: Session, sandbox_id: str) -> str | None:
    """The namespace that a device is in; "" stands for the host's."""
    return session.sandbox_key(sandbox_id) if sandbox_id else None


def _pair(session: Session, finding: Finding) -> None:
    """A new pair in the container's namespace, in place of what is left of the old one."""
    endpoint = session.state.endpoints[finding.about[0]]
    key = session.sandbox_key(endpoint.sandbox_id)
    if key is None:
        return  # it has just ended
    network = session.state.networks[endpoint.network_id]
    session.driver(network).leave(network, endpoint)
    with Links(key) as inside:
        inside.delete(endpoint.ifname)
    session.put(session.join(replace(endpoint, host_ifindex=0), key))


def _rename(session: Session, finding: Finding) -> None:
    sandbox, ifindex, name = finding.about
    with Links(_netns(session, sandbox)) as links:
        links.rename(ifindex, name)


def _align(**wanted: str) -> Mend:
    """One property of a device: `mac`, `mtu` or `addresses`, from the finding; else it is set up."""

    def mend(session: Session, finding: Finding) -> None:
        sandbox, name, *value = finding.about
        with Links(_netns(session, sandbox)) as links:
            links.align(name, **dict(zip(wanted, value, strict=True)))

    return mend


def _route(session: Session, finding: Finding) -> None:
    endpoint = session.state.endpoints[finding.about[0]]
    key = session.sandbox_key(endpoint.sandbox_id)
    network = session.state.networks[endpoint.network_id]
    if key is not None:
        session.driver(network).set_routes(network, endpoint, key)


def _sysctl(session: Session, finding: Finding) -> None:
    sysctl.write(*finding.about)


def _attach(session: Session, finding: Finding) -> None:
    hook, ifindex = finding.about
    dataplane = session.context.dataplane
    if hook in SOCKET_HOOKS:
        dataplane.drop_link(hook)
        dataplane.attach_sockets()
        return
    dataplane.drop_link(f"{hook}-{ifindex}")
    if hook == XDP_HOOK:
        session.refresh_xdp()
    else:
        dataplane.attach(hook, ifindex)


def _write_row(session: Session, finding: Finding) -> None:
    name, key, value = finding.about
    dataplane = session.context.dataplane
    rows = getattr(dataplane, name)
    match name:
        case "networks":
            rows[key[0]] = convert.to_abi(value)
        case "devices":
            rows[key] = convert.to_abi(value)
        case "quotas":
            connections.open_quota(dataplane, key[0])
        case "addresses":
            rows[key] = abi.address()
        case _:
            rows[key] = value


def _delete_row(session: Session, finding: Finding) -> None:
    name, key = finding.about
    dataplane = session.context.dataplane
    match name:
        case "networks":
            dataplane.networks[key[0]] = abi.network()
        case "quotas":
            connections.forget_endpoint(dataplane, key[0])
        case _:
            getattr(dataplane, name).pop(key, None)


def _delete_device(session: Session, finding: Finding) -> None:
    session.context.dataplane.devices.pop(abi.device_key(finding.about[0]), None)
    session.context.links.delete(finding.about[0])


def _unpin(session: Session, finding: Finding) -> None:
    session.context.dataplane.drop_link(finding.about[0])


def _enslave(session: Session, finding: Finding) -> None:
    endpoint = session.state.endpoints[finding.about[0]]
    bridges.enslave(endpoint.host_ifname, session.state.networks[endpoint.network_id].device)


def _write_rules(session: Session, finding: Finding) -> None:
    """All that is wrong with this mode and IP version, in one transaction. Looks again: numbers of rules change."""
    mode, version = finding.about
    settled = check.Settled(session.state, _seen(session))
    text = firewall_check.compare(settled, mode, version).text
    if mode == IPTABLES:
        netfilter.iptables_restore(version, text)
    else:
        netfilter.nft(text)


def _delete_files(session: Session, finding: Finding) -> None:
    folder = session.settings.run_dir / "containers" / finding.about[0]
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise KernelError("remove", str(error.filename or folder), error.errno or 0) from error


def _make_folder(session: Session, finding: Finding) -> None:
    folder = session.folder(session.state.containers[finding.about[0]])
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    except OSError as error:
        raise KernelError("make", str(folder), error.errno or 0) from error


MENDS: dict[Kind, Mend] = {
    kinds.PAIR: _pair,
    kinds.RENAMED: _rename,
    kinds.DOWN: _align(),
    kinds.MAC: _align(mac=""),
    kinds.MTU: _align(mtu=""),
    kinds.ADDRESS: _align(addresses=""),
    kinds.ROUTE: _route,
    kinds.SYSCTL: _sysctl,
    kinds.DETACHED: _attach,
    kinds.MISSING: _write_row,
    kinds.WRONG: _write_row,
    kinds.STRAY: _delete_row,
    kinds.UNBRIDGED: _enslave,
    kinds.RULE_MISSING: _write_rules,
    kinds.RULE_STRAY: _write_rules,
    kinds.RULE_ORDER: _write_rules,
    kinds.STRAY_DEVICE: _delete_device,
    kinds.STRAY_PIN: _unpin,
    kinds.STRAY_FILES: _delete_files,
    kinds.FILES: _make_folder,
}
