# SPDX-License-Identifier: Apache-2.0
"""The store: what was promised."""
