# SPDX-License-Identifier: Apache-2.0
"""Many UDP flows of one machine: a program of its own, for the namespaces that the tests make.

udp_flows.py ADDRESS PORT COUNT
    opens COUNT sockets to a server that answers with the address that it sees. For each line on its standard
    input each sends a datagram, and again, until it has an answer; prints the addresses that were seen, each with how
    many saw it, and how many had to send more than once. Ends with its standard input.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time
from collections import Counter

AT_ONCE = 200  # answers that wait in the server's and the sockets' buffers
AGAIN = 0.5  # seconds without an answer
PATIENCE = 60.0


def main(address: str, port: int, count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flows = []
    poll = select.epoll()
    for _ in range(count):
        flow = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        flow.setblocking(False)
        flow.connect((address, port))
        poll.register(flow.fileno(), select.EPOLLIN)
        flows.append(flow)
    print("ready", flush=True)
    for _ in sys.stdin:
        seen: Counter[str] = Counter()
        again, deadline = 0, time.monotonic() + PATIENCE
        for first in range(0, count, AT_ONCE):
            again += exchange(poll, flows[first : first + AT_ONCE], seen, deadline)
        print(*(f"{source}={number}" for source, number in seen.items()), f"again={again}", flush=True)


def exchange(poll: select.epoll, flows: list[socket.socket], seen: Counter[str], deadline: float) -> int:
    """How many had to send again."""
    left = {flow.fileno(): flow for flow in flows}
    again: set[int] = set()
    while left and time.monotonic() < deadline:
        for flow in left.values():
            try:
                flow.send(b"?")
            except OSError:
                continue  # an ICMP error of before: it is sent again
        pause = time.monotonic() + AGAIN
        while left and time.monotonic() < pause:
            for number, _ in poll.poll(0.1):
                if number in left:
                    answer(left, number, seen)
        again |= left.keys()
    return len(again)


def answer(left: dict[int, socket.socket], number: int, seen: Counter[str]) -> None:
    try:
        seen[left[number].recv(100).decode().strip()] += 1
    except OSError:
        return
    del left[number]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
