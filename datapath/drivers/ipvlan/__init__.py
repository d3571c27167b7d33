# SPDX-License-Identifier: Apache-2.0
"""Networks whose members have addresses on the link of one of the host's devices, and its MAC address there."""
