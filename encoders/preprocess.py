"""How a picture becomes the square that an encoder sees: the settings, and what of them counts.

What is done by them is in `encoders.picture`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["DECODE_EDGE", "LEAST_DECODE_EDGE", "PREPROCESS_RULE", "PreprocessConfig"]

DECODE_EDGE = 512
"""JPEGs may be decoded at 1/2, 1/4 or 1/8 scale while no edge falls below this, or less if an
encoder says so; the largest square that one sees."""

LEAST_DECODE_EDGE = 187
"""What recipes for small squares say: half of 375 px, the usual shorter edge of small photographs,
and enough for a thumbnail."""

PREPROCESS_RULE = 1
"""Part of every encoder's identity: raised when the same bytes would give other pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """How a picture becomes the square that the encoder sees; part of the encoder's identity."""

    size: int = 32
    """Edge in pixels of the square."""
    fit: Literal["crop", "pad"] = "crop"
    """crop keeps the centre square; pad keeps the whole picture on white."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel in [0, 1]; ImageNet's means by convention."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Each channel is divided by this; ImageNet's deviations by convention."""
    decode_edge: int = DECODE_EDGE
    """JPEGs may be decoded at 1/2, 1/4 or 1/8 scale while no edge falls below this; 0 chooses, as
    recipes do: one and a half times the size, and 187 or more. Less is faster."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= DECODE_EDGE:
            raise ValueError(
                f"preprocess size is {self.size} px, it must be 8 to {DECODE_EDGE}. "
                "32 to 96 suits a CPU, 224 a GPU."
            )
        if self.fit not in ("crop", "pad"):
            raise ValueError(f"preprocess fit {self.fit!r} is unknown: choose crop or pad.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(
                f"preprocess mean {self.mean} and std {self.std} must be three numbers each, "
                "red, green, blue, and every std above 0."
            )
        if self.decode_edge and not self.size <= self.decode_edge <= DECODE_EDGE:
            raise ValueError(
                f"preprocess decode_edge is {self.decode_edge} px, it must be {self.size}, the "
                f"size, to {DECODE_EDGE}, or 0, which chooses what suits the size."
            )

    @property
    def least_edge(self) -> int:
        """What ``decode_edge`` comes to, in pixels; see `open_picture`.

        >>> [PreprocessConfig(size=n, decode_edge=0).least_edge for n in (32, 96, 224, 384)]
        [187, 187, 336, 512]
        """
        chosen = min(DECODE_EDGE, max(LEAST_DECODE_EDGE, 3 * self.size // 2))
        return self.decode_edge or chosen

    def facts(self) -> dict[str, Any]:
        """The fields, for a card and for identities.

        Without ``decode_edge`` where it is what it was before there was a choice.
        """
        fields = {**asdict(self), "decode_edge": self.least_edge}
        if self.least_edge == DECODE_EDGE:
            del fields["decode_edge"]
        return fields

    def square(self) -> dict[str, Any]:
        """Those of `facts` that decide the pixels of the square."""
        return {name: fact for name, fact in self.facts().items() if name not in ("mean", "std")}
