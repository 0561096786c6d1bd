"""What identifies a training run, and what is refused before it starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from encoders.moco import MoCoConfig
from encoders.optim import OptimConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig


def test_settings_tell_methods_apart_that_have_the_same_fields() -> None:
    simclr = PretrainConfig(method=SimCLRConfig(temperature=0.1))
    supcon = PretrainConfig(method=SupConConfig(temperature=0.1))
    assert simclr.settings()["method"] == {"name": "simclr", "temperature": 0.1}
    assert simclr.settings() != supcon.settings()


def test_a_run_from_before_there_was_a_decode_edge_is_one_of_512() -> None:
    before = json.loads(json.dumps(PretrainConfig().settings()))
    assert "decode_edge" not in before["preprocess"]
    chosen = PretrainConfig(preprocess=PreprocessConfig(decode_edge=0))
    assert chosen.differences(before) == ["preprocess.decode_edge was 512, is 187"]
    assert (
        chosen.settings()
        == replace(chosen, preprocess=PreprocessConfig(decode_edge=187)).settings()
    )


def test_settings_that_differ_are_named_with_both_values_and_json_changes_none() -> None:
    config = PretrainConfig()
    stored = json.loads(json.dumps(config.settings()))
    assert config.differences(stored) == config.differences(config.settings()) == []
    changed = replace(config, batch_size=64, optim=OptimConfig(lr=0.5))
    assert changed.differences(stored)[0] == "batch_size was 128, is 64"
    assert "optim.lr was 0.1, is 0.5" in changed.differences(stored)


def test_workers_that_cannot_share_a_batch_or_its_groups_are_refused() -> None:
    config = PretrainConfig(batch_size=16)
    config.check_share(16, 4)
    with pytest.raises(ValueError, match="16 does not divide among 3 workers"):
        config.check_share(16, 3)
    with pytest.raises(ValueError, match="15 pictures, the global batch 16"):
        config.check_share(15, 1)
    with pytest.raises(ValueError, match="key_groups is 2 and there are 4 workers"):
        replace(config, method=MoCoConfig(key_groups=2)).check_share(16, 4)
