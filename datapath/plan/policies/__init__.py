# SPDX-License-Identifier: Apache-2.0
"""Policies: from text to the model, and from that to the rows that packet programs look up. Pure."""
