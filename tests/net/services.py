# SPDX-License-Identifier: Apache-2.0
"""Servers and clients of services: each answer names the backend and the client's address as it saw it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any

from tests.net.hosts import PATIENCE, TIMEOUT, Host, eventually

# Answers on a port over TCP and UDP, IPv4 and IPv6, with its name and the client; what comes after "keep" is echoed.
SERVER = """
import socketserver, sys, threading, socket
name, port = sys.argv[1], int(sys.argv[2])
class Both:
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024
class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{name} {self.client_address[0]}\\n".encode())
        for line in self.rfile:
            self.wfile.write(line)
class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(f"{name} {self.client_address[0]}\\n".encode(), self.client_address)
class TCP(Both, socketserver.ThreadingTCPServer): pass
class UDP(Both, socketserver.ThreadingUDPServer): pass
udp = UDP(("::", port), Datagram)
threading.Thread(target=udp.serve_forever, daemon=True).start()
TCP(("::", port), Stream).serve_forever()
"""

Start = Callable[..., "Popen[str]"]
Run = Callable[[Any], "CompletedProcess[str]"]

OWN_PORTS, MOST_KEPT = (
    range(24000, 32000),
    100,
)  # of connections that are kept: below those that the kernel gives
_kept = itertools.count()

# Asks so often, each time with a socket of its own; prints how often it heard what, and what went wrong.
CLIENT = """
import collections, json, socket, sys
proto, address, port, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
heard = collections.Counter()
for _ in range(count):
    with socket.socket(family, kind) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            if proto == "udp":
                client.send(b"?")
            heard[client.recv(100).decode().strip()] += 1
        except OSError as error:
            heard[type(error).__name__] += 1
print(json.dumps(heard))
"""

# Keeps so many connections and asks by each of them in turn, until its input ends; prints how often none answered.
KEEPER = """
import select, socket, sys
address, port, count, first = sys.argv[1], *map(int, sys.argv[2:5])
kept = []
for number in range(count):
    client = socket.create_connection((address, port), 60, ("", first + number))
    kept.append((client, client.makefile("rb")))
names = [reader.readline().split()[0].decode() for _, reader in kept]
print(*names, flush=True)
failed = set()
while not select.select([sys.stdin], [], [], 0.02)[0]:
    for number, (client, reader) in enumerate(kept):
        try:
            client.sendall(b"again\\n")
            if reader.readline() != b"again\\n":
                failed.add(number)
        except OSError:
            failed.add(number)
print(*sorted(failed))
"""


# Opens a connection for each question, from several threads, until its input ends; prints by whom it was answered how
# often, and what went wrong.
ASKER = """
import collections, json, socket, sys, threading, time
address, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
heard, ended = collections.Counter(), threading.Event()
def ask():
    try:
        with socket.create_connection((address, port), 60) as client:
            client.settimeout(60)
            heard[client.recv(100).decode().split()[0]] += 1
    except (OSError, IndexError) as error:
        heard[repr(error)] += 1
def go_on():
    while not ended.is_set():
        ask()
        time.sleep(0.005)
ask()
print("ready", flush=True)
running = [threading.Thread(target=go_on) for _ in range(threads)]
for thread in running:
    thread.start()
sys.stdin.read()
ended.set()
for thread in running:
    thread.join()
print(json.dumps(heard))
"""


# From each of so many ports, from 22000 on, one connection to each of the addresses, which all last; asks by each of
# them in turn, twice. Prints what each port heard.
ONE_PORT = """
import json, socket, sys
proto, source, port, count, addresses = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
def opened(own):
    client = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(60)
    client.bind((source, own))
    return client
def by_tcp(own):
    clients = [opened(own) for _ in addresses]
    for client, address in zip(clients, addresses):
        client.connect((address, port))
    heard = [client.recv(100).decode().strip() for client in clients]
    for number in range(2):
        for at, client in enumerate(clients):
            asked = f"{number} of {at}\\n".encode()
            client.sendall(asked)
            assert client.recv(100) == asked
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
        client.close()
    return heard
def by_udp(own):
    with opened(own) as client:
        for _ in range(2):
            for address in addresses:
                client.sendto(b"?", (address, port))
            found = {}
            while len(found) < len(addresses):  # one may have answered both times before another has once
                data, (whence, *_) = client.recvfrom(100)
                found[whence] = data.decode().strip()
    return [found.get(address, "nothing") for address in addresses]
print(json.dumps([(by_tcp if proto == "tcp" else by_udp)(22000 + number) for number in range(count)]))
"""


def by_one_port(
    run: Run, proto: str, source: str, addresses: list[str], port: int, count: int = 20
) -> list[list[str]]:
    """What each of so many ports of a client's heard that asks at several addresses at once."""
    done = run(["python3", "-c", ONE_PORT, proto, source, str(port), str(count), *addresses])
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def server(name: str, port: int = 80) -> list[str]:
    return ["python3", "-u", "-c", SERVER, name, str(port)]


def client(proto: str, address: str, port: int, count: int = 1, seconds: float = PATIENCE) -> list[str]:
    return ["python3", "-c", CLIENT, proto, address, str(port), str(count), str(seconds)]


def keeper(address: str, port: int, count: int) -> list[str]:
    """Connections that go on, from ports of their own: what asks by another host meanwhile may be given the same port,
    which the kernel tells apart by what is asked; a backend takes both for one."""
    first = OWN_PORTS[0] + next(_kept) * MOST_KEPT % len(OWN_PORTS)
    assert count <= MOST_KEPT
    return ["python3", "-u", "-c", KEEPER, address, str(port), str(count), str(first)]


@contextlib.contextmanager
def keeping(process: Popen[str]) -> Iterator[tuple[Popen[str], list[str]]]:
    """While a keeper is at work: it, and which backend each of its connections is to."""
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()
    finally:
        process.kill()
        process.communicate()


def failed(process: Popen[str]) -> list[int]:
    """Which of them have failed by now."""
    return [int(word) for word in process.communicate("end\n", timeout=TIMEOUT)[0].split()]


@contextlib.contextmanager
def asked(start: Start, address: str, port: int, threads: int = 1) -> Iterator[Counter[str]]:
    """Connections begin without pause meanwhile; at the end it is there who answered, and what went wrong. `start`:
    begins a process, as `Place.start`."""
    argv = ["python3", "-u", "-c", ASKER, address, str(port), str(threads)]
    process, found = start(argv, stdin=PIPE, stdout=PIPE), Counter[str]()
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield found
        found.update(json.loads(process.communicate("", timeout=TIMEOUT)[0]))
    finally:
        process.kill()
        process.communicate()


def heard(
    run: Run, proto: str, address: str, port: int, count: int = 1, seconds: float = PATIENCE
) -> Counter[str]:
    """How often which answer came."""
    done = run(client(proto, address, port, count, seconds))
    assert done.returncode == 0, done.stderr
    return Counter(json.loads(done.stdout))


def names(answers: Counter[str]) -> Counter[str]:
    """The same by the backend that answered."""
    found = Counter[str]()
    for text, count in answers.items():
        found[text.split()[0]] += count
    return found


def serve(host: Host, name: str, options: str, network: str) -> None:
    """A backend on a network; returns when it answers."""
    host.run(name, options, server(name))
    address = host.address(name, network)
    with eventually() as until:
        until(lambda: names(heard(host.try_, "tcp", address, 80))[name])
