"""Cuts HR and LR at the same place: random patches in training, whole or centre-cropped images in validation."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from datamodules.images import Pixels
from datamodules.stream.sources import BadSample, Sample


def cut_to_multiple(sample: Sample, scale: int) -> Sample:
    """The sample with HR cut at its right and bottom to a multiple of `scale`.

    Raises:
        BadSample: HR is smaller than `scale`, or the LR image or the attention map is not exactly 1/scale its size.
    """
    height, width = (side // scale for side in sample.hr.shape[:2])
    if not height or not width:
        raise BadSample(f"{sample.key}: {_size(sample.hr)} is smaller than the scale {scale}")

    if sample.lr is not None and sample.lr.shape[:2] != (height, width):
        raise BadSample(
            f"{sample.key}: HR {_size(sample.hr)} and LR {_size(sample.lr)} disagree: "
            f"at scale {scale} LR must be {width}x{height}"
        )
    if sample.attention is not None and sample.attention.shape[:2] != (height, width):
        raise BadSample(
            f"{sample.key}: its attention map is {_size(sample.attention)}, not {width}x{height} as the LR image"
        )
    return replace(sample, hr=sample.hr[: height * scale, : width * scale])


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _window(sample: Sample, size: int, top: int, left: int, scale: int) -> Sample:
    hr = sample.hr[top : top + size, left : left + size]
    lr_size, top, left = size // scale, top // scale, left // scale
    return _map_lr(replace(sample, hr=hr), lambda image: image[top : top + lr_size, left : left + lr_size])


def _map_lr(sample: Sample, change: Callable[[Pixels], Pixels]) -> Sample:
    """Applies `change` to what has the size of the LR image: that image and the attention map."""
    lr, attention = (None if image is None else change(image) for image in (sample.lr, sample.attention))
    return replace(sample, lr=lr, attention=attention)


def _check_size(sample: Sample, size: int) -> None:
    if min(sample.hr.shape[:2]) < size:
        raise BadSample(f"{sample.key}: {_size(sample.hr)} is below the crop of {size}x{size}")


@dataclass(frozen=True)
class RandomCrop:
    """Square patches at random places, mirrored and turned if wanted; a function of (seed, key, draw).

    Args:
        size: side of the HR patch, a multiple of `scale`.
        scale: HR size over LR size; offsets are multiples of it.
        seed: of the run.
        flip: mirror left-right, half of the time.
        rotate: turn by 90 degrees, half of the time (with `flip`, all eight orientations are equally likely).
    """

    size: int
    scale: int
    seed: int
    flip: bool = True
    rotate: bool = False

    def __call__(self, sample: Sample, draw: int) -> Sample:
        """Cuts the patch of epoch `draw`.

        Raises:
            BadSample: the image is smaller than the patch, or HR and LR disagree.
        """
        sample = cut_to_multiple(sample, self.scale)
        _check_size(sample, self.size)

        rng = np.random.default_rng([self.seed, draw, zlib.crc32(sample.key.encode())])
        rows, columns = ((side - self.size) // self.scale + 1 for side in sample.hr.shape[:2])
        top, left = int(rng.integers(rows)) * self.scale, int(rng.integers(columns)) * self.scale
        patch = _window(sample, self.size, top, left, self.scale)
        # always three draws, so that the options change nothing else about a patch
        mirrored, transposed, upside_down = rng.random(3) < 0.5

        def orient(image: Pixels) -> Pixels:
            image = image[:, ::-1] if self.flip and mirrored else image
            image = image[::-1] if self.rotate and upside_down else image
            return image.swapaxes(0, 1) if self.rotate and transposed else image

        return _map_lr(replace(patch, hr=orient(patch.hr)), orient)


@dataclass(frozen=True)
class CenterCrop:
    """The middle of an image, or all of it, cut to a multiple of `scale`.

    Args:
        size: side of the HR patch, a multiple of `scale`; None keeps the whole image.
        scale: HR size over LR size.
    """

    size: int | None
    scale: int

    def __call__(self, sample: Sample, draw: int = 0) -> Sample:
        """Cuts the middle; `draw` has no effect.

        Raises:
            BadSample: the image is smaller than the patch, or HR and LR disagree.
        """
        sample = cut_to_multiple(sample, self.scale)
        if self.size is None:
            return sample
        _check_size(sample, self.size)
        top, left = (int(side - self.size) // 2 // self.scale * self.scale for side in sample.hr.shape[:2])
        return _window(sample, self.size, top, left, self.scale)
