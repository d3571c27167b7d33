# SPDX-License-Identifier: Apache-2.0
"""DNS servers of many kinds, over UDP and TCP: `python upstreams.py ADDRESS=KIND …` says "ready" when all listen.

Kinds: an address (what every A question is answered with), servfail, refused, nxdomain, silent. A TXT question for
`whoami` is answered with who has asked, one for `large-N` with N bytes of text; such an answer fits what the question
says that it takes, or is cut off (TC), but for those for `whole-N`, which are sent whatever the size. `count` tells
how many questions have come over UDP to that address. With @DEVICE behind the address it is one of that link."""

from __future__ import annotations

import selectors
import socket
import sys
from collections import Counter

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

RCODES = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED, "nxdomain": dns.rcode.NXDOMAIN}
asked: Counter[str] = Counter()


def texts(size: int) -> list[str]:
    """That many bytes of text in all, a record each hundred."""
    return [f'"{str(at).zfill(100)}"' for at in range(0, size, 100)]


def reply(data: bytes, peer: str, address: str, kind: str, tcp: bool) -> bytes | None:
    question = dns.message.from_wire(data)
    first = question.question[0]
    label = first.name.labels[0].decode()
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.RA
    if label == "count":
        answer.answer.append(dns.rrset.from_text(first.name, 0, "IN", "TXT", str(asked[address])))
        return answer.to_wire()
    if not tcp:
        asked[address] += 1
    if kind == "silent":
        return None
    if kind in RCODES:
        answer.set_rcode(RCODES[kind])
        return answer.to_wire()
    if first.rdtype == dns.rdatatype.A:
        answer.answer.append(dns.rrset.from_text(first.name, 0, "IN", "A", kind))
    elif first.rdtype == dns.rdatatype.TXT:
        said = texts(int(label.split("-")[1])) if "-" in label else [peer]
        answer.answer.append(dns.rrset.from_text(first.name, 0, "IN", "TXT", *said))
    wire = answer.to_wire(max_size=65535)
    if not tcp and len(wire) > (question.payload or 512) and not label.startswith("whole"):
        answer.answer.clear()
        answer.flags |= dns.flags.TC
        wire = answer.to_wire()
    return wire


def serve_udp(sock: socket.socket, address: str, kind: str) -> None:
    data, peer = sock.recvfrom(65535)
    said = reply(data, peer[0], address, kind, False)
    if said is not None:
        sock.sendto(said, peer)


def serve_tcp(sock: socket.socket, address: str, kind: str) -> None:
    connection, peer = sock.accept()
    connection.settimeout(10)
    with connection, connection.makefile("rb") as stream:
        while len(head := stream.read(2)) == 2:
            said = reply(stream.read(int.from_bytes(head, "big")), peer[0], address, kind, True)
            if said is None:
                return
            connection.sendall(len(said).to_bytes(2, "big") + said)


def main() -> None:
    selector = selectors.DefaultSelector()
    for word in sys.argv[1:]:
        where, kind = word.split("=")
        address, _, device = where.partition("@")
        for transport, serve in ((socket.SOCK_DGRAM, serve_udp), (socket.SOCK_STREAM, serve_tcp)):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, transport)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            end = (address, 53, 0, socket.if_nametoindex(device)) if device else (address, 53)
            sock.bind(end)
            if transport == socket.SOCK_STREAM:
                sock.listen(64)
            selector.register(sock, selectors.EVENT_READ, (serve, address, kind))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            serve, address, kind = key.data
            try:
                serve(key.fileobj, address, kind)
            except OSError as error:
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
