# SPDX-License-Identifier: Apache-2.0
"""Malformed invocations: each is one clear line on stderr and an exit code, and nothing has changed."""

from __future__ import annotations

import json
import subprocess
from typing import Any, NamedTuple

import pytest

from tests.net import look
from tests.net.hosts import DATAPATHCTL, Host

LONG = "n" * 300


class State(NamedTuple):
    rows: list[str]
    devices: dict[str, Any]
    pins: set[str]


def state(host: Host) -> State:
    return State(look.database(host), look.devices(host.sh), look.pins(host))


def unchanged(host: Host, before: State) -> bool:
    """What is another is what the failure shows: all of it would be cut short."""
    now = state(host)
    assert now.pins ^ before.pins == set()
    assert set(now.rows) ^ set(before.rows) == set()
    assert now.devices == before.devices
    return now == before


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """A network with a container at a static address, which publishes ports."""
    look.settled(shared_host)
    shared_host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 net1")
    options = "--network net1 --ip 10.5.0.9 --mac-address 02:00:00:00:05:09 -p 8081:80 -p 9000-9009:9000-9009"
    shared_host.run("web", options)
    shared_host.run("app")  # the default network is in use too
    return shared_host


@pytest.fixture(scope="module")
def before(prepared: Host) -> State:
    return state(prepared)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a refused command has said."""
    lines = done.stderr.splitlines()
    assert done.returncode not in (0, 70, 99), f"exit code {done.returncode}: {done.stderr}"
    assert done.stdout in ("", "[]\n")  # an inspect of nothing is an empty list, as Docker's
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("datapathctl: "), lines
    assert lines[0].isprintable(), lines
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert len(lines[0]) < 600, lines
    return lines[0]


def started(host: Host, command: list[str], env: dict[str, str]) -> str:
    """The same of one that is started with these variables."""
    words = [f"{name}={value}" for name, value in env.items()]
    return one_line(host.try_(["env", *words, DATAPATHCTL, *command]))


# What is said -> the command. Control characters and the like need words of their own.
ROWS: list[tuple[str, list[str] | str]] = [
    # commands and flags
    ("No such command 'bogus'", "bogus"),
    ("No such command 'bogus'", "network bogus"),
    ("No such option '--bogus'", "network ls --bogus"),
    ("No such option '--bogus'", "--bogus network ls"),
    ("requires an argument", "network create --subnet"),
    ("Missing argument 'NETWORK'", "network create"),
    ("Got unexpected extra argument (two)", "network create one two"),
    ("Missing argument 'PROGRAM [ARGUMENT...]'", "run --name x"),
    ("is neither true nor false", "network create --internal=maybe x"),
    ("--timeout", "stop --timeout soon web"),
    ("--timeout", "stop --timeout -1 web"),
    ('invalid value "many" for --tail', "logs --tail many web"),
    ("Missing argument", "exec web"),
    ("bogus", "completion bogus"),
    # services
    ("Missing argument 'NAME'", "service create"),
    ("a service is on a network: say which one with --network", "service create x"),
    ("network nowhere not found", "service create --network nowhere x"),
    ('Invalid service name ("a/b")', "service create --network net1 a/b"),
    ("there can be no service on network bridge", "service create --network bridge x"),
    ("there can be no service on network host", "service create --network host x"),
    (
        'invalid endpoint mode "fast": there is vip, dnsrr',
        "service create --network net1 --endpoint-mode fast x",
    ),
    ('invalid algorithm "best"', "service create --network net1 --algorithm best x"),
    ('invalid affinity "soon"', "service create --network net1 --affinity soon x"),
    ('invalid affinity "999h"', "service create --network net1 --affinity 999h x"),
    ("--publish and --endpoint-mode dnsrr", "service create --network net1 --endpoint-mode dnsrr -p 90:80 x"),
    ("no configured subnet or ip-range contain", "service create --network net1 --vip 10.99.0.1 x"),
    ('10.5.0.9 belongs to container "web"', "service create --network net1 --vip 10.5.0.9 x"),
    ("is the network's gateway", "service create --network net1 --vip 10.5.0.1 x"),
    ("two IPv4 addresses", "service create --network net1 --vip 10.5.0.7 --vip 10.5.0.8 x"),
    ('invalid VIP: "ten"', "service create --network net1 --vip ten x"),
    ('port is already allocated (by container "web")', "service create --network net1 -p 8081:80 x"),
    ("invalid label", "service create --network net1 --selector =web x"),
    ("no such service: x", "service rm x"),
    ("no such service: x", "service ps x"),
    ("no such service: x", "service update --label-add a=b x"),
    ("no such service: x", "service drain x web"),
    ("no such service: x", "run -d --network net1 --service x sleep 1"),
    ("invalid weight", "run -d --network net1 --service x,weight=none sleep 1"),
    ("there is weight=N", "run -d --network net1 --service x,port=1 sleep 1"),
    ("a service and the host network mode", "run -d --network host --service x sleep 1"),
    # names
    ('Invalid network name ("a/b")', "network create a/b"),
    ('Invalid network name ("..")', "network create .."),
    ('Invalid network name ("../../etc")', "network create ../../etc"),
    ('Invalid network name ("-x")', "network create -- -x"),
    ("Invalid value for 'NETWORK': it is empty", ["network", "create", ""]),
    ('Invalid network name ("a b")', ["network", "create", "a b"]),
    ('Invalid network name ("a\\nb")', ["network", "create", "a\nb"]),
    ('Invalid network name ("\\x1b[31mred")', ["network", "create", "\x1b[31mred"]),
    ('Invalid network name ("é")', ["network", "create", "é"]),
    ('Invalid network name ("\\u202etxt")', ["network", "create", "\u202etxt"]),
    ("it has 300 characters, 128 are allowed", ["network", "create", LONG]),
    ('Invalid container name ("a/b")', "run --name a/b true"),
    ('Invalid container name ("..")', "run --name .. true"),
    ('Invalid container name ("a\\x07b")', ["run", "--name", "a\x07b", "true"]),
    ("it has 300 characters, 128 are allowed", ["run", "--name", LONG, "true"]),
    # things that are not there
    ("network nosuch not found", "network rm nosuch"),
    ("network ../net1 not found", "network inspect ../net1"),
    ("No such container: ../web", "rm ../web"),
    ("No such container", ["stop", LONG]),
    ('No such container: "a\\nb"', ["logs", "a\nb"]),
    ("no such container or network", ["inspect", "\x1b]0;x\x07"]),
    # duplicates of everything
    ("network with name net1 already exists", "network create net1"),
    ("operation is not permitted on predefined bridge network", "network create bridge"),
    ("is already in use by container", "run --name web true"),
    ("overlaps 10.5.0.0/24 of network net1", "network create --subnet 10.5.0.0/16 x"),
    ("multiple overlapping subnet", "network create --subnet 10.6.0.0/24 --subnet 10.6.0.0/25 x"),
    (
        "cannot configure multiple gateways",
        "network create --subnet 10.6.0.0/24 --gateway 10.6.0.1 --gateway 10.6.0.2 x",
    ),
    (
        "is given twice",
        "network create --subnet 10.6.0.0/24 --aux-address a=10.6.0.5 --aux-address a=10.6.0.6 x",
    ),
    (
        "address already in use",
        "network create --subnet 10.6.0.0/24 --aux-address a=10.6.0.5 --aux-address b=10.6.0.5 x",
    ),
    ('belongs to container "web"', "run --network net1 --ip 10.5.0.9 true"),
    ('already used by container "web"', "run --network net1 --mac-address 02:00:00:00:05:09 true"),
    ('port is already allocated (by container "web")', "run -p 8081:80 true"),
    ('port is already allocated (by container "web")', "run -p 8090-9000:8090-9000 true"),
    ("port is already allocated", "run -p 8082:80 -p 8082:81 true"),
    ('port is already allocated (by container "web")', "port add app 8081:80"),
    ("is specified multiple times", "run --network net1 --network net1 true"),
    ("already exists in network net1", "network connect net1 web"),
    # CIDRs and addresses
    ("invalid CIDR block notation", "network create --subnet 10.6.0.0/-1 x"),
    ("invalid CIDR block notation", "network create --subnet 10.6.0.0/24/8 x"),
    ("invalid CIDR block notation", "network create --subnet 10.6.0.0/255.255.0.0 x"),
    ("invalid CIDR block notation", "network create --subnet 10.6/16 x"),
    ("invalid CIDR block notation", "network create --subnet fe80::%eth0/64 --ipv6 x"),
    ("invalid CIDR block notation", ["network", "create", "--subnet", "10.6.0.0/٢٤", "x"]),
    ("Invalid value for '--subnet': it is empty", ["network", "create", "--subnet", "", "x"]),
    ("no container can have an address of", "network create --subnet 224.0.0.0/8 x"),
    ("no container can have an address of", "network create --subnet 0.0.0.0/0 x"),
    ("invalid gateway", "network create --subnet 10.6.0.0/24 --gateway 10.6.0.256 x"),
    ("no matching subnet for gateway", "network create --subnet 10.6.0.0/24 --gateway fd00::1 x"),
    ("invalid aux-address", "network create --subnet 10.6.0.0/24 --aux-address 10.6.0.5 x"),
    ("invalid IPv4 address", "run --network net1 --ip 010.5.0.1 true"),
    ("is not a valid mac address", "run --network net1 --mac-address 02:00:00:00:00:zz true"),
    ("invalid IP address for dns", "run --dns example.org true"),
    ("bad format for add-host", "run --add-host db true"),
    ("invalid name for add-host", ["run", "--add-host", "a\nb:10.0.0.1", "true"]),
    ("invalid IP address in add-host", "run --add-host db:10.0.0 true"),
    # an empty value is a variable that was not set, and not the same as no option
    ("Invalid value for '--rootfs': it is empty", ["run", "--rootfs", "", "true"]),
    ("no command is given", ["run", ""]),
    ("Invalid value for '--state-dir': it is empty", ["--state-dir=", "down"]),
    ('the rule "allow=" of a port names no prefix', "run -p 8082:80,allow= true"),
    ("a rule is missing behind the comma", "run -p 8082:80, true"),
    ('the rule "allow=" of a port names no prefix', "port set web 1 allow="),
    ("Invalid value for '[ACL]': it is empty", ["port", "set", "web", "1", ""]),
    ('the rule "deny=" of a port names no prefix', "port add web 8082:80,deny="),
    ("the IP address in port", "run -p :8082:80 true"),
    ("the IP address in port", "port add web :8082:80"),
    ("Invalid value for '--container': it is empty", ["ct", "flush", "--container", ""]),
    ("Invalid value for 'CONTAINER...': it is empty", ["rm", "-f", ""]),
    ("Invalid value for 'NETWORK...': it is empty", ["network", "rm", ""]),
    ('invalid filter "label="', "network prune -f --filter label="),
    ("Invalid value for '--filter': it is empty", ["network", "prune", "-f", "--filter", ""]),
    ("the field", "run --network name=net1,ip= true"),
    ('invalid value ""', "network create -o com.docker.network.driver.mtu= x"),
    ('invalid value ""', "network create -o com.docker.network.bridge.name= x"),
    ('invalid value ""', "network create -o com.datapath.mode= x"),
    (
        "for option com.docker.network.endpoint.ifname",
        "run --network name=net1,driver-opt=com.docker.network.endpoint.ifname= true",
    ),
    # ports
    ("invalid hostPort", "run -p 65536:80 true"),
    ("invalid hostPort", "run -p -1:80 true"),
    ("invalid containerPort", "run -p 8080:0 true"),
    ("invalid containerPort", "run -p 8080:http true"),
    ("invalid containerPort", "run -p 8080:90-80 true"),
    ("they must be equally long", "run -p 8000-8001:80-82 true"),
    ("invalid proto", "run -p 8080:80/icmp true"),
    ("protocol sctp is not available yet", "run -p 8080:80/sctp true"),
    ("Invalid value for '-p' / '--publish': it is empty", ["run", "-p", "", "true"]),
    ("no port specified", "run -p 8080: true"),
    ("invalid IP address", "run -p 1.2.3:8080:80 true"),
    ("invalid IP address", "run -p [::1:8080:80 true"),
    ("198.51.100.7 is no address of this host", "run -p 198.51.100.7:8080:80 true"),
    ("invalid range format for --expose", "run --expose 0 true"),
    ("invalid port format for --expose", "run --expose 80:80 true"),
    ("has no port mapping number 9", "port rm web 9"),
    ("has no port mapping", "port rm web 9999:80"),
    # options of networks, endpoints and containers
    ('option "bogus" of driver bridge is unknown', "network create -o bogus x"),
    ("expected key=value", "network create -o =1 x"),
    ("expected key=value", ["network", "create", "--label", "a\nb=1", "x"]),
    ("not a device name", "network create -o com.docker.network.bridge.name=a/b x"),
    ("not a device name", "network create -o com.docker.network.bridge.name=sixteen-letters0 x"),
    ("expected 68 to 65535 bytes", "network create -o com.docker.network.driver.mtu=1e3 x"),
    ("invalid value for option", "network create -o com.docker.network.bridge.host_binding_ipv4=all x"),
    ("invalid field key", "run --network name=net1,bogus=1 true"),
    ("network name is not specified", "run --network ip=10.5.0.7 true"),
    ("network net1,alias not found", "run --network net1,alias true"),
    ("invalid filter", "network prune -f --filter bogus=1"),
    ("until", "network prune -f --filter until=yesterday"),
    ("template parsing error", ["network", "inspect", "-f", "{{.Name", "net1"]),
    ("template", ["network", "inspect", "-f", "{{.NoSuchKey}}", "net1"]),
    ("bad format for links", "run --link web: true"),
    ("No such container: nosuch", "run --link nosuch:x true"),
    ("invalid hostname", ["run", "--hostname", "a b", "true"]),
    ("invalid hostname", ["run", "--hostname", "h" * 64, "true"]),
    ("invalid environment variable", "run -e =x true"),
    ("invalid signal", "run --stop-signal SIGBOGUS true"),
    ("rootfs relative is not a directory", "run --rootfs relative true"),
    ("no command is given", ["run", ""]),
    ("Invalid value for '--state-dir': it is empty", ["--state-dir=", "down"]),
    ("invalid network alias", "run --network net1 --network-alias a/b true"),
    ("supported only for containers in user defined networks", "run --network-alias x true"),
]


@pytest.mark.parametrize(
    ("reason", "command"), ROWS, ids=[f"{n}-{row[0][:40]}" for n, row in enumerate(ROWS)]
)
def test_a_malformed_invocation_is_one_line_and_changes_nothing(
    prepared: Host, before: State, reason: str, command: list[str] | str
) -> None:
    argv = command.split() if isinstance(command, str) else command
    said = one_line(prepared.try_ctl(argv))
    assert reason in said, said
    assert unchanged(prepared, before)


def test_there_are_at_least_sixty_of_them() -> None:
    assert len(ROWS) >= 60


CONFIGURATIONS: list[tuple[str, Any]] = [
    ('directives don\'t match any configuration option: "bogus"', {"bogus": 1}),
    ('"iptables" has no meaning here', {"iptables": False}),
    ('"userland-proxy" has no meaning here', {"userland-proxy": False}),
    ('the directive "icc" must be true or false', {"icc": "false"}),
    ('the directive "mtu" must be a number', {"mtu": "1500"}),
    ('the directive "mtu" must be a number', {"mtu": True}),
    ("invalid mtu 67", {"mtu": 67}),
    ("invalid bip", {"bip": "10.0.0.1"}),
    ("invalid bip", {"bip": "10.0.0.0/24"}),
    ("invalid bip", {"bip": "fd00::1/64"}),
    ("it is not within 10.0.0.0/24 of bip", {"bip": "10.0.0.1/24", "fixed-cidr": "10.0.1.0/25"}),
    ("has no meaning here", {"bip": "10.0.0.1/24", "default-gateway": "10.0.1.1"}),
    ("invalid ip", {"ip": "everywhere"}),
    ("must be a list", {"dns": "192.0.2.53"}),
    ("invalid address in dns", {"dns": ["one.one.one.one"]}),
    ("must have exactly the keys base and size", {"default-address-pools": [{"base": "10.0.0.0/8"}]}),
    ("invalid size 8", {"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}),
    ("must be an object", {"default-network-opts": []}),
    ("expected a JSON object", []),
    ("invalid JSON", "{"),
    ("invalid JSON", '{"icc": nope}'),
    ('the directive "icc" is given twice', '{"icc": true, "icc": false}'),
]


@pytest.mark.parametrize(
    ("reason", "content"), CONFIGURATIONS, ids=[f"{n}" for n in range(len(CONFIGURATIONS))]
)
def test_a_bad_daemon_json_is_refused_by_name(
    prepared: Host, before: State, reason: str, content: Any
) -> None:
    path = prepared.folder / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    said = started(prepared, ["network", "create", "x"], {"DATAPATH_CONFIG": str(path)})
    assert reason in said
    assert str(path) in said
    assert unchanged(prepared, before)


ENVIRONMENTS = [
    ('DATAPATH_STATE_DIR is "relative": it must be an absolute path', {"DATAPATH_STATE_DIR": "relative"}),
    ('DATAPATH_RUN_DIR is "../x": it must be an absolute path', {"DATAPATH_RUN_DIR": "../x"}),
    ('DATAPATH_BPFFS is "x": it must be an absolute path', {"DATAPATH_BPFFS": "x"}),
    ('DATAPATH_ATTACH is "xdp": it must be auto, tcx or clsact', {"DATAPATH_ATTACH": "xdp"}),
    ("/no/such/file", {"DATAPATH_CONFIG": "/no/such/file"}),
    *(
        (f"DATAPATH_{name} is ", {f"DATAPATH_{name}": ""})
        for name in ("STATE_DIR", "RUN_DIR", "BPFFS", "ATTACH")
    ),
    ("", {"DATAPATH_CONFIG": "/etc"}),
    ("", {"DATAPATH_CONFIG": "/dev/zero/x"}),
    ("", {"DATAPATH_STATE_DIR": "/dev/null"}),
    ("", {"DATAPATH_STATE_DIR": "/proc/x"}),
    ("", {"DATAPATH_BPFFS": "/dev/null/x"}),
    ("", {"DATAPATH_RUN_DIR": "/proc/x"}),
]


@pytest.mark.parametrize(("reason", "env"), ENVIRONMENTS, ids=[f"{n}" for n in range(len(ENVIRONMENTS))])
def test_a_bad_environment_is_named(prepared: Host, before: State, reason: str, env: dict[str, str]) -> None:
    assert reason in started(prepared, ["run", "true"], env)
    assert unchanged(prepared, before)


def test_options_for_directories_are_checked_like_the_environment(prepared: Host) -> None:
    said = started(prepared, ["--state-dir", "relative", "network", "ls"], {})
    assert "it must be an absolute path" in said


def test_a_damaged_state_database_is_reported_and_kept(prepared: Host, before: State) -> None:
    folder = prepared.folder / "damaged"
    folder.mkdir()
    (folder / "datapath.db").write_bytes(b"this is no database" * 100)
    env = {"DATAPATH_STATE_DIR": str(folder)}
    for command in ("network ls", "network create x", "run true", "down"):
        assert str(folder / "datapath.db") in started(prepared, command.split(), env)
    assert (folder / "datapath.db").read_bytes() == b"this is no database" * 100
    assert unchanged(prepared, before)
