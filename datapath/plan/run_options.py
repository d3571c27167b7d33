# SPDX-License-Identifier: Apache-2.0
"""Parses the options of a request to run a container, each by itself. Pure; ConfigError for invalid ones."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from datapath.errors import ConfigError, quoted
from datapath.model.containers import RunRequest
from datapath.model.parsing import parse_address, parse_expose
from datapath.model.ports import PortMapping, lone_networks
from datapath.model.resolv import NO_SEARCH
from datapath.model.rows import short
from datapath.model.state import State
from datapath.plan.endpoints import check_hostname

# Servers whose program has the name of their image: started as they are, they use the host's files and directories.
_ALSO_IMAGES = frozenset(
    (
        *("caddy", "consul", "couchdb", "etcd", "grafana", "haproxy", "httpd", "influxdb", "mariadb"),
        *("memcached", "mongo", "mongod", "mysql", "nginx", "postgres", "prometheus", "rabbitmq", "redis"),
        *("registry", "traefik", "vault", "zookeeper"),
    )
)
NO_IMAGES = "there are no images"


def warnings(request: RunRequest) -> tuple[str, ...]:
    """What the user should know of the request although it is no mistake."""
    found = [line for text in request.publish for line in lone_networks(text)]
    word = request.argv[0] if request.argv else ""
    if word in _ALSO_IMAGES and not request.rootfs:
        found.insert(0, f"{word} is this host's program, on this host's files: {NO_IMAGES}")
    return tuple(found)


def missing_program(request: RunRequest, found: bool) -> str:
    """Why the program, which the kernel says is not there, cannot be run. `found`: the host has such a file."""
    word = request.argv[0]
    if request.rootfs:
        return f"no such program below {request.rootfs}"
    if found:
        return "the interpreter that it names is not there"
    meant = ""
    if word.isascii() and word.isdigit() and request.publish and request.publish[-1].isdigit():
        meant = f"; did you mean -p {request.publish[-1]}:{word}?"
    return f"no such program on this host ({NO_IMAGES}; --rootfs DIR is another root{meant})"


def published(request: RunRequest) -> tuple[PortMapping, ...]:
    return tuple(PortMapping.parse(text) for text in request.publish)


def exposed(request: RunRequest) -> tuple[tuple[int, str], ...]:
    """Ports of --expose and the container's side of -p, sorted."""
    ports = {pair for text in request.expose for pair in parse_expose(text)}
    for mapping in published(request):
        ports.update((port, proto) for _, _, port, proto in mapping.expand())
    return tuple(sorted(ports))


def environment(given: Iterable[str]) -> tuple[str, ...]:
    """KEY=VALUE; a later one replaces an earlier one. A KEY alone means: not set."""
    result: dict[str, str] = {}
    for text in given:
        key, equals, _ = text.partition("=")
        if not key or "\0" in text:
            raise ConfigError(f"invalid environment variable: {quoted(text)}")
        result.pop(key, None)
        if equals:
            result[key] = text
    return tuple(result.values())


def user(text: str) -> str:
    """-u USER[:GROUP], names or numbers; whether the container has them is seen when it starts."""
    if text and not re.fullmatch(r"[a-zA-Z0-9_.][a-zA-Z0-9_.$-]*(:[a-zA-Z0-9_.][a-zA-Z0-9_.$-]*)?", text):
        raise ConfigError(f"invalid user {quoted(text)}: expected USER[:GROUP], names or numbers")
    return text


def workdir(text: str) -> str:
    """-w: an absolute path, as Docker wants it."""
    if text and (not text.startswith("/") or "\0" in text):
        raise ConfigError(f"the working directory {quoted(text)} is invalid, it needs to be an absolute path")
    return text


def extra_host(text: str) -> tuple[str, str]:
    """--add-host `name:address`, `name=address`; the address may be the word host-gateway."""
    name, separator, address = text.partition("=" if "=" in text else ":")
    if not separator or not name:
        raise ConfigError(f"bad format for add-host: {quoted(text)}")
    check_hostname(name, "name for add-host", 253)
    if address == "host-gateway":
        return name, address
    bare = address.removeprefix("[").removesuffix("]") if address.startswith("[") else address
    return name, str(parse_address(bare, f"IP address in add-host {quoted(text)}"))


def dns_server(text: str) -> str:
    return str(parse_address(text, "IP address for dns"))


def dns_search(given: Iterable[str]) -> tuple[str, ...]:
    domains = tuple(given)
    for text in domains:
        if text != NO_SEARCH and not re.fullmatch(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,252})", text):
            raise ConfigError(f"{quoted(text)} is not a valid domain")
    return domains


def checked_word(text: str, what: str) -> str:
    if not text or not text.isprintable() or " " in text:
        raise ConfigError(f"invalid {what}: {quoted(text)}")
    return text


def stop_signal(text: str) -> str:
    """The signal's full name; SIGTERM unless the user says something else."""
    if not text:
        return "SIGTERM"
    name = text.upper().removeprefix("SIG")
    known = {s.name: s for s in signal.Signals}
    if f"SIG{name}" in known:
        return f"SIG{name}"
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text) in set(signal.Signals):
        return signal.Signals(int(text)).name
    raise ConfigError(f"invalid signal: {quoted(text)}")


_ADJECTIVES = (
    *("able", "amber", "brave", "brisk", "calm", "clever", "crisp", "deft", "eager", "fair", "gentle"),
    *("happy", "honest", "keen", "kind", "lively", "lucid", "merry", "nimble", "patient", "proud"),
    *("quick", "quiet", "sharp", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty"),
)


_NOUNS = (
    *("badger", "beaver", "bison", "crane", "curlew", "dolphin", "falcon", "finch", "gecko", "heron"),
    *("ibex", "jackdaw", "kestrel", "lark", "lynx", "marten", "mole", "newt", "otter", "owl", "plover"),
    *("puffin", "raven", "robin", "seal", "stoat", "swallow", "swift", "tern", "viper", "weasel", "wren"),
)


def generated_name(ident: str, state: State) -> str:
    """A name for a container that was given none, made from its id."""
    number = int(ident[:8], 16)
    name = f"{_ADJECTIVES[number % len(_ADJECTIVES)]}_{_NOUNS[number // 64 % len(_NOUNS)]}"
    return name if state.find_container(name) is None else f"{name}_{short(ident)}"
