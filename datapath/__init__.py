# SPDX-License-Identifier: Apache-2.0
"""Docker's container networking with eBPF programs instead of the Linux bridge and iptables."""

__version__ = "0.1.0"
