# SPDX-License-Identifier: Apache-2.0
"""--filter KEY=VALUE: of one key any value fits, all keys must fit."""

import re
import warnings
from collections.abc import Callable, Collection, Mapping

from datapath.errors import ConfigError, quoted


class Filters:
    """The filters of one command. ConfigError for keys that it does not know. `patterns`: the keys whose values are
    regular expressions, as Docker's are for names and ids."""

    def __init__(
        self, words: Collection[str], known: Collection[str], patterns: Collection[str] = ()
    ) -> None:
        self._values: dict[str, list[str]] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}
        for word in words:
            key, equals, value = word.partition("=")
            key = key.strip().lower()
            if not equals:
                raise ConfigError(f"invalid filter {quoted(word)}: expected key=value")
            if key not in known:
                raise ConfigError(f"invalid filter {quoted(key)}: there are {', '.join(sorted(known))}")
            if not value.strip():
                raise ConfigError(f"invalid filter {quoted(word)}: its value is empty")
            self._values.setdefault(key, []).append(value.strip())
            if key in patterns:
                self._patterns[value.strip()] = _pattern(key, value.strip())

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def some(self, key: str, fits: Callable[[str], bool]) -> bool:
        """Any of the key's values fits, or it is not asked for."""
        return key not in self or any(map(fits, self._values[key]))

    def every(self, key: str, fits: Callable[[str], bool]) -> bool:
        """All of the key's values fit, or it is not asked for."""
        return all(map(fits, self._values.get(key, ())))

    def values(self, key: str) -> list[str]:
        return self._values.get(key, [])

    def matching(self, key: str, *texts: str) -> bool:
        """A value of the key, one of `patterns`, matches somewhere in one of these."""
        return self.some(key, lambda value: any(map(self._patterns[value].search, texts)))

    def check(self, key: str, possible: Collection[str]) -> None:
        """ConfigError when a value is asked for that is not possible."""
        for value in self.values(key):
            if value not in possible:
                raise ConfigError(f"invalid filter {key}={value}: expected {' or '.join(sorted(possible))}")

    def equal(self, key: str, whole: str, possible: Collection[str] = ()) -> bool:
        """ConfigError when a value is asked for that is not possible (all are, if none are given)."""
        if possible:
            self.check(key, possible)
        return self.some(key, lambda value: value == whole)

    def truth(self, key: str, actual: Callable[[], bool]) -> bool:
        """The key's value is true or false; `actual` is only asked when the key is."""
        if key not in self:
            return True
        return self.equal(key, "", {"true", "false", "1", "0"}) or any(
            (value in ("true", "1")) == actual() for value in self._values[key]
        )


def _pattern(key: str, text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may mean something else one day
            return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"invalid filter {key}={quoted(text)}: no regular expression: {error}") from None


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """`key`, or `key=value`."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
