#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What a lab machine starts instead of a login shell.
cd "$(dirname "$0")/../.." && exec tests/vm/cached.sh .venv/bin/python -m tests.vm.shell
