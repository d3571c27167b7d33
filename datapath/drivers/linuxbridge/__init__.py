# SPDX-License-Identifier: Apache-2.0
"""Bridge networks forwarded by a Linux bridge and packet filter rules."""
