# SPDX-License-Identifier: Apache-2.0
"""What else gives connections to one of several servers: kube-proxy's rules of iptables, IPVS, nginx, HAProxy."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired, run
from typing import NamedTuple

from datapath.bench.host import Host
from datapath.bench.model import HAPROXY, IPTABLES, IPVS, NGINX
from datapath.bench.place import MissingError, Place
from datapath.bench.topologies import measured_core
from datapath.errors import DatapathError

_PATIENCE = 60.0  # seconds that a command may take
_PROGRAMS = {IPTABLES: "iptables-restore", IPVS: "ipvsadm", NGINX: "nginx", HAPROXY: "haproxy"}
_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_NGINX = """\
{module}daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 16384; }}
stream {{
{services}}}
"""
_NGINX_SERVICE = """\
    upstream u{number} {{
{servers}    }}
    server {{
        {listen} proxy_pass u{number};
    }}
"""
_HAPROXY = """\
global
    maxconn 8000
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
{services}"""


class Rules(NamedTuple):
    """`services`: each virtual address with the addresses of its backends, all at one `port`. The last one's port is
    published at the address `host`."""

    services: tuple[tuple[str, list[str]], ...]
    host: str
    port: int


def missing(mode: str) -> DatapathError | None:
    """Why the mode cannot be had on this machine; None: it can."""
    if shutil.which(_PROGRAMS[mode]) is None:
        return DatapathError(str(MissingError(_PROGRAMS[mode])))
    if mode == NGINX and not _STREAM.exists() and not _has_stream():
        return DatapathError("nginx has no stream module: make bench-deps")
    if mode == IPVS and not _has_ipvs():
        return DatapathError("this kernel has no IPVS")
    return None


def _has_stream() -> bool:
    """nginx has what proxies TCP built in."""
    return "--with-stream" in run(["nginx", "-V"], capture_output=True, text=True).stderr.split()


def _has_ipvs() -> bool:
    with suppress(OSError, TimeoutExpired):
        run(["modprobe", "-q", "ip_vs"], capture_output=True, timeout=_PATIENCE)
    return Path("/proc/net/ip_vs").exists()


def apply_rules(mode: str, host: Host, rules: Rules) -> None:
    """Replaces the host's rules. What has been opened goes on: the kernel tracks connections."""
    place = Place(host.inside.path)
    if mode == IPTABLES:
        place.run(["iptables-restore"], _PATIENCE, input=iptables_rules(rules))
    else:
        place.run(["ipvsadm", "--clear"], _PATIENCE)
        place.run(["ipvsadm", "--restore"], _PATIENCE, input=ipvs_rules(rules))


def iptables_rules(rules: Rules) -> str:
    """In the form of kube-proxy's: a rule for each service, in turn; a chain for each, in which a backend is drawn by
    lot, in turn too; and one for each backend. The node's own ports come last."""
    chains, lines = [":SERVICES - [0:0]", ":NODEPORTS - [0:0]", ":MASQ - [0:0]"], []
    for number, (address, backends) in enumerate(rules.services):
        chains.append(f":SVC-{number} - [0:0]")
        at = f"--dport {rules.port} -j SVC-{number}"
        lines.append(f"-A SERVICES -d {address}/32 -p tcp -m tcp {at}")
        for place, backend in enumerate(backends):
            chain, left = f"SEP-{number}-{place}", len(backends) - place
            chains.append(f":{chain} - [0:0]")
            lot = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            lines.append(f"-A SVC-{number} {lot}-j {chain}")
            lines.append(f"-A {chain} -s {backend}/32 -j MASQ")
            lines.append(f"-A {chain} -p tcp -m tcp -j DNAT --to-destination {backend}:{rules.port}")
    lines += [
        "-A SERVICES -m addrtype --dst-type LOCAL -j NODEPORTS",
        f"-A NODEPORTS -p tcp -m tcp --dport {rules.port} -j SVC-{len(rules.services) - 1}",
        "-A MASQ -j MARK --or-mark 0x4000",
        "-A PREROUTING -j SERVICES",
        "-A OUTPUT -j SERVICES",
        "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
    ]
    return "\n".join(["*nat", *chains, *lines, "COMMIT", ""])


def ipvs_rules(rules: Rules) -> str:
    """One service after the other, in turn to each backend, which sees the client's own address."""
    asked = [*rules.services, (rules.host, rules.services[-1][1])]
    lines = []
    for address, backends in asked:
        lines.append(f"-A -t {address}:{rules.port} -s rr")
        lines += [f"-a -t {address}:{rules.port} -r {one}:{rules.port} -m -w 1" for one in backends]
    return "\n".join([*lines, ""])


def _listens(rules: Rules) -> Iterator[tuple[int, list[str], list[str]]]:
    """Of each service its number, where it listens, and its backends."""
    last = len(rules.services) - 1
    for number, (address, backends) in enumerate(rules.services):
        addresses = [address, rules.host] if number == last else [address]
        yield (
            number,
            [f"{one}:{rules.port}" for one in addresses],
            [f"{one}:{rules.port}" for one in backends],
        )


def nginx_config(rules: Rules, folder: Path) -> str:
    """Of an nginx that proxies TCP."""
    services = "".join(
        _NGINX_SERVICE.format(
            number=number,
            servers="".join(f"        server {one};\n" for one in backends),
            listen=" ".join(f"listen {at};" for at in listens),
        )
        for number, listens, backends in _listens(rules)
    )
    module = f"load_module {_STREAM};\n" if _STREAM.exists() else ""
    return _NGINX.format(module=module, folder=folder, services=services)


def haproxy_config(rules: Rules) -> str:
    """Of a HAProxy that proxies TCP."""
    lines = []
    for number, listens, backends in _listens(rules):
        lines.append(f"listen s{number}")
        lines += [f"    bind {at}" for at in listens]
        lines += [f"    server b{place} {one}" for place, one in enumerate(backends)]
    return _HAPROXY.format(services="\n".join([*lines, ""]))


@contextmanager
def proxy(mode: str, host: Host, rules: Rules) -> Iterator[Callable[[Rules], None]]:
    """The proxy runs on the host while the block does, on the measured core; what is yielded has it take other rules,
    as its users do: by a signal."""
    path = host.folder / f"{mode}.conf"

    def write(wanted: Rules) -> None:
        text = nginx_config(wanted, host.folder) if mode == NGINX else haproxy_config(wanted)
        path.write_text(text)

    write(rules)
    log = host.folder / f"{mode}.log"
    argv = (
        ["nginx", "-c", str(path), "-e", str(log)]
        if mode == NGINX
        else ["haproxy", "-W", "-db", "-f", str(path)]
    )
    place = Place(host.inside.path, core=measured_core())
    with place.serving(argv, rules.port, log) as process:

        def reload(wanted: Rules) -> None:
            write(wanted)
            os.kill(process.pid, signal.SIGHUP if mode == NGINX else signal.SIGUSR2)

        yield reload
