"""BatchNorm whose statistics do not depend on how a batch is spread over ranks.

torch's SyncBatchNorm refuses CPU tensors, and plain BatchNorm under several ranks computes
something else than under one. `CrossRankBatchNorm` takes its statistics over the global batch on
any device; `SplitBatchNorm` takes them over fixed groups of the batch, which MoCo's key encoder
needs. Both keep nn.BatchNorm's parameters and buffers under the same names, so their weights load
into plain modules.

Shapes: N pictures, R rows (every place of every picture), C channels, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from encoders.collective import gather_rows, group, world_size

__all__ = [
    "CrossRankBatchNorm",
    "SplitBatchNorm",
    "convert_batchnorm",
    "hold_running_statistics",
    "paused_statistics",
    "split_batchnorm",
]

Norm = TypeVar("Norm", bound=_BatchNorm)

# Half a megabyte of float32: a block and its copies stay in the second-level cache.
BLOCK_ELEMENTS = 1 << 17


class CrossRankBatchNorm(_BatchNorm):
    """BatchNorm over the global batch of all ranks, for [N, C] and [N, C, ...] inputs.

    Means and squared deviations of the ranks are merged by Chan's formula, which stays exact when
    the mean is large against the deviation and when the ranks hold different numbers of rows. One
    collective forward, one backward. One rank takes the same way: torch's own BatchNorm adds up in
    another order, whose gradients on a CPU are some ten times further from float64's, and such a
    difference grows from step to step.

    Source: Ioffe and Szegedy 2015, algorithm 1; Chan, Golub and LeVeque 1979, eq. 2.1. Deviation:
    none.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"BatchNorm input has shape {tuple(input.shape)}, it must be [N, C, ...]. "
                "Add the batch dimension."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training mode with the global batch's statistics, which are tracked."""
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)
        normalised, mean_C, var_C, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(mean_C, var_C * (count / (count - 1)))
        return normalised  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean_C: Tensor, unbiased_var_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # torch's convention: a plain mean over all batches
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_var_C.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """On [R, C] rows, a view of channels_last maps; sums over dims 0, 2, 3 are far slower.

    Float32 on a processor goes through `encoders.batchnorm_kernel`. Elsewhere several operations of
    torch follow each other on a block of rows that fits in a core's cache, instead of each on all
    rows: memory is read two or three times less often.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows_RC = _rows(x)
        mean_C, var_C, count = _global_moments(rows_RC).to(_wide(x)).unbind()
        count = count[0]
        invstd_C = torch.rsqrt(var_C + eps)
        ctx.save_for_backward(x, weight_C, mean_C, invstd_C, count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        if _is_compiled(x):
            from encoders.batchnorm_kernel import normalise

            scale_C = invstd_C if weight_C is None else invstd_C * weight_C
            # No view of its rows: autograd lets nothing be done in place to a view made in here.
            normalised = torch.empty_permuted(x.shape, (0, *range(2, x.dim()), 1))
            normalise(rows_RC, mean_C, scale_C, bias_C, _rows(normalised))
        else:
            normalised = F.batch_norm(x, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)
        return normalised, mean_C, var_C, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight_C, mean_C, invstd_C, count = ctx.saved_tensors
        grad_RC, x_RC = _rows(grad), _rows(x)
        own_sums_2C = _gradient_sums(grad_RC, x_RC, mean_C)
        own_sums_2C[1] *= invstd_C
        sums_2C = own_sums_2C.clone()
        if world_size() > 1:
            dist.all_reduce(sums_2C, group=group())
        grad_mean_C, slope_C = sums_2C / count
        scale_C = invstd_C if weight_C is None else invstd_C * weight_C
        # Of the gradient, less its mean, less its slope times what was normalised.
        factors_3C = torch.stack([scale_C, -slope_C * invstd_C * scale_C, -grad_mean_C * scale_C])
        grad_x_RC = _input_gradient(grad_RC, x_RC, mean_C, factors_3C.to(x_RC.dtype))
        grad_x = grad_x_RC.to(x.dtype).view(x.movedim(1, -1).shape).movedim(-1, 1)
        if weight_C is None:
            return grad_x, None, None, None
        grad_bias_C, grad_weight_C = own_sums_2C.to(weight_C.dtype)
        return grad_x, grad_weight_C, grad_bias_C, None


def _blocks(rows_RC: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows_RC, max(1, BLOCK_ELEMENTS // rows_RC.shape[1]))


def _is_compiled(rows_RC: Tensor) -> bool:
    """Whether compiled passes take these rows."""
    return rows_RC.device.type == "cpu" and rows_RC.dtype == torch.float32


def _gradient_sums(grad_RC: Tensor, x_RC: Tensor, mean_C: Tensor) -> Tensor:
    """Sums [2, C] of the gradient, and of it times the row less the mean, on this rank."""
    if _is_compiled(x_RC):
        from encoders.batchnorm_kernel import gradient_sums

        return gradient_sums(grad_RC, x_RC, mean_C)
    blocks = list(zip(_blocks(grad_RC), _blocks(x_RC), strict=True))
    sums_B2C = grad_RC.new_empty(len(blocks), 2, grad_RC.shape[1])
    for sums_2C, (grads, values) in zip(sums_B2C, blocks, strict=True):
        torch.sum(grads, 0, out=sums_2C[0])
        torch.sum((values - mean_C).mul_(grads), 0, out=sums_2C[1])
    return sums_B2C.sum(0)


def _input_gradient(grad_RC: Tensor, x_RC: Tensor, mean_C: Tensor, factors_3C: Tensor) -> Tensor:
    """``scale * grad + slope * (x - mean) + shift``, [R, C]."""
    if _is_compiled(x_RC):
        from encoders.batchnorm_kernel import input_gradient

        return input_gradient(grad_RC, x_RC, mean_C, factors_3C)
    scale_C, slope_C, shift_C = factors_3C
    grad_x_RC = torch.empty_like(x_RC)
    for out, grads, values in zip(*map(_blocks, (grad_x_RC, grad_RC, x_RC)), strict=True):
        torch.sub(values, mean_C, out=out)
        torch.addcmul(shift_C, out, slope_C, out=out)
        out.addcmul_(grads, scale_C)
    return grad_x_RC


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor) -> Tensor:
    """[N, C, ...] as [R, C] in at least float32, contiguous."""
    return x.to(_wide(x)).movedim(1, -1).reshape(-1, x.shape[1]).contiguous()


def _global_moments(rows_RC: Tensor) -> Tensor:
    """Mean, biased variance and count over the rows of all ranks: [3, C]."""
    own_3C = _own_moments(rows_RC)
    return own_3C if world_size() == 1 else _merge_moments(gather_rows(own_3C.unsqueeze(0)))


def _own_moments(rows_RC: Tensor) -> Tensor:
    """Those of this rank's rows, [3, C]; of compiled code in float64."""
    if _is_compiled(rows_RC):
        from encoders.batchnorm_kernel import moments

        return moments(rows_RC)
    return _merge_moments(torch.stack([_moments(block_RC) for block_RC in _blocks(rows_RC)]))


def _moments(rows_RC: Tensor) -> Tensor:
    mean_C = rows_RC.mean(0)
    var_C = (rows_RC - mean_C).square_().mean(0)
    return torch.stack([mean_C, var_C, torch.full_like(mean_C, len(rows_RC))])


def _merge_moments(moments_P3C: Tensor) -> Tensor:
    """Those of all rows, [3, C], from those of P parts."""
    means_PC, vars_PC, counts_PC = moments_P3C.unbind(1)
    count_C = counts_PC.sum(0)
    mean_C = (means_PC * counts_PC).sum(0) / count_C
    var_C = ((vars_PC + (means_PC - mean_C).square()) * counts_PC).sum(0) / count_C
    return torch.stack([mean_C, var_C, count_C])


class SplitBatchNorm(_BatchNorm):
    """BatchNorm with statistics over each of ``num_groups`` consecutive groups of the rows.

    On one device it stands for the independent BatchNorms of that many devices. It never touches
    its running statistics: those of a momentum encoder come from the online encoder.

    Source: He et al. 2020 (MoCo), section 3.3, shuffling BN. Deviation: the groups are cut from the
    global batch, so they are the same for every number of ranks.
    """

    num_groups = 1

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or (self.training and input.shape[0] % self.num_groups):
            raise ValueError(
                f"SplitBatchNorm got an input of shape {tuple(input.shape)} for {self.num_groups} "
                "groups; the rows must divide evenly. Change the batch size or key_groups."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise group by group in training mode; with the running statistics otherwise."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        groups = [
            F.batch_norm(group, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for group in input.chunk(self.num_groups)
        ]
        return torch.cat(groups)


def convert_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm but `SplitBatchNorm` by one over the ranks; its tensors are kept.

    Args:
        module: changed in place, unless it is itself a BatchNorm.
        device: on CUDA torch's fused SyncBatchNorm is used, elsewhere `CrossRankBatchNorm`.

    Returns:
        The converted module.
    """
    kind = nn.SyncBatchNorm if device.type == "cuda" else CrossRankBatchNorm
    return _replace(module, lambda old: _like(kind, old))


def split_batchnorm(module: nn.Module, num_groups: int) -> nn.Module:
    """Replace every BatchNorm by a `SplitBatchNorm` of ``num_groups``; returns the module."""

    def split(old: _BatchNorm) -> _BatchNorm:
        new = _like(SplitBatchNorm, old)
        new.num_groups = num_groups
        return new

    return _replace(module, split)


def hold_running_statistics(module: nn.Module) -> None:
    """Stop forward passes from moving running statistics, which a momentum encoder gets by EMA."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.momentum = 0.0


@contextmanager
def paused_statistics(module: nn.Module) -> Iterator[None]:
    """While it lasts, normalise as ever in training mode and move no running statistics."""
    norms = [
        child
        for child in module.modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _replace(module: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> nn.Module:
    if isinstance(module, SplitBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        return make(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, make))
    return module


def _like(kind: type[Norm], old: _BatchNorm) -> Norm:
    """A module of another kind that shares the parameters and buffers of ``old``.

    What ``old`` holds beside them follows it as before: timm's BatchNorms bring their activation.
    """
    new = kind(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    if isinstance(new, nn.SyncBatchNorm):
        new.process_group = group()
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)
    for name, child in old.named_children():
        new.add_module(name, child)
    if next(old.children(), None) is not None:
        new.register_forward_hook(_go_on)
    new.train(old.training)
    return new


def _go_on(norm: nn.Module, _: Any, normalised: Tensor) -> Tensor:
    for child in norm.children():
        normalised = child(normalised)
    return normalised
