"""The trainer that all diffusion methods share."""

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.diffusion.guidance import Guidance
from lightning_modules.diffusion.parameterization import Noised, Parameterization
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.diffusion.space import Space
from lightning_modules.diffusion.yoda import YODA, NeverDiffused
from lightning_modules.sampling import DiffusionSampling
from lightning_modules.super_resolver import in_memory_format


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


class DiffusionModule(DiffusionSampling):
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
        overlap: Overlap of neighbouring tiles, in pixels of the enlarged image; None: about an eighth of a tile.

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
        overlap: int | None = None,
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

    # What a method overrides for training; for sampling see `DiffusionSampling`.

    def losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """Scalars by name that are added to the diffusion loss and logged; none by default."""
        return {}

    # Training.

    def noised(self, batch: Batch, anchor: Tensor) -> Noised:
        """A noisy state of each image of the batch, at a random time."""
        images, device, draws = len(batch["key"]), batch["hr"].device, self.step_draws
        x0 = self.space.encode_target(batch["hr"], batch["up"], draws.noise(images, device))
        t = draws.of_all(self.process.sample_t, images)
        noise = self.process.noise(x0, draws.noise(images, device))
        x_t = self.process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        return Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)

    def training_losses(self, batch: Batch) -> TrainingLosses:
        """Noises the targets, evaluates the network and computes all losses; with a region on its pixels only."""
        batch, anchor = self.anchored(batch)
        noised = self.noised(batch, anchor)
        shown, mask = noised.x_t, None
        if self.region is not None:
            attention = self._attention(self.region, batch)
            mask = self.region.mask(attention, self.process.run_share(noised.t)).to(shown.device)
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
