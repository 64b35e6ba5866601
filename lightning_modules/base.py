"""The diffusion trainer that the methods share."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, TypeVar, cast
from warnings import warn

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.diffusion.guidance import Guidance
from lightning_modules.diffusion.parameterization import Noised, Parameterization
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.region import Region, resize_attention
from lightning_modules.diffusion.samplers import AfterStep, Denoise, Sampler
from lightning_modules.diffusion.space import Space
from lightning_modules.diffusion.tiling import tiled
from lightning_modules.super_resolver import SuperResolver

Module = TypeVar("Module", bound=nn.Module)

PREVIEW_TIMES = (0.75, 0.5, 0.25)  # at which a sample grid shows the region's mask
LARGE = 2048 * 2048  # pixels of an enlarged image, above which prediction recommends tiles
TILE = 512  # of a side recommended


class DiffusionModule(SuperResolver):
    """The shared diffusion trainer.

    A method overrides `condition` and at most three more hooks: `null_condition`, `start_image`, `extra_losses`.

    Args:
        network: `forward(x [B,C,h,w], label [B], **condition) -> [B,C,h,w]`, with an int attribute `stride`.
        process: The forward process.
        parameterization: What the network reads and writes.
        space: Where diffusion runs.
        sampler: Draws images in validation, test and prediction.
        region: Restricts diffusion to regions (YODA).
        guidance: Wraps the denoiser when sampling; the first is innermost.
        norm: Of the difference between output and target.
        optimizer: From trainable parameters to an optimizer.
        lr_scheduler: From an optimizer to a scheduler, stepped each training step.
        channels_last: Keep convolutions in the memory format that CPUs and GPUs run fastest.
        compile: Compile the network with torch.compile.
        draws: Images drawn of each in prediction; of several, their mean and standard deviation are written.
        tile: When sampling, the network is evaluated on overlapping tiles of this many pixels of the enlarged image a
            side, which bounds its memory; the result differs slightly. None: on the whole image.
        overlap: Of the tiles, in pixels of the enlarged image.

    Raises:
        ValueError: `draws` is below 1, or the tiles do not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        space: Space,
        sampler: Sampler,
        region: Region | None = None,
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
        self.save_hyperparameters()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = in_memory_format(network, self.memory_format)
        self.process, self.parameterization, self.space, self.sampler = process, parameterization, space, sampler
        self.region, self.guidance, self.norm = region, guidance or [], norm
        has_null = type(self).null_condition is not DiffusionModule.null_condition
        for wrapper in self.guidance:
            wrapper.check(network, null_condition=has_null)
        sampler.grid(process)  # refuses an impossible pair now and not at the first validation
        self.optimizer, self.lr_scheduler, self.draws = optimizer, lr_scheduler, draws
        self.tile, self.overlap = tile, overlap
        if tile is not None and (tile % self.stride or overlap % self.stride or not 0 <= overlap < tile):
            raise ValueError(
                f"tile {tile} and overlap {overlap}: must be multiples of {self.stride}, overlap the smaller"
            )
        if compile:
            self.network.compile()

    # What a method overrides.

    @abstractmethod
    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """What the network is shown beside the state, computed once per image."""

    def null_condition(self, batch: Batch) -> dict[str, Tensor] | None:
        """The condition of nothing, for classifier-free guidance; None where there is none."""
        return None

    def start_image(self, batch: Batch) -> Tensor:
        """The degraded image on the target's grid, `[B,3,H,W]`; encoded, it is the anchor."""
        return batch["up"]

    def extra_losses(self, batch: Batch, noised: Noised, output: Tensor) -> dict[str, Tensor]:
        """Further scalars that are logged by name and added to the loss."""
        return {}

    def anchor(self, batch: Batch) -> Tensor:
        """The start image as a state, `[B,C,h,w]`."""
        return self.space.encode(self.start_image(batch), batch["up"])

    # Training.

    def noised(self, batch: Batch) -> Noised:
        """One training draw for each image of the batch."""
        x0 = self.space.encode_target(batch["hr"], batch["up"])
        anchor = self.anchor(batch)
        t = self.process.sample_t(x0.shape[0], x0.device)
        noise = self.process.noise(x0)
        x_t = self.process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        return Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Draws, predicts, and compares with the target; masked where a region is set."""
        noised = self.noised(batch)
        mask = self._train_mask(batch, noised)
        output = self.evaluate(self._train_input(noised, mask), noised.t, self.condition(batch))
        losses = {"loss": self.diffusion_loss(noised, output, mask), **self.extra_losses(batch, noised, output)}
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch["key"]))
        return {"loss": torch.stack(list(losses.values())).sum(), "t": noised.t}

    def evaluate(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """One evaluation of the network, `[B,C,h,w]` in float32 whatever the precision it runs in."""
        x, label = self.parameterization.read(self.process, x_t, t)
        output: Tensor = self.network(x.contiguous(memory_format=self.memory_format), label, **condition)
        return output.to(x_t.dtype)

    def _evaluate_in_tiles(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        if self.tile is None:
            return self.evaluate(x_t, t, condition)
        tile, overlap = self.tile // self.space.factor, self.overlap // self.space.factor
        return tiled(lambda x, shown: self.evaluate(x, t, shown), x_t, condition, tile=tile, overlap=overlap)

    def _train_mask(self, batch: Batch, noised: Noised) -> Tensor | None:
        if self.region is None:
            return None
        mask = self.region.mask(self._attention(batch, noised.x0), self.process.tick(noised.t))
        self.log("train/active_fraction", mask.mean(), batch_size=len(batch["key"]))
        return mask

    def _train_input(self, noised: Noised, mask: Tensor | None) -> Tensor:
        if self.region is None or mask is None:
            return noised.x_t
        anchor = noised.anchor
        filled = self.process.diffuse(x0=anchor, anchor=anchor, t=noised.t, noise=noised.noise)
        return self.region.train_input(noised.x_t, filled=filled, mask=mask)

    def diffusion_loss(self, noised: Noised, output: Tensor, mask: Tensor | None) -> Tensor:
        """The weighted distance between output and target, over the mask's pixels where there is one; a scalar."""
        difference = output - self.parameterization.target(self.process, noised)
        loss = difference.abs() if self.norm == "l1" else difference.square()
        loss = loss * expand(self.parameterization.weight(self.process, noised.t), loss)
        return loss.mean() if self.region is None or mask is None else self.region.reduce(loss, mask)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimizer over what is trainable; its scheduler counts steps."""
        return configure(self, self.optimizer, self.lr_scheduler)

    # Sampling.

    @property
    def stride(self) -> int:
        """Images are padded to multiples of it."""
        return cast(int, self.network.stride) * self.space.factor

    @property
    def smallest(self) -> int:
        """The network's stride, also where a latent space asks for more: small images are padded to that."""
        return cast(int, self.network.stride)

    def protocol(self) -> str:
        """The sampler's name."""
        return self.sampler.name

    def predict_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """As every method's; says beforehand of a large image what bounds the memory that it takes."""
        height, width = batch["up"].shape[-2:]
        if self.tile is None and height * width > LARGE:
            warn(
                f"{batch['key'][0]}: {width}x{height} pixels at once may need more memory than there is; "
                f"--model.init_args.tile {TILE} enlarges such images tile by tile, with slightly different results",
                stacklevel=2,
            )
        return super().predict_step(batch, batch_idx)

    def denoiser(self, batch: Batch, anchor: Tensor) -> Denoise:
        """The guided estimate of the clean state as a function of (x_t, t); conditions are computed once, here."""
        denoise = self._estimate(self.condition(batch), anchor)
        null = self.null_condition(batch) if self.guidance else None
        unconditional = None if null is None else self._estimate(null, anchor)
        for guidance in self.guidance:
            denoise = guidance.wrap(
                denoise,
                process=self.process,
                anchor=anchor,
                network=self.network,
                unconditional=unconditional,
                bound=self.space.bound,
            )
        # Bounded last: extrapolating unbounded estimates of x0 is the same as extrapolating the noise.
        return lambda x_t, t, rows=None: self.space.bound(denoise(x_t, t, rows))

    def _estimate(self, condition: Mapping[str, Tensor], anchor: Tensor) -> Denoise:
        def estimate(x_t: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
            shown = condition if rows is None else {name: value[rows] for name, value in condition.items()}
            here = anchor if rows is None else anchor[rows]
            output = self._evaluate_in_tiles(x_t, t, shown)
            return self.parameterization.x0(self.process, output, x_t=x_t, anchor=here, t=t)

        return estimate

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Samples a state from the anchor and decodes it."""
        anchor = self.anchor(batch)
        with self.process.drawing_from(self.generators(batch["key"], "sampler")):
            state = (sampler or self.sampler)(
                self.denoiser(batch, anchor), self.process, anchor, self.region_fill(batch, anchor)
            )
        return self.space.decode(state, batch["up"])

    def region_fill(self, batch: Batch, anchor: Tensor) -> AfterStep | None:
        """After each step, pixels that do not diffuse yet hold the anchor at the new noise level (YODA)."""
        region = self.region
        if region is None:
            return None
        attention = self._attention(batch, anchor)
        # Noise of its own, so that the diffusing pixels draw what they would draw without a region.
        generators = self.generators(batch["key"], "region")
        noise: Tensor | None = None

        def fill(x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
            nonlocal noise
            if noise is None or region.fresh():
                with self.process.drawing_from(generators):
                    noise = self.process.noise(anchor)
            waiting = self.process.diffuse(x0=anchor, anchor=anchor, t=s, noise=noise)
            return torch.lerp(waiting.to(x_s), x_s, region.mask(attention, self.process.tick(t)).to(x_s))

        return fill

    def _attention(self, batch: Batch, state: Tensor) -> Tensor:
        """The batch's map, where the data carries one, else the region's, on the state's grid."""
        assert self.region is not None
        attention = batch["attention"] if "attention" in batch else self.region.attend(batch["lr"])
        return resize_attention(attention.double(), (state.shape[-2], state.shape[-1]))

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The attention map, and its mask at a few times, where a region is set."""
        if self.region is None:
            return {}
        attention = self._attention(batch, batch["up"])
        time = attention.new_ones(attention.shape[0])
        masks = {f"mask t={t}": self.region.mask(attention, t * time) for t in PREVIEW_TIMES}
        return {"attention": attention.float(), **masks}


def configure(
    module: nn.Module, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """An optimizer over the module's trainable parameters, and a scheduler that counts steps."""
    built = optimizer(parameter for parameter in module.parameters() if parameter.requires_grad)
    if lr_scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": lr_scheduler(built), "interval": "step"}}


def in_memory_format(module: Module, memory_format: torch.memory_format) -> Module:
    """The module itself, the weights of its convolutions in a memory format."""
    # The stub of Module.to lacks the overload that takes a memory format alone.
    return cast(Module, module.to(memory_format=memory_format))  # type: ignore[call-overload]
