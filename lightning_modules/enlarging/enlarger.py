"""A trained method with the scale and the kernel that it was trained for, applied to whatever holds an image."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.batch import assembled
from datamodules.degradations.levels import as_tensor, from_levels
from datamodules.folder import keyed
from datamodules.images import find_images
from datamodules.photograph import Levels, Photograph, photograph_of, pillow_image, read_photograph, resampled
from lightning_modules.config import build_part, load_method
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.enlarging.parts import Advance, PartByPart, nothing
from lightning_modules.enlarging.sizes import Size, passes
from lightning_modules.sampling import TILE, DiffusionSampling
from lightning_modules.super_resolver import SuperResolver

SAMPLERS = CONFIGS / "sampler"


class Enlarger:
    """Enlarges images with a trained method.

    Args:
        method: In eval mode, on its device.
        scale: How many times longer each side becomes; None: what it was trained for.
        sampler: A sampler, or the name of one in `configs/sampler`; None: the method's own.
        steps: Of the sampler; None: as many as it has.
        tile: Larger images are enlarged in parts of this many pixels of the result a side.

    Raises:
        ValueError: the method does not say what scale it was trained for, takes no sampler, the sampler cannot be used
            with it, or tiles are too small.
    """

    def __init__(
        self,
        method: SuperResolver,
        *,
        scale: int | None = None,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        tile: int = TILE,
    ) -> None:
        scale = scale or method.trained_scale
        if scale is None:
            raise ValueError(f"{type(method).__name__}: its checkpoint does not say the scale; give scale=")
        self.method, self.scale = method, scale
        self.sampler = self._sampler(sampler, steps)
        self.parts = PartByPart(method, scale=scale, kernel=method.trained_kernel, part=tile)

    @classmethod
    def load(cls, weights: str | Path, device: str | torch.device | None = None, **options: Any) -> Self:
        """The method of a checkpoint; on a GPU where there is one, unless `device` says where."""
        usual = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        return cls(load_method(weights, device or usual), **options)

    def enlarge(
        self,
        image: Any,
        *,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        key: str = "image",
    ) -> Any:
        """Enlarges an image and returns the same kind of thing.

        Images of any size are enlarged in bounded memory.

        Args:
            image: A Pillow image, with whatever profile, transparency and metadata; an array `[H,W]`, `[H,W,3]` or
                `[H,W,4]`, uint8, uint16 or floats in [0, 1]; a tensor of floats in [0, 1], `[3,H,W]` or `[B,3,H,W]`;
                the path of a file, which gives a Pillow image; that of a folder, which gives a dictionary of them by
                name; or a list of any of these, which gives a list.
            sampler: Instead of the configured one: a sampler, or the name of one in `configs/sampler`.
            steps: Of the sampler.
            scale: How many times longer each side becomes, instead of the model's own.
            size: The width and height into which the result fits, instead of a scale.
            key: A name, on which the noise depends; that of a file is its own name.

        Raises:
            ImageError: a file or Pillow image cannot be read.
            FileNotFoundError: there is no such file, or no image in a folder.
            ValueError: the image is of another kind; or see `UnusableImage` and `SizeError`.
            TypeError: it is none of these kinds.
        """
        chosen = self if sampler is None and steps is None else self.with_sampler(sampler, steps)
        wanted = Size(scale) if size is None else Size(scale, *size)
        return chosen._any(image, wanted, key)

    def with_sampler(self, sampler: Sampler | str | None, steps: int | None) -> "Enlarger":
        """The same with another sampler or number of steps."""
        other = copy.copy(self)
        other.sampler = self._sampler(sampler or self.sampler, steps)
        return other

    def attention(self, image: Any) -> NDArray[np.float32]:
        """YODA's attention map of an image, `[H,W]` in [0, 1] on the grid of the result.

        Args:
            image: One image, as `enlarge` takes it.

        Raises:
            ValueError: the method has no map.
        """
        if not isinstance(self.method, DiffusionSampling) or self.method.region is None:
            raise ValueError(
                f"{type(self.method).__name__} has no attention map; one that was trained or is used with a region has "
                "(configs/region)"
            )
        photograph = _photograph(image, "image")
        if photograph is None:
            raise TypeError(f"attention: expected one image, got a {type(image).__name__}")
        lr = from_levels(as_tensor(photograph.colours).to(self.method.device))
        with torch.no_grad():
            batch = assembled(lr, ["image"], scale=self.scale, kernel=self.method.trained_kernel)
            shown: NDArray[np.float32] = self.method.preview(batch)["attention"][0, 0].float().cpu().numpy()
        return shown

    def photographs(
        self, photographs: Sequence[Photograph], keys: Sequence[str], size: Size, advance: Advance = nothing
    ) -> list[Photograph]:
        """Enlarges photographs of one size and depth, see `PartByPart`.

        Raises:
            UnusableImage: one is too small for the method, or does not fit the memory.
            ValueError: a result holds NaN or infinity, or see `SizeError`.
        """
        target = size.of(*photographs[0].size, self.scale)
        images: list[Levels] = [photograph.colours for photograph in photographs]
        for number in range(passes(photographs[0].size, target, self.scale)):
            if number == 0:
                images = self.parts(images, keys, self.sampler, advance)
            else:  # of what was enlarged, as many no longer fit together
                again = [f"{key}, pass {number + 1}" for key in keys]
                images = [
                    self.parts([image], [key], self.sampler, advance)[0]
                    for image, key in zip(images, again, strict=True)
                ]
        return [
            photograph.with_colours(resampled(image, target))
            for photograph, image in zip(photographs, images, strict=True)
        ]

    def _any(self, image: Any, size: Size, key: str) -> Any:
        if isinstance(image, (list, tuple)):
            return [self._any(each, size, f"{key} {number}") for number, each in enumerate(image)]
        if isinstance(image, (str, os.PathLike)):
            path = Path(image).expanduser()
            if path.is_dir():
                return {name: self._file(file, size, name) for name, file in keyed({path: find_images(path)})}
            return self._file(path, size, keyed({path: find_images(path)})[0][0])
        if isinstance(image, Tensor) and image.ndim == 4:
            return torch.stack([self._any(each, size, f"{key} {number}") for number, each in enumerate(image)])

        photograph = _photograph(image, key)
        if photograph is None:
            raise TypeError(
                f"enlarge: expected a Pillow image, an array, a tensor, a path, or a list of these, got a "
                f"{type(image).__name__}"
            )
        (made,) = self.photographs([photograph], [key], size)
        return _like(image, made)

    def _file(self, path: Path, size: Size, key: str) -> Image.Image:
        (made,) = self.photographs([read_photograph(path, str(path))], [key], size)
        return pillow_image(made)

    def _sampler(self, sampler: Sampler | str | None, steps: int | None) -> Sampler | None:
        if sampler is None and steps is None:
            return None
        if not isinstance(self.method, DiffusionSampling):
            raise ValueError(f"sampler, steps: {type(self.method).__name__} does not sample; leave them out")
        if steps is not None and steps < 1:
            raise ValueError(f"steps: {steps} must be at least 1")

        if isinstance(sampler, str):
            sampler = _named(sampler, steps)
        made = copy.copy(sampler or self.method.sampler)
        if steps is not None:
            made.steps = steps
        try:
            made.grid(self.method.process)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sampler: cannot be used with this method: {error}") from error
        return made


def _named(name: str, steps: int | None) -> Sampler:
    """A sampler of `configs/sampler`."""
    file = SAMPLERS / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SAMPLERS.glob("*.yaml")))
        raise ValueError(f"sampler: there is no {name!r}; there are {known}")
    options = [] if steps is None else [f"--model.init_args.sampler.init_args.steps={steps}"]
    made: Sampler = build_part(Sampler, "model.init_args.sampler", [file], options)[0]
    return made


def _photograph(image: Any, name: str) -> Photograph | None:
    """One image as a photograph; None for what is no image.

    Raises:
        ValueError: an array or tensor of another shape or range.
    """
    if isinstance(image, Image.Image):
        return photograph_of(image, name)
    if isinstance(image, (str, os.PathLike)):
        return read_photograph(Path(image), str(image))
    if isinstance(image, Tensor):
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
            raise ValueError(f"{name}: expected floats [3,H,W] in [0, 1], got {list(image.shape)} {image.dtype}")
        image = image.detach().permute(1, 2, 0).float().cpu().numpy()
    if not isinstance(image, np.ndarray):
        return None

    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"{name}: expected [H,W], [H,W,3] or [H,W,4], got {list(image.shape)}")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
            raise ValueError(f"{name}: expected floats in [0, 1]; 8-bit levels are given as uint8, or divided by 255")
        pixels = (pixels.clip(0, 1) * 65535).round().astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name}: expected uint8, uint16 or floats, got {pixels.dtype}")
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[-1] == 4 else None
    grey = pixels.shape[-1] == 1
    colours = np.repeat(pixels, 3, axis=-1) if grey else np.ascontiguousarray(pixels[..., :3])
    return Photograph(name, colours, alpha, grey)


def _like(image: Any, made: Photograph) -> Any:
    """An enlarged photograph as the kind of thing that the image was."""
    if isinstance(image, Image.Image):
        return pillow_image(made)
    pixels = made.colours if made.alpha is None else np.concatenate([made.colours, made.alpha[..., None]], axis=-1)
    if isinstance(image, Tensor):
        return from_levels(as_tensor(pixels))[0, : image.shape[0]].to(image.device, image.dtype)
    if image.ndim == 2 or image.shape[-1] == 1:
        pixels = pixels[..., :1].mean(axis=-1, keepdims=image.ndim == 3).astype(pixels.dtype)
    return (pixels / 65535).astype(image.dtype) if np.issubdtype(image.dtype, np.floating) else pixels
