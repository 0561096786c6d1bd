from dataclasses import replace

import pytest
import torch

from encoders.backbone import BackboneConfig, build_backbone
from encoders.batchnorm import convert_batchnorm
from encoders.heads import ProjectorConfig, build_projector
from encoders.leak import keys_in_queue, shared_statistics
from encoders.losses import unit_rows
from encoders.method import Batch, Parts
from encoders.moco import MoCoConfig


def method_of(key_groups: int, batch_norm: bool = True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(BackboneConfig(widths=(4, 6)), 8)
        config = ProjectorConfig(hidden_dim=8, output_dim=6, batch_norm=batch_norm)
        projector = build_projector(config, backbone.feature_dim)
        parts = Parts(backbone=backbone, projector=projector, embedding_dim=6, seed=0)
        method = MoCoConfig(queue_size=16, key_groups=key_groups).build(parts)
    convert_batchnorm(method, torch.device("cpu"))
    return method.train()


def batch_of(num: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, num, 3, 8, 8, generator=generator)
    return Batch(view_a=views[0], view_b=views[1], ids=torch.arange(num), labels=None, step=0)


@pytest.mark.parametrize(
    ("groups", "fewest", "most"), [(1, 1.0, 1.0), (2, 0.4, 0.5), (4, 0.1, 0.25)]
)
def test_the_share_is_that_of_a_key_group_in_the_batch(groups, fewest, most):
    """The changed picture is not counted, so that a group of n has n - 1 others."""
    assert fewest <= shared_statistics(method_of(groups), batch_of(16)) <= most


def test_nothing_moves_and_nothing_is_drawn():
    method = method_of(2)
    before = {name: x.clone() for name, x in method.state_dict().items()}
    state = torch.get_rng_state()
    shared_statistics(method, batch_of(8))
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_batchnorm_nothing_is_shared():
    method = method_of(1)
    for network in (method.backbone, method.projector, method.key_backbone, method.key_projector):
        network.eval()
    assert shared_statistics(method, batch_of(8)) == 0


def test_keys_in_the_queue_are_counted_and_views_like_them_are_not():
    keys = unit_rows(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))
    near = unit_rows(keys + 0.05)
    queue = torch.cat([keys[:2], near[2:], torch.zeros(4, 6)])
    ids = torch.tensor([10, 11, *range(2, 8), -1, -1, -1, -1])
    assert keys_in_queue(keys, queue, ids) == 0.25
    assert keys_in_queue(keys, queue, ids.fill_(-1)) == 0


def test_a_batch_in_chunks_is_judged_by_one_of_them():
    batch = replace(batch_of(16), num_chunks=2)
    assert shared_statistics(method_of(1), batch.chunks()[0]) == 1
