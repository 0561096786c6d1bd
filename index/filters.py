"""Filters on metadata: which rows of a table meet a condition, by the rules of SQL.

The language is that of `index.filter_syntax`. A tree becomes one pyarrow expression, each test
checked against the type of its column first. Logic has three values: a comparison with a missing
value is *unknown*, ``not`` unknown is unknown, ``and`` and ``or`` with it are unknown unless the
other side decides; rows whose answer is unknown are not selected. So ``label != 'cat'`` and
``not label = 'cat'`` leave pictures without a label out; add ``or label is null`` to have them.

NaN in a column is a number that equals nothing and is neither below nor above any.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.filter_syntax import (
    And,
    Comparison,
    FilterError,
    IsNull,
    Like,
    Membership,
    Node,
    Not,
    Or,
    Truth,
    Value,
    Word,
    parse_filter,
)

__all__ = ["FilterError", "compile_filter", "filter_columns", "matching"]

COMPARE: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "=": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
MAX_INT = 2**63 - 1
LIKE_SIGN = re.compile(r"\\[%_\\]|.", re.DOTALL)
WILDCARDS = {"%": ".*", "_": "."}
UNITS = ("s", "ms", "us", "ns")


def matching(table: pa.Table, text: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a table for which a filter is true, in their order.

    Args:
        table: any table; nested columns can only be tested for null.
        text: the filter.
        columns: those to return; all unless given.

    Raises:
        FilterError: see `compile_filter`.
    """
    expression = compile_filter(text, table.schema)
    kept = set(table.schema.names if columns is None else columns) | filter_columns(text)
    chosen = table.select([name for name in table.schema.names if name in kept]).filter(expression)
    return chosen if columns is None else chosen.select(list(columns))


def compile_filter(text: str, schema: pa.Schema) -> pc.Expression:
    """The filter as a pyarrow expression over tables of this schema; null where it is unknown.

    Raises:
        FilterError: no filter by its syntax; a column that is not there, with the nearest names; a
            value of another type than its column. All with the position in the text.
    """
    return _Compiler(text, schema).compile(parse_filter(text))


def filter_columns(text: str) -> set[str]:
    """The columns that a filter tests.

    >>> sorted(filter_columns("width > 100 and not label = 'cat'"))
    ['label', 'width']

    Raises:
        FilterError: no filter by its syntax.
    """
    return _names(parse_filter(text))


def _names(node: Node) -> set[str]:
    if isinstance(node, And | Or):
        return set().union(*(_names(part) for part in node.of))
    return _names(node.of) if isinstance(node, Not) else {node.column.text}


class _Compiler:
    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text = text
        self._schema = schema

    def compile(self, node: Node) -> pc.Expression:
        if isinstance(node, And | Or):
            return self._joined([self.compile(part) for part in node.of], isinstance(node, And))
        if isinstance(node, Not):
            return ~self.compile(node.of)
        if isinstance(node, IsNull):
            self._type(node.column)
            return pc.field(node.column.text).is_null()
        if isinstance(node, Truth):
            return self._truth(node)
        if isinstance(node, Like):
            return self._like(node)
        if isinstance(node, Membership):
            return self._membership(node)
        return self._comparison(node)

    def _joined(self, parts: list[pc.Expression], conjunction: bool) -> pc.Expression:
        """Halved again and again: a chain of hundreds would nest as deep in pyarrow."""
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            joined = [left & right if conjunction else left | right for left, right in pairs]
            parts = joined + parts[len(joined) * 2 :]
        return parts[0]

    def _type(self, column: Word) -> pa.DataType:
        if self._schema.get_field_index(column.text) < 0:
            names = self._schema.names
            near = difflib.get_close_matches(column.text, names, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise self._error(column, f"no such column.{hint} Columns are {', '.join(names)}.")
        kind = self._schema.field(column.text).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def _error(self, place: Word | Value, problem: str) -> FilterError:
        return FilterError.at(self._text, place.start, problem)

    def _truth(self, node: Truth) -> pc.Expression:
        kind = self._type(node.column)
        if not pa.types.is_boolean(kind):
            raise self._error(
                node.column,
                f"column {node.column.text!r} is {kind}, and alone it says nothing. Compare it, or "
                "test it with is null.",
            )
        return pc.field(node.column.text)

    def _comparison(self, node: Comparison) -> pc.Expression:
        kind = self._type(node.column)
        value = self._scalar(node.column, kind, node.value)
        if pa.types.is_boolean(kind) and node.operator not in ("=", "!="):
            raise self._error(node.value, "true and false have no order. Compare with = or !=.")
        column = self._comparable(node.column, kind, value.type)
        return COMPARE[node.operator](column, pc.scalar(value))

    def _membership(self, node: Membership) -> pc.Expression:
        kind = self._type(node.column)
        values = [self._scalar(node.column, kind, value) for value in node.values]
        common = _common({value.type for value in values})
        column = self._comparable(node.column, kind, common)
        # Rounded as in a comparison. Not by way of Python, whose times begin with the year 1.
        wanted = [value.cast(common, safe=not pa.types.is_floating(common)) for value in values]
        found = column.isin(pa.array(wanted, common))
        # pyarrow says false of a missing value; by SQL's rules that is unknown.
        unknown = pc.scalar(pa.scalar(None, pa.bool_()))
        return pc.if_else(column.is_null(), unknown, found)

    def _like(self, node: Like) -> pc.Expression:
        kind = self._type(node.column)
        if not _is_text(kind):
            raise self._error(
                node.column, f"column {node.column.text!r} is {kind}; like compares text."
            )
        pattern = node.pattern.value
        if not isinstance(pattern, str):
            raise self._error(node.pattern, "expected a pattern in quotes, such as '%beach%'.")
        column = self._plain(node.column, kind)
        if "\\" not in pattern:
            return pc.match_like(column, pattern=pattern)
        # There, what a backslash is depends on the rest of the pattern: itself, or no sign at all.
        return pc.match_substring_regex(column, pattern=_regex(pattern))

    def _plain(self, column: Word, kind: pa.DataType) -> pc.Expression:
        """The column, out of a dictionary if it is in one."""
        field = pc.field(column.text)
        stored = self._schema.field(column.text).type
        return field if stored == kind else field.cast(kind)

    def _comparable(self, column: Word, kind: pa.DataType, value: pa.DataType) -> pc.Expression:
        """The column in the type of the value it is compared with.

        Whole numbers beyond 2**53 are rounded when they meet a fraction; pyarrow would refuse.
        """
        plain = self._plain(column, kind)
        return plain if kind == value else plain.cast(value, safe=not pa.types.is_floating(value))

    def _scalar(self, column: Word, kind: pa.DataType, given: Value) -> pa.Scalar:
        """The value in a type that compares with the column's."""
        value = given.value
        wrong = f"column {column.text!r} is {kind}; "
        if pa.types.is_boolean(kind):
            if isinstance(value, bool):
                return pa.scalar(value)
            raise self._error(given, wrong + "expected true or false.")
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            if not isinstance(value, str | bool):
                return self._number(
                    given, value, whole=pa.types.is_integer(kind) and kind != pa.uint64()
                )
            raise self._error(given, wrong + "expected a number, without quotes.")
        if _is_text(kind):
            if isinstance(value, str):
                return pa.scalar(value, kind)
            raise self._error(given, wrong + "expected text in quotes.")
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return self._moment(given, kind, wrong)
        raise self._error(column, wrong + "such columns can only be tested with is null.")

    def _number(self, given: Value, value: float, *, whole: bool) -> pa.Scalar:
        if not (abs(value) <= MAX_INT if isinstance(value, int) else math.isfinite(value)):
            raise self._error(
                given, f"numbers go from -{MAX_INT} to {MAX_INT}, or to 1e308 as floats."
            )
        is_int = whole and isinstance(value, int)
        return pa.scalar(value, pa.int64()) if is_int else pa.scalar(float(value), pa.float64())

    def _moment(self, given: Value, kind: pa.DataType, wrong: str) -> pa.Scalar:
        """A time in the column's own unit, or in the coarsest that holds it up to microseconds."""
        if isinstance(given.value, str):
            text = pa.scalar(given.value)
            if pa.types.is_date(kind):
                with contextlib.suppress(pa.ArrowInvalid):
                    return text.cast(kind)
            zone, own = (None, "s") if pa.types.is_date(kind) else (kind.tz, kind.unit)
            for unit in dict.fromkeys([own, *UNITS[UNITS.index(own) : UNITS.index("ns")]]):
                for written in (pa.timestamp(unit), pa.timestamp(unit, "UTC")):
                    with contextlib.suppress(pa.ArrowInvalid):
                        return pa.scalar(text.cast(written).value, pa.timestamp(unit, zone))
        raise self._error(
            given,
            wrong + "expected a time in quotes, such as '2026-11-23' or "
            "'2026-11-23T18:30:00+01:00'.",
        )


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """The type in which values of one column are looked for: one that loses nothing, or floats."""
    times = [kind for kind in kinds if pa.types.is_timestamp(kind)]
    if len(kinds) > 1 and times:
        return max(times, key=lambda kind: UNITS.index(kind.unit))
    return kinds.pop() if len(kinds) == 1 else pa.float64()


def _regex(pattern: str) -> str:
    r"""What a pattern of ``like`` says of all of a text, as a regular expression of RE2's.

    >>> print(_regex(r"50\%%"))
    (?s)\A50%.*\z
    """
    signs = LIKE_SIGN.findall(pattern)
    return rf"(?s)\A{''.join(WILDCARDS.get(sign) or re.escape(sign[-1]) for sign in signs)}\z"


def _is_text(kind: pa.DataType) -> Any:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
