/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where a packet is, for the tracing programs. bcc compiles these when they are used, without the kernel's headers: what
 * is written in capitals is an offset in a struct of the running kernel. datapath.telemetry takes them from its BTF.
 */
#pragma once

/* A device, by its index in a network namespace, which is named by its cookie. */
struct place {
	u64 netns;
	u32 ifindex;
	u32 pad;
};

static __always_inline void *pointer_at(void *base, u32 offset)
{
	void *found = 0;

	bpf_probe_read_kernel(&found, sizeof(found), base + offset);
	return found;
}

static __always_inline u32 number_at(void *base, u32 offset)
{
	u32 found = 0;

	bpf_probe_read_kernel(&found, sizeof(found), base + offset);
	return found;
}

/* 0: this is no network namespace. */
static __always_inline u64 cookie_of(void *netns)
{
	u64 cookie = 0;

	bpf_probe_read_kernel(&cookie, sizeof(cookie), netns + NET_COOKIE);
	return cookie;
}

static __always_inline void place_of(void *device, struct place *place)
{
	place->netns = cookie_of(pointer_at(device, DEVICE_NETNS));
	place->ifindex = number_at(device, DEVICE_IFINDEX);
}
