# SPDX-License-Identifier: Apache-2.0
"""S25, Docker's door: a real dockerd and its client, unmodified, drive the datapath. Packets are real, so is curl."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath import EndpointRequest, NetworkRequest
from tests.docker_requests import recordings
from tests.doors import table
from tests.doors.table import door
from tests.net.dockerd import HTTPD, IMAGE, PAGE, SOCKET, DockerHost, needs_docker
from tests.net.hosts import DATAPATHCTL, HOST, OUTSIDE, eventually
from tests.net.test_library import Engine

pytestmark = needs_docker
NET = "--network n1"
# Docker waits 15 s for each call that nobody answers, and more between the times that it asks again.
long = pytest.mark.skipif(not os.environ.get("DATAPATH_LONG"), reason="takes minutes: DATAPATH_LONG=1")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"))
    with contextlib.closing(made):
        begin(made)
        yield made


def begin(host: DockerHost) -> None:
    """The daemon and the driver are up, and two networks there. Their MTU is to be the uplink's."""
    for place in (host, host.outside):
        place.sh("ip link set eth0 mtu 1460")
    host.serve()
    host.up()
    host.docker("network create -d datapath --subnet 10.5.0.0/16 --gateway 10.5.0.1 n1")
    host.docker("network create -d datapath --subnet 10.6.0.0/16 n2")


@pytest.fixture
def host(request: pytest.FixtureRequest, shared: DockerHost) -> Iterator[DockerHost]:
    """The module's host; its containers go, and nothing is left of them."""
    table.client(request, shared.version)
    yield shared
    if containers := shared.docker("ps -aq").split():
        shared.docker(["rm", "-f", *containers])
    assert shared.ctl("ps -q") == "" and "80" not in shared.ctl("port ls")
    assert shared.clean()


def run(host: DockerHost, name: str, options: str = NET, command: str = HTTPD) -> None:
    host.docker(f"run -d --name {name} {options} {IMAGE} {command}")


def answers(host: DockerHost, port: int = 8080) -> bool:
    """From outside, as soon as the server listens."""
    with eventually() as until:
        until(lambda: host.outside.try_(f"curl -sS -m 30 http://{HOST}:{port}/").stdout == PAGE)
    return True


def closed(host: DockerHost, port: int = 8080) -> bool:
    return bool(host.outside.try_(f"curl -sS -m 2 http://{HOST}:{port}/").returncode)


def owners(host: DockerHost, port: int = 8080) -> list[str]:
    """Who has the port, by `port ls`."""
    found = (json.loads(line) for line in host.ctl("port ls --json").splitlines())
    return [row["Container"] for row in found if str(row["HostPort"]) == str(port)]


@contextlib.contextmanager
def download(host: DockerHost, port: int = 8080) -> Iterator[Callable[[], bool]]:
    """A client outside reads without end; whether it has read more by now."""
    stopping, read, failed = threading.Event(), [0], []
    with eventually() as until:  # its server is there a moment after its container
        until(lambda: host.outside.try_(f"nc -z -w 30 {HOST} {port}").returncode == 0)
    client = host.outside.start(
        ["sh", "-c", f"exec nc {HOST} {port} </dev/zero"], stdout=subprocess.PIPE, text=False
    )

    def pull() -> None:
        assert client.stdout is not None
        while not stopping.is_set():
            got = len(os.read(client.stdout.fileno(), 1 << 16))
            read[0] += got
            if not got and not stopping.is_set():
                failed.append("it ended")
                return

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()

    def goes_on() -> bool:
        assert not failed
        before = read[0]
        with eventually() as until:
            until(lambda: failed or read[0] > before)
        return not failed

    assert goes_on()
    yield goes_on
    assert goes_on()
    stopping.set()
    client.kill()
    thread.join(60)


@contextlib.contextmanager
def always(question: Callable[[], bool]) -> Iterator[None]:
    """Whenever it is asked meanwhile, it is so."""
    ended, answered = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            answered.append(question())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert answered and all(answered)


STREAM = "nc -ll -p 80 -e cat"  # a client gets back what it sends, without end


# ---- scenarios, by their numbers in the list of front doors ---------------------------------------------------


@door("Docker", 1, 2)
def test_s25_a_network_is_dockers_and_a_container_answers_at_its_port_from_everywhere(
    host: DockerHost,
) -> None:
    """No bridge, no listener, no rule of a packet filter; and the driver is not there when nobody asks it."""
    assert host.docker("network inspect -f {{.Driver}}:{{.Scope}} n1") == "datapath:local"
    assert "10.5.0.1/16" in host.sh("ip -o -4 address")
    rules = host.sh("iptables-save")
    run(host, "web", f"{NET} -p 8080:80")
    shown = host.exec("web", "ip address show eth0")
    assert "10.5.0.2/16" in shown and "02:42:0a:05:00:02" in shown and "mtu 1460" in shown
    assert "default via 10.5.0.1" in host.exec("web", "ip route")
    run(host, "peer", NET, "sleep 1000")
    assert answers(host)
    for who, address in (
        ("host", HOST),
        ("host", "127.0.0.1"),
        ("peer", HOST),
        ("web", HOST),
        ("peer", "10.5.0.2"),
    ):
        url = f"http://{address}:8080/" if address != "10.5.0.2" else "http://10.5.0.2/"
        found = host.sh(f"curl -sS -m 30 {url}") if who == "host" else host.exec(who, f"wget -q -O - {url}")
        assert found + "\n" == PAGE, (who, address)
    assert host.exec("web", f"ping -c 1 -W 30 {OUTSIDE}")
    assert "8080" not in host.sh("ss -ltn") and host.sh("iptables-save") == rules
    assert "bridge" not in host.sh("ip -o -d link show type bridge") and "docker_gwbridge" not in host.docker(
        "network ls"
    )
    assert host.docker("port web") == ""  # docs/docker.md says why
    with eventually() as until:
        until(lambda: "web" in host.ctl("ps --format {{.Names}}"))
        until(lambda: not host.drivers())
    assert host.clean()


def test_s25_names_are_dockers_in_every_list(host: DockerHost) -> None:
    run(host, "web", f"{NET} -p 8080:80")
    assert answers(host)
    assert host.ctl("ps --format {{.Names}}:{{.Owner}}:{{.Networks}}") == "web:docker:n1"
    assert host.ctl("port web") == "80/tcp -> 0.0.0.0:8080"
    assert "web" in host.ctl("ct ls --container web --format {{.Containers}}")
    assert "web" in host.ctl("ct stats")
    host.docker("rename web shop")
    assert host.ctl("ps --format {{.Names}}") == "shop" and owners(host) == ["shop"]
    with eventually() as until:  # asked for once Docker is quiet
        until(lambda: host.ctl("network ls --filter name=n1 --format {{.Name}}:{{.Owner}}") == "n1:docker")
    assert "belongs to docker" in host.refused("network rm n1")
    assert "networks or sandboxes of docker are here" in host.refused("down")
    assert "belongs to docker" in host.refused("rm shop")


@door("Docker", 3)
def test_s25_a_port_that_is_taken_is_refused_with_its_holder(host: DockerHost) -> None:
    run(host, "web", f"{NET} -p 8080:80")
    with eventually() as until:  # the name of a holder is learned when Docker is quiet
        until(lambda: host.snapshot_names() == ["web"])
    listener = host.start("nc -l -k -p 7070")
    with eventually() as until:
        until(lambda: ":7070" in host.sh("ss -ltn"))
    for port, says in ((8080, '(by container "web")'), (7070, "already in use (by nc")):
        done = host.try_docker(f"run -d --name bad {NET} -p {port}:80 {IMAGE} {HTTPD}")
        assert done.returncode == 125 and str(port) in done.stderr and says in done.stderr, done.stderr
        host.docker("rm bad")
    listener.kill()
    assert answers(host) and host.clean()


@door("Docker", 4)
def test_s25_chosen_ports_ranges_and_all_exposed_ones_are_listed_by_us(host: DockerHost) -> None:
    run(
        host,
        "web",
        f"{NET} -P --expose 80 --expose 90-92 -p 8000-8010:80 -p 9000-9003:80-83 -p 127.0.0.1::81/udp",
    )
    rows = [json.loads(line) for line in host.ctl("port ls web --json").splitlines()]
    ports = {(row["ContainerPort"], row["Protocol"], row["Count"]): row for row in rows}
    assert ports[80, "tcp", 4]["HostPort"] == 9000 and ports[81, "udp", 1]["HostIp"] == "127.0.0.1"
    found = {row["HostPort"] for row in rows if row["ContainerPort"] == 80}
    assert any(8000 <= port <= 8010 for port in found)
    for port in found:
        assert answers(host, port)
    assert host.clean()


@door("Docker", 5)
def test_s25_chosen_addresses_hold_and_no_other_source_passes(host: DockerHost) -> None:
    host.docker(
        f"run -d --name web {NET} --cap-add NET_ADMIN --ip 10.5.0.77 --mac-address 02:42:aa:bb:cc:dd {IMAGE} sleep 1000"
    )
    shown = host.exec("web", "ip address show eth0")
    assert "10.5.0.77/16" in shown and "02:42:aa:bb:cc:dd" in shown
    assert host.exec("web", f"ping -c 1 -W 30 {OUTSIDE}")
    host.exec("web", "ip address add 10.5.9.9/16 dev eth0")
    before = host.drops()["DROP_SPOOFED_ADDR"]
    assert host.try_docker(f"exec web ping -c 1 -W 1 -I 10.5.9.9 {OUTSIDE}").returncode
    assert host.drops()["DROP_SPOOFED_ADDR"] > before


@door("Docker", 6)
def test_s25_ports_follow_the_way_out_of_a_container_on_two_networks(host: DockerHost) -> None:
    """And are never at two places."""
    run(host, "web", f"{NET} -p 8080:80 -p 81")
    chosen = host.ctl("port web 81")
    steps = (
        "network connect n2 web",
        "network disconnect n1 web",
        "network connect n1 web",
        "restart -t 0 web",
        "network disconnect n2 web",
    )
    with always(lambda: len(owners(host)) <= 1):
        for step in steps:
            host.docker(step)
            assert "restart" in step or not closed(host), step
            assert answers(host) and owners(host) == ["web"], step
            if "restart" not in step:
                assert step == steps[-1] or host.ctl("port web 81") == chosen, step
    assert host.clean()
    host.docker("stop -t 0 web")
    assert closed(host) and owners(host) == []
    host.docker("start web")
    assert answers(host) and host.clean()


@door("Docker", 7)
def test_s25_an_internal_network_has_no_way_out_and_no_port(host: DockerHost) -> None:
    host.docker("network create -d datapath --internal --subnet 10.7.0.0/24 inner")
    run(host, "web", "--network inner -p 8080:80")
    assert "default" not in host.exec("web", "ip route")
    assert closed(host) and owners(host) == []
    assert host.try_docker(f"exec web ping -c 1 -W 1 {OUTSIDE}").returncode
    host.docker("network connect n1 web")  # then it has one
    assert answers(host) and owners(host) == ["web"] and host.clean()
    host.docker("rm -f web")
    host.docker("network rm inner")


def test_s26_containers_are_behind_services_by_their_option_or_their_labels(host: DockerHost) -> None:
    """On a network of Docker's own, and on one that stands for one of datapathctl's; until they end."""
    host.ctl("network create --subnet 10.9.0.0/24 shop")
    host.docker("network create -d datapath --ipam-driver null -o com.datapath.network=shop front")
    network = host.docker("network inspect -f {{.ID}} n1")
    host.ctl("service create --network shop -p 8090:80 web")
    host.ctl(f"service create --network {network} -p 8091:80 --selector app=api api")

    def backends(service: str) -> dict[str, str]:
        rows = host.ctl(["service", "ps", service, "--format", "{{.Container}} {{.Weight}}"]).splitlines()
        return dict(row.split() for row in rows)

    run(host, "w1", "--network n2")
    host.docker("network connect --driver-opt com.datapath.service=web front w1")
    joining = 'name=front,"driver-opt=com.datapath.service=web,weight=3"'
    host.docker(["run", "-d", "--name", "w2", "--network", joining, IMAGE, *HTTPD.split()])
    assert backends("web") == {"w1": "1", "w2": "3"} and answers(host, 8090)
    run(host, "a1", f"{NET} --label app=api")
    with eventually() as until:  # Docker is asked for labels once it has answered its user
        until(lambda: backends("api") == {"a1": "1"})
    assert answers(host, 8091)
    vip = host.ctl("service ls --format {{.VIP}}").split()[0]
    assert vip == "10.5.255.254"
    run(host, "client", command="sleep 3600")
    assert host.docker(f"exec client wget -q -O - http://{vip}/") + "\n" == PAGE
    host.ctl("service drain web w1")
    host.docker("stop -t 0 w2")
    assert backends("web") == {"w1": "1"} and closed(host, 8090)
    host.docker("restart -t 0 a1")
    with eventually() as until:
        until(lambda: backends("api") == {"a1": "1"})
    host.docker("start w2")
    assert backends("web") == {"w1": "1", "w2": "3"} and answers(host, 8090)
    assert host.clean()
    for option, said in (("nobody", "no such service: nobody"), ("api", "that is on network n1")):
        done = host.try_docker(
            ["run", "-d", "--network", f"name=front,driver-opt=com.datapath.service={option}", IMAGE, "true"]
        )
        assert done.returncode == 125 and said in done.stderr.strip().splitlines()[-1]
    host.docker("rm -f w1 w2 a1")
    assert backends("web") == backends("api") == {}
    host.ctl("service rm web api")
    host.docker("network rm front")
    host.ctl("network rm shop")


@door("Docker", 8)
def test_s25_names_of_containers_resolve(host: DockerHost) -> None:
    run(host, "web", f"{NET} --network-alias shop")
    host.docker(f"run -d --name peer {NET} --link web:old {IMAGE} sleep 1000")
    for name in ("web", "shop", "old"):
        assert "10.5.0.2" in host.exec("peer", f"nslookup {name} 127.0.0.11")


def endpoint(host: DockerHost, name: str) -> str:
    """The id of a container's endpoint on n1."""
    return host.docker(["inspect", "-f", "{{.NetworkSettings.Networks.n1.EndpointID}}", name])


@door("Docker", 9)
def test_s25_a_container_that_starts_again_has_its_port_within_a_second(host: DockerHost) -> None:
    """Another endpoint then, and nothing is left of the one before."""
    run(host, "web", f"{NET} -p 8080:80 --restart always")
    assert answers(host)
    seen, waited = [endpoint(host, "web")], []

    def works_again() -> None:
        began = time.monotonic()
        with eventually() as until:
            until(lambda: not closed(host))
            waited.append(time.monotonic() - began)
            until(lambda: endpoint(host, "web") not in ("", seen[-1]))
        seen.append(endpoint(host, "web"))
        assert owners(host) == ["web"] and host.clean()
        assert sum(line.split(": ")[1].startswith("veth") for line in host.sh("ip -o link").splitlines()) == 1

    host.docker("restart -t 0 web")
    works_again()
    host.docker("stop -t 0 web")
    host.docker("start web")
    works_again()
    host.inside(["kill", "-9", host.docker(["inspect", "-f", "{{.State.Pid}}", "web"])])
    works_again()
    host.down()
    host.up()
    works_again()
    assert min(waited) < 1 and len(set(seen)) == 5


@door("Docker", 12)
def test_s25_nothing_runs_or_listens_while_docker_is_quiet(host: DockerHost) -> None:
    """Of a driver that is started when Docker asks."""
    run(host, "web", f"{NET} -p 8080:80")
    with eventually() as until:
        until(lambda: not host.drivers())
    assert [argv for argv in host.processes() if DATAPATHCTL in argv[:2]] == []
    assert host.sh("ss -Hltnu") == ""
    assert answers(host) and not host.drivers()
    host.docker("network connect n2 web")
    assert host.drivers() and answers(host) and host.clean()


@door("Docker", 15)
def test_s25_two_hundred_ports_are_published_within_a_second_and_a_half(host: DockerHost) -> None:
    """Or, where the machine is busy, in thrice the time that one takes."""
    took: dict[str, list[float]] = {"20000:80": [], "20000-20199:80-279": []}
    for _ in range(3):
        for ports, times in took.items():
            began = time.monotonic()
            run(host, "many", f"{NET} -p {ports}", "httpd -f -p 279 -h /www" if "-" in ports else HTTPD)
            times.append(time.monotonic() - began)
            if "-" in ports:
                (row,) = (json.loads(line) for line in host.ctl("port ls many --json").splitlines())
                assert row["Count"] == 200 and answers(host, 20199)
            host.docker("rm -f many")
            assert closed(host, 20199)
    one, many = map(min, took.values())
    assert many <= max(1.5, 3 * one), took


@door("Docker", 17)
def test_s25_networks_of_datapathctl_are_beside_dockers_and_each_has_its_owner(host: DockerHost) -> None:
    host.docker("network create -d datapath --subnet 10.10.0.0/24 theirs")
    host.ctl("network create --subnet 10.9.0.0/24 ours")
    host.run(
        "mine", "--network ours -p 8090:80", ["busybox", "nc", "-ll", "-p", "80", "-e", "cat", "/proc/uptime"]
    )
    run(host, "web", "--network theirs -p 8080:80")
    before = host.inspect("mine")["NetworkSettings"]
    with eventually() as until:  # the network's name is learned when Docker is quiet
        until(lambda: "belongs to docker" in host.refused("network rm theirs"))
        until(lambda: "belongs to docker" in host.refused("network disconnect theirs web"))
    assert answers(host) and host.docker("network inspect -f {{.Name}} theirs") == "theirs"
    assert host.try_docker("network rm ours").returncode
    host.docker("rm -f web")
    host.docker("network rm theirs")
    assert host.inspect("mine")["NetworkSettings"] == before
    assert host.outside.sh(f"nc -d -w 30 {HOST} 8090")
    assert "theirs" not in host.ctl("network ls")
    host.ctl("rm -f mine")
    host.ctl("network rm ours")


def test_s25_a_container_that_is_renamed_while_nothing_runs_is_known_by_its_new_name(
    host: DockerHost,
) -> None:
    """No driver hears of that: who shows names asks the daemon."""
    run(host, "web", f"{NET} -p 8080:80")
    with eventually() as until:
        until(lambda: host.snapshot_names() == ["web"])
        until(lambda: not host.drivers())
    host.docker("rename web shop")
    assert host.ctl("ps --format {{.Names}}") == "shop" and owners(host) == ["shop"]
    assert host.ctl("port shop") == "80/tcp -> 0.0.0.0:8080" and "web" in host.refused("port web")
    assert answers(host) and "shop" in host.ctl("ct ls --container shop --format {{.Containers}}")
    assert host.snapshot_names() == ["web"] and not host.drivers()
    done = host.try_docker(f"run -d --name shoppe {NET} -p 8080:80 {IMAGE} {HTTPD}")
    assert "8080" in done.stderr
    with eventually() as until:
        until(lambda: host.snapshot_names() == ["shop"])
    host.docker("rm shoppe")


def test_s25_ipv6_and_options_of_networks_are_honoured(host: DockerHost) -> None:
    host.outside.sh("ip -6 address add 2001:db8::2/64 dev eth0 nodad")
    host.sh("ip -6 address add 2001:db8::1/64 dev eth0 nodad")
    host.docker(
        "network create -d datapath --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 "
        "-o com.docker.network.driver.mtu=1400 -o com.docker.network.bridge.name=br9 "
        "-o com.docker.network.bridge.enable_icc=false "
        "-o com.docker.network.container_iface_prefix=lan -o com.datapath.deny=203.0.113.0/24 six"
    )
    run(host, "web", "--network six --ip6 fd08::99 -p 8080:80")
    shown = host.exec("web", "ip address show lan0")
    assert "fd08::99/64" in shown and "mtu 1400" in shown and "10.8.0.1/24" in host.sh("ip address show br9")
    assert host.outside.sh("curl -g -sS -m 30 http://[2001:db8::1]:8080/") + "\n" == PAGE
    assert answers(host)
    assert host.outside.try_(f"curl -sS -m 2 --interface 203.0.113.5 http://{HOST}:8080/").returncode
    run(host, "peer", "--network six", "sleep 1000")
    assert host.try_docker("exec peer ping -c 1 -W 1 10.8.0.2").returncode  # icc is off
    host.docker("network connect --driver-opt com.datapath.allow=192.0.2.2 n1 peer")
    assert host.clean()
    host.docker("rm -f web peer")
    host.docker("network rm six")
    host.sh("ip -6 address del 2001:db8::1/64 dev eth0")
    host.ctl("reconcile")


@door("Docker", 16)
def test_s25_what_cannot_be_is_refused_in_dockers_words_and_no_network_is_left(host: DockerHost) -> None:
    host.ctl("network create --subnet 10.9.0.0/24 ours")
    before = host.docker("network ls -q"), host.ctl("network ls -q")
    for options, says in (
        ("--subnet 10.9.0.128/25", "of network ours"),
        ("--subnet 192.0.2.0/25", "an address or route of this host"),
        ("--ipam-driver null", "IPAM driver"),
        ("-o colour=blue", 'option "colour"'),
        ("--subnet 10.10.0.0/24 -o com.datapath.allow=nobody", "com.datapath.allow"),
    ):
        done = host.try_docker(f"network create -d datapath {options} bad")
        assert done.returncode and "remote: " in done.stderr and says in done.stderr, done.stderr
    assert (host.docker("network ls -q"), host.ctl("network ls -q")) == before
    done = host.try_docker(f"run -d --name bad --network name=n1,driver-opt=k=v {IMAGE} true")
    assert 'option "k" is not available' in done.stderr
    host.docker("network create -d datapath --subnet 10.10.0.0/24 gone")
    host.docker("network rm gone")
    assert (host.docker("network ls -q"), host.ctl("network ls -q")) == before
    host.ctl("network rm ours")


# ---- faults ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def faulty(host: DockerHost, fault: str) -> Iterator[None]:
    host.unserve()
    host.serve(fault)
    try:
        yield
    finally:
        host.unserve()
        host.serve()


@door("Docker", 12)
def test_s25_the_driver_may_be_killed_between_any_two_requests(host: DockerHost) -> None:
    """Each of its processes answers one request, and is killed."""
    with faulty(host, "answered"):
        run(host, "web", f"{NET} -p 8080:80")
        host.docker("network connect n2 web")
        host.docker("network disconnect n1 web")
        assert answers(host) and owners(host) == ["web"] and host.clean()
        host.docker("rm -f web")


@pytest.mark.parametrize("fault", ["unanswered", pytest.param("unheard", marks=long)])
def test_s25_a_driver_that_is_killed_in_a_request_is_one_clear_line_and_nothing_half_done(
    host: DockerHost, fault: str
) -> None:
    """Docker repeats such a request without its body: the command fails, and works when it is given again."""
    failures = 0
    with faulty(host, fault):
        while True:
            done = host.try_docker(f"run -d --name web {NET} -p 8080:80 {IMAGE} {HTTPD}")
            if done.returncode == 0:
                break
            assert "try again" in done.stderr, done.stderr
            failures += 1
            host.docker("rm web")
        assert 2 < failures < 5  # create, join, program
        assert answers(host) and owners(host) == ["web"]
    host.ctl("reconcile")  # what Docker asked to have taken away, and was not heard
    assert answers(host) and host.clean()


@door("Docker", 14)
def test_s25_ten_containers_at_once_and_all_removed_at_once(host: DockerHost) -> None:
    names = [f"c{number:02}" for number in range(10)]
    started = [
        host.start(
            [*host.client, *f"run -d --name {n} {NET} -p 80{n[1:]}:80 {IMAGE} {HTTPD}".split()],
            stderr=subprocess.PIPE,
        )
        for n in names
    ]
    for process in started:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    assert all(answers(host, 8000 + number) for number in range(10))
    assert host.clean()
    host.docker(["rm", "-f", *names])
    assert host.ctl("ps -q") == "" and host.clean()


@door("Docker", 10)
def test_s25_a_daemon_that_is_killed_finds_its_containers_networks_and_ports_again(host: DockerHost) -> None:
    run(host, "web", f"{NET} -p 8080:80 --ip 10.5.0.50")
    host.docker("network connect n2 web")
    run(host, "single", f"{NET} -p 8081:80")
    address = host.exec("single", "ip -o -4 address show eth0")
    host.down(signal.SIGKILL)
    host.up()
    host.docker("start web single")
    assert answers(host) and answers(host, 8081)
    assert "10.5.0.50/16" in host.exec("web", "ip -o address")
    assert host.exec("single", "ip -o -4 address show eth0").split()[3] == address.split()[3]
    assert owners(host) == ["web"] and host.clean()


@door("Docker", 11)
def test_s25_containers_that_outlive_their_daemon_are_never_cut_off(host: DockerHost) -> None:
    """Live restore: the daemon is ended, and killed; a download through a published port goes on."""
    host.down()
    host.up("--live-restore")
    run(host, "web", f"{NET} -p 8080:80", STREAM)
    with download(host) as goes_on:
        for number in (signal.SIGTERM, signal.SIGKILL):
            host.down(number)
            assert goes_on() and host.clean()
            host.up("--live-restore")
            assert goes_on() and owners(host) == ["web"] and host.clean()
        host.kill_driver()
        run(host, "other", f"{NET} -p 8081:80")
        assert goes_on() and answers(host, 8081)
    host.docker("stop -t 0 web")
    assert closed(host) and owners(host) == [] and host.clean()
    host.docker("rm -f other")
    host.down()
    host.up()


@door("Docker", 13)
def test_s25_after_a_reboot_networks_are_there_and_containers_start(host: DockerHost) -> None:
    """What a reboot takes: processes, devices, /run, the bpffs. The state directory and Docker's data are left."""
    run(host, "web", f"{NET} -p 8080:80 --restart no")
    host.down(signal.SIGKILL)
    host.reboot()
    host.up()
    assert "n1" in host.docker("network ls --format {{.Name}}").split()
    host.docker("start web")
    assert answers(host) and owners(host) == ["web"] and host.clean()


@long
def test_s25_a_driver_that_was_away_learns_what_it_was_not_told(host: DockerHost) -> None:
    """A container is removed while nobody answers Docker; the next one has its address and its port. The daemon is
    started without it, too."""
    run(host, "web", f"{NET} -p 8080:80")
    host.unserve()
    host.down(signal.SIGKILL)
    host.up()
    host.docker("rm -f web", timeout=240)
    host.serve()
    run(host, "next", f"{NET} -p 8080:80")
    assert "10.5.0.2/16" in host.exec("next", "ip -o address")
    assert answers(host) and owners(host) == ["next"] and host.clean()


def test_s25_doctor_finds_what_docker_does_not_know(host: DockerHost) -> None:
    """As if Docker had given up an endpoint and a network, and the requests had been lost."""
    engine = Engine(host)
    network = engine.networks.create(NetworkRequest("lost", subnets=("10.79.0.0/24",), owner="docker"))
    engine.endpoints.create(EndpointRequest(network.id), "docker", "nobodys")

    def found() -> set[str]:
        return {json.loads(line)["Check"] for line in host.try_ctl("doctor --json").stdout.splitlines()}

    assert found() == {"forgotten", "forgotten-network"}
    host.try_ctl("reconcile")
    assert found() == {"forgotten-network"}
    host.ctl("network rm -f lost")
    assert host.clean()


# ---- the socket ------------------------------------------------------------------------------------------------


def test_s25_the_socket_is_roots_and_survives_whoever_speaks_to_it(host: DockerHost) -> None:
    run(host, "web", f"{NET} -p 8080:80")
    path = host.seen(SOCKET)
    many = [socket.socket(socket.AF_UNIX) for _ in range(1000)]
    for opened in many:
        opened.settimeout(120)
        opened.connect(path)
    many[0].sendall(b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
    many[1].sendall(b"\0\1\2\r\n\r\n")
    many[2].sendall(b"POST /NetworkDriver.Nothing HTTP/1.1\r\n\r\n")
    many[3].sendall(
        b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n" + b"x" * (1 << 20)
    )
    many[4].sendall(
        b'POST /NetworkDriver.DeleteEndpoint HTTP/1.1\r\nContent-Length: 24\r\n\r\n{"EndpointID": "../../x"}'
    )
    for opened, status in zip(many[1:5], (400, 404, 400, 400), strict=True):
        assert opened.recv(65536).startswith(f"HTTP/1.1 {status} ".encode()), status
    host.docker("network connect n2 web")
    (pid,) = host.drivers()
    assert resident(pid) < 40 << 20
    assert answers(host) and host.clean()
    for opened in many:
        opened.close()


def resident(pid: int) -> int:
    """Bytes of memory that are a process's own or shared."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("Rss:")[2].split()[0]) << 10


def test_s25_recorded_requests_of_newer_daemons_are_served_by_a_real_host(host: DockerHost) -> None:
    """Those of Docker 28.5 in their order: the kernel's side of it, without that daemon. In the end nothing is left."""
    networks = set()
    api = host.api()
    for request in recordings()["28.5-probe"] + recordings()["28.5-plugindown"]:
        if request.method.startswith("IpamDriver"):
            continue
        fields = json.loads(
            request.body.decode().replace("10.5.", "10.25.").replace("10.6.", "10.26.") or "null"
        )
        reply = api.ask("POST", f"/{request.method}", fields)
        assert "internal error" not in json.dumps(reply)
        networks |= {fields["NetworkID"]} if fields and "NetworkID" in fields else set()
    for network in networks:
        assert api.ask("POST", "/NetworkDriver.DeleteNetwork", {"NetworkID": network}) == {}
    assert set(host.ctl("network ls --filter driver=bridge --format {{.Name}}").split()) == {
        "bridge",
        "n1",
        "n2",
    }
