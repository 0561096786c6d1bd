import copy

import pytest
import torch
from torch import nn

from encoders import batchnorm
from encoders.backbone import BackboneConfig, build_backbone
from encoders.batchnorm import (
    CrossRankBatchNorm,
    SplitBatchNorm,
    convert_batchnorm,
    hold_running_statistics,
    paused_statistics,
    split_batchnorm,
)
from encoders.collective import average, rank

CPU = torch.device("cpu")
SHAPES = [(8, 3), (8, 3, 4, 5)]
PARTS = {"equal": (4, 4), "unequal": (6, 2)}


def batch(shape: tuple[int, ...], offset: float = 0.0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + offset
    return x.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make(kind: type, *, affine: bool = True, momentum: float | None = 0.1):
    norm = kind(3, affine=affine, momentum=momentum).double()
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
    return norm


def run(norm: nn.Module, x: torch.Tensor, slope: torch.Tensor) -> dict:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * slope).sum().backward()
    figures = {"y": y.detach(), "x_grad": x.grad}
    figures |= {name: buffer.clone() for name, buffer in norm.named_buffers()}
    return figures | {f"{name}_grad": p.grad for name, p in norm.named_parameters()}


def on_this_rank(shape, parts, affine, momentum) -> dict:
    x, slope = batch(shape)
    norm = make(CrossRankBatchNorm, affine=affine, momentum=momentum)
    figures = run(norm, x.split(parts)[rank()], slope.split(parts)[rank()])
    gradients = [figures[f"{name}_grad"] for name, _ in norm.named_parameters()]
    if gradients:
        average(gradients)
    return {name: value.tolist() for name, value in figures.items()}


def far_from_zero_on_this_rank(parts) -> list:
    x, _ = batch((8, 3), offset=1e4, dtype=torch.float32)
    norm = CrossRankBatchNorm(3)
    return norm(x.split(parts)[rank()]).tolist()


def in_half_precision_on_this_rank(parts) -> tuple[str, list]:
    x, slope = (t.split(parts)[rank()].bfloat16() for t in batch((8, 3, 4, 5)))
    figures = run(CrossRankBatchNorm(3), x, slope)
    return str(figures["y"].dtype), figures["x_grad"].float().tolist()


def in_eval_mode_on_this_rank() -> list:
    norm = make(CrossRankBatchNorm).eval()
    return norm(batch((8, 3))[0] + rank()).tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize(("affine", "momentum"), [(True, 0.1), (False, 0.1), (True, None)])
def test_two_ranks_equal_torchs_batchnorm_on_the_whole_batch(ranks, shape, parts, affine, momentum):
    x, slope = batch(shape)
    dimensional = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    expected = run(make(dimensional, affine=affine, momentum=momentum), x, slope)
    found = ranks(on_this_rank, shape, parts, affine, momentum)
    for name, value in expected.items():
        pieces = [torch.tensor(answer[name], dtype=value.dtype) for answer in found]
        if name in ("y", "x_grad"):
            torch.testing.assert_close(torch.cat(pieces), value)
        else:
            # Parameter gradients are averaged over ranks where one process sums over the batch.
            scale = 2 if name.endswith("_grad") else 1
            for piece in pieces:
                torch.testing.assert_close(piece * scale, value)


def test_a_mean_far_from_zero_does_not_eat_the_variance(ranks):
    x, _ = batch((8, 3), offset=1e4, dtype=torch.float32)
    found = torch.tensor(
        [row for part in ranks(far_from_zero_on_this_rank, (6, 2)) for row in part]
    )
    expected = nn.BatchNorm1d(3).double()(x.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=0)


def test_half_precision_stays_near_full_precision(ranks):
    expected = run(nn.BatchNorm2d(3).double(), *batch((8, 3, 4, 5)))["x_grad"]
    answers = ranks(in_half_precision_on_this_rank, (6, 2))
    found = torch.cat([torch.tensor(x_grad) for _, x_grad in answers])
    assert [dtype for dtype, _ in answers] == ["torch.bfloat16"] * 2
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)


def test_eval_mode_uses_running_statistics_on_every_rank_alone(ranks):
    expected = make(nn.BatchNorm1d).eval()
    for which, found in enumerate(ranks(in_eval_mode_on_this_rank)):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), expected(batch((8, 3))[0] + which)
        )


class NormThenSwish(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation is part of the module."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, input):
        return self.act(self.drop(super().forward(input)))


def test_the_activation_inside_a_norm_survives_every_conversion():
    x = batch((8, 3, 4, 5))[0]
    plain = nn.Sequential(NormThenSwish(3), nn.Conv2d(3, 2, 1)).double()
    expected = copy.deepcopy(plain)(x)
    for kind in (CPU, torch.device("cuda")):
        converted = convert_batchnorm(copy.deepcopy(plain), kind)
        torch.testing.assert_close(converted(x), expected)
        assert converted.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(copy.deepcopy(converted)(x), expected)
    split = split_batchnorm(convert_batchnorm(copy.deepcopy(plain), CPU), 2)
    halves = [copy.deepcopy(plain)(half) for half in x.chunk(2)]
    torch.testing.assert_close(split(x), torch.cat(halves))


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:efficientnet_b0"])
def test_a_converted_timm_network_computes_what_timms_own_does(name):
    pytest.importorskip("timm")
    backbone = build_backbone(BackboneConfig(name=name), 32).double().train()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = copy.deepcopy(backbone)(x)
    found = convert_batchnorm(backbone, CPU)(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [CrossRankBatchNorm, nn.BatchNorm1d, nn.SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_paused_statistics_stay_while_the_batch_is_still_normalised_by_its_own(kind, momentum):
    x, _ = batch((8, 3), offset=5.0)
    norm, twin = (make(kind, momentum=momentum) for _ in range(2))
    expected = twin(x)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    with paused_statistics(nn.Sequential(norm)):
        torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    norm(x)
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, before["running_mean"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_process_equals_torchs_batchnorm(shape):
    x, slope = batch(shape)
    dimensional = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    expected, found = run(make(dimensional), x, slope), run(make(CrossRankBatchNorm), x, slope)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_gradients_in_float32_are_those_of_float64_to_rounding():
    generator = torch.Generator().manual_seed(0)
    x, slope = (torch.randn((64, 3, 16, 16), generator=generator) for _ in range(2))
    x, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x + 1, slope))
    exact = run(make(CrossRankBatchNorm), x.double(), slope.double())
    found = run(make(CrossRankBatchNorm).float(), x, slope)
    for name in ("y", "x_grad", "weight_grad", "bias_grad"):
        error = (found[name] - exact[name]).norm() / exact[name].norm()
        assert error < 5e-7, f"{name}: {error}"


def test_converting_keeps_values_names_and_modes():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4))
    )
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parameters = list(net.parameters())
    converted = convert_batchnorm(net, CPU)
    assert [type(converted[1]), type(converted[2][0])] == [CrossRankBatchNorm] * 2
    assert (converted[1].eps, converted[1].training, converted[2][0].training) == (
        1e-3,
        True,
        False,
    )
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    plain.load_state_dict(converted.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def test_converting_leaves_split_groups_alone():
    net = convert_batchnorm(split_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), 2), CPU)
    assert isinstance(net[0], SplitBatchNorm)
    assert net[0].num_groups == 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_split_groups_are_normalised_apart(shape):
    x, _ = batch(shape)
    split = split_batchnorm(make(nn.BatchNorm1d), 4)
    before = split.running_mean.clone()
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    expected = torch.cat([make(kind)(group) for group in x.split(2)])
    assert torch.equal(split(x), expected)
    assert torch.equal(split.running_mean, before)


def test_split_groups_use_running_statistics_in_eval_mode():
    x, _ = batch((8, 3))
    split = split_batchnorm(make(nn.BatchNorm1d), 3).eval()
    assert torch.equal(split(x), make(nn.BatchNorm1d).eval()(x))


def test_rows_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 3\) for 3 groups.*key_groups"):
        split_batchnorm(make(nn.BatchNorm1d), 3)(batch((8, 3))[0])


def test_held_statistics_do_not_move_but_normalisation_stays():
    x, _ = batch((8, 3))
    norm = make(CrossRankBatchNorm)
    hold_running_statistics(norm)
    before = norm.running_mean.clone(), norm.running_var.clone()
    torch.testing.assert_close(norm(x), make(nn.BatchNorm1d)(x))
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


def big_batch(dtype: torch.dtype, offset: float = 0.0):
    """More rows than a block of the compiled passes, and a last block that is not full."""
    return batch((7, 3, 25, 24), offset, dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_passes_compute_what_float64_computes(layout):
    x, slope = (t.contiguous(memory_format=layout) for t in big_batch(torch.float32))
    found = run(make(CrossRankBatchNorm).float(), x, slope)
    expected = run(make(nn.BatchNorm2d), x.double(), slope.double())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), atol=1e-5, rtol=2e-6)


def test_compiled_passes_agree_with_those_of_torch(monkeypatch):
    x, slope = big_batch(torch.float32, offset=100)
    found = run(make(CrossRankBatchNorm).float(), x, slope)
    monkeypatch.setattr(batchnorm, "_is_compiled", lambda _: False)
    expected = run(make(CrossRankBatchNorm).float(), x, slope)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=1e-4)


def test_threads_change_no_bit_of_batchnorm():
    x, slope = big_batch(torch.float32)
    before, answers = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        answers.append(run(make(CrossRankBatchNorm).float(), x, slope))
    torch.set_num_threads(before)
    for one, other in zip(*(answer.values() for answer in answers), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 7), (64, 3, 6, 5)], ids=str)
def test_what_follows_may_work_in_place_on_what_is_normalised(shape):
    """As ReLU does in most networks."""
    x, slope = batch(shape, dtype=torch.float32)
    plain = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    gradients = []
    for norm in (plain, CrossRankBatchNorm(3)):
        given = x.clone().requires_grad_()
        torch.relu_(norm(given)).backward(slope)
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_channel_that_is_constant_and_far_from_zero_has_no_variance():
    x = torch.full((3000, 3), 12345.678)
    norm = CrossRankBatchNorm(3)
    norm(x)
    assert torch.equal(norm.running_var, torch.full((3,), 0.9))
