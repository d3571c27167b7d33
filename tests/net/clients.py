# SPDX-License-Identifier: Apache-2.0
"""Container runtimes of Debian's on a pretend host: containerd and podman, with folders of their own for all they keep.

They and their containers live in namespaces whose first process is ours: when that ends, all of it is gone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.net.doors import CNI_PATH, executable
from tests.net.hosts import HOST, PATIENCE, TIMEOUT, TREE, Failed, Host, Words, eventually, words
from tests.net.runtimes import ENTER, remove_groups

# It mounts folders over the machine's, says so, and reaps what is left to it.
_INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
for name in etc opt var/lib root; do
    mkdir -p "$1/$name/up" "$1/$name/work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$1/$name/up,workdir=$1/$name/work" "/$name"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /etc/cni/net.d /opt/cni/bin /etc/containers
rm -f /etc/cni/net.d/*
mount -t proc proc /proc
echo ready
exec bash -c 'trap : CHLD; while :; do sleep 86400 & wait $!; done'
"""
# The same on the root of another release.
_ELSEWHERE = f"""
set -e
{ENTER}
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run
enter "$@"
mkdir -p /run/netns /run/lock /etc/containers /etc/cni/net.d /opt/cni/bin
rm -f /etc/cni/net.d/*
echo ready
exec bash -c 'trap : CHLD; while :; do sleep 86400 & wait $!; done'
"""
CLEAN = "No problems found.\n"
CONTAINERD = "/run/containerd.sock"
_NO_PODS = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'
# The image waits for ever by itself, as a pause image does. Tests may not lower the score by which the kernel kills.
_PODS = """
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/bb:latest"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
"""
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_CNI = """
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
"""
_NETAVARK = """
[network]
network_backend = "netavark"
netavark_plugin_dirs = ["/usr/local/lib/netavark"]
"""
_CONTAINERS = """
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
log_driver = "k8s-file"
"""


class Machine:
    """The pretend host as a runtime sees it. `cgroup`: below which the groups of all containers have to be. `root`: of
    another release, None: this machine's."""

    def __init__(self, host: Host, root: Path | None = None) -> None:
        self.host = host
        self.folder = host.folder / "machine"
        self.folder.mkdir()
        self._scratch = None if root is None else Path(tempfile.mkdtemp())
        self.cgroup = f"datapath-test-{os.getpid()}"
        argv = [
            "nsenter",
            f"--net={host.path}",
            "unshare",
            "--mount",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
        ]
        self._outer = subprocess.Popen(
            [*argv, "bash", "-c", *self._init(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=host.env,
        )
        assert self._outer.stdout is not None
        said = self._outer.stdout.readline()
        assert said == "ready\n", said + self._outer.stdout.read()
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self.pid = int(children.split()[0])
        python = sys.executable if root is None else "/usr/bin/python3"
        self.sh(
            ["cp", str(executable(self.folder.parent / "bin", "ctl.cni.main", host, python)), "/opt/cni/bin/"]
        )

    def _init(self, root: Path | None) -> list[str]:
        if root is None:
            return [_INIT, "init", str(self.folder)]
        return [_ELSEWHERE, "init", str(self._scratch), str(root), str(TREE), str(self.host.folder)]

    def _argv(self, command: Words) -> list[str]:
        spaces = ("--net", "--mount", "--pid", "--ipc", "--root", "--wd")
        return ["nsenter", "-t", str(self.pid), *spaces, *words(command)]

    def try_(self, command: Words, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        env = {**(self.host.env or {}), "HOME": "/root"}
        return subprocess.run(
            self._argv(command),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def sh(self, command: Words) -> str:
        done = self.try_(command)
        if done.returncode:
            raise Failed(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        argv = self._argv(["sh", "-c", f"cat >{path}"])
        subprocess.run(argv, input=text, text=True, check=True)

    def network(
        self, name: str, version: str = "1.0.0", *before: dict[str, object], **config: object
    ) -> None:
        """A network's configuration, as an administrator writes it. `before`: plugins that come first."""
        plugin = {
            "type": "datapath",
            "capabilities": {"portMappings": True, "ips": True, "mac": True, "dns": True},
            **config,
        }
        listed = {"cniVersion": version, "name": name, "plugins": [*before, plugin]}
        self.write(f"/etc/cni/net.d/10-{name}.conflist", json.dumps(listed))

    def start(self, command: Words, ready: Words) -> subprocess.Popen[str]:
        """A daemon, which is ready when the other command succeeds."""
        env = {**(self.host.env or {}), "HOME": "/root"}
        log = (self.folder.parent / "daemon.log").open("w")
        process = subprocess.Popen(self._argv(command), env=env, stdout=log, stderr=log, text=True)
        log.close()
        end = time.monotonic() + PATIENCE
        while self.try_(ready).returncode:
            assert process.poll() is None and time.monotonic() < end, (
                self.folder.parent / "daemon.log"
            ).read_text()
            time.sleep(0.05)
        self.host.background.append(process)
        return process

    def close(self) -> None:
        os.kill(self.pid, 9)
        self._outer.wait()
        assert self._outer.stdout is not None
        self._outer.stdout.close()
        if self._scratch is not None:
            self._scratch.rmdir()
        remove_groups(self.cgroup)


def image(path: Path, name: str) -> Path:
    """An image of busybox and nothing else, as `docker save` writes it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        busybox = shutil.which("busybox")
        assert busybox is not None
        tar.add(busybox, "bin/busybox")
        for applet in ("sh", "sleep", "httpd", "nc", "ip", "wget", "echo", "cat", "nslookup"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for folder in ("etc", "tmp", "proc", "sys", "dev", "www"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        page = tarfile.TarInfo("www/index.html")
        page.size = len(b"hello\n")
        tar.addfile(page, io.BytesIO(b"hello\n"))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "3600"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    raw = json.dumps(config).encode()
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for file, content in (
            ("config.json", raw),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def podman(machine: Machine, netavark: bool = False) -> None:
    """Sets podman up, with the image bb, and networks by CNI or netavark."""
    machine.write("/etc/containers/containers.conf", (_NETAVARK if netavark else _CNI) + _CONTAINERS)
    machine.write("/etc/containers/policy.json", json.dumps(_POLICY))
    storage = '[storage]\ndriver = "vfs"\nrunroot = "/run/c"\ngraphroot = "/run/g"\n'
    machine.write("/etc/containers/storage.conf", storage)
    machine.sh(
        ["podman", "load", "-q", "-i", str(image(machine.folder.parent / "bb.tar", "localhost/bb:latest"))]
    )


def containerd(machine: Machine, pods: bool = False) -> subprocess.Popen[str]:
    """Starts containerd, with the image bb, and with pods if they are wanted."""
    parts = ('root = "/run/root"', 'state = "/run/state"', _PODS if pods else _NO_PODS)
    machine.write(
        "/etc/containerd.toml", "\n".join(("version = 2", *parts, f'[grpc]\naddress = "{CONTAINERD}"', ""))
    )
    if pods:  # each gets its loopback device by a plugin; this machine's serves every release
        shutil.copy(f"{CNI_PATH}/loopback", machine.folder.parent / "bin")
        machine.sh(f"cp {machine.folder.parent}/bin/loopback /opt/cni/bin/")
    daemon = machine.start("containerd --config /etc/containerd.toml", f"ctr -a {CONTAINERD} version")
    path = image(machine.folder.parent / "bb.tar", "docker.io/library/bb:latest")
    imports = f"ctr -a {CONTAINERD} {'-n k8s.io ' if pods else ''}image import --snapshotter native"
    if machine.try_(
        f"{imports} {path}"
    ).returncode:  # since 2.0 the daemon does it, and knows of overlayfs alone
        machine.sh(f"{imports} --local {path}")
    return daemon


def answers(host: Host, place: str, port: int) -> None:
    """The page is there, as soon as the server in the container listens."""
    where = host.outside if place == HOST else host
    with eventually() as until:
        until(lambda: where.try_(f"curl -s -m 5 http://{place}:{port}/").stdout == "hello\n")


def runs_with_ctr(host: Host, machine: Machine) -> None:
    """`ctr run --cni`, as a test; one that runs in the background is never said to be gone."""
    machine.network("n1", subnet="10.81.0.0/24")
    ctr = f"ctr -a {CONTAINERD}"
    run, bb = f"{ctr} run --cni --snapshotter native", "docker.io/library/bb:latest"
    shown = machine.sh(f"{run} --rm --cgroup /{machine.cgroup}-1 {bb} c1 ip -o address show eth0")
    assert "10.81.0.2/24" in shown
    assert "cni" not in host.ctl("ps") + host.ctl("network ls")
    machine.sh(f"{run} -d --cgroup /{machine.cgroup}-2 {bb} c2 httpd -f -p 80 -h /www")
    answers(host, "10.81.0.2", 80)
    assert host.try_ctl("doctor").stdout == CLEAN
    assert "default-c2" in host.ctl("ps --format {{.Names}}")
    machine.sh(f"{ctr} task rm -f c2")
    with eventually() as until:
        until(lambda: "is gone" in host.try_ctl("doctor").stdout)
    shown = machine.sh(f"{run} --rm --cgroup /{machine.cgroup}-3 {bb} c3 ip -o address show eth0")
    assert "10.81.0.2/24" in shown
    assert host.try_ctl("doctor").stdout == CLEAN
    machine.sh(f"{ctr} container rm c2")
