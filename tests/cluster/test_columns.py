"""How metadata columns are asked for."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cluster.catalog import CATALOG_SCHEMA
from cluster.columns import TYPES, Column, carried_type, fitted, infer_type, parse_columns


def test_columns_have_a_name_a_source_and_a_type() -> None:
    asked = parse_columns("a, b:float,c=x.y z:int", CATALOG_SCHEMA.names)
    assert asked == (
        Column("a", "a"),
        Column("b", "b", pa.float64()),
        Column("c", "x.y z", pa.int64()),
    )
    assert parse_columns("", CATALOG_SCHEMA.names) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", "source_width=width"),
        ("a,a", "stands there twice"),
        ("a:list", "'list' is no type"),
        ("x.y", "x_y=x.y"),
        ("1st", "column_1st=1st"),
    ],
)
def test_names_that_clash_or_cannot_be_asked_for_come_with_one_that_can(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_columns(text, CATALOG_SCHEMA.names)


def test_types_of_sources_become_five() -> None:
    carried = {
        kind: str(carried_type(Column("a", "a"), kind))
        for kind in (pa.uint8(), pa.float16(), pa.date32(), pa.dictionary(pa.int8(), pa.string()))
    }
    assert list(carried.values()) == ["int64", "double", "timestamp[us, tz=UTC]", "string"]
    with pytest.raises(ValueError, match="cannot be carried along"):
        carried_type(Column("a", "a"), pa.list_(pa.int8()))


def test_values_of_json_get_the_narrowest_type_and_what_does_not_fit_is_empty() -> None:
    assert [str(infer_type(values)) for values in ([1, None], [1, 0.5], [True], ["a", 1], [])] == [
        "int64",
        "double",
        "bool",
        "string",
        "string",
    ]
    assert [fitted(value, pa.int64()) for value in (3, "4", "x", None)] == [3, 4, None, None]
    assert [fitted(value, pa.int64()) for value in (4.0, 4.9, 2**63, -(2**63))] == [
        4,
        None,
        None,
        -(2**63),
    ]
    assert [fitted(text, pa.string()) for text in ("a", "half \ud83d")] == ["a", None]
    assert fitted("0001-01-01T00:00:00+05:00", TYPES["timestamp"]) is None
    assert [fitted(value, pa.bool_()) for value in (True, "false", "x")] == [True, False, None]
    assert fitted(7, pa.string()) == "7"
