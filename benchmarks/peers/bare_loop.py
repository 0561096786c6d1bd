"""The ceiling: SimCLR's forward, loss, backward and update on one resident batch, and no more.

No pictures are read and none is augmented. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from narrow_resnet import backbone, num_parameters, pin_threads, projector

TEMPERATURE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--measure-s", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pin_threads(asked.threads)
    torch.manual_seed(asked.seed)
    net = torch.nn.Sequential(backbone(), projector()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    views = torch.randn(2 * asked.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    partner = torch.arange(2 * asked.batch).roll(asked.batch)
    itself = torch.eye(2 * asked.batch, dtype=torch.bool)

    def train_step() -> None:
        optimizer.zero_grad()
        rows = F.normalize(net(views))
        logits = (rows @ rows.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        loss = F.cross_entropy(logits, partner)
        loss.backward()
        optimizer.step()
        loss.item()

    for _ in range(asked.warmup):
        train_step()
    steps, started_s = 0, time.perf_counter()
    while not steps or time.perf_counter() - started_s < asked.measure_s:
        train_step()
        steps += 1
    rate = steps / (time.perf_counter() - started_s)
    print(
        json.dumps(
            {
                "images_per_s": rate * asked.batch,
                "parameters": num_parameters(net),
                "versions": {"torch": torch.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
