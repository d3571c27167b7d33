# SPDX-License-Identifier: Apache-2.0
"""A cluster's store in etcd v3."""
