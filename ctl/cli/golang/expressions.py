# SPDX-License-Identifier: Apache-2.0
"""The expressions inside of {{ }}: literals, fields, variables, calls and pipelines, and their parser."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .functions import LAZY
from .values import Method, TemplateError, member

MOST = 100  # parentheses, blocks and commands of a pipeline inside one another: Python's stack has an end

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\]|\\[^0-7xuU]|\\[0-9a-fA-FxuU]+)')
        |(?P<number>[+-]?(?:0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.]))
        |(?P<assign>:=|=)|(?P<punct>[()|,])|(?P<path>\$?\w*(?:\.[\w/:-]+)+|\.)|(?P<variable>\$\w*)
        |(?P<word>[A-Za-z_]\w*))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

Scope = ChainMap[str, Any]
Functions = Mapping[str, Callable[..., Any]]


class Expression(Protocol):
    def value(self, dot: Any, scope: Scope) -> Any: ...


@dataclass(slots=True)
class _Literal:
    literal: Any

    def value(self, dot: Any, scope: Scope) -> Any:
        return self.literal


@dataclass(slots=True)
class _Path:
    """`.A.B`, `$.A`, `$name.A`, or the fields that follow a parenthesis. `arguments`: those of a method."""

    start: str | Expression
    names: list[str]
    arguments: list[Expression] | None = None

    def value(self, dot: Any, scope: Scope) -> Any:
        if not isinstance(self.start, str):
            value = self.start.value(dot, scope)
        elif not self.start:
            value = dot
        elif self.start in scope:
            value = scope[self.start]
        else:
            raise TemplateError(f"undefined variable {self.start}")
        for number, name in enumerate(self.names, start=1):
            value = member(value, name)
            if isinstance(value, Method):
                last = self.arguments if number == len(self.names) else None
                value = value.call(*(argument.value(dot, scope) for argument in last or ()))
            elif number == len(self.names) and self.arguments is not None:
                raise TemplateError(f".{name} is no method, and has arguments")
        return value


@dataclass(slots=True)
class _Call:
    name: str
    function: Callable[..., Any]
    arguments: list[Expression]

    def value(self, dot: Any, scope: Scope) -> Any:
        values = []
        for argument in self.arguments:
            values.append(argument.value(dot, scope))
            if LAZY.get(self.name) == bool(values[-1]):
                break
        try:
            return self.function(*values)
        except TemplateError as error:
            raise TemplateError(f"{self.name}: {error}") from None
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise TemplateError(f"wrong arguments for {self.name}") from error


class Tokens:
    """The tokens of one action, and the parser over them."""

    def __init__(self, action: str, functions: Functions) -> None:
        self.action = action
        self.functions = functions
        self.tokens: list[tuple[str, str]] = []
        self.depth = 0
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
            raise self.unexpected(self.peek()[1])

    def unexpected(self, word: str) -> TemplateError:
        shown = self.action if len(self.action) <= 60 else f"{self.action[:60]}…"
        return TemplateError(f"unexpected {word or 'end'!r} in {{{{{shown}}}}}")

    def pipeline(self) -> Expression:
        expression = self.command()
        for _ in range(MOST):
            if self.peek() != ("punct", "|"):
                return expression
            self.take()
            command = self.command()
            if isinstance(command, _Path) and command.names:
                command.arguments = [*(command.arguments or ()), expression]
            elif isinstance(command, _Call):
                command.arguments.append(expression)
            else:
                raise TemplateError("after a | there must be a function")
            expression = command
        raise TemplateError(f"a pipeline has more than {MOST} commands")

    def command(self) -> Expression:
        kind, word = self.peek()
        if kind == "word" and word not in ("true", "false", "nil"):
            self.take()
            return _Call(word, self._function(word), self._arguments())
        operand = self.operand()
        if isinstance(operand, _Path) and operand.names:
            operand.arguments = self._arguments() or None
        return operand

    def _function(self, word: str) -> Callable[..., Any]:
        if word not in self.functions:
            raise TemplateError(f"function {word!r} is not defined")
        return self.functions[word]

    def _arguments(self) -> list[Expression]:
        found = []
        while self.peek()[0] and self.peek() not in (("punct", "|"), ("punct", ")")):
            found.append(self.operand())
        return found

    def operand(self) -> Expression:
        kind, word = self.take()
        match kind:
            case "string":
                return _Literal(_unquoted(word))
            case "char":
                return _Literal(_code(word))
            case "number":
                return _Literal(_number(word))
            case "variable":
                return _Path(word, [])
            case "path":
                start, *names = word.split(".")
                return _Path(start, [name for name in names if name])
            case "word" if word in ("true", "false", "nil"):
                return _Literal({"true": True, "false": False}.get(word))
            case "word" if word in self.functions:
                return _Call(word, self.functions[word], [])
            case "punct" if word == "(":
                return self._parenthesis()
        raise self.unexpected(word)

    def _parenthesis(self) -> Expression:
        self.depth += 1
        if self.depth > MOST:
            raise TemplateError(f"more than {MOST} parentheses are inside one another")
        inner = self.pipeline()
        if self.take() != ("punct", ")"):
            raise TemplateError(f"a ) is missing in {{{{{self.action}}}}}")
        self.depth -= 1
        if self.peek()[0] == "fields":
            return _Path(inner, [name for name in self.take()[1].split(".") if name])
        return inner

    def variables(self) -> tuple[list[str], bool]:
        """The names in front of a `:=` or `=`, none when there is none; and whether they are new ones."""
        sign = next((word for kind, word in self.tokens if kind == "assign"), "")
        if not sign:
            return [], False
        names: list[str] = []
        while (token := self.take()) != ("assign", sign):
            if token[0] == "variable" and len(token[1]) > 1:
                names.append(token[1])
            elif token != ("punct", ","):
                raise self.unexpected(token[1])
        if not 1 <= len(names) <= 2:
            raise TemplateError(f"one or two variables may be set in {{{{{self.action}}}}}")
        return names, sign == ":="


def _number(word: str) -> int | float:
    plain = word.replace("_", "")
    try:
        whole = not set(plain) & set(".eE") or plain.lower().lstrip("+-").startswith("0x")
        return int(plain, 8 if re.fullmatch(r"[+-]?0[0-7]+", plain) else 0) if whole else float(plain)
    except ValueError:
        raise TemplateError(f"bad number syntax: {word[:40]!r}") from None


def _unquoted(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]

    def letter(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 1:
            return _ESCAPES.get(code, code)
        number = int(code, 8) if code.isdigit() else int(code[1:], 16)
        if number > 0x10FFFF:
            raise TemplateError(f"invalid escape in {word[:40]}")
        return chr(number)

    return _ESCAPE.sub(letter, word[1:-1])


def _code(word: str) -> int:
    letters = _unquoted(word)
    if len(letters) != 1:
        raise TemplateError(f"malformed character constant: {word[:40]}")
    return ord(letters)
