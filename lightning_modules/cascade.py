"""Several trained methods in a row, each of which enlarges what the one before it made."""

from collections.abc import Mapping
from math import prod
from typing import Any, cast

from torch import Tensor, nn

from datamodules.batch import Batch, make_batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, data_config, no_file, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.super_resolver import SuperResolver

NO_STAGES = "stages: a cascade needs checkpoints, such as '[FIRST.ckpt, SECOND.ckpt]'"


class Cascade(SuperResolver):
    """Chains checkpoints: 16 -> 64 -> 256, or a generator's images and from there on. It is used, never trained.

    A stage's scale, and how low-resolution images are enlarged for it, are those that its checkpoint was trained with.
    With Relay Diffusion as the second stage this is the paper's pipeline (arXiv:2309.03350): the finished image of one
    resolution goes on in the next at a moderate noise level.

    Args:
        stages: Checkpoints, from the smallest images to the largest.
        generate: The first stage ignores the low-resolution image and generates one of its size (an `EDM` with
            `condition_on: none`); `datamodules.seeds.Seeds` is the data for it.
        samplers: One for each stage, null where a stage keeps its own; by default all do.

    Raises:
        ValueError: there are no stages, not as many samplers as stages, or a stage would ignore the images it is given.
        CheckpointError: a checkpoint cannot be used, or does not say what scale it was trained for.
    """

    def __init__(self, stages: list[str], generate: bool = False, samplers: list[Sampler | None] | None = None) -> None:
        super().__init__()
        if not stages:
            raise ValueError(NO_STAGES)
        self.samplers = samplers or [None] * len(stages)
        if len(self.samplers) != len(stages):
            raise ValueError(f"samplers: {len(self.samplers)} for {len(stages)} stages; give one, or null, for each")

        self.stages = nn.ModuleList([load_method(path).requires_grad_(False) for path in stages])
        self.data = [data_config(read_checkpoint(path)) for path in stages]
        for path, data in zip(stages, self.data, strict=True):
            if "scale" not in data:
                raise CheckpointError(f"stages: {path} does not say what scale it was trained for")

        for index, (path, stage) in enumerate(zip(stages, self.stages, strict=True)):
            _check_generator(path, stage, wanted=generate and index == 0)
        self.generate = generate
        if generate:
            self.data[0]["scale"] = 1
            cast(SuperResolver, self.stages[0]).trained_scale = 1

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the stages."""
        if not arguments["stages"]:
            return NO_STAGES
        option = "one of --model.init_args.stages"
        return (
            "; ".join(filter(None, (no_file(path, "a trained method", option) for path in arguments["stages"]))) or None
        )

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Passes the images through every stage.

        Args:
            batch: See `SuperResolver.super_resolve`.
            sampler: Replaces the last stage's.

        Raises:
            ValueError: the stages enlarge by another factor than the data asks for.
        """
        scales = [data["scale"] for data in self.data]
        asked = batch["up"].shape[-1] // batch["lr"].shape[-1]
        if prod(scales) != asked:
            factors, side = " ".join(f"x{scale}" for scale in scales), batch["lr"].shape[-1]
            setting = f"final: {side * prod(scales)}" if self.generate else f"scale: {prod(scales)}"
            raise ValueError(
                f"the stages enlarge by {factors}, x{prod(scales)} in all, but the data is configured for x{asked}: "
                f"set the data's `{setting}`"
            )

        samplers = [*self.samplers[:-1], sampler or self.samplers[-1]]
        image = (batch["lr"] + 1) / 2
        for index, (stage, data) in enumerate(zip(self.stages, self.data, strict=True)):
            assert isinstance(stage, SuperResolver)
            keys = [f"{key}, stage {index + 1}" for key in batch["key"]]  # noise of its own for each stage
            small = make_batch(image, keys, scale=data["scale"], kernel=data.get("up_kernel", "matlab"))
            image = (stage.super_resolve(small, samplers[index]) + 1) / 2
        return image * 2 - 1

    def protocol(self) -> str:
        """What the stages say of themselves, in order."""
        names = []
        for stage, sampler in zip(self.stages, self.samplers, strict=True):
            assert isinstance(stage, SuperResolver)
            if sampler is None or not isinstance(stage, DiffusionModule):
                names.append(stage.protocol())
            else:
                names.append(sampler.name(stage.process))
        return " > ".join(names)


def _check_generator(path: str, stage: nn.Module, wanted: bool) -> None:
    generates = isinstance(stage, DiffusionModule) and stage.generates
    if generates and not wanted:
        raise ValueError(
            f"stages: {path} generates images and ignores those it is given (EDM with condition_on: none); it can only "
            "be the first stage, with `generate: true`"
        )
    if wanted and not generates:
        raise ValueError(
            f"stages: {path} is no generator (EDM with condition_on: none), but configs/command/generate.yaml begins "
            "with one; to enlarge images use configs/command/cascade.yaml"
        )
