# SPDX-License-Identifier: Apache-2.0
"""YAML, and JSON, as trees that know their lines. Pure.

Values are what is written: YAML's guesses (`on` is true, 22:22 is 1342) are not made. The parser's events are taken,
which needs neither recursion nor the objects that a tag may ask for.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn

from datapath.errors import ConfigError, quoted

MOST_BYTES = 1 << 20
MOST_NODES = 100_000  # with what aliases repeat
MOST_DEPTH = 64
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Node(NamedTuple):
    """A value with its place, FILE:LINE. One of the three is what it is: `text` (of a null ""), `items`, `fields`.
    `size`: of how many nodes it consists; `tag`: what was asked for by `!`; `plain`: there are no quotation marks."""

    where: str
    text: str | None = None
    items: list[Node] | None = None
    fields: dict[str, tuple[Node, Node]] | None = None
    size: int = 1
    tag: str | None = None
    plain: bool = False

    def refuse(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.where}: {message}")

    @property
    def absent(self) -> bool:
        """Nothing stands there, or null."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")

    def mapping(self, what: str) -> dict[str, tuple[Node, Node]]:
        """Its fields, each with the node of its key."""
        if self.fields is None:
            self.refuse(f"{what} must be a mapping, as in {{in: …}}")
        return self.fields

    def listed(self, what: str) -> list[Node]:
        if self.items is None:
            self.refuse(f"{what} must be a list, as in [any]" + ("; [] is nobody" if self.absent else ""))
        return self.items

    def word(self, what: str) -> str:
        """A text of printable characters that is not empty."""
        if self.text is None or self.absent or not self.text:
            self.refuse(f"{what} must be a text")
        if self.tag is not None:
            self.refuse(f"{what} has the tag {quoted(self.tag)}: there are none")
        if not self.text.isprintable():
            self.refuse(f"{what} {quoted(self.text)} has characters that cannot be printed")
        return self.text


def parse_tree(text: str, source: str) -> Node:
    """The one document of the text. `source`: how errors call it. ConfigError: FILE:LINE: and what is wrong."""
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise ConfigError(f"{source}: larger than {MOST_BYTES >> 20} MiB")
    found = _CONTROL.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{source}:{line}: has the character {quoted(found[0])}")
    text = text.removeprefix("\ufeff")
    if text.startswith("{"):  # JSON may be indented by tabs, which YAML is not for the parser in Python
        text = re.sub(r"^\t+", lambda tabs: " " * len(tabs[0]), text, flags=re.MULTILINE)
    return _Builder(source).build(text)


class _Open:
    """A list or mapping of which the end has not come."""

    def __init__(self, event: Any) -> None:
        self.event = event
        self.parts: list[Node] = []


class _Builder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.anchors: dict[str, Node | None] = {}  # None: it has not ended
        self.open: list[_Open] = []
        self.root: Node | None = None

    def build(self, text: str) -> Node:
        import yaml

        try:
            for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                self._take(event, type(event).__name__)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{self.source}:{line}: no YAML: {error.problem or error.context}") from None
        return self.root or Node(f"{self.source}:1", "", plain=True)

    def _where(self, event: Any) -> str:
        return f"{self.source}:{event.start_mark.line + 1}"

    def _take(self, event: Any, kind: str) -> None:
        if kind == "DocumentStartEvent" and self.root is not None:
            raise ConfigError(f"{self._where(event)}: a second document begins")
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            if event.anchor:
                self.anchors[event.anchor] = None
            self.open.append(_Open(event))
            if len(self.open) > MOST_DEPTH:
                raise ConfigError(f"{self._where(event)}: nested more than {MOST_DEPTH} deep")
        elif kind == "ScalarEvent":
            plain = not event.style  # None, or of the parser in C an empty one
            self._put(event, Node(self._where(event), event.value, tag=event.tag, plain=plain))
        elif kind == "AliasEvent":
            node = self.anchors.get(event.anchor)
            if node is None:
                what = "contains itself" if event.anchor in self.anchors else "is not defined"
                raise ConfigError(f"{self._where(event)}: the alias {quoted('*' + event.anchor)} {what}")
            self._put(None, node)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            ended = self.open.pop()
            make = self._mapping if kind == "MappingEndEvent" else self._list
            self._put(ended.event, make(ended))

    def _put(self, event: Any, node: Node) -> None:
        if event is not None and event.anchor:
            self.anchors[event.anchor] = node
        if not self.open:
            self.root = node
            return
        self.open[-1].parts.append(node)

    def _size(self, ended: _Open) -> int:
        size = 1 + sum(part.size for part in ended.parts)
        if size > MOST_NODES:
            raise ConfigError(
                f"{self._where(ended.event)}: more than {MOST_NODES:,} values, with repeated ones"
            )
        return size

    def _list(self, ended: _Open) -> Node:
        return Node(self._where(ended.event), items=ended.parts, size=self._size(ended), tag=ended.event.tag)

    def _mapping(self, ended: _Open) -> Node:
        fields: dict[str, tuple[Node, Node]] = {}
        merged: list[Node] = []
        parts = iter(ended.parts)
        for key, value in zip(parts, parts, strict=True):
            if key.plain and key.text == "<<":
                merged += value.items if value.items is not None else [value]
                continue
            name = key.word("a key")
            if name in fields:
                key.refuse(f"{quoted(name)} is there twice: it is in line {_line(fields[name][0])} as well")
            fields[name] = (key, value)
        for (
            node
        ) in merged:  # what is written in the mapping itself comes first, then the first that is merged
            fields = {**node.mapping("what is merged by <<"), **fields}
        size = self._size(ended)
        return Node(self._where(ended.event), fields=fields, size=size, tag=ended.event.tag)


def _line(node: Node) -> str:
    return node.where.rpartition(":")[2]
