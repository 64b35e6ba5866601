"""Sampling with a diffusion model: from a batch of low-resolution images to enlarged ones."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast
from warnings import warn

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import interpolate

from datamodules.batch import Batch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import Guidance
from lightning_modules.diffusion.parameterization import Parameterization
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import KeyedNoise, NoiseOfParts
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.diffusion.space import Space
from lightning_modules.diffusion.tiling import Tiles
from lightning_modules.diffusion.yoda import YODA, Fill, NeverDiffused
from lightning_modules.super_resolver import (
    SuperResolver,
    UnusableImage,
    is_out_of_memory,
    pad_to_stride,
    release_memory,
)

LARGE = 2048 * 2048  # pixels of an enlarged image, above which prediction recommends tiles
TILE = 512  # pixels a side that it recommends
SMALLEST_TILES = 4  # strides a side of the smallest tiles that are tried when memory is short


class DiffusionSampling(SuperResolver):
    """What a diffusion model does with trained weights; `base.DiffusionModule` is given the parts, and trains them."""

    network: nn.Module
    process: Process
    parameterization: Parameterization
    space: Space
    sampler: Sampler
    condition_on: Literal["up", "lr", "none"]
    region: YODA | None
    guidance: list[Guidance]
    tiles: Tiles | None
    memory_format: torch.memory_format
    protocol_suffixes: list[str]
    never_diffused: NeverDiffused

    # What a method overrides.

    def start_image(self, batch: Batch) -> Tensor:
        """The degraded image on the target's grid, `[B,3,H,W]`: encoded, it is the anchor.

        It is computed once a batch; the other hooks find it as `batch["start"]`.
        """
        return batch["up"]

    def condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor]:
        """What the network is shown beside the state, computed once a batch: by default `{image: [B,3,h,w]}`.

        Args:
            batch: With `start`, see `start_image`.
            anchor: The start image as a state, `[B,C,h,w]`.
        """
        if self.condition_on == "none":
            return {}
        return {"image": batch["up"] if self.condition_on == "up" else batch["lr"]}

    def null_condition(self, batch: Batch, anchor: Tensor) -> dict[str, Tensor] | None:
        """The condition without the image, for classifier-free guidance; None where there is none."""
        return None

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The image `[B,3,H,W]` of a clean state `[B,C,h,w]`; not clamped."""
        return self.space.decode(state, batch["up"])

    # What a sampler is given.

    def anchored(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with its start image, and that image as a state, `[B,C,h,w]`."""
        start = self.start_image(batch)
        return {**batch, "start": start}, self.space.encode(start, batch["up"])

    @property
    def chooses_condition(self) -> bool:
        """Whether the method overrides `condition`, so that `condition_on` has no effect."""
        return type(self).condition is not DiffusionSampling.condition

    @property
    def generates(self) -> bool:
        """Whether the model is unconditional: neither network nor process depends on the low-resolution image."""
        return self.condition_on == "none" and not self.chooses_condition and not self.process.anchored

    @property
    def stride(self) -> int:
        """Number of pixels that the padded height and width of an image are multiples of."""
        return cast(int, self.network.stride) * self.space.factor

    @property
    def smallest(self) -> int:
        """The network's stride in pixels; smaller than `stride` in a latent space, where small images are padded."""
        return cast(int, self.network.stride)

    def protocol(self) -> str:
        """The sampler's name and the suffixes of the method, such as "relayheun-7-below-0.9+back-projection"."""
        return "+".join([self.sampler.name(self.process), *self.protocol_suffixes])

    @property
    def padded_to(self) -> int:
        """See `SuperResolver.padded_to`: some networks need more than one multiple of their stride."""
        least: int = cast(Any, getattr(self.network, "smallest", self.network.stride))
        return least * self.space.factor

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """See `SuperResolver.predict`; what does not fit the memory is tried again in smaller and smaller tiles.

        Raises:
            UnusableImage: it does not fit in the smallest tiles either.
        """
        height, width = batch["up"].shape[-2:]
        if self.tiles is None and height * width > LARGE:
            warn(
                f"{batch['key'][0]}: {width}x{height} pixels at once may need more memory than there is; "
                f"--model.init_args.tile {TILE} enlarges such images tile by tile, with slightly different results; "
                "`lightning enlarge` bounds all of the memory",
                stacklevel=2,
            )

        configured = self.tiles
        try:
            for tiles in (configured, *self._smaller_tiles(batch)):
                self.tiles = tiles
                try:
                    return super().predict(batch)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                # Outside of the handler, whose traceback holds the tensors.
                release_memory()
                shown = "at once" if tiles is None else f"in tiles of {tiles.side * self.space.factor} pixels"
                rank_zero_warn(f"{batch['key'][0]}: {width}x{height} pixels {shown} do not fit the memory")
        finally:
            self.tiles = configured

        raise UnusableImage(
            f"{', '.join(batch['key'])}: {width}x{height} pixels do not fit the memory, in small tiles neither; "
            "enlarge parts of the image, or use a device with more memory"
        )

    def _smaller_tiles(self, batch: Batch) -> Iterator[Tiles]:
        """Tiles smaller than the configured ones and than the image, each half as large as the one before."""
        height, width = batch["up"].shape[-2:]
        unit = math.lcm(self.stride, width // batch["lr"].shape[-1])
        side = TILE if self.tiles is None else self.tiles.side * self.space.factor // 2
        while side >= SMALLEST_TILES * unit:
            if side < max(height, width):
                yield self._tiles(side // unit * unit, fitting_overlap(side, unit))
            side //= 2

    def denoiser(self, condition: Mapping[str, Tensor], anchor: Tensor, **fields: Any) -> Denoiser:
        """The denoiser of one batch, as training uses it: without tiles, guidance or bound.

        Args:
            condition: What the network is conditioned on, by name.
            anchor: The start image as a state, `[B,C,h,w]`.
            **fields: Other fields of `Denoiser`.
        """
        return Denoiser(
            network=self.network,
            process=self.process,
            parameterization=self.parameterization,
            anchor=anchor,
            condition=condition,
            memory_format=self.memory_format,
            **fields,
        )

    def prepare(self, batch: Batch, sampler: Sampler | None = None) -> tuple[Batch, Denoiser, KeyedNoise, Fill | None]:
        """All that a sampler needs for a batch: the batch with its start image, denoiser, noise, and YODA's fill.

        Conditions are computed here, once.

        Args:
            batch: Images whose sides are multiples of `stride`.
            sampler: Which it is, where it replaces the configured one.
        """
        batch, anchor = self.anchored(batch)
        activity = fill = None
        if self.region is not None:
            attention = self._attention(self.region, batch)
            activity = self.region.activity(self.process, attention, (sampler or self.sampler).grid(self.process))
            fill = self.region.fill(self.process, anchor, activity, self._noise(batch, "region"))

        denoiser = self.denoiser(
            self.condition(batch, anchor),
            anchor,
            null_condition=self.null_condition(batch, anchor) if self.guidance else None,
            guidance=tuple(self.guidance),
            bound=self.space.bound,
            tiles=self.tiles,
            activity=activity,
        )
        return batch, denoiser, self._noise(batch, "sampler"), fill

    def _noise(self, batch: Batch, purpose: str) -> KeyedNoise:
        """The noise of each image, or that of its place in a larger one."""
        if "place" in batch:
            return NoiseOfParts(batch["key"], purpose, batch["place"], batch["up"].shape[-2])
        return KeyedNoise.of(batch["key"], purpose, self.device)

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Samples a state from the anchor and decodes it."""
        sampler = sampler or self.sampler
        batch, denoiser, randn, fill = self.prepare(batch, sampler)
        state = sampler(denoiser, randn, fill)
        if fill is not None:
            self.never_diffused.note(fill.never_diffused, batch["key"])
        return self.decode(state, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the share of the pixels that YODA's mask never let diffuse."""
        if self.region is not None:
            self.log("val/never_diffused", self.never_diffused)

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        if self.region is not None:
            self.log("test/never_diffused", self.never_diffused)

    def on_predict_epoch_end(self) -> None:
        """Says what validation logs, of this process's images: another may have none, and would not be here."""
        if self.region is not None:
            rank_zero_info(f"never diffused: {self.never_diffused.own():.2%} of the pixels, which stay as enlarged")

    def _attention(self, region: YODA, batch: Batch) -> Tensor:
        """The map on the grid of the states, `[B,1,h,w]`."""
        height, width = batch["up"].shape[-2:]
        return region.attend(
            batch["lr"],
            size=(height, width),
            factor=self.space.factor,
            name=batch["key"][0],
            stored=batch.get("attention"),
        )

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The attention map, and its mask at a few times, where a region is set."""
        if self.region is None:
            return {}
        attention = self._attention(self.region, pad_to_stride(batch, self.stride))
        enlarged = interpolate(attention, scale_factor=float(self.space.factor), mode="nearest")
        height, width = batch["up"].shape[-2:]
        return self.region.preview(enlarged[..., :height, :width])

    def _tiles(self, tile: int, overlap: int | None) -> Tiles:
        if overlap is None:
            overlap = fitting_overlap(tile, self.stride)
        if tile % self.stride or overlap % self.stride or not 0 <= overlap < tile:
            raise ValueError(
                f"tile {tile} and overlap {overlap}: must be multiples of {self.stride}, overlap the smaller"
            )
        return Tiles(tile // self.space.factor, overlap // self.space.factor)


def fitting_overlap(tile: int, unit: int) -> int:
    """An eighth of a tile, in multiples of `unit`, one at least."""
    return max(tile // 8 // unit, 1) * unit
