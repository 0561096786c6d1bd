"""Settings that would open the application to others, or make it useless, are refused."""

from __future__ import annotations

from typing import Any

import pytest

from ui.config import UiConfig, is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::"])
def test_a_host_that_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="there is no token"):
        UiConfig(host=host)
    assert UiConfig(host=host, token="s" * 16).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    assert UiConfig(host=host).token is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"port": 65536}, "0 to 65535"),
        ({"port": -1}, "0 to 65535"),
        ({"token": "short"}, "at least 16"),
        ({"token": ""}, "at least 16"),
        ({"max_upload_mb": 0}, "at least 1"),
        ({"max_k": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_say_what_is_allowed(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        UiConfig(**settings)
