# SPDX-License-Identifier: Apache-2.0
"""Mistakes that only the host can tell, with their whole line; warnings; and commands that look and leave no trace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.net import look
from tests.net.hosts import DATAPATHCTL, Host
from tests.net.test_doctor import NOT_CLEAN

NO_IMAGES = "no such program on this host (there are no images; --rootfs DIR is another root"
STATIC = (
    "user specified IP address is supported only when connecting to networks with user configured subnets"
)

ROWS: list[tuple[str, int, str]] = [
    ("run alpine sh", 127, f"cannot run alpine: {NO_IMAGES})"),
    ("run nginx:1.25", 127, f"cannot run nginx:1.25: {NO_IMAGES})"),
    ("run docker.io/library/redis", 127, f"cannot run docker.io/library/redis: {NO_IMAGES})"),
    ("run web", 127, f"cannot run web: {NO_IMAGES})"),
    ("run -p 8080 80 true", 127, f"cannot run 80: {NO_IMAGES}; did you mean -p 8080:80?)"),
    ("run --rootfs /proc/fs sh", 125, ""),
    ("run /etc/hostname", 126, "cannot run /etc/hostname: Permission denied"),
    ("run -p 80:80:80:80 true", 125, 'invalid port "80:80:80:80": expected [[IP:]HOSTPORT:]CONTAINERPORT[/tcp|/udp]'),
    ("run -p abc true", 125, 'invalid containerPort "abc" in "abc": expected 1 to 65535'),
    ("run -p 80:0 true", 125, 'invalid containerPort "0" in "80:0": expected 1 to 65535'),
    ("run -p 70000:80 true", 125, 'invalid hostPort "70000" in "70000:80": expected 1 to 65535'),
    (
        "run -p 8080/tcp:80 true",
        125,
        'invalid hostPort "8080/tcp" in "8080/tcp:80": the protocol comes last, as in 8080:80/tcp',
    ),
    ("run -p x:8090:80 true", 125, 'invalid IP address "x" in port "x:8090:80": expected '
     "[[IP:]HOSTPORT:]CONTAINERPORT[/tcp|/udp]"),
    ("run -p 10.1.1.1:8090:80 true", 125, "cannot publish 10.1.1.1:8090:80/tcp: 10.1.1.1 is no address of this host"),
    ("run -p 8090:80,allow=any true", 125, 'invalid allow prefix "any": expected an address, or ADDRESS/LENGTH'),
    ("run -p 8090:80,allow=10.0.0.1/8 true", 125, "invalid allow prefix 10.0.0.1/8: it should be 10.0.0.0/8"),
    ("run -p 8081:80 true", 125, 'Bind for 0.0.0.0:8081 failed: port is already allocated (by container "web")'),
    ("run --network shpo true", 125, 'network shpo not found; did you mean "shop"?'),
    ("run --network plainn true", 125, 'network plainn not found; did you mean "plain"?'),
    ("run --network other true", 125, "network other not found"),
    ("run --name web true", 125, ""),
    ("exec wbe true", 125, 'No such container: wbe; did you mean "web"?'),
    (
        "web --listen 0.0.0.0:8717",
        2,
        '--listen "0.0.0.0:8717": others reach that address, and the page is for this host alone. From elsewhere: '
        "ssh -L 8717:127.0.0.1:8717, and listen at 127.0.0.1:8717",
    ),
    ("web --listen 127.0.0.1:0", 2, 'invalid --listen "127.0.0.1:0": expected ADDRESS:PORT or unix:PATH'),
    ("web --listen ::1:80", 2, 'invalid --listen "::1:80": an IPv6 address needs brackets, as in [::1]:80'),
    ("web --listen unix:page.sock", 2, 'invalid --listen "unix:page.sock": the path of a socket is absolute'),
    ("why wbe web tcp 80", 3, 'No such container: wbe; did you mean "web"?'),
    ("why web 203.0.113.5 tcp", 2, "tcp has ports: which one?"),
    ("why web :80 --if nothing.yaml", 1, "No such file or directory: nothing.yaml"),
    ("stop wbe", 3, 'No such container: wbe; did you mean "web"?'),
    ("rm nothing", 3, "No such container: nothing"),
    ("start nothing", 3, "No such container: nothing"),
    ("logs nothing", 3, "No such container: nothing"),
    (
        "network create --subnet 10.0.0.0 x",
        2,
        'invalid subnet "10.0.0.0": invalid CIDR block notation: expected ADDRESS/LENGTH, as in 10.0.0.0/16',
    ),
    (
        "network create -d foo x",
        2,
        'network driver "foo" does not exist: there is bridge, overlay, macvlan, ipvlan; host and null are made once; '
        "and no plugin of that name in /run/docker/plugins, /etc/docker/plugins, /usr/lib/docker/plugins",
    ),
    (
        "network create --ipam-driver foo x",
        2,
        'IPAM driver "foo" does not exist: there is default; '
        "and no plugin of that name in /run/docker/plugins, /etc/docker/plugins, /usr/lib/docker/plugins",
    ),
    (
        "network create --ipam-driver null x",
        2,
        "IPAM driver null gives no addresses: a bridge network needs some",
    ),
    ("network create --ipam-opt a=b x", 2, 'option "a" of IPAM driver default is unknown'),
    (
        "network create -d overlay x",
        2,
        'network driver overlay needs a cluster store: set "cluster-store" in daemon.json, as in etcd://HOST:PORT',
    ),
    ("network create bridge", 4, "operation is not permitted on predefined bridge network"),
    ("network rm shpo", 3, 'network shpo not found; did you mean "shop"?'),
    ("network connect --ip 10.9.9.9 plain web", 2, f"{STATIC}: plain has none (create it with --subnet)"),
    ("network connect shop nothing", 3, "No such container: nothing"),
    ("network prune", 1, "network prune: nobody can be asked here: -f does not ask"),
    ("port add web 8082", 0, ""),
    ("port rm web 9", 3, "container web has no port mapping number 9: `port ls web` shows the numbers"),
    (
        "port set web 8081 allow=10.0.0.0/8",
        3,
        'container web has no port mapping number 8081: name it as "8081:80/tcp", or 1 (port ls web)',
    ),
    ("port rm web 8099:80", 3, 'container web has no port mapping "8099:80"'),
    ("port web 99", 3, "No public port '99/tcp' published for web"),
    ("port web x", 2, 'invalid port "x": expected PORT[/tcp or /udp]'),
    ("ct ls --container wbe", 3, 'No such container: wbe; did you mean "web"?'),
    ("trace latency wbe", 3, 'No such container: wbe; did you mean "web"?'),
]  # fmt: skip
ROWS = [row for row in ROWS if row[2]]


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    shared_host.ctl("network create --subnet 10.5.0.0/24 shop")
    shared_host.ctl("network create plain")
    shared_host.ctl("run true")  # the default network is there, too
    shared_host.run("web", "--network shop -p 8081:80")
    return shared_host


@pytest.mark.parametrize(("typed", "code", "line"), ROWS, ids=[row[0] for row in ROWS])
def test_a_mistake_gets_this_line(prepared: Host, typed: str, code: int, line: str) -> None:
    before = look.database(prepared)
    done = prepared.try_ctl(typed)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"datapathctl: {line}\n")
    assert look.database(prepared) == before


@pytest.mark.parametrize(
    ("typed", "warnings"),
    [
        (
            "run -p 8090:80,allow=10.0.0.0 true",
            ["allow=10.0.0.0 is that one address; the network is 10.0.0.0/8"],
        ),
        (
            "run -p 8090:80,allow=192.168.1.0,deny=fd00:1:: true",
            [
                "allow=192.168.1.0 is that one address; the network is 192.168.1.0/24",
                "deny=fd00:1:: is that one address; the network is fd00:1::/32",
            ],
        ),
        ("run -p 8090:80,allow=10.0.0.0/32,deny=10.0.0.1 true", []),
        (
            "port set web 1 allow=172.16.0.0",
            ["allow=172.16.0.0 is that one address; the network is 172.16.0.0/16"],
        ),
        ("port set web 1", []),
    ],
)
def test_a_network_without_its_length_is_warned_of(prepared: Host, typed: str, warnings: list[str]) -> None:
    done = prepared.try_ctl(typed)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"WARNING: {line}" for line in warnings]


def test_a_server_that_has_an_images_name_is_the_hosts(emptied: Host) -> None:
    """`run nginx` would write into the host's files; with --rootfs it is what is there."""
    host = emptied
    folder = host.folder / "programs"
    folder.mkdir()
    (folder / "redis").write_text("#!/bin/sh\necho served\n")
    (folder / "redis").chmod(0o755)
    host.sh(["mount", "--bind", str(folder), "/usr/local/sbin"])
    try:
        done = host.try_ctl("run redis")
        assert (done.stdout, done.returncode) == ("served\n", 0)
        assert (
            done.stderr
            == "WARNING: redis is this host's program, on this host's files: there are no images\n"
        )
    finally:
        host.sh("umount /usr/local/sbin")


def test_a_port_that_leads_nowhere_is_shown_so(emptied: Host) -> None:
    host = emptied
    host.ctl("network create shop")
    host.run("web", "--network shop -p 8081:80 -p 9000-9001:90-91/udp")
    assert host.ctl("port web").splitlines()[0] == "80/tcp -> 0.0.0.0:8081"
    assert host.ctl("port web 91/udp") == "0.0.0.0:9001"
    assert "STATE" not in host.ctl("port ls web")
    host.ctl("network disconnect shop web")
    head, *lines = host.ctl("port ls web").splitlines()
    assert head.endswith("STATE") and all(line.endswith("inactive (on no network)") for line in lines)
    assert host.ctl("port web") == ""
    assert "->" not in host.ctl("ps")
    host.ctl("network connect shop web")
    assert [row["State"] for row in map(json.loads, host.ctl("port ls --json").splitlines())] == [
        "active"
    ] * 2
    assert "0.0.0.0:8081->80/tcp" in host.ctl("ps")


def test_several_ports_at_once(emptied: Host) -> None:
    host = emptied
    host.run("web", "-p 8081:80")
    assert host.ctl("port add web 8082:82 8083:83").splitlines() == ["8082:82/tcp", "8083:83/tcp"]
    done = host.try_ctl("port add web 8084:84 8081:80 8085:85")
    assert (done.returncode, done.stdout.splitlines()) == (4, ["8084:84/tcp", "8085:85/tcp"])
    assert host.ctl("port rm web 1 3 8082:82").splitlines() == ["8083:83/tcp", "8081:80/tcp", "8082:82/tcp"]
    assert host.ctl("port ls web --format {{.HostPort}}").split() == ["8084", "8085"]


LOOKS = (
    *("ps", "ps -a", "network ls", "network inspect bridge", "inspect host", "port ls", "ct ls", "ct stats"),
    *(
        "stats",
        "stats --format prometheus",
        "metrics",
        "top --once -d 0.01",
        "top --once -d 0.01",
        "stats --reasons",
        "doctor",
        "version",
        "help",
        "ct flush",
    ),
    *(
        "stop nothing",
        "rm nothing",
        "start nothing",
        "rename nothing x",
        "network rm nothing",
        "logs nothing",
    ),
    *("network prune -f", "exec nothing true", "reconcile", "upgrade", "down"),
)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which nothing has been made, and nothing will be."""
    made = Host(tmp_path_factory.mktemp("untouched"))
    yield made
    made.close()


@pytest.mark.parametrize("typed", LOOKS)
def test_what_looks_or_is_refused_makes_no_state(untouched: Host, typed: str) -> None:
    before = sorted(untouched.folder.rglob("*"))
    untouched.try_ctl(typed)
    assert sorted(untouched.folder.rglob("*")) == before


def test_nothing_is_there_after_down_until_something_is_made(host: Host) -> None:
    host.run("web")
    host.ctl("down")
    assert not (host.folder / "state").exists()
    assert host.ctl("network ls --format {{.Name}}").split() == ["bridge", "host", "none"]
    assert host.ctl("network inspect -f {{.Driver}} none") == "null"
    assert not (host.folder / "state").exists()
    assert host.try_ctl("stats").stderr == "No packet programs are loaded: no network has been used yet.\n"


def test_one_who_is_not_root_is_told_so_in_one_sentence(emptied: Host) -> None:
    host = emptied
    host.run("web")
    outsider = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", DATAPATHCTL]
    for typed in ("ps", "network ls", "stats", "run true", "doctor"):
        done = host.try_([*outsider, *typed.split()])
        assert done.stderr == "datapathctl: needs root: run it with sudo\n", typed


def test_a_configuration_that_is_wrong_is_to_be_corrected(host: Host) -> None:
    host.config.write_text('{"log-driver": "json-file", "registry-mirrors": []}')
    done = host.try_ctl("doctor --json")
    (row,) = map(json.loads, done.stdout.splitlines())
    assert done.returncode == NOT_CLEAN
    assert (row["Check"], row["Subject"], row["Repair"]) == (
        "configuration",
        str(host.config),
        "correct that file",
    )
    said = (
        "the following directives don't match any configuration option: "
        '"log-driver", "registry-mirrors": there are bip, '
    )
    assert row["Detail"].startswith(said) and row["Detail"].endswith("ipv6, log-opts, mtu")
    assert (
        host.refused("network create x") == f"datapathctl: configuration file {host.config}: {row['Detail']}"
    )


def test_json_has_numbers(emptied: Host) -> None:
    """A string is greater than every number for jq."""
    host = emptied
    host.run("web", "-p 8081:80")
    for typed, keys in (
        ("stats --all --json", {"Packets", "Bytes", "Used", "Max", "Percent"}),
        ("port ls --json", {"Number", "HostPort", "ContainerPort", "Count"}),
        ("ct stats --json", {"Packets", "Used", "Connections", "MaxConnections", "Openings"}),
    ):
        rows = [json.loads(line) for line in host.ctl(typed).splitlines()]
        found = {key: row[key] for row in rows for key in keys & row.keys()}
        assert found.keys() == keys and not any(isinstance(value, str) for value in found.values())


def test_a_wide_table_is_cut_to_the_terminal(emptied: Host) -> None:
    host = emptied
    host.run("web", " ".join(f"-p {port}:{port}" for port in range(8000, 8040)))
    whole = host.ctl("ps")
    assert max(map(len, whole.splitlines())) > 500, "a pipe gets all of it"
    shown = host.sh(
        ["script", "-qec", f"stty cols 110; {DATAPATHCTL} ps; {DATAPATHCTL} ps --no-trunc", "/dev/null"]
    )
    lines = plain(shown)
    assert max(map(len, lines[:2])) <= 110 and "…   web" in lines[1]
    assert len(lines[3]) > 500


def plain(shown: str) -> list[str]:
    """The lines of a terminal, none of them bold."""
    return re.sub(r"\x1b\[\d*m", "", shown).replace("\r", "").splitlines()


def test_a_long_acl_is_cut_to_the_terminal(emptied: Host) -> None:
    host = emptied
    acl = ",".join(f"deny=10.{number}.0.0/16" for number in range(30))
    host.run("web", f"-p 8080:80,{acl}")
    typed = f"{DATAPATHCTL} port ls; {DATAPATHCTL} port ls --no-trunc"
    lines = plain(host.sh(["script", "-qec", f"stty cols 100; {typed}", "/dev/null"]))
    assert len(lines) == 4 and len(lines[1]) == 100 and lines[1].endswith("…")
    assert lines[3].endswith(acl) and host.ctl("port ls").endswith(acl)


def test_a_dry_run_lists_what_would_go_and_changes_nothing(host: Host) -> None:
    assert host.ctl("down --dry-run") == "There is nothing to remove."
    assert host.ctl("network prune --dry-run") == ""
    host.ctl("network create red")
    host.ctl("network create used")
    host.run("web", "--network used")
    before = everything(host)
    assert host.ctl("network prune --dry-run") == "red"
    assert host.ctl("network prune --dry-run --filter label=x") == ""
    assert host.refused("network prune --dry-run --filter colour=red").startswith(
        "datapathctl: invalid filter"
    )
    assert host.ctl("down --dry-run").splitlines() == [
        "container web (running)",
        "network red",
        "network used",
        f"packet programs, their maps and links: {host.bpffs / 'datapath'}",
        f"state and logs: {host.folder / 'state'}",
        f"files of containers: {host.folder / 'run'}",
    ]
    assert everything(host) == before
    assert host.ctl("network prune -f") == "Deleted Networks:\nred"
    host.ctl("down")
    assert host.ctl("down --dry-run") == "There is nothing to remove."


def everything(host: Host) -> tuple[str, ...]:
    """What a command could have changed."""
    return *map(host.sh, ("ip -o link", "ip route", "ip rule")), *map(
        host.ctl, ("inspect web", "network ls", "doctor")
    )
