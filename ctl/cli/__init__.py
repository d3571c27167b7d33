# SPDX-License-Identifier: Apache-2.0
"""datapathctl: the command line."""
