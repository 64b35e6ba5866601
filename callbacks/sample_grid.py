"""A picture of fixed images at every validation: what was given, what came out, what was wanted."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from callbacks.evaluation import EvaluationCallback
from datamodules.batch import Batch, to_pixels

Tile = NDArray[np.uint8]  # [H,W,3]
Column = dict[str, Tile]  # of one image, by the row's title

MARGIN = 110  # pixels for the titles of rows
HEADER = 20  # pixels for the keys above columns
GAP = 4
GREY = (96, 96, 96)


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that takes pictures, as WandbLogger does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Logs `images` under `key`."""


class SampleGrid(EvaluationCallback[Column]):
    """Rows lr, up, sr, hr and the method's panels (YODA's attention and masks); one column for each of a few images.

    The images, and the noise they are drawn with, are the same at every validation. Large images are shown as their
    centre at full resolution. Each picture is written by one process to `samples/step-<n>.png` in the run's folder
    (`samples/test-step-<n>.png` by a test), and to every logger that takes pictures.

    Args:
        keys: Of the images to show; by default the first few in the order of keys.
        images: How many, where `keys` is not given.
        size: Largest side of a tile, in pixels of the high-resolution image.
        baseline: What made `batch["up"]`, as the row is titled.
    """

    def __init__(
        self, keys: list[str] | None = None, images: int = 4, size: int = 256, baseline: str = "bicubic"
    ) -> None:
        if images < 1 or size < 1:
            raise ValueError(f"images and size must be at least 1, got {images} and {size}")
        super().__init__()
        self.keys, self.images, self.size, self.baseline = keys, images, size, baseline

    def _shown(self, keys: list[str]) -> list[str]:
        """Those of `keys` that a grid of these images would show."""
        return sorted(keys)[: self.images] if self.keys is None else [key for key in self.keys if key in keys]

    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Makes the tiles of those images of the batch that are shown."""
        shown = set(self._shown([*self.kept, *batch["key"]]))
        for index, key in enumerate(batch["key"]):
            if key in shown:
                self.kept[key] = column(outputs, batch, index, self.size, self.baseline)
        self.kept = {key: tiles for key, tiles in self.kept.items() if key in shown}

    def conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        stage: str,
        kept: dict[str, Column],
        folder: Path,
    ) -> None:
        """Draws the grid, for the run's folder and the loggers.

        Raises:
            ValueError: an image that was asked for was not there.
        """
        missing = sorted(set(self.keys or []) - kept.keys())
        if missing:
            raise ValueError(f"{', '.join(missing)}: to be shown in the sample grid, but no such image was evaluated")
        if not trainer.is_global_zero:
            return
        grid = draw({key: kept[key] for key in self._shown(list(kept))})
        prefix = "" if stage == "val" else f"{stage}-"
        path = folder / "samples" / f"{prefix}step-{trainer.global_step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        for logger in trainer.loggers:
            if isinstance(logger, ImageLogger):
                logger.log_image(f"{stage}/samples", [grid], step=trainer.global_step)


def column(outputs: dict[str, Any], batch: Batch, index: int, size: int, baseline: str) -> Column:
    """The tiles of image `index` of a batch, by title, at most `size` pixels on each side."""
    keys = batch["key"][index : index + 1]
    scale = batch["up"].shape[-1] // batch["lr"].shape[-1]
    nearest = batch["lr"][index].repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    images = {"lr": nearest, baseline: batch["up"][index], "sr": outputs["sr"][index]}
    if "hr" in batch:
        images["hr"] = batch["hr"][index]
    images |= {title: panel[index] * 2 - 1 for title, panel in outputs.get("panels", {}).items()}
    return {title: _tile(to_pixels(centre(image, size)[None], keys)[0]) for title, image in images.items()}


def centre(image: Tensor, size: int) -> Tensor:
    """The middle of `[C,H,W]`, at most `size` pixels on each side."""
    height, width = image.shape[-2:]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return image[..., top : top + size, left : left + size]


def _tile(pixels: Tensor) -> Tile:
    return np.asarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu(), dtype=np.uint8)


class _Cell(NamedTuple):
    width: int
    height: int

    def corner(self, row: int, place: int) -> tuple[int, int]:
        return MARGIN + place * (self.width + GAP), HEADER + row * (self.height + GAP)


def draw(columns: dict[str, Column]) -> Image.Image:
    """The labelled grid of `{key: {title: tile}}`."""
    titles = list(dict.fromkeys(title for tiles in columns.values() for title in tiles))
    shapes = [tile.shape for tiles in columns.values() for tile in tiles.values()]
    cell = _Cell(width=max(shape[1] for shape in shapes), height=max(shape[0] for shape in shapes))
    picture = Image.new("RGB", cell.corner(len(titles), len(columns)), GREY)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for row, title in enumerate(titles):
        pen.text((GAP, cell.corner(row, 0)[1] + GAP), title, font=font)
    for place, (key, tiles) in enumerate(columns.items()):
        left, _ = cell.corner(0, place)
        label = key
        while pen.textlength(label, font=font) > cell.width and len(label) > 1:
            label = label[1:]  # the end of a key tells images of one set apart
        pen.text((left, GAP), label, font=font)
        for title, tile in tiles.items():
            picture.paste(Image.fromarray(tile), cell.corner(titles.index(title), place))
    return picture
