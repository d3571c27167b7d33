# SPDX-License-Identifier: Apache-2.0
"""datapathctl: the command line over the `datapath` library. No other package prints or exits."""
