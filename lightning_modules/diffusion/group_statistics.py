"""GroupNorm on windows with the statistics of the whole state."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of each GroupNorm by its name, `[B,groups]` each."""


class GroupStatistics:
    """Means and variances that a network's GroupNorms found on whole states, replayed when they are shown windows.

    Neighbouring noise levels have similar statistics, so those of an earlier step serve for a while. Replaying is not
    exact: they age, and what attends over the whole state still sees the window alone.

    Args:
        images: Of the batch.
        refresh: How many evaluations on windows the statistics of an image serve for.
    """

    def __init__(self, images: int, refresh: int) -> None:
        self.refresh = refresh
        self.uses = [refresh] * images  # none recorded yet, so all are due
        self.moments: Moments = {}

    def due(self, image: int) -> bool:
        """Whether an image must be evaluated as a whole before its windows are."""
        return self.uses[image] >= self.refresh

    def used(self, image: int) -> None:
        """Counts an evaluation of an image on windows."""
        self.uses[image] += 1

    @contextlib.contextmanager
    def recording(self, network: nn.Module, images: Tensor) -> Iterator[None]:
        """Inside, one evaluation of whole states of `images`, indices `[b]`, leaves its statistics here."""
        handles = [
            layer.register_forward_pre_hook(partial(self._record, name, images)) for name, layer in group_norms(network)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for image in images.tolist():
            self.uses[image] = 0

    def _record(self, name: str, images: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.GroupNorm)
        grouped = inputs[0].float().reshape(len(images), layer.num_groups, -1)
        variance, mean = torch.var_mean(grouped, dim=-1, correction=0)
        if name not in self.moments:
            empty = mean.new_zeros(len(self.uses), layer.num_groups)
            self.moments[name] = (empty, empty.clone())
        for kept, found in zip(self.moments[name], (mean, variance), strict=True):
            kept[images.to(kept.device)] = found

    @contextlib.contextmanager
    def replaying(self, network: nn.Module, images: Tensor) -> Iterator[None]:
        """Inside, the network normalises windows with these statistics; `images [n]` says whose each window is."""
        layers = group_norms(network)
        for name, layer in layers:
            mean, variance = (kept[images.to(kept.device)] for kept in self.moments[name])
            layer.forward = partial(normalise, layer, mean, variance)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for _, layer in layers:
                del layer.forward

    def fork(self) -> Self:
        """Statistics that go on from here by themselves."""
        other = type(self)(len(self.uses), self.refresh)
        other.uses = list(self.uses)
        other.moments = {name: (mean.clone(), variance.clone()) for name, (mean, variance) in self.moments.items()}
        return other


def group_norms(network: nn.Module) -> list[tuple[str, nn.GroupNorm]]:
    """The GroupNorms of a network and their names."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.GroupNorm)]


def normalise(layer: nn.GroupNorm, mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    """What a GroupNorm makes of `x [n,C,...]` with the given moments, `[n,groups]` each, instead of its own."""
    per_group = x.shape[1] // layer.num_groups
    scale = (variance + layer.eps).rsqrt().repeat_interleave(per_group, dim=1)
    shift = -mean.repeat_interleave(per_group, dim=1) * scale
    if layer.affine:
        scale, shift = scale * layer.weight, shift * layer.weight + layer.bias
    shape = (*scale.shape, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x.float(), scale.view(shape)).to(x.dtype)
