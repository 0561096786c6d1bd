import math

import pytest
import torch
import torch.nn.functional as F

from encoders import blockwise
from encoders.collective import average, rank
from encoders.losses import (
    byol_loss,
    check_temperature,
    info_nce,
    mutual_information_bound,
    nt_xent,
    sup_con,
    unit_rows,
)

NUM, DIM, TAU = 4, 5, 0.3
IDS = torch.arange(NUM)
LABELS = torch.tensor([0, 1, 0, 2])


def views(num: int = NUM, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, num, DIM, generator=generator, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def naive_nt_xent(a, b, ids, temperature) -> float:
    rows = [(x, int(i), v) for v, view in enumerate((a, b)) for x, i in zip(view, ids, strict=True)]
    losses = []
    for place, (x, picture, view) in enumerate(rows):
        partner = (place + len(a)) % len(rows)
        total = 0.0
        for other, (y, its_picture, _) in enumerate(rows):
            if other == partner or its_picture != picture:
                total += math.exp(cosine(x, y) / temperature)
        losses.append(math.log(total) - cosine(x, rows[partner][0]) / temperature)
        assert view in (0, 1)
    return sum(losses) / len(losses)


def naive_info_nce(q, k, ids, negatives, negative_ids, temperature) -> float:
    losses = []
    for x, key, picture in zip(q, k, ids, strict=True):
        total = math.exp(cosine(x, key) / temperature)
        for y, its_picture in zip(negatives, negative_ids, strict=True):
            if its_picture >= 0 and its_picture != picture:
                total += math.exp(cosine(x, y) / temperature)
        losses.append(math.log(total) - cosine(x, key) / temperature)
    return sum(losses) / len(losses)


def naive_sup_con(a, b, labels, temperature) -> float:
    rows = [(x, int(c)) for view in (a, b) for x, c in zip(view, labels, strict=True) if c >= 0]
    losses = []
    for place, (x, label) in enumerate(rows):
        others = [row for other, row in enumerate(rows) if other != place]
        total = sum(math.exp(cosine(x, y) / temperature) for y, _ in others)
        terms = [math.log(total) - cosine(x, y) / temperature for y, c in others if c == label]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


def dense_nt_xent(a, b, ids, temperature) -> torch.Tensor:
    """The whole matrix, in float64."""
    rows = unit_rows(torch.cat([a, b]).double())
    partner = torch.arange(len(rows)).roll(len(a))
    excluded = (ids.repeat(2)[:, None] == ids.repeat(2)).scatter(1, partner[:, None], False)
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(excluded, -math.inf), partner)


def dense_info_nce(q, k, ids, negatives, negative_ids, temperature) -> torch.Tensor:
    q, k = unit_rows(q.double()), unit_rows(k.double())
    excluded = (ids[:, None] == negative_ids) | (negative_ids < 0)
    logits_of_negatives = (q @ negatives.double().T).masked_fill(excluded, -math.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True), logits_of_negatives], 1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(ids))


def dense_sup_con(a, b, labels, temperature) -> torch.Tensor:
    labelled = labels.repeat(2) >= 0
    rows, classes = unit_rows(torch.cat([a, b]).double())[labelled], labels.repeat(2)[labelled]
    itself = torch.eye(len(rows), dtype=torch.bool)
    logits = rows @ rows.T / temperature
    log_p = logits - logits.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    positive = (classes[:, None] == classes) & ~itself
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "sup_con"])
def test_many_tiles_in_float32_equal_the_whole_matrix_in_float64(monkeypatch, name, temperature):
    monkeypatch.setattr(blockwise, "TILE_EDGE_CPU", 64)
    num = 150
    ids = torch.arange(num) % 140  # ten pictures are twice in the batch
    labels = torch.arange(num) % 7 - 1
    negatives, negative_ids = unit_rows(views(200, torch.float32)[1]), torch.arange(200) - 20
    found, expected = {
        "nt_xent": (
            lambda a, b: nt_xent(a, b, ids, temperature=temperature),
            lambda a, b: dense_nt_xent(a, b, ids, temperature),
        ),
        "info_nce": (
            lambda a, b: info_nce(a, b, ids, negatives, negative_ids, temperature=temperature),
            lambda a, b: dense_info_nce(a, b, ids, negatives, negative_ids, temperature),
        ),
        "sup_con": (
            lambda a, b: sup_con(a, b, labels, temperature=temperature),
            lambda a, b: dense_sup_con(a, b, labels, temperature),
        ),
    }[name]
    results = []
    for loss_of in (found, expected):
        leaves = [view.requires_grad_() for view in views(num, torch.float32)]
        loss = loss_of(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for got, wanted in zip(*results, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-5, atol=1e-5 * scale)


def test_nt_xent_equals_a_loop():
    a, b = views()
    expected = naive_nt_xent(a, b, IDS, TAU)
    assert nt_xent(a, b, IDS, temperature=TAU).item() == pytest.approx(expected, rel=1e-12)


def test_nt_xent_does_not_push_apart_a_picture_that_is_twice_in_the_batch():
    a, b = views()
    ids = torch.tensor([7, 3, 7, 5])
    expected = naive_nt_xent(a, b, ids, TAU)
    assert nt_xent(a, b, ids, temperature=TAU).item() == pytest.approx(expected, rel=1e-12)
    assert expected < naive_nt_xent(a, b, IDS, TAU)


def test_nt_xent_of_equal_embeddings_is_the_log_of_all_candidates():
    same = torch.ones(NUM, DIM)
    loss = nt_xent(same, same, IDS, temperature=0.07)
    assert loss.item() == pytest.approx(math.log(2 * NUM - 1), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_of_orthonormal_pairs_has_its_closed_form(temperature):
    basis = torch.eye(NUM, dtype=torch.float64)
    expected = math.log(math.exp(1 / temperature) + 2 * NUM - 2) - 1 / temperature
    loss = nt_xent(basis, basis, IDS, temperature=temperature).item()
    assert loss == pytest.approx(expected, rel=1e-9)


def test_nt_xent_ignores_order_views_and_lengths():
    a, b = views()
    loss = nt_xent(a, b, IDS, temperature=TAU)
    order = torch.tensor([2, 0, 3, 1])
    for other in (
        nt_xent(b, a, IDS, temperature=TAU),
        nt_xent(a[order], b[order], IDS[order], temperature=TAU),
        nt_xent(a * 10, b * 0.1, IDS, temperature=TAU),
    ):
        torch.testing.assert_close(other, loss)


def test_info_nce_equals_a_loop_and_masks_own_and_unfilled_rows():
    q, k = views()
    negatives = unit_rows(views(9)[0])
    negative_ids = torch.tensor([9, 0, 8, -1, 2, 2, -1, 11, 12])
    arguments = (q, k, IDS, negatives, negative_ids)
    expected = naive_info_nce(*arguments, TAU)
    assert info_nce(*arguments, temperature=TAU).item() == pytest.approx(expected, rel=1e-12)
    poisoned = negatives.clone()
    poisoned[negative_ids == -1] = q[0]
    arguments = (q, k, IDS, poisoned, negative_ids)
    assert info_nce(*arguments, temperature=TAU).item() == pytest.approx(expected, rel=1e-12)


def test_info_nce_is_zero_against_an_empty_queue_and_has_no_gradient():
    q, k = views()
    q.requires_grad_()
    loss = info_nce(q, k, IDS, torch.zeros(3, DIM), torch.full((3,), -1), temperature=TAU)
    loss.backward()
    assert loss.item() == 0
    assert q.grad.abs().max() == 0


def test_info_nce_vanishes_for_a_positive_orthogonal_to_the_queue():
    basis = torch.eye(DIM, dtype=torch.float64)
    losses = [
        info_nce(basis[:2], basis[:2], IDS[:2], basis[2:], IDS[:3] + 10, temperature=t).item()
        for t in (0.5, 0.1, 0.01)
    ]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] == pytest.approx(0, abs=1e-12)


def test_sup_con_equals_a_loop():
    a, b = views()
    expected = naive_sup_con(a, b, LABELS, TAU)
    assert sup_con(a, b, LABELS, temperature=TAU).item() == pytest.approx(expected, rel=1e-12)


def test_sup_con_with_a_class_for_each_picture_is_nt_xent():
    a, b = views()
    torch.testing.assert_close(
        sup_con(a, b, IDS, temperature=TAU), nt_xent(a, b, IDS, temperature=TAU)
    )


def test_sup_con_averages_outside_the_log():
    """Two pictures of one class at right angles: here the L_in form has another value."""
    basis = torch.eye(2, dtype=torch.float64)
    total = math.log(math.exp(1 / TAU) + 2)
    expected = total - (1 / TAU + 0 + 0) / 3
    loss = sup_con(basis, basis, torch.zeros(2, dtype=torch.int64), temperature=TAU).item()
    assert loss == pytest.approx(expected, rel=1e-12)


def test_sup_con_takes_unlabelled_pictures_out():
    a, b = views()
    labels = torch.tensor([0, -1, 0, 1])
    a.requires_grad_()
    loss = sup_con(a, b, labels, temperature=TAU)
    kept = labels >= 0
    torch.testing.assert_close(loss, sup_con(a[kept], b[kept], labels[kept], temperature=TAU))
    loss.backward()
    assert a.grad[1].abs().max() == 0
    assert a.grad[kept].abs().min(dim=1).values.min() > 0


def test_sup_con_without_any_label_is_zero_and_finite():
    a, b = views()
    a.requires_grad_()
    loss = sup_con(a, b, torch.full((NUM,), -1), temperature=TAU)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.abs().max() == 0


def test_byol_is_the_squared_distance_of_unit_vectors():
    a, b = views()
    expected = (unit_rows(a) - unit_rows(b)).square().sum(1).mean()
    torch.testing.assert_close(byol_loss(a, b), expected)
    assert byol_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-12)
    assert byol_loss(a, -a).item() == pytest.approx(4, rel=1e-12)


def test_byol_sends_no_gradient_to_the_target():
    a, b = (view.requires_grad_() for view in views())
    byol_loss(a, b).backward()
    assert b.grad is None
    assert a.grad.abs().max() > 0


@pytest.mark.parametrize("edge", [3, blockwise.TILE_EDGE_CPU])
def test_gradients_are_those_of_finite_differences(monkeypatch, edge):
    monkeypatch.setattr(blockwise, "TILE_EDGE_CPU", edge)
    a, b = (view.requires_grad_() for view in views())
    negatives = unit_rows(views(3)[1]).detach()
    labels = torch.tensor([0, -1, 0, 1])
    for loss in (
        lambda x, y: nt_xent(x, y, IDS, temperature=TAU),
        lambda x, y: sup_con(x, y, labels, temperature=TAU),
        lambda x, y: info_nce(x, y, IDS, negatives, torch.tensor([0, 9, 8]), temperature=TAU),
    ):
        assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradcheck(lambda x: byol_loss(x, b), (a,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_and_tiny_temperatures_stay_finite(dtype):
    a, b = (view.requires_grad_() for view in views(dtype=dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(a, b, IDS, temperature=0.005)
        loss = loss + sup_con(a, b, LABELS, temperature=0.005)
    assert loss.dtype == torch.float32
    loss.backward()
    assert a.grad.isfinite().all()


def test_autocast_does_not_change_a_loss():
    a, b = views(dtype=torch.float32)
    plain = nt_xent(a, b, IDS, temperature=TAU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(a, b, IDS, temperature=TAU), plain)


def test_autocast_around_backward_does_not_change_a_gradient():
    gradients = []
    for enabled in (False, True):
        a, b = (view.requires_grad_() for view in views(dtype=torch.float32))
        loss = nt_xent(a, b, IDS, temperature=TAU) + sup_con(a, b, LABELS, temperature=TAU)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss.backward()
        gradients.append(torch.cat([a.grad, b.grad]))
    assert torch.equal(*gradients)


def test_a_loss_near_zero_keeps_its_digits():
    """1 - p would round to 0 here; the loss is what the negatives weigh."""
    basis = torch.eye(NUM)
    expected = math.log1p((2 * NUM - 2) * math.exp(-1 / 0.05))
    loss = nt_xent(basis, basis, IDS, temperature=0.05)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_one_picture_has_no_negatives_and_no_gradient():
    a, b = (view[:1].requires_grad_() for view in views())
    loss = nt_xent(a, b, IDS[:1], temperature=TAU)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.abs().max() == 0


def test_a_zero_embedding_gives_a_finite_gradient():
    a, b = views(dtype=torch.float32)
    a[0] = 0
    a.requires_grad_()
    nt_xent(a, b, IDS, temperature=TAU).backward()
    assert a.grad.isfinite().all()


def test_the_information_bound_stays_below_the_truth_and_its_ceiling():
    """Correlated Gaussians, scored by their true density ratio: the best critic there is."""
    correlation, num = 0.9, 256
    truth = -0.5 * math.log(1 - correlation**2)
    generator = torch.Generator().manual_seed(0)
    bounds = []
    for _ in range(20):
        x, noise = torch.randn(2, num, generator=generator, dtype=torch.float64)
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        scores = -(
            ((y[None] - correlation * x[:, None]) ** 2) / (2 * (1 - correlation**2)) - y**2 / 2
        )
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(num)).item()
        bounds.append(mutual_information_bound(loss, num))
    mean = sum(bounds) / len(bounds)
    assert 0.8 * truth < mean < truth + 0.05
    assert mutual_information_bound(0.0, num) == math.log(num)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_a_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .* above 0"):
        check_temperature(temperature)


def gradients_of_losses(edge: int) -> dict[str, tuple[list, list, float]]:
    """Gradients of every loss for all embeddings, from this rank's half of the batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "TILE_EDGE_CPU", edge)
        return _gradients_of_losses()


def _gradients_of_losses() -> dict[str, tuple[list, list, float]]:
    half = slice(2 * rank(), 2 * rank() + 2) if torch.distributed.is_initialized() else slice(None)
    labels = torch.tensor([0, 1, 0, -1])
    ids = torch.tensor([4, 9, 4, 6])
    results = {}
    for name in ("nt_xent", "sup_con"):
        a, b = (view.requires_grad_() for view in views())
        if name == "nt_xent":
            loss = nt_xent(a[half], b[half], ids[half], temperature=TAU)
        else:
            loss = sup_con(a[half], b[half], labels[half], temperature=TAU)
        loss.backward()
        value = loss.detach()
        average([a.grad, b.grad, value])
        results[name] = (a.grad.tolist(), b.grad.tolist(), value.item())
    return results


@pytest.mark.parametrize("edge", [3, blockwise.TILE_EDGE_CPU])
def test_two_ranks_give_the_gradients_of_one_process(ranks, edge):
    expected = gradients_of_losses(blockwise.TILE_EDGE_CPU)
    for found in ranks(gradients_of_losses, edge):
        for name, parts in expected.items():
            for got, wanted in zip(found[name], parts, strict=True):
                torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted))
