"""Metadata columns that a catalog carries along: how they are asked for, named and typed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "TYPES",
    "Column",
    "carried_type",
    "converted",
    "fitted",
    "fitting",
    "infer_type",
    "parse_columns",
]

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
MAX_REASON = 200
SHAPE = re.compile(r"(?:(?P<name>[^=]*)=)?(?P<source>.+?)(?::(?P<type>[a-z]+))?")


class Column(NamedTuple):
    """A metadata column: its name in the catalog, in the source, and its type if it was given."""

    name: str
    source: str
    type: pa.DataType | None = None


def parse_columns(text: str, taken: Iterable[str]) -> tuple[Column, ...]:
    """Read ``a,b:float,name=c``: columns a, b as numbers, and c under another name.

    Args:
        text: the setting; empty for none.
        taken: names that the catalog uses itself.

    Raises:
        ValueError: a name that is taken, given twice, or cannot be asked for in a filter.
    """
    columns: list[Column] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = SHAPE.fullmatch(part)
        source = found["source"] if found else part
        name, kind = (found["name"] or source, found["type"]) if found else (part, None)
        if kind is not None and kind not in TYPES:
            raise ValueError(
                f"columns {part!r}: {kind!r} is no type. Types are {', '.join(TYPES)}; leave it "
                "out to keep the source's."
            )
        if not NAME.fullmatch(name):
            raise ValueError(
                f"columns {part!r}: {name!r} cannot be asked for in a filter. Allowed are letters, "
                f"digits and '_'. Give it a name: {_suggested(name)}={source}"
            )
        if name in taken:
            raise ValueError(
                f"columns {part!r}: the catalog has a column {name!r} of its own. Give yours "
                f"another name: source_{name}={source}"
            )
        if any(name == column.name for column in columns):
            raise ValueError(f"columns {text!r}: {name!r} stands there twice. Name each once.")
        columns.append(Column(name, source, TYPES[kind] if kind else None))
    return tuple(columns)


def _suggested(name: str) -> str:
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)[:90]
    return plain if NAME.fullmatch(plain) else f"column_{plain}"


def carried_type(column: Column, kind: pa.DataType) -> pa.DataType:
    """The type under which a source's column is carried along.

    Raises:
        ValueError: a list, a struct or something else that no filter could compare; a type that
            cannot become the one that was asked for.
    """
    if column.type is not None:
        with contextlib.suppress(ValueError, pa.ArrowException):
            converted(pa.nulls(0, kind), pa.field(column.source, column.type))
            return column.type
    carried = _widened(kind)
    if column.type is not None or carried is None:
        named = "" if column.type is None else f" as {column.type}"
        raise ValueError(
            f"column {column.source!r}: {kind} cannot be carried along{named}. Allowed are "
            f"{', '.join(TYPES)}. Leave it out."
        )
    return carried


def _widened(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    for test, carried in (
        (pa.types.is_boolean, "bool"),
        (pa.types.is_integer, "int"),
        (pa.types.is_floating, "float"),
        (pa.types.is_decimal, "float"),
        (pa.types.is_timestamp, "timestamp"),
        (pa.types.is_date, "timestamp"),
        (pa.types.is_string, "string"),
        (pa.types.is_large_string, "string"),
        (pa.types.is_null, "string"),
    ):
        if test(kind):
            return TYPES[carried]
    return None


def converted(values: pa.Array, field: pa.Field) -> list[Any]:
    """The values as a metadata column's Python objects; ``ValueError`` if they do not fit."""
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_timestamp(field.type):
            return _moments(values)
        return list(pc.cast(values, field.type).to_pylist())
    except (OverflowError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error


def fitting(values: pa.Array, field: pa.Field) -> tuple[list[Any], str | None]:
    """As `converted`, but None for each value that does not fit, and why the first does not.

    Cost: a conversion for each value, where one of them does not fit.
    """
    with contextlib.suppress(ValueError):
        return converted(values, field), None
    cells: list[Any] = []
    reason = None
    for position in range(len(values)):
        try:
            cells += converted(values.slice(position, 1), field)
        except ValueError as error:
            cells.append(None)
            reason = reason or str(error)[:MAX_REASON]
    return cells, reason


def _moments(values: pa.Array) -> list[datetime | None]:
    """Times in UTC; what names no zone is taken as UTC."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return [None if text is None else _moment(text) for text in values.to_pylist()]
    if not pa.types.is_timestamp(values.type):
        values = pc.cast(values, pa.timestamp("us"))
    # Finer than microseconds is cut off: Python's own times end there.
    return list(pc.cast(values, TYPES["timestamp"], safe=False).to_pylist())


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text.strip())
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} lies before the year 1 or after 9999 in UTC") from error


def infer_type(values: Iterable[Any]) -> pa.DataType:
    """The narrowest type that holds all values that JSON or text gave; string if there are none.

    >>> infer_type([1, 2]), infer_type([1, 10**19]), infer_type([1, 0.5])
    (DataType(int64), DataType(string), DataType(double))
    """
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if kinds == {bool}:
        return TYPES["bool"]
    if kinds == {int}:
        return TYPES["string" if any(_whole(value) is None for value in there) else "int"]
    if kinds and kinds <= {int, float}:
        return TYPES["float"]
    return TYPES["string"]


def fitted(value: Any, kind: pa.DataType) -> Any:
    """One value of JSON or text as a metadata column's type; None if it does not fit."""
    try:
        if value is None:
            return None
        if pa.types.is_string(kind):
            text = str(value)
            text.encode()  # JSON can state half a character, which no file can hold
            return text
        if pa.types.is_boolean(kind):
            return _BOOLS[str(value).strip().lower()]
        if pa.types.is_timestamp(kind):
            return _moment(str(value))
        return _whole(value) if pa.types.is_integer(kind) else float(value)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def _whole(value: Any) -> int | None:
    """The value as an integer of 64 bits; None for a fraction or one that is larger."""
    number = int(value)
    fits = -(2**63) <= number < 2**63 and not (isinstance(value, float) and value != number)
    return number if fits else None


_BOOLS = {"true": True, "false": False, "1": True, "0": False}
