# SPDX-License-Identifier: Apache-2.0
"""Bridge networks forwarded by packet programs."""
