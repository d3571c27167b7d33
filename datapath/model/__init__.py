# SPDX-License-Identifier: Apache-2.0
"""The model: pure values, without I/O, clock or randomness."""
