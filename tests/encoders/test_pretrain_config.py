"""What identifies a training run."""

from __future__ import annotations

from encoders.pretrain_config import PretrainConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig


def test_settings_tell_methods_apart_that_have_the_same_fields() -> None:
    simclr = PretrainConfig(method=SimCLRConfig(temperature=0.1))
    supcon = PretrainConfig(method=SupConConfig(temperature=0.1))
    assert simclr.settings()["method"] == {"name": "simclr", "temperature": 0.1}
    assert simclr.settings() != supcon.settings()
