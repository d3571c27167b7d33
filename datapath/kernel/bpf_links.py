# SPDX-License-Identifier: Apache-2.0
"""Attaching programs: links of tcx, XDP and control groups, and filters at clsact qdiscs.

A link is an fd; when the last fd or pin of it goes, the kernel detaches its program. A filter stays with its device.
"""

from __future__ import annotations

import errno
from typing import Any

from datapath.errors import NotSupportedError
from datapath.kernel import bpf_calls as bpf
from datapath.kernel import log
from datapath.kernel.bpf_calls import ffi

# include/uapi/linux/bpf.h
TCX_INGRESS, TCX_EGRESS = 46, 47
BPF_XDP = 37
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2  # include/uapi/linux/if_link.h
BPF_TC_INGRESS, BPF_TC_EGRESS = 1, 2
BPF_TC_F_REPLACE = 1
_LOOPBACK = 1  # the index of every namespace's loopback device


def has_tcx() -> bool:
    """Whether programs can be attached by tcx: asks what is attached to the loopback device."""
    count = ffi.new("__u32 *")
    result = bpf.lib.program_query(_LOOPBACK, TCX_INGRESS, count)
    return bool(result != -errno.EINVAL)


def attach_tcx(program_fd: int, ifindex: int, attach_type: int) -> int:
    """The fd of a link that attaches the program to a device (since 6.6); NotSupportedError before that."""
    with log.operation("attach by tcx to device", ifindex):
        fd: int = bpf.lib.link_create(program_fd, ifindex, attach_type, 0)
    if fd == -errno.EINVAL:
        raise NotSupportedError("tcx", "6.6")
    return bpf.check(fd, "attach to device", str(ifindex))


def attach_xdp(program_fd: int, ifindex: int) -> int:
    """The fd of a link that runs the program in the device's driver, or, where the driver cannot, before the
    stack. KernelError with EBUSY or EEXIST: another program is there."""
    with log.operation("attach XDP program to device", ifindex):
        fd: int = bpf.lib.link_create(program_fd, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
        if fd < 0 and fd not in (-errno.EBUSY, -errno.EEXIST):
            fd = bpf.lib.link_create(program_fd, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE)
    return bpf.check(fd, "attach XDP program to device", str(ifindex))


def xdp_program(ifindex: int) -> int:
    """The kernel's number of the XDP program that a device runs; 0: none, or there is no such device."""
    number = ffi.new("__u32 *")
    return int(number[0]) if bpf.lib.bpf_xdp_query_id(ifindex, 0, number) == 0 else 0


def attach_cgroup(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """The fd of a link that attaches the program to a cgroup, beside what others attached there."""
    with log.operation("attach to the control group as type", attach_type):
        fd: int = bpf.lib.link_create(program_fd, cgroup_fd, attach_type, 0)
    return bpf.check(fd, "attach to", "the control group")


def update_link(link_fd: int, program_fd: int) -> bool:
    """Gives a link another program, atomically; False: what it was attached to is gone."""
    with log.operation("replace the program of a link"):
        result = bpf.lib.bpf_link_update(link_fd, program_fd, ffi.NULL)
    if result in (-errno.ENOLINK, -errno.ENODEV):
        return False
    bpf.check(result, "replace the program of", "a link")
    return True


def _tc(ifindex: int, point: int, handle: int, priority: int) -> tuple[Any, Any]:
    hook, opts = bpf.options("bpf_tc_hook"), bpf.options("bpf_tc_opts")
    hook.ifindex, hook.attach_point = ifindex, point
    opts.handle, opts.priority = handle, priority
    return hook, opts


def create_clsact(ifindex: int) -> bool:
    """Gives the device a clsact qdisc; False: it has one already."""
    hook, _ = _tc(ifindex, BPF_TC_INGRESS, 0, 0)
    with log.operation("add clsact to device", ifindex):
        result = bpf.lib.bpf_tc_hook_create(hook)
    if result not in (0, -errno.EEXIST):
        raise bpf.error("add clsact to device", str(ifindex), result)
    return bool(result == 0)


def attach_clsact(program_fd: int, ifindex: int, point: int, handle: int, priority: int) -> None:
    """Attaches a program as a direct-action filter; one with the same handle and priority is replaced atomically."""
    create_clsact(ifindex)
    hook, opts = _tc(ifindex, point, handle, priority)
    opts.prog_fd, opts.flags = program_fd, BPF_TC_F_REPLACE
    with log.operation("attach as a filter to device", ifindex):
        bpf.check(bpf.lib.bpf_tc_attach(hook, opts), "attach to device", str(ifindex))


def detach_clsact(ifindex: int, point: int, handle: int, priority: int) -> None:
    """Detaches the filter with that handle and priority. Idempotent, and so if the device is gone."""
    hook, opts = _tc(ifindex, point, handle, priority)
    with log.operation("detach the filter from device", ifindex):
        result = bpf.lib.bpf_tc_detach(hook, opts)
    if result not in (0, -errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
        raise bpf.error("detach from device", str(ifindex), result)


def destroy_clsact(ifindex: int) -> None:
    """Removes the clsact qdisc, with every filter in it."""
    hook, _ = _tc(ifindex, BPF_TC_INGRESS | BPF_TC_EGRESS, 0, 0)
    with log.operation("remove clsact from device", ifindex):
        bpf.lib.bpf_tc_hook_destroy(hook)


def clsact_program(ifindex: int, point: int, handle: int, priority: int) -> int:
    """The kernel's number of the program that the filter with that handle and priority runs; 0: there is none."""
    hook, opts = _tc(ifindex, point, handle, priority)
    return int(opts.prog_id) if bpf.lib.bpf_tc_query(hook, opts) == 0 else 0


def link_info(fd: int) -> tuple[int, int]:
    """The number of a link's program, and of the device or cgroup that it is attached to; 0: of none any more."""
    program, target = ffi.new("__u32 *"), ffi.new("__u64 *")
    bpf.check(bpf.lib.link_info(fd, program, target), "inspect", "link")
    return int(program[0]), int(target[0])
