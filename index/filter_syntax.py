"""The language of filters: text to a tree, with the place of every word for error messages.

    filter     = conjunct { "or" conjunct }
    conjunct   = negated { "and" negated }
    negated    = "not" negated | "(" filter ")" | test
    test       = COLUMN [ OPERATOR value
                        | [ "not" ] "in" "(" value { "," value } ")"
                        | [ "not" ] "like" STRING
                        | "is" [ "not" ] "null" ]
    OPERATOR   = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    value      = NUMBER | STRING | "true" | "false"

Keywords in either case. A string stands in single or double quotes, and a quote in it is doubled. A
column whose name is no plain word stands in backquotes. A column alone is a test of a boolean one.
Nothing is evaluated here, and nothing of it is Python's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

__all__ = [
    "And",
    "Comparison",
    "FilterError",
    "IsNull",
    "Like",
    "Membership",
    "Node",
    "Not",
    "Or",
    "Truth",
    "Value",
    "Word",
    "parse_filter",
]

MAX_LENGTH = 10_000
MAX_TESTS = 500
MAX_DEPTH = 50
MAX_NUMBER = 400
"""Characters of a number: more than a float has; Python refuses to read some thousands."""

KEYWORDS = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false"})
OPERATORS = ("==", "!=", "<>", "<=", ">=", "=", "<", ">")
TOKEN = re.compile(
    r"""(?P<number>-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    |(?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<quoted>`[^`]+`)
    |(?P<word>[^\W\d][\w.]*)
    |(?P<sign>==|!=|<>|<=|>=|[=<>(),])""",
    re.VERBOSE,
)
SPACE = re.compile(r"\s*")

Kind = Literal["number", "string", "quoted", "word", "sign", "end"]


class FilterError(ValueError):
    """A filter that cannot be used; the message names the place in the text."""

    @classmethod
    def at(cls, text: str, start: int, problem: str) -> FilterError:
        """The error at a position, counted from 1, with the text that begins there."""
        shown = text[start : start + 20] or "its end"
        return cls(f"filter {text[:200]!r}, position {start + 1} ({shown!r}): {problem}")


@dataclass(frozen=True, slots=True)
class Word:
    """A name in the text: that of a column.

    Args:
        text: the name.
        start: where it begins, from 0.
    """

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Value:
    """A number, a string or a truth value in the text, and where it begins."""

    value: int | float | str | bool
    start: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """``column operator value``; the operator is one of ``= != < <= > >=``."""

    column: Word
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class Membership:
    """``column in (values)``."""

    column: Word
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """``column like pattern``: ``%`` stands for any text, ``_`` for one character."""

    column: Word
    pattern: Value


@dataclass(frozen=True, slots=True)
class IsNull:
    """``column is null``: never unknown itself."""

    column: Word


@dataclass(frozen=True, slots=True)
class Truth:
    """A boolean column by itself."""

    column: Word


@dataclass(frozen=True, slots=True)
class Not:
    """What the tree below is not; unknown stays unknown."""

    of: Node


@dataclass(frozen=True, slots=True)
class And:
    """All of them."""

    of: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of them."""

    of: tuple[Node, ...]


Node = Comparison | Membership | Like | IsNull | Truth | Not | And | Or


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Kind
    text: str
    start: int


def parse_filter(text: str) -> Node:
    """The tree of a filter.

    >>> parse_filter("width >= 1024")
    Comparison(column=Word(text='width', start=0), operator='>=', value=Value(value=1024, start=9))

    Raises:
        FilterError: it is no filter; or longer, deeper or of more tests than any person writes.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(
            f"a filter of {len(text)} characters; allowed are {MAX_LENGTH}. Shorten it, or select "
            "by ids instead."
        )
    return _Parser(text).parse()


def _tokens(text: str) -> list[_Token]:
    found = []
    place = SPACE.match(text).end()  # type: ignore[union-attr]  # matches the empty string too
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise FilterError.at(text, place, _unreadable(text[place]))
        kind: Kind = match.lastgroup  # type: ignore[assignment]  # the groups are the kinds
        found.append(_Token(kind, match.group(), place))
        place = SPACE.match(text, match.end()).end()  # type: ignore[union-attr]
    return [*found, _Token("end", "", len(text))]


def _unreadable(character: str) -> str:
    if character in "'\"`":
        return "this quote is not closed. Close it; a quote inside a string is doubled."
    return (
        "no column, value or operator begins like this. Operators are = != < <= > >=, in, like, "
        "is null, and, or, not; text stands in quotes."
    )


class _Parser:
    """Reads one text from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._place = 0
        self._num_tests = 0
        self._depth = 0

    def parse(self) -> Node:
        tree = self._several("or", self._conjunct, Or)
        if self._now.kind != "end":
            self._fail("expected 'and', 'or' or the end. Join tests with and, or.")
        return tree

    @property
    def _now(self) -> _Token:
        return self._tokens[self._place]

    def _fail(self, problem: str) -> NoReturn:
        raise FilterError.at(self._text, self._now.start, problem)

    def _advance(self) -> _Token:
        token = self._now
        self._place += 1
        return token

    def _keyword(self, *words: str) -> bool:
        """Read these keywords, if they all come next."""
        coming = self._tokens[self._place : self._place + len(words)]
        if [token.text.lower() for token in coming if token.kind == "word"] != list(words):
            return False
        self._place += len(words)
        return True

    def _sign(self, sign: str) -> bool:
        if (self._now.kind, self._now.text) != ("sign", sign):
            return False
        self._place += 1
        return True

    def _several(self, keyword: str, part: Callable[[], Node], join: type[And] | type[Or]) -> Node:
        parts = [part()]
        while self._keyword(keyword):
            parts.append(part())
        return parts[0] if len(parts) == 1 else join(tuple(parts))

    def _conjunct(self) -> Node:
        return self._several("and", self._negated, And)

    def _negated(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"nested more than {MAX_DEPTH} deep. Write it flatter.")
        try:
            if self._keyword("not"):
                return Not(self._negated())
            if self._sign("("):
                tree = self._several("or", self._conjunct, Or)
                if not self._sign(")"):
                    self._fail("expected ')'. Close the bracket.")
                return tree
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Node:
        self._num_tests += 1
        if self._num_tests > MAX_TESTS:
            self._fail(f"more than {MAX_TESTS} tests. Use in (...) for many values.")
        column = self._column()
        if self._keyword("is", "not", "null"):
            return Not(IsNull(column))
        if self._keyword("is", "null"):
            return IsNull(column)
        if self._now.kind == "word" and self._now.text.lower() == "is":
            self._fail("expected 'is null' or 'is not null'. Compare with = otherwise.")
        if self._keyword("not", "in"):
            return Not(self._membership(column))
        if self._keyword("in"):
            return self._membership(column)
        if self._keyword("not", "like"):
            return Not(Like(column, self._value()))
        if self._keyword("like"):
            return Like(column, self._value())
        if self._now.kind == "sign" and self._now.text in OPERATORS:
            operator = self._advance().text
            name = {"==": "=", "<>": "!="}.get(operator, operator)
            return Comparison(column, name, self._value())
        return Truth(column)

    def _column(self) -> Word:
        token = self._now
        if token.kind == "quoted":
            return Word(self._advance().text[1:-1], token.start)
        if token.kind != "word" or token.text.lower() in KEYWORDS:
            self._fail("expected the name of a column. Write for example: width >= 1024")
        return Word(self._advance().text, token.start)

    def _membership(self, column: Word) -> Node:
        if not self._sign("("):
            self._fail("expected '(' and values. Write for example: label in ('cat', 'dog')")
        values = [self._value()]
        while self._sign(","):
            values.append(self._value())
        if not self._sign(")"):
            self._fail("expected ',' or ')'. Close the list of values.")
        return Membership(column, tuple(values))

    def _value(self) -> Value:
        token = self._advance()
        if token.kind == "number":
            if len(token.text) > MAX_NUMBER:
                raise FilterError.at(
                    self._text,
                    token.start,
                    f"a number of {len(token.text)} characters; allowed are {MAX_NUMBER}. Write "
                    "it shorter, or text in quotes.",
                )
            whole = token.text.lstrip("-").isdigit()
            return Value(int(token.text) if whole else float(token.text), token.start)
        if token.kind == "string":
            quote = token.text[0]
            return Value(token.text[1:-1].replace(2 * quote, quote), token.start)
        if token.kind == "word" and token.text.lower() in ("true", "false"):
            return Value(token.text.lower() == "true", token.start)
        raise FilterError.at(
            self._text,
            token.start,
            "expected a value: a number, text in quotes, true or false. Null is tested with "
            "is null.",
        )
