# SPDX-License-Identifier: Apache-2.0
"""Plugins as container runtimes call them: `Cni` as libcni does, `Netavark` as podman's netavark does.

They are forked from the test process, unless a test starts the executable itself: see `forked`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datapath.model.resolv import ResolvConf
from tests.net import forked
from tests.net.hosts import TIMEOUT, TREE, Host, echo_server, words
from tests.net.names import Run

CNI_PATH = "/usr/lib/cni"  # the reference plugins, as Debian has them
_names = itertools.count()
_MODULES = (
    *("ctl.cni.main", "ctl.cni.verbs", "ctl.cni.ipam", "ctl.cni.version"),
    *("ctl.netavark.main", "ctl.netavark.verbs", "datapath.engine.attachments"),
)


def executable(folder: Path, module: str, host: Host, python: str = sys.executable) -> Path:
    """The plugin as it is installed, but of this tree and for this host. Not all processes of a runtime that call it
    have the environment of the command that began it: podman's clean-up, which conmon starts, has not."""
    folder.mkdir(exist_ok=True)
    path = folder / "datapath"
    settings = {name: value for name, value in (host.env or {}).items() if name.startswith("DATAPATH_")}
    lines = (
        *(f"#!{python} -I", "import os, sys", f"os.environ.update({settings!r})"),
        f"sys.path.insert(0, {str(TREE)!r})",
    )
    path.write_text("\n".join((*lines, f"from {module} import main", "main()", "")))
    path.chmod(0o755)
    return path


class Space:
    """A network namespace that is bind-mounted, as container runtimes have theirs, and nothing of ours in it."""

    def __init__(self, folder: Path) -> None:
        self.name = f"netns-{next(_names)}"
        self.path = str(folder / self.name)
        self.processes: list[subprocess.Popen[str]] = []
        self.make()

    def make(self) -> None:
        """Anew, after `delete`."""
        Path(self.path).touch()
        subprocess.run(["unshare", f"--net={self.path}", "true"], check=True)

    def try_(self, command: str | list[str]) -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net={self.path}", *words(command)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)

    def sh(self, command: str | list[str]) -> str:
        done = self.try_(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def asks(self, servers: Sequence[str], search: Sequence[str] = ()) -> Run:
        """Runs commands with the resolv.conf that a runtime writes after a plugin has said this."""
        folder, name = os.path.split(self.path)
        given = Path(folder, f"{name}.resolv.conf")
        given.write_text(str(ResolvConf(tuple(servers), tuple(search))))
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return lambda argv: self.try_(["unshare", "--mount", "sh", "-c", script, str(given), *argv])

    def serve(self, port: int, proto: str = "tcp", address: str = "0.0.0.0") -> None:
        argv = ["nsenter", f"--net={self.path}", *echo_server(proto, port, address)]
        self.processes.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        assert self.processes[-1].stdout is not None
        assert self.processes[-1].stdout.readline() == "ready\n"

    def end(self) -> None:
        """Its processes end; the namespace stays."""
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.processes = []

    def delete(self) -> None:
        self.end()
        if os.path.exists(self.path):
            subprocess.run(["umount", self.path], check=True)
            os.unlink(self.path)


def spaces_of_a_test(folder: Path) -> Iterator[Any]:
    """For a fixture: makes spaces, and takes them away."""
    made: list[Space] = []

    def make() -> Space:
        made.append(Space(folder))
        return made[-1]

    yield make
    for space in made:
        space.delete()


class Refused(AssertionError):
    """The plugin answered with an error: its JSON."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("error") or f"{error['code']}: {error['msg']}")
        self.error = error


class Killed(Exception):
    """The plugin was killed before it had answered."""


class Cni:
    """A runtime with one network: what it remembers of each attachment is what libcni caches."""

    def __init__(self, host: Host, config: dict[str, Any], version: str = "1.0.0", **wishes: Any) -> None:
        self.host = host
        self.config = {"cniVersion": version, "name": "net", "type": "datapath", **config}
        self.wishes = wishes
        self.path = CNI_PATH
        self.results: dict[tuple[str, str], dict[str, Any]] = {}

    def call(
        self,
        verb: str,
        container: str = "",
        netns: str = "",
        ifname: str = "eth0",
        args: str = "",
        more: dict[str, Any] | None = None,
        program: Path | None = None,
    ) -> Any:
        """The plugin's answer, decoded; Refused with its error. `more`: keys of the configuration."""
        raw = json.dumps({**self.config, **(more or {})}).encode()
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": self.path,
        }
        code, said = plugin(self.host, "ctl.cni.main", [], environ, raw, program)
        answer: Any = json.loads(said) if said else None
        if code and answer is None:
            raise Killed
        if code:
            raise Refused(answer)
        return answer

    def add(self, container: str, netns: str, ifname: str = "eth0", args: str = "", **wishes: Any) -> Any:
        wanted = {**self.wishes, **wishes}
        result = self.call("ADD", container, netns, ifname, args, {"runtimeConfig": wanted} if wanted else {})
        self.results[container, ifname] = result
        return result

    def delete(self, container: str, netns: str = "", ifname: str = "eth0", args: str = "") -> None:
        known = self.results.get((container, ifname))
        more = {"prevResult": known} if known else {}
        assert self.call("DEL", container, netns, ifname, args, more) is None
        self.results.pop((container, ifname), None)

    def check(self, container: str, netns: str, ifname: str = "eth0") -> None:
        known = self.results[container, ifname]
        assert self.call("CHECK", container, netns, ifname, "", {"prevResult": known}) is None

    def collect(self) -> None:
        valid = [{"containerID": container, "ifname": ifname} for container, ifname in self.results]
        more: dict[str, Any] = {"cni.dev/valid-attachments": valid} if valid else {}
        assert self.call("GC", more=more) is None


class Netavark:
    """podman with this plugin for its networks: it manages addresses itself, and remembers networks."""

    def __init__(self, host: Host, program: Path | None = None) -> None:
        self.host, self.program = host, program
        self.networks: dict[str, dict[str, Any]] = {}
        self.folder = host.folder / "podman"
        self.folder.mkdir(exist_ok=True)
        self.settings = host.folder / "containers.conf"
        self.settings.write_text(f'[network]\nnetwork_config_dir = "{self.folder}"\n')

    def call(self, *argv: str, request: object = None) -> Any:
        """The plugin's answer, decoded; Refused with its error."""
        raw = request if isinstance(request, bytes) else json.dumps(request).encode()
        environ = {"CONTAINERS_CONF": str(self.settings)}
        code, said = plugin(self.host, "ctl.netavark.main", list(argv), environ, raw, self.program)
        answer: Any = json.loads(said) if said else None
        if code and answer is None:
            raise Killed
        if code:
            raise Refused(answer)
        return answer

    def create(self, name: str, **more: Any) -> dict[str, Any]:
        """podman network create."""
        ident = hashlib.sha256(name.encode()).hexdigest()
        asked = {
            "name": name,
            "id": ident,
            "driver": "datapath",
            "internal": False,
            "ipv6_enabled": False,
            **more,
        }
        network: dict[str, Any] = self.call("create", request=asked)
        self.networks[name] = network
        (self.folder / f"{name}.json").write_text(json.dumps(network))
        return network

    def remove(self, name: str) -> None:
        """podman network rm: no plugin is told."""
        del self.networks[name]
        (self.folder / f"{name}.json").unlink()

    def request(self, container: str, name: str, ifname: str, *ips: str, **more: Any) -> dict[str, Any]:
        """What comes with setup and teardown."""
        options = {key: more.pop(key) for key in ("static_mac", "aliases") if key in more}
        return {
            "container_id": hashlib.sha256(container.encode()).hexdigest(),
            "container_name": container,
            "port_mappings": more.pop("port_mappings", None),
            "network": {**self.networks[name], **more},
            "network_options": {"interface_name": ifname, "static_ips": list(ips) or None, **options},
        }


def plugin(
    host: Host,
    module: str,
    argv: list[str],
    environ: dict[str, str],
    raw: bytes,
    program: Path | None = None,
) -> tuple[int, str]:
    """Exit code and stdout of the plugin, called within the host's namespace."""
    env = {**(host.env or {}), **environ}
    if program is not None:
        command = ["nsenter", f"--net={host.path}", str(program), *argv]
        done = subprocess.run(command, input=raw, env=env, capture_output=True, timeout=TIMEOUT)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout.decode()
    import importlib

    for name in _MODULES:
        importlib.import_module(name)
    main = importlib.import_module(module)

    def work() -> int:
        sys.stdin = io.TextIOWrapper(io.BytesIO(raw))
        sys.argv = [module, *argv]
        return int(main.run())

    forked_done = forked.call(work, [module, *argv], host.path, env, TIMEOUT, host.uts)
    assert "Traceback" not in forked_done.stderr, forked_done.stderr
    assert forked_done.returncode in (0, 1, -9), forked_done
    return forked_done.returncode, forked_done.stdout


def found(name: str) -> bool:
    """A program of Debian's is here."""
    return shutil.which(name) is not None or os.path.exists(f"{CNI_PATH}/{name}")
