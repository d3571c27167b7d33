# SPDX-License-Identifier: Apache-2.0
"""The packet programs of one host, and their maps."""
