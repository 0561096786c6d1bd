"""What is drawn for views is distributed as in torchvision v2's transforms of the same settings.

Two samples of 4,000 of one distribution are further apart than 0.0436, in the sense of Kolmogorov
and Smirnov, once in a thousand times; shares of 4,000 stay within five standard deviations.
"""

import math

import pytest
import torch
import torchvision.transforms.v2 as T
from scipy.stats import ks_2samp

from encoders.augment import DRAWS, AugmentConfig, view_parameters
from encoders.counter_rng import uniform_VNK

NUM = 4000
FURTHEST = 0.0436
CONFIG = AugmentConfig(
    crop_scale=(0.08, 1.0),
    brightness=0.8,
    contrast=0.4,
    saturation=1.2,
    hue=0.2,
    flip_probability=0.4,
    jitter_probability=0.8,
    gray_probability=0.2,
    blur_probability=0.5,
    solarise_probability=0.1,
)
JITTER = T.ColorJitter(0.8, 0.4, 1.2, 0.2)


def drawn(height: int = 200, width: int = 300, seed: int = 0):
    """Half of the pictures' draws are of each of two views."""
    ids = torch.arange(NUM // 2) * 3
    draws_VNK = uniform_VNK(seed, 4, ids, [0, 1], sum(DRAWS))
    return view_parameters(draws_VNK.flatten(0, 1), CONFIG, height, width, NUM // 2)


@pytest.fixture(scope="module")
def jitters():
    torch.manual_seed(0)
    return [JITTER.make_params([]) for _ in range(NUM)]


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ks_2samp(ours.numpy(), theirs.numpy()).statistic < FURTHEST


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 600), (500, 100)])
def test_area_ratio_and_place_of_crops(height, width):
    torch.manual_seed(1)
    crop = T.RandomResizedCrop(8, scale=CONFIG.crop_scale, ratio=CONFIG.crop_ratio)
    picture = torch.empty(1, height, width)
    params = [crop.make_params([picture]) for _ in range(NUM)]
    theirs = torch.tensor([[p["left"], p["top"], p["width"], p["height"]] for p in params])
    found = []
    for boxes in (drawn(height, width).boxes, theirs.float()):
        left, top, *edges = boxes.unbind(1)
        wide, high = (edge.round() for edge in edges)  # As torchvision does, as soon as drawn.
        places = [left / (width - wide).clamp_min(1), top / (height - high).clamp_min(1)]
        found.append([wide * high, (wide / high).log(), wide, high, *places])
    for figure, (ours, other) in enumerate(zip(*found, strict=True)):
        if figure < 4:  # Places in little room are mostly the rounding.
            assert_alike(ours, other)
        else:
            assert abs(ours.mean() - other.mean()) < 0.03
            assert abs(ours.std() - other.std()) < 0.03


@pytest.mark.parametrize("kind", range(4))
def test_factors_of_the_jitter(jitters, kind):
    name = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")[kind]
    theirs = torch.tensor([params[name] for params in jitters])
    ours = drawn().amounts[:, kind]
    assert_alike(ours, theirs)
    assert ours.min() >= theirs.min() - 0.01
    assert ours.max() <= theirs.max() + 0.01


def test_orders_of_the_jitter(jitters):
    theirs = torch.stack([params["fn_idx"] for params in jitters])
    kinds = drawn().kinds
    ours = kinds[kinds[:, 0] >= 0]
    powers = torch.tensor([64, 16, 4, 1])
    counts = [torch.bincount(orders @ powers, minlength=256).float() for orders in (ours, theirs)]
    for count, orders in zip(counts, (ours, theirs), strict=True):
        seen = count[count > 0]
        assert len(seen) == 24
        # Pearson's sum over 24 orders: 23 degrees of freedom, 49.7 once in a thousand times.
        assert ((seen - len(orders) / 24) ** 2 / (len(orders) / 24)).sum() < 49.7
    assert torch.equal(counts[0] > 0, counts[1] > 0)


def test_order_and_factors_of_the_jitter_know_nothing_of_each_other():
    parameters = drawn()
    on = parameters.kinds[:, 0] >= 0
    columns = torch.cat([parameters.kinds.argsort(1)[on].float(), parameters.amounts[on]], dim=1)
    correlation = torch.corrcoef(columns.T)
    assert correlation[:4, 4:].abs().max() < 5 / math.sqrt(int(on.sum()))
    apart = correlation[4:, 4:] - torch.eye(4)
    assert apart.abs().max() < 5 / math.sqrt(int(on.sum()))


def test_sigmas_of_the_blur():
    torch.manual_seed(2)
    blur = T.GaussianBlur(9, CONFIG.blur_sigma)
    theirs = torch.tensor([blur.make_params([])["sigma"][0] for _ in range(NUM)])
    assert_alike(drawn().sigmas, theirs)


def test_shares_of_pictures_that_are_changed():
    parameters = drawn()
    shares = {
        "flip": parameters.flips,
        "jitter": parameters.kinds[:, 0] >= 0,
        "gray": parameters.grays,
        "blur": parameters.blurs,
        "solarise": parameters.solarised,
    }
    for name, chosen in shares.items():
        share = getattr(CONFIG, f"{name}_probability")
        bound = 5 * math.sqrt(share * (1 - share) / NUM)
        assert abs(chosen.float().mean() - share) < bound, name
    table = torch.stack([chosen.float() for chosen in shares.values()])
    apart = torch.corrcoef(table) - torch.eye(len(shares))
    assert apart.abs().max() < 5 / math.sqrt(NUM)


def test_two_views_of_a_picture_know_nothing_of_each_other():
    parameters = drawn()
    for figures in (parameters.boxes, parameters.amounts):
        first, second = figures.chunk(2)
        for column in range(4):
            pair = torch.stack([first[:, column], second[:, column]])
            assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(NUM // 2)
