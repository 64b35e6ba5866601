"""Applies recipes that are lists of operations, a different list to each image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from datamodules.degradations.blur import blur
from datamodules.degradations.degradation import Recipe
from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.jpeg import compress
from datamodules.degradations.noise import add_gaussian_noise, add_poisson_noise
from datamodules.degradations.resize import rescale, resize
from datamodules.degradations.threads import map_in_threads

OPERATIONS = {
    "blur": blur,
    "rescale": rescale,
    "gaussian_noise": add_gaussian_noise,
    "poisson_noise": add_poisson_noise,
    "jpeg": compress,
}


def apply_recipes(recipes: Sequence[Recipe], hr: Tensor, *, scale: int) -> Tensor:
    """Degrades `hr` (`[B,3,H,W]` in [0,1]) by each recipe's `operations`; `[B,3,H/scale,W/scale]` on 8-bit levels.

    On a GPU the batch stays together: images wait for each other, so that an operation which some recipes skip does not
    split the batch for good. On the CPU images are processed one at a time, which is faster there, and makes the result
    independent of the batch to the last bit.

    Raises:
        KeyError: a recipe names an unknown operation.
        ValueError: the operations do not end in the low-resolution size, or an image is too small for a kernel.
    """
    low = hr.shape[-2] // scale, hr.shape[-1] // scale
    programs = [recipe["operations"] for recipe in recipes]
    if len(hr) == 0:
        return hr.new_zeros(0, 3, *low)

    with full_precision():
        if hr.device.type == "cpu":
            return map_in_threads(
                lambda i: run_programs(ImageBatch.from_tensor(hr[i : i + 1]), programs[i : i + 1], low), len(hr)
            )
        return run_programs(ImageBatch.from_tensor(hr), programs, low)


@contextmanager
def full_precision() -> Iterator[None]:
    """Full float32 products, whatever a training run allows (TF32, bfloat16): JPEG's rounding would differ."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


@torch.no_grad()
def run_programs(images: ImageBatch, programs: Sequence[Sequence[Recipe]], low: tuple[int, int]) -> Tensor:
    """Runs one list of operations per image; the images with the most operations left are always next."""
    done = [0] * len(programs)
    while any(count < len(program) for count, program in zip(done, programs, strict=True)):
        furthest_behind = max(range(len(programs)), key=lambda i: len(programs[i]) - done[i])
        name = programs[furthest_behind][done[furthest_behind]]["name"]
        chosen = [
            i for i, program in enumerate(programs) if done[i] < len(program) and program[done[i]]["name"] == name
        ]
        part = apply_operation(name, images.select(chosen), [programs[i][done[i]] for i in chosen], low)
        images = images.replaced(chosen, part)
        for i in chosen:
            done[i] += 1

    if not images.same_size or images.size != low:
        raise ValueError(f"the operations end at {images.heights} x {images.widths} instead of {low}")
    return images.pixels[..., : low[0], : low[1]].mul(255).round_().clamp_(0, 255).div_(255)


def apply_operation(name: str, images: ImageBatch, operations: Sequence[Recipe], low: tuple[int, int]) -> ImageBatch:
    """One operation, on the images that it is the next one for."""
    if name == "resize":
        return resize(images, operations, low=low)
    if name not in OPERATIONS:
        raise KeyError(f"unknown operation {name!r}; there are resize, {', '.join(OPERATIONS)}")
    return OPERATIONS[name](images, operations)
