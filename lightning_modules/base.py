"""What every method is (`SuperResolver`) and the diffusion trainer that most of them share (`DiffusionModule`)."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, cast
from warnings import warn

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import pad

from datamodules.batch import Batch
from lightning_modules.diffusion.guidance import Guidance
from lightning_modules.diffusion.parameterization import Noised, Parameterization
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.region import Region, resize_attention
from lightning_modules.diffusion.samplers import AfterStep, Denoise, Sampler
from lightning_modules.diffusion.space import Space
from lightning_modules.networks.tiling import tiled

Module = TypeVar("Module", bound=nn.Module)

PREVIEW_TIMES = (0.75, 0.5, 0.25)  # at which a sample grid shows the region's mask
LARGE = 2048 * 2048  # pixels of an enlarged image, above which prediction recommends tiles
TILE = 512  # of a side recommended


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on `parts` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def global_seed() -> int:
    """What `seed_everything` was called with; 0 where it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class SuperResolver(LightningModule, ABC):
    """Everything that callbacks, the command line and SkipDiff rely on.

    A subclass says how a batch is enlarged. Padding to the network's stride, the noise of each image, what the loops
    return and what a checkpoint holds are settled here.
    """

    draws: int = 1  # of each image in prediction
    keeps_frozen: tuple[str, ...] = ()  # frozen sub-modules that a checkpoint must hold, having no source of their own

    @property
    def stride(self) -> int:
        """H and W of what `enlarge` is given are multiples of it."""
        return 1

    @property
    def smallest(self) -> int:
        """Pixels that an enlarged image must have on each side; less would be mostly padding."""
        return self.stride

    @abstractmethod
    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """`[B,3,H,W]` for a batch whose H and W are multiples of `stride`; noise only from this image's generators."""

    @abstractmethod
    def protocol(self) -> str:
        """How images are drawn, as results name it: "ddim-10"."""

    def adapt_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This module's state dict from the state dict of a published checkpoint, each tensor used once.

        Raises:
            NotImplementedError: there are no published weights for this method.
            ValueError: the file belongs to another configuration.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published checkpoints to import")

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Further pictures for the sample grid, `[B,1 or 3,H,W]` in [0, 1], by title."""
        return {}

    @torch.no_grad()
    def super_resolve(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Enlarges the low-resolution images of a batch.

        Args:
            batch: Only `lr`, `up`, `key` (and `attention`, where present) are read. The result is a function of each
                image and its key: not of its batch, its rank or the global random state.
            sampler: Replaces the configured one.

        Returns:
            `[B,3,H,W]` in [-1, 1].

        Raises:
            ValueError: the images are smaller than `smallest`.
        """
        height, width = batch["up"].shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"{', '.join(batch['key'])}: enlarged to {width}x{height} pixels, the image is smaller than the "
                f"{self.smallest} pixels that the network needs on each side; use a larger image"
            )
        with isolate_rng():
            torch.manual_seed(stable_seed(global_seed(), *batch["key"]))
            sr = self.enlarge(pad_to_stride(batch, self.stride), sampler)
        return sr[..., :height, :width].float().clamp(-1, 1)

    def generators(self, keys: Iterable[str], purpose: str) -> list[torch.Generator]:
        """One generator per image for one purpose, a function of the global seed and the image's key."""
        return [torch.Generator(self.device).manual_seed(stable_seed(global_seed(), key, purpose)) for key in keys]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseeds from (seed, rank, batches so far): ranks differ, and a resumed run draws what it would have drawn.

        Epochs do not enter: where the stream is endless, the end of a run ends one, and resuming begins another.
        """
        torch.manual_seed(stable_seed(global_seed(), self.global_rank, self.trainer.fit_loop.total_batch_idx))

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """`{"sr": [B,3,H,W], "panels": {title: [B,C,H,W] in [0, 1]}}`; callbacks make scores and pictures of it."""
        return {"sr": self.super_resolve(batch), "panels": self.preview(batch)}

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """As `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """`{"sr": [B,3,H,W]}`, for the prediction writer; of several draws, their mean and `{"std": [B,3,H,W]}`."""
        if self.draws == 1:
            return {"sr": self.super_resolve(batch)}
        mean, squares = self.super_resolve(batch), torch.zeros_like(batch["up"])
        for draw in range(1, self.draws):
            difference = self.super_resolve(other_draw(batch, draw)) - mean
            mean = mean + difference / (draw + 1)
            squares = squares + difference**2 * draw / (draw + 1)
        return {"sr": mean, "std": (squares / (self.draws - 1)).sqrt()}

    def frozen_keys(self) -> set[str]:
        """Entries of the state dict that checkpoints leave out: those of wholly frozen sub-modules."""
        frozen: set[str] = set()
        for name, module in self.named_modules():
            kept = any(name == prefix or name.startswith(f"{prefix}.") for prefix in self.keeps_frozen)
            parameters = list(module.parameters())
            if name and not kept and parameters and not any(parameter.requires_grad for parameter in parameters):
                frozen.update(f"{name}.{key}" for key in module.state_dict())
        return frozen

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen weights out; they come from their own source."""
        for key in self.frozen_keys():
            checkpoint["state_dict"].pop(key, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another method.

        Raises:
            ValueError: the checkpoint was written by another class.
        """
        written_by = checkpoint.get("hyper_parameters", {}).get("_class_path")
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        if written_by is not None and written_by != own:
            raise ValueError(f"the checkpoint holds {written_by}, but the configured model is {own}")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads everything but frozen weights, whatever `strict` says.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            shapes = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise ValueError(f"the weights do not fit {type(self).__name__} as configured: {shapes}") from error
        missing = sorted(set(result.missing_keys) - self.frozen_keys())
        problems = [f"missing {key}" for key in missing] + [f"unknown {key}" for key in result.unexpected_keys]
        if problems:
            listed = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
            raise ValueError(f"the weights do not fit {type(self).__name__} as configured: {listed}")
        return result


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


def other_draw(batch: Batch, draw: int) -> Batch:
    """The batch under other keys, for which noise is drawn anew."""
    return cast(Batch, {**batch, "key": [f"{key}, draw {draw + 1}" for key in batch["key"]]})


def pad_to_stride(batch: Batch, stride: int) -> Batch:
    """The batch with `up` padded on the right and below to multiples of `stride`, and `lr` with it.

    Both are reflected where they are large enough and repeated at the edge where they are not.

    Raises:
        ValueError: `up` is not a whole multiple of `lr`.
    """
    height, width = batch["up"].shape[-2:]
    lr_height, lr_width = batch["lr"].shape[-2:]
    scale = height // lr_height
    if (lr_height * scale, lr_width * scale) != (height, width):
        raise ValueError(f"{batch['key'][0]}: {width}x{height} is no whole multiple of {lr_width}x{lr_height}")
    unit = stride // math.gcd(stride, scale)  # the smallest step of lr that fits the stride
    below, right = -lr_height % unit, -lr_width % unit
    if below == right == 0:
        return batch
    padded: dict[str, Any] = {**batch, "lr": _pad(batch["lr"], below, right)}
    for key in ("up", "attention"):
        if key in batch:
            padded[key] = _pad(cast(dict[str, Tensor], batch)[key], below * scale, right * scale)
    return cast(Batch, padded)


def _pad(image: Tensor, below: int, right: int) -> Tensor:
    height, width = image.shape[-2:]
    mode = "reflect" if below < height and right < width else "replicate"
    return pad(image, (0, right, 0, below), mode=mode)
