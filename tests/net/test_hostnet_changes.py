# SPDX-License-Identifier: Apache-2.0
"""What the host is changes while packets flow: addresses are renewed, lost, and move to other machines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.net.agents import agent
from tests.net.compare import EBPF, config, host_case
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, ask, echo_server, eventually
from tests.net.test_upgrade import CALLER, TALKER

MakeHost = Callable[..., Host]
FLOWS = str(Path(__file__).with_name("udp_flows.py"))
VIP, OLD, RENEWED = "192.0.2.7", "198.51.100.1", "198.51.100.9"

# One UDP socket: for each line it asks, and prints who answered, by the last word of the answer; "" for nobody.
ASKER = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.connect((sys.argv[1], int(sys.argv[2])))
for line in sys.stdin:
    try:
        client.send(b"?")
        print(client.recv(100).decode().split()[-1], flush=True)
    except OSError:
        print(flush=True)
"""
NAMED = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 8081))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(100)
    server.sendto(sys.argv[2].encode(), peer)
"""


def answers(host: Host, proto: str, address: str) -> bool:
    return host.outside.try_(ask(proto, address, 8081, 1)).returncode == 0


def told(process: subprocess.Popen[str]) -> str:
    """What it prints for one more line."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def begun(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def inside(host: Host, name: str, command: list[str]) -> subprocess.Popen[str]:
    """A program in a container, to talk to."""
    argv = ["nsenter", "-t", str(host.process(name)), "--net", *command]
    return host.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@contextlib.contextmanager
def following(host: Host, how: str) -> Iterator[Callable[[], None]]:
    """What makes the datapath follow the host: an agent, or a command when it is called."""
    if how == "agent":
        with agent(host):
            yield lambda: None
    else:

        def command() -> None:
            host.ctl(how)

        yield command


@pytest.mark.parametrize("how", ["agent", "reconcile"])
@host_case(
    4,
    "An address with a published port moves to another machine: a container's flow to it goes there",
    iptables="conntrack goes on translating the flow that it knows",
)
def test_an_address_that_moved_away_is_reached_where_it_is(make_host: MakeHost, mode: str, how: str) -> None:
    host = make_host(config=config(mode))
    host.sh(f"ip address add {VIP}/24 dev eth0")
    host.run("web", "-p 8081:8081/udp", ["python3", "-u", "-c", NAMED, "0.0.0.0", "here"])
    host.run("app")
    with following(host, how) as follow:
        asker = inside(host, "app", [sys.executable, "-c", ASKER, VIP, "8081"])
        with eventually() as until:
            until(lambda: told(asker) == "here")
        host.sh(f"ip address del {VIP}/24 dev eth0")
        host.outside.sh(f"ip address add {VIP}/24 dev eth0")
        begun(host.outside.start(["python3", "-u", "-c", NAMED, VIP, "there"], stdout=subprocess.PIPE))
        follow()
        with eventually() as until:
            until(lambda: told(asker) == "there")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("how", ["agent", "reconcile"])
def test_a_published_flow_to_an_address_that_is_lost_ends(host: Host, proto: str, how: str) -> None:
    """Those at other addresses go on."""
    host.sh(f"ip address add {VIP}/24 dev eth0")
    host.run("web", f"-p 8081:80/{proto}", echo_server(proto, 80))
    with following(host, how) as follow:
        for address in (VIP, HOST):
            with eventually() as until:
                until(partial(answers, host, proto, address))
        assert VIP in host.ctl("ct ls") and HOST in host.ctl("ct ls")
        host.sh(f"ip address del {VIP}/24 dev eth0")
        follow()
        with eventually() as until:
            until(lambda: VIP not in host.ctl("ct ls"))
        assert HOST in host.ctl("ct ls")


@pytest.mark.parametrize("how", ["agent", "nothing"])
@host_case(
    4,
    "The host's address is renewed: 10,000 masqueraded UDP flows go on with the new one",
    iptables="MASQUERADE takes the device's first address, whatever the route says",
)
def test_flows_go_on_with_the_new_address_of_the_host(make_host: MakeHost, mode: str, how: str) -> None:
    """With the next packet, whether there is an agent or not; TCP by way of another address loses nothing."""
    host = make_host(config=config(mode))
    host.outside.sh(f"ip route add 198.51.100.0/24 via {HOST}")
    host.sh(f"ip address add {OLD}/32 dev eth0")
    host.sh(f"ip route replace default via {OUTSIDE} src {OLD}")
    host.run("web", "-p 8081:80", ["python3", "-u", "-c", TALKER])
    host.run("app")
    begun(host.outside.start(echo_server("udp", 90, FAR), stdout=subprocess.PIPE))
    with contextlib.ExitStack() as stack:
        if how == "agent" and mode == EBPF:
            stack.enter_context(agent(host))
        with eventually() as until:
            until(lambda: host.outside.try_(["nc", "-z", HOST, "8081"]).returncode == 0)
        caller = begun(
            host.outside.start(
                [sys.executable, "-c", CALLER, HOST, "8081"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        flows = begun(inside(host, "app", [sys.executable, FLOWS, FAR, "90", "10000"]))
        assert told(flows).split()[0] == f"{OLD}=10000"
        began = time.monotonic()
        host.sh(f"ip address add {RENEWED}/32 dev eth0")
        host.sh(f"ip route replace default via {OUTSIDE} src {RENEWED}")
        host.sh(f"ip address del {OLD}/32 dev eth0")
        answered = told(flows).split()
        print(f"\n{answered} after {time.monotonic() - began:.2f} s")
        assert answered == [f"{RENEWED}=10000", "again=0"]
        assert caller.stdin is not None
        exchanged, _ = caller.communicate()
        assert caller.returncode == 0 and int(exchanged) > 0
