# SPDX-License-Identifier: Apache-2.0
"""`why`, as far as rows say it: what the words mean, and which step decides."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from datapath.dataplane.frames import checksum, opening_frame
from datapath.errors import DatapathError
from datapath.model.host import Device, DeviceAddress, HostNetwork, Route
from datapath.model.networks import OPT_ICC
from datapath.model.policies import Policy
from datapath.plan.policies.asking import Asked, Question, understand
from datapath.plan.policies.builtin import builtin_policies, world_here
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.why import Explanation, explain
from tests.unit.planned_host import PlannedHost

UPLINK = 2


def host_network(*gateways: str) -> HostNetwork:
    """One uplink with a default route of IPv4, and gateways of networks."""
    addresses = [DeviceAddress(UPLINK, 0, 0, ip_interface("192.0.2.10/24"))]
    addresses += [DeviceAddress(10 + n, 0, 0, ip_interface(one)) for n, one in enumerate(gateways)]
    routes = (
        Route(ip_network("192.0.2.0/24"), (UPLINK,), 0, 0, None),
        Route(ip_network("0.0.0.0/0"), (UPLINK,), 0, 0, ip_address("192.0.2.1")),
    )
    device = Device(UPLINK, "eth0", "", "02:00:00:00:00:01", 1500, True)
    names = {UPLINK: "eth0", **{10 + n: f"dp{n}" for n in range(len(gateways))}}
    return HostNetwork(
        names, {UPLINK: device}, tuple(addresses), routes, ours=frozenset(["dp0", "dp1", "dp2"])
    )


class Shop:
    """app, db and cron on shop, web on front, hidden on vault, which is internal; db publishes a port with an ACL."""

    def __init__(self, icc: str = "true") -> None:
        self.planned = PlannedHost()
        self.planned.network("shop", subnets=("10.0.0.0/24",), options=(f"{OPT_ICC}={icc}",))
        self.planned.network("front", subnets=("10.1.0.0/24",))
        self.planned.network("vault", subnets=("10.2.0.0/24",), internal=True)
        publish = ("8080:5432,allow=203.0.113.0/24",)
        self.planned.run("db", "shop", expose=("5432",), publish=publish, labels=("role=db",))
        self.planned.run("app", "shop", links=("db:db",), labels=("role=app",))
        self.planned.run("cron", "shop", labels=("role=batch",))
        self.planned.run("web", "front")
        self.planned.run("hidden", "vault")
        self.host = host_network("10.0.0.1/24", "10.1.0.1/24", "10.2.0.1/24")
        self.world = world_here(self.planned.state, self.host)

    def asked(self, words: str) -> Asked:
        source, destination, *rest = words.split()
        protocol = rest[0] if rest else ""
        port = int(rest[1]) if rest[1:] else None
        return understand(
            Question(source, destination, protocol, port), self.planned.state, self.world, self.host
        )

    def why(self, words: str, policies: str = "") -> Explanation:
        given: tuple[Policy, ...] = read_policies(policies, "some.yaml") if policies else ()
        every = (*builtin_policies(self.planned.state), *given)
        return explain(self.asked(words), self.planned.state, every, self.world, self.host)

    def verdict(self, words: str, policies: str = "") -> tuple[str, str, str]:
        """The verdict, its reason, and the step that decided."""
        found = self.why(words, policies)
        return found.verdict, found.reason, str(found.decided.step)


ALLOWED = ("allowed", "")


@pytest.mark.parametrize(
    ("words", "icc", "expected"),
    [
        ("app db tcp 5432", "true", (*ALLOWED, "in")),
        ("app db tcp 5432", "false", (*ALLOWED, "in")),
        ("app db tcp 80", "false", ("refused", "DROP_ICC", "in")),
        ("cron db tcp 5432", "false", ("refused", "DROP_ICC", "in")),
        ("cron db icmp", "true", (*ALLOWED, "in")),
        ("app web tcp 80", "true", ("refused", "DROP_ISOLATED", "network")),
        ("app 10.1.0.77 tcp 80", "true", ("refused", "DROP_ISOLATED", "network")),
        ("app 10.0.0.77 tcp 80", "true", ("refused", "DROP_NO_ENDPOINT", "network")),
        ("hidden app tcp 80", "true", ("refused", "DROP_INTERNAL", "network")),
        ("hidden 8.8.8.8 tcp 80", "true", ("refused", "DROP_INTERNAL", "out")),
        ("hidden 192.0.2.10 tcp 80", "true", ("refused", "DROP_INTERNAL", "network")),
        ("hidden host tcp 80", "true", (*ALLOWED, "out")),
        ("hidden :8080", "true", ("refused", "DROP_INTERNAL", "network")),
        ("web 8.8.8.8 udp 53", "true", (*ALLOWED, "out")),
        ("web host icmp", "true", (*ALLOWED, "out")),
        ("host web tcp 80", "true", (*ALLOWED, "in")),
        ("8.8.8.8 web tcp 80", "true", ("refused", "DROP_DIRECT", "network")),
        ("8.8.8.8 :8080", "true", ("refused", "DROP_DENIED", "in")),
        ("203.0.113.5 :8080", "true", (*ALLOWED, "in")),
        ("203.0.113.5 192.0.2.10:8080/tcp", "true", (*ALLOWED, "in")),
        ("203.0.113.5 :8081", "true", (*ALLOWED, "published")),
        ("cron :8080", "false", ("refused", "DROP_DENIED", "in")),
    ],
)
def test_todays_rules_decide_as_ever(words: str, icc: str, expected: tuple[str, str, str]) -> None:
    assert Shop(icc).verdict(words) == expected


POLICY = """
policies:
  db: {for: {label: role=db}, in: {allow: ["role=app:5432"]}}
  app: {for: app, out: {deny: [metadata], allow: ["db:5432"]}}
"""


def test_the_policy_that_refuses_is_named_and_what_would_open_it() -> None:
    found = Shop().why("cron db tcp 5432", POLICY)
    assert [str(line.step) for line in found.lines] == ["sender", "network", "out", "in"]
    assert found.decided.text == 'policy db lets in "role=app:5432"; cron is role=batch'
    assert (found.decided.policy, found.decided.rule, found.reason) == ("db", 0, "DROP_IN")
    assert found.hint == 'add "cron:5432" to in.allow of db'
    assert found.lines[2].text == "no policy: open"


def test_a_rule_that_lets_pass_is_named_and_one_that_denies() -> None:
    shop = Shop()
    allowed = shop.why("app db tcp 5432", POLICY)
    assert [line.text for line in allowed.lines[2:]] == [
        'policy app, rule 2: lets out to "db:5432"',
        'policy db, rule 1: lets in "role=app:5432"',
    ]
    denied = shop.why("app 169.254.169.254 tcp 80", POLICY)
    assert denied.decided.text == 'policy app, rule 1: denies "metadata"'
    assert denied.hint == "take rule 1 from app"


def test_what_audit_would_refuse_passes_and_says_so() -> None:
    found = Shop().why("cron db tcp 5432", POLICY.replace("in: {allow", "mode: audit, in: {allow"))
    assert found.verdict == "allowed"
    assert found.decided.text == 'open; in audit: policy db lets in "role=app:5432"; cron is role=batch'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("app db", "which protocol? tcp PORT, udp PORT or icmp"),
        ("app db tcp", "tcp has ports: which one?"),
        ("app db icmp 8", "icmp has no ports"),
        ("app db tpc 80", 'unknown protocol "tpc": there are tcp, udp, icmp'),
        ("app :0", 'invalid port in ":0": expected 1 to 65535'),
        ("app :8080 tcp 80", '":8080" is one port: it takes tcp or udp, and no other port'),
        ("app :8080/udp tcp", '":8080/udp" is one port: it takes tcp or udp, and no other port'),
        ("app app tcp 80", "both are the same: what one opens to itself passes no program"),
        ("ap db tcp 80", 'No such container: ap; did you mean "app"?'),
        ("8.8.8.8 host tcp 80", "neither of the two is a container of this host"),
        ("app 300.1.1.1 tcp 80", 'invalid IP address: "300.1.1.1"'),
        ("app 2001:db8::1 tcp 80", "the two have no addresses of one family"),
        ("8.8.8.8 8.8.4.4:8080", "8.8.4.4 is no address of this host: write its port behind the protocol"),
    ],
)
def test_words_that_make_no_connection_are_refused(words: str, message: str) -> None:
    with pytest.raises(DatapathError) as error:
        Shop().asked(words)
    assert str(error.value) == message


@pytest.mark.parametrize("protocol", [6, 17, 1, 58])
@pytest.mark.parametrize("ends", [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")])
def test_sums_of_the_frame_that_is_tried_are_right(protocol: int, ends: tuple[str, str]) -> None:
    source, destination = map(ip_address, ends)
    if (protocol, source.version) in ((1, 6), (58, 4)):
        return
    frame = opening_frame(
        ("02:00:00:00:00:01", "02:00:00:00:00:02"), source, destination, protocol, 80, 40000
    )
    assert frame[:12].hex() == "020000000001020000000002"
    header = 20 if source.version == 4 else 40
    if source.version == 4:
        assert checksum(frame[14:34]) == 0
    carried = frame[14 + header :]
    pseudo = b"" if protocol == 1 else source.packed + destination.packed
    pseudo += b"" if protocol == 1 else len(carried).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    assert checksum(pseudo + carried) == 0
