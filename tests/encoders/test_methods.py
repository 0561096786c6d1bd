"""What all methods share, and what sets each apart."""

from dataclasses import replace

import pytest
import torch

from encoders.backbone import BackboneConfig, build_backbone
from encoders.byol import BYOLConfig
from encoders.heads import PredictorConfig, ProjectorConfig, build_projector
from encoders.losses import byol_loss, nt_xent, sup_con, unit_rows
from encoders.method import Batch, Method, Parts
from encoders.moco import MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

CONFIGS = {
    "simclr": SimCLRConfig(),
    "moco": MoCoConfig(queue_size=12, key_groups=2),
    "byol": BYOLConfig(predictor=PredictorConfig(hidden_dim=6)),
    "supcon": SupConConfig(),
}


def make(config, seed: int = 0) -> Method:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build_backbone(BackboneConfig(widths=(4, 6), zero_init_residual=False), 8)
        projector = build_projector(ProjectorConfig(hidden_dim=6, output_dim=5), 6)
        parts = Parts(backbone=backbone, projector=projector, embedding_dim=5, seed=seed)
        return config.build(parts).train()


def batch(step: int = 0, num: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(step)
    view_a, view_b = torch.randn(2, num, 3, 8, 8, generator=generator)
    labels = torch.arange(num) % 3 - 1
    ids = torch.arange(num) + num * step
    return Batch(view_a=view_a, view_b=view_b, ids=ids, labels=labels, step=step)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_does(name):
    method = make(CONFIGS[name])
    for step in (0, 1):  # MoCo's first loss is zero: its queue is empty
        output = method(batch(step))
        method.zero_grad()
        output.loss.backward()
        method.after_step(batch(step), output, 10)
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, parameter_name
        else:
            assert parameter.grad is None
            assert parameter_name.startswith(("key_", "target_"))


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_are_detached_unit_rows(name):
    output = make(CONFIGS[name])(batch())
    for embeddings in (output.embeddings_a, output.embeddings_b):
        assert not embeddings.requires_grad
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))


def test_simclr_and_supcon_see_both_views_in_one_batch():
    for config in (SimCLRConfig(temperature=0.3), SupConConfig(temperature=0.3)):
        method, twin, pictures = make(config), make(config), batch()
        both = twin.projector(twin.backbone(torch.cat([pictures.view_a, pictures.view_b])))
        a, b = both[:8], both[8:]
        expected = (
            nt_xent(a, b, pictures.ids, temperature=0.3)
            if config == SimCLRConfig(temperature=0.3)
            else sup_con(a, b, pictures.labels, temperature=0.3)
        )
        torch.testing.assert_close(method(pictures).loss, expected)


def test_simclr_states_the_candidates_of_its_bound():
    assert make(SimCLRConfig())(batch()).num_candidates == 15


def test_byol_predicts_the_target_of_the_other_view_both_ways():
    method, twin, pictures = make(CONFIGS["byol"]), make(CONFIGS["byol"]), batch()
    online = [twin.projector(twin.backbone(v)) for v in (pictures.view_a, pictures.view_b)]
    target = [
        twin.target_projector(twin.target_backbone(v)) for v in (pictures.view_a, pictures.view_b)
    ]
    expected = byol_loss(twin.predictor(online[0]), target[1]) + byol_loss(
        twin.predictor(online[1]), target[0]
    )
    torch.testing.assert_close(method(pictures).loss, expected)


def test_byols_target_starts_as_a_copy_and_follows_by_the_schedule():
    config = replace(CONFIGS["byol"], momentum=MomentumConfig(start=0.5, schedule="cosine"))
    method = make(config)
    before = [p.clone() for p in method.target_backbone.parameters()]
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1)
    output = method(batch(step=5))
    method.after_step(batch(step=5), output, 10)
    for old, new in zip(before, method.target_backbone.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_mocos_queue_takes_the_keys_after_the_loss():
    method = make(CONFIGS["moco"])
    first = method(batch(0))
    assert first.loss.item() == 0
    assert int(first.num_candidates) == 1
    assert int(method.queue.num_filled) == 0
    method.after_step(batch(0), first, 10)
    assert torch.equal(method.queue.keys[:8], first.embeddings_b)
    assert torch.equal(method.queue.ids[:8], batch(0).ids)
    second = method(batch(1))
    assert int(second.num_candidates) == 9
    assert second.loss.item() > 0


def test_mocos_keys_come_back_in_the_order_of_the_pictures():
    """With statistics that no batch can move, a key depends on its picture alone."""
    method, pictures = make(CONFIGS["moco"]), batch()
    method.key_backbone.eval()
    method.key_projector.eval()
    expected = unit_rows(method.key_projector(method.key_backbone(pictures.view_b)))
    torch.testing.assert_close(method(pictures).embeddings_b, expected)


def test_mocos_groups_change_with_the_step_and_not_with_the_call():
    method, pictures = make(CONFIGS["moco"]), batch()
    keys = method(pictures).embeddings_b
    assert torch.equal(method(pictures).embeddings_b, keys)
    assert not torch.allclose(method(replace(pictures, step=2)).embeddings_b, keys)


def test_without_groups_the_shuffle_has_nothing_to_hide():
    method, pictures = make(MoCoConfig(queue_size=12, key_groups=1)), batch()
    keys = method(pictures).embeddings_b
    torch.testing.assert_close(method(replace(pictures, step=2)).embeddings_b, keys)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [
        (10, 1, "global batch 10.*same number"),
        (8, 1, "global batch 8.*at least 2"),
        (32, 3, "3 workers.*divides key_groups"),
    ],
)
def test_moco_refuses_groups_that_cannot_be_whole(batch_size, world_size, message):
    with pytest.raises(ValueError, match=message):
        MoCoConfig(key_groups=8).check_batch(batch_size, world_size)
    MoCoConfig(key_groups=8).check_batch(32, 4)


@pytest.mark.parametrize("settings", [{"queue_size": 0}, {"key_groups": 0}])
def test_moco_refuses_an_empty_queue_or_no_groups(settings):
    with pytest.raises(ValueError, match="queue_size"):
        MoCoConfig(**settings)
