# SPDX-License-Identifier: Apache-2.0
"""etcd for tests: one server or several on a machine of their own, each with its own folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datapath.kernel.netns import enter
from datapath.model.clusters import ClusterStore
from datapath.store.etcd import gateway
from datapath.store.etcd.client import EtcdCluster
from tests.net.hosts import PATIENCE, SLOWNESS, Namespace, eventually


@contextmanager
def hasty() -> Iterator[None]:
    """Meanwhile this process, and commands that are forked from it, give up a store that does not answer at once: for
    tests of what is said and done then, and not of when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "TIMEOUT", 0.5 * SLOWNESS)
        yield


class Etcd(Namespace):
    """A cluster of `count` servers, ports 23790 and on. `tls`: a folder with ca.crt, server.crt and server.key, for
    which clients need a certificate. `address`: where clients ask; `plug` gives it to the machine before a server
    begins."""

    def __init__(
        self,
        folder: Path,
        count: int = 1,
        tls: Path | None = None,
        options: str = "",
        address: str = "127.0.0.1",
        plug: Callable[[Namespace], None] | None = None,
    ) -> None:
        super().__init__({"PATH": os.environ["PATH"], "ETCDCTL_API": "3", "ETCD_UNSUPPORTED_ARCH": "arm64"})
        self.folder, self.count, self.tls, self.options, self.address = folder, count, tls, options, address
        self.servers: dict[int, subprocess.Popen[str]] = {}
        if plug is not None:
            plug(self)
        for number in range(count):
            self.begin(number)
        if plug is None:
            self.ready()

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    def port(self, number: int) -> int:
        return 23790 + number

    def begin(self, number: int) -> None:
        """Starts a server, with what it had."""
        peers = ",".join(f"s{one}=http://127.0.0.1:{24790 + one}" for one in range(self.count))
        url, peer = (
            f"{self.scheme}://{self.address}:{self.port(number)}",
            f"http://127.0.0.1:{24790 + number}",
        )
        words = ["etcd", "--name", f"s{number}", "--data-dir", str(self.folder / f"s{number}")]
        words += ["--listen-client-urls", url, "--advertise-client-urls", url, "--log-level", "error"]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        words += ["--initial-cluster", peers, *self.options.split()]
        if self.tls:
            words += ["--cert-file", str(self.tls / "server.crt"), "--key-file", str(self.tls / "server.key")]
            words += ["--client-cert-auth", "--trusted-ca-file", str(self.tls / "ca.crt")]
        self.servers[number] = self.start(words)

    def ready(self) -> None:
        with eventually() as until:
            until(lambda: self.try_(self.words("endpoint health")).returncode == 0)

    def kill(self, number: int) -> None:
        process = self.servers.pop(number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.background.remove(process)

    def ended(self, number: int) -> None:
        """Waits until a server has ended by itself."""
        process = self.servers.pop(number)
        process.wait(PATIENCE)
        self.background.remove(process)

    def save(self, path: Path) -> None:
        """Writes a snapshot of the one server's data."""
        self.etcdctl(f"snapshot save {path}")

    def restore(self, path: Path) -> None:
        """Kills the one server, and starts it with a snapshot instead of what it had."""
        self.kill(0)
        shutil.rmtree(self.folder / "s0")
        peer = "http://127.0.0.1:24790"
        words = f"etcdctl snapshot restore {path} --data-dir {self.folder / 's0'} --name s0"
        self.sh(f"{words} --initial-cluster s0={peer} --initial-advertise-peer-urls {peer}")
        self.begin(0)
        self.ready()

    def words(self, command: str) -> list[str]:
        """etcdctl's, for the servers that run."""
        urls = ",".join(f"{self.scheme}://{self.address}:{self.port(number)}" for number in self.servers)
        words = ["etcdctl", "--endpoints", urls]
        if self.tls:
            words += ["--cacert", str(self.tls / "ca.crt"), "--cert", str(self.tls / "client.crt")]
            words += ["--key", str(self.tls / "client.key")]
        return [*words, *command.split()]

    def etcdctl(self, command: str, input: str | None = None) -> str:
        return self.sh(self.words(command), input)

    def revision(self) -> int:
        """How many writes there have been."""
        return int(json.loads(self.etcdctl("endpoint status -w json"))[0]["Status"]["header"]["revision"])

    def leader(self) -> int:
        """Which server it is."""
        found = json.loads(self.etcdctl("endpoint status -w json"))
        for one in found:
            if one["Status"]["leader"] == one["Status"]["header"]["member_id"]:
                return int(one["Endpoint"].rpartition(":")[2]) - self.port(0)
        raise AssertionError("there is no leader")

    def where(self, **more: object) -> ClusterStore:
        """As a client is told."""
        servers = tuple((self.address, self.port(number)) for number in range(self.count))
        return ClusterStore(servers, **more)  # type: ignore[arg-type]

    @contextmanager
    def client(self, **more: object) -> Iterator[EtcdCluster]:
        """One in the servers' namespace, where the calling thread stays meanwhile."""
        with enter(self.path), EtcdCluster(self.where(**more)) as found:
            yield found


def make_certificates(folder: Path) -> Path:
    """ca.crt, and server.* and client.* that are signed by it; only the former has a CommonName."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name, subject in (("server", "/CN=server"), ("client", "/O=client")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
    return folder
