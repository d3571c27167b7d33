# SPDX-License-Identifier: Apache-2.0
"""Published ports, and who may connect to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from datapath.errors import ConfigError, quoted
from datapath.model.networks import OPT_ALLOW, OPT_DENY
from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix
from datapath.model.parsing import (
    parse_address,
    parse_address_or_prefix,
    parse_protocol,
    port_range,
)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """`count` consecutive host ports and the container ports that they lead to.

    `host_ip` None: every address of the host. `host_port` 0: to be chosen. `host_port_last` not 0 (then
    `count` is 1): to be chosen from host_port … host_port_last. `allow` and `deny`: who may connect, the
    longest prefix decides; `acl`: the number of these rules as an ACL of the packet programs, 0: there are none.
    `shared`: sockets of the host may have the port too, as whoever asked for it holds it by one of his own.
    """

    proto: str
    host_ip: Address | None
    host_port: int
    container_port: int
    count: int = 1
    host_port_last: int = 0
    allow: tuple[Prefix, ...] = ()
    deny: tuple[Prefix, ...] = ()
    acl: int = 0
    shared: bool = False

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions that it is published for, where the container has them."""
        return (4, 6) if self.host_ip is None else (self.host_ip.version,)

    @property
    def open(self) -> PortMapping:
        """The same for everybody: what identifies the mapping."""
        return dataclasses.replace(self, allow=(), deny=(), acl=0, shared=False)

    def admits(self, source: Address) -> bool:
        """A client with that address may connect, as the packet programs decide it."""
        rules = [(p.prefixlen, True) for p in self.allow if _inside(source, p)]
        rules += [(p.prefixlen, False) for p in self.deny if _inside(source, p)]
        return max(rules)[1] if rules else not self.allow

    @property
    def concrete(self) -> bool:
        """The host ports are known."""
        return self.host_port != 0 and self.host_port_last == 0

    @classmethod
    def parse(cls, text: str) -> PortMapping:
        """`[hostIP:][hostPort[-range]:]containerPort[-range][/proto]` as `docker run -p` takes it, and behind it
        `,allow=PREFIX` and `,deny=PREFIX` as often as wanted."""
        spec, comma, rules = text.partition(",")
        if comma:
            if not rules:
                raise ConfigError(f"a rule is missing behind the comma in port {quoted(text)}")
            allow, deny = parse_acl(rules)
            return dataclasses.replace(cls.parse(spec), allow=allow, deny=deny)
        head, _, last = text.rpartition(":")
        ports, _, proto_text = last.partition("/")
        if not ports:
            raise ConfigError(f"no port specified: {quoted(text)}")
        proto = parse_protocol(proto_text, text)
        ip_text, colon, host = head.rpartition(":")
        if colon and not ip_text:  # Docker takes it for every address; it is a variable that was not set
            raise ConfigError(f"the IP address in port {quoted(text)} is empty: 0.0.0.0 is every address")
        host_ip = _host_ip(ip_text, text) if colon else None
        try:
            first, last_port = port_range(ports)
            if first == 0:
                raise ValueError(ports)
        except ValueError:
            raise ConfigError(
                f"invalid containerPort {quoted(ports)} in {quoted(text)}: expected 1 to 65535"
            ) from None
        try:
            host_first, host_last = port_range(host) if host else (0, 0)
            if host_first == 0 and host_last != 0:
                raise ValueError(host)
        except ValueError:
            expected = "expected 1 to 65535"
            if "/" in host:
                expected = f"the protocol comes last, as in {host.partition('/')[0]}:{ports}/{host.partition('/')[2]}"
            raise ConfigError(f"invalid hostPort {quoted(host)} in {quoted(text)}: {expected}") from None
        count = last_port - first + 1
        if host_first and host_last - host_first != count - 1:
            if count != 1:
                message = f"invalid ranges specified for container and host Ports: {ports} and {host}"
                raise ConfigError(message + " (they must be equally long)")
            return cls(proto, host_ip, host_first, first, 1, host_last)
        return cls(proto, host_ip, host_first, first, count)

    def expand(self) -> Iterator[tuple[Address | None, int, int, str]]:
        """(host address, host port, container port, protocol) of each single port; needs concrete ports."""
        for i in range(self.count):
            host_port = self.host_port + i if self.host_port else 0
            yield self.host_ip, host_port, self.container_port + i, self.proto

    def at(self, host_port: int, count: int = 1) -> PortMapping:
        """The same mapping with its host port decided."""
        return dataclasses.replace(self, host_port=host_port, count=count, host_port_last=0)

    def __str__(self) -> str:
        ip = "" if self.host_ip is None else str(self.host_ip)
        if self.host_ip is not None and self.host_ip.version == 6:
            ip = f"[{ip}]"
        last = self.host_port_last or self.host_port + self.count - 1
        host = _range_text(self.host_port, last) if self.host_port else ""
        left = f"{ip}:{host}:" if ip else f"{host}:" if host else ""
        ports = f"{_range_text(self.container_port, self.container_port + self.count - 1)}/{self.proto}"
        return ",".join((f"{left}{ports}", *([self.acl_text] if self.acl_text else [])))

    @property
    def acl_text(self) -> str:
        """allow=10.0.0.0/8,deny=10.6.6.0/24; "" when everybody may connect."""
        return ",".join([f"allow={p}" for p in self.allow] + [f"deny={p}" for p in self.deny])


def parse_acl(text: str) -> tuple[tuple[Prefix, ...], tuple[Prefix, ...]]:
    """`allow=PREFIX,deny=PREFIX,…` as (allow, deny), each once; an address is a prefix too. "": no rules."""
    rules: dict[str, list[Prefix]] = {"allow": [], "deny": []}
    for word in text.split(",") if text else ():
        key, equals, value = word.partition("=")
        if key not in rules or not equals:
            raise ConfigError(f"invalid rule {quoted(word)} of a port: expected allow=PREFIX or deny=PREFIX")
        if not value:  # a variable that was not set: the port would be open to everybody
            raise ConfigError(f"the rule {quoted(word)} of a port names no prefix")
        rules[key].append(parse_address_or_prefix(value, f"{key} prefix"))
    both = set(rules["allow"]) & set(rules["deny"])
    if both:
        raise ConfigError(f"a port cannot both allow and deny {min(map(str, both))}")
    return tuple(dict.fromkeys(rules["allow"])), tuple(dict.fromkeys(rules["deny"]))


def default_acl(options: Mapping[str, str]) -> tuple[tuple[Prefix, ...], tuple[Prefix, ...]]:
    """What the options of a network or an endpoint say of ports without rules of their own, as (allow, deny)."""
    words = [
        f"{key}={prefix}"
        for key, name in (("allow", OPT_ALLOW), ("deny", OPT_DENY))
        for prefix in options.get(name, "").split(",")
        if prefix
    ]
    return parse_acl(",".join(words))


def parse_prefixes(name: str, value: str) -> str:
    """The value of OPT_ALLOW or OPT_DENY: prefixes with commas between. ConfigError."""
    words = value.replace(" ", ",").split(",")
    return ",".join(
        dict.fromkeys(str(parse_address_or_prefix(word, f"prefix in option {name}")) for word in words)
    )


def _inside(address: Address, prefix: Prefix) -> bool:
    return address.version == prefix.version and address in prefix


PORT_SYNTAX = "[[IP:]HOSTPORT:]CONTAINERPORT[/tcp|/udp]"


def _host_ip(text: str, spec: str) -> Address:
    if text.startswith("[") != text.endswith("]"):
        raise ConfigError(f"invalid IP address {quoted(text)} in port {quoted(spec)}")
    try:
        return parse_address(text.removeprefix("[").removesuffix("]"))
    except ConfigError:
        what = (
            "invalid port"
            if ":" in text and "[" not in text
            else f"invalid IP address {quoted(text)} in port"
        )
        raise ConfigError(f"{what} {quoted(spec)}: expected {PORT_SYNTAX}") from None


def lone_networks(text: str) -> Iterator[str]:
    """A line for each rule of an ACL that names an address which is rather a network: its prefix length was left out,
    and the rule is about that one address. `text`: the ACL, with or without the port before it."""
    for word in text.split(","):
        key, _, value = word.partition("=")
        if key not in ("allow", "deny") or "/" in value:
            continue
        address = parse_address(value)
        zeros = (int(address) & -int(address)).bit_length() - 1 if int(address) else address.max_prefixlen
        length = address.max_prefixlen - zeros // 8 * 8
        if 0 < length < address.max_prefixlen and (address.version == 4 or zeros >= 64):
            yield f"{key}={value} is that one address; the network is {value}/{length}"


def _range_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
