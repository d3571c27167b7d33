# SPDX-License-Identifier: Apache-2.0
"""The part of Go's template language that people use with `docker inspect -f`.

Fields, variables, pipelines, parentheses, `range`, `if`/`else`, `with`, and the functions of `golang.functions`.
Values are what JSON knows. Every mistake is a TemplateError, one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .golang.expressions import MOST, Expression, Functions, Scope, Tokens
from .golang.functions import FUNCTIONS
from .golang.values import TemplateError as TemplateError
from .golang.values import text

# A string may contain }}, and a comment quotes. Atomic groups: what is a string is never tried as anything else.
_ACTION = re.compile(
    r"""\{\{(-\s)?(\s*/\*.*?\*/\s*?|(?>"(?:[^"\\]|\\.)*"|`[^`]*`|.)*?)(\s-)?\}\}""", re.DOTALL
)


class Node(Protocol):
    def render(self, dot: Any, scope: Scope) -> Iterator[str]: ...


@dataclass(slots=True)
class _Text:
    text: str

    def render(self, dot: Any, scope: Scope) -> Iterator[str]:
        yield self.text


@dataclass(slots=True)
class _Print:
    """`new`: the variable begins here; else it is the one of that name that there is."""

    names: list[str]
    new: bool
    expression: Expression

    def render(self, dot: Any, scope: Scope) -> Iterator[str]:
        value = self.expression.value(dot, scope)
        if not self.names:
            yield text(value)
            return
        name = self.names[0]
        holder = scope.maps[0] if self.new else next((inner for inner in scope.maps if name in inner), None)
        if holder is None:
            raise TemplateError(f"undefined variable {name}")
        holder[name] = value


@dataclass(slots=True)
class _Block:
    """range, if, with."""

    keyword: str
    names: list[str]
    expression: Expression
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)
    in_else: bool = False
    chained: bool = False  # an `else if`: one end closes it and what it belongs to

    def render(self, dot: Any, scope: Scope) -> Iterator[str]:
        value = self.expression.value(dot, scope)
        if not value:
            yield from _render(self.otherwise, dot, scope.new_child())
        elif self.keyword == "range":
            for key, item in self.items(value):
                values = [item] if len(self.names) == 1 else [key, item]
                inner = scope.new_child(dict(zip(self.names, values, strict=False)))
                yield from _render(self.body, item, inner)
        else:
            here = value if self.keyword == "with" else dot
            yield from _render(self.body, here, scope.new_child(dict.fromkeys(self.names, value)))

    def items(self, value: Any) -> list[tuple[Any, Any]]:
        if isinstance(value, Mapping):
            return sorted(value.items())
        if isinstance(value, list | tuple):
            return list(enumerate(value))
        raise TemplateError(f"cannot range over {text(value)!r}")


def _render(nodes: list[Node], dot: Any, scope: Scope) -> Iterator[str]:
    for node in nodes:
        yield from node.render(dot, scope)


def _keyword(action: str) -> tuple[str, str]:
    """The word that it begins with, and the rest."""
    rest = action.lstrip("abcdefghijklmnopqrstuvwxyz")
    return action[: len(action) - len(rest)], rest


class Template:
    """A parsed template. Raises TemplateError, at once for what cannot be parsed."""

    def __init__(self, source: str, functions: Functions = FUNCTIONS) -> None:
        self.nodes: list[Node] = []
        self.functions = functions
        self._blocks: list[_Block] = []
        position, trim = 0, False
        for match in _ACTION.finditer(source):
            self._text(source[position : match.start()], trim, bool(match[1]))
            self._action(match[2].strip())
            position, trim = match.end(), bool(match[3])
        rest = source[position:]
        if "{{" in rest:
            raise TemplateError("a {{ is not closed")
        self._text(rest, trim, False)
        if self._blocks:
            raise TemplateError(f"an {{{{end}}}} is missing for {{{{{self._blocks[-1].keyword}}}}}")

    def render(self, data: Any) -> str:
        return "".join(_render(self.nodes, data, Scope({"$": data})))

    def _add(self, node: Node) -> None:
        if not self._blocks:
            self.nodes.append(node)
        else:
            block = self._blocks[-1]
            (block.otherwise if block.in_else else block.body).append(node)

    def _text(self, part: str, trim_left: bool, trim_right: bool) -> None:
        part = part.lstrip() if trim_left else part
        part = part.rstrip() if trim_right else part
        if part:
            self._add(_Text(part))

    def _action(self, action: str) -> None:
        if action.startswith("/*") and action.endswith("*/"):
            return
        keyword, rest = _keyword(action)
        match keyword:
            case "range" | "if" | "with":
                self._open(keyword, rest)
            case "else" | "end" if not self._blocks:
                raise TemplateError(f"unexpected {{{{{keyword}}}}}")
            case "else":
                self._else(rest.strip())
            case "end" if rest.strip():
                raise TemplateError(f"unexpected {rest.strip()[:60]!r} after end")
            case "end":
                while self._blocks.pop().chained:
                    pass
            case "" if not rest:
                raise TemplateError("missing value for command")
            case _:
                tokens = Tokens(action, self.functions)
                names, new = tokens.variables()
                if len(names) > 1:
                    raise TemplateError("two variables may be set by range only")
                self._add(_Print(names, new, tokens.pipeline()))
                tokens.end()

    def _open(self, keyword: str, condition: str, chained: bool = False) -> None:
        if len(self._blocks) >= MOST:
            raise TemplateError(f"more than {MOST} blocks are inside one another")
        tokens = Tokens(condition, self.functions)
        names, _ = tokens.variables()
        block = _Block(keyword, names, tokens.pipeline(), chained=chained)
        tokens.end()
        self._add(block)
        self._blocks.append(block)

    def _else(self, rest: str) -> None:
        if self._blocks[-1].in_else:
            raise TemplateError("unexpected {{else}}: there was one")
        self._blocks[-1].in_else = True
        keyword, condition = _keyword(rest)
        if keyword in ("if", "with"):
            self._open(keyword, condition, chained=True)
        elif rest:
            raise TemplateError(f"unexpected {rest[:60]!r} after else")
