# SPDX-License-Identifier: Apache-2.0
"""Settings of an installation: its directories, and daemon.json."""
