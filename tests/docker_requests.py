# SPDX-License-Identifier: Apache-2.0
"""The requests of dockerd that were recorded: `tests/unit/data/docker.txt`, read back."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "unit" / "data" / "docker.txt"

_WORDS = {
    "N": '"NetworkID":',
    "E": '"EndpointID":',
    "S": '"SandboxKey":"/run/docker/netns/',
    "O": '"Options":',
    "I": '"Interface":',
    "A4": '"Address":',
    "A6": '"AddressIPv6":',
    "M": '"MacAddress":',
    "X": '"com.docker.network.endpoint.exposedports":',
    "P": '"com.docker.network.portmap":',
    "D": '"com.docker.network.endpoint.dnsservers":',
    "T": '"Proto":6,',
    "C": '"Port":',
    "Z": '"IP":"","HostIP":"",',
    "H": '"HostPort":',
    "L": '"HostPortEnd":',
    "Q": '"com.docker.network.driver.private.no_proxy_6to4":false',
}
_METHODS = {
    "Info": "EndpointOperInfo",
    "Program": "ProgramExternalConnectivity",
    "Revoke": "RevokeExternalConnectivity",
}
_WORD = re.compile(r'(?<![\w"#@~])(' + "|".join(sorted(_WORDS, key=len, reverse=True)) + "):")


class Recorded(NamedTuple):
    """A request: the method's whole name, and the object; None: it has no body."""

    method: str
    fields: dict[str, Any] | None

    @property
    def body(self) -> bytes:
        return b"" if self.fields is None else json.dumps(self.fields).encode()


def recordings() -> dict[str, list[Recorded]]:
    """By the version of Docker and what was done with it."""
    lists: dict[str, Any] = {}
    found: dict[str, list[Recorded]] = {}
    title = ""
    for line in FILE.read_text().splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
            found[title] = []
        elif line.startswith("@"):
            name, _, value = line.partition(" ")
            lists[name] = json.loads(_spelt_out(value))
        elif title and line:
            found[title].append(_request(line, title, lists))
    return found


def _request(line: str, title: str, lists: dict[str, Any]) -> Recorded:
    method, _, text = line.partition(" ")
    if "." not in method:
        method = f"NetworkDriver.{_METHODS.get(method, method)}"
    if not text:
        return Recorded(method, None)

    def ident(match: re.Match[str]) -> str:
        return hashlib.sha256(f"{title} {match[1]}".encode()).hexdigest()

    fields = json.loads(_spelt_out(re.sub(r"#(\d+)", ident, text)))
    options = fields.get("Options") or {}
    for name, value in options.items():
        if isinstance(value, str) and value in lists:
            options[name] = lists[value]
    return Recorded(method, fields)


def _spelt_out(text: str) -> str:
    """JSON as it was sent."""
    return _WORD.sub(lambda match: _WORDS[match[1]], text).replace("c.d.n.", "com.docker.network.")
