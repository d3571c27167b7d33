# SPDX-License-Identifier: Apache-2.0
"""The optional resident process: jobs that want news, in one loop. No packet needs it."""
