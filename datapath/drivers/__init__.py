# SPDX-License-Identifier: Apache-2.0
"""Network drivers behind one interface: see `base` for its steps and `registry` for which there are."""
