# SPDX-License-Identifier: Apache-2.0
"""Echo requests, each with a number that is never used again. A program of its own, for the tests' namespaces.

    pinger.py ADDRESS IDENTIFIER INTERVAL

Says "ready" after the first. When its standard input ends it sends no more, waits for what is late, and prints how
many it has sent, and how many of them never came back. (ping takes what is on its way in the end for lost.)
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

PATIENCE = 60.0  # seconds until what is silent is lost


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def main(address: str, ident: int, interval: float) -> None:
    wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    wire.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    wire.setblocking(False)
    missing: set[int] = set()

    def receive() -> None:
        while True:
            try:
                data = wire.recv(200)
            except BlockingIOError:
                return
            if data[20] == 0 and data[24:26] == struct.pack("!H", ident):
                missing.discard(struct.unpack("!I", data[28:32])[0])

    sent, due = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        body = struct.pack("!HHI", ident, sent & 0xFFFF, sent)
        packet = b"\x08\0" + struct.pack("!H", checksum(b"\x08\0\0\0" + body)) + body
        missing.add(sent)
        wire.sendto(packet, (address, 0))
        sent += 1
        due = max(due + interval, time.monotonic() - 0.1)
        select.select([wire], [], [], max(0, due - time.monotonic()))
        receive()
        time.sleep(max(0, due - time.monotonic()))
        if sent == 1:
            print("ready", flush=True)
    end = time.monotonic() + PATIENCE
    while missing and time.monotonic() < end:
        select.select([wire], [], [], 0.1)
        receive()
    print(sent, len(missing))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
