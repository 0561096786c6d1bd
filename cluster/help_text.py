"""Help of the command line as flowing text: a docstring's line breaks are those of the source.

tyro keeps a break before an indented line, as it is in every attribute docstring of two lines.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

__all__ = ["flowing", "flowing_help"]

Help = str | Callable[[], str | None] | None


def flowing(text: str) -> str:
    r"""The text with its paragraphs in one line each.

    >>> flowing("Most memory; no\n    limit unless given.\n\nIn bytes.")
    'Most memory; no limit unless given.\n\nIn bytes.'
    """
    return re.sub(r"(?<!\n)\n(?!\n)[ \t]*", " ", text)


def flowing_help() -> ConstructorRegistry:
    """A registry for `tyro.cli` that changes nothing but how the help of dataclasses flows."""
    registry = ConstructorRegistry()
    asked: list[object] = []

    @registry.struct_rule
    def flow(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or any(info is one for one in asked):
            return None
        asked.append(info)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asked.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [
            dataclasses.replace(field, helptext=_flowing(field.helptext)) for field in spec.fields
        ]
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _flowing(found: Help) -> Help:
    def text() -> str | None:
        said = found() if callable(found) else found
        return None if said is None else flowing(said)

    return text
