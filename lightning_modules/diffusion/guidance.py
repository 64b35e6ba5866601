"""Guidance: corrections of a denoiser's estimate.

Guidance gets and returns estimates that are not clamped; the denoiser clamps once, after the last correction (`bound`).
So extrapolating the clean state equals extrapolating the noise, as the papers write it.

In a list of corrections the first is innermost. The combination of classifier-free and self-attention guidance that
diffusers implements is `[ClassifierFreeGuidance(...), SelfAttentionGuidance(..., branch="unconditional")]`.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.process import expand


class Guidance(ABC):
    """A correction of the estimate of the clean state."""

    def check(self, network: nn.Module, *, null_condition: bool) -> None:
        """Called once when the model is built.

        Args:
            network: The network that will be guided.
            null_condition: Whether the method has a null condition.

        Raises:
            ValueError: the guidance cannot work with this network or method.
        """

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, /) -> Tensor:
        """The corrected estimate of the clean state, `[B,C,h,w]`, not bounded.

        Args:
            denoiser: The denoiser with the corrections before this one; `denoiser.guided` gives their estimate.
            x_t: State, `[B,C,h,w]`.
            t: Time, `[B]`.
        """


class ClassifierFreeGuidance(Guidance):
    """Extrapolates from the unconditional to the conditional estimate (Eq. 6 of arXiv:2207.12598).

    Args:
        scale: 1 gives the conditional estimate, 0 the unconditional one; the paper's w is `scale - 1`.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def check(self, network: nn.Module, *, null_condition: bool) -> None:
        """See `Guidance.check`."""
        if not null_condition:
            raise ValueError(
                "ClassifierFreeGuidance needs a method with a null condition (its `null_condition`), and this one has "
                "none: take it out of `guidance`"
            )

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, /) -> Tensor:
        """`unconditional + scale * (conditional - unconditional)`."""
        conditional = denoiser.guided(x_t, t)
        if self.scale == 1:
            return conditional
        unconditional = denoiser.unconditional().guided(x_t, t)
        return unconditional + self.scale * (conditional - unconditional)


class SelfAttentionGuidance(Guidance):
    """Self-attention guidance (SAG, arXiv:2210.00939): steers away from a copy blurred where the attention is high.

    The estimate of the clean state is blurred where a token receives more than the average attention. The blurred
    estimate is noised to time t with the same noise and denoised again, and the difference is added:
    `x0 + scale * (blurred - estimate of the noised blurred)`. Because the mean of every process is linear, this is the
    paper's rule, which is written for the noise. It costs one more evaluation of the network, with the same conditions.

    The published settings are `kernel=31` with `sigma=9` at 256 px and `sigma=3` at 128 px in pixels, `kernel=9` with
    `sigma=1` in latents, and scales of 0.5 to 0.8 for unconditional, 0.1 to 0.2 for conditional models. The released
    code's `guide_scale` is `1 + scale`.

    Args:
        layer: Dotted path of the self-attention in the network whose weights are read; None for the network's
            `middle_attention`.
        scale: How far to extrapolate; 0 turns guidance off.
        mask: `attention` blurs where the attention is high; `uniform` blurs everywhere, for networks without softmax
            attention.
        threshold: Received attention above which a position is blurred; the mean over positions is 1.
        kernel: Side of the blur kernel in state pixels, odd. A state must be larger than half of it on each side.
        sigma: Standard deviation of the blur in state pixels.
        t_range: Guidance is applied at times `low <= t <= high`.
        branch: Which estimate is blurred and compared; `unconditional` with classifier-free guidance, as in diffusers.

    Raises:
        ValueError: `kernel` is even.
    """

    def __init__(
        self,
        layer: str | None = None,
        scale: float = 0.25,
        *,
        mask: Literal["attention", "uniform"] = "attention",
        threshold: float = 1.0,
        kernel: int = 31,
        sigma: float = 3.0,
        t_range: tuple[float, float] = (0.0, 1.0),
        branch: Literal["conditional", "unconditional"] = "conditional",
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"the blur kernel must have an odd side, got kernel: {kernel}")
        self.layer, self.scale, self.mask, self.threshold = layer, scale, mask, threshold
        self.kernel, self.sigma, self.t_range, self.branch = kernel, sigma, t_range, branch

    def check(self, network: nn.Module, *, null_condition: bool) -> None:
        """Looks up the layer and the null condition.

        Raises:
            ValueError: the network has no self-attention at `layer`, or `branch` needs a null condition that the method
                does not have.
        """
        self._layer(network)
        if self.branch == "unconditional" and not null_condition:
            raise ValueError("branch: unconditional needs a method with a null condition; set branch: conditional")

    def _layer(self, network: nn.Module) -> nn.Module | None:
        if self.mask == "uniform":
            return None
        return self_attention(network, self.layer or getattr(network, "middle_attention", None))

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, /) -> Tensor:
        """The estimate plus `scale` times the difference to that of the blurred state, at times in `t_range`."""
        acts = (t >= self.t_range[0]) & (t <= self.t_range[1])
        if self.scale == 0 or not acts.any():
            return denoiser.guided(x_t, t)

        # The map comes from the estimate that is blurred; the other branch, if any, is evaluated beside it.
        probed = denoiser if self.branch == "conditional" else denoiser.unconditional()
        layer = self._layer(denoiser.network)
        with received_by(layer) as maps:
            estimate = (probed if layer is None else probed.whole()).guided(x_t, t)  # the map is of the whole state
        plain = estimate if probed is denoiser else denoiser.guided(x_t, t)

        # The same noise around the blurred state: the mean is linear, so the state moves by the difference of means.
        blurred = self.degrade(denoiser.bound(estimate), maps)
        mean = denoiser.process.mean
        shift = mean(x0=blurred, anchor=denoiser.anchor, t=t) - mean(x0=estimate, anchor=denoiser.anchor, t=t)
        corrected = plain + self.scale * (blurred - probed.guided(x_t + shift, t))
        return torch.where(expand(acts, x_t) > 0, corrected, plain)

    def degrade(self, x0: Tensor, maps: list[Tensor]) -> Tensor:
        """The clean state blurred where the attention is above the threshold, `[B,C,h,w]`.

        Args:
            x0: Estimate of the clean state.
            maps: The maps that `received_by` recorded: exactly one, `[B,h',w']` or `[B,tokens]`; unused by `uniform`.

        Raises:
            ValueError: the state is too small for the kernel, or the layer did not run exactly once.
        """
        if min(x0.shape[-2:]) <= self.kernel // 2:
            raise ValueError(
                f"a blur kernel of {self.kernel} reflects {self.kernel // 2} pixels at the border, but the state is "
                f"{x0.shape[-1]}x{x0.shape[-2]}: set kernel to at most {2 * min(x0.shape[-2:]) - 1}"
            )

        blurred: Tensor = gaussian_blur2d(
            x0, (self.kernel, self.kernel), (self.sigma, self.sigma), border_type="reflect"
        )
        if self.mask == "uniform":
            return blurred

        if len(maps) != 1:
            raise ValueError(
                f"the self-attention ran {len(maps)} times in one estimate instead of once. With classifier-free "
                "guidance set branch: unconditional; a compiled network hides its layers (set compile: false), and one "
                "that works in tiles has many maps (set mask: uniform, or no tiles)"
            )
        return torch.where(self.select(maps[0], x0), blurred, x0)

    def select(self, received: Tensor, x0: Tensor) -> Tensor:
        """Where to blur, boolean `[B,1,h,w]` on the grid of `x0`, from attention `[B,h',w']` or `[B,tokens]`."""
        if received.dim() == 2:  # tokens in row-major order, of a grid with the proportions of the state
            # Networks shrink both sides by the same factor, so the number of tokens gives it.
            shrink = round((x0.shape[-2] * x0.shape[-1] / received.shape[1]) ** 0.5)
            received = received.view(-1, x0.shape[-2] // shrink, x0.shape[-1] // shrink)
        return interpolate((received > self.threshold).float()[:, None], size=x0.shape[-2:], mode="nearest") > 0


def received_attention(weights: Tensor) -> Tensor:
    """Attention that each key receives: averaged over heads and summed over queries, so that the mean over keys is 1.

    Args:
        weights: `[B,heads,queries,keys]`, each row summing to 1.

    Returns:
        `[B,keys]`.
    """
    return weights.mean(dim=1).sum(dim=1)


def _is_recordable(module: nn.Module) -> bool:
    """Whether a layer is a self-attention of this project (`received_attention`) or of diffusers (a processor)."""
    if hasattr(module, "received_attention"):
        return True
    return hasattr(module, "set_processor") and not getattr(module, "is_cross_attention", False)


def self_attention(network: nn.Module, path: str | None) -> nn.Module:
    """The self-attention at a dotted path of the network.

    Raises:
        ValueError: there is no self-attention at `path`; the message lists all paths that have one.
    """
    found: dict[str, nn.Module] = {name: layer for name, layer in network.named_modules() if _is_recordable(layer)}
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no softmax self-attention for SelfAttentionGuidance to read: set "
            "mask: uniform, which blurs everywhere, or take it out of `guidance`"
        )

    if path is None or path not in found:
        raise ValueError(f"{type(network).__name__} has no self-attention at layer: {path}; it has {', '.join(found)}")
    return found[path]


@contextlib.contextmanager
def received_by(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """A context that records the attention that positions receive in `layer`; it restores the layer at the end.

    Fused attention kernels do not return their weights, so the weights are computed a second time, in full precision.

    Yields:
        A list that gets one map each time the layer runs: `[B,h',w']` for layers of this project, `[B,tokens]` for
        those of diffusers. It stays empty if `layer` is None.
    """
    maps: list[Tensor] = []
    if layer is None:
        yield maps

    elif hasattr(layer, "received_attention"):
        read: Any = layer.received_attention
        handle = layer.register_forward_hook(lambda _, inputs, __: maps.append(_in_full(read, layer, inputs[0])))
        try:
            yield maps
        finally:
            handle.remove()

    else:
        attention: Any = layer
        processor = attention.processor
        attention.set_processor(RecordingProcessor(processor, maps))
        try:
            yield maps
        finally:
            attention.set_processor(processor)


def _in_full(read: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    """`read(x)` without autocast, in the precision of the layer's weights, because it is compared with a threshold."""
    own = (parameter.dtype for parameter in layer.parameters())
    dtype = next(own, torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        return read(x.to(dtype))


class RecordingProcessor:
    """An attention processor for diffusers that records the attention each token receives, then calls `inner`.

    Args:
        inner: The processor that it replaces.
        maps: The list that maps `[B,tokens]` are appended to.
    """

    def __init__(self, inner: Any, maps: list[Tensor]) -> None:
        self.inner, self.maps = inner, maps

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Records the map of `hidden_states`, `[B,tokens,C]`; returns the output of `inner`."""

        def read(tokens: Tensor) -> Tensor:
            query, key = (
                projection(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2).float()
                for projection in (attention.to_q, attention.to_k)
            )
            return received_attention((query @ key.transpose(-1, -2) * attention.scale).softmax(dim=-1))

        self.maps.append(_in_full(read, attention, hidden_states))
        return self.inner(attention, hidden_states, *args, **kwargs)
