# SPDX-License-Identifier: Apache-2.0
"""S30 on networks of several hosts: a command that is killed, or that fails, at any step, requests to the cluster's
store among them, loses nothing: neither on this host nor in the store."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datapath.cluster import keys
from tests.net import faults, forked, look
from tests.net.cluster import Cluster
from tests.net.hosts import Host, pinging, reaches, sent_and_lost
from tests.net.test_faults import (
    MOST,
    Operation,
    chosen,
    exists,
    gone,
    networks,
    one,
    quiet_ends,
    steps_of,
)

EXTRA = "network create -d overlay --subnet 10.88.0.0/24 extra"


@pytest.fixture(scope="module")
def prepared(cluster: Cluster) -> Iterator[Cluster]:
    """The network `ov` with `watch` on the first host and `peer` on the second."""
    forked.in_child.extend([quiet_ends, faults.install])
    cluster[0].ctl("network create -d overlay --subnet 10.7.0.0/16 ov")
    cluster[0].ctl("network create --subnet 10.20.0.0/24 shop")
    cluster[0].run("watch", "--network ov")
    cluster[1].run("peer", "--network ov")
    cluster[0].run("t", "--network ov")
    cluster[1].ctl("network create -d overlay --subnet 10.9.0.0/16 theirs")
    yield cluster
    forked.in_child.clear()


@pytest.fixture(scope="module")
def bystander(prepared: Cluster) -> Iterator[subprocess.Popen[str]]:
    """Pings from the first host's container to the second one's: none is ever lost."""
    inside = ("nsenter", f"--net=/proc/{prepared[0].process('watch')}/ns/net")
    yield pinging(prepared[0], prepared[1].address("peer", "ov"), 71, 0.02, inside)


def no_extra(host: Host) -> None:
    host.try_ctl("network rm extra")


def extra(host: Host) -> None:
    if "extra" not in networks(host):
        host.ctl(EXTRA)


def on(network: str) -> Callable[[Host], None]:
    def prepare(host: Host) -> None:
        gone(host)
        host.ctl(f"run -d --name t --network {network} sleep 3600")

    return prepare


def apart(host: Host) -> None:
    """The host has no part in the network of the other one."""
    gone(host)
    host.try_ctl("network rm theirs")
    OTHER[0].try_ctl("network create -d overlay --subnet 10.9.0.0/16 theirs")


def named_t(host: Host) -> None:
    host.try_ctl("rm -f u")
    on("ov")(host)


OTHER: list[Any] = []  # the second host, and the cluster
OPERATIONS = {
    "network create": Operation(EXTRA, no_extra, lambda h: "extra" in networks(h)),
    "network rm": Operation("network rm extra", extra, lambda h: "extra" not in networks(h)),
    "first run": Operation("run -d --name t --network theirs sleep 3600", apart, lambda h: exists(h, "t")),
    "run": Operation("run -d --name t --network ov sleep 3600", gone, lambda h: exists(h, "t")),
    "rm -f": Operation("rm -f t", on("ov"), lambda h: not exists(h, "t")),
    "connect": Operation("network connect ov t", on("shop"), lambda h: "ov" in on_networks(h)),
    "disconnect": Operation("network disconnect ov t", on("ov"), lambda h: "ov" not in on_networks(h)),
    "rename": Operation("rename t u", named_t, lambda h: exists(h, "u")),
    "service create": Operation(
        "service create --network ov --selector app=t -p 40030:80 svc",
        lambda h: without_service(h),
        lambda h: "svc" in services(h),
        lambda h: one_service(h),
    ),
    "service rm": Operation(
        "service rm svc",
        lambda h: with_service(h),
        lambda h: "svc" not in services(h),
        lambda h: one_service(h),
    ),
    "service update": Operation(
        "service update --publish-add 40031:80 --publish-rm 40030:80 svc",
        lambda h: with_service(h),
        lambda h: "40031" in h.ctl("service ls"),
        lambda h: one_service(h),
    ),
    "service drain": Operation(
        "service drain svc t",
        lambda h: with_service(h),
        lambda h: "draining" in h.ctl("service ps svc"),
        lambda h: one_service(h),
    ),
    "service undrain": Operation(
        "service undrain svc t",
        lambda h: drained(h),
        lambda h: "draining" not in h.ctl("service ps svc"),
        lambda h: one_service(h),
    ),
    "run behind a service": Operation(
        "run -d --name t --network ov --service svc sleep 3600",
        lambda h: without_backend(h),
        lambda h: exists(h, "t"),
        lambda h: one_service(h),
    ),
    "rm -f behind a service": Operation(
        "rm -f t", lambda h: with_service(h), lambda h: not exists(h, "t"), lambda h: one_service(h)
    ),
    "cluster drain-host": Operation(
        "cluster drain-host h1", lambda h: attends(h), lambda h: drained_host(h), lambda h: attendance(h)
    ),
    "cluster drain-host --off": Operation(
        "cluster drain-host --off h1",
        lambda h: leaves(h),
        lambda h: not drained_host(h),
        lambda h: attendance(h),
    ),
}


SERVICE = "service create --network ov --selector app=t -p 40030:80 svc"
BEHIND = ["service", "ps", "svc", "--format", "{{.Container}} {{.State}}"]


def services(host: Host) -> set[str]:
    return set(host.ctl("service ls --format {{.Name}}").split())


def without_service(host: Host) -> None:
    behind(host)
    if "svc" in agreed(host):
        host.ctl("service rm svc")


def with_service(host: Host) -> None:
    if "svc" not in agreed(host):
        host.ctl(SERVICE)
    if "40030" not in host.ctl("service ls"):
        host.ctl("service update --publish-add 40030:80 --publish-rm 40031:80 svc")
    behind(host)


def drained(host: Host) -> None:
    with_service(host)
    host.ctl("service drain svc t")


def without_backend(host: Host) -> None:
    with_service(host)
    gone(host)


def behind(host: Host) -> None:
    """A container that the service's selector means, and that is not drained."""
    if host.try_ctl(BEHIND).stdout != "t up\n":
        gone(host)
        host.ctl("run -d --name t --network ov --label app=t sleep 3600")


def attends(host: Host) -> None:
    """The host is not drained, and a container of it is behind the service."""
    host.ctl("cluster drain-host --off h1")
    with_service(host)
    assert not drained_host(host)


def leaves(host: Host) -> None:
    attends(host)
    host.ctl("cluster drain-host h1")


def drained_host(host: Host) -> bool:
    """What the host knows of itself, once it has asked the store."""
    host.ctl("service update --stop-grace-period 0s svc")
    return "draining" in host.ctl("service ps svc")


def attendance(host: Host) -> None:
    """It is what the store says; and whichever that is, the host may begin things again."""
    with OTHER[1].etcd.client() as store:
        drained = bool(store.list(keys.DRAINING).entries)
    assert drained_host(host) == drained
    host.ctl("cluster drain-host --off h1")
    assert not drained_host(host)
    one_service(host)


def agreed(host: Host) -> set[str]:
    """The host's services, once it has asked the store, as its commands do: there is no agent."""
    host.ctl("run --rm --network ov true")
    return services(host)


def one_service(host: Host) -> None:
    """What the store has of services is what this host has, all or nothing; who is behind one, too."""
    known = agreed(host)
    with OTHER[1].etcd.client() as store:
        entries = store.list("services/", "servicenames/", "ingress/", "eps/").entries
    own = {key for key in entries if not key.startswith("eps/")}
    vips = {key for key, one in entries.items() if key.startswith("eps/") and '"peer"' not in one.value}
    assert (len(own), len(vips)) == ((3, 1) if "svc" in known else (0, 0)), entries
    ident = host.ctl("service ls -q --no-trunc") if known else "none"
    told = [key for key, one in entries.items() if f'"{ident}":' in one.value and key not in own]
    assert len(told) == (len(host.ctl(BEHIND).splitlines()) if known else 0), entries


def on_networks(host: Host) -> set[str]:
    return set(host.inspect("t")["NetworkSettings"]["Networks"])


def consistent(cluster: Cluster) -> None:
    """The store has this host's endpoints and no others of it, and the networks that hosts know."""
    host = cluster[0]
    ident = next(
        row.split("'")[1]
        for row in look.database(host)
        if row.startswith('INSERT INTO "peers"') and "h1" in row
    )
    with cluster.etcd.client() as store:
        entries = store.list("eps/", "networks/").entries
    theirs = {key.rpartition("/")[2] for key, one in entries.items() if f'"peer":"{ident}"' in one.value}
    own = set()
    for name in ("ov", "theirs", "extra"):
        if name in networks(host):
            members = host.network(name)["Containers"].values()
            own |= {member["IPv4Address"].partition("/")[0] for member in members}
    assert theirs == own
    named = {
        one.value.partition('"name":"')[2].partition('"')[0] for k, one in entries.items() if k[0] == "n"
    }
    assert named - {"ov", "theirs"} == networks(host) & {"extra"}


@pytest.mark.parametrize("kind", ["kill", "error"])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_s30_a_fault_at_any_step_loses_nothing_of_networks_of_several_hosts(
    prepared: Cluster, bystander: subprocess.Popen[str], name: str, kind: str
) -> None:
    host, operation = prepared[0], OPERATIONS[name]
    OTHER[:] = [prepared[1], prepared]
    steps = steps_of(host, operation)
    assert 0 < steps < MOST
    problems = []
    for number in chosen(f"overlay: {name}", kind, steps):
        try:
            one(host, operation, kind, number)
            consistent(prepared)
        except AssertionError as error:
            problems.append(f"{number}: {error}".partition("\nassert")[0])
            host.try_ctl("reconcile")
    assert not problems, "\n".join(problems)


def test_s30_nobody_lost_a_packet_on_the_way_to_another_host(
    prepared: Cluster, bystander: subprocess.Popen[str]
) -> None:
    sent, lost = sent_and_lost(bystander)
    assert sent > 0 and lost == 0
    assert reaches(prepared[0].try_, prepared[1].address("peer", "ov"))
