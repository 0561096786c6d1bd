"""What a class may be called: one rule, whether it is made, given to a picture or imported."""

from __future__ import annotations

__all__ = ["MAX_LABEL_LENGTH", "label_name"]

MAX_LABEL_LENGTH = 100


def label_name(text: str) -> str:
    """The name without blanks around it.

    >>> label_name(" my cat ")
    'my cat'

    Raises:
        ValueError: nothing of it is visible, it has control characters, or it is too long.
    """
    name = text.strip()
    if not name or not name.isprintable() or len(name) > MAX_LABEL_LENGTH:
        raise ValueError(
            f"label {name[:MAX_LABEL_LENGTH]!r} needs a visible sign, no control characters, and "
            f"at most {MAX_LABEL_LENGTH} characters. Write the name of a class."
        )
    return name
