# SPDX-License-Identifier: Apache-2.0
"""Fields of JSON objects that others have written, each of the kind that it has to be. ConfigError names the field
otherwise. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datapath.errors import ConfigError, quoted

Fields = Mapping[str, Any]


def text(fields: Fields, name: str) -> str:
    """A field that is a string; "" if it is missing."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {quoted(json.dumps(value))}")
    return value


def part(fields: Fields, name: str) -> Fields:
    """A field that is an object; without fields if it is missing."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be an object, not {quoted(json.dumps(value))}")
    return value


def items(fields: Fields, name: str) -> list[Fields]:
    """A field that is a list of objects; an empty one if it is missing."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{name} must be a list of objects, not {quoted(json.dumps(value))}")
    return value


def switch(fields: Fields, name: str, default: bool) -> bool:
    """A field that is true or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {quoted(json.dumps(value))}")
    return value
