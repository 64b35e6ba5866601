"""What crosses from data to methods and callbacks: the batch, and its images as 8-bit pixels."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor

from datamodules.degradations.enlarge import Enlargement, enlarge
from datamodules.degradations.levels import to_uint8


class Batch(TypedDict):
    """Images of one step, in [-1, 1] float32, `[B,C,H,W]`.

    A training or validation batch holds `hr`; a prediction batch, where only the low-resolution image is known, does
    not. `up` is `lr` enlarged to the grid of `hr` by the kernel that the data config names; a method reads the scale
    off the two shapes.
    """

    lr: Tensor  # [B,3,h,w], the degraded input
    up: Tensor  # [B,3,H,W], lr on hr's grid; may leave [-1,1] slightly
    key: list[str]  # "div2k/0801"; validation degradations and noise are functions of it
    hr: NotRequired[Tensor]  # [B,3,H,W], the target
    start: NotRequired[Tensor]  # [B,3,H,W], the degraded image that sampling starts from, put here by the method
    attention: NotRequired[Tensor]  # [B,1,H,W] in [0,1], where the data set carries a map
    sr: NotRequired[Tensor]  # [B,3,H,W], the result, where an interrupted test had written it
    path: NotRequired[list[str]]  # the file of each image, where single files are enlarged
    skip: NotRequired[bool]  # put here by the prediction writer: the results exist, nothing is to be computed


def make_batch(lr: Tensor, key: list[str], *, scale: int, kernel: Enlargement) -> Batch:
    """A batch without targets from low-resolution images `[B,3,h,w]` in [0, 1]."""
    return Batch(lr=signed(lr), up=signed(enlarge(lr, scale=scale, kernel=kernel)), key=key)


def signed(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return image * 2 - 1


def to_pixels(image: Tensor, keys: Sequence[str]) -> Tensor:
    """Rounds images as a PNG file would hold them.

    Args:
        image: `[B,C,H,W]` in [-1, 1]; values outside are clamped.
        keys: name of each image, for the error.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: an image holds NaN or infinity, which no pixel can show.
    """
    finite = image.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        named = ", ".join(key for key, good in zip(keys, finite, strict=True) if not good)
        raise ValueError(
            f"{named}: the image holds NaN or infinity; if the model was trained, sample in float32 (set precision to "
            "32-true) to rule out an overflow"
        )
    return to_uint8(image.float(), black=-1.0)
