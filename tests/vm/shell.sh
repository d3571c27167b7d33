#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What a lab machine starts instead of a login shell. It may be an emulated one: commands get time.
cd "$(dirname "$0")/../.." && exec env TEST_SLOWNESS=10 tests/vm/cached.sh .venv/bin/python -m tests.vm.shell
