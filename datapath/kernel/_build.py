# SPDX-License-Identifier: Apache-2.0
"""Builds the extension `datapath.kernel._libbpf`: libbpf's calls that are used here, and every type of abi.h.

The compiler checks each declaration against libbpf's own headers, and the layout of each struct of abi.h
against what clang sees when it compiles the packet programs.
"""

import sys
from pathlib import Path

from cffi import FFI

ABI = Path(__file__).resolve().parents[2] / "bpf" / "abi.h"

TYPES = """
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef unsigned long long __u64; /* linux/types.h has no other: uint64_t may be a long */
typedef uint16_t __be16;
typedef uint32_t __be32;
struct bpf_timer { ...; };
"""

LIBBPF = """
struct bpf_object;
struct bpf_map;
struct bpf_program;
struct ring_buffer;
struct btf;

struct bpf_object_open_opts {
    size_t sz;
    char *kernel_log_buf;
    size_t kernel_log_size;
    __u32 kernel_log_level;
    ...;
};
struct bpf_map_create_opts { size_t sz; __u32 map_flags; ...; };
struct bpf_map_batch_opts { size_t sz; __u64 elem_flags; __u64 flags; ...; };
struct bpf_link_create_opts { size_t sz; __u32 flags; ...; };
struct bpf_link_update_opts { size_t sz; __u32 flags; __u32 old_prog_fd; ...; };
struct bpf_test_run_opts {
    size_t sz;
    const void *data_in;
    void *data_out;
    __u32 data_size_in;
    __u32 data_size_out;
    const void *ctx_in;
    void *ctx_out;
    __u32 ctx_size_in;
    __u32 ctx_size_out;
    __u32 retval;
    int repeat;
    __u32 duration;
    __u32 flags;
    ...;
};
struct bpf_tc_hook { size_t sz; int ifindex; int attach_point; __u32 parent; ...; };
struct bpf_tc_opts { size_t sz; int prog_fd; __u32 flags; __u32 prog_id; __u32 handle; __u32 priority; ...; };
struct bpf_prog_info { __u32 verified_insns; __u32 nr_map_ids; __u64 map_ids; __u64 run_time_ns; __u64 run_cnt; ...; };
struct bpf_map_info {
    __u32 type; __u32 id; __u32 key_size; __u32 value_size; __u32 max_entries; __u32 map_flags; ...;
};
/* What a tc program sees; test runs set a few of its fields. */
struct __sk_buff { __u32 len; __u32 pkt_type; __u32 mark; __u32 ingress_ifindex; __u32 ifindex; __u32 gso_size; ...; };

struct bpf_object *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *obj, const char *name);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
__u32 bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
__u32 bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__set_initial_value(struct bpf_map *map, const void *data, size_t size);
const char *bpf_program__name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);

struct bpf_prog_bind_opts;
int bpf_prog_bind_map(int prog_fd, int map_fd, const struct bpf_prog_bind_opts *opts);
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, __u32 *info_len);

int bpf_map_create(int type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries,
                   const struct bpf_map_create_opts *opts);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);

int link_create(int prog_fd, int target_fd, int attach_type, __u32 flags);
int program_query(int target_fd, int attach_type, __u32 *count);
int bpf_xdp_query_id(int ifindex, int flags, __u32 *prog_id);
int bpf_link_update(int link_fd, int new_prog_fd, const struct bpf_link_update_opts *opts);

int bpf_tc_hook_create(struct bpf_tc_hook *hook);
int bpf_tc_hook_destroy(struct bpf_tc_hook *hook);
int bpf_tc_attach(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int bpf_tc_detach(const struct bpf_tc_hook *hook, const struct bpf_tc_opts *opts);
int bpf_tc_query(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int link_info(int fd, __u32 *program, __u64 *target);
int program_id(int fd);

int bpf_prog_test_run_opts(int prog_fd, struct bpf_test_run_opts *opts);
int bpf_enable_stats(int type);

struct ring_buffer *ring_buffer__new(int map_fd, int (*sample)(void *, void *, size_t), void *ctx, void *opts);
int ring_buffer__consume(struct ring_buffer *rb);
void ring_buffer__free(struct ring_buffer *rb);

/* A type of a kernel's own description of itself. Its members, enumerators or parameters follow it in memory. */
struct btf_type { __u32 name_off; __u32 type; ...; };
struct btf_member { __u32 name_off; __u32 type; __u32 offset; };
struct btf_enum { __u32 name_off; int32_t val; };

struct btf *btf__load_vmlinux_btf(void);
void btf__free(struct btf *btf);
int btf__find_by_name_kind(const struct btf *btf, const char *type_name, __u32 kind);
int btf__resolve_type(const struct btf *btf, __u32 type_id);
const struct btf_type *btf__type_by_id(const struct btf *btf, __u32 id);
const char *btf__name_by_offset(const struct btf *btf, __u32 offset);
__u16 btf_vlen(const struct btf_type *t);
_Bool btf_is_composite(const struct btf_type *t);

int libbpf_num_possible_cpus(void);
int program_may_call(int program_type, int helper);
void quiet(void);

extern "Python" int on_sample(void *ctx, void *data, size_t size);
"""

SOURCE = """
#include <stdarg.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include "abi.h"

static int print_nothing(enum libbpf_print_level level, const char *format, va_list args)
{
    return 0;
}

/* libbpf explains failures on stderr; here they become exceptions that carry the log. */
static void quiet(void)
{
    libbpf_set_print(print_nothing);
}

/* The attach types of tcx are younger than this libbpf: they pass through as numbers. */
static int link_create(int prog_fd, int target_fd, int attach_type, __u32 flags)
{
    LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = flags);

    return bpf_link_create(prog_fd, target_fd, (enum bpf_attach_type)attach_type, &opts);
}

static int program_query(int target_fd, int attach_type, __u32 *count)
{
    return bpf_prog_query(target_fd, (enum bpf_attach_type)attach_type, 0, NULL, NULL, count);
}

static int program_may_call(int program_type, int helper)
{
    return libbpf_probe_bpf_helper((enum bpf_prog_type)program_type, (enum bpf_func_id)helper, NULL);
}
"""

LOOKING = """
/* A link's program, and what it is attached to: a cgroup's number, or for a device its index (which has the same
 * place for tcx, which is younger than these headers, as for XDP). 0: it was detached. */
static int link_info(int fd, __u32 *program, __u64 *target)
{
    struct bpf_link_info info = {};
    __u32 size = sizeof(info);
    int error = bpf_obj_get_info_by_fd(fd, &info, &size);

    if (error)
        return error;
    *program = info.prog_id;
    *target = info.type == BPF_LINK_TYPE_CGROUP ? info.cgroup.cgroup_id : info.xdp.ifindex;
    return 0;
}

static int program_id(int fd)
{
    struct bpf_prog_info info = {};
    __u32 size = sizeof(info);
    int error = bpf_obj_get_info_by_fd(fd, &info, &size);

    return error ? error : (int)info.id;
}
"""

ffibuilder = FFI()
ffibuilder.cdef(TYPES + ABI.read_text() + LIBBPF)
ffibuilder.set_source(
    "datapath.kernel._libbpf",
    SOURCE + LOOKING,
    libraries=["bpf"],
    include_dirs=[str(ABI.parent)],
    depends=[str(ABI)],
    extra_compile_args=["-Wno-unused-parameter"],
)

if __name__ == "__main__":  # the Makefile: into this file
    ffibuilder.emit_c_code(sys.argv[1])
