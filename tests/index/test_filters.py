"""Filters against a naive evaluator in Python, and what is said of those that cannot be used."""

from __future__ import annotations

import contextlib
import datetime
import operator
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.filter_syntax import And, Comparison, Or, parse_filter
from index.filters import FilterError, compile_filter, matching

OPERATORS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("width", pa.int32()),
        ("rating", pa.float64()),
        ("label", pa.string()),
        ("sharp", pa.bool_()),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("taken at", pa.timestamp("us", tz="UTC")),
    ]
)
TEXTS = ["", "cat", "dog", "Cat", "a%b", "it's", 'say "hi"', "new\nline", "beach_1", "ümlaut"]
WORDS = (
    "width",
    "label",
    "=",
    "<",
    "(",
    ")",
    ",",
    "in",
    "not",
    "and",
    "or",
    "is",
    "null",
    "like",
    "'x",
    "'x'",
    "3",
    "`",
)
NUMBERS = [-3, 0, 2, 2.5, 10, 1e3]


def quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace(quote, 2 * quote) + quote


class Naive:
    """A filter as text and as a function of a row that gives True, False or None for unknown."""

    def __init__(self, text: str, truth: Any) -> None:
        self.text = text
        self.truth = truth


def not_(value: bool | None) -> bool | None:
    return None if value is None else not value


def and_(values: list[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def or_(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def like(text: str, pattern: str) -> bool:
    pieces = (".*" if c == "%" else "." if c == "_" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(pieces), text, re.DOTALL) is not None


def on(column: str, test: Any) -> Any:
    return lambda row: None if row[column] is None else test(row[column])


@st.composite
def single_tests(draw: Any) -> Naive:
    column = draw(st.sampled_from(["width", "rating", "label", "kind", "sharp"]))
    values = NUMBERS if column in ("width", "rating") else TEXTS
    negated = draw(st.booleans())
    word = draw(st.sampled_from(["not ", "NOT "])) if negated else ""
    flip = not_ if negated else lambda value: value
    form = draw(st.sampled_from(["null", "compare", "in", "like"]))
    if form == "null":
        return Naive(f"{column} is {word}null", lambda row: (row[column] is None) != negated)
    if column == "sharp":
        value = draw(st.booleans())
        if form == "compare":
            return Naive(f"sharp = {value}", on("sharp", lambda found: found == value))
        return Naive(f"{word}sharp", lambda row: flip(row["sharp"]))
    if form == "in":
        chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        listed = ", ".join(quoted(v) if isinstance(v, str) else repr(v) for v in chosen)
        member = on(column, lambda found: found in chosen)
        return Naive(f"{column} {word}in ({listed})", lambda row: flip(member(row)))
    if form == "like" and values is TEXTS:
        pattern = draw(st.sampled_from(["%a%", "c_t", "", "%", "_%'%", "new%", "%.", "a%b"]))
        match = on(column, lambda found: like(found, pattern))
        return Naive(f"{column} {word}like {quoted(pattern)}", lambda row: flip(match(row)))
    name, value = draw(st.sampled_from(sorted(OPERATORS))), draw(st.sampled_from(values))
    quote = draw(st.sampled_from("'\""))
    shown = quoted(value, quote) if isinstance(value, str) else repr(value)
    compare = OPERATORS[name]
    return Naive(f"{column}{name}{shown}", on(column, lambda found: compare(found, value)))


def joined(parts: list[Naive], word: str, rule: Any) -> Naive:
    return Naive(
        f" {word} ".join(f"({part.text})" for part in parts),
        lambda row: rule([part.truth(row) for part in parts]),
    )


def negated(part: Naive) -> Naive:
    return Naive(f"not ({part.text})", lambda row: not_(part.truth(row)))


trees = st.recursive(
    single_tests(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: joined(parts, "AND", and_)),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: joined(parts, "or", or_)),
        inner.map(negated),
    ),
    max_leaves=8,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "width": st.none() | st.sampled_from([-3, 0, 2, 10, 1000]),
            "rating": st.none() | st.sampled_from([*map(float, NUMBERS), float("nan")]),
            "label": st.none() | st.sampled_from(TEXTS),
            "kind": st.none() | st.sampled_from(TEXTS),
            "sharp": st.none() | st.booleans(),
        }
    ),
    max_size=12,
)


def table_of(given_rows: list[dict[str, Any]]) -> pa.Table:
    numbered = [{**row, "id": number} for number, row in enumerate(given_rows)]
    return pa.Table.from_pylist(numbered, schema=SCHEMA)


@settings(max_examples=150, deadline=None)
@given(tree=trees, given_rows=rows)
def test_a_filter_selects_what_a_naive_evaluator_selects(tree: Naive, given_rows: Any) -> None:
    found = matching(table_of(given_rows), tree.text, ["id"])["id"].to_pylist()
    assert found == [number for number, row in enumerate(given_rows) if tree.truth(row)]


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=30),
        st.lists(
            st.sampled_from(WORDS),
            max_size=12,
        ).map(" ".join),
    )
)
def test_any_text_is_a_filter_or_a_sentence_with_a_position(text: str) -> None:
    with contextlib.suppress(FilterError):
        compile_filter(text, SCHEMA)
        return
    with pytest.raises(FilterError, match=r"position \d+ \("):
        compile_filter(text, SCHEMA)


def test_and_binds_closer_than_or_and_not_closest() -> None:
    tree = parse_filter("width = 1 or width = 2 and not width = 3")
    assert isinstance(tree, Or)
    assert isinstance(tree.of[0], Comparison)
    assert isinstance(tree.of[1], And)


def test_missing_values_are_unknown_until_they_are_asked_for() -> None:
    table = table_of([{"label": "cat"}, {"label": "dog"}, {"label": None}])
    for text, expected in (
        ("label != 'cat'", [1]),
        ("not label = 'cat'", [1]),
        ("not label in ('cat')", [1]),
        ("label != 'cat' or label is null", [1, 2]),
        ("label is null", [2]),
    ):
        assert matching(table, text)["id"].to_pylist() == expected, text


def test_times_compare_with_iso_text_and_odd_names_stand_in_backquotes() -> None:
    moments = [datetime.datetime(2026, 1, 2), datetime.datetime(2024, 5, 6, 7)]
    for kind in ("timestamp[us, tz=UTC]", "timestamp[s]", "timestamp[us, tz=Asia/Tokyo]"):
        zone = pa.timestamp("us", tz="UTC")
        times = pa.array(moments, zone if "tz" in kind else pa.timestamp("s"))
        if "Tokyo" in kind:
            times = times.cast(pa.timestamp("us", tz="Asia/Tokyo"))
        table = pa.table({"id": [0, 1], "taken at": times})
        assert str(table["taken at"].type) == kind
        for text, expected in (
            ("`taken at` >= '2025-01-01'", [0]),
            ("`taken at` = '2024-05-06T07:00:00'", [1]),
            ("`taken at` <= '2024-05-06 07:00'", [1]),
            ("`taken at` not in ('2026-01-02', '2024-05-06')", [1]),
            ("`taken at` in ('0000-01-01', '2026-01-02')", [0]),
        ):
            assert matching(table, text)["id"].to_pylist() == expected, (kind, text)


def test_a_time_is_utc_unless_it_names_an_offset() -> None:
    table = table_of([{"taken at": datetime.datetime(2024, 5, 6, 7, tzinfo=datetime.UTC)}])
    for text in (
        "2024-05-06T07:00:00",
        "2024-05-06T07:00:00Z",
        "2024-05-06T09:00:00+02:00",
        "2024-05-06 02:00-0500",
    ):
        assert matching(table, f"`taken at` = '{text}'").num_rows == 1, text
    assert matching(table, "`taken at` = '2024-05-06T07:00:00+02:00'").num_rows == 0


@pytest.mark.parametrize("kind", ["s", "ms", "us", "ns", "date32", "date64"])
def test_columns_without_a_zone_are_utc_and_take_any_fraction(kind: str) -> None:
    days = [datetime.datetime(2026, 1, 2), None, datetime.datetime(2026, 1, 3)]
    column = pa.array(days, pa.timestamp("s"))
    stored = {"date32": pa.date32(), "date64": pa.date64()}.get(kind)
    table = pa.table({"id": [0, 1, 2], "taken": column.cast(stored or pa.timestamp(kind))})
    for text, expected in (
        ("taken = '2026-01-02T01:00:00+01:00'", [0]),
        ("taken = '2026-01-01 22:30-0130'", [0]),
        ("taken < '2026-01-02T00:00:00.25'", [0]),
        ("taken > '2026-01-02T00:00:00.000001'", [2]),
        ("taken >= '2026-01-02T01:00:00.25+01:00'", [2]),
        ("taken = '2026-01-02T00:00:00.25'", []),
        ("not taken = '2026-01-02T00:00:00.25'", [0, 2]),
        ("taken in ('2026-01-02', '2026-01-02T00:00:00.25')", [0]),
        ("taken not in ('2026-01-02', '2026-01-02T23:00:00.123456Z')", [2]),
    ):
        assert matching(table, text)["id"].to_pylist() == expected, text
    with pytest.raises(FilterError, match="expected a time in quotes"):
        matching(table, "taken = '2026-01-02T00:00:00.1234567891'")


def test_numbers_beyond_what_floats_hold_compare() -> None:
    table = pa.table({"mtime_ns": pa.array([1_764_000_000_000_000_001, None, 5])})
    assert matching(table, "mtime_ns > 2.5")["mtime_ns"].to_pylist() == [
        1_764_000_000_000_000_001,
        5,
    ]
    assert matching(table, "mtime_ns in (1764000000000000001, 7)").num_rows == 1
    assert matching(table, "mtime_ns in (9007199254740993, 2.5, 5)").num_rows == 1
    assert matching(table, "mtime_ns = 1764000000000000000").num_rows == 0
    assert matching(pa.table({"rating": [0.5]}), "rating < 9007199254740993").num_rows == 1
    unsigned = pa.table({"size": pa.array([7, 9], pa.uint8())})
    assert matching(unsigned, "size > -1 and size != 7")["size"].to_pylist() == [9]


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("widthx >= 3", 1, "Did you mean width"),
        ("label = 'a' and nothing = 2", 17, "Columns are id, width"),
        ("width >= 'big'", 10, "column 'width' is int32; expected a number, without quotes"),
        ("label = 3", 9, "column 'label' is string; expected text in quotes"),
        ("kind in ('a', 3)", 15, "expected text in quotes"),
        ("sharp = 1", 9, "expected true or false"),
        ("sharp < true", 9, "no order"),
        ("width", 1, "alone it says nothing"),
        ("width like 'a'", 1, "like compares text"),
        ("label like 3", 12, "pattern in quotes"),
        ("`taken at` > 'soon'", 14, r"expected a time in quotes, .*'2026-11-23T18:30:00\+01:00'"),
        ("`taken at` > '2026-02-30'", 14, "expected a time"),
        ("`taken at` > 2026", 14, "expected a time"),
        ("width > 99999999999999999999", 9, "numbers go from"),
        ("width > 1e999", 9, "numbers go from"),
        ("width = " + "9" * 401, 9, "a number of 401 characters; allowed are 400"),
        ("id in (3, -" + "9" * 5000 + ")", 11, "a number of 5001 characters"),
        ("width > 0." + "9" * 5000, 9, "a number of 5002 characters"),
        ("width >", 8, "expected a value"),
        ("width > null", 9, "is null"),
        ("(width > 1", 11, r"expected '\)'"),
        ("width > 1 height", 11, "expected 'and', 'or' or the end"),
        ("label is 'cat'", 7, "expected 'is null'"),
        ("label in 'cat'", 10, r"expected '\('"),
        ("label = 'cat", 9, "not closed"),
        ("label = __import__('os')", 9, "expected a value"),
        ("width > 1; drop", 10, "Operators are"),
        ("", 1, "name of a column"),
        ("not " * 60 + "sharp", 201, "deep"),
    ],
)
def test_what_is_wrong_is_said_with_its_position(text: str, position: int, said: str) -> None:
    with pytest.raises(FilterError, match=rf"position {position} \(.*{said}"):
        compile_filter(text, SCHEMA)


def test_hundreds_of_tests_are_fine_and_thousands_refused() -> None:
    table = table_of([{"width": 3}, {"width": 500}])
    many = " or ".join(f"width = {number}" for number in range(400))
    assert matching(table, many)["id"].to_pylist() == [0]
    with pytest.raises(FilterError, match="more than 500 tests"):
        matching(table, " or ".join(["width = 1"] * 501))
    with pytest.raises(FilterError, match="10000"):
        matching(table, "x" * 10_001)


BACKSLASHED = ["\\", "a", "a\\", "\\a", "x\\a", "x\\ay", "50%", "50\\", "C:\\new_1", "C:\\newx1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("\\", ["\\"]),
        ("\\\\", ["\\"]),
        ("a\\", ["a\\"]),
        ("%\\", ["\\", "a\\", "50\\"]),
        ("%\\\\", ["\\", "a\\", "50\\"]),
        ("\\a", ["\\a"]),
        ("\\a%", ["\\a"]),
        ("%\\a", ["\\a", "x\\a"]),
        ("_\\a", ["x\\a"]),
        ("%\\\\a%", ["\\a", "x\\a", "x\\ay"]),
        ("50\\%", ["50%"]),
        ("50\\\\%", ["50\\"]),
        ("C:\\new_1", ["C:\\new_1", "C:\\newx1"]),
        ("C:\\new\\_%", ["C:\\new_1"]),
    ],
)
@pytest.mark.parametrize("column", ["label", "kind"])
def test_a_backslash_in_like_is_itself_but_before_a_wildcard_or_another(
    column: str, pattern: str, expected: list[str]
) -> None:
    table = table_of([{column: text} for text in BACKSLASHED])
    assert matching(table, f"{column} like '{pattern}'")[column].to_pylist() == expected


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time64("us"), pa.duration("s")], ids=str)
def test_a_column_of_times_of_day_is_compared_with_nothing(kind: pa.DataType) -> None:
    table = pa.table({"id": [0, 1], "at": pa.array([60, None], kind)})
    with pytest.raises(FilterError, match="can only be tested with is null"):
        matching(table, "at > '18:30:00'")
    assert matching(table, "at is null")["id"].to_pylist() == [1]
