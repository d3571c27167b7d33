# SPDX-License-Identifier: Apache-2.0
"""--filter KEY=VALUE: of one key any value fits, all keys must fit."""

from collections.abc import Callable, Collection, Mapping

from datapath.errors import ConfigError, quoted


class Filters:
    """The filters of one command. ConfigError for keys that it does not know."""

    def __init__(self, words: Collection[str], known: Collection[str]) -> None:
        self._values: dict[str, list[str]] = {}
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

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def some(self, key: str, fits: Callable[[str], bool]) -> bool:
        """Any of the key's values fits, or it is not asked for."""
        return key not in self or any(map(fits, self._values[key]))

    def every(self, key: str, fits: Callable[[str], bool]) -> bool:
        """All of the key's values fit, or it is not asked for."""
        return all(map(fits, self._values.get(key, ())))

    def contained(self, key: str, whole: str) -> bool:
        return self.some(key, lambda value: value in whole)

    def equal(self, key: str, whole: str, possible: Collection[str] = ()) -> bool:
        """ConfigError when a value is asked for that is not possible (all are, if none are given)."""
        for value in self._values.get(key, ()):
            if possible and value not in possible:
                raise ConfigError(f"invalid filter {key}={value}: expected {' or '.join(sorted(possible))}")
        return self.some(key, lambda value: value == whole)

    def truth(self, key: str, actual: Callable[[], bool]) -> bool:
        """The key's value is true or false; `actual` is only asked when the key is."""
        if key not in self:
            return True
        return self.equal(key, "", {"true", "false", "1", "0"}) or any(
            (value in ("true", "1")) == actual() for value in self._values[key]
        )


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """`key`, or `key=value`."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
