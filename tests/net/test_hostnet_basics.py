# SPDX-License-Identifier: Apache-2.0
"""The plain host: what every other row of docs/compatibility.md takes for granted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.net.compare import config, host_case
from tests.net.hosts import HOST, OUTSIDE, Host, ask, echo_server, eventually

MakeHost = Callable[..., Host]


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@host_case(
    0, "One Ethernet uplink: a published port sees the client's own address, the way out has the host's"
)
def test_a_plain_host(make_host: MakeHost, proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("web", f"-p 8080:80/{proto}", echo_server(proto, 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask(proto, HOST, 8080, 1)).returncode == 0)
    assert host.outside.sh(ask(proto, HOST, 8080)).split()[0] == OUTSIDE
    server = host.outside.start(echo_server(proto, 90), stdout=-1)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    assert host.in_("web", ask(proto, OUTSIDE, 90)).split()[0] == HOST
