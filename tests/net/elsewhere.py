# SPDX-License-Identifier: Apache-2.0
"""The root file system of another release, for clients of a pretend host: what a shell does before it runs one there."""

# To be called in a mount and a process namespace that nobody else is in. Below the root, which is not written to, the
# machine's folders are seen at their own places, and what is mounted on /run is the same inside and outside.
ENTER = """
enter() {  # an empty folder, the root, folders to be seen
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/up" "$1/work" "$1/root"
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/up,workdir=$1/work" "$1/root"
    cd "$1/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount --rbind /sys/fs/cgroup sys/fs/cgroup
    mount --rbind /dev dev
    mount --rbind /run run
    shift 2
    for folder in "$@"; do mkdir -p ".$folder"; mount --rbind "$folder" ".$folder"; done
    mkdir -p mnt
    pivot_root . mnt
    umount -l /mnt
}
"""
