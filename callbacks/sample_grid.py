"""A picture of the same images at every validation: input, enlarged input, result and target."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from callbacks.evaluation import EvaluationCallback
from datamodules.batch import Batch, to_pixels
from lightning_modules.float64 import widest
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.whole_file import whole_file

Tile = NDArray[np.uint8]  # [H,W,3]
Column = dict[str, Tile]  # the tiles of one image by the title of their row

MARGIN = 110  # width in pixels of the titles of rows
HEADER = 20  # height in pixels of the keys above columns
FOOTER = 36  # height in pixels of the two lines below columns
GAP = 4  # pixels between tiles
GREY = (96, 96, 96)


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that accepts images, such as WandbLogger."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Logs `images` under `key`."""


class Sample(NamedTuple):
    """What is kept of one image: its tiles, and the text below them."""

    tiles: Column
    caption: str


class SampleGrid(EvaluationCallback[Sample]):
    """Draws a grid with one column for each of a few images.

    The rows are the low-resolution image, the enlarged one, the result, the target, and the method's panels, such as
    the attention and masks of YODA. At the left stands the step, and below each image PSNR-Y of the whole result and of
    the enlarged image. Images and their noise are the same at every validation. Of a large image the
    centre is shown at full resolution. One process writes the picture to `samples/step-<n>.png` in the run's folder
    (a test: `samples/test-step-<n>.png`) and to every logger that accepts images.

    Args:
        keys: Keys of the images to show; by default the first few in sorted order.
        images: Number of images if `keys` is not given.
        size: Largest side of a tile, in pixels of the high-resolution image.
        baseline: Title of the row of enlarged images: how `batch["up"]` was made.

    Raises:
        ValueError: `images` or `size` is below 1.
    """

    def __init__(
        self, keys: list[str] | None = None, images: int = 4, size: int = 256, baseline: str = "enlarged"
    ) -> None:
        if images < 1 or size < 1:
            raise ValueError(f"images and size must be at least 1, got {images} and {size}")
        super().__init__()
        self.keys, self.images, self.size, self.baseline = keys, images, size, baseline

    def _selected(self, keys: list[str]) -> list[str]:
        """The keys of the images that a grid shows if there are images with these `keys`, in the order of columns."""
        return sorted(keys)[: self.images] if self.keys is None else [key for key in self.keys if key in keys]

    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Keeps the tiles of the images to show, as far as the batches up to now tell which these are."""
        selected = set(self._selected([*self.kept, *batch["key"]]))
        for index, key in enumerate(batch["key"]):
            if key in selected:
                tiles = column(outputs, batch, index, self.size, self.baseline)
                self.kept[key] = Sample(tiles, psnr_line(outputs["sr"], batch, index, self.baseline))

        # An image of this batch may come before a kept one in the order and take its place.
        self.kept = {key: sample for key, sample in self.kept.items() if key in selected}

    def conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        stage: str,
        kept: dict[str, Sample],
        folder: Path,
    ) -> None:
        """Draws the grid and gives it to the run's folder and the loggers.

        Raises:
            ValueError: one of `keys` was not evaluated.
        """
        missing = sorted(set(self.keys or []) - kept.keys())
        if missing:
            raise ValueError(f"{', '.join(missing)}: to be shown in the sample grid, but no such image was evaluated")
        if not trainer.is_global_zero:
            return

        shown = {key: kept[key] for key in self._selected(list(kept))}
        captions = {key: sample.caption for key, sample in shown.items()}
        grid = draw({key: sample.tiles for key, sample in shown.items()}, captions, f"step {trainer.global_step}")
        prefix = "" if stage == "val" else f"{stage}-"
        path = folder / "samples" / f"{prefix}step-{trainer.global_step:06d}.png"
        with whole_file(path) as part:
            grid.save(part, format="PNG")

        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                step = trainer.global_step
                logger.experiment.add_image(f"{stage}/samples", np.asarray(grid), step, dataformats="HWC")
            elif isinstance(logger, ImageLogger):
                logger.log_image(f"{stage}/samples", [grid], step=trainer.global_step)


def column(outputs: dict[str, Any], batch: Batch, index: int, size: int, baseline: str) -> Column:
    """The tiles of image `index` of a batch by title, each at most `size` pixels high and wide."""
    keys = batch["key"][index : index + 1]
    scale = batch["up"].shape[-1] // batch["lr"].shape[-1]
    nearest = batch["lr"][index].repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    images = {"lr": nearest, baseline: batch["up"][index], "sr": outputs["sr"][index]}
    if "hr" in batch:
        images["hr"] = batch["hr"][index]
    images |= {title: panel[index] * 2 - 1 for title, panel in outputs.get("panels", {}).items()}
    return {title: _tile(to_pixels(centre(image, size)[None], keys)[0]) for title, image in images.items()}


def psnr_line(sr: Tensor, batch: Batch, index: int, baseline: str) -> str:
    """PSNR-Y of image `index` of a batch, and below it of the baseline, as `ImageMetrics` measures it.

    It is empty without a target.
    """
    if "hr" not in batch:
        return ""
    keys, scale = batch["key"][index : index + 1], batch["up"].shape[-1] // batch["lr"].shape[-1]
    hr, enlarged, result = (
        crop_border(to_pixels(images[index : index + 1], keys).to(widest(sr.device)) / 255, scale)
        for images in (batch["hr"], batch["up"], sr)
    )
    score = PSNR("y")
    return f"{float(score.compare(result, hr)):.2f} dB\n{baseline} {float(score.compare(enlarged, hr)):.2f}"


def centre(image: Tensor, size: int) -> Tensor:
    """The centre of an image `[C,H,W]`, at most `size` pixels high and wide."""
    height, width = image.shape[-2:]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return image[..., top : top + size, left : left + size]


def _tile(pixels: Tensor) -> Tile:
    return np.asarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu(), dtype=np.uint8)


class _Cell(NamedTuple):
    """The size of the grid's cells, in pixels."""

    width: int
    height: int

    def top_left(self, row: int, column: int) -> tuple[int, int]:
        """The x and y coordinates of a cell's upper left corner."""
        return MARGIN + column * (self.width + GAP), HEADER + row * (self.height + GAP)


def draw(columns: dict[str, Column], captions: dict[str, str] | None = None, title: str = "") -> Image.Image:
    """The grid of columns `{key: {title: tile}}`, with titles at the left and keys at the top.

    Args:
        columns: By key.
        captions: The text below each column, by key.
        title: What stands in the corner.
    """
    titles = list(dict.fromkeys(title for tiles in columns.values() for title in tiles))
    shapes = [tile.shape for tiles in columns.values() for tile in tiles.values()]
    cell = _Cell(width=max(shape[1] for shape in shapes), height=max(shape[0] for shape in shapes))
    width, height = cell.top_left(len(titles), len(columns))
    picture = Image.new("RGB", (width, height + (FOOTER if captions else 0)), GREY)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)

    pen.text((GAP, GAP), title, font=font)
    for row, name in enumerate(titles):
        pen.text((GAP, cell.top_left(row, 0)[1] + GAP), name, font=font)

    for position, (key, tiles) in enumerate(columns.items()):
        # Keys that are too long lose their beginning, because the end tells the images of a data set apart.
        label = key
        while pen.textlength(label, font=font) > cell.width and len(label) > 1:
            label = label[1:]
        left, _ = cell.top_left(0, position)
        pen.text((left, GAP), label, font=font)

        for name, tile in tiles.items():
            picture.paste(Image.fromarray(tile), cell.top_left(titles.index(name), position))
        pen.text((left, height), (captions or {}).get(key, ""), font=font)
    return picture
