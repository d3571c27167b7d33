# SPDX-License-Identifier: Apache-2.0
"""The plugin's process, from its arguments and stdin to one JSON text on stdout and an exit code."""

from __future__ import annotations

import json
import os
import sys

import datapath

API = "1.0.0"  # of the protocol between netavark and its plugins
USAGE = "usage: datapath create | setup NETNS | teardown NETNS | info: netavark calls it, with JSON on stdin"


def main() -> None:
    """As the executable runs it."""
    sys.exit(run())


def run() -> int:
    """The exit code."""
    words = sys.argv[1:]
    verb = words[0] if words else ""
    if len(words) != {"create": 1, "info": 1, "setup": 2, "teardown": 2}.get(verb):
        print(USAGE, file=sys.stderr)
        return _refuse(f"unknown command {' '.join(words)!r}" if words else "a command is missing")
    if verb == "info":
        print(json.dumps({"version": datapath.__version__, "api_version": API}))
        return 0
    try:
        request = json.loads(sys.stdin.buffer.read())
    except (ValueError, RecursionError) as error:
        return _refuse(f"stdin is no JSON: {error}")
    if not isinstance(request, dict):
        return _refuse("stdin is no JSON object")
    from .verbs import serve

    try:
        answer = serve(verb, request, words[1] if len(words) > 1 else "", os.environ)
    except ValueError as error:
        return _refuse(str(error))
    if answer is not None:
        print(json.dumps(answer))
    return 0


def _refuse(message: str) -> int:
    print(json.dumps({"error": message}))
    return 1
