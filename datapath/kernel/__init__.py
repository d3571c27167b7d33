# SPDX-License-Identifier: Apache-2.0
"""Mechanism: the only package that speaks to the kernel. Foreign errors become the project's own here."""
