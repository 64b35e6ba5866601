"""YODA: an attention map decides when each pixel joins the diffusion (arXiv:2308.07977)."""

import math
from collections.abc import Sequence
from copy import copy
from typing import Literal
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchmetrics import MeanMetric

from lightning_modules.diffusion.parameterization import Noised
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import KeyedNoise
from lightning_modules.diffusion.sparse import ROUNDING, Activity, Sparse, diffuses
from lightning_modules.float64 import in_float64

SURPRISING = 0.01  # share of pixels that never diffused, above which a warning is given
PREVIEW_TIMES = (0.75, 0.5, 0.25)  # shares of the run at which a sample grid shows the mask


class YODA(nn.Module):
    """A pixel diffuses once `attention + lower_bound` is at least the share of the run that lies ahead.

    A pixel joins at its own time and stays; until then it holds the low-resolution image noised to the level of the
    moment. In training the loss is masked. Any method takes it as its `region`. The share of the run is the paper's
    t / T for processes that start at t = 1; others say what it is (`Process.run_share`).

    With few steps, pixels whose attention plus lower bound stays below the share that the last step begins at never
    diffuse: they are the enlarged image as it came. `whole_end` prevents it.

    With `tile` the map is constant on tiles, in training too, and when sampling the network is evaluated only around
    those that diffuse: time follows the attention (the paper names it as open). See `sparse.Sparse` for when this is
    exact. Train with `input_mode: composite`, which shows the network what it will see.

    Args:
        attention: Module from the low-resolution image `[B,3,h,w]` in [-1, 1] to a map `[B,1,h',w']` in [0, 1].
        lower_bound: The paper's l, in (0, 1]: every pixel diffuses at least for this share of a run with enough steps.
        mask_norm: `all` divides the masked loss by all pixels; `active` by the diffusing ones, image by image.
        input_mode: `hr` shows the network the noised target everywhere; `composite` shows it the noised
            low-resolution image where the mask is 0, as sampling does.
        lr_noise: `fresh` noise for the waiting pixels at each step, or one `fixed` draw for the run.
        whole_end: In the last steps of every run, the lower bound's share of them and at least one, all pixels
            diffuse.
        tile: Side of the tiles, in pixels of the state: a multiple of the network's stride, and in the image of the
            scale. None: the map stays as it is, and the network sees whole states.
        tile_statistic: What a tile takes from the map.
        halo: Pixels around a tile that the network is shown as well, a multiple of its stride.
        statistics: For a network with statistics over the whole state (GroupNorm): those of each window, `tile`, for
            networks that were trained on crops of the window's size, `tile + 2 * halo`; or `replay` those that the last
            evaluation of the whole image found. Attention sees the window in both.
        refresh: With `replay`, evaluations on windows after which the whole image is evaluated again.
        dense_above: See `Sparse`.
        at_once: See `Sparse`.

    Raises:
        ValueError: `lower_bound` or an option of tiles is out of range, or an option of tiles is given without them.
    """

    def __init__(
        self,
        attention: nn.Module,
        lower_bound: float = 0.1,
        mask_norm: Literal["all", "active"] = "all",
        input_mode: Literal["hr", "composite"] = "hr",
        lr_noise: Literal["fresh", "fixed"] = "fresh",
        *,
        whole_end: bool = False,
        tile: int | None = None,
        tile_statistic: Literal["mean", "quantile75"] = "mean",
        halo: int = 16,
        statistics: Literal["tile", "replay"] | None = None,
        refresh: int = 10,
        dense_above: float | None = None,
        at_once: int = 8,
    ) -> None:
        super().__init__()
        if not 0 < lower_bound <= 1:
            raise ValueError(
                f"lower_bound {lower_bound} is outside (0, 1]; at 0, pixels without attention never diffuse"
            )

        self.attention = attention
        self.lower_bound, self.mask_norm, self.input_mode, self.lr_noise = lower_bound, mask_norm, input_mode, lr_noise
        self.whole_end, self.tile_statistic, self.statistics = whole_end, tile_statistic, statistics
        self.sparse: Sparse | None = None

        if tile is not None:
            if tile < 1 or halo < 0 or at_once < 1 or refresh < 1 or (dense_above is not None and dense_above <= 0):
                raise ValueError(
                    f"tile: {tile}, at_once: {at_once} and refresh: {refresh} must be at least 1, halo: {halo} at "
                    f"least 0, and dense_above: {dense_above} positive or left out"
                )
            self.sparse = Sparse(tile, halo, at_once, dense_above, refresh if statistics == "replay" else None)
        elif statistics is not None or dense_above is not None:
            raise ValueError(
                "statistics and dense_above concern tiles, and there are none: set tile, or leave them out"
            )

    def check(self, network: nn.Module, *, tiled: bool, compiled: bool) -> None:
        """Called once when the model is built.

        Args:
            network: The method's network.
            tiled: Whether whole states are evaluated tile by tile.
            compiled: Whether the network is compiled.

        Raises:
            ValueError: the tiles do not fit the network, or its statistics are not seen to.
        """
        if self.sparse is None:
            return
        stride, name = int(getattr(network, "stride", 1)), type(network).__name__
        for option, pixels in (("tile", self.sparse.tile), ("halo", self.sparse.halo)):
            if pixels % stride:
                raise ValueError(f"region.init_args.{option}: {pixels} must be a multiple of {name}'s stride, {stride}")

        if getattr(network, "global_statistics", False) and self.statistics is None:
            raise ValueError(
                f"{name} computes statistics over the whole state, which a tile does not see: set "
                "region.init_args.statistics to tile, best for a network trained on crops of "
                f"{self.sparse.tile + 2 * self.sparse.halo} pixels, or to replay"
            )
        if self.statistics != "replay":
            return
        if not any(isinstance(layer, nn.GroupNorm) for layer in network.modules()):
            raise ValueError(f"{name} has no GroupNorm whose statistics could be replayed: leave statistics out")
        if tiled or compiled:
            option = "tile" if tiled else "compile"
            raise ValueError(
                f"statistics: replay reads the network's layers on whole states, which model.init_args.{option} "
                f"prevents: leave {option} out, or set region.init_args.statistics to tile"
            )

    def _check_image(self, *, name: str, size: tuple[int, int], scale: int, factor: int) -> None:
        """Checks that the tiles fit the images of a batch.

        Args:
            name: Of the first image.
            size: Height and width of its state.
            scale: Pixels of the enlarged image to one of the low-resolution image.
            factor: Pixels of the enlarged image to one of the state.

        Raises:
            ValueError: the tiles do not fit the image.
        """
        if self.sparse is None:
            return
        if self.sparse.tile * factor % scale or self.sparse.halo * factor % scale:
            raise ValueError(
                f"region.init_args.tile: {self.sparse.tile} and halo: {self.sparse.halo} cover no whole pixels of a "
                f"low-resolution image that is {scale} times smaller: choose multiples of {scale}"
            )

        if self.sparse.halo >= min(size):
            raise ValueError(
                f"{name}: region.init_args.halo: {self.sparse.halo} is larger than the image, whose state is "
                f"{size[1]}x{size[0]} pixels; use a smaller halo or a larger image"
            )

    @torch.no_grad()
    def attend(
        self,
        lr: Tensor,
        *,
        size: tuple[int, int],
        factor: int = 1,
        name: str = "the image",
        stored: Tensor | None = None,
    ) -> Tensor:
        """The attention map of low-resolution images on the grid of the states, constant on tiles where there are any.

        Args:
            lr: `[B,3,h,w]` in [-1, 1].
            size: Height and width of the enlarged images.
            factor: Pixels of the enlarged image to one of the state, each way.
            name: Of the first image, for errors.
            stored: The map that the data carries, `[B,1,*size]` in [0, 1], which is taken instead of computing one.

        Returns:
            `[B,1,H/factor,W/factor]` in [0, 1], see `in_float64`.

        Raises:
            ValueError: the stored map has another size, or the tiles do not fit the images.
        """
        if stored is not None and stored.shape[-2:] != size:
            raise ValueError(
                f"{name}: the attention map is {stored.shape[-1]}x{stored.shape[-2]} pixels and the enlarged image "
                f"{size[1]}x{size[0]}; make the maps from these images with configs/command/attend.yaml"
            )
        grid = size[0] // factor, size[1] // factor
        self._check_image(name=name, size=grid, scale=size[0] // lr.shape[-2], factor=factor)

        attention: Tensor = self.attention(lr) if stored is None else stored
        attention = resize(in_float64(attention), grid)
        return attention if self.sparse is None else on_tiles(attention, self.sparse.tile, self.tile_statistic)

    def mask(self, attention: Tensor, share: Tensor) -> Tensor:
        """Which pixels diffuse where `share [B]` of a run lies ahead: `[B,1,h,w]` in {0, 1}, from a map `[B,1,h,w]`.

        The mask is where the map is: see `in_float64`.
        """
        return diffuses(in_float64(attention) + self.lower_bound, share).float()

    def training_input(self, process: Process, noised: Noised, mask: Tensor) -> Tensor:
        """What the network is shown in training, `[B,C,h,w]`: see `input_mode`."""
        if self.input_mode == "hr":
            return noised.x_t
        waiting = process.diffuse(x0=noised.anchor, anchor=noised.anchor, t=noised.t, noise=noised.noise)
        return torch.lerp(waiting, noised.x_t, mask)

    def reduce(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Masked mean of a loss `[B,C,h,w]`, over all or over the active pixels; a scalar."""
        masked = loss * mask
        if self.mask_norm == "all":
            return masked.mean()
        active = mask.sum(dim=(1, 2, 3)).clamp(min=1) * loss.shape[1]
        return (masked.sum(dim=(1, 2, 3)) / active).mean()

    def activity(self, process: Process, attention: Tensor, times: Tensor) -> Activity:
        """When each pixel joins in a run along `times`, falling, from a map `[B,1,h,w]`."""
        joins = in_float64(attention) + self.lower_bound
        if self.whole_end:
            steps = len(times) - 1
            last = math.ceil(self.lower_bound * steps - ROUNDING)
            joins = joins.clamp(min=process.run_share(times[steps - last, None]).item())
        return Activity.of(process, joins, self.sparse)

    def fill(self, process: Process, anchor: Tensor, activity: Activity, randn: KeyedNoise) -> "Fill":
        """What is done after each step of a run that starts from `anchor [B,C,h,w]`, with noise of its own."""
        return Fill(process, anchor, activity, randn, fixed=self.lr_noise == "fixed")

    def preview(self, attention: Tensor) -> dict[str, Tensor]:
        """Pictures for the sample grid by title: the map `[B,1,H,W]` and its mask at a few times."""
        ones = torch.ones(attention.shape[0])
        masks = {f"mask t={t}": self.mask(attention, t * ones) for t in PREVIEW_TIMES}
        return {"attention": attention.float(), **masks}


class Fill:
    """After a step from t to s, pixels that did not diffuse at t hold the anchor at the noise level of s.

    Args:
        process: The forward process.
        anchor: The degraded image as a state, `[B,C,h,w]`.
        activity: Which pixels diffuse.
        randn: Noise of its own, so that the diffusing pixels draw what they would draw without a region.
        fixed: One draw of it for the run instead of fresh noise at each step.
    """

    def __init__(self, process: Process, anchor: Tensor, activity: Activity, randn: KeyedNoise, *, fixed: bool) -> None:
        self.process, self.anchor, self.activity, self.randn = process, anchor, activity, randn
        self.fixed = process.noise(anchor, randn) if fixed else None
        self.diffused = torch.zeros_like(activity.joins, dtype=torch.bool, device=anchor.device)

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """The state that goes on, `[B,C,h,w]`; `t` and `s` are `[B]`."""
        anchor, process = self.anchor, self.process
        noise = process.noise(anchor, self.randn) if self.fixed is None else self.fixed
        waiting = process.diffuse(x0=anchor, anchor=anchor, t=s, noise=noise)
        mask = self.activity.mask(t).to(x_s.device)
        self.diffused = self.diffused | (mask & (s < t).to(mask.device).view(-1, 1, 1, 1))
        return torch.where(mask, x_s, waiting.to(x_s))

    @property
    def never_diffused(self) -> Tensor:
        """Share of the pixels of each image that no step has diffused yet, `[B]`."""
        return 1 - self.diffused.float().mean(dim=(1, 2, 3))

    def fork(self) -> "Fill":
        """See `samplers.AfterStep.fork`."""
        other = copy(self)
        other.randn = self.randn.fork()
        return other


def resize(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """A map on another grid, bilinearly: `[B,1,*size]`."""
    if attention.shape[-2:] == size:
        return attention
    return interpolate(attention, size=size, mode="bilinear", align_corners=False)


def on_tiles(attention: Tensor, tile: int, statistic: Literal["mean", "quantile75"]) -> Tensor:
    """A map `[B,1,h,w]` whose tiles, smaller ones at the right and below, all have one value: in the same shape."""
    height, width = attention.shape[-2:]
    result = torch.empty_like(attention)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = slice(top, top + tile), slice(left, left + tile)
            values = attention[..., *part].flatten(1)
            value = values.mean(dim=1) if statistic == "mean" else values.quantile(0.75, dim=1)
            result[..., *part] = value.view(-1, 1, 1, 1)
    return result


class NeverDiffused(MeanMetric):
    """Share of the pixels that no step diffused, over the images of an evaluation; warns of the first large one."""

    def __init__(self) -> None:
        super().__init__()
        self._warned = False

    def note(self, shares: Tensor, keys: Sequence[str]) -> None:
        """Adds the shares `[B]` of the images of these keys."""
        self.update(shares)
        if self._warned or shares.max() <= SURPRISING:
            return
        self._warned = True
        warn(
            f"{keys[int(shares.argmax())]}: {shares.max().item():.1%} of the pixels never diffused and are the "
            "enlarged image as it came, for attention plus lower_bound stays below the share of the run that the last "
            "step takes: use more steps, a larger region.init_args.lower_bound, or region.init_args.whole_end true",
            stacklevel=2,
        )

    def own(self) -> float:
        """The mean over the images of this process alone, which is forgotten then."""
        share = float(self.mean_value) / float(self.weight)
        self.reset()
        return share
