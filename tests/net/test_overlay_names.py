# SPDX-License-Identifier: Apache-2.0
"""S17, S23: containers on the hosts of an overlay network find each other by name, answered on each host by its own
packet programs."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.net import faults, forked
from tests.net.cluster import Cluster, agents
from tests.net.etcd import hasty
from tests.net.hosts import Host, eventually, ping
from tests.net.names import NOERROR, A, Asker, Message, dig, parsed, question

NOBODY = "NXDOMAIN"
LONG = bool(os.environ.get("DATAPATH_LONG"))


@pytest.fixture(scope="module")
def counted() -> Iterator[None]:
    """Faults can be put into commands."""
    forked.in_child.append(faults.install)
    yield
    forked.in_child.remove(faults.install)


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Cluster:
    """`web` on the first host, `db` on the second, with an alias that both have; each host knows both."""
    cluster[0].ctl("network create -d overlay --attachable --ipv6 --subnet 10.7.0.0/16 --subnet fd07::/64 ov")
    cluster[0].run("web", "--network name=ov,alias=pool --hostname front")
    cluster[1].run("db", "--network name=ov,alias=pool")
    hears(cluster[0])
    return cluster


def hears(host: Host) -> None:
    """The host reads what the cluster's store says of the network: a container comes and goes."""
    host.ctl("run --rm --network ov true")


def heard(host: Host, name: str) -> None:
    """Waits until the host's agent has heard of the name. Nobody asks for it before: a name that is not known is asked
    of the machine's own servers, which a test's host need not reach."""
    with eventually() as until:
        until(lambda: name in host.ctl("names ls ov --format {{.Name}}").split())


def six(host: Host, name: str) -> str:
    (shown,) = json.loads(host.ctl(f"inspect {name}"))
    return str(shown["NetworkSettings"]["Networks"]["ov"]["GlobalIPv6Address"])


def test_s23_a_container_is_found_by_all_its_names_on_another_host(pair: Cluster) -> None:
    """Name, short id, hostname and alias, each also with the network's; both families; an address leads back."""
    for here, asker, there, name, more in (
        (pair[1], "db", pair[0], "web", ["front"]),
        (pair[0], "web", pair[1], "db", []),
    ):
        four, long = there.address(name, "ov"), six(there, name)
        ident = json.loads(there.ctl(f"inspect {name}"))[0]["Id"][:12]
        names = [f"{one}{end}" for one in (name, ident, *more) for end in ("", ".ov")]
        found = dig(here, asker, *(f"{one} {kind}" for one in names for kind in ("A", "AAAA")))
        assert [reply.data for reply in found] == [[four], [long]] * len(names)
        back = dig(here, asker, f"-x {four}", f"-x {long}", f"{name} MX", f"{name.upper()} A")
        assert [reply.data for reply in back] == [[f"{name}.ov."]] * 2 + [[], [four]]
        both = sorted((four, here.address(asker, "ov")))
        assert dig(here, asker, "pool")[0].data == both
        assert " 0% packet loss" in here.try_in(asker, ping(name, 2).replace("-q ", "")).stdout
        assert dig(here, asker, "-x 10.7.200.9")[0].status == NOBODY
        assert f"{name}.ov" in here.ctl("names ls ov --format {{.Data}}").split()
        assert here.ctl("doctor") == "No problems found."


def test_s23_names_of_other_hosts_follow_a_rename_and_the_end_and_stay_while_the_store_is_away(
    pair: Cluster,
) -> None:
    first, second = pair[0], pair[1]
    first.run("old", "--network name=ov,alias=both")
    first.run("keeps", "--network name=ov,alias=both")
    addresses = sorted(first.address(name, "ov") for name in ("old", "keeps"))
    hears(second)
    assert [one.data for one in dig(second, "db", "old", "both")] == [
        [first.address("old", "ov")],
        addresses,
    ]
    first.ctl("rename old new")
    hears(second)
    found = dig(second, "db", "new", "new.ov", "both", f"-x {first.address('new', 'ov')}")
    assert [one.data for one in found] == [*[[first.address("new", "ov")]] * 2, addresses, ["new.ov."]]
    assert not {"old", "old.ov"} & set(second.ctl("names ls ov --format {{.Name}}").split())
    gone = first.address("new", "ov")
    first.ctl("rm -f new")
    hears(second)
    found = dig(second, "db", "both", f"-x {gone}")
    assert (found[0].data, found[1].status) == ([first.address("keeps", "ov")], NOBODY)
    with pair.store_away(), hasty():
        assert dig(second, "db", "keeps")[0].data == [first.address("keeps", "ov")]
        second.ctl("upgrade")
        assert dig(second, "db", "keeps AAAA")[0].data == [six(first, "keeps")]
    for host in pair:
        assert host.ctl("doctor") == "No problems found."


def test_s23_names_of_other_hosts_come_and_go_by_the_agents_news_and_no_question_is_lost(
    pair: Cluster,
) -> None:
    """A container on the other host asks all the while, for an alias that is shared with those that come and go."""
    first, second = pair[0], pair[1]
    known, wrong, asked, done = first.address("web", "ov"), list[Message | OSError](), [0], threading.Event()

    def ask() -> None:
        with Asker(second, "db").socket() as sock:
            while not done.is_set() and not wrong:
                ident = asked[0] & 0xFFFF
                sock.send(question("front", A, ident))
                try:
                    found = parsed(sock.recv(4096))
                except OSError as error:
                    wrong.append(error)
                    break
                if (found.ident, found.code) != (ident, NOERROR) or known not in found.addresses:
                    wrong.append(found)
                asked[0] += 1

    thread = threading.Thread(target=ask)
    with agents([second]):
        thread.start()
        try:
            for number in range(3):
                name = f"comes{number}"
                first.run(name, "--network name=ov,alias=front")
                address = first.address(name, "ov")
                heard(second, name)
                assert dig(second, "db", name)[0].data == [address]
                assert dig(second, "db", "front")[0].data == sorted((known, address))
                first.ctl(f"rename {name} other{number}")
                heard(second, f"other{number}")
                assert dig(second, "db", f"other{number}")[0].data == [address]
                first.ctl(f"rm -f other{number}")
                with eventually() as until:
                    until(lambda: dig(second, "db", "front")[0].data == [known])
        finally:
            done.set()
            thread.join()
    assert not wrong and asked[0] > 100
    assert second.ctl("doctor") == "No problems found."


def test_s30_who_is_killed_while_it_hears_of_names_knows_them_after_the_next_command(
    pair: Cluster, counted: None
) -> None:
    first, second = pair[0], pair[1]
    assert second.env is not None
    first.run("n0", "--network ov")
    hears(second)
    address = first.address("n0", "ov")
    first.ctl("rename n0 n1")
    second.env[faults.VARIABLE] = "count@0"
    hears(second)
    del second.env[faults.VARIABLE]
    steps, name = faults.last().steps, 1
    every = range(1, steps + 1)
    for number in every if LONG else every[:: max(1, steps // 5)]:
        first.ctl(f"rename n{name} n{name + 1}")
        name += 1
        second.env[faults.VARIABLE] = f"kill@{number}"
        assert second.try_ctl("run --rm --network ov true").returncode in (-signal.SIGKILL, 0)
        what = f"killed at step {number} of {steps} ({faults.last().step})"
        del second.env[faults.VARIABLE]
        hears(second)
        found = dig(second, "db", f"n{name}", f"-x {address}")
        assert [one.data for one in found] == [[address], [f"n{name}.ov."]], what
        assert f"n{name - 1}" not in second.ctl("names ls ov --format {{.Name}}").split(), what
        assert second.try_ctl("doctor").returncode == 0, f"{what}: {second.try_ctl('doctor').stdout}"
    first.ctl("rm -f n" + str(name))


def test_s23_a_network_that_goes_takes_the_names_of_other_hosts_with_it(pair: Cluster) -> None:
    first, second = pair[0], pair[1]
    second.ctl("rm -f db")
    for name in ("web", "keeps"):
        first.ctl(f"rm -f {name}")
    first.ctl("network rm ov")
    assert not first.ctl("names ls --format json")
    assert first.ctl("doctor") == "No problems found."
