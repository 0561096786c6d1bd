"""Multi-crop: small views that are asked for the global ones, by every method's own measure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from encoders.backbone import BackboneConfig, build_backbone, check_crop
from encoders.byol import BYOLConfig
from encoders.collective import average, rank
from encoders.heads import PredictorConfig, ProjectorConfig, build_projector
from encoders.losses import nt_xent, sup_con, unit_rows
from encoders.method import Batch, Method, Parts
from encoders.moco import MoCoConfig
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

NUM, DIM, TAU = 6, 5, 0.3
IDS = torch.tensor([4, 9, 4, 0, 1, 2])  # one picture is twice in the batch
LABELS = torch.tensor([0, 1, 0, -1, 2, 1])


def embeddings(num_views: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(num_views, NUM, DIM, generator=generator, dtype=torch.float64))


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x @ y / (x.norm() * y.norm())).detach())


def naive_nt_xent(views, ids) -> float:
    """Over all pairs of a view and another, global, view of the same picture."""
    losses = []
    for number, view in enumerate(views):
        for other in {0, 1} - {number}:
            for row, picture in enumerate(ids):
                positive = math.exp(cosine(view[row], views[other][row]) / TAU)
                negatives = sum(
                    math.exp(cosine(view[row], y) / TAU)
                    for global_view in views[:2]
                    for y, its_picture in zip(global_view, ids, strict=True)
                    if its_picture != picture
                )
                losses.append(-math.log(positive / (positive + negatives)))
    assert len(losses) == (2 + 2 * (len(views) - 2)) * len(ids)
    return sum(losses) / len(losses)


def naive_sup_con(views, labels) -> float:
    losses, weights = [], []
    candidates = [
        (number, row, views[number][row])
        for number in (0, 1)
        for row in range(NUM)
        if labels[row] >= 0
    ]
    for number, view in enumerate(views):
        for row, label in enumerate(labels):
            if label < 0:
                continue
            others = [(r, y) for n, r, y in candidates if (n, r) != (number, row)]
            total = sum(math.exp(cosine(view[row], y) / TAU) for _, y in others)
            terms = [
                math.log(total) - cosine(view[row], y) / TAU
                for r, y in others
                if labels[r] == label
            ]
            losses.append(sum(terms) / len(terms))
            weights.append(1 if number < 2 else 2)
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)


@pytest.mark.parametrize("num_local", [0, 1, 3])
def test_nt_xent_is_the_mean_over_pairs_with_a_global_view(num_local):
    a, b, *local = views = embeddings(2 + num_local)
    found = nt_xent(a, b, IDS, local, temperature=TAU)
    assert float(found) == pytest.approx(naive_nt_xent(views, IDS), rel=1e-12)


@pytest.mark.parametrize("num_local", [0, 1, 3])
def test_sup_con_takes_all_global_views_of_a_local_ones_class_as_positives(num_local):
    a, b, *local = views = embeddings(2 + num_local)
    found = sup_con(a, b, LABELS, local, temperature=TAU)
    assert float(found) == pytest.approx(naive_sup_con(views, LABELS), rel=1e-12)


def test_equal_embeddings_lose_the_log_of_all_candidates_with_local_views_too():
    ones = torch.ones(NUM, DIM, dtype=torch.float64)
    loss = nt_xent(ones, ones, torch.arange(NUM), [ones, ones], temperature=TAU)
    assert float(loss) == pytest.approx(math.log(2 * NUM - 1), rel=1e-12)


def test_a_local_view_is_never_a_candidate():
    """Its gradient comes from its own terms alone: another local view does not change it."""
    a, b, first, second = embeddings(4)
    for loss_of in (
        lambda local: nt_xent(a, b, IDS, local, temperature=TAU),
        lambda local: sup_con(a, b, LABELS, local, temperature=TAU),
    ):
        leaf = first.clone().requires_grad_()
        (alone,) = torch.autograd.grad(loss_of([leaf]), leaf)
        (beside,) = torch.autograd.grad(loss_of([leaf, second]), leaf)
        torch.testing.assert_close(beside * 3, alone * 2)


def test_gradients_with_local_views_are_those_of_finite_differences():
    leaves = [view.requires_grad_() for view in embeddings(4)]
    torch.autograd.gradcheck(lambda a, b, *c: nt_xent(a, b, IDS, c, temperature=TAU), leaves)
    torch.autograd.gradcheck(lambda a, b, *c: sup_con(a, b, LABELS, c, temperature=TAU), leaves)


def losses_of_this_rank(world_size: int) -> list[tuple[list, float]]:
    share = NUM // world_size
    rows = slice(rank() * share, (rank() + 1) * share)
    answers = []
    for loss_of in (
        lambda a, b, *local: nt_xent(a, b, IDS[rows], local, temperature=TAU),
        lambda a, b, *local: sup_con(a, b, LABELS[rows], local, temperature=TAU),
    ):
        slopes = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(4)]
        scaled = [
            view[rows] + slope * view.roll(1, 1)[rows]
            for view, slope in zip(embeddings(4), slopes, strict=True)
        ]
        loss = loss_of(*scaled)
        gradients = list(torch.autograd.grad(loss, slopes))
        loss = loss.detach().clone()
        average([*gradients, loss])
        answers.append(([float(x) for x in gradients], float(loss)))
    return answers


def test_two_ranks_give_the_loss_and_gradients_of_one(ranks):
    expected = losses_of_this_rank(1)
    for found in ranks(losses_of_this_rank, 2):
        for (gradients, loss), (wanted, wanted_loss) in zip(found, expected, strict=True):
            assert gradients == pytest.approx(wanted, rel=1e-10)
            assert loss == pytest.approx(wanted_loss, rel=1e-12)


def make(config) -> Method:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(BackboneConfig(widths=(4, 6), zero_init_residual=False), 8)
        projector = build_projector(ProjectorConfig(hidden_dim=6, output_dim=5), 6)
        parts = Parts(backbone=backbone, projector=projector, embedding_dim=5, seed=0)
        return config.build(parts).train()


def batch(num_local: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 8, 3, 8, 8, generator=generator)
    local = tuple(torch.randn(num_local, 8, 3, 4, 4, generator=generator))
    labels = torch.arange(8) % 3 - 1
    return Batch(view_a=a, view_b=b, ids=torch.arange(8), labels=labels, step=1, local_views=local)


@pytest.mark.parametrize("config", [SimCLRConfig(temperature=TAU), SupConConfig(temperature=TAU)])
def test_local_views_pass_the_network_in_a_batch_of_their_own(config):
    method, twin, pictures = make(config), make(config), batch(2)
    both = twin.projector(twin.backbone(torch.cat([pictures.view_a, pictures.view_b])))
    local = twin.projector(twin.backbone(torch.cat(pictures.local_views))).chunk(2)
    expected = (
        nt_xent(*both.chunk(2), pictures.ids, local, temperature=TAU)
        if isinstance(config, SimCLRConfig)
        else sup_con(*both.chunk(2), pictures.labels, local, temperature=TAU)
    )
    torch.testing.assert_close(method(pictures).loss, expected)


def test_byol_predicts_both_targets_from_each_local_view():
    config = BYOLConfig(predictor=PredictorConfig(hidden_dim=6))
    method, twin, pictures = make(config), make(config), batch(2)
    online = [
        twin.predictor(twin.projector(twin.backbone(view)))
        for view in (pictures.view_a, pictures.view_b)
    ]
    joined = twin.projector(twin.backbone(torch.cat(pictures.local_views)))
    online += twin.predictor(joined).chunk(2)
    targets = [
        twin.target_projector(twin.target_backbone(view))
        for view in (pictures.view_a, pictures.view_b)
    ]
    distances = [
        sum(2 - 2 * cosine(x, y) for x, y in zip(predicted, targets[target], strict=True)) / 8
        for number, predicted in enumerate(online)
        for target in (0, 1)
        if target != number
    ]
    assert len(distances) == 6
    expected = 2 * sum(distances) / len(distances)
    assert method(pictures).loss.item() == pytest.approx(expected, rel=1e-5)


def test_mocos_local_views_are_further_queries_for_the_same_key():
    config = MoCoConfig(temperature=TAU, queue_size=12, key_groups=2)
    method, twin, pictures = make(config), make(config), batch(2)
    negatives = unit_rows(torch.randn(10, 5, generator=torch.Generator().manual_seed(3)))
    method.queue.enqueue(negatives, torch.arange(6, 16))  # two are of pictures in the batch
    queries = [twin.projector(twin.backbone(pictures.view_a))]
    queries += twin.projector(twin.backbone(torch.cat(pictures.local_views))).chunk(2)
    found = method(pictures)
    losses = []
    for query in queries:
        for row in range(8):
            logits = [cosine(query[row], found.embeddings_b[row]) / TAU]
            logits += [
                cosine(query[row], negatives[place]) / TAU
                for place in range(10)
                if 6 + place != row
            ]
            losses.append(math.log(sum(map(math.exp, logits))) - logits[0])
    assert found.loss.item() == pytest.approx(sum(losses) / 24, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SimCLRConfig(),
        MoCoConfig(queue_size=12, key_groups=2),
        BYOLConfig(predictor=PredictorConfig(hidden_dim=6)),
        SupConConfig(),
    ],
)
def test_embeddings_keys_and_candidates_are_those_of_the_global_views(config):
    plain, cropped = make(config)(batch(0)), make(config)(batch(3))
    assert torch.equal(cropped.embeddings_a, plain.embeddings_a)
    assert torch.equal(cropped.embeddings_b, plain.embeddings_b)
    assert cropped.num_candidates == plain.num_candidates


def test_a_crop_below_one_pixel_of_the_last_map_is_refused():
    narrow = BackboneConfig(widths=(4, 8, 16))
    check_crop(narrow, built_for=48, crop_size=8)
    with pytest.raises(ValueError, match=r"of 15 px for backbone narrow.*16 px or more"):
        check_crop(narrow, built_for=128, crop_size=15)
    with pytest.raises(ValueError, match=r"of 31 px for backbone resnet18.*32 px or more"):
        check_crop(BackboneConfig(name="resnet18"), built_for=224, crop_size=31)
    check_crop(BackboneConfig(name="resnet18"), built_for=32, crop_size=8)
    small = replace(narrow, stem="small")
    check_crop(small, built_for=128, crop_size=8)


@pytest.mark.parametrize(
    ("name", "crop_size", "message"),
    [
        ("timm:vit_tiny_patch16_224", 96, "works at one size, here 224 px"),
        ("timm:resnet18", 31, "32 px or more"),
    ],
)
def test_a_timm_model_that_cannot_take_the_crop_is_refused(name, crop_size, message):
    config = BackboneConfig(name=name)
    check_crop(config, built_for=224, crop_size=224)
    with pytest.raises(ValueError, match=message):
        check_crop(config, built_for=224, crop_size=crop_size)


@pytest.mark.parametrize(
    ("config", "built_for"),
    [
        (BackboneConfig(widths=(4, 8)), 16),
        (BackboneConfig(widths=(4, 8)), 48),
        (BackboneConfig(widths=(4, 8)), 112),
        (BackboneConfig(name="resnet18"), 224),
    ],
    ids=str,
)
def test_the_smallest_crop_that_is_allowed_gives_features(config, built_for):
    crop_size = 8
    while True:
        try:
            check_crop(config, built_for=built_for, crop_size=crop_size)
            break
        except ValueError:
            crop_size += 1
    backbone = build_backbone(config, built_for)
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, crop_size, crop_size))
    assert features.shape == (2, backbone.feature_dim)
    assert features.std() > 0
