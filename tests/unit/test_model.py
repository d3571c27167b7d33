# SPDX-License-Identifier: Apache-2.0
"""Names, ports, addresses as users type them; rows as they are stored; errors as they are shown."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any

import pytest

from datapath.errors import (
    ConfigError,
    DatapathError,
    ExistsError,
    InUseError,
    KernelError,
    NotFoundError,
    NotSupportedError,
    PrivilegeError,
    StateError,
    VerifierError,
    printable,
    quoted,
)
from datapath.model.codec import from_json, to_json
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint, EndpointRequest, Link, linklocal_of
from datapath.model.networks import OPT_HOST_BINDING, OPT_ICC, OPT_MTU, Network, Subnet
from datapath.model.parsing import parse_address, parse_bool, parse_expose, parse_mac, parse_prefix
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, Status
from datapath.model.sandboxes import Sandbox

LOOPBACK, LOOPBACK6 = ip_address("127.0.0.1"), ip_address("::1")


@pytest.mark.parametrize(
    ("text", "mapping", "shown"),
    [
        ("80", PortMapping("tcp", None, 0, 80), "80/tcp"),
        ("80/tcp", PortMapping("tcp", None, 0, 80), "80/tcp"),
        ("80/UDP", PortMapping("udp", None, 0, 80), "80/udp"),
        ("80/", PortMapping("tcp", None, 0, 80), "80/tcp"),
        (":80", PortMapping("tcp", None, 0, 80), "80/tcp"),
        ("0:80", PortMapping("tcp", None, 0, 80), "80/tcp"),
        ("8081:80", PortMapping("tcp", None, 8081, 80), "8081:80/tcp"),
        ("8081:80/udp", PortMapping("udp", None, 8081, 80), "8081:80/udp"),
        ("127.0.0.1:8081:80", PortMapping("tcp", LOOPBACK, 8081, 80), "127.0.0.1:8081:80/tcp"),
        ("127.0.0.1::80", PortMapping("tcp", LOOPBACK, 0, 80), "127.0.0.1::80/tcp"),
        ("[::1]:8081:80", PortMapping("tcp", LOOPBACK6, 8081, 80), "[::1]:8081:80/tcp"),
        ("::1:8081:80", PortMapping("tcp", LOOPBACK6, 8081, 80), "[::1]:8081:80/tcp"),
        ("[::1]::80/udp", PortMapping("udp", LOOPBACK6, 0, 80), "[::1]::80/udp"),
        ("[::ffff:127.0.0.1]:1:2", PortMapping("tcp", LOOPBACK, 1, 2), "127.0.0.1:1:2/tcp"),
        ("8000-8099:8000-8099", PortMapping("tcp", None, 8000, 8000, 100), "8000-8099:8000-8099/tcp"),
        ("9000-9001:80-81/udp", PortMapping("udp", None, 9000, 80, 2), "9000-9001:80-81/udp"),
        ("80-82", PortMapping("tcp", None, 0, 80, 3), "80-82/tcp"),
        ("8000-8010:80", PortMapping("tcp", None, 8000, 80, 1, 8010), "8000-8010:80/tcp"),
        ("80-80:90-90", PortMapping("tcp", None, 80, 90), "80:90/tcp"),
        ("65535:65535", PortMapping("tcp", None, 65535, 65535), "65535:65535/tcp"),
        ("1-65535:1-65535", PortMapping("tcp", None, 1, 1, 65535), "1-65535:1-65535/tcp"),
    ],
)
def test_a_port_is_read_as_docker_reads_it(text: str, mapping: PortMapping, shown: str) -> None:
    assert PortMapping.parse(text) == mapping
    assert str(mapping) == shown
    assert PortMapping.parse(shown) == mapping


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no port specified"),
        (":", "no port specified"),
        ("8081:", "no port specified"),
        ("/tcp", "no port specified"),
        ("0", "invalid containerPort"),
        ("65536", "invalid containerPort"),
        ("-1", "invalid containerPort"),
        ("+80", "invalid containerPort"),
        (" 80", "invalid containerPort"),
        ("８０", "invalid containerPort"),
        ("http", "invalid containerPort"),
        ("90-80", "invalid containerPort"),
        ("80-", "invalid containerPort"),
        ("99999999999999999999:80", "invalid hostPort"),
        ("65536:80", "invalid hostPort"),
        ("9-8:80", "invalid hostPort"),
        ("0-5:80-85", "invalid hostPort"),
        ("80/tcp:80", "invalid hostPort"),
        ("8000-8002:80-81", "invalid ranges specified for container and host Ports"),
        ("8000:80-81", "invalid ranges specified for container and host Ports"),
        ("80/sctp", "protocol sctp is not available yet"),
        ("80/icmp", "invalid proto"),
        ("80/tcp/udp", "invalid proto"),
        ("1.2.3:80:80", "invalid IP address"),
        ("256.1.1.1:80:80", "invalid IP address"),
        ("localhost:80:80", "invalid IP address"),
        ("[::1:80:80", "invalid IP address"),
        ("fe80::1%eth0:80:80", "invalid port"),
        ("127.0.0.1:80:80\n", "invalid proto|invalid containerPort"),
    ],
)
def test_a_malformed_port_is_refused_in_one_line_that_shows_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PortMapping.parse(text)
    assert str(caught.value).isprintable()


def test_a_range_expands_to_single_ports() -> None:
    assert list(PortMapping.parse("127.0.0.1:8000-8002:80-82/udp").expand()) == [
        (LOOPBACK, 8000, 80, "udp"),
        (LOOPBACK, 8001, 81, "udp"),
        (LOOPBACK, 8002, 82, "udp"),
    ]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", ((80, "tcp"),)),
        ("53/udp", ((53, "udp"),)),
        ("80-82/tcp", ((80, "tcp"), (81, "tcp"), (82, "tcp"))),
    ],
)
def test_an_exposed_port_is_a_port_or_a_range(text: str, ports: Any) -> None:
    assert parse_expose(text) == ports


@pytest.mark.parametrize("text", ["", "0", "80:80", "x", "9-8", "80/foo", "80/sctp", "70000"])
def test_a_malformed_exposed_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_expose(text)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("net", EndpointRequest("net")),
        ("container:web", EndpointRequest("container:web")),
        ("name=net", EndpointRequest("net")),
        (
            "name=net,alias=a,alias=b,ip=10.0.0.9,ip6=fd00::9,mac-address=02:00:00:00:00:01",
            EndpointRequest("net", "10.0.0.9", "fd00::9", "02:00:00:00:00:01", ("a", "b")),
        ),
        ('name=net,"driver-opt=a=b,c"', EndpointRequest("net", driver_options=("a=b,c",))),
        ("name=net,gw-priority=-3", EndpointRequest("net", gw_priority=-3)),
    ],
)
def test_the_network_option_takes_a_name_or_the_long_form(text: str, request_: EndpointRequest) -> None:
    assert EndpointRequest.parse(text) == request_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alias=a", "network name is not specified"),
        ("name=", "network name is not specified"),
        ("name=net,alias", "expected key=value"),
        ("name=net,colour=red", "invalid field key"),
        ("name=net,gw-priority=high", "invalid gw-priority"),
        ("name=net\n,ip=1", "invalid"),
    ],
)
def test_a_malformed_long_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EndpointRequest.parse(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "::1", "fd00::a"])
def test_an_address_is_read(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "010.0.0.1", "10.0.0.1/8", "fe80::1%eth0", "a", " ::1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid IP address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.0", "invalid CIDR block notation"),
        ("10.0.0.0/33", "invalid CIDR block notation"),
        ("10.0.0.0/255.0.0.0", "invalid CIDR block notation"),
        ("10.0.0.0/-1", "invalid CIDR block notation"),
        ("fd00::/129", "invalid CIDR block notation"),
        ("x/8", "invalid CIDR block notation"),
        ("10.0.0.5/16", "it should be 10.0.0.0/16"),
    ],
)
def test_what_is_no_cidr_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_prefix(text, "subnet")


@pytest.mark.parametrize(
    ("text", "mac"), [("02:42:AC:11:00:02", "02:42:ac:11:00:02"), ("02-00-00-00-00-01", "02:00:00:00:00:01")]
)
def test_a_mac_address_is_read(text: str, mac: str) -> None:
    assert parse_mac(text) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:42:ac:11:00",
        "02:42:ac:11:00:0g",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ],
)
def test_a_mac_address_that_no_device_can_have_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mac(text)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("T", True), ("1", True), ("0", False), ("f", False)]
)
def test_truth_values_are_those_of_go(text: str, value: bool) -> None:
    assert parse_bool(text, "x") is value


@pytest.mark.parametrize("text", ["", "yes", "tRUE", "2"])
def test_other_words_for_true_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bool(text, "x")


# ---- rows ---------------------------------------------------------------------------------------

NETWORK = Network(
    "a" * 64,
    "br1",
    2,
    created="2026-11-24T12:00:00Z",
    subnets=(
        Subnet(
            ip_network("10.0.0.0/16"),
            ip_address("10.0.0.1"),
            ip_network("10.0.4.0/24"),
            {"printer": ip_address("10.0.0.7")},
            configured=True,
        ),
        Subnet(ip_network("fd00::/64"), ip_address("fd00::1")),
    ),
    labels={"a": "b"},
    options={OPT_MTU: "1400"},
)
ENDPOINT = Endpoint(
    "b" * 64,
    "a" * 64,
    "c" * 64,
    7,
    0,
    "eth0",
    "vethbbbbbbb",
    "02:42:0a:00:00:02",
    IPv4Interface("10.0.0.2/16"),
    IPv6Interface("fd00::2/64"),
    ("db",),
    (Link("d" * 64, "x"),),
    gateway4=True,
    ports=(PortMapping.parse("[::1]:8000-8001:80-81"),),
    exposed=((80, "tcp"),),
)
CONTAINER = Container(
    "c" * 64,
    "web",
    "2026-11-24T12:00:00Z",
    ("sh", "-c", "echo 'ü'\n"),
    networks=(EndpointRequest("a" * 64, aliases=("db",)),),
    exit_code=None,
    links=(Link("d" * 64, "x"),),
    extra_hosts=(("a", "10.0.0.1"),),
    labels={"k": ""},
)


SANDBOX = Sandbox("c" * 64, "/proc/1/ns/net", Phase.READY)


@pytest.mark.parametrize(
    "row",
    [
        *(NETWORK, ENDPOINT, CONTAINER, SANDBOX),
        replace(SANDBOX, owner="docker", owner_key="5f70bf18a086", name="web"),
        replace(SANDBOX, owner="cni", owner_key="/var/run/netns/cni-1"),
        replace(NETWORK, owner="podman"),
        replace(ENDPOINT, owner_key="8a4c01"),
    ],
)
def test_a_row_comes_back_as_it_was_stored(row: Any) -> None:
    text = to_json(row)
    assert text.isascii()
    assert from_json(type(row), text) == row


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"id": 1}',
        '{"id": "a", "key": null}',
        '{"id": "a", "colour": "red"}',
    ],
)
def test_a_row_that_is_not_what_was_stored_is_noticed(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(Sandbox, text)


def test_an_address_of_the_wrong_family_is_noticed() -> None:
    with pytest.raises(ValueError):
        from_json(Endpoint, to_json(ENDPOINT).replace("10.0.0.2/16", "fd00::7/64"))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (replace(SANDBOX, key=""), f'{{"id":"{"c" * 64}","phase":"ready"}}'),
        (Sandbox("a", phase=Phase.CREATING), '{"id":"a"}'),
        (
            Container("a", "web", "", ("true",), status=Status.EXITED, phase=Phase.REMOVING),
            '{"id":"a","name":"web","created":"","argv":["true"],"status":"exited","phase":"removing"}',
        ),
    ],
)
def test_phases_and_statuses_are_stored_as_words(row: Any, text: str) -> None:
    assert to_json(row) == text
    again = from_json(type(row), text)
    assert again == row
    assert type(again.phase) is Phase
    assert not isinstance(row, Container) or type(again.status) is Status


def test_a_row_of_our_own_runtime_is_stored_without_its_owner() -> None:
    """So that it is read by a program that knows nothing of owners."""
    for row in (NETWORK, ENDPOINT, SANDBOX):
        assert "owner" not in to_json(row)


def test_a_field_that_is_newer_than_the_row_has_its_default() -> None:
    assert from_json(Sandbox, '{"id": "a"}') == Sandbox("a")


class Colour(StrEnum):
    RED = "red"
    DEEP_BLUE = "deep blue"


@dataclass(frozen=True)
class Painted:
    """A row with what no row of the model has had yet."""

    id: str
    colour: Colour = Colour.RED
    others: tuple[Colour, ...] = ()
    second: Colour | None = None
    gateway: IPv4Address | IPv6Address | None = None
    size: int = 1


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (Painted("a"), '{"id":"a"}'),
        (Painted("a", Colour.DEEP_BLUE), '{"id":"a","colour":"deep blue"}'),
        (Painted("a", others=(Colour.RED, Colour.DEEP_BLUE)), '{"id":"a","others":["red","deep blue"]}'),
        (Painted("a", second=Colour.RED), '{"id":"a","second":"red"}'),
        (Painted("a", gateway=ip_address("fd00::1")), '{"id":"a","gateway":"fd00::1"}'),
        (Painted("a", gateway=ip_address("10.0.0.1")), '{"id":"a","gateway":"10.0.0.1"}'),
        (Painted("a", size=7), '{"id":"a","size":7}'),
    ],
)
def test_a_member_of_an_enum_is_stored_as_its_value(row: Painted, text: str) -> None:
    assert to_json(row) == text
    again = from_json(Painted, text)
    assert again == row
    assert [type(c) for c in (again.colour, *again.others)] == [Colour] * (1 + len(row.others))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "colour": "green"}', "unknown Colour 'green'"),
        ('{"id": "a", "colour": ["red"]}', "expected str, found list"),
        ('{"id": "a", "size": "7"}', "expected int, found str"),
        ('{"id": "a", "weight": 7}', "unknown field 'weight' of Painted"),
        ('{"id": "a", "gateway": "10.0.0.1/8"}', "10.0.0.1/8"),
        ('{"id": "a", "gateway": 1}', "expected str, found int"),
    ],
)
def test_a_value_that_its_field_cannot_have_is_noticed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Painted, text)


@pytest.mark.parametrize(
    ("options", "icc", "mtu", "binding"),
    [
        ({}, True, None, None),
        ({OPT_ICC: "false", OPT_MTU: "1400"}, False, 1400, None),
        ({OPT_MTU: "0", OPT_HOST_BINDING: "0.0.0.0"}, True, None, None),
        ({OPT_HOST_BINDING: "127.0.0.1"}, True, None, LOOPBACK),
    ],
)
def test_a_networks_options_have_dockers_meaning(
    options: dict[str, str], icc: bool, mtu: int | None, binding: Any
) -> None:
    network = Network("a", "n", 1, options=options)
    assert (network.icc, network.mtu, network.host_binding) == (icc, mtu, binding)


def test_the_link_local_address_is_the_one_that_the_kernel_makes_of_the_mac() -> None:
    assert str(linklocal_of("02:42:ac:11:00:02")) == "fe80::42:acff:fe11:2"


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DatapathError("x"), 1, "x"),
        (ConfigError("x"), 2, "x"),
        (NotFoundError("x"), 3, "x"),
        (ExistsError("x"), 4, "x"),
        (InUseError("x"), 5, "x"),
        (KernelError("create", "veth0", errno.EEXIST), 10, "create veth0: File exists (EEXIST)"),
        (KernelError("create", "veth0"), 10, "create veth0"),
        (
            VerifierError("from_host", "R1 invalid"),
            11,
            "load program from_host: refused by the verifier: R1 invalid",
        ),
        (NotSupportedError("tcx", "6.6"), 12, "this kernel does not have tcx (there since Linux 6.6)"),
        (PrivilegeError("root is needed"), 13, "root is needed"),
        (StateError("x"), 14, "x"),
    ],
)
def test_each_class_of_error_has_its_exit_code_and_one_line(
    error: DatapathError, code: int, text: str
) -> None:
    assert (error.exit_code, str(error)) == (code, text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\udcff", "\\udcff"),
        ("\u2028", "\\u2028"),
        ("ünï", "ünï"),
    ],
)
def test_a_message_never_breaks_the_line_or_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == str(ConfigError(text)) == shown


def test_long_words_are_cut_when_they_are_shown() -> None:
    assert quoted("x" * 300) == '"' + "x" * 64 + '…"'
    assert quoted('a"b') == '"a\\"b"'
