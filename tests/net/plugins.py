# SPDX-License-Identifier: Apache-2.0
"""A plugin that is not ours, beside a pretend host: started, killed, made to misbehave, and what it was asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.net.hosts import TIMEOUT, Host

SERVER = str(Path(__file__).with_name("plugin_server.py"))
# Requests that every command begins with.
HANDSHAKE = ("Activate", "GetCapabilities")


class Plugin:
    """`where`: its socket, by default that of Docker's folder; or a TCP port, with the files of TLS."""

    def __init__(self, host: Host, name: str = "weave", where: str = "") -> None:
        self.host, self.name = host, name
        self.folder = host.folder / f"plugin-{name}"
        self.folder.mkdir()
        self.socket = folders(host) / f"{name}.sock"
        self.where = where or str(self.socket)
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        argv = [sys.executable, SERVER, self.where, str(self.folder)]
        with (self.folder / "errors").open("a") as errors:
            self.process = self.host.start(argv, stdout=subprocess.PIPE, stderr=errors)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", (self.folder / "errors").read_text()

    def kill(self) -> None:
        """Its socket's file stays, as of any process that is killed."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(TIMEOUT)

    def fail(self, **faults: dict[str, Any]) -> None:
        """How methods are answered from now on."""
        (self.folder / "faults").write_text(json.dumps(faults))

    def requests(self) -> list[dict[str, Any]]:
        """All since the last `forget`."""
        path = self.folder / "requests"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def methods(self) -> list[str]:
        """Their names, without the handshake and what is only for display."""
        found = [one["method"].partition(".")[2] for one in self.requests()]
        return [name for name in found if name not in (*HANDSHAKE, "EndpointOperInfo")]

    def asked(self, method: str) -> Any:
        """What the last request of that name said."""
        return [one for one in self.requests() if one["method"].endswith(f".{method}")][-1]["asked"]

    def forget(self) -> None:
        (self.folder / "requests").unlink(missing_ok=True)

    @property
    def state(self) -> Any:
        """What it has made and given out."""
        return json.loads((self.folder / "state").read_text())

    @property
    def empty(self) -> bool:
        """Nothing is left with it."""
        return bool(self.state == {"networks": {}, "endpoints": {}, "pools": {}})


def folders(host: Host) -> Path:
    """The folder of the host in which plugins are found, instead of Docker's."""
    folder = host.folder / "plugins"
    folder.mkdir(exist_ok=True)
    assert host.env is not None
    host.env["DATAPATH_PLUGIN_DIRS"] = str(folder)
    return folder


def impatient(host: Host, seconds: int = 1) -> None:
    """Commands wait so long for a plugin."""
    config = json.loads(host.config.read_text())
    host.configure({**config, "datapath": {**config.get("datapath", {}), "plugin-timeout": seconds}})
