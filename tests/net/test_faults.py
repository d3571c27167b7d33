# SPDX-License-Identifier: Apache-2.0
"""S30: a command that is killed, or that fails, at any step loses nothing.

Each case is one operation with a fault at its step N (see faults.py), for every N until it comes through. Then
the next command that changes something has to leave a whole host: doctor finds nothing, the operation is either
done or undone, what there is works, and nobody else noticed.

The suite runs a sample, spread by a fixed seed; DATAPATH_LONG=1 all cases, and prints how many there were.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.runtime import spawn, start
from datapath.store import schema
from tests.net import faults, forked, look, shim_faults
from tests.net.hosts import (
    HOST,
    PATIENCE,
    Host,
    ask,
    echo_server,
    eventually,
    pinging,
    reaches,
    sent_and_lost,
    store_version,
    write_as_version_1,
)

LONG = bool(os.environ.get("DATAPATH_LONG"))
SEED = 30
SHARE = {"kill": 0.025, "error": 0.0125, "end": 0.03}  # of the cases, where not all are run
MOST = 400  # steps of an operation

SHIM_STRIDE = {"kill": 13, "error": 6, "child": 3}
cases = {"kill": 0, "error": 0, "end": 0, "shim": 0}
counted: dict[str, int] = {}  # operation -> its steps


def quiet_ends() -> None:
    """A container's end is noticed by the next command: a program of its own for each would cost most of the time."""
    start.exited_command = lambda command, container: ()


def exists(host: Host, name: str) -> bool:
    return name in names(host)


def names(host: Host) -> set[str]:
    return {row.split("'")[3] for row in look.database(host) if row.startswith('INSERT INTO "containers"')}


def networks(host: Host) -> set[str]:
    return {row.split("'")[3] for row in look.database(host) if row.startswith('INSERT INTO "networks"')}


# ---- what is tried -----------------------------------------------------------------------------------------


@dataclass
class Operation:
    """`prepare` makes the state that `command` needs, wherever the case before has left it. `done` tells whether
    the operation has taken place (None: that does not show); `works` checks what has to work either way."""

    command: str
    prepare: Callable[[Host], None]
    done: Callable[[Host], bool]
    works: Callable[[Host], None] = lambda host: None
    next: str = ""  # what puts things right afterwards; "": whatever changes something
    cleanup: str = ""  # what brings the settings of before into force


def running(options: str = "", network: str = "shop") -> Callable[[Host], None]:
    """A container `t`, as it was: begun afresh if a case has changed it."""

    def prepare(host: Host) -> None:
        gone(host)
        host.ctl(f"run -d --name t --network {network} {options} sleep 3600")

    return prepare


def gone(host: Host) -> None:
    if exists(host, "t"):
        host.ctl("rm -f t")


def alive(host: Host) -> None:
    """If t is there, and runs, the host reaches it, on each of its networks."""
    if not exists(host, "t"):
        return
    found = host.inspect("t")
    if found["State"]["Running"]:
        for network in found["NetworkSettings"]["Networks"].values():
            assert reaches(host.try_, network["IPAddress"])


def ended(host: Host) -> None:
    """t's process is gone, its shim too: nobody has told."""
    running("-p 8085:80 -p 40010:80")(host)
    pid = host.process("t")
    for number in (shim_of(pid), pid):
        os.kill(number, signal.SIGKILL)
    with eventually() as until:
        until(lambda: not look.alive(pid))


def ended_for_good(host: Host) -> str:
    """The same of one that is to be removed when it ends; its id."""
    gone(host)
    ident = host.ctl("run -d --rm --name t --network shop -p 8085:80 sleep 3600")
    pid = host.process("t")
    for number in (shim_of(pid), pid):
        os.kill(number, signal.SIGKILL)
    with eventually() as until:
        until(lambda: not look.alive(pid))
    return ident


def shim_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])


def no_extra(host: Host) -> None:
    if "extra" in networks(host):
        host.ctl("network rm extra")


def extra(host: Host) -> None:
    if "extra" not in networks(host):
        host.ctl("network create --ipv6 --subnet 10.88.0.0/24 --subnet fd00:88::/64 extra")


COUNTED = "network create -o com.datapath.flows=true --subnet 10.88.0.0/24 extra"


def counted_extra(host: Host) -> None:
    """A network whose traffic is counted: what goes on there, what has ended, and what was refused; of nobody there."""
    no_extra(host)
    gone(host)
    host.ctl(COUNTED)
    host.ctl("run -d --name t --network extra sleep 3600")
    host.ctl("run --rm --network extra ping -q -c 1 t")
    host.try_in("t", "ping -q -c 1 -W 0.1 10.88.0.99")
    host.try_in("t", "ping -q -c 1 -W 1 10.88.0.1")
    host.ctl("rm -f t")
    assert {line.split()[0] for line in host.ctl("flows --format {{.Verdict}}").splitlines()} == {
        "allowed",
        "refused",
    }


def uncounted(host: Host) -> None:
    """No row is left of a network that is gone: the next one may get its number."""
    with Dataplane.find(host.bpffs / "datapath") as found:  # type: ignore[union-attr]
        known = set(found.networks.used())
        if "extra" not in networks(host):
            assert not len(found.edges) and not len(found.flows)
        for table in (found.flows, found.edges):
            assert {key.network for key in table} <= known


def published(host: Host, *ports: str) -> Callable[[Host], bool]:
    return lambda h: set(h.ctl("port ls t --format {{.Port}}").split()) == set(ports)


def in_network(name: str) -> Callable[[Host], bool]:
    return lambda host: name in host.inspect("t")["NetworkSettings"]["Networks"]


def icc_off(host: Host) -> None:
    host.configure({})
    host.ctl("_exited nobody 0")
    host.configure({"icc": False})


def damaged(host: Host) -> None:
    running("-p 8085:80,deny=198.51.100.9")(host)
    device = f"veth{host.inspect('t')['NetworkSettings']['Networks']['shop']['EndpointID'][:7]}"
    host.sh(f"ip link del {device}")
    host.sh(["sysctl", "-q", "-w", "net.ipv4.ip_local_reserved_ports="])
    (host.folder / f"run/containers/{'e' * 64}").mkdir()


LOST, NEW = "192.0.2.77", "192.0.2.78"  # addresses of the host


def moved(host: Host) -> None:
    """The host has lost an address, to which there is a connection, and has another one and a device more."""
    running("-p 8085:80/udp")(host)
    host.sh(f"ip address replace {LOST}/24 dev eth0")
    for undone in (f"ip address del {NEW}/24 dev eth0", "ip link del up9"):
        host.try_(undone)
    host.ctl(NOBODY)
    host.outside.try_(ask("udp", LOST, 8085, 0.01))
    assert LOST in host.ctl("ct ls")
    host.sh("ip link add up9 type veth peer name up9p")
    host.sh("ip address add 10.79.0.1/24 dev up9")
    host.sh("ip link set up9 up")
    host.sh(f"ip address add {NEW}/24 dev eth0")
    host.sh(f"ip address del {LOST}/24 dev eth0")


def followed(host: Host) -> None:
    """No connection to the lost address is left; whoever comes to the new one gets there."""
    alive(host)
    assert LOST not in host.ctl("ct ls")
    host.outside.try_(ask("udp", NEW, 8085, 0.01))
    assert NEW in host.ctl("ct ls")


def other_settings(host: Host) -> None:
    """Programs that are loaded with the settings of daemon.json are others."""
    host.ctl("upgrade")
    known = json.loads(host.config.read_text()).get("datapath", {}).get("timeouts", {}).get("udp", 180)
    host.configure({"datapath": {"timeouts": {"udp": known + 1}}})


def older(host: Host) -> None:
    """The database is of version 1, in which a network was `realised`."""
    no_extra(host)
    write_as_version_1(host)


def taken_on(host: Host) -> bool:
    """To this version, and of the one before there is a copy."""
    copy = host.folder / "state" / "datapath.db.v1"
    return (
        store_version(host) == schema.VERSION
        and copy.exists()
        and "realised" in copy.read_text(errors="replace")
    )


NOBODY = "_exited nobody 0"  # the smallest command that changes something, if there is something to change
PORTS = "-p 8085:80,deny=198.51.100.9 -p 40010:80"
PLAIN = "-p 8085:80 -p 127.0.0.1:40010:80 -p 40011:81/udp"
OPERATIONS = {
    "run": Operation("run -d --name t sleep 3600", gone, lambda h: exists(h, "t"), alive),
    "run -p": Operation(
        f"run -d --name t --network shop --network inner {PORTS} sleep 3600",
        gone,
        lambda h: exists(h, "t"),
        alive,
    ),
    "rm -f": Operation("rm -f t", running(PORTS), lambda h: not exists(h, "t"), alive),
    "stop": Operation("stop -t 0 t", running(PORTS), lambda h: not h.inspect("t")["State"]["Running"], alive),
    "noticing an end": Operation(NOBODY, ended, lambda h: not h.inspect("t")["State"]["Running"]),
    "noticing an end, --rm": Operation(
        NOBODY, lambda h: (ended_for_good(h), None)[1], lambda h: not exists(h, "t")
    ),
    "connect": Operation("network connect inner t", running(PORTS), in_network("inner"), alive),
    "disconnect": Operation(
        "network disconnect shop t",
        running(f"{PORTS} --network inner"),
        lambda h: "shop" not in h.inspect("t")["NetworkSettings"]["Networks"],
        alive,
    ),
    "network create": Operation(
        "network create --ipv6 --subnet 10.88.0.0/24 --subnet fd00:88::/64 extra",
        no_extra,
        lambda h: "extra" in networks(h),
    ),
    "network create, with an older database": Operation(
        "network create --subnet 10.88.0.0/24 extra", older, lambda h: "extra" in networks(h) and taken_on(h)
    ),
    "network rm": Operation("network rm extra", extra, lambda h: "extra" not in networks(h)),
    "network create, counted": Operation(
        COUNTED,
        no_extra,
        lambda h: "extra" in networks(h) and "true" in h.ctl("network inspect extra"),
        uncounted,
    ),
    "network rm, counted": Operation(
        "network rm extra", counted_extra, lambda h: "extra" not in networks(h), uncounted
    ),
    "network prune": Operation("network prune -f", extra, lambda h: "extra" not in networks(h)),
    "port add": Operation(
        "port add t 40020-40022:80-82,allow=192.0.2.0/24",
        running("-p 8085:80"),
        lambda h: "40020" in h.ctl("port ls t"),
        alive,
    ),
    "port rm": Operation("port rm t 1", running(PORTS), lambda h: "8085" not in h.ctl("port ls t"), alive),
    "port set": Operation(
        "port set t 1 allow=192.0.2.0/24",
        running(PORTS),
        lambda h: "allow=192.0.2.0/24" in h.ctl("port ls t --format json"),
        alive,
    ),
    "icc of daemon.json": Operation(NOBODY, icc_off, lambda h: True, cleanup=NOBODY),
    # What an agent does, and every other command when it begins.
    "following the host": Operation(NOBODY, moved, lambda h: True, followed),
    "upgrade": Operation(
        "upgrade",
        other_settings,
        lambda h: h.try_ctl("doctor").returncode == 0,
        next="upgrade",
        cleanup="upgrade",
    ),
    "reconcile": Operation("reconcile", damaged, lambda h: True, alive, "reconcile"),
}


def on_a_link(driver: str, network: str) -> dict[str, Operation]:
    """On a network whose members are on the link of a device of the host's, which is there already."""
    create = (
        f"network create -d {driver} --ipv6 --subnet 10.88.0.0/24 --subnet fd00:88::/64 -o parent=lower extra"
    )

    def there(host: Host) -> None:
        if "extra" not in networks(host):
            host.ctl(create)

    return {
        f"{driver}: network create": Operation(create, no_extra, lambda h: "extra" in networks(h)),
        f"{driver}: network rm": Operation("network rm extra", there, lambda h: "extra" not in networks(h)),
        f"{driver}: run": Operation(
            f"run -d --name t --network {network} sleep 3600", gone, lambda h: exists(h, "t"), alive
        ),
        f"{driver}: rm -f": Operation(
            "rm -f t", running(network=network), lambda h: not exists(h, "t"), alive
        ),
        f"{driver}: connect": Operation(
            f"network connect {network} t", running(), in_network(network), alive
        ),
        f"{driver}: disconnect": Operation(
            f"network disconnect {network} t",
            running("--network shop", network),
            lambda h: not in_network(network)(h),
            alive,
        ),
    }


ON_A_LINK = {"ipvlan": "lan", "macvlan": "mac"}
for _driver, _network in ON_A_LINK.items():
    OPERATIONS |= on_a_link(_driver, _network)


def only_place(host: Host) -> None:
    """A network for one container, which pruning takes away."""
    running()(host)
    if "only" not in networks(host):
        host.ctl(ONLY)


ONLY = "network create -d macvlan --subnet 10.62.0.0/24 -o parent=alone -o macvlan_mode=passthru only"
# The device has the parent's MAC address, which nobody knows before.
OPERATIONS["macvlan: connect to the only place"] = Operation(
    "network connect only t", only_place, in_network("only"), alive
)


SERVICE = (
    "service create --network shop --stop-grace-period 1h -p 40030:80 -p 40031:81/udp --selector app=t svc"
)


def services(host: Host) -> set[str]:
    return {row.split("'")[3] for row in look.database(host) if row.startswith('INSERT INTO "services"')}


def no_service(host: Host) -> None:
    if "svc" in services(host):
        host.ctl("service rm svc")


def without_service(then: Callable[[Host], None]) -> Callable[[Host], None]:
    def prepare(host: Host) -> None:
        no_service(host)
        then(host)

    return prepare


def with_service(then: Callable[[Host], None]) -> Callable[[Host], None]:
    """A service, begun afresh, and what is to be there besides."""

    def prepare(host: Host) -> None:
        no_service(host)
        gone(host)
        host.ctl(SERVICE)
        then(host)

    return prepare


def member(host: Host) -> None:
    """If t is there, and runs, it is behind the service, if that is there."""
    alive(host)
    if "svc" in services(host):
        running_ = exists(host, "t") and host.inspect("t")["State"]["Running"]
        assert host.ctl("service ps svc --format {{.Container}}").split() == (["t"] if running_ else [])


def drained(host: Host) -> bool:
    return "draining" in host.ctl("service ps svc")


BEHIND = running("--label app=t")
OPERATIONS |= {
    "service: create": Operation(
        SERVICE,
        without_service(BEHIND),
        lambda h: "svc" in services(h),
        member,
    ),
    "service: rm": Operation("service rm svc", with_service(BEHIND), lambda h: "svc" not in services(h)),
    "service: update": Operation(
        "service update --publish-add 40032:82 --publish-rm 40030:80 --algorithm random svc",
        with_service(BEHIND),
        lambda h: "40032" in h.ctl("service ls"),
        member,
    ),
    "service: drain": Operation("service drain svc t", with_service(BEHIND), drained, member),
    "service: undrain": Operation(
        "service undrain svc t",
        with_service(lambda h: (BEHIND(h), h.ctl("service drain svc t"))[0]),
        lambda h: not drained(h),
        member,
    ),
    "service: connect": Operation(
        "network connect --driver-opt com.datapath.service=svc shop t",
        with_service(running(network="inner")),
        in_network("shop"),
    ),
    "service: run": Operation(
        "run -d --name t --network shop --service svc sleep 3600",
        with_service(lambda h: None),
        lambda h: exists(h, "t"),
        member,
    ),
    "service: rm -f": Operation("rm -f t", with_service(BEHIND), lambda h: not exists(h, "t"), member),
    "service: disconnect": Operation(
        "network disconnect shop t",
        with_service(running("--label app=t --network inner")),
        lambda h: "shop" not in h.inspect("t")["NetworkSettings"]["Networks"],
    ),
}


APPLY, NO_POLICIES = (
    f"policy apply --prune -f {Path(__file__).with_name(name)}"
    for name in ("policies.yaml", "no_policies.yaml")
)


def policies(host: Host) -> set[str]:
    return {row.split("'")[3] for row in look.database(host) if row.startswith('INSERT INTO "policies"')}


def judged(host: Host) -> None:
    """What the programs do with t's packets is what the policies of the store say, whether there are any or not."""
    alive(host)
    if exists(host, "t") and host.inspect("t")["State"]["Running"]:
        for words in ("host t tcp 80", "192.0.2.2 t tcp 80", "t 169.254.169.254 tcp 80"):
            assert host.try_ctl(f"why {words}").returncode == 0


def with_policies(command: str, then: Callable[[Host], None]) -> Callable[[Host], None]:
    def prepare(host: Host) -> None:
        host.ctl(command)
        then(host)

    return prepare


OPERATIONS |= {
    "policy: apply": Operation(
        APPLY,
        with_policies(NO_POLICIES, running()),
        lambda h: policies(h) == {"p", "q"},
        judged,
        cleanup=NO_POLICIES,
    ),
    "policy: rm": Operation(
        "policy rm q",
        with_policies(APPLY, running()),
        lambda h: policies(h) == {"p"},
        judged,
        cleanup=NO_POLICIES,
    ),
    "policy: run": Operation(
        "run -d --name t --network shop -p 8085:80 sleep 3600",
        with_policies(APPLY, gone),
        lambda h: exists(h, "t"),
        judged,
        cleanup=NO_POLICIES,
    ),
    "policy: rm -f": Operation(
        "rm -f t",
        with_policies(APPLY, running("-p 8085:80")),
        lambda h: not exists(h, "t"),
        judged,
        cleanup=NO_POLICIES,
    ),
}


def linuxbridge(network: str, mode: str) -> dict[str, Operation]:
    """The same on a network with a Linux bridge and packet filter rules, which is there already; so that what goes
    with it is not about the last of its kind. `extra` is."""
    create = (
        f"network create -o com.datapath.mode={mode} --ipv6 --subnet 10.88.0.0/24 --subnet fd00:88::/64 extra"
    )

    def there(host: Host) -> None:
        if "extra" not in networks(host):
            host.ctl(create)

    on = running(PLAIN, network)
    return {
        f"{mode}: run -p": Operation(
            f"run -d --name t --network {network} {PLAIN} sleep 3600", gone, lambda h: exists(h, "t"), alive
        ),
        f"{mode}: rm -f": Operation("rm -f t", on, lambda h: not exists(h, "t"), alive),
        f"{mode}: connect": Operation(
            f"network connect --gw-priority 2 {network} t", running(PLAIN), in_network(network), alive
        ),
        f"{mode}: disconnect": Operation(
            f"network disconnect {network} t",
            running(f"{PLAIN} --network shop", network),
            lambda h: not in_network(network)(h),
            alive,
        ),
        f"{mode}: port add": Operation(
            "port add t 40020-40022:80-82", on, lambda h: "40020" in h.ctl("port ls t"), alive
        ),
        f"{mode}: port rm": Operation("port rm t 1", on, lambda h: "8085" not in h.ctl("port ls t"), alive),
        f"{mode}: network create": Operation(create, no_extra, lambda h: "extra" in networks(h)),
        f"{mode}: network rm": Operation("network rm extra", there, lambda h: "extra" not in networks(h)),
    }


LINUXBRIDGE = {"iptables": "olda", "nftables": "oldb"}
# Of these networks where not everything is run; the others cost as much and show little more.
SAMPLE = {("iptables: disconnect", "kill"), ("nftables: run -p", "kill"), ("iptables: network rm", "error")}
SAMPLE |= {(f"ipvlan: {what}", "kill") for what in ("network create", "network rm", "run", "rm -f")}
SAMPLE |= {
    (f"service: {what}", "kill") for what in ("create", "rm", "update", "drain", "connect", "run", "rm -f")
}
SAMPLE |= {("service: update", "error"), ("service: run", "error")}
SAMPLE |= {(f"policy: {what}", "kill") for what in ("apply", "rm", "run", "rm -f")}
SAMPLE |= {(f"policy: {what}", "error") for what in ("apply", "run")}
SAMPLE |= {(f"macvlan: {what}", "kill") for what in ("network rm", "run", "connect to the only place")}
for _mode, _network in LINUXBRIDGE.items():
    OPERATIONS |= linuxbridge(_network, _mode)
# Killed at more steps also in the sample.
OFTEN = {"following the host": 0.1, "run -p": 0.1, "rm -f": 0.05, "disconnect": 0.05, "network create": 0.05}
OFTEN["network rm, counted"] = 0.5
OFTEN |= {"policy: apply": 0.2, "policy: rm": 0.2}
OFTEN["network create, with an older database"] = 0.2
# Each of their steps has all programs verified anew.
OFTEN |= {"upgrade": 0.01, "first": 0.015, "down": 0.015}


# ---- the host -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    forked.in_child.extend([quiet_ends, faults.install])
    yield
    forked.in_child.clear()


@pytest.fixture(scope="module")
def prepared(quiet: None, shared_host: Host) -> Iterator[Host]:
    host = look.settled(shared_host)
    host.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
    host.ctl("network create --internal --subnet 10.30.0.0/24 inner")
    host.run("watch", "--network shop -p 8081:80", echo_server("tcp", 80))
    host.run("other", "--network inner")
    host.run("plain")
    for number, (mode, name) in enumerate(LINUXBRIDGE.items()):
        host.ctl(f"network create -o com.datapath.mode={mode} --ipv6 --subnet 10.4{number}.0.0/24 {name}")
        host.run(f"of-{name}", f"--network {name}")
    for name in ("lower", "below", "under", "alone"):  # parents of ipvlan and macvlan networks
        host.sh(f"ip link add {name} type veth peer name {name}-far")
        host.sh(f"ip link set {name} up")
    host.sh("ip address add 10.60.0.9/24 dev below")
    host.ctl(
        "network create -d ipvlan --ipv6 --subnet 10.60.0.0/24 --subnet fd00:60::/64 -o parent=below lan"
    )
    host.run("of-lan", "--network lan")
    without = "-o com.docker.network.bridge.enable_icc=false"
    host.ctl(f"network create -d macvlan --subnet 10.61.0.0/24 -o parent=under {without} mac")
    host.run("of-mac", "--network mac")
    yield host
    if LONG:
        print(f"\ncases: {cases}")


@pytest.fixture(scope="module")
def bystander(prepared: Host) -> Iterator[subprocess.Popen[str]]:
    """Pings from outside the namespace to a container that no case is about: none is ever lost."""
    yield pinging(prepared, prepared.address("watch", "shop"), 71, 0.02)


def fault(host: Host, command: str, kind: str, number: int | str) -> subprocess.CompletedProcess[str]:
    assert host.env is not None
    host.env[faults.VARIABLE] = f"{kind}@{number}"
    try:
        return host.try_ctl(command)
    finally:
        del host.env[faults.VARIABLE]


def steps_of(host: Host, operation: Operation) -> int:
    operation.prepare(host)
    done = fault(host, operation.command, "count", 0)
    assert done.returncode == 0, done.stderr
    steps = faults.last().steps
    assert operation.done(host)
    return steps


def tried() -> list[tuple[str, str]]:
    every = [(name, kind) for name in OPERATIONS for kind in ("kill", "error")]
    return [(name, kind) for name, kind in every if LONG or ": " not in name or (name, kind) in SAMPLE]


def chosen(name: str, kind: str, steps: int) -> list[int]:
    every = range(1, steps + 1)
    if LONG:
        return list(every)
    share = OFTEN.get(name, SHARE[kind]) if kind == "kill" else SHARE[kind]
    wanted = max(1, round(steps * share))
    return sorted(random.Random(f"{SEED} {name} {kind}").sample(every, min(wanted, steps)))


def whole(host: Host, what: str, command: str) -> None:
    """The next command has put everything right."""
    said = host.try_ctl(command or NOBODY)
    assert said.returncode == 0, f"{what}: the next command: {said.stderr}"
    found = host.try_ctl("doctor")
    assert found.returncode == 0, f"{what}: {found.stdout}{found.stderr}\nbefore: {said.stderr}"
    assert not unknown(host), f"{what}: a process of a container that nobody knows"


def unknown(host: Host) -> set[str]:
    """Containers whose process lives, and of which there is no row: told by the log that they write."""
    logs = f"{host.folder}/run/containers/"
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                target = os.readlink(entry / "fd/1")
                if target.startswith(logs):
                    found.add(target.removeprefix(logs).partition("/")[0])
    text = "\n".join(look.database(host))
    return {ident for ident in found if ident not in text}


def test_s30_a_container_whose_last_row_cannot_be_written_does_not_run_on(prepared: Host) -> None:
    operation = OPERATIONS["run"]
    steps = steps_of(prepared, operation)
    for number in range(steps - 3, steps + 1):
        one(prepared, operation, "error", number)


def test_s30_a_device_that_has_its_parents_mac_address_is_taken_out_of_the_sandbox_again(
    prepared: Host,
) -> None:
    """Killed when it was made, and its address, by which it is known for ours, not yet written down."""
    operation = OPERATIONS["macvlan: connect to the only place"]
    operation.prepare(prepared)
    killed = fault(prepared, operation.command, "kill", "after:pyroute2 link add")
    assert killed.returncode == -signal.SIGKILL
    assert "macvlan" in prepared.in_("t", "ip -d link")
    whole(prepared, operation.command, "")
    assert "macvlan" not in prepared.in_("t", "ip -d link")


def test_s30_the_names_of_a_container_go_though_its_removal_was_cut_short(prepared: Host) -> None:
    """Killed when its row says that it goes: what its endpoint is called is in that alone."""
    ident = ended_for_good(prepared)
    killed = fault(prepared, NOBODY, "kill", f"after:{ident}")
    assert killed.returncode == -signal.SIGKILL
    whole(prepared, NOBODY, "")
    assert not exists(prepared, "t")


@pytest.mark.parametrize(("name", "kind"), tried())
def test_s30_a_fault_at_any_step_loses_nothing(
    prepared: Host, bystander: subprocess.Popen[str], name: str, kind: str
) -> None:
    operation = OPERATIONS[name]
    if name not in counted:
        counted[name] = steps_of(prepared, operation)
    steps = counted[name]
    assert 0 < steps < MOST
    problems = []
    for number in chosen(name, kind, steps):
        try:
            one(prepared, operation, kind, number)
        except AssertionError as error:
            problems.append(str(error).partition("\nassert")[0])
            prepared.try_ctl("reconcile")
        cases[kind] += 1
    if operation.cleanup:
        prepared.configure({})
        prepared.ctl(operation.cleanup)
    assert not problems, "\n".join(problems)


def one(host: Host, operation: Operation, kind: str, number: int) -> None:
    operation.prepare(host)
    ended = fault(host, operation.command, kind, number)
    what = f"{operation.command}, {kind} at step {number} ({faults.last().step})"
    if kind == "kill" and faults.last().step:
        assert ended.returncode == -signal.SIGKILL
    assert "internal error" not in ended.stderr and "Traceback" not in ended.stderr, f"{what}: {ended.stderr}"
    whole(host, what, operation.next)
    if kind == "error" and ended.returncode == 0:
        assert operation.done(host), f"{what}: it said that it was done"
    try:
        operation.works(host)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


# ---- the container's own processes --------------------------------------------------------------------------

ENDING = (
    "connect",
    "disconnect",
    "port add",
    "port rm",
    "stop",
    "rm -f",
    "iptables: connect",
    "nftables: disconnect",
)


@pytest.mark.parametrize("name", ENDING if LONG else ENDING[:1])
def test_s30_a_container_that_ends_in_the_middle_of_a_command_loses_nothing(
    prepared: Host, name: str
) -> None:
    """Its process, and first its shim, so that nobody tells."""
    operation = OPERATIONS[name]
    if name not in counted:
        counted[name] = steps_of(prepared, operation)
    problems = []
    for number in chosen(name, "end", counted[name]):
        operation.prepare(prepared)
        pid = prepared.process("t")
        assert prepared.env is not None
        prepared.env[faults.VICTIMS] = f"{shim_of(pid)} {pid}"
        done = fault(prepared, operation.command, "end", number)
        del prepared.env[faults.VICTIMS]
        what = f"{operation.command}, the container's end at step {number} ({faults.last().step})"
        try:
            assert "internal error" not in done.stderr and "Traceback" not in done.stderr, (
                f"{what}: {done.stderr}"
            )
            whole(prepared, what, "")
            assert not look.alive(pid) and not (
                exists(prepared, "t") and prepared.inspect("t")["State"]["Running"]
            ), what
            gone(prepared)
        except AssertionError as error:
            problems.append(str(error).partition("\nassert")[0])
            prepared.try_ctl("reconcile")
        cases["end"] += 1
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("kind", ["kill", "error", "child"])
def test_s30_a_shim_that_is_killed_or_fails_at_any_step_leaves_nothing(
    prepared: Host, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From its first call until the container has ended. `child`: the container's process, before it is the
    program."""
    gone(prepared)
    count = prepared.folder / "shim-steps"
    monkeypatch.setattr(start, "exited_command", lambda command, container: ("/bin/true",))
    monkeypatch.setattr(spawn, "_ABORT_TIMEOUT", PATIENCE)
    number, problems, last = 0, [], ""
    while number < MOST:
        number = number + 1 if LONG else number + SHIM_STRIDE[kind]
        count.unlink(missing_ok=True)
        monkeypatch.setattr(spawn, "_BOOT", shim_faults.boot(kind, number, str(count)))
        before = time.monotonic()
        begun = prepared.try_ctl("run -d --name t -p 8085:80 sleep 3600")
        took = time.monotonic() - before
        if begun.returncode == 0:
            pid = prepared.process("t")
            assert prepared.ctl(["ps", "--format", "{{.Names}} {{.State}}"]).count("t running") == look.alive(
                pid
            )
            prepared.ctl("stop -t 0 t")
        with eventually() as until:
            until(lambda: not look.mentioning(str(count)))
        steps, last = int(count.read_text().split()[0]), count.read_text().split()[1]
        if steps < number:
            break
        what = f"{kind} at step {number} of the shim ({last})"
        try:
            # Else it has waited for another process to end, and would have killed it: whoever inherited the child.
            assert took < PATIENCE, f"{what}: {took} seconds"
            whole(prepared, what, "")
            if exists(prepared, "t"):
                assert "t exited" in prepared.ctl(["ps", "-a", "--format", "{{.Names}} {{.State}}"]), what
                prepared.ctl("rm -f t")
            whole(prepared, what, "")
        except AssertionError as error:
            problems.append(str(error).partition("\nassert")[0])
            prepared.try_ctl("rm -f t")
            prepared.try_ctl("reconcile")
        cases["shim"] += 1
    gone(prepared)
    assert number > 1 and not problems, "\n".join(problems)


@pytest.mark.parametrize("kind", ["kill", "error"])
def test_s30_programs_that_were_loaded_in_part_are_no_obstacle(quiet: None, host: Host, kind: str) -> None:
    """The first container of a host: with a fault while everything is made that it needs."""
    first = Operation(f"run -d --name t {PORTS} sleep 3600", lambda h: None, lambda h: exists(h, "t"), alive)
    steps = steps_of(host, first)
    for number in chosen("first", kind, steps):
        host.ctl("down")
        one(host, first, kind, number)
        host.ctl("reconcile")
        gone(host)
        host.run("t", "-p 8081:80", echo_server("tcp", 80))
        assert reaches(host.try_, host.address("t"))
        cases[kind] += 1


@pytest.mark.parametrize("kind", ["kill", "error"])
def test_s30_s31_a_down_that_failed_is_completed_by_the_next(quiet: None, host: Host, kind: str) -> None:
    before = left(host)

    def populate(host: Host) -> None:
        host.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
        host.ctl(f"run -d --name t --network shop {PORTS} sleep 3600")
        host.ctl("run -d --name bare --network none sleep 3600")

    down = Operation("down", populate, lambda h: True)
    steps = steps_of(host, down)
    assert left(host) == before
    last = range(steps - 3, steps + 1) if LONG else (steps - 1,)  # each makes all anew
    for number in {*chosen("down", kind, steps), *last}:
        populate(host)
        processes = [host.process(name) for name in ("t", "bare")]
        ended = fault(host, "down", kind, number)
        what = f"down, {kind} at step {number} ({faults.last().step})"
        assert "internal error" not in ended.stderr, f"{what}: {ended.stderr}"
        there = number % 2 and (host.folder / "state" / "datapath.db").exists()
        if there and any(row.startswith('INSERT INTO "endpoints"') for row in look.database(host)):
            whole(host, what, "")  # another command completes what was begun
        host.ctl("down")
        assert left(host) == before, what
        assert not any(look.alive(pid) for pid in processes), what
        cases[kind] += 1


def left(host: Host) -> tuple[object, ...]:
    """What `down` has to take away."""
    reserved = host.sh("cat /proc/sys/net/ipv4/ip_local_reserved_ports")
    files = {str(path) for path in host.folder.rglob("*") if host.bpffs not in path.parents}
    return set(look.devices(host.sh)), look.pins(host), files, reserved


def test_s30_nobody_else_lost_a_packet_meanwhile(prepared: Host, bystander: subprocess.Popen[str]) -> None:
    sent, lost = sent_and_lost(bystander)
    assert sent > 0 and lost == 0
    assert prepared.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
