# SPDX-License-Identifier: Apache-2.0
"""Topologies of the suite `dns`: who is asked for names, and who asks. Each has one container that asks, and so many
names that are answered with the address of another one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datapath.bench.docker import Docker
from datapath.bench.host import Host
from datapath.bench.model import AARDVARK, DNSMASQ, DOCKER, EBPF, NONE, UNBOUND, SuiteOptions
from datapath.bench.place import MissingError, Namespace, Place
from datapath.bench.topologies import measured_core
from datapath.bench.workloads import QUESTIONS

PORT = 53
LOCAL = "127.0.0.11"  # the resolver's address in containers, Docker's and ours
GATEWAY, CLIENT_ADDRESS, ANSWER = "10.88.0.1", "10.88.0.2", "10.88.0.3"
SERVER, CLIENT, NETWORK = "server", "client", "bench"
FIRST_UPSTREAM, SECOND_UPSTREAM = "127.0.0.1", "127.0.0.2"
FOREIGN = "www.foreign.test"
RESOLVED = "/lib/systemd/systemd-resolved"
AARDVARK_PROGRAM = "/usr/lib/podman/aardvark-dns"
_PATIENCE = 30.0  # seconds until one of many names is answered


@dataclass(frozen=True, slots=True)
class Asker:
    """Where questions come from, whom they go to, the file with the names, one a line, and the resolv.conf there."""

    place: Place
    address: str
    names: Path
    resolv_conf: Path

    def ask(self, seconds: float, count: int = 1) -> list[str]:
        """The command that has so many questions under way at a time."""
        return [QUESTIONS, "ask", self.address, str(PORT), f"{seconds:g}", str(count), str(self.names)]

    def lookup(self, program: str, seconds: float) -> list[str]:
        """The command by which a libc looks the first of the names up, again and again."""
        name = self.names.read_text().splitlines()[0]
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, str(self.resolv_conf)]
        return [*words, program, "lookup", f"{seconds:g}", name]


class ResolverTopology(Protocol):
    """Somebody who answers. A context manager: entering builds it, leaving takes all of it away."""

    def __enter__(self) -> ResolverTopology: ...

    def __exit__(self, *exc: object) -> None: ...

    @property
    def asker(self) -> Asker: ...


class _Built:
    """What the topologies have in common: a folder, and what `build` has entered is left again."""

    asker: Asker

    def __init__(self, mode: str, count: int, options: SuiteOptions) -> None:
        self.mode = mode
        self.count = count
        self.options = options
        self.folder = options.folder / f"{mode}-{count}"
        self._stack = ExitStack()

    def __enter__(self) -> _Built:
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(self.folder))
            self.asker = self.build(stack)
            self._answers()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def build(self, stack: ExitStack) -> Asker:
        raise NotImplementedError

    def names(self, suffix: str = "") -> list[str]:
        """The names that are to be known here."""
        return [f"c{number}{suffix}" for number in range(1, self.count + 1)]

    def written(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def asking(self, place: Place, address: str, names: Sequence[str], nameservers: Sequence[str]) -> Asker:
        lines = "".join(f"nameserver {nameserver}\n" for nameserver in nameservers)
        return Asker(
            place,
            address,
            self.written("names", "".join(f"{name}\n" for name in names)),
            self.written("resolv.conf", lines),
        )

    def _answers(self) -> None:
        """Waits until the last name is answered, which it may not be at once."""
        argv = [QUESTIONS, "ask", self.asker.address, str(PORT), "0.01", "1"]
        argv.append(str(self.written("last", self.asker.names.read_text().splitlines()[-1] + "\n")))
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                if '"wrong": 0,' in (said := self.asker.place.run(argv, _PATIENCE)) and '"lost": 0' in said:
                    return
            except Exception:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.mode}: no answer for the last of {self.count} names")
            time.sleep(0.05)


class OwnNames(_Built):
    """This product's: the names are aliases of one container. `upstreams` are asked for what is not ours."""

    upstreams: tuple[str, ...] = ()

    def build(self, stack: ExitStack) -> Asker:
        """A network and two containers, by the library."""
        from datapath.host import Host as DatapathHost
        from datapath.kernel import netns
        from datapath.model.containers import RunRequest
        from datapath.model.endpoints import EndpointRequest
        from datapath.model.networks import NetworkRequest
        from datapath.runtime.containers import Containers

        engine = DatapathHost.open(self.host.settings())
        containers = Containers(engine)

        def down() -> None:
            with netns.enter(self.host.inside.path):
                engine.down()

        stack.callback(down)
        with netns.enter(self.host.inside.path):
            engine.networks.create(NetworkRequest(NETWORK))
            for name, aliases in ((SERVER, tuple(self.names())), (CLIENT, ())):
                on = (EndpointRequest(NETWORK, aliases=aliases),)
                sleep = ("sleep", "infinity")
                containers.run(RunRequest(sleep, name=name, networks=on, dns=self.upstreams, detach=True))
            pid = containers.inspect(CLIENT)["State"]["Pid"]
        place = Place(f"/proc/{pid}/ns/net", str(self.host.group), measured_core())
        return self.asking(place, LOCAL, self.names(), [LOCAL])


class DockerNames(_Built):
    """Those of a Docker daemon, which answers itself."""

    def build(self, stack: ExitStack) -> Asker:
        """A network and two containers, by its API."""
        self.docker = Docker(self.host, self.options.dockerd)
        stack.callback(self.docker.close)
        self.docker.api.ask("POST", "/networks/create", {"Name": NETWORK})
        self.docker.run(SERVER, NETWORK, aliases=self.names())
        self.docker.run(CLIENT, NETWORK)
        self.docker.pin(measured_core())
        place = Place(self.docker.netns(CLIENT), str(self.host.group), measured_core())
        return self.asking(place, LOCAL, self.names(), [LOCAL])


class BridgedNames(_Built):
    """Those of a program that listens at the gateway's address of a Linux bridge, without any rule of a packet
    filter."""

    def build(self, stack: ExitStack) -> Asker:
        """The bridge, the program, and a namespace for who asks."""
        client = Namespace()
        stack.callback(client.close)
        self.host.inside.sh(
            "ip link add br0 type bridge",
            f"ip address add {GATEWAY}/16 dev br0",
            f"ip link add veth0 type veth peer name eth0 netns {client.pid}",
            "ip link set veth0 master br0 up",
            "ip link set br0 up",
        )
        client.sh(f"ip address add {CLIENT_ADDRESS}/16 dev eth0", "ip link set eth0 up")
        server = Place(self.host.inside.path, str(self.host.group), measured_core())
        suffix = stack.enter_context(_RUNNING[self.mode](self, server)) or ""
        place = Place(client.path, str(self.host.group), measured_core())
        return self.asking(place, GATEWAY, self.names(suffix), [GATEWAY])


@contextmanager
def dnsmasq(topology: _Built, place: Place, address: str = GATEWAY) -> Iterator[str]:
    """It runs, and knows the names from a file."""
    lines = "".join(f"{ANSWER} {name}\n" for name in topology.names())
    argv = [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
        *(
            "--domain-needed",
            "--bind-interfaces",
            f"--listen-address={address}",
            "--user=root",
            "--pid-file=",
        ),
        f"--addn-hosts={topology.written('hosts', lines)}",
    ]
    with place.serving(argv, PORT, topology.folder / "dnsmasq.log", udp=True):
        yield ""


@contextmanager
def unbound(topology: _Built, place: Place) -> Iterator[str]:
    """It runs, and knows the names of a zone of its configuration."""
    records = "".join(f'  local-data: "{name}. 0 IN A {ANSWER}"\n' for name in topology.names(".bench"))
    conf = topology.written(
        "unbound.conf",
        f"server:\n  interface: {GATEWAY}\n  access-control: 10.88.0.0/16 allow\n  do-daemonize: no\n"
        f'  username: ""\n  chroot: ""\n  pidfile: ""\n  use-syslog: no\n  num-threads: 1\n'
        f'  directory: "{topology.folder}"\n  module-config: "iterator"\n'
        f'  local-zone: "bench." static\n{records}remote-control:\n  control-enable: no\n',
    )
    with place.serving(["unbound", "-d", "-c", str(conf)], PORT, topology.folder / "unbound.log", udp=True):
        yield ".bench"


@contextmanager
def aardvark(topology: _Built, place: Place) -> Iterator[str]:
    """It runs in the background, as it does for podman, and knows the names from its configuration."""
    config = topology.folder / "aardvark"
    config.mkdir()
    lines = [f"{number:064x} {ANSWER}  {name}\n" for number, name in enumerate(topology.names())]
    (config / NETWORK).write_text(f"{GATEWAY}\n{''.join(lines)}")
    place.start([AARDVARK_PROGRAM, "--config", str(config), "--port", str(PORT), "run"]).wait(_PATIENCE)
    try:
        yield ""
    finally:
        with suppress(OSError, ValueError):
            os.kill(int((config / "aardvark.pid").read_text()), signal.SIGKILL)


_RUNNING = {DNSMASQ: dnsmasq, UNBOUND: unbound, AARDVARK: aardvark}


class HostResolver(_Built):
    """The host has a resolver on its loopback, which is asked by a container or, without one, by the host itself."""

    asked = FIRST_UPSTREAM
    upstreams: tuple[str, ...] = (FIRST_UPSTREAM,)

    def names(self, suffix: str = "") -> list[str]:
        """One that no container has."""
        return [FOREIGN]

    def build(self, stack: ExitStack) -> Asker:
        place = Place(self.host.inside.path, str(self.host.group), measured_core())
        self.serve(stack, place)
        if self.mode == NONE:
            return self.asking(place, self.asked, self.names(), self.upstreams)
        own = _Foreign(self)
        return own.build(stack)

    def serve(self, stack: ExitStack, place: Place) -> None:
        """Has the resolver running."""
        stack.enter_context(dnsmasq(self, place, FIRST_UPSTREAM))


class FailingResolver(HostResolver):
    """The first of the host's two resolvers answers every question with SERVFAIL."""

    asked = SECOND_UPSTREAM
    upstreams = (FIRST_UPSTREAM, SECOND_UPSTREAM)

    def serve(self, stack: ExitStack, place: Place) -> None:
        for address, answer in ((FIRST_UPSTREAM, "servfail"), (SECOND_UPSTREAM, ANSWER)):
            argv = [QUESTIONS, "serve", address, str(PORT), answer]
            stack.enter_context(place.serving(argv, PORT, self.folder / f"{answer}.log", udp=True))


class HostStub(HostResolver):
    """The host's resolver is systemd-resolved, which has the name from another one and keeps it."""

    asked = "127.0.0.53"
    upstreams = (asked,)

    def serve(self, stack: ExitStack, place: Place) -> None:
        argv = [QUESTIONS, "serve", SECOND_UPSTREAM, str(PORT), ANSWER]
        stack.enter_context(place.serving(argv, PORT, self.folder / "upstream.log", udp=True))
        lines = f"[Resolve]\nDNS={SECOND_UPSTREAM}\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nDNSOverTLS=no\n"
        conf = self.written("resolved.conf", lines)
        script = (
            "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/resolved.conf.d && "
            'cp "$0" /run/systemd/resolved.conf.d/ && exec "$@"'
        )
        argv = ["unshare", "--mount", "sh", "-c", script, str(conf), RESOLVED]
        stack.enter_context(place.serving(argv, PORT, self.folder / "resolved.log", udp=True))


class _Foreign(OwnNames):
    """Ours on a host that stands already, with its resolvers as upstreams."""

    def __init__(self, stands: HostResolver) -> None:
        super().__init__(stands.mode, 1, stands.options)
        self.folder, self.host, self.upstreams = stands.folder, stands.host, stands.upstreams

    def asking(self, place: Place, address: str, names: Sequence[str], nameservers: Sequence[str]) -> Asker:
        return super().asking(place, address, [FOREIGN], nameservers)


def missing(mode: str) -> MissingError | None:
    """Why the mode cannot be had here."""
    import shutil

    program = {AARDVARK: AARDVARK_PROGRAM, DNSMASQ: DNSMASQ, UNBOUND: UNBOUND}.get(mode)
    return MissingError(program) if program and not shutil.which(program) else None


def names_of(mode: str, count: int, options: SuiteOptions) -> _Built:
    """The topology of a mode that knows so many names; it is built when it is entered."""
    kind = {EBPF: OwnNames, DOCKER: DockerNames}.get(mode, BridgedNames)
    return kind(mode, count, options)
