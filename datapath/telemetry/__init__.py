# SPDX-License-Identifier: Apache-2.0
"""Telemetry of packets: counters, latency, drops."""
