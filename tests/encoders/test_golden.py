"""Twenty steps of each piece of training against NumPy loops that share no code with it.

Float64 throughout, so that nothing but a mistake can make them differ.
"""

import math
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from encoders.key_queue import KeyQueue
from encoders.losses import byol_loss, info_nce, nt_xent, sup_con, unit_rows
from encoders.momentum import MomentumConfig, follow, make_target
from encoders.optim import OptimConfig, build_optimizer, learning_rate, set_learning_rate

NUM_STEPS = 20
BATCH = 512


def naive_rate(config: OptimConfig, step: int) -> float:
    """The schedules as the papers draw them, from the peak at this batch."""
    scaled = {"none": 1, "linear": BATCH / 256, "sqrt": (BATCH / 256) ** 0.5}
    peak = config.lr * scaled[config.lr_scaling]
    if config.schedule == "one_cycle":
        turn = config.warmup_share * NUM_STEPS - 1
        low, high, done = (
            (peak / 25, peak, step / turn)
            if step <= turn
            else (peak, peak / 250_000, (step - turn) / (NUM_STEPS - 1 - turn))
        )
        return low + (high - low) * (1 - math.cos(math.pi * done)) / 2
    warm = round(config.warmup_share * NUM_STEPS)
    if step < warm:
        return peak * (step + 1) / warm
    end = peak * config.final_share
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (step - warm) / (NUM_STEPS - warm)))


def naive_step(config, weight, gradient, memory, rate, count):
    """One update of one array; ``memory`` is what the optimiser remembers of it."""
    decays = config.decay_all or weight.ndim > 1
    decay = config.weight_decay if decays else 0.0
    if config.name == "adamw":
        memory["m"] = config.momentum * memory.get("m", 0) + (1 - config.momentum) * gradient
        memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * gradient**2
        first = memory["m"] / (1 - config.momentum**count)
        second = memory["v"] / (1 - 0.999**count)
        return weight - rate * decay * weight - rate * first / (np.sqrt(second) + 1e-8)
    gradient = gradient + decay * weight
    local = rate
    if config.name == "lars" and weight.ndim > 1:
        eta = 0.001 if config.trust_coefficient is None else config.trust_coefficient
        trust = eta * math.sqrt((weight**2).sum()) / math.sqrt((gradient**2).sum())
        local = min(trust, rate) if config.trust_cap else trust * rate
    if config.name == "lars":  # the rate within the momentum
        memory["v"] = config.momentum * memory.get("v", 0) + local * gradient
        return weight - memory["v"]
    memory["v"] = config.momentum * memory.get("v", 0) + gradient
    return weight - rate * memory["v"]


CONFIGS = {
    "sgd": OptimConfig(lr=0.3, weight_decay=1e-2, warmup_share=0.25),
    "sgd-all": OptimConfig(
        lr=0.3, weight_decay=1e-2, decay_all=True, lr_scaling="linear", final_share=0.01
    ),
    "lars": OptimConfig(name="lars", lr=0.8, weight_decay=1e-2, trust_coefficient=0.02),
    "lars-plain": OptimConfig(name="lars", lr=0.5, lr_scaling="sqrt", warmup_share=0.1),
    "lars-cap": OptimConfig(
        name="lars", lr=0.02, weight_decay=1e-2, trust_coefficient=0.005, trust_cap=True
    ),
    "adamw": OptimConfig(
        name="adamw", lr=0.05, weight_decay=0.1, schedule="one_cycle", warmup_share=0.3
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_steps_of_an_optimiser_and_its_schedule_follow_numpy(name):
    config = CONFIGS[name]
    generator = np.random.default_rng(1)
    weights = [generator.normal(size=shape) for shape in ((3, 4), (3,), (2, 3, 2, 2))]
    net = nn.ParameterList([nn.Parameter(torch.tensor(weight)) for weight in weights])
    optimizer = build_optimizer(net, config)
    memories: list[dict] = [{} for _ in weights]
    capped = set()
    for step in range(NUM_STEPS):
        rate = naive_rate(config, step)
        assert learning_rate(config, step, NUM_STEPS, BATCH) == pytest.approx(rate, rel=1e-12)
        # From large to small gradients, so that the cap holds at times and not at others.
        gradients = [generator.normal(size=w.shape) * 10.0 ** -(step % 3) for w in weights]
        for place, gradient in enumerate(gradients):
            norms = np.linalg.norm(weights[place]), np.linalg.norm(gradient)
            capped.add(bool(0.005 * norms[0] / norms[1] > rate))
            weights[place] = naive_step(
                config, weights[place], gradient, memories[place], rate, step + 1
            )
            net[place].grad = torch.tensor(gradient)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        for parameter, weight in zip(net, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-10, atol=1e-13)
    assert name != "lars-cap" or capped == {True, False}


@pytest.mark.parametrize(
    "config",
    [
        MomentumConfig(start=0.9),
        MomentumConfig(start=0.9, end=0.99),
        MomentumConfig(start=0.8, schedule="constant"),
    ],
    ids=["to 1", "to 0.99", "constant"],
)
def test_twenty_steps_of_a_target_follow_numpy(config):
    generator = np.random.default_rng(2)
    online = nn.Linear(3, 2, dtype=torch.float64)
    target = make_target(online)
    expected = online.weight.detach().numpy().copy()
    for step in range(NUM_STEPS):
        moved = generator.normal(size=(2, 3))
        with torch.no_grad():
            online.weight.copy_(torch.tensor(moved))
        follow(target, online, config.at(step, NUM_STEPS))
        stays = config.start
        if config.schedule == "cosine":
            left = 0.5 + 0.5 * math.cos(math.pi * step / NUM_STEPS)
            stays = config.start * left + config.end * (1 - left)
        expected = stays * expected + (1 - stays) * moved
        np.testing.assert_allclose(target.weight.numpy(), expected, rtol=1e-12, atol=1e-14)


def cosine(first, second) -> float:
    return float(first @ second) / math.sqrt(float(first @ first) * float(second @ second))


def naive_nt_xent(a, b, ids, temperature):
    rows = [*zip(a, ids, strict=True), *zip(b, ids, strict=True)]
    total = 0.0
    for i, (anchor, own) in enumerate(rows):
        partner = rows[(i + len(a)) % len(rows)][0]
        positive = math.exp(cosine(anchor, partner) / temperature)
        others = sum(math.exp(cosine(anchor, z) / temperature) for z, n in rows if n != own)
        total -= math.log(positive / (positive + others))
    return total / len(rows)


def naive_info_nce(queries, keys, ids, queue, temperature):
    total = 0.0
    for query, key, own in zip(queries, keys, ids, strict=True):
        positive = math.exp(cosine(query, key) / temperature)
        others = sum(math.exp(cosine(query, k) / temperature) for k, n in queue if n != own)
        total -= math.log(positive / (positive + others))
    return total / len(ids)


def naive_sup_con(a, b, labels, temperature):
    rows = [(z, n) for z, n in zip([*a, *b], [*labels, *labels], strict=True) if n >= 0]
    total = 0.0
    for i, (anchor, own) in enumerate(rows):
        others = [(z, n) for j, (z, n) in enumerate(rows) if j != i]
        below = sum(math.exp(cosine(anchor, z) / temperature) for z, _ in others)
        logs = [
            math.log(math.exp(cosine(anchor, z) / temperature) / below)
            for z, n in others
            if n == own
        ]
        total -= sum(logs) / len(logs)
    return total / len(rows)


def naive_byol(predictions, targets):
    return sum(
        sum((p / np.linalg.norm(p) - t / np.linalg.norm(t)) ** 2)
        for p, t in zip(predictions, targets, strict=True)
    ) / len(predictions)


def draws(seed: int, num: int = 9, dim: int = 5):
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, num, dim)) * generator.uniform(0.1, 9, size=(2, num, 1))
    # Pictures come twice, and some have no label.
    return a, b, generator.integers(0, 6, num), generator.integers(-1, 3, num)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
def test_losses_are_those_of_loops_over_pairs(temperature):
    for seed in range(NUM_STEPS):
        a, b, ids, labels = draws(seed)
        views = torch.tensor(a), torch.tensor(b)
        found = (
            nt_xent(*views, torch.tensor(ids), temperature=temperature),
            sup_con(*views, torch.tensor(labels), temperature=temperature),
            byol_loss(*views),
        )
        expected = (
            naive_nt_xent(a, b, ids, temperature),
            naive_sup_con(a, b, labels, temperature),
            naive_byol(a, b),
        )
        assert [float(loss) for loss in found] == pytest.approx(expected, rel=1e-10)


def test_twenty_batches_against_a_queue_are_those_of_a_deque():
    """With batches that do not divide the queue, and one that is larger than it."""
    ring = KeyQueue(16, 5).double()
    queue: deque = deque(maxlen=16)
    for step in range(NUM_STEPS):
        queries, keys, ids, _ = draws(step, num=21 if step == 9 else 7)
        found = info_nce(
            torch.tensor(queries),
            torch.tensor(keys),
            torch.tensor(ids),
            ring.keys,
            ring.ids,
            temperature=0.2,
        )
        expected = naive_info_nce(queries, keys, ids, queue, 0.2)
        assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-14)
        ring.enqueue(unit_rows(torch.tensor(keys)), torch.tensor(ids))
        queue.extend(zip(keys, ids, strict=True))
        assert int(ring.num_filled) == len(queue)
