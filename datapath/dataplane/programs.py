# SPDX-License-Identifier: Apache-2.0
"""The packet programs of one host: loaded, pinned, attached; and their maps.

Everything is pinned below one folder of a bpffs and works without any process:
``maps/NAME``, ``programs/NAME``, ``links/HOOK-IFINDEX``; and a mark that says of which version they are. Each step
may be the last of a killed process: opening again completes what is missing.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from datapath.dataplane import timer, version
from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import abi, cgroup, libbpf, links, netns, syscalls, sysctl

BPF_FS_MAGIC = 0xCAFE4A11
_SYSTEM_BPFFS = Path("/sys/fs/bpf")

# Map -> the structs of its key and value in abi.h; no key: an array.
MAPS: Mapping[str, tuple[str | None, str]] = {
    "networks": (None, "network"),
    "devices": ("device_key", "device"),
    "endpoints": ("endpoint_key", "endpoint"),
    "members": ("member_key", "member"),
    "ports": ("port_key", "port"),
    "reserved": ("reserved_key", "reserved"),
    "addresses": ("address_key", "address"),
    "acls": ("acl_key", "acl"),
    "links": ("link_key", "link"),
    "pending": ("tuple", "conn"),
    "conns": ("tuple", "conn"),
    "quotas": ("quota_key", "quota"),
    "rates": ("rate_key", "rate"),
    "fragments": ("fragment_key", "fragment"),
    "frag_queue": ("frag_queue_key", "frag_queue"),
    "sockets": ("socket_key", "socket"),
    "counters": (None, "counter"),
    "config": (None, "config"),
}


class Setup(NamedTuple):
    """What can be chosen when the programs are loaded: fields of abi.config, and entries of maps."""

    config: Mapping[str, int]
    sizes: Mapping[str, int]


# What nobody has chosen: no limits, and the sizes that the objects have.
DEFAULT_SETUP = Setup(
    {
        "timeout_handshake": 60,
        "timeout_established": 24 * 3600,
        "timeout_closing": 10,
        "timeout_udp": 180,
        "timeout_icmp": 30,
    },
    {},
)


class Hook(NamedTuple):
    """Where a tc program is attached: by tcx, or as a filter of clsact; to which devices. `own`: they are nobody
    else's, and come and go with their containers."""

    tcx: int
    clsact: int
    kind: abi.DeviceKind
    own: bool = False


HOOKS = {
    "from_container": Hook(
        libbpf.TCX_INGRESS, libbpf.BPF_TC_INGRESS, abi.DeviceKind.DEVICE_ENDPOINT, own=True
    ),
    "from_host": Hook(libbpf.TCX_EGRESS, libbpf.BPF_TC_EGRESS, abi.DeviceKind.DEVICE_GATEWAY),
    "from_uplink": Hook(libbpf.TCX_INGRESS, libbpf.BPF_TC_INGRESS, abi.DeviceKind.DEVICE_UPLINK),
    "from_loopback": Hook(libbpf.TCX_INGRESS, libbpf.BPF_TC_INGRESS, abi.DeviceKind.DEVICE_LOOPBACK),
}
HOOK_OF = {int(hook.kind): name for name, hook in HOOKS.items()}
XDP_HOOK = "xdp_uplink"
CONN_GC = "conn_gc"
# enum bpf_attach_type
SOCKET_HOOKS = {
    "host_bind4": 8,
    "host_bind6": 9,
    "host_connect4": 10,
    "host_connect6": 11,
    "host_sendmsg4": 14,
    "host_sendmsg6": 15,
    "host_recvmsg4": 19,
    "host_recvmsg6": 20,
    "host_peer4": 29,
    "host_peer6": 30,
}
OBJECT_FILES = {
    "from_container": ("from_container",),
    "from_host": ("from_host",),
    "from_uplink": ("from_uplink",),
    "from_loopback": ("from_loopback",),
    "xdp_uplink": (XDP_HOOK,),
    "host_socket": tuple(SOCKET_HOOKS),
    "conn_gc": (CONN_GC,),
}

# Our filters among others' on a clsact qdisc: looked for by both numbers.
CLSACT_PRIORITY, CLSACT_HANDLE = 0x0D47, 0x0D47

SAMPLE = 64
# Where the programs of an upgrade wait (see upgrade.py).
NEXT = "next"
_DETACH_PATIENCE = 2.0  # seconds
_NOT_PINNED = "it is not pinned: run the command again to load it; of another version: `datapathctl upgrade`"


def nat_ports(ephemeral: tuple[int, int]) -> tuple[int, int]:
    """The source ports for masquerading: the larger gap that the host's ephemeral range (inclusive) leaves."""
    below, above = (1024, ephemeral[0] - 1), (ephemeral[1] + 1, 65535)
    best = max(below, above, key=lambda gap: gap[1] - gap[0])
    if best[1] - best[0] < 1024:
        raise KernelError(
            "choose",
            "ports for masquerading",
            detail="net.ipv4.ip_local_port_range leaves less than 1024 ports",
        )
    return best


class Dataplane:
    """Programs, maps and links of one host. Use as a context manager, or close().

    `attach_mode`: "auto" (tcx, else clsact), "tcx" or "clsact". `setup` is for what has to be loaded. `group`:
    the control group whose sockets are looked after, None: the root.
    """

    def __init__(
        self,
        bpffs: Path,
        attach_mode: str = "auto",
        setup: Setup = DEFAULT_SETUP,
        group: Path | None = None,
    ) -> None:
        self.root = bpffs
        self._mode = attach_mode
        self._setup = setup
        self._group = group
        self._fds: dict[str, int] = {}
        self._maps: dict[str, libbpf.Map] = {}

    # ---- life ----------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        bpffs: Path,
        attach_mode: str = "auto",
        setup: Setup = DEFAULT_SETUP,
        group: Path | None = None,
    ) -> Dataplane:
        """Loads, pins and attaches everything, unless it is there. Raises KernelError and its kinds.

        What is there in part only is begun afresh: programs without one of their maps' pins cannot be told
        anything any more. Those of another version are used as they are, if their maps are laid out as ours.
        """
        self = cls(bpffs, attach_mode, setup, group)
        try:
            if not self.is_complete(bpffs):
                self._mount()
                self._unpin()
                for folder in ("maps", "programs"):
                    (bpffs / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
                for name in OBJECT_FILES:
                    self.load(name, bpffs / "programs", bpffs / "maps")
                mark = version.installed().mark  # the last: without it nothing counts as loaded
                libbpf.pin(self._program(CONN_GC), bpffs / "programs" / mark)
            version.check(bpffs)
            (bpffs / "links").mkdir(exist_ok=True, mode=0o700)
            self.attach_sockets()
            timer.start(self._program(CONN_GC))
        except BaseException:
            self.close()
            raise
        return self

    @staticmethod
    def is_complete(bpffs: Path) -> bool:
        """Every program and every map is pinned; of another version, which has its own, those that it left."""
        pinned = _pinned(bpffs / "programs")
        found = version.marked(pinned)
        if found is None or found.objects != version.digest():
            return found is not None
        programs = {program for names in OBJECT_FILES.values() for program in names}
        return programs <= pinned and MAPS.keys() <= _pinned(bpffs / "maps")

    @property
    def outdated(self) -> bool:
        """The programs are of another version, older or newer."""
        found = version.marked(_pinned(self.root / "programs"))
        return found is not None and found.objects != version.digest()

    @classmethod
    def find(cls, bpffs: Path, attach_mode: str = "auto") -> Dataplane | None:
        """The one that is there; None: nothing was ever loaded. KernelError: its maps are laid out otherwise."""
        if not (bpffs / "maps" / "counters").exists():
            return None
        version.check(bpffs)
        return cls(bpffs, attach_mode)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        for m in self._maps.values():
            m.close()
        self._fds.clear()
        self._maps.clear()

    def __enter__(self) -> Dataplane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mount(self) -> None:
        """A bpffs under the folder: the system's, or one of its own."""
        if _SYSTEM_BPFFS in self.root.parents:
            if not is_bpffs(_SYSTEM_BPFFS):
                _mount_bpffs(_SYSTEM_BPFFS)
            return
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        if not is_bpffs(existing):
            self.root.mkdir(parents=True, exist_ok=True)
            _mount_bpffs(self.root)

    def load(self, name: str, programs_folder: Path, config_folder: Path) -> None:
        """Loads one object file with the pinned maps, and pins what is its own in these folders."""
        first, last = nat_ports(sysctl.ephemeral_ports())
        config = abi.config(
            netns_cookie=netns.cookie(),
            nat_port_first=first,
            nat_port_last=last,
            sample=SAMPLE,
            **self._setup.config,
        )
        programs, maps = libbpf.load_object(
            abi.OBJECTS / f"{name}.bpf.o", pins=self.root / "maps", config=config, sizes=self._sizes()
        )
        try:
            if not (config_folder / "config").exists():
                libbpf.pin(maps["config"], config_folder / "config")
            for program in programs:
                path = programs_folder / program.name
                if not path.exists():
                    libbpf.pin(program.fd, path)
        finally:
            for fd in (*(program.fd for program in programs), *maps.values()):
                os.close(fd)

    def _sizes(self) -> dict[str, int]:
        """As wanted, but for maps that are there: a load that was cut short goes on as it began."""
        sizes = dict(self._setup.sizes)
        if "conns" in sizes:
            sizes["confirmed"] = sizes["conns"] // 2  # each connection is in the conntrack GC's queue once
        for name in _pinned(self.root / "maps"):
            fd = libbpf.get_pinned(self.root / "maps" / name)
            if fd is not None:
                sizes[name] = int(libbpf.map_info(fd, name).max_entries)
                os.close(fd)
        return sizes

    def setup(self) -> Setup:
        """With what the programs were loaded: the settings and sizes that `self` was told, as they are."""
        config = self.config[0]
        return Setup(
            {name: getattr(config, name) for name in self._setup.config},
            {name: self._map(name).max_entries for name in self._setup.sizes},
        )

    def attach_sockets(self) -> None:
        """Attaches those of the socket hooks that are not pinned, as far as there are programs for them."""
        pinned, programs = _pinned(self.root / "links"), _pinned(self.root / "programs")
        missing = [name for name in SOCKET_HOOKS if name not in pinned and name in programs]
        if not missing:
            return
        group = str(self._group or cgroup.mount_point())
        try:
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError("open", f"control group {group}", error.errno or 0) from error
        try:
            for name in missing:
                link = libbpf.attach_cgroup(self._program(name), fd, SOCKET_HOOKS[name])
                self._pin_link(link, name)
        finally:
            os.close(fd)

    def is_there(self) -> bool:
        """In part at least: the folder of the pins exists."""
        return self.root.is_dir()

    def places(self) -> set[int]:
        """Devices that pins are about, by index."""
        names = _pinned(self.root / "links") | _pinned(self.root / "programs")
        numbers = (name.rpartition("-")[2] for name in names if not version.is_mark(name))
        return {int(number) for number in numbers if number.isdecimal()}

    def remove(self) -> None:
        """Detaches and unpins everything. Idempotent. Devices with clsact filters must be gone or detached before."""
        self.close()
        self._unpin()
        if os.path.ismount(self.root):
            syscalls.umount(str(self.root))
        with suppress(FileNotFoundError):
            self.root.rmdir()

    def _unpin(self) -> None:
        for folder in (NEXT, "links", "programs", "maps"):
            path = self.root / folder
            if path.is_dir():
                for entry in path.iterdir():
                    entry.unlink()
                path.rmdir()

    # ---- maps ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> libbpf.Map:
        """Each map of MAPS under its own name, opened when it is first used."""
        if name not in MAPS:
            raise AttributeError(name)
        return self._map(name)

    def _map(self, name: str) -> libbpf.Map:
        if name not in self._maps:
            fd = self._pinned_fd("maps", name, version.MAPS_BEFORE)
            if fd is None:
                raise KernelError("open map", name, detail=_NOT_PINNED)
            self._maps[name] = libbpf.Map(fd, name, *MAPS[name])
        return self._maps[name]

    def _pinned_fd(self, folder: str, name: str, before: Mapping[str, str]) -> int | None:
        """Opens a pin, under the name that it had in the version before if that is the only one."""
        fd = libbpf.get_pinned(f"{self.root}/{folder}/{name}")
        if fd is None and name in before:
            fd = libbpf.get_pinned(f"{self.root}/{folder}/{before[name]}")
        return fd

    def counters_sum(self) -> dict[str, tuple[int, int]]:
        """Reason -> (packets, bytes) over all CPUs."""
        sums = {}
        for reason in abi.Reason:
            copies = self.counters.get(int(reason), ())  # programs that are older have fewer
            sums[reason.name] = (sum(c.packets for c in copies), sum(c.bytes for c in copies))
        return sums

    def fill(self, names: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
        """Map -> (entries, most) of every map that can run full, or of these."""
        pinned = _pinned(self.root / "maps")
        wanted = tuple(names) or [
            name
            for name, (key, _) in MAPS.items()
            if key and (name in pinned or version.MAPS_BEFORE.get(name) in pinned)
        ]
        return {name: (self._map(name).count(), self._map(name).max_entries) for name in wanted}

    @property
    def limits_floods(self) -> bool:
        """Which needs XDP. Of settings that are another version's nothing is known: as it is."""
        try:
            return bool(self.config[0].flood_rate)
        except KernelError:
            return any(name.startswith(XDP_HOOK) for name in _pinned(self.root / "links"))

    def events(self, handler: Callable[[Any], None]) -> int:
        """Hands every waiting sampled drop (abi.event) to the handler."""
        fd = libbpf.get_pinned(self.root / "maps" / "events")
        if fd is None:
            return 0
        try:
            return libbpf.consume_events(fd, handler)
        finally:
            os.close(fd)

    # ---- attaching -----------------------------------------------------------------------

    def _program(self, name: str) -> int:
        if name not in self._fds:
            fd = self._pinned_fd("programs", name, version.PROGRAMS_BEFORE)
            if fd is None:
                raise KernelError("open program", name, detail=_NOT_PINNED)
            self._fds[name] = fd
        return self._fds[name]

    def _pin_link(self, link: int, name: str) -> None:
        """The pin keeps the link alive; without it closing the fd detaches."""
        try:
            libbpf.pin(link, self.root / "links" / name)
        finally:
            os.close(link)

    def drop_link(self, name: str) -> None:
        """Gives up one attachment, whatever has become of it."""
        (self.root / "links" / name).unlink(missing_ok=True)

    def attach_xdp(self, ifindex: int) -> bool:
        """Attaches the XDP program to a device, unless it is; False: another program is in its place."""
        name = f"{XDP_HOOK}-{ifindex}"
        if (self.root / "links" / name).exists():
            return True
        if self._lacks(XDP_HOOK):
            return True
        link = self._attach_xdp(ifindex)
        if link is None:
            return False
        self._pin_link(link, name)
        self._other_xdp(ifindex).unlink(missing_ok=True)
        return True

    def _lacks(self, hook: str) -> bool:
        """The programs are of another version that knows nothing of this hook: until `upgrade` nothing is there."""
        return not os.path.exists(f"{self.root}/programs/{hook}") and self.outdated

    def _attach_xdp(self, ifindex: int) -> int | None:
        """The link; None: another program is there. Ours may be there yet, as in `_attach_tcx`."""
        program, deadline = self._program(XDP_HOOK), time.monotonic() + _DETACH_PATIENCE
        while True:
            try:
                return libbpf.attach_xdp(program, ifindex)
            except KernelError as error:
                if error.errno not in (errno.EBUSY, errno.EEXIST):
                    raise
            there = libbpf.xdp_program(ifindex)
            if there not in (0, libbpf.program_id(program)) or time.monotonic() > deadline:
                return None
            time.sleep(0.001)

    def detach_xdp(self, ifindex: int) -> None:
        """Takes the XDP program off a device. Idempotent."""
        (self.root / "links" / f"{XDP_HOOK}-{ifindex}").unlink(missing_ok=True)
        self._other_xdp(ifindex).unlink(missing_ok=True)

    def note_other_xdp(self, ifindex: int) -> bool:
        """Remembers that another's XDP program is on the device; False: that was known."""
        if self._other_xdp(ifindex).exists():
            return False
        libbpf.pin(self._program(XDP_HOOK), self._other_xdp(ifindex))
        return True

    def _other_xdp(self, ifindex: int) -> Path:
        return self.root / "programs" / f"other-xdp-{ifindex}"

    def attach(self, hook: str, ifindex: int) -> None:
        """Attaches a tc program to a device, unless it is attached already.

        To a device that is ours a filter is preferred, unless tcx was asked for: the kernel waits for an RCU
        grace period when it makes a tcx link, and again when the device goes, with the lock held that every change
        of a device or address needs.
        """
        name = f"{hook}-{ifindex}"
        if self._lacks(hook):
            return
        if self._mode != "clsact":
            if os.path.exists(f"{self.root}/links/{name}"):
                return
            if HOOKS[hook].own and self._mode == "auto" and self._filtered(hook, ifindex):
                return
            try:
                self._pin_link(self._attach_tcx(hook, ifindex), name)
                return
            except NotSupportedError:
                if self._mode == "tcx":
                    raise
        if libbpf.create_clsact(ifindex):  # remembered: a qdisc that was there before has to stay
            libbpf.pin(self._program(hook), self._own_qdisc(ifindex))
        libbpf.attach_clsact(self._program(hook), ifindex, HOOKS[hook].clsact, CLSACT_HANDLE, CLSACT_PRIORITY)

    def _attach_tcx(self, hook: str, ifindex: int) -> int:
        """The link. One whose pin has just been removed may be there yet: a worker of the kernel's detaches it."""
        deadline = time.monotonic() + _DETACH_PATIENCE
        while True:
            try:
                return libbpf.attach_tcx(self._program(hook), ifindex, HOOKS[hook].tcx)
            except KernelError as error:
                if error.errno != errno.EEXIST or time.monotonic() > deadline:
                    raise
            time.sleep(0.001)

    def _filtered(self, hook: str, ifindex: int) -> bool:
        """Attaches as a filter, if the kernel has those."""
        try:
            libbpf.attach_clsact(
                self._program(hook), ifindex, HOOKS[hook].clsact, CLSACT_HANDLE, CLSACT_PRIORITY
            )
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            return False
        return True

    def _own_qdisc(self, ifindex: int) -> Path:
        """The mark, a pin because a bpffs holds nothing else, of a clsact qdisc that we made."""
        return self.root / "programs" / f"clsact-{ifindex}"

    def detach(self, hook: str, ifindex: int, *, device_gone: bool = False) -> None:
        """Takes the program off a device, by whichever way it was attached. Idempotent.

        With `device_gone` what is attached by clsact is left to go with the device.
        """
        try:
            (self.root / "links" / f"{hook}-{ifindex}").unlink()
        except FileNotFoundError:
            if not device_gone:
                libbpf.detach_clsact(ifindex, HOOKS[hook].clsact, CLSACT_HANDLE, CLSACT_PRIORITY)
                if self._own_qdisc(ifindex).exists() and not links.has_filters(ifindex):
                    libbpf.destroy_clsact(ifindex)
        self._own_qdisc(ifindex).unlink(missing_ok=True)


def _pinned(folder: Path) -> set[str]:
    """The names of what is pinned there."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def is_bpffs(path: Path) -> bool:
    """A BPF file system is at the path."""
    return _fs_magic(path) == BPF_FS_MAGIC


def _fs_magic(path: Path) -> int:
    return syscalls.statfs_type(str(path))


def _mount_bpffs(path: Path) -> None:
    try:
        syscalls.mount(
            "bpf", str(path), "bpf", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, "mode=700"
        )
    except OSError as error:
        raise KernelError("mount bpffs on", str(path), error.errno or 0) from error
