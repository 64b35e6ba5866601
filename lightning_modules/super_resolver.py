"""The base class of all methods: a module that enlarges batches of low-resolution images."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import pad

from datamodules.batch import Batch
from datamodules.degradations.enlarge import Enlargement
from lightning_modules.diffusion.randomness import StepDraws, seeded
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.resuming import reconfigure
from lightning_modules.sharding import STEPS, Sharded

Module = TypeVar("Module", bound=nn.Module)


class UnusableImage(ValueError):
    """An image that a method cannot enlarge, while it may enlarge others; the message names it and says why."""


class SuperResolver(LightningModule, ABC):
    """The interface that callbacks, commands and SkipDiff rely on.

    A subclass implements `enlarge` and `protocol`. This class pads images to the network's stride, makes the noise of
    an image a function of its key, defines what the evaluation steps return, and what checkpoints hold.

    Attributes:
        draws: Number of images sampled for each input in prediction.
        keeps_frozen: Names of frozen sub-modules that checkpoints hold all the same, because their weights have no
            other source.
        watches_sampling: The method reports more of a test than can be read from its images, so that an interrupted
            test begins anew.
        optimizer: From trainable parameters to an optimizer.
        lr_scheduler: From an optimizer to a scheduler, stepped each training step; None for a constant rate.
        trained_scale: The scale that the weights were trained for; None where that is not known.
        trained_kernel: How `up` was made in training, see `datamodules.degradations.enlarge`.
        step_draws: Where a training step's random numbers come from.
    """

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None = None
    draws: int = 1
    keeps_frozen: tuple[str, ...] = ()
    watches_sampling: bool = False
    trained_scale: int | None = None
    trained_kernel: Enlargement = "matlab"
    step_draws = StepDraws()

    @property
    def stride(self) -> int:
        """Number of pixels that the height and width of the images given to `enlarge` are multiples of."""
        return 1

    @property
    def smallest(self) -> int:
        """Smallest height and width of an enlarged image, in pixels; smaller ones would be mostly padding."""
        return self.stride

    @property
    def padded_to(self) -> int:
        """Smallest height and width, in pixels, that smaller images are padded to; a multiple of `stride`."""
        return self.stride

    @abstractmethod
    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Enlarges a padded batch; called inside `sampling`.

        Args:
            batch: H and W of `up` are multiples of `stride`.
            sampler: Replaces the configured sampler; None for the configured one.

        Returns:
            `[B,3,H,W]`, in [-1, 1] or slightly beyond. It must depend on each image and its key alone.
        """

    @abstractmethod
    def protocol(self) -> str:
        """Name of the sampling procedure in results, such as "ddim-10"."""

    def as_network(self) -> nn.Module | None:
        """The network that makes the image by itself, from `lr` `[B,3,h,w]` of any size to `[B,3,H,W]`, in [-1, 1].

        None where the image needs anything else: noise, the enlarged image, or several evaluations.
        """
        return None

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Additional pictures for the sample grid by title, `[B,1 or 3,H,W]` in [0, 1]."""
        return {}

    def super_resolve(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Enlarges the low-resolution images of a batch.

        Args:
            batch: Only `lr`, `up`, `key` (and `attention`, where present) are read. The result depends on each image
                and its key, and not on the other images of the batch, the rank or the global random state.
            sampler: Replaces the configured sampler.

        Returns:
            `[B,3,H,W]` in [-1, 1].

        Raises:
            UnusableImage: the images are smaller than `smallest`.
            ValueError: the batch is none, or enlarges by another scale than the method was trained for.
        """
        with self.sampling(batch) as padded:
            return trimmed(self.enlarge(padded, sampler), batch)

    @contextlib.contextmanager
    def sampling(self, batch: Batch) -> Iterator[Batch]:
        """A context for sampling: no gradients, and global generators seeded by the images' keys.

        Yields:
            The batch, padded to the network's stride; `trimmed` removes the padding from results.

        Raises:
            UnusableImage: the images are smaller than `smallest`.
            ValueError: the batch is none, or enlarges by another scale than the method was trained for.
        """
        scale = check_batch(batch)
        if self.trained_scale not in (None, scale):
            raise ValueError(
                f"{', '.join(batch['key'])}: the batch enlarges x{scale}, but {type(self).__name__} was trained for "
                f"x{self.trained_scale}: make the batch with scale={self.trained_scale}"
            )

        height, width = batch["up"].shape[-2:]
        if min(height, width) < self.smallest:
            raise UnusableImage(
                f"{', '.join(batch['key'])}: enlarged to {width}x{height} pixels, the image is smaller than the "
                f"{self.smallest} pixels that the network needs on each side; use a larger image"
            )

        with torch.no_grad(), seeded(batch["key"]):
            yield pad_to_stride(batch, self.stride, self.padded_to)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimizer over the trainable parameters; its scheduler counts steps.

        Raises:
            ValueError: the scheduler ends before training does.
        """
        built = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.lr_scheduler is None:
            return built

        scheduler = self.lr_scheduler(built)
        last, trainer = getattr(scheduler, "total_steps", None), self._trainer
        if last is not None and trainer is not None and last < trainer.max_steps:
            raise ValueError(
                f"lr_scheduler: {type(scheduler).__name__} ends at total_steps: {last}, but training goes on to "
                f"max_steps: {trainer.max_steps}; set --model.init_args.lr_scheduler.init_args.total_steps "
                f"{trainer.max_steps}"
            )
        return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def sharded_parts(self) -> dict[nn.Module, tuple[str, ...]]:
        """What may be spread over processes, with the methods in which all of its weights are needed."""
        return {self: STEPS}

    def configure_model(self) -> None:
        """Spreads the weights over processes, under the strategy `Sharded`."""
        if isinstance(self.trainer.strategy, Sharded):
            self.trainer.strategy.shard(self.sharded_parts())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the random numbers of the step, see `StepDraws`."""
        done = cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.total).processed
        self.step_draws = StepDraws.of_step(done, rank=self.global_rank, world_size=self.trainer.world_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Returns `{"sr": [B,3,H,W] in [-1, 1], "panels": {title: [B,C,H,W] in [0, 1]}}` for the callbacks."""
        return {"sr": self.super_resolve(batch), "panels": self.preview(batch)}

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """See `validation_step`; results that an interrupted test left in the batch are not sampled again."""
        if "sr" in batch:
            return {"sr": batch["sr"], "panels": self.preview(batch)}
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Returns `{"sr": [B,3,H,W] in [-1, 1]}` for the prediction writer.

        With several `draws`, `sr` is their mean, and `std`, `[B,3,H,W]`, their standard deviation.

        Images that cannot be enlarged do not end the run: `{"failed": {key: reason}}` is returned instead. For a batch
        whose results exist already, `skip`, nothing is computed and nothing returned.
        """
        if batch.get("skip"):
            return {}
        try:
            return self.predict(batch)
        except UnusableImage as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"{', '.join(batch['key'])}: does not fit the memory"
        return {"failed": dict.fromkeys(batch["key"], reason)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """What `predict_step` returns of images that can be enlarged."""
        if self.draws == 1:
            return {"sr": self.super_resolve(batch)}

        # Welford's running mean and sum of squares, so that not all draws are in memory at once.
        mean, squares = self.super_resolve(batch), torch.zeros_like(batch["up"])
        for draw in range(1, self.draws):
            difference = self.super_resolve(other_draw(batch, draw)) - mean
            mean = mean + difference / (draw + 1)
            squares = squares + difference**2 * draw / (draw + 1)
        return {"sr": mean, "std": (squares / (self.draws - 1)).sqrt()}

    def frozen_keys(self) -> set[str]:
        """Keys of the state dict that checkpoints leave out: those of sub-modules without a trainable parameter."""
        frozen: set[str] = set()
        for name, module in self.named_modules():
            kept = any(name == prefix or name.startswith(f"{prefix}.") for prefix in self.keeps_frozen)
            parameters = list(module.parameters())
            if name and not kept and parameters and not any(parameter.requires_grad for parameter in parameters):
                frozen.update(f"{name}.{key}" for key in module.state_dict())
        return frozen

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes frozen weights, which have their own source, and constructor arguments that are Python objects.

        A model that the command built is described by plain values and can be rebuilt from them. A model built in
        Python has modules as arguments, which `torch.load` with `weights_only` would refuse.
        """
        if "_class_path" not in checkpoint.get("hyper_parameters", {}):
            checkpoint.pop("hyper_parameters", None)
        for key in self.frozen_keys():
            checkpoint["state_dict"].pop(key, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint holds this method; changed arguments of optimizer and scheduler beat the stored.

        Raises:
            ValueError: the checkpoint was written by another class, or training cannot go on from it as configured.
        """
        # Checkpoints of models built in Python have no class path, and are checked by their tensors alone.
        written_by = checkpoint.get("hyper_parameters", {}).get("_class_path")
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        if written_by is not None and written_by != own:
            raise ValueError(f"the checkpoint holds {written_by}, but the configured model is {own}")

        # A model that was built in Python has stored no arguments that could be compared.
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING or written_by is None:
            return
        if "optimizer_states" not in checkpoint:
            raise ValueError(
                f"{self._trainer.ckpt_path}: holds weights alone, without the state of a training run that could go on"
            )
        if not checkpoint["optimizer_states"]:  # an exported method
            rank_zero_info(f"{self._trainer.ckpt_path}: a run begins with these weights, with a new optimizer")
            return
        for change in reconfigure(checkpoint, self.hparams, self.optimizer, self.lr_scheduler):
            rank_zero_info(f"--ckpt_path: {change}")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the weights; `strict` has no effect.

        Keys in `frozen_keys` may be missing, no others.

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


def check_batch(batch: Batch) -> int:
    """Checks that a batch holds images as `make_batch` makes them, and returns the scale.

    Raises:
        ValueError: `lr` or `up` is no batch of RGB images, they do not belong together, or keys are missing.
    """
    lr, up, keys = batch["lr"], batch["up"], batch["key"]
    for name, image in (("lr", lr), ("up", up)):
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ValueError(
                f"{name}: expected floats [B,3,H,W] in [-1, 1], got {list(image.shape)} {image.dtype}; "
                "datamodules.batch.make_batch makes a batch of images in [0, 1]"
            )
    if not len(lr) == len(up) == len(keys):
        raise ValueError(f"lr, up and key hold {len(lr)}, {len(up)} and {len(keys)} images; they must be as many")

    height, width = up.shape[-2:]
    lr_height, lr_width = lr.shape[-2:]
    scale = height // max(lr_height, 1)
    if scale < 1 or (lr_height * scale, lr_width * scale) != (height, width):
        raise ValueError(f"{keys[0]}: {width}x{height} is no whole multiple of {lr_width}x{lr_height}")
    return scale


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a tensor did not fit the memory, of a GPU or of the machine."""
    by_text = "can't allocate memory", "MPS backend out of memory"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in by_text)


def release_memory() -> None:
    """Gives the memory that PyTorch keeps for later back to the GPU."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def trimmed(image: Tensor, batch: Batch) -> Tensor:
    """An image `[B,3,H',W']` of the padded batch without the padding: `[B,3,H,W]` float32, clamped to [-1, 1]."""
    height, width = batch["up"].shape[-2:]
    return image[..., :height, :width].float().clamp(-1, 1)


def other_draw(batch: Batch, draw: int) -> Batch:
    """The batch with other keys, so that its noise differs from that of the other draws."""
    return cast(Batch, {**batch, "key": [f"{key}, draw {draw + 1}" for key in batch["key"]]})


def pad_to_stride(batch: Batch, stride: int, least: int = 1) -> Batch:
    """The batch with `up` padded at the right and the bottom to multiples of `stride`, and `lr` accordingly.

    Padding reflects the image, or repeats its edge where the image is smaller than the padding.

    Args:
        batch: The images.
        stride: What height and width become multiples of, in pixels of `up`.
        least: What they are at least, in pixels of `up`.

    Raises:
        ValueError: `up` is not a whole multiple of `lr`.
    """
    scale = check_batch(batch)
    lr_height, lr_width = batch["lr"].shape[-2:]

    # `lr` is padded by whole pixels, so that both images still show the same area.
    unit = stride // math.gcd(stride, scale)  # pixels of lr; `unit * scale` is a multiple of the stride
    below, right = (
        max(side + -side % unit, -(-least // (unit * scale)) * unit) - side for side in (lr_height, lr_width)
    )
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


def in_memory_format(module: Module, memory_format: torch.memory_format) -> Module:
    """The same module, with the weights of its convolutions converted to a memory format."""
    # The stub of Module.to lacks the overload that takes a memory format alone.
    return cast(Module, module.to(memory_format=memory_format))  # type: ignore[call-overload]
