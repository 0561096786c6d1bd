"""Twenty steps of each method against a training loop written out by hand.

The reference shares no code with what it checks but the weights that it starts from: network,
BatchNorm, losses, optimisers, schedules, target and queue are all here, in loops where that is
plain. Both are given the same views, in float64, so the curves agree to rounding.
"""

import math
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from encoders.augment import AugmentConfig
from encoders.backbone import BackboneConfig
from encoders.byol import BYOLConfig
from encoders.heads import PredictorConfig, ProjectorConfig
from encoders.health import HealthConfig
from encoders.method import Batch
from encoders.moco import SHUFFLE_FAMILY, MoCoConfig
from encoders.momentum import MomentumConfig
from encoders.optim import OptimConfig
from encoders.preprocess import PreprocessConfig
from encoders.pretrain_config import PretrainConfig
from encoders.sampler import permutation
from encoders.simclr import SimCLRConfig
from encoders.supcon import SupConConfig
from encoders.training import Pretraining

NUM_STEPS, NUM_PICTURES, BATCH, SIZE = 20, 12, 8, 8
LABELS = np.arange(NUM_PICTURES) % 3 - 1
TEMPERATURE = 0.2


def config_of(method, optim) -> PretrainConfig:
    view = AugmentConfig(crop_size=SIZE)
    return PretrainConfig(
        method=method,
        backbone=BackboneConfig(widths=(4, 6), stem="small", zero_init_residual=False),
        projector=ProjectorConfig(hidden_dim=6, output_dim=5),
        preprocess=PreprocessConfig(size=SIZE),
        view_a=view,
        view_b=view,
        optim=optim,
        health=HealthConfig(every=1000),
        batch_size=BATCH,
        epochs=NUM_STEPS,
    )


CONFIGS = {
    "simclr": config_of(
        SimCLRConfig(temperature=TEMPERATURE),
        OptimConfig(
            name="lars", lr=2.0, weight_decay=1e-3, trust_coefficient=0.02, warmup_share=0.2
        ),
    ),
    "moco": config_of(
        MoCoConfig(
            temperature=TEMPERATURE,
            queue_size=20,
            key_groups=2,
            momentum=MomentumConfig(start=0.9, schedule="constant"),
        ),
        OptimConfig(lr=0.1, weight_decay=1e-2, decay_all=True),
    ),
    "byol": config_of(
        BYOLConfig(predictor=PredictorConfig(hidden_dim=6), momentum=MomentumConfig(start=0.9)),
        OptimConfig(lr=0.1, weight_decay=1e-3, warmup_share=0.1),
    ),
    "supcon": config_of(
        SupConConfig(temperature=TEMPERATURE),
        OptimConfig(
            name="adamw", lr=0.02, weight_decay=0.1, schedule="one_cycle", warmup_share=0.3
        ),
    ),
}


def views_of(ids: np.ndarray, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy copies of pictures that only their ids decide."""
    pictures = np.random.default_rng(0).normal(size=(NUM_PICTURES, 3, SIZE, SIZE))[ids]
    noise = np.random.default_rng(step + 1).normal(size=(2, *pictures.shape))
    first, second = torch.tensor(pictures + 0.5 * noise)
    return first, second


class FedPretraining(Pretraining):
    """The real thing in float64, fed with ready views."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config, NUM_PICTURES)
        self._method.double()

    def _batch(self, pixels, ids, labels) -> Batch:  # noqa: ARG002 -- ready views come instead
        first, second = views_of(ids, self.step_index)
        return Batch(
            view_a=first.to(memory_format=torch.channels_last),
            view_b=second.to(memory_format=torch.channels_last),
            ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            step=self.step_index,
        )

    def step_on(self, rows: np.ndarray) -> dict[str, float]:
        return self.train_step(np.zeros((BATCH, SIZE, SIZE, 3), np.uint8), rows, LABELS[rows])


# --- the network by hand -------------------------------------------------------------------------


def norm(x, weights, name, groups=1):
    parts = []
    for part in x.chunk(groups):
        others = [d for d in range(x.dim()) if d != 1]
        mean = part.mean(others, keepdim=True)
        variance = ((part - mean) ** 2).mean(others, keepdim=True)
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        scale, shift = (weights[f"{name}.{kind}"].view(shape) for kind in ("weight", "bias"))
        parts.append((part - mean) / (variance + 1e-5) ** 0.5 * scale + shift)
    return torch.cat(parts)


def backbone(x, weights, prefix, groups=1):
    def convolve(x, name, stride=1):
        kernel = weights[f"{prefix}.net.{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def bn(x, name):
        return norm(x, weights, f"{prefix}.net.{name}", groups)

    x = bn(convolve(x, "conv1"), "bn1").clamp(min=0)
    for stage, stride in (("stage1", 1), ("stage2", 2)):
        block = f"{stage}.0"
        y = bn(convolve(x, f"{block}.conv1", stride), f"{block}.bn1").clamp(min=0)
        y = bn(convolve(y, f"{block}.conv2"), f"{block}.bn2")
        if stride == 2:
            x = bn(convolve(x, f"{block}.downsample.0", 2), f"{block}.downsample.1")
        x = (x + y).clamp(min=0)
    return x.mean((2, 3))


def head(x, weights, prefix, groups=1):
    hidden = norm(x @ weights[f"{prefix}.0.weight"].T, weights, f"{prefix}.1", groups)
    return hidden.clamp(min=0) @ weights[f"{prefix}.3.weight"].T + weights[f"{prefix}.3.bias"]


def embed(x, weights, prefix="", groups=1):
    features = backbone(x, weights, f"{prefix}backbone", groups)
    return head(features, weights, f"{prefix}projector", groups)


# --- the losses by hand --------------------------------------------------------------------------


def similarity(first, second):
    return (first * second).sum() / (first.norm() * second.norm())


def nt_xent(rows, partners, temperature):
    total = 0.0
    for i, anchor in enumerate(rows):
        others = [(similarity(anchor, z) / temperature).exp() for z in rows]
        total -= (others[partners[i]] / (sum(others) - others[i])).log()
    return total / len(rows)


def sup_con(rows, labels, temperature):
    kept = [(row, label) for row, label in zip(rows, labels, strict=True) if label >= 0]
    total = 0.0
    for i, (anchor, label) in enumerate(kept):
        others = [(j, (similarity(anchor, z) / temperature).exp()) for j, (z, _) in enumerate(kept)]
        below = sum(value for j, value in others if j != i)
        logs = [(value / below).log() for j, value in others if j != i and kept[j][1] == label]
        total -= sum(logs) / len(logs)
    return total / len(kept)


class Reference:
    """The same training, step by step."""

    def __init__(self, name: str, start: dict[str, torch.Tensor]) -> None:
        self.name, self.config = name, CONFIGS[name]
        frozen = ("key_", "target_", "queue")
        weights = {
            k: v.clone() for k, v in start.items() if "running" not in k and "num_batches" not in k
        }
        self.online = {
            k: v.requires_grad_() for k, v in weights.items() if not k.startswith(frozen)
        }
        # Targets start as copies of what they follow.
        self.target = {
            k: v.detach().clone() for k, v in self.online.items() if not k.startswith("predictor")
        }
        self.queue: deque = deque(maxlen=20)
        self.memory: dict = {k: {} for k in self.online}
        self.count = 0

    def loss(self, ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        first, second = views_of(ids, self.count)
        if self.name in ("simclr", "supcon"):
            rows = list(embed(torch.cat([first, second]), self.online))
            if self.name == "supcon":
                return sup_con(rows, [*labels, *labels], TEMPERATURE)
            return nt_xent(rows, [(i + BATCH) % (2 * BATCH) for i in range(2 * BATCH)], TEMPERATURE)
        if self.name == "byol":
            total = 0.0
            for view, other in ((first, second), (second, first)):
                predicted = head(embed(view, self.online), self.online, "predictor")
                wanted = embed(other, self.target).detach()
                for p, t in zip(predicted, wanted, strict=True):
                    total += ((p / p.norm() - t / t.norm()) ** 2).sum() / BATCH
            return total
        return self.moco_loss(first, second, ids)

    def moco_loss(self, first, second, ids):
        """Which keys share a BatchNorm is drawn; what the draw leads to is worked out here."""
        order = permutation(BATCH, SHUFFLE_FAMILY, self.config.seed, self.count)
        shuffled = embed(second[order], self.target, groups=2)
        keys = {int(place): shuffled[i] for i, place in enumerate(order)}
        total = 0.0
        for i, query in enumerate(embed(first, self.online)):
            positive = (similarity(query, keys[i]) / TEMPERATURE).exp()
            against = [
                (similarity(query, key) / TEMPERATURE).exp()
                for key, picture in self.queue
                if picture != ids[i]
            ]
            total -= (positive / (positive + sum(against))).log() / BATCH
        self.fresh = [(keys[i].detach(), ids[i]) for i in range(BATCH)]
        return total

    def step_on(self, ids: np.ndarray) -> float:
        loss = self.loss(ids, LABELS[ids])
        gradients = torch.autograd.grad(loss, list(self.online.values()))
        rate = self.rate()
        with torch.no_grad():
            for (name, weight), gradient in zip(self.online.items(), gradients, strict=True):
                weight.copy_(self.updated(name, weight, gradient, rate))
        stays = 0.9
        if self.name == "byol":
            stays = 1 - 0.1 * (1 + math.cos(math.pi * self.count / NUM_STEPS)) / 2
        for name, old in self.target.items():
            self.target[name] = stays * old + (1 - stays) * self.online[name].detach()
        if self.name == "moco":
            self.queue.extend(self.fresh)
        self.count += 1
        return loss.item()

    def rate(self) -> float:
        config, step = self.config.optim, self.count
        if config.schedule == "one_cycle":
            low, high, done = (
                (config.lr / 25, config.lr, step / 5)
                if step <= 5
                else (config.lr, config.lr / 250_000, (step - 5) / 14)
            )
            return low + (high - low) * (1 - math.cos(math.pi * done)) / 2
        warm = round(config.warmup_share * NUM_STEPS)
        if step < warm:
            return config.lr * (step + 1) / warm
        return config.lr * (1 + math.cos(math.pi * (step - warm) / (NUM_STEPS - warm))) / 2

    def updated(self, name, weight, gradient, rate):
        config, memory = self.config.optim, self.memory[name]
        decay = config.weight_decay if weight.ndim > 1 or config.decay_all else 0.0
        if config.name == "adamw":
            memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * gradient
            memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * gradient**2
            first = memory["m"] / (1 - 0.9 ** (self.count + 1))
            second = memory["v"] / (1 - 0.999 ** (self.count + 1))
            return weight * (1 - rate * decay) - rate * first / (second**0.5 + 1e-8)
        gradient = gradient + decay * weight
        if config.name == "lars":
            if weight.ndim > 1:
                gradient = gradient * 0.02 * weight.norm() / gradient.norm()
            memory["v"] = 0.9 * memory.get("v", 0) + rate * gradient
            return weight - memory["v"]
        memory["v"] = 0.9 * memory.get("v", 0) + gradient
        return weight - rate * memory["v"]


@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_steps_of_training_are_those_of_a_loop_by_hand(name):
    training = FedPretraining(CONFIGS[name])
    reference = Reference(name, training.state_dict()["method"])
    losses = []
    for step in range(NUM_STEPS):
        rows = training.next_rows()
        metrics = training.step_on(rows)
        losses.append(metrics["loss"])
        assert metrics["loss"] == pytest.approx(reference.step_on(rows), rel=1e-5), step
    state = training.state_dict()["method"]
    for weight_name, weight in reference.online.items():
        torch.testing.assert_close(state[weight_name], weight.detach(), rtol=1e-5, atol=1e-8)
    prefix = {"moco": "key_", "byol": "target_"}.get(name)
    for weight_name, weight in reference.target.items() if prefix else ():
        torch.testing.assert_close(state[prefix + weight_name], weight, rtol=1e-5, atol=1e-8)
    assert np.ptp(losses) > 0.2, "so flat a curve shows little"


def test_the_reference_would_notice_a_target_one_step_late():
    """A loop that is right to 1e-5 must not be blind: the order of the updates shows in it."""
    training = FedPretraining(CONFIGS["byol"])
    reference = Reference("byol", training.state_dict()["method"])
    late = dict(reference.target)
    differences = []
    for _ in range(3):
        rows = training.next_rows()
        current, reference.target = reference.target, late
        expected = reference.loss(rows, LABELS[rows]).item()
        reference.target, late = current, dict(current)
        reference.step_on(rows)
        differences.append(abs(training.step_on(rows)["loss"] / expected - 1))
    assert differences[0] < 1e-9
    assert differences[2] > 1e-5
