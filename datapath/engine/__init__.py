# SPDX-License-Identifier: Apache-2.0
"""One command that changes the networks of a host."""
