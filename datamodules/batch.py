"""What crosses from data to methods and callbacks: the batch, and its images as 8-bit pixels."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor

from datamodules.degradations.enlarge import Enlargement, enlarge
from datamodules.degradations.levels import to_levels
from datamodules.photograph import Photograph

_TOLERANCE = 1e-3  # of the range of images that a caller makes


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
    photograph: NotRequired[list[Photograph]]  # what each image was read as, where photographs are enlarged
    place: NotRequired[list[tuple[int, int]]]  # of parts of larger images: first row and column, in pixels of up
    skip: NotRequired[bool]  # put here by the prediction writer: the results exist, nothing is to be computed


def make_batch(lr: Tensor, key: list[str], *, scale: int, kernel: Enlargement) -> Batch:
    """A batch without targets, of images that a caller has made.

    Args:
        lr: Low-resolution images, floats `[B,3,h,w]` in [0, 1].
        key: A name for each; its noise is a function of it.
        scale: How many times larger each side becomes.
        kernel: How `up` is made; a method expects the one that it was trained with.

    Raises:
        ValueError: the images are of another kind or range, the scale is no whole number, or names are missing.
    """
    _check_images(lr)
    if isinstance(key, str) or len(key) != len(lr):
        raise ValueError(f"key: expected a list of {len(lr)} names, one for each image, got {key!r}")
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale: expected a whole number of at least 1, got {scale!r}")
    return assembled(lr, key, scale=scale, kernel=kernel)


def assembled(lr: Tensor, key: list[str], *, scale: int, kernel: Enlargement) -> Batch:
    """What `make_batch` makes, of images that need no check, which would wait for the device."""
    return Batch(lr=signed(lr), up=signed(enlarge(lr, scale=scale, kernel=kernel)), key=key)


def _check_images(lr: Tensor) -> None:
    expected = "lr: expected floats [B,3,h,w] in [0, 1]"
    if not isinstance(lr, Tensor):
        raise ValueError(
            f"{expected}, got a {type(lr).__name__}; torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255"
        )

    if not lr.is_floating_point():
        raise ValueError(f"{expected}, got {lr.dtype}; 8-bit pixels become such by .float() / 255")
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape:
        way = ""
        if lr.ndim == 3 and lr.shape[0] == 3:
            way = "; a single image needs [None]"
        elif lr.ndim in (3, 4) and lr.shape[-1] == 3:
            way = "; the channels come before height and width: .movedim(-1, -3)"
        elif lr.ndim == 4 and lr.shape[1] in (1, 4):
            way = "; grey images need .expand(-1, 3, -1, -1)" if lr.shape[1] == 1 else "; leave the alpha channel out"
        raise ValueError(f"{expected}, got {list(lr.shape)}{way}")

    low, high = (float(value) for value in lr.detach().float().aminmax())
    if not -_TOLERANCE <= low <= high <= 1 + _TOLERANCE:  # also where a value is NaN
        way = "8-bit levels are divided by 255" if high > 2 else "images in [-1, 1] become such by (image + 1) / 2"
        way = "it holds NaN" if low != low or high != high else way
        raise ValueError(f"{expected}, got values from {low:.4g} to {high:.4g}; {way}, others are clamped")


def signed(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return image * 2 - 1


def to_pixels(image: Tensor, keys: Sequence[str], depth: int = 8) -> Tensor:
    """Rounds images as a PNG file would hold them.

    Args:
        image: `[B,C,H,W]` in [-1, 1]; values outside are clamped.
        keys: name of each image, for the error.
        depth: bits of a channel, 8 or 16.

    Returns:
        uint8 or uint16, of the same shape.

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
    return to_levels(image.float(), depth)
