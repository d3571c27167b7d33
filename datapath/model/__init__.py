# SPDX-License-Identifier: Apache-2.0
"""The nouns: pure values, without I/O, clock or randomness."""
