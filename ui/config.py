"""What can be set about the web application, light enough for the command line's help to import."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["UiConfig", "is_loopback"]

MIN_TOKEN_LENGTH = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class UiConfig:
    """Where the web application listens and whom it lets in."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    index: str | None = None
    """Index that opens first; without it, the one made last."""
    token: str | None = None
    """Secret that every visitor and API client has to give; at least 16 characters."""
    max_upload_mb: int = 32
    """Largest picture file that can be searched with."""
    max_k: int = 200
    """Most results that one search may ask for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"ui port={self.port}: allowed are 0 to 65535. Choose another --port.")
        if self.max_upload_mb < 1 or self.max_k < 1:
            raise ValueError(
                f"ui max_upload_mb={self.max_upload_mb}, max_k={self.max_k}: both have to be at "
                "least 1. Leave them out for the defaults."
            )
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ValueError(
                f"ui token of {len(self.token)} characters: at least {MIN_TOKEN_LENGTH} are "
                "needed, so that it cannot be guessed. Make one: openssl rand -hex 16"
            )
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"ui host={self.host}: other machines can reach it, and there is no token. Allowed "
                "without one is 127.0.0.1. Give --token, or listen on 127.0.0.1 behind a tunnel."
            )

    @property
    def max_upload_bytes(self) -> int:
        """Largest accepted picture file in bytes."""
        return self.max_upload_mb << 20
