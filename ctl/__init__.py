# SPDX-License-Identifier: Apache-2.0
"""datapathctl: the command line over the `datapath` library. Only here is printed, only here is exited."""
