"""A batch in chunks: the same gradients, less memory, and BatchNorm as it is said to be."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from encoders.backbone import Backbone
from encoders.batchnorm import SplitBatchNorm, convert_batchnorm
from encoders.byol import BYOLConfig
from encoders.grad_cache import forward_backward
from encoders.heads import PredictorConfig
from encoders.losses import byol_loss, info_nce, nt_xent, sup_con, unit_rows
from encoders.method import Batch, Method, Parts
from encoders.moco import SHUFFLE_FAMILY, MoCoConfig
from encoders.sampler import permutation
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig

NUM, TAU = 16, 0.3
CONFIGS = {
    "simclr": SimCLRConfig(temperature=TAU),
    "moco": MoCoConfig(temperature=TAU, queue_size=24, key_groups=2),
    "byol": BYOLConfig(predictor=PredictorConfig(hidden_dim=7, batch_norm=False)),
    "supcon": SupConConfig(temperature=TAU),
}
WITH_NORM = CONFIGS | {"byol": BYOLConfig(predictor=PredictorConfig(hidden_dim=7))}


def make(config, *extra: nn.Module, norm: bool = False, converted: bool = True) -> Method:
    """A method in float64; without BatchNorm unless asked for, which is converted or torch's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, bias=not norm), *norm * [nn.BatchNorm2d(6)], nn.Tanh(), *extra]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        hidden = [nn.Linear(6, 8, bias=not norm), *norm * [nn.BatchNorm1d(8)], nn.Tanh()]
        projector = nn.Sequential(*hidden, nn.Linear(8, 5))
        parts = Parts(backbone=Backbone(net, 6), projector=projector, embedding_dim=5, seed=3)
        method = config.build(parts).double().train()
        if converted:
            convert_batchnorm(method, torch.device("cpu"))
        if isinstance(config, MoCoConfig):  # its loss is 0 while the queue is empty
            method.queue.enqueue(unit_rows(torch.randn(20, 5)), torch.arange(100, 120))
    return method


def batch(num_chunks: int, num_local: int = 0, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, NUM, 3, 6, 6, generator=generator, dtype=torch.float64)
    local = torch.randn(num_local, NUM, 3, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(
        view_a=a.to(device),
        view_b=b.to(device),
        ids=torch.arange(NUM, device=device) // 2 * 5,  # each twice: masks reach across chunks
        labels=torch.arange(NUM, device=device) % 4 - 1,
        step=2,
        local_views=tuple(local.to(device)),
        num_chunks=num_chunks,
    )


def gradients(method: Method) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in named.values())
    return {name: p.grad for name, p in named.items()}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    # Of all gradients: that of a bias before BatchNorm is 0 but for rounding.
    atol = 1e-12 * max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=atol, msg=name)


@pytest.mark.parametrize("num_local", [0, 2])
@pytest.mark.parametrize("num_chunks", [2, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_without_batchnorm_chunks_give_the_gradients_of_the_whole_batch(
    name, num_chunks, num_local
):
    whole, chunked = make(CONFIGS[name]), make(CONFIGS[name])
    expected = whole(batch(1, num_local))
    expected.loss.backward()
    found = forward_backward(chunked, batch(num_chunks, num_local), contextlib.nullcontext)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert_equal(gradients(chunked), gradients(whole))
    for rows in ("embeddings_a", "embeddings_b"):
        torch.testing.assert_close(getattr(found, rows), getattr(expected, rows))
    assert found.num_candidates == expected.num_candidates


def naive_loss(method: Method, name: str, pictures: Batch, num_chunks: int) -> torch.Tensor:
    """Every chunk through the networks on its own, then one loss; written out for each method."""
    size = NUM // num_chunks
    online, predicted, targets = [], [], []
    for chunk in range(num_chunks):
        rows = slice(chunk * size, (chunk + 1) * size)
        a, b = pictures.view_a[rows], pictures.view_b[rows]
        if name in ("simclr", "supcon"):
            both = method.projector(method.backbone(torch.cat([a, b])))
            online.append((both[:size], both[size:]))
        elif name == "moco":
            online.append((method.projector(method.backbone(a)),))
            order = permutation(size, SHUFFLE_FAMILY, 3, pictures.step, chunk)
            keys = torch.empty(size, 5, dtype=torch.float64)
            for group in (order[: size // 2], order[size // 2 :]):
                with torch.no_grad():
                    keys[group] = unit_rows(method.key_projector(method.key_backbone(b[group])))
            targets.append((keys,))
        else:
            projected = [method.projector(method.backbone(view)) for view in (a, b)]
            predicted.append(tuple(method.predictor(x) for x in projected))
            with torch.no_grad():
                seen = [method.target_projector(method.target_backbone(view)) for view in (b, a)]
            targets.append(tuple(seen))
    online, predicted, targets = (
        [torch.cat(rows) for rows in zip(*pieces, strict=True)]
        for pieces in (online, predicted, targets)
    )
    if name == "simclr":
        return nt_xent(*online, pictures.ids, temperature=TAU)
    if name == "supcon":
        return sup_con(*online, pictures.labels, temperature=TAU)
    if name == "moco":
        queue = method.queue.keys, method.queue.ids
        return info_nce(*online, *targets, pictures.ids, *queue, temperature=TAU)
    return sum(byol_loss(x, target) for x, target in zip(predicted, targets, strict=True))


@pytest.mark.parametrize("num_chunks", [2, 4])
@pytest.mark.parametrize("name", WITH_NORM)
def test_batchnorm_sees_one_chunk_at_a_time_and_tracks_each_once(name, num_chunks):
    naive, chunked = (make(WITH_NORM[name], norm=True, converted=own) for own in (False, True))
    for module in naive.modules():
        if isinstance(module, SplitBatchNorm):
            module.num_groups = 1  # the loop goes group by group itself
    pictures = batch(num_chunks)
    expected = naive_loss(naive, name, pictures, num_chunks)
    expected.backward()
    found = forward_backward(chunked, pictures, contextlib.nullcontext)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert_equal(gradients(chunked), gradients(naive))
    tracked = dict(naive.named_buffers())
    for buffer_name, value in chunked.named_buffers():
        torch.testing.assert_close(value, tracked[buffer_name], msg=buffer_name)
    norm = chunked.backbone.net[1]
    passes = 2 * num_chunks if name == "byol" else num_chunks
    assert norm.num_batches_tracked == passes
    assert norm.running_mean.abs().max() > 0


def test_one_chunk_and_many_differ_with_batchnorm():
    """Else the tests above could not tell whose statistics were taken."""
    whole, chunked = (make(CONFIGS["simclr"], norm=True) for _ in range(2))
    loss = whole(batch(1)).loss
    assert abs(forward_backward(chunked, batch(4), contextlib.nullcontext).loss - loss) > 1e-4


def generator_state(device: str) -> torch.Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_draws_the_same_in_both_passes_and_leaves_the_generator_as_one_pass_does(
    name, device
):
    naive, chunked = (make(CONFIGS[name], nn.Dropout(0.3)).to(device) for _ in range(2))
    pictures = batch(4, num_local=1, device=device)
    states = []
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pieces = [(naive.encode(chunk), naive.encode_targets(chunk)) for chunk in pictures.chunks()]
        joined = [
            [torch.cat(rows) for rows in zip(*piece, strict=True)]
            for piece in zip(*pieces, strict=True)
        ]
        naive.compare(*joined, pictures).loss.backward()
        states.append(generator_state(device))
        torch.manual_seed(7)
        forward_backward(chunked, pictures, contextlib.nullcontext)
        states.append(generator_state(device))
    assert_equal(gradients(chunked), gradients(naive))
    assert torch.equal(*states)


def test_under_autocast_chunks_give_the_gradients_of_the_whole_batch_to_its_rounding():
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    whole, chunked = (make(CONFIGS["simclr"]).float() for _ in range(2))
    one, four = (
        replace(pictures, view_a=pictures.view_a.float(), view_b=pictures.view_b.float())
        for pictures in (batch(1), batch(4))
    )
    with autocast():
        loss = whole(one).loss
    loss.backward()
    forward_backward(chunked, four, autocast)
    expected = gradients(whole)
    for name, found in gradients(chunked).items():
        torch.testing.assert_close(found, expected[name], rtol=0.1, atol=0.02)


class Kept:
    """What a graph keeps for its backward pass, counted while it lives."""

    now = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.peak = max(Kept.peak, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.nbytes


@pytest.mark.parametrize("name", CONFIGS)
def test_what_graphs_keep_falls_with_the_number_of_chunks(name):
    peaks = {}
    for num_chunks in (1, 2, 4):
        Kept.now = Kept.peak = 0
        method, pictures = make(CONFIGS[name], norm=True), batch(num_chunks)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            if num_chunks == 1:
                method(pictures).loss.backward()
            else:
                forward_backward(method, pictures, contextlib.nullcontext)
        assert Kept.now == 0
        peaks[num_chunks] = Kept.peak
    # Weights are kept too, and counted here for each use.
    assert peaks[2] < 0.6 * peaks[1]
    assert peaks[4] < 0.35 * peaks[1]
