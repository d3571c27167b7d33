#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A root of Debian 12 with another architecture's compiler and libraries: packages for that are built in it, or against it.
#
# cross.sh make ROOT ARCHITECTURE            from the archive, with what debian/control builds with
# cross.sh run ROOT FOLDER SCRIPT…           in there; the folder of this machine is /mnt and where it begins
set -eu
verb=$1 root=$2
shift 2
if [ "$(id -u)" -ne 0 ]; then
	echo "another architecture's packages are built in a root of their own, which takes root to make" >&2
	exit 1
fi

case $verb in
make)
	rm -rf "$root"
	mkdir -p "$(dirname "$root")"
	conf=$(mktemp)
	trap 'rm -f "$conf"' EXIT
	# What apt on this machine is told about its way to the archive.
	apt-config dump | grep -E '^Acquire::https?::Proxy ' >"$conf" || true
	mmdebstrap --quiet --variant=apt --architectures="$(dpkg --print-architecture),$1" \
		--include="crossbuild-essential-$1" --aptopt="$conf" \
		--customize-hook="mkdir \"\$1/source\" && cp -r debian \"\$1/source/\"" \
		--customize-hook="chroot \"\$1\" apt-get -y -qq --no-install-recommends build-dep -a $1 /source" \
		bookworm "$root"
	;;
run)
	exec unshare --mount --pid --fork --kill-child -- sh -euc '
		root=$1 folder=$2
		shift 2
		mount --make-rprivate /
		mount --bind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount --bind "$folder" "$root/mnt"
		exec chroot "$root" env -C /mnt "$@"' sh "$root" "$@"
	;;
*)
	echo "cross.sh make|run" >&2
	exit 2
	;;
esac
