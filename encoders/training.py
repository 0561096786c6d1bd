"""The training step: everything of *what* is computed, and nothing of *where*.

Same configuration, same corpus: the same weights, whatever the number of ranks (to rounding) and
however often the run was interrupted (to the bit, with the number of ranks kept). All draws come
from counters, the order of pictures and the learning rate are functions of the step, and the rest
is in `state_dict`.

Shapes: N pictures of this rank, S edge in pixels.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders import grad_cache
from encoders.augment import augment_views
from encoders.backbone import build_backbone
from encoders.batchnorm import convert_batchnorm
from encoders.collective import average, rank, world_size
from encoders.doctor import Doctor, Finding
from encoders.encoder import Encoder
from encoders.heads import build_projector
from encoders.health import NonFiniteError
from encoders.held_out import ExaminedPictures
from encoders.losses import mutual_information_bound
from encoders.method import Batch, Method, MethodOutput, Parts
from encoders.optim import build_optimizer, learning_rate, set_learning_rate
from encoders.pretrain_config import PretrainConfig
from encoders.warm_start import load_start

__all__ = ["PretrainConfig", "Pretraining"]

SHOWN_IDS = 8


class Pretraining:
    """One rank's part of a training run.

    With ``torch.distributed`` initialised, every rank makes one of these from the same
    configuration and calls `train_step` in step with the others. No parameter is ever sent: all
    ranks start from the seed and apply the same averaged gradients.

    Args:
        config: what to compute.
        num_pictures: rows of the corpus that can be trained on.
        device: where this rank computes.
        start: an encoder to train on from, with a configuration of `warm_start.starting_config`;
            None starts from weights that the seed decides.
        examined: pictures that the doctor looks at, best ones kept out of training; None looks at
            the batches.

    Raises:
        ValueError: the corpus is smaller than a batch, the ranks cannot share a batch evenly, or
            ``start`` does not fit the configuration.
    """

    def __init__(
        self,
        config: PretrainConfig,
        num_pictures: int,
        device: torch.device | str = "cpu",
        start: Encoder | None = None,
        examined: ExaminedPictures | None = None,
    ) -> None:
        config.check_share(num_pictures, world_size())
        self.config = config
        self.device = torch.device(device)
        self._order = config.order(num_pictures)
        self._step = 0
        self._stop_agreed = False
        self._method = _build_method(config, self.device, start)
        self._trained = [p for p in self._method.parameters() if p.requires_grad]
        self._optimizer = build_optimizer(self._method, config.optim)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._doctor = Doctor(config, self._method, self.num_steps, self._autocast, examined)

    @property
    def step_index(self) -> int:
        """Optimiser steps made so far; also the number of the next step."""
        return self._step

    @property
    def stop_agreed(self) -> bool:
        """Whether a rank asked in the last step to stop after it; the same on all ranks."""
        return self._stop_agreed

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def num_pictures(self) -> int:
        """Rows of the corpus that it trains on."""
        return self._order.num_pictures

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the corpus."""
        return self._order.steps_per_epoch

    @property
    def is_healthy(self) -> bool:
        """Whether nothing that stops a run was seen at the last health check."""
        return self._doctor.is_healthy

    @property
    def findings(self) -> list[Finding]:
        """Warnings of the health checks so far, oldest first."""
        return self._doctor.findings

    def next_rows(self) -> NDArray[np.int64]:
        """Row positions, int64 [N], of this rank's pictures in the next step."""
        return self.rows_at(self._step)

    def rows_at(self, step: int) -> NDArray[np.int64]:
        """The same for any step, so that a loader can read ahead."""
        return self._order.rows(step, rank=rank(), world_size=world_size())

    def train_step(
        self,
        pixels: NDArray[np.uint8],
        ids: NDArray[np.int64],
        labels: NDArray[np.int64] | None = None,
        *,
        stop: bool = False,
    ) -> dict[str, float]:
        """Make one optimiser step.

        Args:
            pixels: uint8 [N, S, S, 3] of the rows that `next_rows` named, in that order.
            ids: int64 [N] picture ids.
            labels: int64 [N] classes, -1 for none; needed by SupCon alone.
            stop: asks all ranks to stop after this step; see `stop_agreed`.

        Returns:
            ``loss`` of the global batch before the step, ``lr``, ``grad_norm`` before clipping
            (left out when float16 gradients overflowed, which skips the update); with float16
            ``loss_scale``;
            ``mi_bound`` and its ceiling ``mi_ceiling`` in nats, when the loss proves one; and every
            ``health.every`` steps the figures of the `Doctor`. The same on all ranks.

        Raises:
            NonFiniteError: loss or gradients are not finite; the weights are left as they were.
            CollapseError: a health check found that the run is beyond hope.

        Cost: one wait for the device, some more for a health check.
        """
        lr = learning_rate(self.config.optim, self._step, self.num_steps, self.config.batch_size)
        batch = self._batch(pixels, ids, labels)
        visit = self._doctor.visit(self._step, batch, pixels)
        output = self._forward_backward(batch)
        metrics = {"lr": lr, **self._figures(output, stop)}
        self._refuse_non_finite(metrics, ids)
        if visit is not None:
            self._doctor.compared(visit, output)
        set_learning_rate(self._optimizer, lr)
        self._update(metrics)
        self._method.after_step(batch, output, self.num_steps)
        self._step += 1
        if visit is not None:
            metrics |= self._doctor.conclude(visit, self._step, metrics)
        return metrics

    def _batch(
        self, pixels: NDArray[np.uint8], ids: NDArray[np.int64], labels: NDArray[np.int64] | None
    ) -> Batch:
        share = self.config.batch_size // world_size()
        assert pixels.dtype == np.uint8
        assert len(pixels) == len(ids) == share, "these are not the rows of next_rows"
        if labels is None:
            self.config.check_labels(None)
        # Copies, since torch will not wrap the read-only arrays of a memory-mapped cache.
        pixels_N3SS = torch.tensor(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        ids_N = torch.tensor(ids)
        views = [self.config.view_a, self.config.view_b]
        views += self.config.local_views * [self.config.view_local]
        view_a, view_b, *local_views = augment_views(
            pixels_N3SS,
            ids_N,
            views=views,
            seed=self.config.seed,
            epoch=self._order.epoch(self._step),
            preprocess=self.config.preprocess,
        )
        labels_N = None if labels is None else torch.tensor(labels).to(self.device)
        return Batch(
            view_a=view_a,
            view_b=view_b,
            ids=ids_N.to(self.device, non_blocking=True),
            labels=labels_N,
            step=self._step,
            local_views=tuple(local_views),
            num_chunks=self.config.batch_chunks,
        )

    def _forward_backward(self, batch: Batch) -> MethodOutput:
        self._method.train()
        self._optimizer.zero_grad(set_to_none=True)
        if batch.num_chunks > 1:
            return grad_cache.forward_backward(
                self._method, batch, self._autocast, self._scaler.scale
            )
        with self._autocast():
            output: MethodOutput = self._method(batch)
        self._scaler.scale(output.loss).backward()  # type: ignore[no-untyped-call]
        return output

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=precision != "fp32")

    def _figures(self, output: MethodOutput, stop: bool) -> dict[str, float]:
        """Average the gradients over the ranks; loss, gradient norm and information bound."""
        loss = output.loss.detach().clone()
        gradients = self._gradients()
        stopping = loss.new_full((), float(stop))
        # They travel with the gradients: one collective, and all ranks see the same NaN or stop.
        average([*gradients, loss, stopping])
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        candidates = output.num_candidates
        if not isinstance(candidates, Tensor):
            candidates = loss.new_full((), candidates or 1)
        values = torch.stack([loss, norm, candidates.to(loss.dtype), stopping]).tolist()
        self._stop_agreed = values[3] > 0
        figures = {"loss": values[0], "grad_norm": values[1]}
        if output.num_candidates is not None:
            figures["mi_bound"] = mutual_information_bound(values[0], values[2])
            figures["mi_ceiling"] = math.log(values[2])
        return figures

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._trained if p.grad is not None]

    def _refuse_non_finite(self, metrics: Mapping[str, float], ids: NDArray[np.int64]) -> None:
        overflowed = self._scaler.get_scale() > 1  # A smaller scale may mend it.
        if math.isfinite(metrics["loss"]) and (math.isfinite(metrics["grad_norm"]) or overflowed):
            return
        shown = ", ".join(str(picture) for picture in ids[:SHOWN_IDS])
        raise NonFiniteError(
            f"step {self._step}: the loss is {metrics['loss']} and the gradient norm "
            f"{metrics['grad_norm']} at learning rate {metrics['lr']:.3g}; both must be finite. "
            f"Picture ids of the batch on this worker begin with {shown}. No weight was changed. "
            "Lower optim.lr, set optim.clip_norm to 1, or use precision fp32, and run again."
        )

    def _update(self, metrics: dict[str, float]) -> None:
        """Move the weights, unless gradients overflowed in float16."""
        norm, limit = metrics["grad_norm"], self.config.optim.clip_norm
        if limit is not None and limit < norm < math.inf:
            torch._foreach_mul_(self._gradients(), limit / norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.is_enabled():
            metrics["loss_scale"] = self._scaler.get_scale()
        if not math.isfinite(norm):
            del metrics["grad_norm"]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, the same on all ranks.

        Its tensors are the live ones: write or copy them before the next step. It holds
        only what ``torch.load(weights_only=True)`` reads.
        """
        return {
            "config": self.config.settings(),
            "num_pictures": self.num_pictures,
            "step": self._step,
            "method": self._method.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "health": self._doctor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, with any number of ranks.

        Raises:
            ValueError: it is of another configuration or corpus size.
        """
        changed = self.config.differences(state["config"])
        if state["num_pictures"] != self.num_pictures:
            was, now = state["num_pictures"], self.num_pictures
            changed.append(f"num_pictures was {was}, is {now}")
        if changed:
            raise ValueError(
                f"the checkpoint of step {state['step']} was made with other settings: "
                f"{', '.join(changed)}. A run can only continue with its own. "
                "Restore them, or start a run under a new name."
            )
        self._method.load_state_dict(state["method"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._scaler.load_state_dict(state["scaler"])
        self._doctor.load_state_dict(state["health"])
        self._step = state["step"]

    def encoder(self) -> Encoder:
        """The encoder as trained so far: a copy, in eval mode, with plain modules."""
        encoder = Encoder.initialise(self.config.encoder, self.config.seed)
        encoder.backbone.load_state_dict(self._method.backbone.state_dict())
        encoder.projector.load_state_dict(self._method.projector.state_dict())
        return encoder.to(self.device)


def _build_method(config: PretrainConfig, device: torch.device, start: Encoder | None) -> Method:
    """The method with weights from the seed: all ranks get the same, and no generator moves.

    Those of ``start`` come in before targets are copied, so that these start from them too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        backbone = build_backbone(config.backbone, config.preprocess.size)
        projector = build_projector(config.projector, backbone.feature_dim)
        if start is not None:
            load_start(config, start, backbone, projector)
        dim = config.projector.output_dim if config.projector.num_layers else backbone.feature_dim
        parts = Parts(backbone=backbone, projector=projector, embedding_dim=dim, seed=config.seed)
        method = config.method.build(parts)
    convert_batchnorm(method, device)
    method = method.to(device).to(memory_format=torch.channels_last)
    if config.compile:
        _check_compiler(device)
        for network in method.children():
            network.compile()
    return method


def _check_compiler(device: torch.device) -> None:
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ValueError(
            f"compile is True, and of the C++ compilers {', '.join(compilers)} none is here, which "
            "torch.compile needs for a CPU. Install g++, or leave --compile out."
        )
