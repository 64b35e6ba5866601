"""The training and sampling that all diffusion methods share."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from warnings import warn

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.functional import interpolate

from datamodules.batch import Batch
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import Guidance
from lightning_modules.diffusion.parameterization import Noised, Parameterization
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.randomness import KeyedNoise
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.diffusion.space import Space
from lightning_modules.diffusion.tiling import Tiles
from lightning_modules.diffusion.yoda import YODA, Fill, NeverDiffused
from lightning_modules.super_resolver import (
    SuperResolver,
    UnusableImage,
    in_memory_format,
    is_out_of_memory,
    pad_to_stride,
)

LARGE = 2048 * 2048  # pixels of an enlarged image, above which prediction recommends tiles
TILE = 512  # pixels a side that it recommends
SMALLEST_TILES = 4  # strides a side of the smallest tiles that are tried when memory is short


@dataclass(frozen=True)
class TrainingLosses:
    """The losses of one training batch, and the tensors that they were computed from.

    Attributes:
        losses: Scalars by name; their sum is minimized.
        noised: The noisy states, their times and their noise.
        output: The network's output, `[B,C,h,w]`.
        mask: Pixels that enter the loss, `[B,1,h,w]` in {0, 1}; None if all do.
    """

    losses: dict[str, Tensor]
    noised: Noised
    output: Tensor
    mask: Tensor | None


class DiffusionModule(SuperResolver):
    """Base class of all diffusion methods: training losses, sampling and the optimizer.

    A method overrides at most these hooks: `condition`, `null_condition`, `start_image`, `decode`, `losses` and
    Lightning's `setup`, which loads what is needed before training.

    Args:
        network: `forward(x [B,C,h,w], label [B], **condition) -> [B,C,h,w]`, with an int attribute `stride`, an
            attribute `conditioning` that says which `label` of the parameterization it expects, and an attribute
            `global_statistics` that is true where it normalises or attends over the whole state.
        process: The forward process.
        parameterization: What the network reads and writes.
        space: Where diffusion runs.
        sampler: Draws images in validation, test and prediction.
        condition_on: The image that the network is shown beside the state: `up`, the enlarged low-resolution image;
            `lr`, as it came, for a network that brings it to the size of the state; or `none`.
        region: YODA: which pixels diffuse at which times; None: all pixels always diffuse.
        guidance: Corrections of the estimate when sampling; the first is innermost.
        norm: Norm of the difference between the network's output and its target in the loss.
        optimizer: From trainable parameters to an optimizer.
        lr_scheduler: From an optimizer to a scheduler, stepped each training step.
        channels_last: Keep convolutions in the memory format that CPUs and GPUs run fastest.
        compile: Compile the network with torch.compile.
        draws: Number of images sampled for each input in prediction. With more than one, their mean and standard
            deviation are written.
        tile: When sampling, the network is evaluated on overlapping tiles of this many pixels of the enlarged image a
            side, which bounds its memory; the result differs slightly. None: on the whole image.
        overlap: Overlap of neighbouring tiles, in pixels of the enlarged image.

    Raises:
        ValueError: `draws` is below 1, tiles do not fit the network, network and parameterization disagree on what
            tells the time, or `condition_on` is given to a method that decides itself.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        space: Space,
        sampler: Sampler,
        condition_on: Literal["up", "lr", "none"] = "up",
        region: YODA | None = None,
        guidance: list[Guidance] | None = None,
        norm: Literal["l1", "l2"] = "l2",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        channels_last: bool = True,
        compile: bool = False,
        draws: int = 1,
        tile: int | None = None,
        overlap: int = 64,
    ) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        if condition_on != "up" and self.chooses_condition:
            raise ValueError(f"{type(self).__name__} decides itself what its network is shown; leave condition_on out")
        parameterization.check(network)
        sampler.grid(process)  # refuses an impossible pair now and not at the first validation

        self.save_hyperparameters()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = in_memory_format(network, self.memory_format)
        self.process, self.parameterization, self.space, self.sampler = process, parameterization, space, sampler
        self.condition_on, self.region, self.guidance, self.norm = condition_on, region, guidance or [], norm
        self.optimizer, self.lr_scheduler, self.draws = optimizer, lr_scheduler, draws
        self.protocol_suffixes: list[str] = []  # what a method adds to the name of how it samples
        self.tiles = None if tile is None else self._tiles(tile, overlap)

        has_null = type(self).null_condition is not DiffusionModule.null_condition
        for correction in self.guidance:
            correction.check(network, null_condition=has_null)
        if region is not None:
            region.check(network, tiled=tile is not None, compiled=compile)
        self.never_diffused = NeverDiffused()
        if compile:
            self.network.compile()

    def _tiles(self, tile: int, overlap: int) -> Tiles:
        if tile % self.stride or overlap % self.stride or not 0 <= overlap < tile:
            raise ValueError(
                f"tile {tile} and overlap {overlap}: must be multiples of {self.stride}, overlap the smaller"
            )
        return Tiles(tile // self.space.factor, overlap // self.space.factor)

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

    def losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """Scalars by name that are added to the diffusion loss and logged; none by default."""
        return {}

    def decode(self, state: Tensor, batch: Batch) -> Tensor:
        """The image `[B,3,H,W]` of a clean state `[B,C,h,w]`; not clamped."""
        return self.space.decode(state, batch["up"])

    # Training.

    def anchored(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with its start image, and that image as a state, `[B,C,h,w]`."""
        start = self.start_image(batch)
        return {**batch, "start": start}, self.space.encode(start, batch["up"])

    def noised(self, batch: Batch, anchor: Tensor) -> Noised:
        """A noisy state of each image of the batch, at a random time."""
        x0 = self.space.encode_target(batch["hr"], batch["up"])
        t = self.process.sample_t(x0.shape[0])
        noise = self.process.noise(x0)
        x_t = self.process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        return Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)

    def training_losses(self, batch: Batch) -> TrainingLosses:
        """Noises the targets, evaluates the network and computes all losses; with a region on its pixels only."""
        batch, anchor = self.anchored(batch)
        noised = self.noised(batch, anchor)
        shown, mask = noised.x_t, None
        if self.region is not None:
            attention = self._attention(self.region, batch)
            mask = self.region.mask(attention, self.process.run_share(noised.t))
            shown = self.region.training_input(self.process, noised, mask)

        output = self.denoiser(self.condition(batch, anchor), anchor).output(shown, noised.t)
        losses = {"loss": self.diffusion_loss(noised, output, mask), **self.losses(batch, noised, output)}
        return TrainingLosses(losses, noised, output, mask)

    def diffusion_loss(self, noised: Noised, output: Tensor, mask: Tensor | None) -> Tensor:
        """The weighted distance between output and target, over the mask's pixels where there is one; a scalar."""
        difference = output - self.parameterization.target(self.process, noised)
        loss = difference.abs() if self.norm == "l1" else difference.square()
        loss = loss * expand(self.parameterization.weight(self.process, noised.t), loss)
        return loss.mean() if self.region is None or mask is None else self.region.reduce(loss, mask)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Logs each loss; returns their sum, and the times that were drawn."""
        result = self.training_losses(batch)
        size = len(batch["key"])
        for name, value in result.losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=size)
        if result.mask is not None:
            self.log("train/active_fraction", result.mask.mean(), batch_size=size)
        return {"loss": torch.stack(list(result.losses.values())).sum(), "t": result.noised.t}

    # Sampling.

    @property
    def chooses_condition(self) -> bool:
        """Whether the method overrides `condition`, so that `condition_on` has no effect."""
        return type(self).condition is not DiffusionModule.condition

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
                f"--model.init_args.tile {TILE} enlarges such images tile by tile, with slightly different results",
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
                torch.cuda.empty_cache()
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
                yield self._tiles(side // unit * unit, side // 8 // unit * unit)
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
            noise = KeyedNoise.of(batch["key"], "region", self.device)
            fill = self.region.fill(self.process, anchor, activity, noise)
        denoiser = self.denoiser(
            self.condition(batch, anchor),
            anchor,
            null_condition=self.null_condition(batch, anchor) if self.guidance else None,
            guidance=tuple(self.guidance),
            bound=self.space.bound,
            tiles=self.tiles,
            activity=activity,
        )
        return batch, denoiser, KeyedNoise.of(batch["key"], "sampler", self.device), fill

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
