# SPDX-License-Identifier: Apache-2.0
"""Decisions, pure: what each command is going to do, before anything is changed."""
