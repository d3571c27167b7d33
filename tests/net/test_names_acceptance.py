# SPDX-License-Identifier: Apache-2.0
"""S17: names, as programs meet them: dig, getaddrinfo() in glibc and musl, and questions as bytes. The numbered ones
are what users of other resolvers complained about."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datapath.bench.workloads import QUESTIONS
from tests.net import forked, look
from tests.net.agents import agent
from tests.net.hosts import HOST, PATIENCE, TIMEOUT, eventually
from tests.net.names import (
    AAAA,
    ANY,
    HTTPS,
    LOCAL,
    MX,
    NOERROR,
    NXDOMAIN,
    PTR,
    SRV,
    TXT,
    A,
    Asker,
    NamedHost,
    Sniffer,
    Upstreams,
    both,
    dig,
    looked_up,
    one,
    parsed,
    question,
    reverse,
)

FAILS, REFUSES, GOOD, OTHER, NOBODY, SILENT, HOLDS = SERVERS = tuple(f"192.0.2.{n}" for n in range(51, 58))
QUICK, FLOODED = "192.0.2.58", "192.0.2.59"
LINK_LOCAL = "fe80::53"
ANSWER, OTHERS_ANSWER, LOOPBACK_ANSWER, LINK_LOCAL_ANSWER = (f"203.0.113.{n}" for n in (80, 81, 90, 91))
HELD_ANSWER = "203.0.113.99"
MANY = 10_000
LONG = ".".join(("a" * 40, "b_c" * 10, "d" * 50))
NOT_FOUND = {"glibc": "Name or service not known", "musl": "Name does not resolve"}


@dataclass
class Made:
    """The host, who is asked outside, and on the host's loopback. `asker` is on the network `front`."""

    host: NamedHost
    outside: Upstreams
    own: Upstreams
    folder: Path
    _addresses: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def outside_serves(self, address: str, answer: str) -> subprocess.Popen[str]:
        """A quicker server than those of `outside`."""
        argv = [QUESTIONS, "serve", address, "53", answer]
        process = self.host.outside.start(argv)
        with eventually() as until:
            until(lambda: f"{address}:53" in self.host.outside.sh("ss -Hlun"))
        return process

    def asker(self, container: str = "asker") -> Asker:
        return Asker(self.host, container)

    def address(self, container: str, network: str = "front") -> str:
        return self._both(container, network)[0]

    def address6(self, container: str, network: str = "front") -> str:
        return self._both(container, network)[1]

    def _both(self, container: str, network: str) -> tuple[str, str]:
        """Asked once for those that stay."""
        if (container, network) not in self._addresses:
            found = self.host.inspect(container)["NetworkSettings"]["Networks"][network]
            self._addresses[container, network] = found["IPAddress"], found["GlobalIPv6Address"]
        return self._addresses[container, network]

    @contextlib.contextmanager
    def resolvers(self, text: str) -> Iterator[None]:
        """The host's resolv.conf is another one, and a command has noticed."""
        before = self.host.resolv_conf.read_text()
        self.host.resolvers(text)
        self.host.ctl("network create noticed")
        try:
            yield
        finally:
            self.host.resolvers(before)
            self.host.ctl("network rm noticed")

    @contextlib.contextmanager
    def running(self, name: str, options: str) -> Iterator[str]:
        """A container for the block."""
        self.host.run(name, options)
        try:
            yield name
        finally:
            self.host.ctl(f"rm -f {name}")
            self._addresses = {key: found for key, found in self._addresses.items() if key[0] != name}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("names")
    with ExitStack() as stack:
        host = NamedHost(folder, f"nameserver {GOOD}\nsearch corp.example lab.example\noptions timeout:9\n")
        stack.callback(host.close)
        look.settled(host).preloaded = True
        for address in (*SERVERS, QUICK, FLOODED):
            host.outside.sh(f"ip address add {address}/24 dev eth0")
        host.outside.sh(f"ip address add {LINK_LOCAL}/64 dev eth0 nodad")
        outside = Upstreams(
            host.outside,
            folder / "outside",
            *(f"{FAILS}=servfail", f"{REFUSES}=refused", f"{GOOD}={ANSWER}", f"{OTHER}={OTHERS_ANSWER}"),
            *(f"{NOBODY}=nxdomain", f"{SILENT}=silent", f"{HOLDS}=hold:{MANY}"),
            f"{LINK_LOCAL}%eth0={LINK_LOCAL_ANSWER}",
        )
        own = Upstreams(host, folder / "own", f"127.0.0.1={LOOPBACK_ANSWER}", f"::1={LOOPBACK_ANSWER}")
        host.ctl("network create --ipv6 --subnet 10.50.0.0/24 --subnet fd50::/64 front")
        host.ctl("network create --subnet 10.51.0.0/24 back")
        host.ctl("network create --internal --subnet 10.52.0.0/24 inner")
        host.ctl("network create --ipv4=false --ipv6 --subnet fd53::/64 six")
        host.run("asker", "--network front")
        host.run("web", f"--network name=front,alias=api,alias={LONG} --hostname fancy")
        host.run("web2", "--network name=front,alias=api")
        host.run("web3", "--network name=front,alias=api")
        host.run("hidden", "--network back")
        host.run("backer", "--network back")
        host.run("inner1", "--network inner")
        host.run("inner2", "--network inner")
        host.run("s1", "--network six")
        host.run("s2", "--network six")
        host.run("lone", "--hostname alone")
        yield Made(host, outside, own, folder)


# ---- what users complained about -----------------------------------------------------------------


def test_s17_01_other_types_of_a_name_that_is_ours_are_nodata(made: Made) -> None:
    web = made.address("hidden", "back")
    assert one(made.host, "backer", "hidden").data == [web]
    for reply in dig(
        made.host, "backer", *(f"hidden {kind}" for kind in ("AAAA", "MX", "HTTPS", "TXT", "SRV"))
    ):
        assert (reply.status, reply.answers) == ("NOERROR", [])
    assert (reply := one(made.host, "s1", "s2 A")).status == "NOERROR" and not reply.answers
    assert looked_up(made.host, "backer", "hidden") == both(web)
    any_type = made.asker("backer").ask("hidden", ANY)
    assert (any_type.code, any_type.addresses) == (NOERROR, [])
    assert not made.outside.asked("hidden") and not made.outside.asked("s2")


def test_s17_02_names_are_found_in_any_case_and_the_question_is_echoed(made: Made) -> None:
    reply = one(made.host, "asker", "WeB")
    assert (reply.question, reply.data) == ("WeB.", [made.address("web")])
    assert reply.answers[0][0] == "WeB."
    assert looked_up(made.host, "asker", "WEB.FRONT") == both(made.address("web"), made.address6("web"))


def test_s17_02_two_that_differ_in_case_only_are_one_name_with_both_addresses(made: Made) -> None:
    with made.running("twin", "--network back"), made.running("TWIN", "--network back"):
        addresses = sorted(made.address(name, "back") for name in ("twin", "TWIN"))
        for name in ("twin", "TWIN", "Twin"):
            assert one(made.host, "backer", name).data == addresses


def test_s17_03_the_resolvers_address_is_dockers_in_every_container(made: Made) -> None:
    for container in ("asker", "backer", "inner1", "s1", "lone"):
        text = made.host.in_(container, "cat /etc/resolv.conf")
        assert re.findall(r"^nameserver.*", text, re.MULTILINE) == [f"nameserver {LOCAL}"]
    for options in (f"@{LOCAL}", f"@{LOCAL} -b 127.0.0.1", f"@{LOCAL} +tcp", "@10.50.0.1", "@10.50.0.1 +tcp"):
        assert one(made.host, "asker", "web", options).data == [made.address("web")]
    assert one(made.host, "lone", "default-net.test").data == [ANSWER]  # where there are no names of ours


def test_s17_03_other_ports_of_it_are_closed_and_say_so_at_once(made: Made) -> None:
    asker = made.asker()
    with asker.socket(port=5353) as opened:
        opened.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            opened.recv(1)
    with pytest.raises(ConnectionRefusedError):
        asker.socket(socket.SOCK_STREAM, port=80)
    assert made.host.try_in("asker", f"ping -n -c 1 -W {PATIENCE:.0f} {LOCAL}").returncode == 0


def test_s17_04_a_and_aaaa_from_one_socket_at_once_are_both_answered(made: Made) -> None:
    asker = made.asker()
    for number in range(100):
        name = "web" if number % 2 else f"pair{number}.test"
        with asker.socket() as opened:
            for ident, kind in ((1, A), (2, AAAA)):
                opened.send(question(name, kind, ident))
            found = sorted((parsed(opened.recv(4096)) for _ in range(2)), key=lambda each: each.ident)
        assert [each.ident for each in found] == [1, 2] and {each.code for each in found} == {NOERROR}
        assert found[0].addresses == [made.address("web") if number % 2 else ANSWER]


def test_s17_05_a_dead_upstream_costs_the_first_lookup_one_repetition_and_the_next_nothing(
    made: Made,
) -> None:
    with made.running("patient", f"--network front --dns {SILENT} --dns {GOOD}"):
        first = made.host.in_("patient", "dig +short +tries=3 +time=2 first.test").splitlines()
        assert first[-1] == ANSWER
        assert made.outside.whom("first.test") == [SILENT, GOOD]
        for number in range(3):  # each is sent once
            assert one(made.host, "patient", f"next{number}.test").data == [ANSWER]
            assert made.outside.whom(f"next{number}.test") == [GOOD]


def test_s17_05_one_that_is_alone_is_asked_however_slow_it_was(made: Made) -> None:
    with made.running("alone", f"--network front --dns {SILENT}"):
        for number in range(3):
            name = f"alone{number}.test"
            assert made.host.try_in("alone", f"dig +tries=1 +time=1 {name}").returncode == 9
            assert made.outside.whom(name) == [SILENT]


def test_s17_06_where_an_upstream_fails_or_refuses_the_next_is_asked(made: Made) -> None:
    with made.running("failing", f"--network front --dns {FAILS} --dns {REFUSES} --dns {GOOD}"):
        assert one(made.host, "failing", "failover.test").data == [ANSWER]
        assert made.outside.whom("failover.test") == [FAILS, REFUSES, GOOD]
        assert looked_up(made.host, "failing", "libcs.test") == both(ANSWER)
        assert sorted(made.outside.whom("libcs.test")) == sorted(4 * [FAILS, REFUSES, GOOD])
        assert looked_up(made.host, "failing", "six.failover.test") == both(ANSWER, "2001:db8::80")
    with made.running("hopeless", f"--network front --dns {FAILS} --dns {REFUSES}"):
        assert one(made.host, "hopeless", "hopeless.test").status in ("SERVFAIL", "REFUSED")


def test_s17_06_that_a_name_does_not_exist_is_an_answer(made: Made) -> None:
    with made.running("told", f"--network front --dns {NOBODY} --dns {GOOD}"):
        assert one(made.host, "told", "nobody.test").status == "NXDOMAIN"
        for libc, says in looked_up(made.host, "told", "nobody3.test").items():
            assert NOT_FOUND[libc] in says
        assert set(made.outside.whom("nobody.test") + made.outside.whom("nobody3.test")) == {NOBODY}


def test_s17_07_another_resolv_conf_of_the_host_is_followed_by_running_containers(made: Made) -> None:
    assert one(made.host, "asker", "before.test").data == [ANSWER]
    with made.resolvers(f"nameserver {OTHER}\n"):
        assert one(made.host, "asker", "during.test").data == [OTHERS_ANSWER]
        assert looked_up(made.host, "lone", "during2.test") == both(OTHERS_ANSWER)
    assert one(made.host, "asker", "after.test").data == [ANSWER]


def test_s17_07_the_agent_follows_it_without_any_command(made: Made) -> None:
    asker, before = made.asker(), made.host.resolv_conf.read_text()
    with agent(made.host), eventually() as until:
        try:
            made.host.resolvers(f"nameserver {OTHER}\n")
            until(lambda: asker.ask("agent.test").addresses == [OTHERS_ANSWER])
        finally:
            made.host.resolvers(before)
        until(lambda: asker.ask("agent2.test").addresses == [ANSWER])


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_s17_08_a_resolver_on_the_hosts_loopback_is_asked_and_nobody_else(made: Made, loopback: str) -> None:
    with contextlib.closing(Sniffer(made.host)) as uplink, made.resolvers(f"nameserver {loopback}\n"):
        name = f"stub{len(loopback)}"
        assert one(made.host, "asker", f"{name}.test").data == [LOOPBACK_ANSWER]
        assert one(made.host, "asker", f"{name}.test", "+tcp").data == [LOOPBACK_ANSWER]
        assert one(made.host, "s1", f"{name}.test").data == [LOOPBACK_ANSWER]
        assert looked_up(made.host, "lone", f"{name}-lone.test") == both(LOOPBACK_ANSWER)
        asked = made.own.asked(f"{name}.test")
        assert {(each.address, each.peer) for each in asked} == {(loopback, loopback)}
        assert {each.proto for each in asked} == {"udp", "tcp"}
        assert not uplink.carry(name)


def test_s17_09_ten_thousand_questions_are_under_way_at_once(made: Made) -> None:
    """The upstream answers none before it has them all."""
    sockets, each = 200, MANY // 200
    with made.running("crowd", f"--network front --dns {HOLDS}"):
        asker = made.asker("crowd")
        opened = [asker.socket() for _ in range(sockets)]
        for number, one_socket in enumerate(opened):
            for ident in range(each):
                one_socket.send(question(f"q{number}-{ident}.test", A, ident))
        with contextlib.ExitStack() as stack:
            for one_socket in opened:
                stack.enter_context(one_socket)
            for one_socket in opened:
                found = [parsed(one_socket.recv(4096)) for _ in range(each)]
                assert sorted(reply.ident for reply in found) == list(range(each))
                assert {tuple(reply.addresses) for reply in found} == {(HELD_ANSWER,)}


def test_s17_10_answers_are_never_stale(made: Made) -> None:
    made.host.run("mover", "--network back")
    asker = made.asker()
    for address in ("10.50.0.101", "10.50.0.102"):
        made.host.ctl(f"network connect --ip {address} --alias m{address[-1]} front mover")
        reply = one(made.host, "asker", "mover")
        assert [(ttl, data) for _, ttl, _, data in reply.answers] == [(0, address)]
        assert asker.ask(f"m{address[-1]}").addresses == [address]
        made.host.ctl("network disconnect front mover")
        assert asker.ask("mover").addresses == asker.ask(f"m{address[-1]}").addresses == [ANSWER]
    made.host.ctl("rm -f mover")


def test_s17_10_a_new_name_counts_at_once(made: Made) -> None:
    with made.running("old", "--network name=front,alias=stays"):
        asker, address = made.asker(), made.address("old")
        made.host.ctl("rename old young")
        try:
            assert asker.ask("young").addresses == asker.ask("stays").addresses == [address]
            assert asker.ask("old").addresses == [ANSWER]
            assert one(made.host, "asker", f"-x {address}").data == ["young.front."]
        finally:
            made.host.ctl("rename young old")


def test_s17_11_no_change_loses_a_question_that_is_under_way(made: Made) -> None:
    """Those that the program answers, and those that wait for an upstream."""
    names = made.folder / "web"
    names.write_text("web\nfancy\nweb.front\n")
    argv = ["nsenter", "-t", str(made.host.process("asker")), "--net", QUESTIONS, "ask", LOCAL, "53"]
    with made.running("waits", f"--network front --dns {HOLDS}"):
        waiting = made.asker("waits")
        sockets = [waiting.socket() for _ in range(100)]
        for number, opened in enumerate(sockets):
            for ident in range(MANY // len(sockets) - 1):
                opened.send(question(f"w{number}-{ident}.test", A, ident))
        asking = made.host.start([*argv, "1", "4", str(names)], stdout=-1)
        made.host.run("passing", "--network back")
        while asking.poll() is None:
            made.host.ctl("network connect front passing")
            made.host.ctl("network disconnect front passing")
        made.host.ctl("rm -f passing")
        assert asking.stdout
        said = asking.stdout.read()
        assert '"lost": 0, "wrong": 0' in said and '"answered": 0' not in said
        for number, opened in enumerate(sockets):  # the last ones
            opened.send(question(f"w{number}-last.test", A, 9999))
        for opened in sockets:
            assert len([opened.recv(4096) for _ in range(MANY // len(sockets))]) == MANY // len(sockets)
            opened.close()


def test_s17_12_an_address_leads_back_to_name_and_network(made: Made) -> None:
    for address in (made.address("web"), made.address6("web")):
        (owner, _, kind, data), *more = one(made.host, "asker", f"-x {address}").answers
        assert (owner, kind, data, more) == (f"{reverse(address)}.", "PTR", "web.front.", [])
    assert one(made.host, "s1", f"-x {made.address6('s2', 'six')}").data == ["s2.six."]


def test_s17_12_an_address_of_a_subnet_of_ours_that_nobody_has_is_asked_of_nobody(made: Made) -> None:
    for address in ("10.50.0.200", "10.51.0.77", "fd50::1234", "fd53::abcd"):
        assert one(made.host, "asker", f"-x {address}").status == "NXDOMAIN"
        assert not made.outside.asked(reverse(address))
    assert one(made.host, "asker", "-x 198.51.100.7").data == ["host.upstream.test."]
    assert one(made.host, "asker", "-x 2001:db8::7").data == ["host.upstream.test."]


def test_s17_13_on_an_internal_network_other_names_do_not_exist_and_nothing_leaks(made: Made) -> None:
    with contextlib.closing(Sniffer(made.host)) as uplink:
        for options in ("", "+tcp", "@10.52.0.1", f"@{LOCAL} -b 127.0.0.1"):
            assert one(made.host, "inner1", "leaks.test", options).status == "NXDOMAIN"
        for kind in (A, AAAA, MX, TXT, SRV, HTTPS, PTR, ANY):
            assert made.asker("inner1").ask("leaks.test", kind).code == NXDOMAIN
        for libc, says in looked_up(made.host, "inner1", "leaks.test").items():
            assert NOT_FOUND[libc] in says
        address = made.address("inner2", "inner")
        assert looked_up(made.host, "inner1", "inner2") == both(address)
        assert one(made.host, "inner1", "inner2", "+tcp").data == [address]
        assert not uplink.carry("leaks")
    assert not made.outside.asked("leaks.test") and not made.own.asked("leaks.test")


def test_s17_13_a_resolver_on_the_internal_network_is_asked(made: Made) -> None:
    address, within = (
        made.address("inner2", "inner"),
        ["nsenter", "-t", str(made.host.process("inner2")), "--net"],
    )
    member = Upstreams(made.host, made.folder / "member", f"{address}=203.0.113.70", within=within)
    with made.running("inner3", f"--network inner --dns {address}"):
        assert one(made.host, "inner3", "member.test").data == ["203.0.113.70"]
        assert one(made.host, "inner3", "member.test", "+tcp").data == ["203.0.113.70"]
        assert looked_up(made.host, "inner3", "member2.test") == both("203.0.113.70")
        assert member.whom("member.test") == [address, address]
        assert one(made.host, "inner3", "inner1").data == [made.address("inner1", "inner")]
    with made.running("leaky", f"--network inner --dns {GOOD}"):
        assert one(made.host, "leaky", "leaky.test").status == "NXDOMAIN"
        assert not made.outside.asked("leaky.test")


def test_s17_14_an_alias_of_several_has_all_addresses_and_none_is_always_first(made: Made) -> None:
    addresses = sorted(made.address(name) for name in ("web", "web2", "web3"))
    replies = dig(made.host, "asker", *40 * ("api",))
    assert all(reply.data == addresses for reply in replies)
    assert {reply.answers[0][3] for reply in replies} == set(addresses)
    assert one(made.host, "asker", "api", "+tcp").data == addresses
    assert looked_up(made.host, "asker", "api") == both(
        *addresses, *(made.address6(name) for name in ("web", "web2", "web3"))
    )


def test_s17_15_large_answers_come_whole(made: Made) -> None:
    cut = one(made.host, "asker", "big.test", "+noedns +ignore")
    assert "tc" in cut.flags and not cut.answers
    assert len(one(made.host, "asker", "big.test", "+bufsize=1232 +ignore").answers) == 60
    assert len(one(made.host, "asker", "big.test", "+noedns").answers) == 60
    assert len(one(made.host, "asker", "huge.test").answers) == 300
    assert {each.proto for each in made.outside.asked("huge.test")} == {"udp", "tcp"}
    assert len(looked_up(made.host, "asker", "huge.test")["glibc"]) == 300  # musl 1.2.3 asks over UDP only


def test_s17_16_search_domains_are_the_hosts_or_those_that_were_asked_for(made: Made) -> None:
    def lines(container: str) -> list[str]:
        text = made.host.in_(container, "cat /etc/resolv.conf")
        return sorted(line for line in text.splitlines() if line and not line.startswith("#"))

    kept = "search corp.example lab.example"
    assert lines("asker") == [f"nameserver {LOCAL}", "options timeout:9 ndots:0", kept]
    assert lines("lone") == [f"nameserver {LOCAL}", "options timeout:9", kept]
    with made.running(
        "chosen", "--network front --dns-search a.test --dns-search b.test --dns-option ndots:2"
    ):
        assert lines("chosen") == [f"nameserver {LOCAL}", "options ndots:2", "search a.test b.test"]
        assert looked_up(made.host, "chosen", "nx.short") == {
            libc: f"nx.short: {says}" for libc, says in NOT_FOUND.items()
        }
        assert made.outside.asked("nx.short.a.test") and made.outside.asked("nx.short.b.test")
    with made.running("none", "--network front --dns-search ."):
        assert lines("none") == [f"nameserver {LOCAL}", "options timeout:9 ndots:0"]


def test_s17_17_what_is_not_ours_is_asked_as_it_is(made: Made) -> None:
    for name in ("uz", "tasks", "webx", "web.front.test", "xweb", "front", "_srv._tcp.Web", "."):
        reply = one(made.host, "asker", name)
        assert (reply.status, reply.data) == ("NOERROR", [ANSWER])
        found = made.outside.asked("" if name == "." else name)
        assert [each.address for each in found if each.name == f"{name.rstrip('.')}."] == [GOOD]


def test_s17_18_it_is_there_over_ipv6_and_for_containers_without_ipv4(made: Made) -> None:
    assert one(made.host, "asker", "web", "@fd50::1").data == [made.address("web")]
    assert one(made.host, "asker", "six.over6.test AAAA", "@fd50::1").data == ["2001:db8::80"]
    address = made.address6("s2", "six")
    assert looked_up(made.host, "s1", "s2") == both(address)
    for options in ("", "+tcp", "@fd53::1", "@fd53::1 +tcp"):
        assert one(made.host, "s1", "s2 AAAA", options).data == [address]
        assert one(made.host, "s1", "only6.test", options).data == [ANSWER]
    assert looked_up(made.host, "s1", "only6.test") == both(ANSWER)


def test_s17_19_what_is_odd_in_the_hosts_resolv_conf_is_no_obstacle(made: Made) -> None:
    odd = f"nameserver {LINK_LOCAL}%eth0\nnonsense\noptions fancy:1 attempts:2\n;comment\nnameserver\n"
    with made.resolvers(odd):
        assert one(made.host, "asker", "scoped.test").data == [LINK_LOCAL_ANSWER]
        assert looked_up(made.host, "asker", "scoped2.test") == both(LINK_LOCAL_ANSWER)
    with made.resolvers(f"nameserver {OTHER} {GOOD}\n\tnameserver 300.1.1.1\n"):
        assert one(made.host, "asker", "twoaddresses.test").data == [OTHERS_ANSWER]
    with made.resolvers(f"nameserver nonsense\nnameserver {OTHER}\n"):
        assert one(made.host, "asker", "nonsense.test").data == [OTHERS_ANSWER]


def test_s17_20_a_hostname_is_a_name_for_the_others(made: Made) -> None:
    assert looked_up(made.host, "asker", "fancy") == both(made.address("web"), made.address6("web"))
    ident = made.host.inspect("web")["Id"][:12]
    for name in ("fancy.front", "web.front", ident, f"{ident}.front", LONG, f"{LONG}.front"):
        assert one(made.host, "asker", name).data == [made.address("web")]
    with made.running("lone2", "--hostname another"):
        assert one(made.host, "lone", "another").data == [ANSWER]  # of the default network there are none
        assert one(made.host, "lone", "lone2").data == [ANSWER]


def test_s17_21_each_container_has_the_upstreams_that_were_asked_for(made: Made) -> None:
    with made.running("chooser", f"--network front --dns {OTHER}"):
        assert looked_up(made.host, "chooser", "chooses.test") == both(OTHERS_ANSWER)
        assert looked_up(made.host, "asker", "chooses.test") == both(ANSWER)
        assert f"nameserver {LOCAL}" in made.host.in_("chooser", "cat /etc/resolv.conf")
        assert one(made.host, "chooser", "web").data == [made.address("web")]
        made.host.ctl("network connect back chooser")
        assert one(made.host, "chooser", "still.test").data == [OTHERS_ANSWER]
        assert one(made.host, "chooser", "hidden").data == [made.address("hidden", "back")]
        assert one(made.host, "chooser", "web").data == [made.address("web")]


def test_s17_22_host_docker_internal_stands_in_hosts_where_it_was_asked_for(made: Made) -> None:
    with made.running("hosts", "--network front --add-host host.docker.internal:host-gateway"):
        found = looked_up(made.host, "hosts", "host.docker.internal")
        assert found["glibc"] == found["musl"] and "10.50.0.1" in found["musl"]
        assert not made.outside.asked("host.docker.internal")
    assert looked_up(made.host, "asker", "host.docker.internal") == both(ANSWER)


def test_s17_23_the_name_of_a_stopped_container_is_gone_at_once(made: Made) -> None:
    with made.running("shortlived", "--network name=front,alias=brief"):
        address = made.address("shortlived")
        assert looked_up(made.host, "asker", "brief") == both(address, made.address6("shortlived"))
        made.host.ctl("stop -t 0 shortlived")
        for name in ("shortlived", "brief", "shortlived.front"):
            assert one(made.host, "asker", name).data == [ANSWER]
        assert one(made.host, "asker", f"-x {address}").status == "NXDOMAIN"


# ---- the protocol --------------------------------------------------------------------------------


def test_s17_edns_is_answered_where_it_was_asked(made: Made) -> None:
    plain, extended = one(made.host, "asker", "web", "+noedns"), one(made.host, "asker", "web", "+edns=0")
    assert "EDNS" not in plain.text and "EDNS: version: 0" in extended.text
    assert plain.data == extended.data == [made.address("web")]
    assert one(made.host, "asker", "web", "+edns=1 +noednsnegotiation").status == "BADVERS"
    asked = one(made.host, "asker", "web", "+dnssec +cdflag +cookie=0011223344556677 +nsid +adflag")
    assert asked.data == [made.address("web")]
    assert "cd" in asked.flags and not asked.flags & {"ad", "aa", "tc"} and {"qr", "rd", "ra"} <= asked.flags
    assert "rd" not in one(made.host, "asker", "web", "+norecurse").flags


def test_s17_over_tcp_too_in_both_ways_of_asking(made: Made) -> None:
    web, web6 = made.address("web"), made.address6("web")
    for container, name, answers in (("asker", "web", [web]), ("asker", "tcp.test", [ANSWER])):
        reply = one(made.host, container, name, "+tcp")
        assert reply.data == answers, reply.text
    assert one(made.host, "asker", "web AAAA", "+tcp").data == [web6]
    # glibc sends A and AAAA in one segment.
    assert looked_up(made.host, "asker", "web", "RES_OPTIONS=use-vc")["glibc"] == sorted([web, web6])
    assert looked_up(made.host, "asker", "six.vc.test", "RES_OPTIONS=use-vc")["glibc"] == [
        "2001:db8::80",
        ANSWER,
    ]
    assert {each.proto for each in made.outside.asked("six.vc.test")} >= {"tcp"}
    found = [parsed(each) for each in made.asker().over_tcp(question("web", A, 7), question("web", AAAA, 8))]
    assert [(each.ident, each.addresses) for each in found] == [(7, [web]), (8, [web6])]
    assert one(made.host, "inner1", "inner2 AAAA", "+tcp").status == "NOERROR"


def test_s17_the_upstream_of_a_connection_that_asks_for_a_name_of_ours_is_told_that_it_is_not_needed(
    made: Made,
) -> None:
    """Such a connection leads to the upstream until it asks for ours."""
    before = made.outside.resets()
    assert one(made.host, "asker", "web", "+tcp").data == [made.address("web")]
    with eventually() as until:
        until(lambda: made.outside.resets() == before + 1)


def test_s17_a_link_is_a_name_for_its_client_alone(made: Made) -> None:
    with made.running("linked", "--network front --link web:db"):
        assert looked_up(made.host, "linked", "db") == both(made.address("web"), made.address6("web"))
        assert one(made.host, "asker", "db").data == [ANSWER]


def test_s17_what_would_be_answered_and_by_whom_is_said_by_a_command(made: Made) -> None:
    web = made.address("web")
    assert web in made.host.ctl("names ls front") and "fancy" in made.host.ctl("names ls front")
    assert web in made.host.ctl("names resolve asker web")
    assert f"upstream {GOOD}" in made.host.ctl("names resolve asker said.test")
    assert {each.peer for each in made.outside.asked("said.test")} == {HOST}


# ---- who may know ----------------------------------------------------------------------------------


def same_but_for_the_name(asker: Asker, some: str, other: str, kind: int) -> bool:
    replies = []
    for name in (some, other):
        asked = question(name, kind)
        replies.append(asker.raw(asked).replace(asked[12:], b"?"))
    return replies[0] == replies[1]


def test_s17_a_name_of_another_network_is_not_told_from_one_that_does_not_exist(made: Made) -> None:
    asker = made.asker("inner1")
    used, unused = made.address("hidden", "back"), "10.51.0.9"
    for kind in (A, AAAA, MX, TXT, SRV, HTTPS, ANY, PTR):
        assert same_but_for_the_name(asker, "hidden", "absent", kind)
        assert same_but_for_the_name(asker, "hidden.back", "absent.back", kind)
        assert same_but_for_the_name(asker, reverse(used), reverse(unused), kind)
    assert asker.ask("hidden").code == asker.ask(reverse(used), PTR).code == NXDOMAIN
    for name in ("hidden", "hidden.back", "absent", made.host.inspect("hidden")["Id"][:12]):
        before = len(made.outside.asked(name))
        assert one(made.host, "asker", name).data == [ANSWER]  # forwarded, both alike
        assert len(made.outside.asked(name)) == before + 1
    for container in ("asker", "inner1", "lone"):
        reply = one(made.host, container, f"-x {used}")
        assert reply.status == "NXDOMAIN" and not reply.answers
    assert made.asker("lone").ask("web", to=LOCAL).addresses == [ANSWER]


def test_s17_a_flood_of_one_container_costs_the_others_few_of_their_questions(made: Made) -> None:
    """Two containers ask as fast as they can, one for a name of ours, one for others that nobody answers."""
    with ExitStack() as stack:
        for name, upstream in (("flood1", FLOODED), ("flood2", FLOODED), ("third", QUICK)):
            stack.enter_context(made.running(name, f"--network front --dns {upstream}"))
        servers = [made.outside_serves(FLOODED, "silent"), made.outside_serves(QUICK, ANSWER)]
        floods = []
        for container, text in (("flood1", "web\n"), ("flood2", "a.test\nb.test\n")):
            names = made.folder / container
            names.write_text(text)
            within = ["nsenter", "-t", str(made.host.process(container)), "--net"]
            floods.append(made.host.start([*within, QUESTIONS, "flood", LOCAL, "53", str(names)]))
        asker, lost = made.asker("third"), 0
        with asker.socket() as opened:
            opened.settimeout(3)
            for number in range(1000):
                opened.send(question("web" if number % 2 else f"third{number}.test", A, number))
                try:
                    while parsed(opened.recv(4096)).ident != number:
                        pass
                except TimeoutError:
                    lost += 1
        for process in (*floods, *servers):
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    assert lost <= 50


# ---- changes while others ask ----------------------------------------------------------------------


class Changes:
    """Connects and disconnects a container, asks after each for what has to be so now, and says what was not."""

    def __init__(self, made: Made, count: int, each: int) -> None:
        self._count, self._each = count, each
        self._asker = made.asker().socket()

    def expect(self, name: str, addresses: list[str]) -> None:
        for ident in range(self._each):
            self._asker.send(question(name, A, ident))
            found = parsed(self._asker.recv(4096))
            assert (found.ident, found.addresses) == (ident, addresses), f"{name}: {found}, not {addresses}"

    def __call__(self) -> int:
        """In a process of its own, by the library; prints how many questions were asked."""
        from datapath.config.settings import Settings
        from datapath.host import Host as DatapathHost
        from datapath.model.endpoints import EndpointRequest
        from datapath.runtime.containers import Containers

        containers, asked = Containers(DatapathHost.open(Settings.from_env(os.environ))), 0
        for number in range(self._count // 2):
            address, alias = f"10.50.0.{100 + number % 50}", f"alias{number % 7}"
            containers.connect("changing", EndpointRequest("front", ip=address, aliases=(alias,)))
            for name in ("changing", alias, "changing.front"):
                self.expect(name, [address])
            containers.disconnect("front", "changing")
            for name in ("changing", alias):
                self.expect(name, [ANSWER])  # it is not ours, and an upstream is asked
            asked += 5 * self._each
        print(asked)
        return 0


def test_s17_11_every_change_is_seen_by_the_next_question_and_none_is_lost(made: Made) -> None:
    """1,000 changes with DATAPATH_LONG=1. Meanwhile others are asked for, by another container."""
    count = 1000 if os.environ.get("DATAPATH_LONG") else 20
    with made.running("changing", "--network back"):
        changes, done = Changes(made, count, 2), threading.Event()
        results = []

        def change() -> None:
            with made.host.forking():
                results.append(
                    forked.call(changes, ["changes"], made.host.path, made.host.env or {}, 10 * TIMEOUT)
                )
            done.set()

        asker, expected, asked = made.asker("web2"), made.address("web"), 0
        changing = threading.Thread(target=change)
        changing.start()
        with asker.socket() as opened:
            while not done.is_set() or asked < 10 * count:
                opened.send(question("web", A, asked & 0xFFFF))
                found = parsed(opened.recv(4096))
                assert (found.ident, found.addresses) == (asked & 0xFFFF, [expected])
                asked += 1
        changing.join()
    (result,) = results
    assert (result.returncode, result.stderr) == (0, "") and int(result.stdout) == 5 * count


# ---- nothing of ours has to live -------------------------------------------------------------------


def test_s17_names_go_on_when_everything_of_ours_is_killed_and_all_rules_are_flushed(made: Made) -> None:
    """The last one here: it kills the shims."""
    asker, asked, stop = made.asker(), [0], threading.Event()
    wrong: list[object] = []
    web = made.address("web")

    def ask() -> None:
        while not stop.is_set():
            found = asker.ask("web").addresses
            asked[0] += 1
            if found != [web]:
                wrong.append(found)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with agent(made.host) as killed:
            killed.kill()
        for name in ("asker", "web"):
            os.kill(made.host.shim(name), signal.SIGKILL)
        for command in ("iptables -F", "iptables -t nat -F", "iptables -P FORWARD DROP", "nft flush ruleset"):
            made.host.try_(command)
        before = asked[0]
        with eventually() as until:
            until(lambda: asked[0] > before + 1000)
    finally:
        stop.set()
        asking.join()
    assert not wrong
    assert looked_up(made.host, "asker", "dead.test") == both(ANSWER)
    assert one(made.host, "asker", "web", "+tcp").data == [web]
    assert one(made.host, "asker", f"-x {web}").data == ["web.front."]
    assert HOST in {each.peer for each in made.outside.asked("dead.test")}
