# SPDX-License-Identifier: Apache-2.0
"""Where a cluster's store is, in Docker's words: `cluster-store` and `cluster-store-opts` of daemon.json. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from datapath.errors import ConfigError, quoted
from datapath.model.parsing import parse_address

_KEY = "cluster-store"
_OPTIONS_KEY = "cluster-store-opts"
_PORT = 2379  # etcd's, as IANA has it
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*")
_PREFIX = re.compile(r"[a-zA-Z0-9._-]+(/[a-zA-Z0-9._-]+)*")
# Docker's names, and ours of what it did not have.
_CA, _CERT, _SECRET, _PATH = "kv.cacertfile", "kv.certfile", "kv.keyfile", "kv.path"
_USER, _PASSWORD = "kv.username", "kv.passwordfile"
_TTL, _HEARTBEAT = "discovery.ttl", "discovery.heartbeat"
_FILES = (_CA, _CERT, _SECRET, _PASSWORD)
_KNOWN = (*_FILES, _PATH, _USER, _TTL, _HEARTBEAT)


@dataclass(frozen=True, slots=True)
class ClusterStore:
    """`servers`: name or address, and port, of each member that clients may ask; the first that answers is asked.
    `prefix`: what all keys begin with, without the `/` at its end. Files are paths; "" is none. `ttl`: seconds after
    which a host that does not say that it lives is thought dead; it says so every `heartbeat` seconds."""

    servers: tuple[tuple[str, int], ...]
    prefix: str = "datapath/v1"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    ttl: int = 30
    heartbeat: int = 10

    @property
    def tls(self) -> bool:
        """Servers are asked over TLS."""
        return bool(self.ca_file or self.cert_file)

    def __str__(self) -> str:
        return "etcd://" + ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.servers)


def parse_cluster_store(text: str, options: Mapping[str, str]) -> ClusterStore:
    """`etcd://HOST:PORT[,HOST:PORT…][/PREFIX]` and Docker's options. ConfigError."""
    scheme, separator, rest = text.partition("://")
    if not separator or not rest:
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: expected etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")
    if scheme != "etcd":
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: {quoted(scheme)} is not served, only etcd")
    hosts, slash, prefix = rest.partition("/")
    unknown = next((name for name in options if name not in _KNOWN), None)
    if unknown is not None:
        raise ConfigError(f"{_OPTIONS_KEY}: {quoted(unknown)} is unknown: there are {', '.join(_KNOWN)}")
    for name in _FILES:
        if name in options and not options[name].startswith("/"):
            raise ConfigError(f"{_OPTIONS_KEY}: {name} {quoted(options[name])} is not an absolute path")
    if (_CERT in options) != (_SECRET in options):
        raise ConfigError(f"{_OPTIONS_KEY}: {_CERT} and {_SECRET} go together")
    if (_USER in options) != (_PASSWORD in options):
        raise ConfigError(f"{_OPTIONS_KEY}: {_USER} and {_PASSWORD} go together")
    prefix = options.get(_PATH, prefix).strip("/")
    if (slash or _PATH in options) and not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"invalid {_KEY} {quoted(text)}: {quoted(prefix)} cannot be the beginning of keys")
    ttl, heartbeat = _seconds(options, _TTL, 30), _seconds(options, _HEARTBEAT, 10)
    if heartbeat >= ttl:
        raise ConfigError(f"{_OPTIONS_KEY}: {_HEARTBEAT} {heartbeat} is not less than {_TTL} {ttl}")
    return ClusterStore(
        servers=tuple(_server(one, text) for one in hosts.split(",")),
        prefix=f"{prefix}/datapath/v1" if prefix else "datapath/v1",
        ca_file=options.get(_CA, ""),
        cert_file=options.get(_CERT, ""),
        key_file=options.get(_SECRET, ""),
        user=options.get(_USER, ""),
        password_file=options.get(_PASSWORD, ""),
        ttl=ttl,
        heartbeat=heartbeat,
    )


def _server(text: str, whole: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT`, or either without a port."""
    bracket = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", text)
    found = bracket or plain
    if found is None:
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: {quoted(text)} is not HOST:PORT")
    host, port = found[1], int(found[2] or _PORT)
    if bracket is not None:
        host = str(parse_address(host, f"address in {_KEY}"))
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: {quoted(text)} is not HOST:PORT")
    if not 0 < port < 65536:
        raise ConfigError(f"invalid {_KEY} {quoted(whole)}: there is no port {port}")
    return host, port


def _seconds(options: Mapping[str, str], name: str, usual: int) -> int:
    text = options.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 86400 and len(text) <= 6):
        raise ConfigError(f"{_OPTIONS_KEY}: invalid {name} {quoted(text)}: expected 1 to 86400 seconds")
    return int(text)
