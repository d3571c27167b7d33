# SPDX-License-Identifier: Apache-2.0
"""The part of Go's template language that people use with `docker inspect -f`.

Fields, variables, pipelines, parentheses, `range`, `if`/`else`, `with`, and the functions below.
Values are what JSON knows. Every mistake is a TemplateError, one line.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class TemplateError(ValueError):
    """The template cannot be parsed, or does not fit the data."""


NO_VALUE = "<no value>"

_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?![\w.]))|(?P<assign>:=)
        |(?P<punct>[()|,])|(?P<path>\$?\w*(?:\.[\w/:-]+)+|\.)|(?P<variable>\$\w*)|(?P<word>[A-Za-z_]\w*))""",
    re.VERBOSE,
)

Scope = dict[str, Any]


def text(value: Any) -> str:
    """A value as Go prints it."""
    match value:
        case None:
            return NO_VALUE
        case bool():
            return "true" if value else "false"
        case Mapping():
            return "map[" + " ".join(f"{key}:{text(value[key])}" for key in sorted(value)) + "]"
        case list() | tuple():
            return "[" + " ".join(map(text, value)) + "]"
    return str(value)


def _is_struct(value: Mapping[str, Any]) -> bool:
    """Docker's own fields are capitalised: with those an unknown name is a mistake; in a map of the
    user's (labels, options) it is only absent."""
    return bool(value) and all(key[:1].isupper() for key in value)


def _member(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name not in value and _is_struct(value):
            raise TemplateError(f"there is no field .{name}; there are {', '.join(sorted(value))}")
        return value.get(name)
    if value is None:
        return None
    raise TemplateError(f"cannot take field .{name} of {text(value)!r}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(str(key))
        elif isinstance(value, list | tuple):
            if not isinstance(key, int) or isinstance(key, bool):
                raise TemplateError(f"cannot index a list with {text(key)!r}")
            if not 0 <= key < len(value):
                raise TemplateError(f"index {key} is out of range, the length is {len(value)}")
            value = value[key]
        else:
            raise TemplateError(f"cannot index {text(value)!r}")
    return value


def _len(value: Any) -> int:
    if not isinstance(value, Sequence | Mapping):
        raise TemplateError(f"{text(value)!r} has no length")
    return len(value)


def _join(values: Any, separator: str) -> str:
    if not isinstance(values, list | tuple):
        raise TemplateError(f"cannot join {text(values)!r}: not a list")
    return separator.join(map(text, values))


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": _compact_json,
    "index": _index,
    "len": _len,
    "join": _join,
    "split": lambda value, separator: text(value).split(separator),
    "upper": lambda value: text(value).upper(),
    "lower": lambda value: text(value).lower(),
    "title": lambda value: text(value).title(),
    "truncate": lambda value, length: text(value)[:length],
    "print": lambda *values: "".join(map(text, values)),
    "println": lambda *values: " ".join(map(text, values)) + "\n",
    "eq": lambda first, *others: first in others,
    "ne": lambda first, second: first != second,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}
_KEYWORDS = {"range", "if", "with", "else", "end"}


# ---- expressions ----------------------------------------------------------------------


class Expression(Protocol):
    def value(self, dot: Any, scope: Scope) -> Any: ...


@dataclass(slots=True)
class _Literal:
    literal: Any

    def value(self, dot: Any, scope: Scope) -> Any:
        return self.literal


@dataclass(slots=True)
class _Path:
    """`.A.B`, `$.A`, `$name.A`, or the fields that follow a parenthesis."""

    start: "str | Expression"
    names: list[str]

    def value(self, dot: Any, scope: Scope) -> Any:
        if not isinstance(self.start, str):
            value = self.start.value(dot, scope)
        elif not self.start:
            value = dot
        elif self.start in scope:
            value = scope[self.start]
        else:
            raise TemplateError(f"undefined variable {self.start}")
        for name in self.names:
            value = _member(value, name)
        return value


@dataclass(slots=True)
class _Call:
    name: str
    arguments: list[Expression]

    def value(self, dot: Any, scope: Scope) -> Any:
        values = [argument.value(dot, scope) for argument in self.arguments]
        try:
            return _FUNCTIONS[self.name](*values)
        except TemplateError:
            raise
        except (TypeError, IndexError) as error:
            raise TemplateError(f"wrong arguments for {self.name}") from error


class _Tokens:
    """The tokens of one action, and the parser over them."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.tokens: list[tuple[str, str]] = []
        position, end = 0, len(action.rstrip())
        while position < end:
            match = _TOKEN.match(action, position)
            if match is None or match.end() == position:
                raise TemplateError(f"cannot read {action[position:].strip()!r}")
            kind = match.lastgroup or ""
            glued = match.start(kind) == position and self.tokens[-1:] == [("punct", ")")]
            self.tokens.append(("fields" if kind == "path" and glued else kind, match[kind]))
            position = match.end()
        self.next = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.next] if self.next < len(self.tokens) else ("", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.next += 1
        return token

    def end(self) -> None:
        if self.peek()[0]:
            raise TemplateError(f"unexpected {self.peek()[1]!r} in {{{{{self.action}}}}}")

    def pipeline(self) -> Expression:
        expression = self.command()
        while self.peek() == ("punct", "|"):
            self.take()
            command = self.command()
            if not isinstance(command, _Call):
                raise TemplateError("after a | there must be a function")
            command.arguments.append(expression)
            expression = command
        return expression

    def command(self) -> Expression:
        kind, word = self.peek()
        if kind == "word" and word not in ("true", "false", "nil"):
            self.take()
            if word not in _FUNCTIONS:
                raise TemplateError(f"function {word!r} is not defined")
            call = _Call(word, [])
            while self.peek()[0] and self.peek() not in (("punct", "|"), ("punct", ")")):
                call.arguments.append(self.operand())
            return call
        return self.operand()

    def operand(self) -> Expression:
        kind, word = self.take()
        match kind:
            case "string":
                return _Literal(_unquote(word))
            case "number":
                return _Literal(int(word))
            case "variable":
                return _Path(word, [])
            case "path":
                start, *names = word.split(".")
                return _Path(start, [name for name in names if name])
            case "word" if word in ("true", "false", "nil"):
                return _Literal({"true": True, "false": False}.get(word))
            case "word" if word in _FUNCTIONS:
                return _Call(word, [])
            case "punct" if word == "(":
                inner = self.pipeline()
                if self.take() != ("punct", ")"):
                    raise TemplateError(f"a ) is missing in {{{{{self.action}}}}}")
                if self.peek()[0] == "fields":
                    return _Path(inner, [name for name in self.take()[1].split(".") if name])
                return inner
        raise TemplateError(f"unexpected {word or 'end'!r} in {{{{{self.action}}}}}")

    def variables(self) -> list[str]:
        """The names in front of a `:=`, none when there is none."""
        if ("assign", ":=") not in self.tokens:
            return []
        names: list[str] = []
        while (token := self.take()) != ("assign", ":="):
            if token[0] == "variable":
                names.append(token[1])
            elif token != ("punct", ","):
                raise TemplateError(f"unexpected {token[1]!r} in {{{{{self.action}}}}}")
        if not 1 <= len(names) <= 2:
            raise TemplateError(f"one or two variables may be set in {{{{{self.action}}}}}")
        return names


def _unquote(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), word[1:-1])


# ---- statements -----------------------------------------------------------------------


class Node(Protocol):
    def render(self, dot: Any, scope: Scope) -> Iterator[str]: ...


@dataclass(slots=True)
class _Text:
    text: str

    def render(self, dot: Any, scope: Scope) -> Iterator[str]:
        yield self.text


@dataclass(slots=True)
class _Print:
    names: list[str]
    expression: Expression

    def render(self, dot: Any, scope: Scope) -> Iterator[str]:
        value = self.expression.value(dot, scope)
        if self.names:
            scope[self.names[0]] = value
        else:
            yield text(value)


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
            yield from _render(self.otherwise, dot, dict(scope))
        elif self.keyword == "range":
            for key, item in self.items(value):
                values = [item] if len(self.names) == 1 else [key, item]
                yield from _render(self.body, item, scope | dict(zip(self.names, values, strict=False)))
        else:
            inner = value if self.keyword == "with" else dot
            yield from _render(self.body, inner, scope | dict.fromkeys(self.names, value))

    def items(self, value: Any) -> list[tuple[Any, Any]]:
        if isinstance(value, Mapping):
            return sorted(value.items())
        if isinstance(value, list | tuple):
            return list(enumerate(value))
        raise TemplateError(f"cannot range over {text(value)!r}")


def _render(nodes: list[Node], dot: Any, scope: Scope) -> Iterator[str]:
    for node in nodes:
        yield from node.render(dot, scope)


class Template:
    """A parsed template. Raises TemplateError, at once for what cannot be parsed."""

    def __init__(self, source: str) -> None:
        self.nodes: list[Node] = []
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
        return "".join(_render(self.nodes, data, {"$": data}))

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
        keyword, _, rest = action.partition(" ")
        match keyword:
            case "range" | "if" | "with":
                self._open(keyword, rest)
            case "else" | "end" if not self._blocks:
                raise TemplateError(f"unexpected {{{{{keyword}}}}}")
            case "else":
                self._blocks[-1].in_else = True
                if rest.strip():
                    self._else_if(rest.strip())
            case "end":
                while self._blocks.pop().chained:
                    pass
            case "":
                raise TemplateError("missing value for command")
            case _:
                tokens = _Tokens(action)
                self._add(_Print(tokens.variables(), tokens.pipeline()))
                tokens.end()

    def _open(self, keyword: str, condition: str, chained: bool = False) -> None:
        tokens = _Tokens(condition)
        block = _Block(keyword, tokens.variables(), tokens.pipeline(), chained=chained)
        tokens.end()
        self._add(block)
        self._blocks.append(block)

    def _else_if(self, rest: str) -> None:
        keyword, _, condition = rest.partition(" ")
        if keyword != "if":
            raise TemplateError(f"unexpected {rest!r} after else")
        self._open(keyword, condition, chained=True)
