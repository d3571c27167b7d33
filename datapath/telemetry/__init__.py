# SPDX-License-Identifier: Apache-2.0
"""What packets do: counters, latency, drops."""
