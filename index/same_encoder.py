"""Vectors are only compared with those of the same encoder and layer."""

from __future__ import annotations

__all__ = ["EncoderMismatchError", "require_same_encoder"]


class EncoderMismatchError(ValueError):
    """Vectors of two encoders, or of two layers of one, cannot be compared."""


def require_same_encoder(
    where: str, expected: tuple[str, str], given: tuple[str, str], remedy: str
) -> None:
    """Check two (encoder_id, layer) pairs.

    Raises:
        EncoderMismatchError: they differ.
    """
    if expected != given:
        raise EncoderMismatchError(
            f"{where}: made by encoder {expected[0][:12]}, layer {expected[1]}, but given vectors "
            f"of encoder {given[0][:12]}, layer {given[1]}. {remedy}"
        )
