# SPDX-License-Identifier: Apache-2.0
"""The files that a container finds as /etc/hosts, /etc/resolv.conf and /etc/hostname, in Docker's form. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address

from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.resolv import NO_SEARCH, RESOLVER, ResolvConf
from datapath.model.state import State

_NDOTS = re.compile(r"ndots:[0-9]+")

_LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hosts(container: Container, endpoints: tuple[Endpoint, ...], state: State) -> str:
    """Loopback, --add-host, the containers it is linked to, and its own addresses."""
    lines = [f"{address}\t{name}" for name, address in container.extra_hosts]
    for link in container.links:
        server = state.containers.get(link.server)
        for endpoint in endpoints:
            other = state.endpoint(server.sandbox_id, endpoint.network_id) if server else None
            if server and other:
                names = f"{link.alias} {server.hostname} {server.name}"
                lines += [f"{a.ip}\t{names}" for a in (other.ipv4, other.ipv6) if a]
    full = f"{container.hostname}.{container.domainname}" if container.domainname else ""
    names = f"{full} {container.hostname}".strip()
    lines += [f"{a.ip}\t{names}" for endpoint in endpoints for a in (endpoint.ipv4, endpoint.ipv6) if a]
    return _LOCAL + "".join(f"{line}\n" for line in lines)


def resolv_conf(container: Container, host: str, named: bool) -> str:
    """What Docker writes for a container whose questions its resolver answers: that alone is asked, with the host's
    search domains and options unless the user gave some. `named`: on a network whose members have names, by which a
    name without a dot is asked for as it is."""
    theirs = ResolvConf.parse(host)
    search = container.dns_search or theirs.search
    options = container.dns_options or theirs.options
    if named and not any(_NDOTS.fullmatch(option) for option in options):
        options = (*(o for o in options if not o.startswith("ndots:")), "ndots:0")
    asked = () if tuple(search) == (NO_SEARCH,) else search
    return str(ResolvConf((str(RESOLVER),), asked, options, theirs.others))


def resolv_conf_of_host(container: Container, host: str, network: Network | None) -> str:
    """The host's own text without servers that only the host reaches, for one that has no resolver of ours; what the
    user gave replaces its part."""
    own = {"search": container.dns_search, "options": container.dns_options, "nameserver": container.dns}
    lines = []
    for line in host.splitlines():
        word, _, rest = line.strip().partition(" ")
        if own.get(word) or (word == "domain" and container.dns_search):
            continue
        if word == "nameserver" and network is not None and _is_loopback(rest.strip()):
            continue
        lines.append(line)
    lines += [f"nameserver {server}" for server in container.dns]
    if container.dns_search and container.dns_search != (NO_SEARCH,):
        lines.append("search " + " ".join(container.dns_search))
    if container.dns_options:
        lines.append("options " + " ".join(container.dns_options))
    return "".join(f"{line}\n" for line in lines)


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False
