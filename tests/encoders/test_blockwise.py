import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encoders import blockwise
from encoders.blockwise import log_sum_exp
from encoders.losses import info_nce, nt_xent, sup_con

NUM_ANCHORS, NUM_CANDIDATES, DIM = 7, 11, 4
# Twice in a row, twice in a column, in one side only, and out of every sum.
IDS_A = torch.tensor([0, 1, 2, 2, 3, 9, 5])
IDS_C = torch.tensor([2, 0, -1, 7, 7, 2, 5, 8, -1, 1, 6])


@pytest.fixture
def tile_edge(monkeypatch):
    return lambda edge: monkeypatch.setattr(blockwise, "TILE_EDGE_CPU", edge)


def rows(num: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, DIM, generator=generator, dtype=torch.float64).to(dtype)


def sides(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    anchors, candidates = rows(NUM_ANCHORS, 1, dtype), rows(NUM_CANDIDATES, 2, dtype)
    return anchors.requires_grad_(), candidates.requires_grad_()


def dense(anchors, candidates, ids_a, ids_c) -> torch.Tensor:
    excluded = (ids_a[:, None] == ids_c) | (ids_c < 0)
    return (anchors @ candidates.T).masked_fill(excluded, -math.inf).logsumexp(1)


def value_and_gradients(function, anchors, candidates, *ids) -> tuple[torch.Tensor, ...]:
    sums = function(anchors, candidates, *ids)
    weights = torch.linspace(-1, 2, len(sums), dtype=sums.dtype, device=sums.device)
    return sums.detach(), *torch.autograd.grad((sums * weights).sum(), (anchors, candidates))


def test_a_sum_equals_a_loop(tile_edge):
    tile_edge(3)
    anchors, candidates = (side.detach() for side in sides())
    for x, its_id, found in zip(
        anchors, IDS_A, log_sum_exp(anchors, candidates, IDS_A, IDS_C), strict=True
    ):
        total = sum(
            math.exp(float(x @ y))
            for y, other in zip(candidates, IDS_C, strict=True)
            if other >= 0 and other != its_id
        )
        assert found.item() == pytest.approx(math.log(total), rel=1e-12)


@pytest.mark.parametrize("edge", [1, 3, 7, 100])
def test_tiles_give_the_values_and_gradients_of_the_whole_matrix(tile_edge, edge):
    tile_edge(edge)
    found = value_and_gradients(log_sum_exp, *sides(), IDS_A, IDS_C)
    expected = value_and_gradients(dense, *sides(), IDS_A, IDS_C)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("edge", [2, 100])
def test_gradients_are_those_of_finite_differences(tile_edge, edge):
    tile_edge(edge)
    assert torch.autograd.gradcheck(lambda x, y: log_sum_exp(x, y, IDS_A, IDS_C), sides())


@settings(deadline=None, max_examples=30)
@given(
    num_anchors=st.integers(1, 9),
    num_candidates=st.integers(1, 9),
    edge=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_neither_tiles_nor_the_order_of_candidates_matter(num_anchors, num_candidates, edge, seed):
    generator = torch.Generator().manual_seed(seed)
    ids_a = torch.randint(-1, 4, (num_anchors,), generator=generator)
    ids_c = torch.randint(-1, 4, (num_candidates,), generator=generator)
    anchors, candidates = rows(num_anchors, seed), rows(num_candidates, seed + 1)
    order = torch.randperm(num_candidates, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "TILE_EDGE_CPU", edge)
        found = log_sum_exp(anchors, candidates[order], ids_a, ids_c[order])
    torch.testing.assert_close(found, dense(anchors, candidates, ids_a, ids_c))


@pytest.mark.parametrize("edge", [2, 100])
def test_an_anchor_without_candidates_has_minus_infinity_and_no_gradient(tile_edge, edge):
    tile_edge(edge)
    anchors, candidates = sides()
    ids_c = torch.where(torch.arange(NUM_CANDIDATES) % 2 == 0, 5, -1)
    sums = log_sum_exp(anchors, candidates, IDS_A, ids_c)
    assert sums[6] == -math.inf
    assert sums[:6].isfinite().all()
    torch.nn.functional.softplus(sums).sum().backward()
    assert anchors.grad[6].abs().max() == 0
    assert anchors.grad[:6].abs().min(1).values.min() > 0
    assert candidates.grad[1::2].abs().max() == 0
    assert candidates.grad.isfinite().all()


def test_no_candidates_at_all_is_minus_infinity_everywhere():
    sums = log_sum_exp(rows(3, 1), rows(0, 2), IDS_A[:3], IDS_C[:0])
    assert sums.tolist() == [-math.inf] * 3


@pytest.mark.parametrize("temperature", [0.005, 0.07, 0.5])
def test_float32_keeps_its_precision_at_any_temperature(tile_edge, temperature):
    tile_edge(3)
    unit = [torch.nn.functional.normalize(side.detach(), dim=1) for side in sides()]
    wide = [(unit[0] / temperature).requires_grad_(), unit[1].clone().requires_grad_()]
    narrow = [side.detach().float().requires_grad_() for side in wide]
    found = value_and_gradients(log_sum_exp, *narrow, IDS_A, IDS_C)
    expected = value_and_gradients(dense, *wide, IDS_A, IDS_C)
    # Rounding of a logit, which is 1 / temperature at most, is its share of an exponential.
    tolerance = 1e-6 * max(1, 0.2 / temperature)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_autocast_changes_neither_values_nor_gradients(tile_edge):
    tile_edge(3)
    plain = value_and_gradients(log_sum_exp, *sides(torch.float32), IDS_A, IDS_C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = value_and_gradients(log_sum_exp, *sides(torch.float32), IDS_A, IDS_C)
    assert all(torch.equal(*pair) for pair in zip(plain, under, strict=True))


@pytest.mark.gpu
def test_a_gpu_gives_the_values_and_gradients_of_the_cpu(monkeypatch):
    monkeypatch.setattr(blockwise, "TILE_EDGE_GPU", 3)
    on_gpu = [x.detach().cuda().requires_grad_() for x in sides()]
    found = value_and_gradients(log_sum_exp, *on_gpu, IDS_A.cuda(), IDS_C.cuda())
    expected = value_and_gradients(dense, *sides(), IDS_A, IDS_C)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-12, atol=1e-12)


def test_a_nan_is_not_hidden():
    anchors, candidates = sides()
    with torch.no_grad():
        candidates[3, 0] = math.nan
    assert log_sum_exp(anchors, candidates, IDS_A, IDS_C).isnan().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "sup_con"])
def test_no_tensor_of_a_loss_is_larger_than_its_embeddings_or_a_tile(tile_edge, name):
    num, edge = 120, 16
    tile_edge(edge)
    a, b = rows(num, 1).requires_grad_(), rows(num, 2).requires_grad_()
    ids, labels = torch.arange(num), torch.arange(num) % 5 - 1
    negatives, negative_ids = rows(2 * num, 3), torch.arange(2 * num) + num
    with LargestTensor() as largest:
        loss = {
            "nt_xent": lambda: nt_xent(a, b, ids, temperature=0.2),
            "info_nce": lambda: info_nce(a, b, ids, negatives, negative_ids, temperature=0.2),
            "sup_con": lambda: sup_con(a, b, labels, temperature=0.2),
        }[name]()
        loss.backward()
    assert largest.num_elements <= max(2 * num * DIM, edge**2)
