# SPDX-License-Identifier: Apache-2.0
"""Words that Docker knows and datapathctl does not: one line each, which says what there is instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import click

from datapath.errors import meant

_IMAGES = "there are no images: a container runs a program of this host, or of --rootfs DIR"
_VOLUMES = "there are no volumes: a container sees the host's files, or those of --rootfs DIR"
_SWARM = "there is no swarm: a network is one host's"
_LIMITS = "there are no resource limits: systemd-run sets them"
_CAPABILITIES = "no capability is taken away, so that none need be given back"
_HEALTH = "there are no health checks"
_DEVICES = "a container sees the host's devices; with --rootfs DIR it has those of Docker's default"
_NAMESPACES = "a container has a network, mounts and a host name of its own, and shares all other namespaces"
_SIZES = "sizes of files are not measured: they are the host's"
_STORAGE = "there is no storage driver: a container's files are the host's, or those of --rootfs DIR"

# Docker's commands, by their words.
COMMANDS: Mapping[str, str] = {
    "attach": "a container's terminal is that of its `run`: use `logs -f`, or `exec -it CONTAINER sh`",
    "build": _IMAGES,
    "builder": _IMAGES,
    "buildx": _IMAGES,
    "checkpoint": "containers are not saved while they run",
    "commit": _IMAGES,
    "compose": "there are no compose files: use a script of `network create` and `run`",
    "config": _SWARM,
    "context": "there is one host, this one: use ssh for another",
    "cp": "copy files on the host: a container's are the host's, or those of its --rootfs",
    "create": "a container starts when it is made: use `run -d`",
    "diff": "nothing is recorded of what a container changes in files",
    "events": "nothing is kept of events: `ps -a` shows what has ended, and --debug logs what a command does",
    "export": _STORAGE,
    "history": _IMAGES,
    "image": _IMAGES,
    "images": _IMAGES,
    "import": _IMAGES,
    "info": "use `version`, `stats` and `doctor`",
    "kill": "use `rm -f`, or `stop -t 0`; `stop -s SIGNAL` sends another signal first",
    "load": _IMAGES,
    "login": _IMAGES,
    "logout": _IMAGES,
    "manifest": _IMAGES,
    "node": _SWARM,
    "pause": "a container is not paused: `kill -STOP` with its process, which `inspect` shows, stops that",
    "plugin": "there are no plugins",
    "prune": "use `network prune`; `run --rm` removes a container when it ends",
    "pull": _IMAGES,
    "push": _IMAGES,
    "restart": "use `stop`, then `start`",
    "rmi": _IMAGES,
    "save": _IMAGES,
    "search": _IMAGES,
    "secret": _SWARM,
    "stack": _SWARM,
    "swarm": _SWARM,
    "system": "use `doctor`, `stats`, `version`, `network prune` and `down`",
    "tag": _IMAGES,
    "trust": _IMAGES,
    "unpause": "a container is not paused: `kill -CONT` with its process, which `inspect` shows, continues that",
    "update": "a container's options are those of its `run`; `port set` and `network connect` change its network",
    "volume": _VOLUMES,
    "wait": "use `run` without -d, which waits; `inspect` shows the exit code of one that has ended",
    "service logs": "use `logs` with each container that `service ps` lists",
    "service rollback": "what `service update` replaced is not kept",
    "service scale": "there is no scheduler: containers join by `run --service`",
    "network update": "a network's options are those of its `network create`",
    "network use": "use `run --network NETWORK`",
    "port inspect": "use `port ls CONTAINER`, or `inspect CONTAINER`",
    "port prune": "use `port rm CONTAINER NUMBER...`",
}

_RUN_OPTIONS: Mapping[str, str] = {
    "--annotation": "use --label",
    "--attach": "without -d the container's output and errors are printed; -i hands on the input",
    "--blkio-weight": _LIMITS,
    "--blkio-weight-device": _LIMITS,
    "--cap-add": _CAPABILITIES,
    "--cap-drop": "no capability is taken away: setpriv --bounding-set does it before the program",
    "--cgroup-parent": "a detached container is in the control group datapath/ID, another in its caller's",
    "--cgroupns": _NAMESPACES,
    "--cidfile": "write the ID that `run -d` prints to the file",
    "--cpu-count": _LIMITS,
    "--cpu-percent": _LIMITS,
    "--cpu-period": _LIMITS,
    "--cpu-quota": _LIMITS,
    "--cpu-rt-period": _LIMITS,
    "--cpu-rt-runtime": _LIMITS,
    "--cpu-shares": _LIMITS,
    "--cpus": _LIMITS,
    "--cpuset-cpus": _LIMITS,
    "--cpuset-mems": _LIMITS,
    "--detach-keys": "nothing is attached again: end a container with `stop`",
    "--device": _DEVICES,
    "--device-cgroup-rule": _DEVICES,
    "--device-read-bps": _LIMITS,
    "--device-read-iops": _LIMITS,
    "--device-write-bps": _LIMITS,
    "--device-write-iops": _LIMITS,
    "--disable-content-trust": _IMAGES,
    "--entrypoint": "there are no images, so that no entry point is set: give the program as it is",
    "--gpus": _DEVICES,
    "--group-add": "use -u USER: its groups are those that /etc/group gives it",
    "--health-cmd": _HEALTH,
    "--health-interval": _HEALTH,
    "--health-retries": _HEALTH,
    "--health-start-interval": _HEALTH,
    "--health-start-period": _HEALTH,
    "--health-timeout": _HEALTH,
    "--init": "it is not needed: the container's parent reaps what it leaves",
    "--io-maxbandwidth": _LIMITS,
    "--io-maxiops": _LIMITS,
    "--ipc": _NAMESPACES,
    "--isolation": _NAMESPACES,
    "--kernel-memory": _LIMITS,
    "--log-driver": "a container's output is kept in a file, which `logs` prints",
    "--memory": _LIMITS,
    "--memory-reservation": _LIMITS,
    "--memory-swap": _LIMITS,
    "--memory-swappiness": _LIMITS,
    "--mount": _VOLUMES,
    "--no-healthcheck": "there are no health checks to leave out",
    "--oom-kill-disable": _LIMITS,
    "--oom-score-adj": "use choom before the program",
    "--pid": "a container sees the host's processes, as with Docker's --pid host",
    "--pids-limit": _LIMITS,
    "--platform": _IMAGES,
    "--privileged": _CAPABILITIES,
    "--pull": _IMAGES,
    "--quiet": "`run` prints nothing that could be left out",
    "--read-only": "a container may write wherever its user may",
    "--restart": "there are no restart policies: a systemd unit restarts a container that runs without -d",
    "--runtime": "there is one runtime, datapathctl's own",
    "--security-opt": "a container runs in the security context of its caller",
    "--shm-size": "/dev/shm is the host's, or with --rootfs DIR as large as half of the memory",
    "--sig-proxy": "signals are always handed on",
    "--stop-timeout": "use `stop -t SECONDS`",
    "--storage-opt": _STORAGE,
    "--tmpfs": "no file system is mounted for a container, but what --rootfs DIR needs",
    "--ulimit": "use prlimit before the program",
    "--use-api-socket": "there is no daemon, and so no socket",
    "--userns": _NAMESPACES,
    "--uts": "a container has a host name of its own: use -h NAME",
    "--volume": _VOLUMES,
    "--volume-driver": _VOLUMES,
    "--volumes-from": _VOLUMES,
    "-a": "without -d the container's output and errors are printed; -i hands on the input",
    "-c": _LIMITS,
    "-m": _LIMITS,
    "-q": "`run` prints nothing that could be left out",
    "-v": _VOLUMES,
}

# Docker's options, by the command that has them there.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "": {
        "--context": "there is one host, this one: use ssh for another",
        "-c": "there is one host, this one: use ssh for another",
        "--host": "there is no daemon: the host is the network namespace in which the command is started",
        "-H": "there is no daemon: the host is the network namespace in which the command is started",
        "--log-level": "use --debug",
        "-l": "use --debug",
        "-D": "use --debug",
        "--tls": "there is no daemon to talk to",
        "--tlscacert": "there is no daemon to talk to",
        "--tlscert": "there is no daemon to talk to",
        "--tlskey": "there is no daemon to talk to",
        "--tlsverify": "there is no daemon to talk to",
    },
    "run": _RUN_OPTIONS,
    "exec": {
        "--detach": "a command of `exec` is waited for: start it in the background with a shell's &",
        "-d": "a command of `exec` is waited for: start it in the background with a shell's &",
        "--detach-keys": "nothing is attached again",
        "--privileged": _CAPABILITIES,
    },
    "ps": {"--size": _SIZES, "-s": _SIZES},
    "logs": {"--details": "labels and variables are not logged: `inspect` shows them"},
    "inspect": {"--size": _SIZES, "-s": _SIZES},
    "rm": {
        "--link": "a link ends with its container",
        "-l": "a link ends with its container",
    },
    "start": {
        "--attach": "a container that was started again runs in the background: use `logs -f`",
        "-a": "a container that was started again runs in the background: use `logs -f`",
        "--checkpoint": "containers are not saved while they run",
        "--checkpoint-dir": "containers are not saved while they run",
        "--detach-keys": "nothing is attached",
        "--interactive": "a container that was started again runs in the background: use `exec -it`",
        "-i": "a container that was started again runs in the background: use `exec -it`",
    },
    "stats": {
        "--no-stream": "counters are printed once, unless --follow is given",
        "--no-trunc": "nothing is truncated",
    },
    "network create": {
        "--config-from": _SWARM,
        "--config-only": _SWARM,
        "--ingress": _SWARM,
    },
}


class Told(click.UsageError):
    """A mistake whose line says all: it does not point to the command's help."""


def unknown_option(name: str, ctx: click.Context, known: Collection[str]) -> click.UsageError:
    """What is said of an option that this command does not have."""
    command = words(ctx)
    line = OPTIONS.get(command, {}).get(name)
    if line is not None:
        return Told(f"{name}: {line}", ctx)
    return click.UsageError(f"No such option {name!r}.{_meant(name, known)}", ctx)


def unknown_command(name: str, ctx: click.Context, known: Collection[str]) -> click.UsageError:
    """What is said of a word that is no command of this group."""
    line = COMMANDS.get(f"{words(ctx)} {name}".strip())
    if line is not None:
        return Told(f"{name}: {line}", ctx)
    return click.UsageError(f"No such command {name!r}.{_meant(name, known)}", ctx)


def words(ctx: click.Context) -> str:
    """The words of a command behind the program's name: "network create". Docker's `container` is left out."""
    path = ctx.command_path.split()[1:]
    if path[:1] == ["container"]:
        path = ["ps"] if path[1:] in (["ls"], ["list"], ["ps"]) else path[1:]
    return " ".join(path)


def _meant(word: str, known: Collection[str]) -> str:
    found = meant(word, known)
    return f" Did you mean {found!r}?" if found else ""
