# SPDX-License-Identifier: Apache-2.0
"""Many TCP connections at once, held by more processes than one, each of which may open only so many files.
A program of its own, for the namespaces that the tests make.

    many_connections.py serve PORT COUNT         an echo server at each of COUNT ports, a process each; prints "ready"
    many_connections.py hold ADDRESS PORT COUNT [SOURCE...]
        opens COUNT connections, from the sources in turn; prints how many there are. Then, for each line on
        its standard input, sends a byte by every one and prints how many did not bring it back.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys

PATIENCE = 60.0  # seconds until a connection that is silent is lost
AT_ONCE = 500


def serve(first: int, count: int) -> None:
    listeners = []
    for port in range(first, first + count):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))
        listener.listen(4096)
        listeners.append(listener)
    for listener in listeners[1:]:
        if os.fork() == 0:
            echo(listener)
    print("ready", flush=True)
    echo(listeners[0])


def echo(listener: socket.socket) -> None:
    poll = select.epoll()
    peers: dict[int, socket.socket] = {}
    poll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                with contextlib.suppress(OSError):
                    peer, _address = listener.accept()
                    peers[peer.fileno()] = peer
                    poll.register(peer.fileno(), select.EPOLLIN)
                continue
            try:
                data = peers[number].recv(4096)
                peers[number].sendall(data)
            except OSError:
                data = b""
            if not data:
                peers.pop(number).close()  # takes it out of the poll set too


def hold(address: str, port: int, count: int, sources: list[str]) -> None:
    connections = []
    for number in range(count):
        connection = socket.socket()
        connection.settimeout(PATIENCE)
        try:
            if sources:
                connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
                connection.bind((sources[number % len(sources)], 0))
            connection.connect((address, port))
        except OSError as error:
            print(f"connection {number}: {error}", file=sys.stderr)
            continue
        connections.append(connection)
    print(len(connections), flush=True)
    for _ in sys.stdin:
        lost = 0
        for begin in range(0, len(connections), AT_ONCE):
            some = connections[begin : begin + AT_ONCE]
            for connection in some:
                with contextlib.suppress(OSError):
                    connection.send(b"?")
            for connection in some:
                try:
                    lost += connection.recv(1) != b"?"
                except OSError:
                    lost += 1
        print(lost, flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        hold(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
