"""Three small images in an export, before and after: made once, and made again to see whether anything differs."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.batch import make_batch, to_pixels
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.levels import to_uint8
from datamodules.images import decode
from datamodules.photos import bundled
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.diffusion.randomness import drawn_on
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.weight_files import digest
from lightning_modules.weights import MODEL
from lightning_modules.whole_file import whole_file

Precision = Literal["float32", "bfloat16"]
FOLDER, MADE = "pairs", "pairs.json"
SIDE = 48  # pixels of a low-resolution image, where the network does not need more
SEED = 0
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png")


@dataclass(frozen=True)
class Difference:
    """How a result differs from the stored one, in grey levels of 255.

    Attributes:
        name: Of the image.
        mean: Mean of the absolute differences.
        largest: The largest of them.
    """

    name: str
    mean: float
    largest: int


def photographs() -> list[Path]:
    """Those that are on every machine."""
    return [bundled(name) for name in PHOTOGRAPHS]


def low_resolution(file: Path, degradation: Degradation, least: int) -> Tensor:
    """The centre of a photograph, degraded: uint8 `[1,3,h,w]`.

    Args:
        file: The photograph.
        degradation: What makes it small.
        least: Smallest side of the enlarged image, in pixels.

    Raises:
        ImageError: the file is no image.
        ValueError: the photograph is too small.
    """
    pixels = torch.from_numpy(decode(file, str(file)).copy()).permute(2, 0, 1)[None] / 255
    scale, (height, width) = degradation.scale, pixels.shape[-2:]
    side = max(SIDE * 4, least) // scale * scale
    if min(height, width) < side:
        raise ValueError(f"{file}: has {width}x{height} pixels, but a pair needs {side}x{side}; give a larger image")
    top, left = (height - side) // 2, (width - side) // 2
    hr = pixels[..., top : top + side, left : left + side]
    return to_uint8(degradation(hr, keys=[file.stem], epoch=0, seed=SEED))


def enlarged(model: SuperResolver, lr: Tensor, name: str, *, kernel: Any, scale: int, precision: Precision) -> Tensor:
    """The result uint8 `[1,3,H,W]` for an image uint8 `[1,3,h,w]`, on the model's device.

    The noise is drawn on the CPU, whatever the device, and from a seed that is always the same.
    """
    batch = make_batch(lr.to(model.device) / 255, [name], scale=scale, kernel=kernel)
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with _seed(), drawn_on(torch.device("cpu")), half:
        return to_pixels(model.super_resolve(batch), [name]).cpu()


@contextlib.contextmanager
def _seed() -> Iterator[None]:
    before = os.environ.get("PL_GLOBAL_SEED")
    os.environ["PL_GLOBAL_SEED"] = str(SEED)
    try:
        yield
    finally:
        os.environ.pop("PL_GLOBAL_SEED")
        if before is not None:
            os.environ["PL_GLOBAL_SEED"] = before


def write_pairs(folder: Path, model: SuperResolver, images: Mapping[str, Tensor], **how: Any) -> None:
    """Enlarges images uint8 `[1,3,h,w]` and writes `pairs/<name>_lr.png`, `pairs/<name>_sr.png` and `pairs.json`.

    Args:
        folder: The export.
        model: As it is loaded from there.
        images: By name.
        how: See `enlarged`.
    """
    for name, lr in images.items():
        _write(folder / FOLDER / f"{name}_lr.png", lr)
        _write(folder / FOLDER / f"{name}_sr.png", enlarged(model, lr, name, **how, precision="float32"))
    made = {
        "images": list(images),
        "device": model.device.type,
        "precision": "float32",
        "torch": torch.__version__,
        "sampling": model.protocol(),
        "weights_sha256": digest(folder / MODEL),
    }
    with whole_file(folder / FOLDER / MADE) as part:
        part.write_text(json.dumps(made, indent=1) + "\n")


def read_made(folder: Path) -> dict[str, Any]:
    """How the pairs of an export were made.

    Raises:
        CheckpointError: the export has none.
    """
    path = folder / FOLDER / MADE
    try:
        content = json.loads(path.read_text())
        if not content["images"]:
            raise ValueError("no images")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is missing or damaged ({error}), so that nothing can be verified") from error
    return dict(content)


def differences(folder: Path, model: SuperResolver, names: Sequence[str], **how: Any) -> Iterator[Difference]:
    """Enlarges the stored images again, see `enlarged`, and compares."""
    for name in names:
        yield _difference(folder, name, partial(_again, model, name, how))


def _again(model: SuperResolver, name: str, how: Mapping[str, Any], lr: Tensor) -> Tensor:
    return enlarged(model, lr, name, **how)


def compared(folder: Path, names: Sequence[str], enlarge: Callable[[Tensor], Tensor]) -> Iterator[Difference]:
    """Enlarges the stored images with a function between `[1,3,h,w]` and `[1,3,H,W]` in [0, 1], and compares."""
    for name in names:
        yield _difference(folder, name, lambda lr: to_uint8(enlarge(lr / 255)))


def _difference(folder: Path, name: str, enlarge: Callable[[Tensor], Tensor]) -> Difference:
    stored = _read(folder / FOLDER / f"{name}_sr.png").int()
    again = enlarge(_read(folder / FOLDER / f"{name}_lr.png")).int()
    if stored.shape != again.shape:
        raise CheckpointError(
            f"{folder / FOLDER}/{name}_sr.png: has {stored.shape[-1]}x{stored.shape[-2]} pixels, but the result "
            f"{again.shape[-1]}x{again.shape[-2]}: it belongs to another model"
        )
    wrong = (stored - again).abs()
    return Difference(name, float(wrong.float().mean()), int(wrong.max()))


def _write(path: Path, image: Tensor) -> None:
    with whole_file(path) as part:
        Image.fromarray(np.asarray(image[0].permute(1, 2, 0).contiguous())).save(part, format="PNG")


def _read(path: Path) -> Tensor:
    return torch.from_numpy(decode(path, str(path)).copy()).permute(2, 0, 1)[None]
